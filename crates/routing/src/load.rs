//! What is known of one endpoint's load.
//!
//! Two sources disagree by nature: what we sent is exact but ours alone, and what the endpoint
//! reports covers everyone but is old when it arrives. Trusting either alone herds or blinds. So
//! requests in flight are counted here exactly, by a guard that cannot leak, and each report is
//! corrected by what was sent and finished since.
//!
//! All fields are relaxed atomics: a torn read mixes two reports of the same endpoint, milliseconds
//! apart, and costs no more than reading a moment later.

use crate::Time;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Weight of a new sample in the mean service time of a busy endpoint: about the last ten requests
/// count.
const SAMPLE_WEIGHT: f64 = 0.1;
/// Time in which what was learnt of an endpoint's speed loses half its weight while no answer
/// confirms it: one slow answer must not keep an endpoint out of use for ever.
const HALF_LIFE: f64 = 2.0;
/// Penalty in seconds after one failure, its half-life in seconds, and how often it doubles: up to
/// some seconds, after which the endpoint gets a request to prove itself.
const FIRST_PENALTY: f64 = 0.05;
const PENALTY_HALF_LIFE: f64 = 0.5;
const MOST_DOUBLINGS: u32 = 8;
/// No sample yet.
const UNKNOWN: u64 = u64::MAX;

/// What an endpoint said of itself, as far as picking needs it. Counts are requests.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Report {
    /// Executing and queued, from all senders.
    pub in_flight: Option<u32>,
    /// Queued only.
    pub queue: Option<u32>,
    /// What it can run at once.
    pub slots: Option<u32>,
    /// What it runs as one, if it joins requests.
    pub batch: Option<u32>,
    /// Its own mean service time.
    pub service_time: Option<Duration>,
    /// How many that we still count it had finished already: the request whose answer bears the
    /// report.
    pub answered: u32,
}

/// The load of one endpoint. Shared by everyone who picks; never locked.
#[derive(Debug)]
pub struct Load {
    in_flight: AtomicU32,
    /// Mean service time in seconds, as bits of an `f64`, measured by us.
    service: AtomicU64,
    /// Mean absolute deviation from it, in the same form.
    deviation: AtomicU64,
    /// Nanoseconds on the clock of [`Time`]: when the last answer came.
    answered_at: AtomicU64,
    /// Failures in a row, and when the last one was, in nanoseconds on the clock of [`Time`].
    failures: AtomicU32,
    failed_at: AtomicU64,
    assumed_slots: AtomicU32,
    /// As reported; 0: not reported.
    slots: AtomicU32,
    /// As reported; 0: not reported.
    batch: AtomicU32,
    reported_in_flight: AtomicU32,
    reported_queue: AtomicU32,
    reported_service: AtomicU64,
    /// Our own count when the report arrived: what changed since is added to it.
    in_flight_at_report: AtomicU32,
    /// Nanoseconds on the clock of [`Time`].
    reported_at: AtomicU64,
}

impl Load {
    /// Nothing sent, nothing reported; `slots` is assumed until a report says otherwise. 0: nobody
    /// knows how much it can take, so it takes whatever comes.
    pub fn new(slots: u32) -> Self {
        Self {
            in_flight: AtomicU32::new(0),
            service: AtomicU64::new(UNKNOWN),
            deviation: AtomicU64::new(UNKNOWN),
            answered_at: AtomicU64::new(UNKNOWN),
            failures: AtomicU32::new(0),
            failed_at: AtomicU64::new(UNKNOWN),
            assumed_slots: AtomicU32::new(slots),
            slots: AtomicU32::new(0),
            batch: AtomicU32::new(0),
            reported_in_flight: AtomicU32::new(0),
            reported_queue: AtomicU32::new(0),
            reported_service: AtomicU64::new(UNKNOWN),
            in_flight_at_report: AtomicU32::new(0),
            reported_at: AtomicU64::new(UNKNOWN),
        }
    }

    /// Counts one request in, until the guard is dropped.
    #[must_use = "the request counts as in flight until the guard is dropped"]
    pub fn enter(self: &Arc<Self>) -> InFlight {
        let others = self.in_flight.fetch_add(1, Relaxed);
        InFlight { load: Arc::clone(self), others }
    }

    /// Requests that we sent and that are unfinished.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// What the endpoint can run at once, as reported or assumed.
    pub fn slots(&self) -> u32 {
        self.known_slots().unwrap_or(1)
    }

    /// What the endpoint can run at once, if anybody has said so.
    pub fn known_slots(&self) -> Option<u32> {
        let stated = [&self.slots, &self.assumed_slots].map(|slots| slots.load(Relaxed));
        stated.into_iter().find(|slots| *slots > 0)
    }

    /// Does the endpoint say that it runs several requests as one?
    pub fn joins(&self) -> bool {
        self.batch.load(Relaxed) > 1
    }

    /// What is assumed until a report says otherwise, as a reload may change it.
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

    /// When the last report arrived.
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
            self.reported_service.store(service.as_secs_f64().to_bits(), Relaxed);
        }
        self.reported_queue.store(report.queue.unwrap_or(0), Relaxed);
        if let Some(in_flight) = report.in_flight {
            self.reported_in_flight.store(in_flight, Relaxed);
            let ours = self.in_flight().saturating_sub(report.answered);
            self.in_flight_at_report.store(ours, Relaxed);
            self.reported_at.store(now.nanos().min(UNKNOWN - 1), Relaxed);
        }
    }

    /// Takes in, at `now`, how long a request took that found `others` of ours already there.
    ///
    /// The part that it spent behind the others is taken out, so that a busy endpoint is not
    /// mistaken for a slow one.
    pub fn observe(&self, took: Duration, others: u32, now: Time) {
        // What is old weighs little against what is new.
        let weight = 1.0 - (1.0 - SAMPLE_WEIGHT) * self.confidence(now);
        self.answered_at.store(now.nanos().min(UNKNOWN - 1), Relaxed);
        self.failures.store(0, Relaxed);
        let rounds = rounds(f64::from(others), f64::from(self.slots()));
        let sample = took.as_secs_f64() / rounds;
        let previous = self.service.load(Relaxed);
        let previous = if previous == UNKNOWN { sample } else { f64::from_bits(previous) };
        let mean = previous + weight * (sample - previous);
        self.service.store(mean.to_bits(), Relaxed);
        let off = (sample - previous).abs();
        let deviation = self.deviation_seconds();
        self.deviation.store((deviation + weight * (off - deviation)).to_bits(), Relaxed);
    }

    /// How far service times are from their mean on average, in seconds; 0 if not known. It is what
    /// a promise about one request must allow for: of an exponential distribution with mean 1 it is
    /// 0.74, of a constant 0.
    pub fn deviation_seconds(&self) -> f64 {
        match self.deviation.load(Relaxed) {
            UNKNOWN => 0.0,
            bits => f64::from_bits(bits),
        }
    }

    /// Takes in that an attempt failed at `now`.
    pub fn failed(&self, now: Time) {
        self.failures.fetch_update(Relaxed, Relaxed, |n| Some(n.saturating_add(1))).ok();
        self.failed_at.store(now.nanos().min(UNKNOWN - 1), Relaxed);
    }

    /// Seconds that are added to the cost for failures: an endpoint that fails fast looks idle, and
    /// would draw all traffic. Doubles with each failure in a row, fades with time.
    pub fn penalty(&self, now: Time) -> f64 {
        let failures = self.failures.load(Relaxed);
        let at = self.failed_at.load(Relaxed);
        if failures == 0 || at == UNKNOWN {
            return 0.0;
        }
        let since = now.since(Time::new(Duration::from_nanos(at))).as_secs_f64();
        let doublings = f64::from(failures.min(MOST_DOUBLINGS) - 1);
        FIRST_PENALTY * (doublings - since / PENALTY_HALF_LIFE).exp2()
    }

    /// Mean service time in seconds: the lesser of the endpoint's word and what we measured. What we
    /// measure is too long while others keep it busy, and its own mean is slow to forget.
    pub fn service_seconds(&self) -> Option<f64> {
        [&self.reported_service, &self.service]
            .map(|source| source.load(Relaxed))
            .into_iter()
            .filter(|&bits| bits != UNKNOWN)
            .map(f64::from_bits)
            .reduce(f64::min)
    }

    /// Requests that are there now, from everyone: a fresh report corrected by what we did since,
    /// else our own count.
    pub fn occupancy(&self, now: Time, ttl: Duration) -> u32 {
        let ours = self.in_flight();
        match self.reported_at() {
            Some(at) if now.since(at) <= ttl => {
                let change = i64::from(ours) - i64::from(self.in_flight_at_report.load(Relaxed));
                let corrected = i64::from(self.reported_in_flight.load(Relaxed)) + change;
                ours.max(u32::try_from(corrected.max(0)).unwrap_or(u32::MAX))
            }
            _ => ours,
        }
    }

    /// The cost that pick compares: seconds until a request sent now is expected to finish.
    ///
    /// `best` is the least service time in the pool, in seconds: it stands in for one that is not
    /// known, and draws one that no answer has confirmed for a while towards itself, so that every
    /// endpoint is tried again at times.
    pub fn cost(&self, now: Time, ttl: Duration, best: f64) -> f64 {
        let waits = rounds(f64::from(self.occupancy(now, ttl)), f64::from(self.slots()));
        self.expected_service(now, best) * waits + self.penalty(now)
    }

    /// Seconds that a request is expected to take here once it runs; `best` as for [`Self::cost`].
    pub fn expected_service(&self, now: Time, best: f64) -> f64 {
        match self.service_seconds() {
            Some(own) => best + (own - best) * self.confidence(now),
            None => best,
        }
    }

    /// Weight of what is known of the speed: 1 while answers come, halved with every
    /// [`HALF_LIFE`] without one. A report without any answer is taken at its word.
    fn confidence(&self, now: Time) -> f64 {
        let at = self.answered_at.load(Relaxed);
        if at == UNKNOWN {
            return 1.0;
        }
        let idle = now.since(Time::new(Duration::from_nanos(at))).as_secs_f64();
        (-idle / HALF_LIFE).exp2()
    }
}

/// Service times that a request lasts that finds `occupancy` others on `slots` slots: one of its
/// own, and its share of the queue before it.
fn rounds(occupancy: f64, slots: f64) -> f64 {
    1.0 + (occupancy + 1.0 - slots).max(0.0) / slots
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
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.load.in_flight.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(1);

    fn at(millis: u64) -> Time {
        Time::new(Duration::from_millis(millis))
    }

    #[test]
    fn guards_count_in_and_out() {
        let load = Arc::new(Load::new(1));
        let guards = [load.enter(), load.enter()];
        assert_eq!(load.in_flight(), 2);
        drop(guards);
        assert_eq!(load.in_flight(), 0);
    }

    #[test]
    fn a_report_is_corrected_by_what_was_sent_and_finished_since() {
        let load = Arc::new(Load::new(1));
        let ours = load.enter();
        load.report(&Report { in_flight: Some(5), ..Report::default() }, at(0));
        assert_eq!(load.occupancy(at(1), TTL), 5);
        let more = [load.enter(), load.enter()];
        assert_eq!(load.occupancy(at(1), TTL), 7);
        drop(more);
        drop(ours);
        assert_eq!(load.occupancy(at(1), TTL), 4);
        assert_eq!(load.occupancy(at(1500), TTL), 0, "a stale report is not believed");
    }

    #[test]
    fn the_answer_that_bears_a_report_is_not_taken_off_twice() {
        let load = Arc::new(Load::new(1));
        let (bearer, _other) = (load.enter(), load.enter());
        let report = Report { in_flight: Some(5), answered: 1, ..Report::default() };
        load.report(&report, at(0));
        drop(bearer);
        assert_eq!(load.occupancy(at(1), TTL), 5);
    }

    #[test]
    fn a_report_below_our_own_count_is_not_believed() {
        let load = Arc::new(Load::new(1));
        let _guards = [load.enter(), load.enter()];
        load.report(&Report { in_flight: Some(0), ..Report::default() }, at(0));
        assert_eq!(load.occupancy(at(0), TTL), 2);
    }

    #[test]
    fn cost_is_the_expected_time_to_finish() {
        let load = Arc::new(Load::new(2));
        load.report(
            &Report { service_time: Some(Duration::from_millis(10)), ..Report::default() },
            at(0),
        );
        let cost = |load: &Load| (load.cost(at(0), TTL, 1.0) * 1e6).round();
        assert_eq!(cost(&load), 10_000.0);
        let _first = load.enter();
        assert_eq!(cost(&load), 10_000.0, "a free slot costs no wait");
        let _second = load.enter();
        assert_eq!(cost(&load), 15_000.0);
        let _third = load.enter();
        assert_eq!(cost(&load), 20_000.0);
    }

    #[test]
    fn failing_fast_is_expensive_and_forgiven() {
        let load = Arc::new(Load::new(1));
        let cost = |millis| load.cost(at(millis), TTL, 0.001);
        for _ in 0..10 {
            load.failed(at(0));
        }
        assert!(cost(0) > 5.0 && cost(0) < 10.0, "{}", cost(0));
        assert!(cost(6000) < 0.01, "{}", cost(6000));
        load.enter().answered(Duration::from_millis(1), at(0));
        assert!(cost(0) < 0.01, "one answer makes good: {}", cost(0));
    }

    #[test]
    fn waiting_behind_others_does_not_make_an_endpoint_slow() {
        let load = Load::new(1);
        load.observe(Duration::from_millis(40), 3, at(0));
        assert!((load.service_seconds().unwrap_or(0.0) - 0.010).abs() < 1e-9);
    }
}
