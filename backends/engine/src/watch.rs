//! How somebody outside of an engine stops what goes on inside of it.

use std::time::Duration;

/// Looks after a run or a load, on its thread, between steps that can't be interrupted.
pub trait Watch {
    /// Is it to be stopped?
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
