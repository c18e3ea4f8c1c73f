//! Stops the work inside an engine from outside.

use std::time::Duration;

/// Looks after a run or a load, on its thread, between steps that can't be interrupted.
pub trait Watch {
    /// Whether the work is to be stopped.
    fn stop(&self) -> bool;

    /// Time that the thread has spent inside [`Watch::stop`] on something else since the watch was
    /// made; it does not count as the run's.
    fn elsewhere(&self) -> Duration {
        Duration::ZERO
    }
}

impl<F: Fn() -> bool> Watch for F {
    fn stop(&self) -> bool {
        self()
    }
}
