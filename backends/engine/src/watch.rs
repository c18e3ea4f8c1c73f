//! Stops the work inside an engine from outside.

use std::sync::Arc;
use std::time::Duration;

/// The question of a [`Watch`] in a form that another thread may ask.
pub type Remote = Arc<dyn Fn() -> bool + Send + Sync>;

/// Looks after a run or a load, on its thread, between steps that can't be interrupted.
pub trait Watch {
    /// Whether the work is to be stopped.
    fn stop(&self) -> bool;

    /// Time that the thread has spent inside [`Watch::stop`] on something else since the watch was
    /// made; it does not count as the run's.
    fn elsewhere(&self) -> Duration {
        Duration::ZERO
    }

    /// The same question for an engine whose runs can't ask it between steps: it is asked on a thread of the
    /// engine's, which then stops the run. `None`: such a run goes on to its end.
    fn remote(&self) -> Option<Remote> {
        None
    }
}

impl<F: Fn() -> bool> Watch for F {
    fn stop(&self) -> bool {
        self()
    }
}
