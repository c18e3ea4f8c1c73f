//! One model's line: its order, its account, and the batch at its head.

use super::work::Work;
use forebay_protocol::Priority;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A job without a deadline is ranked like one with this much time, so that jobs with deadlines do not pass
/// it forever.
const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);
/// Factor by which a batch may take longer than nearly always and still meet the deadlines in it.
const MARGIN: f64 = 1.2;
/// Jobs that are looked at for one batch: more of other forms than this are not searched through.
const MAX_LOOK: usize = 256;
/// Weight of the newest batch in the moving mean of a line's batches.
const NEWEST: f64 = 0.1;

/// The settings of a line.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct LineConfig {
    /// Most jobs that wait.
    pub(crate) bound: usize,
    /// Share of the executors' time beside other lines.
    pub(crate) weight: u32,
    /// Time that a free executor may wait for a fuller batch.
    pub(crate) max_delay: Duration,
}

/// The rank of a job: class first, then deadline, then order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    pub(crate) priority: Priority,
    due: Instant,
    id: u64,
}

impl Rank {
    pub(super) fn new(
        priority: Priority,
        deadline: Option<Instant>,
        now: Instant,
        id: u64,
    ) -> Self {
        Self { priority, due: deadline.unwrap_or(now + DEFAULT_DEADLINE), id }
    }
}

#[derive(Debug)]
pub(super) struct Waiting<T> {
    pub(super) job: T,
    pub(super) since: Instant,
}

#[derive(Debug)]
pub(super) struct Line<T> {
    pub(super) config: LineConfig,
    pub(super) jobs: BTreeMap<Rank, Waiting<T>>,
    /// Executors that run its batches.
    pub(super) running: usize,
    /// Seconds of executors that it has had, divided by its weight: its virtual time.
    pub(super) served: f64,
    /// Mean seconds of a batch; 0 before the first.
    mean: f64,
    /// Seconds that its newest batch may run before it can lend its executor.
    pub(super) preemption_delay: f64,
    /// Arrival of its last job.
    last: Option<Instant>,
}

/// The jobs taken out of a line.
pub(super) struct Taken<T> {
    pub(super) jobs: Vec<T>,
    pub(super) expired: Vec<T>,
    pub(super) most: usize,
    /// Of the head.
    pub(super) priority: Priority,
}

impl<T: Work> Line<T> {
    pub(super) fn new(config: LineConfig) -> Self {
        let jobs = BTreeMap::new();
        Self { config, jobs, running: 0, served: 0.0, mean: 0.0, preemption_delay: 0.0, last: None }
    }

    pub(super) fn is_full(&self) -> bool {
        self.jobs.len() >= self.config.bound
    }

    pub(super) fn head(&self) -> Option<&Rank> {
        self.jobs.keys().next()
    }

    /// Takes a job in; `now` is the virtual time, at which an idle line starts again: what it did not
    /// use while it was idle is not saved up.
    pub(super) fn enter(&mut self, rank: Rank, waiting: Waiting<T>, now: f64) {
        if self.jobs.is_empty() && self.running == 0 {
            self.served = self.served.max(now);
        }
        self.last = Some(waiting.since);
        self.jobs.insert(rank, waiting);
    }

    /// Mean seconds of a batch, if one has run.
    pub(super) fn typical(&self) -> Option<f64> {
        (self.mean > 0.0).then_some(self.mean)
    }

    /// Seconds that the job at the head is expected to take: what the line's batches took, if the
    /// model does not know this form, since a guess must not let a long job in between.
    pub(super) fn head_seconds(&self) -> Option<f64> {
        let job = &self.jobs.values().next()?.job;
        Some(job.expected(job.rows()).max(self.mean))
    }

    /// Until when the line counts as active; `None` if it is not now.
    pub(super) fn active_until(&self, now: Instant, window: Duration) -> Option<Instant> {
        let until = self.last? + window;
        (until > now).then_some(until)
    }

    /// The time from which the head may be served, which is later than now only while a batch is forming;
    /// `None`: the line is empty.
    pub(super) fn opens(&self, now: Instant) -> Option<Instant> {
        let (_, first) = self.jobs.first_key_value()?;
        if self.config.max_delay.is_zero() {
            return Some(now);
        }
        let best = first.job.best();
        let (mut rows, mut closes) = (0, None::<Instant>);
        let estimate = Duration::from_secs_f64((MARGIN * first.job.high_estimate(best)).min(1e6));
        for waiting in self.jobs.values().take(MAX_LOOK) {
            if !waiting.job.joins(&first.job) {
                continue;
            }
            rows += waiting.job.rows();
            if rows >= best {
                return Some(now);
            }
            // Of the time that a deadline leaves beside the run, waiting may take a half: the rest is
            // for the way there and back.
            let spare = waiting
                .job
                .deadline()
                .map(|at| at.saturating_duration_since(waiting.since).saturating_sub(estimate) / 2);
            let delay = self.config.max_delay;
            let own = waiting.since + spare.map_or(delay, |spare| spare.min(delay));
            closes = Some(closes.map_or(own, |closes| closes.min(own)));
        }
        closes
    }

    /// Takes the head and those who can go with it, and lets go of those whose time is over.
    pub(super) fn take(&mut self, now: Instant) -> Taken<T> {
        let mut chosen: Vec<Rank> = Vec::new();
        let (best, mut expired) = self.head_in_time(now);
        let (mut rows, mut limit) = (0, 1);
        let mut first: Option<&T> = None;
        let mut earliest: Option<Instant> = None;
        for (rank, waiting) in self.jobs.iter().take(MAX_LOOK) {
            let (job, deadline) = (&waiting.job, waiting.job.deadline());
            if expired.contains(rank) || (first.is_none() && best.is_some_and(|best| best != *rank))
            {
                continue;
            }
            if deadline.is_some_and(|at| at <= now) {
                expired.push(*rank);
                continue;
            }
            let Some(head) = first else {
                (first, earliest, rows, limit) = (Some(job), deadline, job.rows(), job.limit());
                chosen.push(*rank);
                if rows >= limit {
                    break;
                }
                continue;
            };
            let together = rows + job.rows();
            if together > limit || !job.joins(head) {
                continue;
            }
            let tightest = [earliest, deadline].into_iter().flatten().min();
            if tightest.is_some_and(|at| !fits(head.high_estimate(together), now, at)) {
                continue;
            }
            (earliest, rows) = (tightest, together);
            chosen.push(*rank);
            if rows == limit {
                break;
            }
        }
        self.preemption_delay = first.map_or(0.0, Work::preemption_delay);
        let priority = chosen.first().map_or_else(Priority::default, |rank| rank.priority);
        let mut remove = |rank: &Rank| self.jobs.remove(rank).map(|waiting| waiting.job);
        let jobs = chosen.iter().filter_map(&mut remove).collect();
        let expired = expired.iter().filter_map(&mut remove).collect();
        Taken { jobs, expired, most: limit, priority }
    }

    /// The job that a batch begins with, and the jobs before it that are dropped because they can't end in
    /// time. The earliest deadline goes first, as long as it can be met: under overload that is the job that
    /// has waited longest, and to begin one that will be late makes the next one late too. If none can be
    /// met for sure, the one with the most time left goes: the estimate of its time may be wrong, and only a
    /// run corrects it.
    fn head_in_time(&self, now: Instant) -> (Option<Rank>, Vec<Rank>) {
        let mut passed: Vec<Rank> = Vec::new();
        let mut latest: Option<(Duration, Rank)> = None;
        for (rank, waiting) in self.jobs.iter().take(MAX_LOOK) {
            if latest.is_some_and(|(_, latest)| latest.priority != rank.priority) {
                break;
            }
            let Some(deadline) = waiting.job.deadline() else { return (Some(*rank), passed) };
            let left = deadline.saturating_duration_since(now);
            let estimate = waiting.job.high_estimate(waiting.job.rows());
            if estimate <= left.as_secs_f64() && !left.is_zero() {
                passed.retain(|rank| self.is_hopeless(rank, now));
                return (Some(*rank), passed);
            }
            passed.push(*rank);
            if latest.is_none_or(|(most, _)| left > most) && !left.is_zero() {
                latest = Some((left, *rank));
            }
        }
        let head = latest.map(|(_, rank)| rank);
        // Where all seem hopeless, that may be a mistake.
        let hope = head.is_some_and(|head| !self.is_hopeless(&head, now));
        passed.retain(|rank| head != Some(*rank) && hope && self.is_hopeless(rank, now));
        (head, passed)
    }

    /// Whether a job has less time left than it is expected to take.
    fn is_hopeless(&self, rank: &Rank, now: Instant) -> bool {
        let Some(job) = self.jobs.get(rank).map(|waiting| &waiting.job) else { return false };
        let left = job.deadline().map(|at| at.saturating_duration_since(now).as_secs_f64());
        left.is_some_and(|left| left == 0.0 || left < job.expected(job.rows()))
    }

    /// Charges a batch that starts; gives the virtual time at which it does.
    pub(super) fn start(&mut self, seconds: f64, holds: bool) -> f64 {
        let at = self.served;
        self.running += usize::from(holds);
        self.served += seconds / f64::from(self.config.weight.max(1));
        at
    }

    /// Corrects the charge by what it really took.
    pub(super) fn settle(&mut self, charged: f64, seconds: f64, holds: bool) {
        self.running -= usize::from(holds);
        self.served += (seconds - charged) / f64::from(self.config.weight.max(1));
        self.mean += if self.mean > 0.0 { NEWEST * (seconds - self.mean) } else { seconds };
    }
}

fn fits(seconds: f64, now: Instant, deadline: Instant) -> bool {
    MARGIN * seconds <= deadline.saturating_duration_since(now).as_secs_f64()
}
