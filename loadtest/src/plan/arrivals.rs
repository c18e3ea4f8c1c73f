//! The times at which requests are meant to start.
//!
//! An open loop takes its start times from a plan, not from the answers: that keeps latency honest when the
//! other side stalls. Each kind of load is a rate over time; arrivals are placed where the *integral* of the
//! rate reaches the next whole number (even spacing) or the next sum of exponential variates (Poisson). One
//! rule for all shapes, exact at their borders, and the same seed always gives the same arrivals.

use crate::distribution::exponential;
use crate::scenario::Spacing;
use crate::units::nanos_of;
use std::f64::consts::TAU;
use std::sync::Arc;

/// A stretch of time with one formula for the rate. Times in seconds, rates per second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Shape {
    /// The same rate all the time.
    Constant(f64),
    /// From one rate to another in a straight line.
    Ramp {
        /// Rate at the start.
        from: f64,
        /// Rate at the end.
        to: f64,
    },
    /// A base rate, and at the end of every period a burst.
    Bursts {
        /// Rate between bursts.
        base: f64,
        /// Rate within a burst.
        peak: f64,
        /// Seconds from one burst to the next.
        every: f64,
        /// Length of a burst in seconds, at most `every`.
        length: f64,
    },
    /// A sine from `low` to `high` and back: days in the time of minutes.
    Diurnal {
        /// Rate at the start and at the end of each period.
        low: f64,
        /// Rate in the middle of each period.
        high: f64,
        /// Length of a period in seconds.
        period: f64,
    },
}

/// A [`Shape`] and how long it lasts, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Phase {
    /// The rate over time.
    pub shape: Shape,
    /// Seconds.
    pub length: f64,
}

/// The source of arrivals.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// Phases, one after the other.
    Phases {
        /// In the order in which they run.
        phases: Vec<Phase>,
        /// Evenly or at random.
        spacing: Spacing,
    },
    /// The times of recorded requests, in nanoseconds from the first, ascending.
    Recorded(Arc<[u64]>),
}

impl Source {
    /// Seconds from the first possible to the last possible arrival.
    pub fn length(&self) -> f64 {
        match self {
            Self::Phases { phases, .. } => phases.iter().map(|phase| phase.length).sum(),
            Self::Recorded(times) => {
                times.last().map_or(0.0, |last| crate::units::float(*last) / 1e9)
            }
        }
    }

    /// Expected number of arrivals.
    pub fn expected(&self) -> f64 {
        match self {
            Self::Phases { phases, .. } => phases.iter().map(Phase::total).sum(),
            Self::Recorded(times) => crate::units::float(times.len() as u64),
        }
    }

    /// The arrivals in order, as nanoseconds from the start.
    pub fn arrivals(&self, seed: u64) -> Arrivals {
        match self {
            Self::Phases { phases, spacing } => Arrivals::Phases(Walk {
                phases: phases.clone(),
                spacing: *spacing,
                rng: fastrand::Rng::with_seed(seed),
                phase: 0,
                phase_start: 0.0,
                expected: 0.0,
            }),
            Self::Recorded(times) => Arrivals::Recorded { times: Arc::clone(times), next: 0 },
        }
    }
}

/// Iterator over intended starts, in nanoseconds from the start of the run, ascending.
#[derive(Debug, Clone)]
pub enum Arrivals {
    /// Computed as they are asked for.
    Phases(Walk),
    /// Read from a list.
    Recorded {
        /// All times.
        times: Arc<[u64]>,
        /// Index of the next one.
        next: usize,
    },
}

impl Iterator for Arrivals {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        match self {
            Self::Phases(walk) => walk.next(),
            Self::Recorded { times, next } => {
                let time = times.get(*next).copied();
                *next += 1;
                time
            }
        }
    }
}

/// Position in a list of phases.
#[derive(Debug, Clone)]
pub struct Walk {
    phases: Vec<Phase>,
    spacing: Spacing,
    rng: fastrand::Rng,
    phase: usize,
    /// Seconds.
    phase_start: f64,
    /// Arrivals expected since the start of the phase, at the point that was reached.
    expected: f64,
}

impl Walk {
    fn next(&mut self) -> Option<u64> {
        let mut target = self.expected
            + match self.spacing {
                Spacing::Constant => 1.0,
                Spacing::Poisson => exponential(&mut self.rng),
            };
        loop {
            let phase = self.phases.get(self.phase)?;
            let total = phase.total();
            // A sum of whole numbers may miss its border by a rounding error.
            if target <= total * (1.0 + 1e-12) {
                self.expected = target;
                return Some(nanos_of(self.phase_start + phase.when(target)));
            }
            target -= total;
            self.phase_start += phase.length;
            self.phase += 1;
        }
    }
}

impl Phase {
    /// Arrivals expected in the whole phase.
    fn total(&self) -> f64 {
        self.expected_until(self.length)
    }

    /// Arrivals expected in the first `t` seconds: the integral of the rate.
    fn expected_until(&self, t: f64) -> f64 {
        match self.shape {
            Shape::Constant(rate) => rate * t,
            Shape::Ramp { from, to } => from * t + (to - from) * t * t / (2.0 * self.length),
            Shape::Bursts { base, peak, every, length } => {
                let calm = every - length;
                let rest = t % every;
                (t / every).floor() * (base * calm + peak * length)
                    + base * rest.min(calm)
                    + peak * (rest - calm).max(0.0)
            }
            Shape::Diurnal { low, high, period } => {
                let swing = (high - low) / 2.0;
                (low + high) / 2.0 * t - swing * period / TAU * (TAU * t / period).sin()
            }
        }
    }

    /// The time at which `x` arrivals are expected to have come: the inverse of the integral, in seconds.
    fn when(&self, x: f64) -> f64 {
        let t = match self.shape {
            Shape::Constant(rate) => x / rate,
            Shape::Ramp { from, to } => {
                let slope = (to - from) / self.length;
                2.0 * x / (from + (from * from + 2.0 * slope * x).max(0.0).sqrt())
            }
            Shape::Bursts { base, peak, every, length } => {
                let calm = every - length;
                let period = base * calm + peak * length;
                let rest = x % period;
                let within = if rest <= base * calm && base > 0.0 {
                    rest / base
                } else {
                    calm + (rest - base * calm) / peak
                };
                (x / period).floor() * every + within
            }
            Shape::Diurnal { .. } => self.search(x),
        };
        t.clamp(0.0, self.length)
    }

    /// Bisection to a nanosecond; the integral never falls.
    fn search(&self, x: f64) -> f64 {
        let (mut low, mut high) = (0.0, self.length);
        while high - low > 1e-9 * self.length.max(1.0) {
            let middle = f64::midpoint(low, high);
            if self.expected_until(middle) < x { low = middle } else { high = middle }
        }
        high
    }

    /// The rate at the start of the phase.
    pub fn first_rate(&self) -> f64 {
        match self.shape {
            Shape::Constant(rate) | Shape::Ramp { from: rate, .. } => rate,
            Shape::Bursts { base, .. } => base,
            Shape::Diurnal { low, .. } => low,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that fails may say so bluntly")]
    use super::*;

    const SHAPES: [Shape; 5] = [
        Shape::Constant(400.0),
        Shape::Ramp { from: 0.0, to: 800.0 },
        Shape::Ramp { from: 800.0, to: 10.0 },
        Shape::Bursts { base: 0.0, peak: 2000.0, every: 3.0, length: 0.5 },
        Shape::Diurnal { low: 0.0, high: 700.0, period: 5.0 },
    ];

    fn source(shape: Shape, spacing: Spacing) -> Source {
        Source::Phases { phases: vec![Phase { shape, length: 10.0 }], spacing }
    }

    fn times(source: &Source, seed: u64) -> Vec<f64> {
        source.arrivals(seed).map(|ns| crate::units::float(ns) / 1e9).collect()
    }

    #[test]
    fn every_shape_gives_as_many_arrivals_as_its_integral_says() {
        for shape in SHAPES {
            let even = source(shape, Spacing::Constant);
            let n = times(&even, 1).len() as f64;
            assert!((n - even.expected()).abs() <= 1.0, "{shape:?}: {n}, {}", even.expected());
            let poisson = source(shape, Spacing::Poisson);
            let n = times(&poisson, 2).len() as f64;
            let bound = 5.0 * even.expected().sqrt();
            assert!((n - even.expected()).abs() < bound, "{shape:?}: {n}, seed 2");
        }
    }

    #[test]
    fn arrivals_ascend_and_stay_within_the_run() {
        for shape in SHAPES {
            for spacing in [Spacing::Constant, Spacing::Poisson] {
                let times = times(&source(shape, spacing), 3);
                assert!(times.is_sorted(), "{shape:?} {spacing:?}");
                assert!(*times.last().unwrap() <= 10.0 + 1e-6, "{shape:?} {spacing:?}");
            }
        }
    }

    #[test]
    fn the_inverse_undoes_the_integral() {
        for shape in SHAPES {
            let phase = Phase { shape, length: 10.0 };
            for x in [0.5, 1.0, 10.0, 333.3, 1000.0] {
                let back = phase.expected_until(phase.when(x));
                assert!((back - x).abs() < 1e-3, "{shape:?}: {x} became {back}");
            }
        }
    }

    #[test]
    fn a_burst_comes_at_the_end_of_its_period_at_its_rate() {
        let shape = Shape::Bursts { base: 100.0, peak: 1000.0, every: 5.0, length: 1.0 };
        let times = times(&source(shape, Spacing::Constant), 1);
        let between = |from, to| times.iter().filter(|t| (from..to).contains(*t)).count();
        assert!((399..=401).contains(&between(0.0, 4.0)));
        assert!((999..=1001).contains(&between(4.0, 5.0)));
        assert!((399..=401).contains(&between(5.0, 9.0)));
    }

    #[test]
    fn phases_follow_each_other_and_an_empty_one_is_a_pause() {
        let phases = [Shape::Constant(10.0), Shape::Constant(0.0), Shape::Constant(10.0)]
            .map(|shape| Phase { shape, length: 2.0 })
            .to_vec();
        let times = times(&Source::Phases { phases, spacing: Spacing::Constant }, 1);
        assert_eq!(times.len(), 40);
        assert!(times.iter().all(|t| *t <= 2.0 || *t > 4.0), "{times:?}");
    }

    #[test]
    fn the_same_seed_gives_the_same_arrivals_and_another_seed_others() {
        let source = source(Shape::Constant(100.0), Spacing::Poisson);
        assert_eq!(times(&source, 5), times(&source, 5));
        assert_ne!(times(&source, 5), times(&source, 6));
    }

    #[test]
    fn gaps_of_a_poisson_process_are_spread_as_much_as_their_mean() {
        let times = times(&source(Shape::Constant(2000.0), Spacing::Poisson), 8);
        let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance =
            gaps.iter().map(|gap| (gap - mean) * (gap - mean)).sum::<f64>() / gaps.len() as f64;
        let ratio = variance.sqrt() / mean;
        assert!((0.95..1.05).contains(&ratio), "{ratio}, seed 8");
    }
}
