//! Tasks that must not end unnoticed.
//!
//! A panic ends the task that it happens in, and nothing else: the process goes on with a part
//! missing, and looks healthy. So each task that lives as long as the process runs under a
//! [`Supervisor`]. A task that panics is started again after a pause, with a count and a line in the
//! log. While a vital one is down, the process is not ready; one that cannot be kept up ends the
//! process, in order. A task that hangs does not even panic: those that something depends on have a
//! [`Pulse`], and a process in which one of them stands still is not ready either.

use futures_util::FutureExt as _;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};

/// Pause before a task is started again; it doubles while the task keeps panicking.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// A task that ran this long before it panicked begins with the first pause.
const STABLE: Duration = Duration::from_secs(30);
/// Panics in a row after which a vital task is given up: about 20 s.
const MAX_PANICS: u32 = 10;
/// Interval at which the watchdog looks for stalled tasks.
const WATCH: Duration = Duration::from_secs(1);

/// The importance of a task for the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Importance {
    /// Without it the process cannot serve: it is not ready while the task is down.
    Vital,
    /// Without it something is worse, but requests are served.
    Helpful,
}

/// Starts tasks, and starts them again. Clones are the same supervisor.
#[derive(Debug, Clone, Default)]
pub struct Supervisor(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Vital tasks that do not run at present.
    down: AtomicUsize,
    /// The vital task that was given up.
    lost: watch::Sender<Option<&'static str>>,
    /// Number of restarts, by task name.
    restarts: Mutex<BTreeMap<&'static str, u64>>,
    /// Of tasks that must not stand still.
    pulses: Mutex<Vec<Weak<Beats>>>,
}

/// Shows that a task goes on: it beats again before its time is over, or it counts as one that stands
/// still. Clones are the same pulse, which ends with the last of them.
#[derive(Debug, Clone)]
pub struct Pulse(Arc<Beats>);

#[derive(Debug)]
struct Beats {
    task: &'static str,
    /// The longest time between two beats.
    within: Duration,
    since: Instant,
    /// Milliseconds from `since` to the last beat.
    last: AtomicU64,
}

impl Pulse {
    /// The task goes on.
    pub fn beat(&self) {
        self.0.last.store(self.0.age(), Relaxed);
    }
}

impl Beats {
    fn age(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn stands_still(&self) -> bool {
        let silent = self.age().saturating_sub(self.last.load(Relaxed));
        Duration::from_millis(silent) > self.within
    }
}

impl Supervisor {
    /// Whether all vital tasks run, and all tasks with a pulse make progress.
    pub fn all_up(&self) -> bool {
        self.0.down.load(Relaxed) == 0 && self.stalled().is_empty()
    }

    /// A pulse for a task, which beats at least once within this time. Pulses of tasks that are gone are
    /// forgotten.
    pub fn pulse(&self, task: &'static str, within: Duration) -> Pulse {
        let beats =
            Arc::new(Beats { task, within, since: Instant::now(), last: AtomicU64::new(0) });
        let mut pulses = self.0.pulses.lock().unwrap_or_else(PoisonError::into_inner);
        // Amortised: as many are looked at as have been added since the last time.
        if pulses.len() == pulses.capacity() {
            pulses.retain(|pulse| pulse.strong_count() > 0);
        }
        pulses.push(Arc::downgrade(&beats));
        Pulse(beats)
    }

    /// Number of stalled tasks, by name.
    pub fn stalled(&self) -> BTreeMap<&'static str, u64> {
        let pulses = self.0.pulses.lock().unwrap_or_else(PoisonError::into_inner);
        let mut stalled = BTreeMap::new();
        for beats in pulses.iter().filter_map(Weak::upgrade).filter(|it| it.stands_still()) {
            *stalled.entry(beats.task).or_default() += 1;
        }
        stalled
    }

    /// Says in the log which tasks stand still, once each time, until it is dropped.
    pub async fn watch(self) {
        let mut known = BTreeMap::new();
        loop {
            sleep(WATCH).await;
            let now = self.stalled();
            for (task, count) in now.iter().filter(|(task, count)| known.get(*task) < Some(*count))
            {
                tracing::error!(task, count, "task makes no progress, the process is not ready");
            }
            for task in known.keys().filter(|task| !now.contains_key(*task)) {
                tracing::info!(task, "task makes progress again");
            }
            known = now;
        }
    }

    /// Number of failures, by task name.
    pub fn restarts(&self) -> BTreeMap<&'static str, u64> {
        self.0.restarts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until a vital task had to be given up; answers its name.
    pub async fn lost(&self) -> &'static str {
        let mut lost = self.0.lost.subscribe();
        // The sender is ours: waiting does not fail.
        let lost = lost.wait_for(Option::is_some).await;
        lost.ok().and_then(|name| *name).unwrap_or_default()
    }

    /// Runs the task that `make` makes on the present runtime, until it ends without a panic or is
    /// aborted. State that must outlive a panic belongs to `make`.
    pub fn spawn<F>(
        &self,
        name: &'static str,
        importance: Importance,
        make: impl FnMut() -> F + Send + 'static,
    ) -> AbortHandle
    where
        F: Future<Output = ()> + Send + 'static,
    {
        tokio::spawn(self.clone().keep_up(name, importance, make)).abort_handle()
    }

    /// The same as a future of its own, for a task that something waits for.
    pub async fn keep_up<F>(
        self,
        name: &'static str,
        importance: Importance,
        mut make: impl FnMut() -> F + Send + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut failures = Failures::new(name, importance);
        loop {
            let started = Instant::now();
            let task = AssertUnwindSafe(async { make().await });
            if task.catch_unwind().await.is_ok() {
                return;
            }
            let Some((pause, _down)) = failures.failed(&self.0, started.elapsed()) else { return };
            sleep(pause).await;
        }
    }

    /// The same for a task that has the present thread to itself.
    pub fn keep_up_here(&self, name: &'static str, importance: Importance, mut work: impl FnMut()) {
        let mut failures = Failures::new(name, importance);
        loop {
            let started = std::time::Instant::now();
            if std::panic::catch_unwind(AssertUnwindSafe(&mut work)).is_ok() {
                return;
            }
            let Some((pause, _down)) = failures.failed(&self.0, started.elapsed()) else { return };
            std::thread::sleep(pause);
        }
    }
}

/// State that is kept between two panics of a task.
struct Failures {
    name: &'static str,
    importance: Importance,
    /// Before the next start.
    pause: Duration,
    /// In a row.
    panics: u32,
}

impl Failures {
    fn new(name: &'static str, importance: Importance) -> Self {
        Self { name, importance, pause: FIRST_PAUSE, panics: 0 }
    }

    /// The task has panicked, after it ran for so long. Answers the pause, for which it counts as down;
    /// `None`: it is given up. The panic itself is a line of the log already.
    fn failed<'a>(
        &mut self,
        shared: &'a Shared,
        ran: Duration,
    ) -> Option<(Duration, Option<Down<'a>>)> {
        let is_vital = self.importance == Importance::Vital;
        let down = is_vital.then(|| Down::new(shared));
        let mut restarts = shared.restarts.lock().unwrap_or_else(PoisonError::into_inner);
        *restarts.entry(self.name).or_default() += 1;
        drop(restarts);
        if ran >= STABLE {
            (self.pause, self.panics) = (FIRST_PAUSE, 0);
        }
        self.panics += 1;
        let (task, panics) = (self.name, self.panics);
        if is_vital && panics >= MAX_PANICS {
            tracing::error!(task, panics, "task keeps failing, ending the process");
            // It stays down.
            std::mem::forget(down);
            shared.lost.send_replace(Some(task));
            return None;
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(MAX_PAUSE);
        let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        tracing::error!(task, panics, pause_ms, "task failed, restarting it");
        Some((pause, down))
    }
}

/// Counts as a vital task that is down until dropped.
struct Down<'a>(&'a Shared);

impl<'a> Down<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.down.fetch_add(1, Relaxed);
        Self(shared)
    }
}

impl Drop for Down<'_> {
    fn drop(&mut self) {
        self.0.down.fetch_sub(1, Relaxed);
    }
}

/// Panics once if a file with the task's name is in the directory that `FOREBAY_TEST_FAULTS` names,
/// and removes the file. Only debug builds look: a test proves with it that a process survives.
#[cfg(debug_assertions)]
#[allow(clippy::panic, reason = "it is what a test asks for")]
pub fn fault_point(task: &'static str) {
    static FAULTS: std::sync::LazyLock<Option<std::path::PathBuf>> =
        std::sync::LazyLock::new(|| std::env::var_os("FOREBAY_TEST_FAULTS").map(Into::into));
    if let Some(faults) = &*FAULTS
        && std::fs::remove_file(faults.join(task)).is_ok()
    {
        panic!("a test asked the task {task} to panic");
    }
}

/// Nothing in a release build.
#[cfg(not(debug_assertions))]
pub fn fault_point(_: &'static str) {}

/// Waits while there is a file with the task's name and `.hang` behind it in the directory that
/// `FOREBAY_TEST_FAULTS` names. Only debug builds look.
#[cfg(debug_assertions)]
pub async fn hang_point(task: &'static str) {
    let Some(faults) = std::env::var_os("FOREBAY_TEST_FAULTS") else { return };
    let file = std::path::Path::new(&faults).join(format!("{task}.hang"));
    while file.exists() {
        sleep(Duration::from_millis(20)).await;
    }
}

/// Nothing in a release build.
#[cfg(not(debug_assertions))]
#[allow(clippy::unused_async, reason = "as in a debug build")]
pub async fn hang_point(_: &'static str) {}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic, reason = "tests")]
    use super::*;
    use tokio::sync::Notify;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_is_started_again_and_readiness_says_so() {
        let supervisor = Supervisor::default();
        let runs = Arc::new(AtomicUsize::new(0));
        let (ran, up) = (Arc::clone(&runs), Arc::new(Notify::new()));
        let is_up = Arc::clone(&up);
        supervisor.spawn("control", Importance::Vital, move || {
            let (run, up) = (ran.fetch_add(1, Relaxed), Arc::clone(&up));
            async move {
                if run == 0 {
                    panic!("the first one");
                }
                up.notify_one();
                std::future::pending::<()>().await;
            }
        });
        sleep(FIRST_PAUSE / 2).await;
        assert!(!supervisor.all_up());
        is_up.notified().await;
        assert!(supervisor.all_up());
        assert_eq!(supervisor.restarts(), BTreeMap::from([("control", 1)]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_vital_task_that_keeps_panicking_is_given_up() {
        let supervisor = Supervisor::default();
        supervisor.spawn("helpful", Importance::Helpful, || async { panic!("always") });
        supervisor.spawn("accept", Importance::Vital, || async { panic!("always") });
        assert_eq!(supervisor.lost().await, "accept");
        assert!(!supervisor.all_up(), "it stays down");
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_ends_or_is_aborted_is_not_started_again() {
        let supervisor = Supervisor::default();
        let ended = supervisor.spawn("ended", Importance::Vital, || async {});
        let failing = supervisor.spawn("failing", Importance::Vital, || async { panic!("always") });
        sleep(FIRST_PAUSE / 2).await;
        assert!(ended.is_finished() && !supervisor.all_up());
        failing.abort();
        sleep(MAX_PAUSE).await;
        assert!(supervisor.all_up());
        assert_eq!(supervisor.restarts(), BTreeMap::from([("failing", 1)]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_stands_still_shows_in_readiness_until_it_goes_on_or_is_gone() {
        let supervisor = Supervisor::default();
        let limit = Duration::from_secs(10);
        let (one, other) = (supervisor.pulse("probe", limit), supervisor.pulse("probe", limit));
        let control = supervisor.pulse("control", limit * 2);
        sleep(limit).await;
        assert!(supervisor.all_up());
        one.beat();
        sleep(WATCH).await;
        assert_eq!(supervisor.stalled(), BTreeMap::from([("probe", 1)]));
        assert!(!supervisor.all_up());
        other.beat();
        assert!(supervisor.all_up());
        sleep(limit * 2).await;
        assert_eq!(supervisor.stalled(), BTreeMap::from([("control", 1), ("probe", 2)]));
        drop((one, other));
        assert_eq!(supervisor.stalled(), BTreeMap::from([("control", 1)]));
        drop(control);
        assert!(supervisor.all_up());
        for _ in 0..1000 {
            supervisor.pulse("probe", limit);
        }
        let kept = supervisor.0.pulses.lock().unwrap_or_else(PoisonError::into_inner).len();
        assert!(kept < 16, "{kept}");
    }

    #[test]
    fn work_with_a_thread_of_its_own_is_started_again_too() {
        let supervisor = Supervisor::default();
        let mut runs = 0;
        supervisor.keep_up_here("loader", Importance::Vital, || {
            runs += 1;
            assert!(runs > 1, "the first one");
        });
        assert_eq!((runs, supervisor.all_up()), (2, true));
    }
}
