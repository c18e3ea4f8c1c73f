//! Runs that can't be stopped.
//!
//! A run is stopped between two nodes of its graph, but a single node may hold an endless loop, and a thread
//! can't be taken from it. Left alone it would hold an executor forever and its clients as long as they have
//! patience. So every run is entered here with the time by which it must have been stopped. When that has
//! passed by a margin the thread is given up: its clients are answered, and another thread takes its place.
//! A worker may lose as many threads as it has executors; then it drains, to be restarted.

use crate::lifecycle::{Lifecycle, Phase};
use crate::scheduler::job::{Client, Job};
use crate::scheduler::queue::{Account, Queue};
use forebay_process::supervise::fault_point;
use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Beyond its limit a run gets so long to notice: a node of a healthy model takes far less.
const MARGIN: Duration = Duration::from_secs(1);

/// Time between two looks.
const INTERVAL: Duration = Duration::from_millis(250);

/// A place in the pool, held by one thread until that is given up.
#[derive(Debug)]
pub(crate) struct Seat {
    index: usize,
    lost: AtomicBool,
}

impl Seat {
    pub(crate) fn new(index: usize) -> Self {
        Self { index, lost: AtomicBool::new(false) }
    }

    /// Whether another thread has taken its place.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Relaxed)
    }
}

/// A run that was entered.
#[derive(Debug)]
pub(crate) struct Entry(u64);

#[derive(Debug)]
struct Running {
    seat: Arc<Seat>,
    clients: Vec<Arc<Client>>,
    account: Account,
    started: Instant,
    /// Time by which it must be over.
    due: Instant,
}

/// All runs of a worker.
#[derive(Debug, Default)]
pub(crate) struct Watchdog {
    runs: Mutex<Runs>,
    lost: AtomicUsize,
}

#[derive(Debug, Default)]
struct Runs {
    by_number: HashMap<u64, Running>,
    next: u64,
}

impl Watchdog {
    /// A run begins that has to end within `limit`.
    pub(crate) fn enter(
        &self,
        seat: &Arc<Seat>,
        clients: Vec<Arc<Client>>,
        account: Account,
        limit: Duration,
    ) -> Entry {
        let started = Instant::now();
        let due = started + limit + MARGIN;
        let mut runs = self.lock();
        let number = runs.next;
        runs.next += 1;
        let running = Running { seat: Arc::clone(seat), clients, account, started, due };
        runs.by_number.insert(number, running);
        Entry(number)
    }

    /// The run was interrupted for so long.
    pub(crate) fn extend(&self, entry: &Entry, by: Duration) {
        if let Some(running) = self.lock().by_number.get_mut(&entry.0) {
            running.due += by;
        }
    }

    /// The run is over. `false`: it had been given up, and accounted for.
    pub(crate) fn leave(&self, entry: &Entry) -> bool {
        self.lock().by_number.remove(&entry.0).is_some()
    }

    /// Threads that were given up so far.
    pub(crate) fn lost(&self) -> usize {
        self.lost.load(Relaxed)
    }

    fn overdue(&self, now: Instant) -> Vec<Running> {
        let mut runs = self.lock();
        runs.by_number.extract_if(|_, running| running.due < now).map(|(_, run)| run).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Runs> {
        // No code of a run is called under the lock, so what a panic leaves is whole.
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The parts of the worker that the watchdog uses.
pub(crate) struct Parts<S> {
    pub(crate) watchdog: Arc<Watchdog>,
    pub(crate) queue: Arc<Queue<Job>>,
    pub(crate) lifecycle: Lifecycle,
    /// Threads of the pool.
    pub(crate) executors: usize,
    /// Starts another thread in the place of this number.
    pub(crate) start_one: S,
}

impl<S: Fn(usize) -> io::Result<()>> Parts<S> {
    /// Looks after all runs until the end.
    pub(crate) async fn watch(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = self.lifecycle.reached(Phase::Ended) => return,
                () = tokio::time::sleep(INTERVAL) => {
                    fault_point("overseer");
                    self.check();
                }
            }
        }
    }

    /// Gives up the threads of runs that are long overdue.
    fn check(&self) {
        let now = Instant::now();
        for run in self.watchdog.overdue(now) {
            let (seat, seconds) = (&run.seat, (now - run.started).as_secs_f64());
            self.queue.finished(&run.account, seconds);
            run.clients.iter().for_each(|client| client.lost.notify_one());
            if seat.lost.swap(true, Relaxed) {
                // Another run on the same thread, which was lent to this one.
                continue;
            }
            let lost = self.watchdog.lost.fetch_add(1, Relaxed) + 1;
            tracing::error!(
                executor = seat.index,
                seconds,
                lost,
                "run does not end, giving up its executor"
            );
            if lost >= self.executors {
                tracing::error!(lost, "lost as many executors as configured, draining");
                self.lifecycle.advance(Phase::Draining);
            } else if let Err(error) = (self.start_one)(seat.index) {
                tracing::error!(%error, "can't start another executor");
            }
        }
    }
}
