//! Which answers are slow.
//!
//! Quantiles of two variants are hard to compare, and need not be: a request is slow if it took longer than 99 %
//! of stable's requests of the time before. That bound is known before the request comes and is the same for both
//! variants, so being slow is a bad event like any other.

/// Requests after which stable's times make a bound.
const ENOUGH: u32 = 500;
/// Of stable's requests this share may be slow.
const SLOW: f64 = 0.01;
/// Buckets for each doubling of time.
const PER_DOUBLING: f64 = 8.0;
/// The shortest time that is told from others, in seconds.
const SHORTEST: f64 = 1e-5;
/// From [`SHORTEST`] to three hours.
const BUCKETS: usize = 240;

/// Stable's times, and the bound that follows.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SlowBound {
    counts: Vec<u32>,
    sum: u32,
    bound: Option<usize>,
}

impl Default for SlowBound {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], sum: 0, bound: None }
    }
}

impl SlowBound {
    /// Whether a request that took so many seconds is slow. `None`: no bound is known yet.
    pub fn is_slow(&self, took: f64) -> Option<bool> {
        self.bound.map(|bound| bucket(took) > bound)
    }

    /// Takes in the time of a request of stable's.
    pub fn add(&mut self, took: f64) {
        if let Some(count) = self.counts.get_mut(bucket(took)) {
            *count += 1;
            self.sum += 1;
        }
    }

    /// A block of time is over: makes its times the bound for the next, if they are enough.
    pub fn end_block(&mut self) {
        if self.sum < ENOUGH {
            return;
        }
        let mut left = f64::from(self.sum) * SLOW;
        let mut bound = BUCKETS - 1;
        // The first bound beyond which fewer are than may be.
        // A state that was read from a file may have any length.
        let count = |bound: usize| self.counts.get(bound).map_or(0.0, |count| f64::from(*count));
        while bound > 0 && left >= count(bound) {
            left -= count(bound);
            bound -= 1;
        }
        self.bound = Some(bound);
        *self = Self { bound: self.bound, ..Self::default() };
    }

    /// The bound, in seconds.
    #[allow(clippy::cast_precision_loss, reason = "a few hundred")]
    pub fn seconds(&self) -> Option<f64> {
        self.bound.map(|bound| SHORTEST * ((bound as f64 + 1.0) / PER_DOUBLING).exp2())
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
fn bucket(took: f64) -> usize {
    let place = ((took / SHORTEST).log2() * PER_DOUBLING).floor();
    // A time that is no number counts as the shortest.
    if place > 0.0 { (place as usize).min(BUCKETS - 1) } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_a_hundred_is_slow_by_the_block_before() {
        let mut bound = SlowBound::default();
        assert_eq!(bound.is_slow(1.0), None);
        for number in 1..=1000 {
            bound.add(f64::from(number) * 1e-3);
        }
        bound.end_block();
        let slow = (1..=1000).filter(|n| bound.is_slow(f64::from(*n) * 1e-3) == Some(true)).count();
        assert!(slow <= 20, "{slow} of 1,000");
        assert_eq!(bound.is_slow(2.0), Some(true));
        bound.add(1.0);
        bound.end_block();
        assert_eq!(bound.is_slow(2.0), Some(true), "a block of one request changes nothing");
        for took in [f64::NAN, f64::INFINITY, -1.0, 0.0] {
            bound.add(took);
        }
    }
}
