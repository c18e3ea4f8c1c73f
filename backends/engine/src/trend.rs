//! The cost of requests whose sizes vary: a part that is the same for all, and one for each element.
//!
//! One mean for all of them would tell a scheduler that a text of 8 tokens takes as long as one of 128.
//! So a line is fitted to the runs as they come, of which about the last hundred count. It has to hold
//! up against what runs are like: when all were of one size, nothing tells the two parts apart, and the
//! cost is taken to be proportional; a run that was held up by something else must not turn the line.

use std::sync::{Mutex, PoisonError};

/// Weight of a new run.
const NEWEST: f64 = 0.02;
/// Beside this share of their mean size squared, the spread of sizes begins to tell the parts apart.
const SPREAD: f64 = 0.02;
/// A run counts as at most so many times what was expected, and at least as such a part of it.
const OUTLIER: f64 = 2.0;
/// Runs from which on something is expected.
const FIRST: f64 = 8.0;
/// Mean deviations above what is expected that nearly all runs stay below.
const CAREFUL: f64 = 2.0;

/// Seconds by size, learnt from runs. All who run a model share one.
#[derive(Debug, Default)]
pub struct Trend(Mutex<Sums>);

/// Weighted means over the runs; sizes are relative to the first one, so that squares stay small.
#[derive(Debug, Default, Clone, Copy)]
struct Sums {
    runs: f64,
    unit: f64,
    size: f64,
    seconds: f64,
    size_squared: f64,
    both: f64,
    /// Of a run from what was expected, as a share of that.
    deviation: f64,
}

impl Trend {
    /// Takes in that a run of so many elements took so long.
    pub fn learn(&self, size: f64, seconds: f64) {
        let is_number = size.is_finite() && seconds.is_finite() && size >= 0.0 && seconds > 0.0;
        if is_number {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).learn(size, seconds);
        }
    }

    /// Mean seconds that a run of so many elements takes; `None` if nothing has run.
    pub fn expected(&self, size: f64) -> Option<f64> {
        self.sums().expected(size)
    }

    /// Seconds within which nearly all runs of so many elements end.
    pub fn careful(&self, size: f64) -> Option<f64> {
        let sums = self.sums();
        Some(sums.expected(size)? * (1.0 + CAREFUL * sums.deviation))
    }

    fn sums(&self) -> Sums {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sums {
    fn learn(&mut self, size: f64, seconds: f64) {
        if self.runs == 0.0 {
            self.unit = size.max(1.0);
        }
        let mut seconds = seconds;
        if let Some(expected) = self.expected(size).filter(|_| self.runs >= FIRST) {
            seconds = seconds.clamp(expected / OUTLIER, expected * OUTLIER);
            let off = (seconds - expected).abs() / expected;
            self.deviation += NEWEST.max(1.0 / self.runs) * (off - self.deviation);
        }
        self.runs += 1.0;
        // A plain mean of the first runs, a moving one from then on.
        let weight = NEWEST.max(1.0 / self.runs);
        let size = size / self.unit;
        for (mean, value) in [
            (&mut self.size, size),
            (&mut self.seconds, seconds),
            (&mut self.size_squared, size * size),
            (&mut self.both, size * seconds),
        ] {
            *mean += weight * (value - *mean);
        }
    }

    /// Neither part is below zero.
    fn expected(&self, size: f64) -> Option<f64> {
        if self.runs == 0.0 {
            return None;
        }
        let proportional = self.seconds / self.size.max(f64::MIN_POSITIVE);
        let doubt = SPREAD * self.size * self.size;
        let spread = (self.size_squared - self.size * self.size).max(0.0);
        let together = self.both - self.size * self.seconds;
        let slope = (together + doubt * proportional) / (spread + doubt).max(f64::MIN_POSITIVE);
        let slope = slope.clamp(0.0, proportional);
        Some(self.seconds + slope * (size / self.unit - self.size))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::Random;

    #[test]
    fn both_parts_are_found_in_runs_that_vary_and_are_held_up() {
        for cell in 1..=200 {
            let mut random = Random::new(cell * 0x9e37_79b9);
            let width = 1.0 + (random.number() * 500.0).floor();
            // From all that is fixed to nothing that is.
            let (fixed, each) = (random.number() * 0.02, random.number() * 2e-4 / width);
            let trend = Trend::default();
            for _ in 0..300 {
                let size = (8.0 + random.number() * 120.0).floor() * width;
                let noise = 0.8 + 0.4 * random.number();
                let held_up = if random.number() < 0.05 { 20.0 } else { 1.0 };
                trend.learn(size, (fixed + each * size) * noise * held_up);
            }
            for length in [8.0, 64.0, 128.0] {
                let right = fixed + each * length * width;
                let found = trend.expected(length * width).unwrap();
                // By so much noise moves the whole line.
                let moved = 0.15 * (fixed + each * 68.0 * width);
                let off = (found - right).abs();
                assert!(off < 0.2 * right + moved, "cell {cell}, {length}: {found} for {right}");
                assert!(trend.careful(length * width).unwrap() >= found);
            }
        }
    }

    #[test]
    fn what_was_of_one_size_is_taken_to_be_proportional() {
        let trend = Trend::default();
        assert_eq!((trend.expected(5.0), trend.careful(5.0)), (None, None));
        for _ in 0..50 {
            trend.learn(100.0, 0.5);
        }
        assert!((trend.expected(100.0).unwrap() - 0.5).abs() < 1e-9);
        assert!((trend.expected(200.0).unwrap() - 1.0).abs() < 1e-9);
        assert!((trend.careful(10.0).unwrap() - 0.05).abs() < 1e-9);
    }

    #[test]
    fn a_model_that_gets_slower_is_followed() {
        let trend = Trend::default();
        for (slower, runs) in [(1.0, 100), (10.0, 400)] {
            for run in 0..runs {
                let size = f64::from(8 + run % 120);
                trend.learn(size, slower * (0.001 + 1e-4 * size));
            }
            let found = trend.expected(64.0).unwrap();
            let right = slower * (0.001 + 64e-4);
            assert!((0.8..1.2).contains(&(found / right)), "{found} for {right}");
        }
    }

    #[test]
    fn what_is_no_time_and_no_size_teaches_nothing() {
        let trend = Trend::default();
        for (size, seconds) in [(1.0, 0.0), (f64::NAN, 1.0), (-1.0, 1.0), (1.0, f64::INFINITY)] {
            trend.learn(size, seconds);
        }
        assert_eq!(trend.expected(1.0), None);
        trend.learn(0.0, 1.0);
        trend.learn(0.0, 1.0);
        assert!((trend.expected(0.0).unwrap() - 1.0).abs() < 1e-9, "requests without elements");
    }
}
