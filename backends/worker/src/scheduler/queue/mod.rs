//! The order of jobs: bounded lines, one per model, shared by weight; batches formed from their heads.
//!
//! One line for all would let a heavy model's clients fill it and starve a light model's; a line
//! without a bound turns overload into latency for everyone. So each model has its own, and an
//! executor that is free asks:
//!
//! - **Which line?** The one whose head is most urgent by class; among equals the one that has had
//!   least of the executors' time for its weight (start-time fair queueing, in measured seconds).
//! - **Which jobs?** Those that agree with the head in form, earliest deadline first, as many as are
//!   worth joining and as the earliest deadline among them allows. An executor never waits for
//!   company, unless the model has a `max_delay`: being busy is what forms batches.
//!
//! A run can't be taken off its executor, so a model that takes 100 ms would keep one that takes 1 ms
//! waiting that long, whatever their shares. Two things help: between two nodes of its graph a long
//! run lends its executor to a short job of a line that is behind its share ([`Queue::preempt`]); and a
//! model whose nodes are too long for that leaves one executor free while shorter ones are active.
//!
//! A job whose client has left is withdrawn at once, so that it takes neither a place nor an executor. Lines
//! come and go with their models.

mod line;
mod work;

use forebay_protocol::Priority;
use line::{Line, Waiting};
pub(crate) use line::{LineConfig, Rank};
use std::fmt::Debug;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
pub(crate) use work::Work;

/// The line's number: see [`LineHandle::id`].
pub(crate) type LineId = usize;

/// A line counts as active for so long after its last job came.
const ACTIVE: Duration = Duration::from_secs(1);
/// A thread that has waited for so long may do something else once.
const REST: Duration = Duration::from_secs(1);
/// A job is short beside a run if it is expected to take at most this share of the run's time.
const SHORT: f64 = 0.25;
/// A model's nodes are too long if one may take more than so many times a shorter model's run.
const COARSE: f64 = 1.0;

/// Jobs to be run as one.
#[derive(Debug)]
pub(crate) struct Batch<T> {
    /// At least one, all of one form.
    pub(crate) jobs: Vec<T>,
    /// Most rows to run at once.
    pub(crate) most: usize,
    /// To settle the account with, see [`Queue::finished`].
    pub(crate) account: Account,
}

/// The charge for a batch in service.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Account {
    line: LineId,
    jobs: usize,
    priority: Priority,
    /// Seconds, as expected.
    charged: f64,
    /// Whether it holds an executor of its own, or was lent one.
    holds: bool,
}

/// Waiting and running requests at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Counts {
    pub(crate) waiting: usize,
    pub(crate) executing: usize,
    /// Waiting for company, of the line that closes next, and when it does.
    pub(crate) forming: Option<(usize, Instant)>,
}

/// A line for as long as jobs may be put in it. The objects that a job holds keep its line open, so a closed
/// line is empty.
#[derive(Debug)]
pub(crate) struct LineHandle {
    queue: Arc<dyn CloseLine>,
    id: LineId,
}

/// The queue as its open lines see it: without the type of its jobs, which may hold lines themselves.
trait CloseLine: Debug + Send + Sync {
    fn close_line(&self, id: LineId);
}

impl LineHandle {
    /// The line's number in the queue.
    pub(crate) fn id(&self) -> LineId {
        self.id
    }
}

impl Drop for LineHandle {
    fn drop(&mut self) {
        self.queue.close_line(self.id);
    }
}

/// Lines of jobs.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    state: Mutex<State<T>>,
    arrived: Condvar,
    /// The same as in the state, to be looked at without a lock.
    waiting: AtomicUsize,
    executors: usize,
}

#[derive(Debug)]
struct State<T> {
    /// Open ones, and closed ones whose places are taken first when another opens.
    lines: Vec<Line<T>>,
    free: Vec<LineId>,
    waiting: usize,
    executing: usize,
    /// Executors that wait for work.
    idle: usize,
    /// Virtual time: what a line that was idle starts from, in seconds for a weight of 1.
    now: f64,
    next_id: u64,
    closed: bool,
    /// Jobs that are over, to be dropped where no lock is held: they may close their line.
    expired: Vec<T>,
}

/// Why a job was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PushError {
    #[error("the queue is full with {0} requests")]
    Full(usize),
    #[error("the worker is shutting down")]
    Closed,
}

/// An active line with short runs.
#[derive(Debug, Clone, Copy)]
struct Short {
    id: LineId,
    /// Mean seconds of a batch.
    typical: f64,
    /// Active until then.
    until: Instant,
}

/// The result of a free executor's search.
enum Found {
    /// This line is next.
    Line(LineId),
    /// Nothing to run now; look again then.
    Wait(Option<Instant>),
}

impl<T: Work> Queue<T> {
    /// A queue without lines, for so many executors.
    pub(crate) fn new(executors: usize) -> Arc<Self> {
        let state = State {
            lines: Vec::new(),
            free: Vec::new(),
            waiting: 0,
            executing: 0,
            idle: 0,
            now: 0.0,
            next_id: 0,
            closed: false,
            expired: Vec::new(),
        };
        let (state, arrived) = (Mutex::new(state), Condvar::new());
        Arc::new(Self { state, arrived, waiting: AtomicUsize::new(0), executors })
    }

    /// A new line.
    pub(crate) fn open(self: &Arc<Self>, config: LineConfig) -> LineHandle
    where
        T: Debug + Send + 'static,
    {
        let mut state = self.lock();
        let line = Line::new(config);
        let id = match state.free.pop() {
            Some(id) => {
                state.lines[id] = line;
                id
            }
            None => {
                state.lines.push(line);
                state.lines.len() - 1
            }
        };
        drop(state);
        let queue: Arc<dyn CloseLine> = Arc::<Self>::clone(self);
        LineHandle { queue, id }
    }

    /// Puts a job in its line; gives its rank there, to withdraw it by.
    pub(crate) fn push(&self, line: LineId, priority: Priority, job: T) -> Result<Rank, PushError> {
        let mut state = self.lock();
        if state.closed {
            return Err(PushError::Closed);
        }
        let (id, now, present) = (state.next_id, Instant::now(), state.now);
        let line = &mut state.lines[line];
        if line.is_full() {
            return Err(PushError::Full(line.config.bound));
        }
        let rank = Rank::new(priority, job.deadline(), now, id);
        line.enter(rank, Waiting { job, since: now }, present);
        state.next_id += 1;
        self.count(&mut state, 1, 0);
        drop(state);
        self.arrived.notify_one();
        Ok(rank)
    }

    /// Takes the next batch, waiting for one; `None` once the queue is closed and empty. Calls `rest` once,
    /// when none has come for a while.
    pub(crate) fn pop(&self, rest: impl FnOnce()) -> Option<Batch<T>> {
        let mut state = self.lock();
        let mut rest = Some(rest);
        let since = Instant::now();
        loop {
            let now = Instant::now();
            let until = match state.next(now, self.executors) {
                Found::Line(id) => {
                    let batch = self.take(&mut state, id, now, true);
                    state = self.drop_expired(state);
                    match batch {
                        Some(batch) => return Some(batch),
                        None => continue,
                    }
                }
                Found::Wait(until) => until,
            };
            if state.closed && state.waiting == 0 {
                return None;
            }
            if now - since >= REST
                && let Some(rest) = rest.take()
            {
                drop(state);
                rest();
                state = self.lock();
                continue;
            }
            let rests = rest.is_some().then(|| since + REST);
            let until = until.into_iter().chain(rests).min();
            state.idle += 1;
            state = match until {
                None => self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(at) => {
                    let wait = at.saturating_duration_since(now);
                    let waited = self.arrived.wait_timeout(state, wait);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
            state.idle -= 1;
        }
    }

    /// A short batch of another line that is behind its share, to be run in the middle of a long one
    /// on the same executor. Never waits.
    pub(crate) fn preempt(&self, running: &Account) -> Option<Batch<T>> {
        if self.waiting.load(Relaxed) == 0 {
            return None;
        }
        let mut state = self.lock();
        if state.idle > 0 {
            // Somebody is on the way to it.
            return None;
        }
        let now = Instant::now();
        let id = state.borrower(running, now)?;
        let batch = self.take(&mut state, id, now, false);
        drop(self.drop_expired(state));
        batch
    }

    /// A batch is done, after so many seconds in the engine.
    pub(crate) fn finished(&self, account: &Account, seconds: f64) {
        let mut state = self.lock();
        state.lines[account.line].settle(account.charged, seconds, account.holds);
        state.executing -= account.jobs;
    }

    /// Takes a job out of its line. `None`: it has been started.
    pub(crate) fn withdraw(&self, line: LineId, rank: &Rank) -> Option<T> {
        let mut state = self.lock();
        let waiting = state.lines[line].jobs.remove(rank)?;
        self.count(&mut state, -1, 0);
        Some(waiting.job)
    }

    /// Whether the line is full.
    pub(crate) fn is_full(&self, line: LineId) -> bool {
        self.lock().lines[line].is_full()
    }

    /// Jobs that wait in one line.
    pub(crate) fn depth(&self, line: LineId) -> usize {
        self.lock().lines[line].jobs.len()
    }

    /// Waiting and running requests, all at one moment.
    pub(crate) fn counts(&self) -> Counts {
        let state = self.lock();
        let now = Instant::now();
        let closing = state.lines.iter().filter_map(|line| Some((line, line.opens(now)?)));
        let forming = closing.filter(|(_, at)| *at > now).min_by_key(|(_, at)| *at);
        Counts {
            waiting: state.waiting,
            executing: state.executing,
            forming: forming.map(|(line, at)| (line.jobs.len(), at)),
        }
    }

    /// Takes no more jobs; those in line are still given out.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_all();
    }

    fn take(
        &self,
        state: &mut State<T>,
        id: LineId,
        now: Instant,
        holds: bool,
    ) -> Option<Batch<T>> {
        let taken = state.lines[id].take(now);
        let gone = taken.jobs.len() + taken.expired.len();
        state.expired.extend(taken.expired);
        self.count(state, -gone.cast_signed(), taken.jobs.len());
        let first = taken.jobs.first()?;
        let rows = taken.jobs.iter().map(Work::rows).sum();
        let charged = first.expected(rows);
        state.now = state.now.max(state.lines[id].start(charged, holds));
        let (jobs, priority) = (taken.jobs.len(), taken.priority);
        let account = Account { line: id, jobs, priority, charged, holds };
        Some(Batch { jobs: taken.jobs, most: taken.most, account })
    }

    fn count(&self, state: &mut State<T>, waiting: isize, executing: usize) {
        state.waiting = state.waiting.saturating_add_signed(waiting);
        state.executing += executing;
        self.waiting.store(state.waiting, Relaxed);
    }

    /// Drops what is over without the lock.
    fn drop_expired<'a>(&'a self, mut state: MutexGuard<'a, State<T>>) -> MutexGuard<'a, State<T>> {
        if state.expired.is_empty() {
            return state;
        }
        let expired = std::mem::take(&mut state.expired);
        drop(state);
        drop(expired);
        self.lock()
    }
}

impl<T: Work + Debug + Send> CloseLine for Queue<T> {
    fn close_line(&self, id: LineId) {
        let mut state = self.lock();
        state.lines[id].config.bound = 0;
        let left = std::mem::take(&mut state.lines[id].jobs);
        self.count(&mut state, -left.len().cast_signed(), 0);
        state.free.push(id);
    }
}

impl<T> Queue<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // No code of a job runs under the lock that could panic, so what a panic leaves is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Work> State<T> {
    /// The line that a free executor is to serve.
    fn next(&self, now: Instant, executors: usize) -> Found {
        let shortest = self.shortest(now);
        let mut wait: Option<Instant> = None;
        let mut best: Option<(LineId, &Rank, f64)> = None;
        for (id, line) in self.lines.iter().enumerate() {
            let (Some(opens), Some(head)) = (line.opens(now), line.head()) else { continue };
            let other = shortest.iter().flatten().find(|short| short.id != id);
            let held = other.and_then(|short| self.held_back(line, short, executors));
            let from = held.map_or(opens, |held| held.max(opens));
            if from > now && !self.closed {
                wait = Some(wait.map_or(from, |wait| wait.min(from)));
                continue;
            }
            let before = |(_, rank, served): (LineId, &Rank, f64)| {
                head.priority.cmp(&rank.priority).then(line.served.total_cmp(&served)).is_lt()
            };
            if best.is_none_or(before) {
                best = Some((id, head, line.served));
            }
        }
        best.map_or(Found::Wait(wait), |(id, ..)| Found::Line(id))
    }

    /// The two active lines with the shortest runs: the one, and the other for the one's own sake.
    fn shortest(&self, now: Instant) -> [Option<Short>; 2] {
        let mut shortest: [Option<Short>; 2] = [None, None];
        for (id, line) in self.lines.iter().enumerate() {
            let (Some(typical), Some(until)) = (line.typical(), line.active_until(now, ACTIVE))
            else {
                continue;
            };
            let short = Short { id, typical, until };
            let shorter = |other: &Option<Short>| other.is_none_or(|other| typical < other.typical);
            if shorter(&shortest[0]) {
                shortest = [Some(short), shortest[0]];
            } else if shorter(&shortest[1]) {
                shortest[1] = Some(short);
            }
        }
        shortest
    }

    /// Until when a line may not take one more executor, because its nodes are too long to let
    /// `short` in between, and the last executor that is not so occupied is that line's.
    fn held_back(&self, line: &Line<T>, short: &Short, executors: usize) -> Option<Instant> {
        let is_coarse = |delay: f64| delay > COARSE * short.typical;
        if !is_coarse(line.jobs.values().next()?.job.preemption_delay()) {
            return None;
        }
        let coarse = self.lines.iter().filter(|line| is_coarse(line.preemption_delay));
        let occupied: usize = coarse.map(|line| line.running).sum();
        (occupied > 0 && occupied + 1 >= executors).then_some(short.until)
    }

    /// The line that a long run may be interrupted for.
    fn borrower(&self, running: &Account, now: Instant) -> Option<LineId> {
        let lender = &self.lines[running.line];
        let may = self.lines.iter().enumerate().filter(|(id, line)| {
            *id != running.line
                && line.head().is_some_and(|head| {
                    head.priority < running.priority
                        || (head.priority == running.priority && line.served < lender.served)
                })
                && line.opens(now).is_some_and(|at| at <= now)
                && line.head_seconds().is_some_and(|short| short <= SHORT * running.charged)
        });
        let least = may.min_by(|(_, a), (_, b)| {
            let class = |line: &Line<T>| line.head().map(|head| head.priority);
            class(a).cmp(&class(b)).then(a.served.total_cmp(&b.served))
        });
        least.map(|(id, _)| id)
    }
}

#[cfg(test)]
mod tests;
