//! The record of a run: counts and histograms, never a list of requests.
//!
//! A run of an hour at 10,000 requests a second has 36 million answers. Each thread keeps its own
//! histograms (nothing is shared on the hot path) and they are added up at the end; the memory that
//! a run needs does not depend on how many requests it makes.

use super::fault_window::FaultWindows;
use super::outcome::{Finished, Outcome};
use super::times::{MAX_LATENCY, SERIES_DIGITS, Times};
use super::verdict::Sample;
use crate::plan::timeline::{MAX_INTERVALS, Timeline};
use crate::units::float;
use hdrhistogram::Histogram;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// Maximum number of distinct variants and endpoints that are counted apart; the rest is `other`.
const MAX_SHARES: usize = 64;
/// One piece of the time series: the requests that were *meant to start* in it.
#[derive(Debug, Clone)]
pub struct Interval {
    /// Latencies of the successes in nanoseconds, two digits.
    pub latency: Histogram<u32>,
    /// Successes.
    pub ok: u64,
    /// Everything else.
    pub errors: u64,
}

impl Default for Interval {
    fn default() -> Self {
        // Bounds, because what is recorded "saturating" does not make a histogram grow.
        let histogram = Histogram::new_with_bounds(1, MAX_LATENCY, SERIES_DIGITS);
        let latency =
            histogram.unwrap_or_else(|_| unreachable!("the bounds are constants that fit"));
        Self { latency, ok: 0, errors: 0 }
    }
}

impl Interval {
    /// Takes a finished request in.
    pub fn finish(&mut self, request: &Finished) {
        if request.outcome.is_ok() {
            let latency = request.done.saturating_sub(request.intended);
            self.latency.saturating_record(crate::units::nanos(latency).max(1));
            self.ok += 1;
        } else {
            self.errors += 1;
        }
    }

    /// Adds another interval's requests.
    pub fn merge(&mut self, other: &Self) {
        // Both have the same bounds, so nothing can be out of range.
        let _ = self.latency.add(&other.latency);
        self.ok += other.ok;
        self.errors += other.errors;
    }

    /// Latency in seconds below which the share `quantile` of the successes lies.
    pub fn quantile(&self, quantile: f64) -> f64 {
        if self.latency.is_empty() {
            return 0.0;
        }
        float(self.latency.value_at_quantile(quantile)) / 1e9
    }
}

/// The record of a thread and, added up, of a run.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// Successes: from the intended start to the end of the answer. A quick refusal would flatter,
    /// and a request that failed has no latency: errors are counted, and timed apart.
    pub latency: Times,
    /// Successes: from the moment a connection was free to the end of the answer.
    pub service: Times,
    /// Errors: from the intended start to when it was known.
    pub errors: Times,
    /// From the intended start to the moment the generator took the request up.
    pub lag: Times,
    /// From then until a connection was free.
    pub wait: Times,
    /// Requests that had to wait for a connection.
    pub waited: u64,
    /// Outcomes of the requests.
    pub outcomes: HashMap<Outcome, u64>,
    /// Requests of the warm-up, which count nowhere else.
    pub warm_up: u64,
    /// The time series.
    pub intervals: Vec<Interval>,
    /// Answers by the variant that gave them.
    pub variants: BTreeMap<String, u64>,
    /// Answers by the endpoint that gave them.
    pub endpoints: BTreeMap<String, u64>,
    /// Bytes of bodies sent.
    pub bytes_out: u64,
    /// Bytes of bodies received.
    pub bytes_in: u64,
    /// Connections opened.
    pub connections: u64,
    /// Maximum number of requests under way at once, the sum over threads.
    pub max_in_flight: u64,
    /// End of the last request, from the start of the run.
    pub last_done: Duration,
    /// Before, during and after faults.
    pub fault_windows: FaultWindows,
}

impl Record {
    /// Takes a finished request in.
    pub fn finish(&mut self, timeline: Timeline, request: &Finished) {
        self.last_done = self.last_done.max(request.done);
        let Some(since) = request.intended.checked_sub(timeline.warm_up) else {
            self.warm_up += 1;
            return;
        };
        *self.outcomes.entry(request.outcome).or_default() += 1;
        self.bytes_out += request.bytes_out;
        self.bytes_in += request.bytes_in;
        if request.outcome == Outcome::Unsent {
            return;
        }
        self.fault_windows.finish(since, request);
        let latency = request.done.saturating_sub(request.intended);
        if request.outcome.is_ok() {
            self.latency.add(latency);
            self.service.add(request.done.saturating_sub(request.sent));
        } else {
            self.errors.add(latency);
        }
        self.lag.add(request.taken.saturating_sub(request.intended));
        if request.sent > request.taken {
            self.waited += 1;
            self.wait.add(request.sent.saturating_sub(request.taken));
        }
        self.interval(timeline, since).finish(request);
    }

    /// Counts an answer for the variant and the endpoint that its headers name.
    pub fn share(&mut self, variant: Option<&str>, endpoint: Option<&str>) {
        for (shares, name) in [(&mut self.variants, variant), (&mut self.endpoints, endpoint)] {
            let Some(name) = name else { continue };
            if let Some(count) = shares.get_mut(name) {
                *count += 1;
            } else {
                let name = if shares.len() < MAX_SHARES { name } else { "other" };
                *shares.entry(name.to_owned()).or_default() += 1;
            }
        }
    }

    /// Adds the record of another thread.
    pub fn merge(&mut self, other: &Self) {
        self.latency.merge(&other.latency);
        self.service.merge(&other.service);
        self.errors.merge(&other.errors);
        self.lag.merge(&other.lag);
        self.wait.merge(&other.wait);
        self.waited += other.waited;
        self.warm_up += other.warm_up;
        for (outcome, count) in &other.outcomes {
            *self.outcomes.entry(*outcome).or_default() += count;
        }
        if self.intervals.len() < other.intervals.len() {
            self.intervals.resize_with(other.intervals.len(), Interval::default);
        }
        for (mine, theirs) in self.intervals.iter_mut().zip(&other.intervals) {
            mine.merge(theirs);
        }
        for (mine, theirs) in
            [(&mut self.variants, &other.variants), (&mut self.endpoints, &other.endpoints)]
        {
            for (name, count) in theirs {
                *mine.entry(name.clone()).or_default() += count;
            }
        }
        self.bytes_out += other.bytes_out;
        self.bytes_in += other.bytes_in;
        self.connections += other.connections;
        self.max_in_flight += other.max_in_flight;
        self.last_done = self.last_done.max(other.last_done);
        self.fault_windows.merge(&other.fault_windows);
    }

    /// Requests that were measured.
    pub fn total(&self) -> u64 {
        self.outcomes.values().sum()
    }

    /// Successes.
    pub fn ok(&self) -> u64 {
        self.outcomes.iter().filter(|(outcome, _)| outcome.is_ok()).map(|(_, count)| count).sum()
    }

    /// The share of measured requests that did not succeed, 0 to 1.
    pub fn error_share(&self) -> f64 {
        self.sample(0.0).error_share()
    }

    /// The figures that objectives are judged by, of a run that measured for `seconds`.
    pub fn sample(&self, seconds: f64) -> Sample<'_> {
        Sample { latency: &self.latency, total: self.total(), ok: self.ok(), seconds }
    }

    fn interval(&mut self, timeline: Timeline, since: Duration) -> &mut Interval {
        let index = since.as_nanos() / timeline.interval.as_nanos().max(1);
        let index = usize::try_from(index).unwrap_or(usize::MAX).min(MAX_INTERVALS - 1);
        if self.intervals.len() <= index {
            self.intervals.resize_with(index + 1, Interval::default);
        }
        &mut self.intervals[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMELINE: Timeline =
        Timeline { warm_up: Duration::from_secs(1), interval: Duration::from_secs(1) };

    fn request(intended_ms: u64, took_ms: u64, outcome: Outcome) -> Finished {
        let intended = Duration::from_millis(intended_ms);
        Finished {
            intended,
            taken: intended,
            sent: intended,
            done: intended + Duration::from_millis(took_ms),
            outcome,
            bytes_out: 10,
            bytes_in: 20,
        }
    }

    #[test]
    fn the_warm_up_counts_nowhere() {
        let mut record = Record::default();
        record.finish(TIMELINE, &request(999, 5, Outcome::Ok(200)));
        record.finish(TIMELINE, &request(1000, 7, Outcome::Ok(200)));
        assert_eq!((record.warm_up, record.total(), record.latency.len()), (1, 1, 1));
        assert_eq!(record.bytes_out, 10);
    }

    #[test]
    fn a_request_belongs_to_the_interval_in_which_it_was_meant_to_start() {
        let mut record = Record::default();
        record.finish(TIMELINE, &request(1500, 5000, Outcome::Ok(200)));
        record.finish(TIMELINE, &request(3100, 1, Outcome::refused(503, Some("queue_full"))));
        let counts: Vec<_> = record.intervals.iter().map(|i| (i.ok, i.errors)).collect();
        assert_eq!(counts, [(1, 0), (0, 0), (0, 1)]);
        assert!((record.intervals[0].quantile(0.5) / 5.0 - 1.0).abs() < 0.01);
        assert!((record.error_share() - 0.5).abs() < 1e-9);
    }

    #[test]
    fn records_of_threads_add_up() {
        let (mut a, mut b) = (Record::default(), Record::default());
        a.finish(TIMELINE, &request(1000, 10, Outcome::Ok(200)));
        b.finish(TIMELINE, &request(2500, 30, Outcome::Ok(200)));
        b.share(Some("canary"), None);
        a.share(Some("stable"), None);
        a.merge(&b);
        assert_eq!((a.total(), a.ok(), a.intervals.len(), a.variants.len()), (2, 2, 2, 2));
        assert!((a.latency.max() - 0.030).abs() < 1e-4);
    }

    #[test]
    fn names_from_the_network_are_bounded() {
        let mut record = Record::default();
        for i in 0..1000 {
            record.share(None, Some(&i.to_string()));
            let _ = Outcome::refused(500, Some(&i.to_string()));
        }
        assert!(record.endpoints.len() <= MAX_SHARES + 1);
        assert_eq!(Outcome::refused(500, Some("x")), Outcome::refused(500, Some("y")));
    }

    #[test]
    fn quantiles_are_exact_to_three_digits() {
        let mut times = Times::default();
        for micros in 1..=100_000 {
            times.add(Duration::from_micros(micros));
        }
        for (quantile, expected) in [(0.5, 0.05), (0.99, 0.099), (0.999, 0.0999)] {
            let error = (times.quantile(quantile) / expected - 1.0).abs();
            assert!(error < 1e-3, "{quantile}: {}", times.quantile(quantile));
        }
    }
}
