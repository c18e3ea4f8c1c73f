//! Stops runs from another thread.
//!
//! A run of the library can't be asked between its nodes whether it is still wanted, but it can be told to end.
//! So one thread asks for all runs that are under way, some hundred times a second. It sleeps while there are
//! none, and a run that is over before it is asked for costs no more than two locks.

use forebay_engine::Remote;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// Time between two questions.
const STEP: Duration = Duration::from_millis(5);
/// Steps without a run before the thread sleeps: waking it costs a run some microseconds.
const IDLE: u32 = 200;

/// Tells a run to end, from any thread.
pub(crate) type End = Arc<dyn Fn() + Send + Sync>;

/// All runs that may have to be stopped.
#[derive(Default)]
pub(crate) struct Stopper {
    runs: Mutex<Runs>,
    come: Condvar,
}

#[derive(Default)]
struct Runs {
    under_way: Vec<(u64, Remote, End)>,
    next: u64,
    has_thread: bool,
    sleeps: bool,
}

/// A run that is watched for as long as this lives.
pub(crate) struct Watched {
    stopper: Arc<Stopper>,
    number: u64,
}

impl std::fmt::Debug for Stopper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stopper").field("runs", &self.lock().under_way.len()).finish()
    }
}

impl Stopper {
    /// Watches a run: once `remote` answers yes, `end` is called. `None`: there is no thread for it.
    pub(crate) fn watch(self: &Arc<Self>, remote: Remote, end: End) -> Option<Watched> {
        let mut runs = self.lock();
        if !runs.has_thread {
            let stopper = Arc::downgrade(self);
            let thread = std::thread::Builder::new().name("stopper".to_owned());
            thread.spawn(move || look_after(&stopper)).ok()?;
            runs.has_thread = true;
        }
        let number = runs.next;
        runs.next += 1;
        runs.under_way.push((number, remote, end));
        if runs.sleeps {
            runs.sleeps = false;
            self.come.notify_all();
        }
        drop(runs);
        Some(Watched { stopper: Arc::clone(self), number })
    }

    fn lock(&self) -> MutexGuard<'_, Runs> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for each run once; whether there were any.
    fn ask(&self) -> bool {
        let runs: Vec<_> =
            self.lock().under_way.iter().map(|(_, r, end)| (r.clone(), end.clone())).collect();
        // Neither under the lock: a run that ends needs it.
        runs.iter().filter(|(remote, _)| remote()).for_each(|(_, end)| end());
        !runs.is_empty()
    }

    /// Waits for a run for some time, if there is none.
    fn sleep(&self) {
        let mut runs = self.lock();
        if runs.under_way.is_empty() {
            runs.sleeps = true;
            let waited = self.come.wait_timeout(runs, STEP * IDLE);
            waited.unwrap_or_else(PoisonError::into_inner).0.sleeps = false;
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let mut runs = self.stopper.lock();
        if let Some(place) = runs.under_way.iter().position(|run| run.0 == self.number) {
            runs.under_way.swap_remove(place);
        }
    }
}

/// The thread: it ends with the last model.
fn look_after(stopper: &Weak<Stopper>) {
    let mut idle = 0;
    while let Some(stopper) = stopper.upgrade() {
        idle = if stopper.ask() { 0 } else { idle + 1 };
        if idle > IDLE {
            stopper.sleep();
            idle = 0;
        }
        drop(stopper);
        std::thread::sleep(STEP);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    use std::sync::mpsc::channel;

    #[test]
    fn a_run_is_ended_once_it_is_not_wanted_and_no_other_is() {
        let stopper = Arc::new(Stopper::default());
        let unwanted = Arc::new(AtomicBool::new(false));
        let (ended, end) = channel();
        let asked = Arc::clone(&unwanted);
        let first: End = Arc::new(move || ended.send(()).unwrap_or_default());
        let other: End = Arc::new(|| unreachable!("it is wanted"));
        let _other = stopper.watch(Arc::new(|| false), other).unwrap();
        let run = stopper.watch(Arc::new(move || asked.load(SeqCst)), first).unwrap();
        assert!(end.try_recv().is_err());
        unwanted.store(true, SeqCst);
        end.recv_timeout(Duration::from_secs(20)).unwrap();
        drop(run);
        assert_eq!(stopper.lock().under_way.len(), 1);
    }

    #[test]
    fn the_thread_wakes_for_a_run_that_comes_while_it_sleeps() {
        let stopper = Arc::new(Stopper::default());
        let (ended, end) = channel();
        for _ in 0..3 {
            let ended = ended.clone();
            let run = stopper
                .watch(Arc::new(|| true), Arc::new(move || ended.send(()).unwrap_or_default()));
            end.recv_timeout(Duration::from_secs(20)).unwrap();
            drop(run);
            while !stopper.lock().sleeps {
                std::thread::yield_now();
            }
        }
    }
}
