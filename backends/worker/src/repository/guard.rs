//! A model file may make its reader panic, or run forever: neither may stop the loader.
//!
//! Each version is compiled and run for the first time on a thread of its own. A panic becomes the reason
//! why that version is not served. A load that has not ended in time is given up and goes on alone, for a
//! thread can't be taken away; when several do, nothing more is loaded until one of them has ended.

use crate::allocator::give_back;
use crate::repository::error::LoadError;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering::AcqRel, Ordering::Relaxed};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

/// Stack of the thread: graphs are walked recursively.
pub(crate) const STACK: usize = 16 << 20;
/// Maximum number of loads that were given up and still run.
const MAX_LOST: usize = 2;

/// Runs what may not end.
#[derive(Debug, Default)]
pub(crate) struct Guard {
    /// Given up, and still running.
    lost: Arc<AtomicUsize>,
}

impl Guard {
    /// Runs `work`, but waits no longer than `limit` for it.
    ///
    /// # Errors
    /// Its own, it panicked, it did not end, or too many others have not ended.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        limit: Duration,
        work: impl FnOnce() -> Result<T, LoadError> + Send + 'static,
    ) -> Result<T, LoadError> {
        let lost = self.lost.load(Relaxed);
        if lost >= MAX_LOST {
            return Err(LoadError::Passing(format!("{lost} loads that did not end still run")));
        }
        let (sender, receiver) = sync_channel(1);
        let end = End { lost: Arc::clone(&self.lost), state: Arc::new(AtomicU8::new(RUNNING)) };
        let state = Arc::clone(&end.state);
        let work = move || {
            let result = catch_unwind(AssertUnwindSafe(work));
            let result = result.unwrap_or_else(|_| Err(bad("loading it panicked")));
            // A thread that ends leaves what it has freed where no other looks for it.
            give_back();
            // The receiver is gone if the load was given up.
            drop(sender.send(result));
            drop(end);
        };
        let thread = std::thread::Builder::new().name("load".to_owned()).stack_size(STACK);
        thread.spawn(work).map_err(|error| {
            LoadError::Passing(format!("can't start a thread to load it: {error}"))
        })?;
        match receiver.recv_timeout(limit) {
            Ok(result) => result,
            Err(RecvTimeoutError::Disconnected) => Err(bad("loading it ended without a word")),
            Err(RecvTimeoutError::Timeout) => {
                self.lost.fetch_add(1, Relaxed);
                if state.swap(GIVEN_UP, AcqRel) == ENDED {
                    // At the last moment.
                    self.lost.fetch_sub(1, Relaxed);
                }
                Err(format!("loading it did not end within {limit:?} and was given up").into())
            }
        }
    }
}

fn bad(text: &str) -> LoadError {
    LoadError::Bad(text.to_owned())
}

const RUNNING: u8 = 0;
const GIVEN_UP: u8 = 1;
const ENDED: u8 = 2;

/// Counts down when a load that was given up ends after all.
struct End {
    lost: Arc<AtomicUsize>,
    state: Arc<AtomicU8>,
}

impl Drop for End {
    fn drop(&mut self) {
        if self.state.swap(ENDED, AcqRel) == GIVEN_UP {
            self.lost.fetch_sub(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic, reason = "tests")]
    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn what_work_gives_says_or_panics_with_is_told() {
        let guard = Guard::default();
        assert_eq!(guard.run(LONG, || Ok(3)), Ok(3));
        assert_eq!(guard.run::<()>(LONG, || Err(bad("no"))), Err(bad("no")));
        let full = || LoadError::Full("no room".to_owned());
        assert_eq!(guard.run::<()>(LONG, move || Err(full())), Err(full()));
        let panicked = guard.run::<()>(LONG, || panic!("at once"));
        assert_eq!(panicked, Err(bad("loading it panicked")));
        assert_eq!(guard.run(LONG, || Ok(4)), Ok(4));
    }

    #[test]
    fn work_that_does_not_end_is_given_up_and_too_many_of_them_stop_the_rest() {
        let guard = Guard::default();
        let mut ends = Vec::new();
        for _ in 0..MAX_LOST {
            let (end, ended) = sync_channel::<()>(0);
            ends.push(end);
            let stuck = guard.run(Duration::from_millis(1), move || Ok(ended.recv()));
            let text = "loading it did not end within 1ms and was given up";
            assert_eq!(stuck.err(), Some(bad(text)));
        }
        let refused = guard.run(LONG, || Ok(()));
        let text = "2 loads that did not end still run".to_owned();
        assert_eq!(refused, Err(LoadError::Passing(text)));
        ends.clear();
        while guard.lost.load(Relaxed) > 0 {
            std::thread::yield_now();
        }
        assert_eq!(guard.run(LONG, || Ok(5)), Ok(5));
    }
}
