//! The chance that a request is done in time, from the distribution of service times around their mean.
//!
//! A mean does not show that: constant services all take 1.2 times the mean at most, of exponential ones two
//! thirds do. Under overload that decides everything. A slot that is given to a request with too little time
//! left is lost for one that has enough, and since waiting requests are late by nearly the same, a pool that
//! serves them in order is busy with nothing but late work: its goodput falls to almost nothing while it
//! works at its limit.
//!
//! So the distribution of services, as multiples of the mean of the endpoint and of the model's weight, is
//! learnt for each pool. A service that was cut short counts, too: it took longer than that, so it stands
//! for longer ones. Without those, only services that fit a deadline would ever be seen, and every estimate
//! would say that all of them fit.

use crate::float::{Float, narrow};
use crate::{RelativeCost, Time};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Buckets: 32 to a doubling, so each is 2% wide, from an eighth of the mean to sixteen times it.
const PER_DOUBLING: f32 = 32.0;
const DOUBLINGS_BELOW: f32 = 3.0;
const BUCKETS: usize = 32 * 7;
/// Answers without which nothing is believed.
const MIN_SAMPLES: u32 = 8;
/// After so many the older ones count half: a few hundred tell a quantile of 99%.
const MAX_SAMPLES: u32 = 512;
/// The distribution is summed up again after this many answers; with each one while there are few.
const RENEWAL_PERIOD: u32 = 16;
const FEW_SAMPLES: u32 = 64;
/// The value of a service that was cut short where no longer one is known, as a multiple.
const CUT_SHORT_FACTOR: f32 = 1.25;
/// The most that one service can say, in means: one that hangs says nothing of the others.
const MAX_RATIO: f32 = 4.0;
/// Weight of the newest request in the mean chance of those that come.
const NEWEST_WEIGHT: f32 = 1.0 / 64.0;
/// For so many mean services a pool counts as strained after waiting has cost a request its chance.
const STRAINED_SERVICES: f64 = 10.0;
/// One of so many services may be given to a request that seems to have no chance.
const DOUBT_PERIOD: f64 = 32.0;
const NEVER: u64 = u64::MAX;

/// The guess about a service that has lasted for long counts as so many that were seen: that it will take as
/// long again, exponentially.
const PRIOR_RESIDUALS: f64 = 4.0;

/// Share of the longest services of which little is known: what was cut short counts as what such a service takes in
/// the mean. The guess about one of them is that it will take as long again, exponentially.
const LONGEST_SHARE: f64 = 0.1;

/// The expected rest of a service, in means: it, and its square.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Residual {
    pub(crate) mean: f64,
    pub(crate) square: f64,
}

/// See above. Shared and never locked; of two answers at once one may be lost.
#[derive(Debug)]
pub(crate) struct Odds {
    counts: [AtomicU32; BUCKETS],
    all: AtomicU32,
    /// Of each bucket: the share of services that end by its end.
    shares: [Float; BUCKETS],
    /// Of each bucket: number, mean and mean square of the services that end in it or later, in means.
    from: [[Float; 3]; BUCKETS],
    believed: AtomicU32,
    /// Mean chance that requests have when they come.
    usual: Float,
    /// Time when waiting last cost a request its chance, and time of the last benefit of the doubt, in
    /// nanoseconds on the clock of [`Time`].
    strained_at: AtomicU64,
    doubted_at: AtomicU64,
}

impl Default for Odds {
    fn default() -> Self {
        Self {
            counts: [const { AtomicU32::new(0) }; BUCKETS],
            all: AtomicU32::new(0),
            shares: std::array::from_fn(|_| Float::default()),
            from: std::array::from_fn(|_| std::array::from_fn(|_| Float::default())),
            believed: AtomicU32::new(0),
            usual: Float::default(),
            strained_at: AtomicU64::new(NEVER),
            doubted_at: AtomicU64::new(0),
        }
    }
}

impl Odds {
    /// Takes in a service that took so many times the mean.
    pub(crate) fn learn(&self, ratio: f32) {
        self.counts[bucket(ratio)].fetch_add(1, Relaxed);
        let all = self.all.fetch_add(1, Relaxed) + 1;
        if all >= MAX_SAMPLES {
            self.forget_half();
        }
        if all >= MIN_SAMPLES && (all < FEW_SAMPLES || all.is_multiple_of(RENEWAL_PERIOD)) {
            self.renew();
        }
    }

    /// The expected duration, in means, of a service that is known to take longer than `ratio` means.
    pub(crate) fn beyond(&self, ratio: f32) -> f32 {
        let from = bucket(ratio) + 1;
        let rest = self.counts.iter().enumerate().skip(from);
        let (count, sum) = rest.fold((0.0, 0.0), |(count, sum), (at, here)| {
            let here = narrow(f64::from(here.load(Relaxed)));
            (count + here, sum + here * end_of(at))
        });
        let expected = if count > 0.0 { sum / count } else { ratio.max(1.0) * CUT_SHORT_FACTOR };
        expected.min(MAX_RATIO.max(ratio))
    }

    /// How much longer, in means, a service is expected to take that has taken so many means already. Of the
    /// exponential distribution it is always one more; one of constant services is known to be nearly done, and
    /// where few take most of the time, one that is not done yet is likely to be one of those.
    pub(crate) fn residual(&self, elapsed: f64) -> Residual {
        if !self.is_known() {
            return Residual { mean: 1.0, square: 2.0 };
        }
        let [count, mean, square] =
            [0, 1, 2].map(|at| f64::from(self.from[bucket(narrow(elapsed))][at].get()));
        // The longest that were seen are not the longest there are.
        let guess = elapsed.max(1.0);
        let all = count + PRIOR_RESIDUALS;
        let known = (mean - elapsed).max(0.0);
        let squares = (square - 2.0 * elapsed * mean + elapsed * elapsed).max(known * known);
        Residual {
            mean: (count * known + PRIOR_RESIDUALS * guess) / all,
            square: (count * squares + PRIOR_RESIDUALS * 2.0 * guess * guess) / all,
        }
    }

    /// Whether enough is known.
    pub(crate) fn is_known(&self) -> bool {
        self.believed.load(Relaxed) >= MIN_SAMPLES
    }

    /// The share of services that take at most so many means; all, while too little is known.
    pub(crate) fn within(&self, ratio: f64) -> f64 {
        if !self.is_known() {
            return 1.0;
        }
        let ratio = narrow(ratio);
        // The end of the bucket before is the last of which the share is certain.
        match bucket(ratio) {
            0 => 0.0,
            at if at + 1 == BUCKETS && ratio >= end_of(at) => f64::from(self.shares[at].get()),
            at => f64::from(self.shares[at - 1].get()),
        }
    }

    /// The chance of a service that has taken `elapsed` means to end within `in_all` means.
    pub(crate) fn ends_within(&self, elapsed: f64, in_all: f64) -> f64 {
        let [before, then] = [elapsed, in_all].map(|means| self.within(means));
        let beyond = 1.0 - before;
        let seen = ((then - before) / beyond.max(f64::MIN_POSITIVE)).clamp(0.0, 1.0);
        let guess = 1.0 - (-(in_all - elapsed).max(0.0) / elapsed.max(1.0)).exp();
        (beyond * seen + LONGEST_SHARE * guess) / (beyond + LONGEST_SHARE)
    }

    /// The least number of means within which this share of all services end.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let share = narrow(share);
        let at = self.shares.partition_point(|here| here.get() < share);
        // A request with so much time left falls into the next bucket.
        f64::from(end_of(at.min(BUCKETS - 1))) * 1.0001
    }

    /// A request came that has this chance.
    pub(crate) fn came(&self, chance: f64) {
        self.usual.draw(narrow(chance), NEWEST_WEIGHT);
    }

    /// The mean chance of those that come.
    pub(crate) fn usual(&self) -> f64 {
        f64::from(self.usual.get())
    }

    /// Waiting has cost a request its chance.
    pub(crate) fn strain(&self, now: Time) {
        self.strained_at.store(now.nanos().min(NEVER - 1), Relaxed);
    }

    /// Did that ever happen?
    pub(crate) fn has_been_strained(&self) -> bool {
        self.strained_at.load(Relaxed) != NEVER
    }

    /// Did that happen of late, where a service takes so many seconds?
    pub(crate) fn is_strained(&self, now: Time, service: f64) -> bool {
        let at = self.strained_at.load(Relaxed);
        at != NEVER && since(now, at) < STRAINED_SERVICES * service
    }

    /// Whether the last benefit of the doubt was long ago.
    pub(crate) fn is_doubt_due(&self, now: Time, per_second: f64) -> bool {
        since(now, self.doubted_at.load(Relaxed)) * per_second >= DOUBT_PERIOD
    }

    /// Whether a request that seems to have no chance may be given one. An estimate that refuses everything
    /// would never be corrected.
    pub(crate) fn may_doubt(&self, now: Time, per_second: f64) -> bool {
        let at = self.doubted_at.load(Relaxed);
        since(now, at) * per_second >= DOUBT_PERIOD
            && self.doubted_at.compare_exchange(at, now.nanos(), Relaxed, Relaxed).is_ok()
    }

    fn forget_half(&self) {
        let halved = |count: &AtomicU32| {
            let half = count.load(Relaxed) / 2;
            count.store(half, Relaxed);
            half
        };
        let all = self.counts.iter().map(halved).sum();
        self.all.store(all, Relaxed);
    }

    fn renew(&self) {
        let all: u32 = self.counts.iter().map(|count| count.load(Relaxed)).sum();
        let mut below = 0;
        for (count, share) in self.counts.iter().zip(&self.shares) {
            below += count.load(Relaxed);
            share.set(narrow(f64::from(below) / f64::from(all.max(1))));
        }
        let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
        for (at, (here, from)) in self.counts.iter().zip(&self.from).enumerate().rev() {
            let here = narrow(f64::from(here.load(Relaxed)));
            let took = end_of(at);
            (count, sum, squares) = (count + here, sum + here * took, squares + here * took * took);
            let all = count.max(1.0);
            from.iter()
                .zip([count, sum / all, squares / all])
                .for_each(|(it, value)| it.set(value));
        }
        self.believed.store(all, Relaxed);
    }
}

/// The time that a request has for its service, where the distribution is known.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TimeBudget {
    pub(super) left: f64,
    pub(super) relative_cost: f64,
    /// The least chance at an endpoint with which it is worth a slot.
    pub(super) floor: f64,
}

impl TimeBudget {
    /// Of a request that any endpoint is good for.
    pub(crate) fn new(left: Duration, relative_cost: RelativeCost) -> Self {
        Self { left: left.as_secs_f64(), relative_cost: relative_cost.get(), floor: 0.0 }
    }
}

/// Seconds from `at`, in nanoseconds, until now.
#[allow(clippy::cast_precision_loss, reason = "an age needs no more than fifteen digits")]
fn since(now: Time, at: u64) -> f64 {
    now.nanos().saturating_sub(at) as f64 / 1e9
}

/// The bucket that counts services of so many means: those above the end of the one before.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "bounded by the number of buckets"
)]
fn bucket(ratio: f32) -> usize {
    let at = ((ratio.log2() + DOUBLINGS_BELOW) * PER_DOUBLING).ceil();
    (at.max(0.0) as usize).min(BUCKETS - 1)
}

/// Means up to which a bucket counts.
#[allow(clippy::cast_precision_loss, reason = "a few hundred buckets")]
fn end_of(bucket: usize) -> f32 {
    (bucket as f32 / PER_DOUBLING - DOUBLINGS_BELOW).exp2()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rng;

    #[allow(clippy::cast_precision_loss, reason = "a test")]
    fn exponential(rng: &mut Rng) -> f32 {
        -((rng.below(1 << 20) as f32 + 0.5) / (1 << 20) as f32).ln()
    }

    #[test]
    fn nothing_is_believed_before_enough_is_known() {
        let odds = Odds::default();
        for _ in 0..MIN_SAMPLES - 1 {
            assert!(!odds.is_known());
            assert_eq!(odds.within(0.1), 1.0);
            odds.learn(1.0);
        }
        odds.learn(1.0);
        assert!(odds.is_known());
        assert_eq!((odds.within(0.97), odds.within(1.03)), (0.0, 1.0));
    }

    #[test]
    fn the_share_of_exponential_services_is_found() {
        let (odds, mut rng) = (Odds::default(), Rng::new(1));
        (0..5000).for_each(|_| odds.learn(exponential(&mut rng)));
        for (ratio, share) in [(0.5, 0.39), (1.0, 0.63), (1.2, 0.70), (3.0, 0.95)] {
            let found = odds.within(ratio);
            assert!((found - share).abs() < 0.08, "{ratio}: {found}");
            let back = odds.quantile(found);
            assert!((back / ratio - 1.0).abs() < 0.1, "{found}: {back}");
        }
    }

    #[test]
    fn one_that_was_cut_short_stands_for_the_longer_ones() {
        let (odds, mut rng) = (Odds::default(), Rng::new(2));
        for _ in 0..5000 {
            // Services longer than 1.2 means are never seen to end.
            let took = exponential(&mut rng);
            odds.learn(if took > 1.2 { odds.beyond(1.2) } else { took });
        }
        let share = odds.within(1.2);
        assert!((share - 0.70).abs() < 0.08, "{share}");
        assert_eq!(Odds::default().beyond(2.0), 2.5);
        assert_eq!(Odds::default().beyond(100.0), 100.0, "it hangs");
    }

    #[test]
    fn what_changes_is_found_after_some_hundred_answers() {
        let odds = Odds::default();
        (0..5000).for_each(|_| odds.learn(0.5));
        (0..1500).for_each(|_| odds.learn(2.0));
        assert!(odds.within(1.0) < 0.2, "{}", odds.within(1.0));
    }

    #[test]
    fn a_doubt_is_given_the_benefit_at_times() {
        let odds = Odds::default();
        let at = |millis| Time::new(Duration::from_millis(millis));
        let given = (1..=10_000).filter(|millis| odds.may_doubt(at(*millis), 100.0)).count();
        assert!((30..=32).contains(&given), "{given} of 1,000 services");
    }

    #[test]
    fn what_is_left_of_a_service_follows_from_what_it_took_so_far() {
        let (exponential_ones, constant, mut rng) = (Odds::default(), Odds::default(), Rng::new(3));
        (0..5000).for_each(|_| exponential_ones.learn(exponential(&mut rng)));
        for elapsed in [0.0, 0.5, 1.0] {
            let left = exponential_ones.residual(elapsed);
            assert!((left.mean - 1.0).abs() < 0.25, "{elapsed}: {left:?}");
            assert!((1.2..3.5).contains(&left.square), "{elapsed}: {left:?}");
        }
        (0..5000).for_each(|_| constant.learn(1.0));
        let left = constant.residual(0.9);
        assert!((left.mean - 0.1).abs() < 0.05 && left.square < 0.1, "{left:?}");
        // One in ten takes ten times as long: what is not done by then is one of those.
        let two = Odds::default();
        (0..5000).for_each(|number| two.learn(if number % 10 == 0 { 5.26 } else { 0.526 }));
        assert!(two.residual(0.0).mean < 1.2 && two.residual(1.0).mean > 3.5);
        assert!(two.residual(9.0).mean >= 9.0, "it takes longer than any before");
        assert_eq!(Odds::default().residual(3.0), Residual { mean: 1.0, square: 2.0 });
    }

    #[test]
    fn odd_ratios_find_a_bucket() {
        for ratio in [0.0, f32::MIN_POSITIVE, 1.0, f32::MAX, f32::INFINITY, f32::NAN] {
            assert!(bucket(ratio) < BUCKETS);
        }
    }
}
