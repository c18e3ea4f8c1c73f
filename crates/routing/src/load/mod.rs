//! The estimate of one endpoint's load.
//!
//! Two sources disagree by nature: the proxy's own count is exact but covers only its own requests, and the
//! endpoint's report covers all requests but is old when it arrives. Trusting either alone herds or blinds.
//! So requests in flight are counted here exactly, by a guard that cannot leak, and reports are used for the
//! rest only: the requests of *others* there. Of that the last report is trusted for a fraction of a service
//! time, after which it says no more than the mean of all reports; the scatter of reports gives the error of
//! the mean at a given moment.
//!
//! All fields are relaxed atomics: a torn read mixes two reports of the same endpoint, milliseconds
//! apart, and costs no more than reading a moment later.

mod abandoned;
mod concurrency_limit;
mod cost;
mod estimate;
mod explore;
mod service_time;
#[cfg(test)]
mod tests;

use self::abandoned::Abandoned;
use self::concurrency_limit::{ConcurrencyLimit, Seen};
use self::estimate::LoadEstimate;
use self::service_time::{ChangeDetector, ServiceTime};
pub(crate) use self::service_time::{MAX_RATIO, Peers};
use crate::Time;
use crate::float::{Float, narrow};
use crate::pick::recent::{NO_INDEX, PickMemory};
use crate::sync::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Half-life, in seconds, of the knowledge of an endpoint's speed while no answer confirms it: one slow
/// answer must not keep it out of use forever.
const ANSWER_HALF_LIFE: f32 = 10.0;
/// Seconds in which a peak of the response time fades to a half: 10 s of decay, as Finagle has it.
const PEAK_HALF_LIFE: f32 = 7.0;
/// Sample weight, in answers, that is kept when an endpoint rejoins rotation.
const REJOINED_ANSWERS: f32 = 0.5;
/// Weight of a report in the mean of what others have there, at least, and the seconds after which
/// one weighs as much as all before it.
const REPORT_WEIGHT: f32 = 0.02;
const REPORT_MEMORY: f32 = 8.0;
/// Share of the scatter of reports that is taken for that of the load. The rest is how they come
/// about: at moments when a request of ours ends.
const SCATTER_SHARE: f32 = 0.25;
/// Penalty in seconds after one failure, its half-life in seconds, and how often it doubles: up to
/// some seconds, after which the endpoint gets a request to prove itself.
const FIRST_PENALTY: f64 = 0.05;
const PENALTY_HALF_LIFE: f64 = 0.5;
const MAX_PENALTY_DOUBLINGS: u32 = 8;
/// Answers after which an endpoint's mean is one that others can be compared with.
const MIN_ANSWERS: f32 = 5.0;
/// Share of the time that abandoned work is expected to take yet for which its slot counts as busy. All of it
/// would leave a slot idle for long where services are spread out, none would send the next request behind it.
const HOLD_SHARE: f64 = 0.5;
/// No sample yet.
const UNKNOWN: u64 = u64::MAX;

/// A report of an endpoint, as far as picking needs it. Counts are requests.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Report {
    /// Executing and queued, from all senders.
    pub in_flight: Option<u32>,
    /// Queued only.
    pub queue: Option<u32>,
    /// Number of requests that it can run at once.
    pub slots: Option<u32>,
    /// Number of requests that it runs as one batch, if it joins requests.
    pub batch: Option<u32>,
    /// Its own mean service time.
    pub service_time: Option<Duration>,
    /// Number of requests that this proxy still counts and that it had finished already: the request whose
    /// answer bears the report.
    pub answered: u32,
}

/// The load of one endpoint. Shared by all picks; never locked.
///
/// The fields that a pick reads come first and fill a cache line.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Load {
    in_flight: AtomicU32,
    /// As reported; 0: not reported.
    slots: AtomicU32,
    assumed_slots: AtomicU32,
    service_time: ServiceTime,
    abandoned: Abandoned,
    /// Nanoseconds on the clock of [`Time`]: when the last answer came.
    answered_at: AtomicU64,
    /// The mean of what others have there by all reports, its variance, and by the last one.
    others: Float,
    scatter: Float,
    last_others: Float,
    /// Seconds; 0: not reported.
    reported_service: Float,
    /// Nanoseconds on the clock of [`Time`].
    reported_at: AtomicU64,
    /// Failures in a row, and when the last one was, in nanoseconds on the clock of [`Time`].
    failures: AtomicU32,
    /// Its index in the pool when it was last picked.
    index: AtomicU32,
    failed_at: AtomicU64,
    reports: AtomicU32,
    reported_in_flight: AtomicU32,
    reported_queue: AtomicU32,
    /// As reported; 0: not reported.
    batch: AtomicU32,
    /// The mean of what we have there when others are counted.
    ours: Float,
    change: ChangeDetector,
    /// The highest response time of late, in seconds; 0: none.
    peak: Float,
    /// Nanoseconds on the clock of [`Time`]: when its last free slot was taken, and when its speed was last found
    /// to have changed.
    filled_at: AtomicU64,
    changed_at: AtomicU64,
    memory: OnceLock<Arc<PickMemory>>,
    /// Of the pool that it serves, however large that is.
    pool: OnceLock<Arc<PickMemory>>,
    /// Used where neither report nor configuration states slots.
    concurrency_limit: OnceLock<Box<ConcurrencyLimit>>,
}

impl Load {
    /// Nothing sent, nothing reported; `slots` is assumed until a report says otherwise. 0: unknown, so the
    /// endpoint takes every request.
    pub fn new(slots: u32) -> Self {
        Self {
            in_flight: AtomicU32::new(0),
            slots: AtomicU32::new(0),
            assumed_slots: AtomicU32::new(slots),
            service_time: ServiceTime::default(),
            abandoned: Abandoned::default(),
            answered_at: AtomicU64::new(UNKNOWN),
            others: Float::default(),
            scatter: Float::default(),
            last_others: Float::default(),
            reported_service: Float::default(),
            reported_at: AtomicU64::new(UNKNOWN),
            failures: AtomicU32::new(0),
            index: AtomicU32::new(NO_INDEX),
            failed_at: AtomicU64::new(UNKNOWN),
            reports: AtomicU32::new(0),
            reported_in_flight: AtomicU32::new(0),
            reported_queue: AtomicU32::new(0),
            batch: AtomicU32::new(0),
            ours: Float::default(),
            change: ChangeDetector::default(),
            peak: Float::default(),
            filled_at: AtomicU64::new(0),
            changed_at: AtomicU64::new(UNKNOWN),
            memory: OnceLock::new(),
            pool: OnceLock::new(),
            concurrency_limit: OnceLock::new(),
        }
    }

    /// Counts one request in, until the guard is dropped.
    #[must_use = "the request counts as in flight until the guard is dropped"]
    pub fn enter(self: &Arc<Self>) -> InFlight {
        let others = self.in_flight.fetch_add(1, Relaxed);
        InFlight { load: Arc::clone(self), others }
    }

    /// Requests that we sent and that are unfinished.
    #[inline]
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// Number of requests that the endpoint can run at once; 1 if unknown.
    #[inline]
    pub fn slots(&self) -> u32 {
        self.known_slots().unwrap_or(1)
    }

    /// Number of requests that the endpoint can run at once, as stated or learnt.
    #[inline]
    pub fn known_slots(&self) -> Option<u32> {
        self.stated_slots().or_else(|| self.learnt_slots())
    }

    /// Number of requests that the endpoint can run at once, as reported or configured.
    #[inline]
    pub fn stated_slots(&self) -> Option<u32> {
        let stated = [&self.slots, &self.assumed_slots].map(|slots| slots.load(Relaxed));
        stated.into_iter().find(|slots| *slots > 0)
    }

    /// Number of requests that the endpoint does in the time of one. Where it runs several as one, a larger batch takes
    /// longer, and how much longer shows in latencies: an endpoint that joins eight in vain does hardly more than one.
    #[inline]
    pub(crate) fn speedup(&self) -> Option<u32> {
        match (self.stated_slots(), self.learnt_slots()) {
            (Some(stated), Some(learnt)) if self.joins() => Some(learnt.clamp(1, stated)),
            (stated, learnt) => stated.or(learnt),
        }
    }

    /// Number of requests that the endpoint can run at once, as learnt from latencies.
    #[inline]
    pub fn learnt_slots(&self) -> Option<u32> {
        self.concurrency_limit.get()?.slots()
    }

    /// Our own share of so many places, by what we and others have had there on average. Reports are of the past: where each
    /// of several proxies leaves room for what the others had then, slots stand idle that all of them wait for.
    pub(crate) fn own_share(&self, places: u32) -> u32 {
        let (ours, others) = (self.ours.get(), self.others.get().max(0.0));
        if others <= 0.0 {
            return 0;
        }
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "at most places"
        )]
        let share = (float(places) * ours / (ours + others)).round() as u32;
        share
    }

    /// Whether the endpoint reports that it runs several requests as one.
    pub fn joins(&self) -> bool {
        self.batch.load(Relaxed) > 1
    }

    /// Sets the slots that are assumed until a report says otherwise, as a reload may change them.
    pub fn assume_slots(&self, slots: u32) {
        self.assumed_slots.store(slots, Relaxed);
    }

    /// Requests there in the last report, from everyone, if there was one.
    pub fn reported_in_flight(&self) -> Option<u32> {
        self.reported_at().map(|_| self.reported_in_flight.load(Relaxed))
    }

    /// Queue depth in the last report, if there was one.
    pub fn reported_queue(&self) -> Option<u32> {
        self.reported_at().map(|_| self.reported_queue.load(Relaxed))
    }

    /// Arrival of the last report.
    pub fn reported_at(&self) -> Option<Time> {
        let at = self.reported_at.load(Relaxed);
        (at != UNKNOWN).then(|| Time::new(Duration::from_nanos(at)))
    }

    /// Takes in a report that arrived at `now`.
    pub fn report(&self, report: &Report, now: Time) {
        if let Some(slots) = report.slots {
            self.slots.store(slots.max(1), Relaxed);
        }
        if let Some(batch) = report.batch {
            self.batch.store(batch, Relaxed);
        }
        if let Some(service) = report.service_time {
            self.reported_service.set(service.as_secs_f32());
        }
        self.reported_queue.store(report.queue.unwrap_or(0), Relaxed);
        if let Some(queue) = report.queue.filter(|_| self.stated_slots().is_none()) {
            let concurrency_limit = self.concurrency_limit.get_or_init(Box::default);
            let there = report.in_flight.unwrap_or(0).max(self.in_flight());
            concurrency_limit.states_queue(queue, there);
        }
        let Some(in_flight) = report.in_flight else { return };
        self.reported_in_flight.store(in_flight, Relaxed);
        let ours = self.in_flight().saturating_sub(report.answered);
        self.abandoned.at_most(in_flight.saturating_sub(ours), now.nanos());
        let abandoned = self.abandoned.count(now.nanos());
        let others = float(in_flight) - float(ours) - float(abandoned);
        self.last_others.set(others);
        let reports = self.reports.load(Relaxed).saturating_add(1);
        self.reports.store(reports, Relaxed);
        let age = self.reported_at().map_or(0.0, |last| now.since(last).as_secs_f32());
        let weight = REPORT_WEIGHT.max(age / (age + REPORT_MEMORY)).max(1.0 / float(reports));
        let off = others - self.others.get();
        self.scatter.draw((1.0 - weight) * off * off, weight);
        self.others.draw(others, weight);
        // Work that this proxy has abandoned takes its own slots, not those of others.
        self.ours.draw(float(ours) + float(abandoned), weight);
        self.reported_at.store(now.nanos().min(UNKNOWN - 1), Relaxed);
    }

    /// Takes in, at `now`, how long a request took that found `others` of ours already there.
    ///
    /// The part that it spent behind the others is taken out, so that a busy endpoint is not
    /// mistaken for a slow one.
    pub fn observe(&self, took: Duration, others: u32, now: Time) {
        self.failures.store(0, Relaxed);
        let samples = self.confidence(now.nanos());
        self.peak.set(self.peak_at(now.nanos()).max(took.as_secs_f32()));
        let last = self.answered_at.swap(now.nanos().min(UNKNOWN - 1), Relaxed);
        let estimate = self.estimate_for(others);
        let is_stated = self.stated_slots().is_some();
        if !is_stated || self.joins() {
            let concurrency_limit = self.concurrency_limit.get_or_init(Box::default);
            concurrency_limit.learn(others + 1, took.as_secs_f32());
            if let Some(longer) = self.share_longer(took).filter(|_| !is_stated) {
                concurrency_limit.weigh(others + 1, (Seen::Answered, longer), took, now);
            }
        }
        let sample = self.service_of(took, &estimate, now, last);
        if samples == 0.0
            && let Some(memory) = self.memory.get()
        {
            memory.learn_first_answer(sample);
        }
        let (mean, _) = self.service_time.mean();
        if let Some(memory) = self.pool.get().filter(|_| samples >= MIN_ANSWERS && mean > 0.0) {
            let alone = estimate.of_ours_alone();
            self.learn_odds(memory, took.as_secs_f32() / alone.completion() / mean, &estimate);
            memory.learn_variation(sample / mean, samples);
        }
        self.learn_service(sample, others, samples);
        let restarted = self.service_time.mean().1 < samples;
        if restarted || self.changed_at.load(Relaxed) == UNKNOWN {
            self.changed_at.store(now.nanos().min(UNKNOWN - 1), Relaxed);
        }
    }

    /// A request is bound to it: is that the last free slot?
    pub(crate) fn bound(&self, now: Time) {
        if self.in_flight() + 1 == self.slots() {
            self.filled_at.store(now.nanos(), Relaxed);
        }
    }

    /// For how long no slot has freed here since all were taken.
    pub(crate) fn full_for(&self, now: Time) -> Duration {
        let answered = Some(self.answered_at.load(Relaxed)).filter(|at| *at != UNKNOWN);
        let since = self.filled_at.load(Relaxed).max(answered.unwrap_or(0));
        Duration::from_nanos(now.nanos().saturating_sub(since))
    }

    /// For how many seconds its answers have shown the same speed, up to the last one.
    fn steady_for(&self) -> f32 {
        let (changed, answered) = (self.changed_at.load(Relaxed), self.answered_at.load(Relaxed));
        if changed == UNKNOWN || answered == UNKNOWN { 0.0 } else { seconds(answered, changed) }
    }

    /// The time of the service itself, in seconds. An endpoint with one slot began with this request when it had
    /// finished the one before; otherwise the part that was spent behind `estimate` is taken out.
    fn service_of(&self, took: Duration, estimate: &LoadEstimate, now: Time, last: u64) -> f32 {
        let took = took.as_secs_f32();
        let is_ours = estimate.others < 0.5 && estimate.variance < 0.25;
        let follows = estimate.ours > 0.0 && last != UNKNOWN && self.abandoned.is_over(last);
        if estimate.slots == 1.0 && is_ours && follows {
            return took.min(seconds(now.nanos(), last));
        }
        took / estimate.completion()
    }

    fn learn_service(&self, sample: f32, others: u32, samples: f32) {
        // Without stated slots, the share of the service in the time is a guess, which is off by another amount at
        // each endpoint: such endpoints are not compared.
        let pool = self.pool.get().filter(|_| self.stated_slots().is_some());
        let variation = self.pool.get().map(|memory| memory.peers().variation);
        let peers = match pool {
            Some(memory) => memory.peers(),
            None => Peers { variation: variation.unwrap_or(1.0), ..Peers::default() },
        };
        // Without stated slots, the number of requests that ran together is unknown.
        let together = self.stated_slots().map_or(1, |slots| slots.min(others.saturating_add(1)));
        self.service_time.learn(&self.change, (sample, float(together)), samples, peers);
        if let Some(memory) = pool {
            memory.learn_mean(self.service_time.mean().0);
        }
    }

    /// The highest response time of late, in seconds: a new highest counts at once, and fades from then
    /// on.
    pub fn peak_seconds(&self, now: Time) -> Option<f64> {
        let peak = self.peak_at(now.nanos());
        (peak > 0.0).then_some(f64::from(peak))
    }

    fn peak_at(&self, now: u64) -> f32 {
        self.peak.get() * fading(seconds(now, self.answered_at.load(Relaxed)), PEAK_HALF_LIFE)
    }

    /// Mean deviation of service times from their mean, in seconds; 0 if unknown. A promise about one
    /// request must allow for it: of an exponential distribution with mean 1 it is 0.74, of a constant 0.
    pub fn deviation_seconds(&self) -> f64 {
        f64::from(self.change.deviation())
    }

    /// Takes in that an attempt failed at `now`.
    pub fn failed(&self, now: Time) {
        self.failures.fetch_update(Relaxed, Relaxed, |n| Some(n.saturating_add(1))).ok();
        self.failed_at.store(now.nanos().min(UNKNOWN - 1), Relaxed);
    }

    /// Seconds that are added to the cost for failures: an endpoint that fails fast looks idle, and
    /// would draw all traffic. Doubles with each failure in a row, fades with time.
    pub fn penalty(&self, now: Time) -> f64 {
        self.penalty_at(now.nanos())
    }

    #[inline]
    fn penalty_at(&self, now: u64) -> f64 {
        let failures = self.failures.load(Relaxed);
        if failures == 0 {
            return 0.0;
        }
        let since = f64::from(seconds(now, self.failed_at.load(Relaxed)));
        let doublings = f64::from(failures.min(MAX_PENALTY_DOUBLINGS) - 1);
        FIRST_PENALTY * (doublings - since / PENALTY_HALF_LIFE).exp2()
    }

    /// Mean service time in seconds, measured by us and believed beside that of others in the pool; the
    /// endpoint's word where we have no answer yet.
    #[inline]
    pub fn service_seconds(&self) -> Option<f64> {
        let (mean, samples) = self.service_time.believed();
        let word = self.reported_service.get();
        let known = if samples > 0.0 { mean } else { word };
        (samples > 0.0 || word > 0.0).then_some(f64::from(known))
    }

    /// It rejoins rotation, maybe as another process: its failures are over, and of what was known of its
    /// speed only a hint remains. Learnt slots stay: maybe it was away because of a flood.
    pub fn rejoined(&self) {
        self.failures.store(0, Relaxed);
        self.service_time.forget(REJOINED_ANSWERS);
        self.changed_at.store(UNKNOWN, Relaxed);
    }

    /// It serves the pool whose picks share this.
    pub(crate) fn serves(&self, memory: &Arc<PickMemory>) {
        self.pool.get_or_init(|| Arc::clone(memory));
    }

    /// Takes in that a request was cut short `after` it was sent, of which therefore only is known that it
    /// takes longer: it counts for what is to be expected of such a one.
    fn cut_short(&self, after: Duration, others: u32, now: Time) {
        let samples = self.confidence(now.nanos());
        let (mean, _) = self.service_time.mean();
        // However few answers there were: a mean that is too little lets nothing be answered any more that
        // would put it right.
        let Some(memory) = self.pool.get().filter(|_| mean > 0.0) else { return };
        // Beside others it may have waited for them, where the number that runs at once is unknown.
        if others > 0 && self.known_slots().is_none() {
            return;
        }
        let estimate = self.estimate_for(others);
        let (seconds, alone) = (after.as_secs_f32(), estimate.of_ours_alone());
        let ratio = memory.odds.beyond(seconds / alone.completion() / mean);
        if samples >= MIN_ANSWERS {
            self.learn_odds(memory, ratio, &estimate);
        }
        let took = ratio * mean * alone.completion();
        self.learn_service(took / estimate.completion(), others, samples);
    }

    /// The share of services alone that take longer than that, where it is known.
    fn share_longer(&self, took: Duration) -> Option<f32> {
        let (mean, samples) = self.service_time.mean();
        let memory = self.pool.get().filter(|memory| memory.odds.is_known())?;
        (samples >= MIN_ANSWERS && mean > 0.0)
            .then(|| 1.0 - narrow(memory.odds.within(f64::from(took.as_secs_f32() / mean))))
    }

    /// Whether a request that finds `there` others may find out whether one more runs at once than was
    /// learnt.
    pub(crate) fn may_probe(&self, there: u32, now: Time) -> bool {
        let Some(concurrency_limit) = self.concurrency_limit.get() else { return false };
        self.stated_slots().is_none()
            && concurrency_limit.slots() == Some(there)
            && self
                .service_seconds()
                .is_some_and(|service| concurrency_limit.is_probe_due(service, now))
    }

    /// Records that a client stopped waiting at `now` for a request that was sent `after` before and found
    /// `others` of this proxy there; running requests go on.
    fn abandon(&self, after: Duration, others: u32, now: Time) {
        let (Some(memory), Some(mean)) = (self.pool.get(), self.service_seconds()) else { return };
        let there = others.saturating_add(self.abandoned.count(now.nanos()));
        // Most servers drop a waiting request when its connection ends.
        if !memory.odds.is_known() || self.known_slots().is_some_and(|slots| there >= slots) {
            return;
        }
        let ratio = after.as_secs_f64() / mean;
        let left = f64::from(memory.odds.beyond(narrow(ratio))) - ratio;
        let left = left * HOLD_SHARE;
        let left = Duration::try_from_secs_f64(left * mean).unwrap_or_default();
        self.abandoned.add(now + left);
    }

    /// Requests that are still there although their clients have left, as far as is known.
    pub(crate) fn abandoned(&self, now: Time) -> u32 {
        self.abandoned.count(now.nanos())
    }

    /// Ratios are of the time that passed until the answer was here, not of the part of it without others'
    /// requests: their number is an estimate, and where it is wrong the mean is. A deadline is met in the
    /// time that really passes, and so the odds correct the errors of the mean.
    ///
    /// A request behind others shows less about service times, but more than nothing.
    fn learn_odds(&self, memory: &PickMemory, ratio: f32, estimate: &LoadEstimate) {
        if estimate.queue() < 0.5 || !memory.odds.is_known() {
            memory.odds.learn(ratio);
        }
    }

    /// The endpoint as a request found it that was sent beside `others` of this proxy. Where the number that
    /// runs at once is unknown, none is taken to wait: until latency has doubled, all of them run.
    fn estimate_for(&self, others: u32) -> LoadEstimate {
        LoadEstimate {
            ours: float(others),
            others: self.others.get().max(0.0),
            variance: self.scatter.get() * SCATTER_SHARE,
            slots: float(self.speedup().unwrap_or(others + 1)),
            service: 1.0,
        }
    }

    /// It was picked, and has this index among those that were to be had.
    pub(crate) fn picked(&self, memory: &Arc<PickMemory>, index: u32) {
        self.memory.get_or_init(|| Arc::clone(memory));
        self.index.store(index, Relaxed);
    }

    /// One of our requests there is over: it may take the next.
    fn freed(&self, now: Time) {
        let index = self.index.load(Relaxed);
        if index == NO_INDEX {
            return;
        }
        let Some(memory) = self.memory.get() else { return };
        let mut estimate = self.estimate(now.nanos(), UNKNOWN, 0.0);
        estimate.ours = (estimate.ours - 1.0).max(0.0);
        memory.remember(index, estimate.cost());
    }

    /// May a request that would do better to wait find out instead whether that is true?
    pub(crate) fn is_worth_finding_out(&self, now: Time) -> bool {
        // The less services vary, the fewer of them tell a speed; one does where all take as long.
        let variation = self.pool.get().map_or(1.0, |memory| memory.peers().variation);
        let answers = (MIN_ANSWERS * variation).clamp(1.0, MIN_ANSWERS);
        self.confidence(now.nanos()) < answers && self.may_explore(now.nanos())
    }

    /// Worth of what is known of the speed, in answers.
    #[inline]
    fn confidence(&self, now: u64) -> f32 {
        self.service_time.mean().1 * self.freshness(now)
    }

    /// The remaining weight of what was learnt: halved with every [`ANSWER_HALF_LIFE`] without an answer, or with
    /// as long as it has been true: what has not changed for a day will not within seconds.
    #[inline]
    fn freshness(&self, now: u64) -> f32 {
        let half_life = ANSWER_HALF_LIFE.max(self.steady_for());
        fading(seconds(now, self.answered_at.load(Relaxed)), half_life)
    }
}

/// From 1 down to a half at `half_life` and on towards 0; [`UNKNOWN`] times are not faded.
fn fading(age: f32, half_life: f32) -> f32 {
    if age < half_life * 0.01 {
        return 1.0;
    }
    let ages = age / half_life * std::f32::consts::LN_2;
    1.0 / (1.0 + ages + 0.5 * ages * ages)
}

/// From `at` to `now`, both in nanoseconds, in seconds.
#[allow(clippy::cast_precision_loss, reason = "an age needs no more than six digits")]
#[inline]
fn seconds(now: u64, at: u64) -> f32 {
    now.saturating_sub(at) as f32 * 1e-9
}

#[allow(clippy::cast_precision_loss, reason = "counts of requests are far below 2^24")]
#[inline]
fn float(count: u32) -> f32 {
    count as f32
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// One request in flight; dropping it counts the request out, however it ended.
#[derive(Debug)]
pub struct InFlight {
    load: Arc<Load>,
    others: u32,
}

impl InFlight {
    /// Requests of ours that it found there.
    pub fn others(&self) -> u32 {
        self.others
    }

    /// Takes in that the request was answered at `now`, `took` after it was sent.
    pub fn answered(&self, took: Duration, now: Time) {
        self.load.observe(took, self.others, now);
        self.load.freed(now);
    }

    /// Records that the client stopped waiting at `now`, `after` the request was sent.
    pub fn cut_short(&self, after: Duration, now: Time) {
        self.load.cut_short(after, self.others, now);
        self.load.abandon(after, self.others, now);
    }

    /// The same where the request had a fair time to be answered in.
    pub fn late(self, after: Duration, now: Time) {
        self.cut_short(after, now);
        if self.load.stated_slots().is_none() {
            let concurrency_limit = self.load.concurrency_limit.get_or_init(Box::default);
            concurrency_limit.learn_late(self.others + 1, after.as_secs_f32());
            if let Some(longer) = self.load.share_longer(after) {
                concurrency_limit.weigh(self.others + 1, (Seen::Late, longer), after, now);
            }
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.load.in_flight.fetch_sub(1, Relaxed);
    }
}
