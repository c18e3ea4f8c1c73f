//! The time after which a second attempt, elsewhere, is worth its cost.
//!
//! A hedge after a fixed time is wrong as soon as the model changes. After a quantile of recent latencies it
//! is right by itself: at 0.95, one in twenty requests gets one, and those are the ones that make the tail.
//! The estimate keeps counts in buckets, not samples, so its memory is bounded, and forgets old ones by
//! halves.

use crate::Time;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Buckets: eight to a doubling, so an estimate is at most 9% above the truth.
const PER_DOUBLING: u32 = 8;
const BUCKETS: usize = 32 * PER_DOUBLING as usize;
/// The end of the first bucket, in nanoseconds; the last one is hours.
const FIRST_BUCKET_END: f64 = 10_000.0;
/// Time after which the present half becomes the old one, if it holds enough to stand alone.
const HALF_LENGTH: Duration = Duration::from_secs(10);
/// Requests without which nothing is estimated: with fewer, a high quantile is the slowest one seen.
const MIN_SAMPLES: u32 = 100;
/// The estimate is renewed after this many requests.
const RENEWAL_PERIOD: u32 = 32;
const NO_ESTIMATE: u64 = u64::MAX;

/// Recent latencies. Shared and never locked.
#[derive(Debug)]
pub struct Latencies {
    halves: [[AtomicU32; BUCKETS]; 2],
    counts: [AtomicU32; 2],
    /// Number of the present half; its parity says which it is.
    present: AtomicU64,
    began: AtomicU64,
    quantile: f64,
    estimate: AtomicU64,
}

impl Latencies {
    /// Estimates this quantile, between 0 and 1.
    pub fn new(quantile: f64) -> Self {
        Self {
            halves: [const { [const { AtomicU32::new(0) }; BUCKETS] }; 2],
            counts: [const { AtomicU32::new(0) }; 2],
            present: AtomicU64::new(0),
            began: AtomicU64::new(0),
            quantile,
            estimate: AtomicU64::new(NO_ESTIMATE),
        }
    }

    /// Takes in that a request took so long. One that was given up is taken in with the time that it
    /// had: it would have been above the quantile in any case.
    pub fn observe(&self, took: Duration, now: Time) {
        let half = self.half(now);
        self.halves[half][bucket(took)].fetch_add(1, Relaxed);
        let count = self.counts[half].fetch_add(1, Relaxed).saturating_add(1);
        if count.is_multiple_of(RENEWAL_PERIOD) {
            self.renew();
        }
    }

    /// The quantile of what requests took lately; `None` while too few are known.
    pub fn estimate(&self) -> Option<Duration> {
        let nanos = self.estimate.load(Relaxed);
        (nanos != NO_ESTIMATE).then(|| Duration::from_nanos(nanos))
    }

    /// The half that counts now.
    fn half(&self, now: Time) -> usize {
        let present = self.present.load(Relaxed);
        let half = usize::from(present % 2 == 1);
        let began = self.began.load(Relaxed);
        let due = now.since(Time::new(Duration::from_nanos(began))) >= HALF_LENGTH
            && self.counts[half].load(Relaxed) >= MIN_SAMPLES;
        if !due || self.began.compare_exchange(began, now.nanos(), Relaxed, Relaxed).is_err() {
            return half;
        }
        // A concurrent count into the old half is lost or kept by chance: one of thousands.
        let next = 1 - half;
        self.counts[next].store(0, Relaxed);
        self.halves[next].iter().for_each(|count| count.store(0, Relaxed));
        self.present.store(present + 1, Relaxed);
        next
    }

    fn renew(&self) {
        let count = |at: usize| {
            let [one, other] = &self.halves;
            u64::from(one[at].load(Relaxed)) + u64::from(other[at].load(Relaxed))
        };
        let all: u64 = (0..BUCKETS).map(count).sum();
        if all < u64::from(MIN_SAMPLES) {
            return;
        }
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a rank among counts"
        )]
        let rank = (all as f64 * self.quantile).ceil() as u64;
        let mut below = 0;
        let at = (0..BUCKETS).find(|&at| {
            below += count(at);
            below >= rank
        });
        self.estimate.store(end_of(at.unwrap_or(BUCKETS - 1)), Relaxed);
    }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "bounded by the number of buckets"
)]
fn bucket(took: Duration) -> usize {
    let doublings = (took.as_secs_f64() * 1e9 / FIRST_BUCKET_END).log2();
    let at = (doublings * f64::from(PER_DOUBLING)).ceil().max(0.0);
    (at as usize).min(BUCKETS - 1)
}

/// Nanoseconds up to which a bucket counts.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "the last one is hours"
)]
fn end_of(bucket: usize) -> u64 {
    (FIRST_BUCKET_END * (bucket as f64 / f64::from(PER_DOUBLING)).exp2()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n: u64) -> Time {
        Time::new(Duration::from_secs(n))
    }

    fn millis(latencies: &Latencies) -> Option<f64> {
        latencies.estimate().map(|estimate| estimate.as_secs_f64() * 1e3)
    }

    #[test]
    fn the_estimate_is_the_quantile_to_within_a_bucket() {
        for (quantile, truth) in [(0.5, 500.0), (0.95, 950.0), (0.99, 990.0)] {
            let latencies = Latencies::new(quantile);
            for number in 1..=1000 {
                latencies.observe(Duration::from_millis(number), seconds(1));
            }
            let found = millis(&latencies).unwrap_or(0.0);
            // The last few are not in it yet.
            assert!((truth * 0.97..truth * 1.1).contains(&found), "{quantile}: {found}");
        }
    }

    #[test]
    fn too_few_requests_say_nothing() {
        let latencies = Latencies::new(0.95);
        for _ in 0..MIN_SAMPLES - 1 {
            latencies.observe(Duration::from_millis(1), seconds(1));
        }
        assert_eq!(latencies.estimate(), None);
    }

    #[test]
    fn what_is_old_is_forgotten() {
        let latencies = Latencies::new(0.95);
        for second in 0..10 {
            (0..100).for_each(|_| latencies.observe(Duration::from_millis(500), seconds(second)));
        }
        assert!(millis(&latencies).is_some_and(|found| found >= 500.0));
        for second in 10..40 {
            (0..100).for_each(|_| latencies.observe(Duration::from_millis(5), seconds(second)));
        }
        assert!(millis(&latencies).is_some_and(|found| found < 6.0), "{:?}", millis(&latencies));
    }

    #[test]
    fn odd_times_find_a_bucket() {
        for took in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
            assert!(bucket(took) < BUCKETS);
            assert!(Duration::from_nanos(end_of(bucket(took))) >= took.min(Duration::from_secs(1)));
        }
    }
}
