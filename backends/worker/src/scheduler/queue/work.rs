//! The queue's view of a job.

use std::time::Instant;

/// The properties of a job that the queue needs.
pub(crate) trait Work {
    /// Not to be started after this.
    fn deadline(&self) -> Option<Instant>;
    /// Rows that it has.
    fn rows(&self) -> usize;
    /// Whether both may run as one batch.
    fn joins(&self, other: &Self) -> bool;
    /// Rows that are worth joining, as it is known now.
    fn best(&self) -> usize;
    /// The same for a batch that is formed now: at times more, to learn.
    fn limit(&self) -> usize;
    /// Seconds that so many rows are expected to take.
    fn expected(&self, rows: usize) -> f64;
    /// Seconds within which nearly all runs of so many rows end.
    fn high_estimate(&self, rows: usize) -> f64;
    /// Seconds that a run may go on before it can lend its executor.
    fn preemption_delay(&self) -> f64;
}
