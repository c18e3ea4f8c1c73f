//! The distributions of service times that routing benchmarks are made of.
//!
//! A backend that always takes the same time hides every mistake of a balancer. Real inference times vary
//! (sizes, batches, neighbours), and policies differ only in how they cope with that. Service times are
//! drawn from a seeded generator, so that two policies can be given the very same demands.

use forebay_config::form::Shown;
use forebay_config::units::{self, TimeSpan};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Longest single demand that is drawn: an unbounded tail would make one slot useless for hours.
const MAX_SECONDS: f64 = 3600.0;

/// A distribution of service times. All values in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Distribution {
    /// Always the same: `constant:5ms`.
    Constant(f64),
    /// Memoryless, the standard deviation equals the mean: `exponential:20ms`.
    Exponential(f64),
    /// Skewed, with the given mean and the standard deviation of the logarithm:
    /// `lognormal:20ms:1.0`.
    LogNormal {
        /// Mean in seconds.
        mean: f64,
        /// Standard deviation of the logarithm.
        sigma: f64,
    },
    /// Two kinds of requests: `bimodal:5ms:100ms:0.1` is 5 ms, and 100 ms for a tenth of them.
    Bimodal {
        /// The usual time.
        short: f64,
        /// The time of the others.
        long: f64,
        /// The share of the others, 0 to 1.
        share: f64,
    },
}

impl Distribution {
    /// The mean in seconds.
    pub fn mean(self) -> f64 {
        match self {
            Self::Constant(mean) | Self::Exponential(mean) | Self::LogNormal { mean, .. } => mean,
            Self::Bimodal { short, long, share } => short * (1.0 - share) + long * share,
        }
    }

    /// Draws one demand, at most an hour.
    pub fn draw(self, rng: &mut fastrand::Rng) -> Duration {
        let seconds = match self {
            Self::Constant(mean) => mean,
            Self::Exponential(mean) => mean * exponential(rng),
            Self::LogNormal { mean, sigma } => {
                (normal(rng) * sigma - sigma * sigma / 2.0).exp() * mean
            }
            Self::Bimodal { short, long, share } => {
                if rng.f64() < share {
                    long
                } else {
                    short
                }
            }
        };
        Duration::from_secs_f64(seconds.clamp(0.0, MAX_SECONDS))
    }
}

/// An exponential variate of mean 1.
pub fn exponential(rng: &mut fastrand::Rng) -> f64 {
    -(1.0 - rng.f64()).ln()
}

/// A normal variate of mean 0 and standard deviation 1 (Box and Muller; one of the pair).
pub fn normal(rng: &mut fastrand::Rng) -> f64 {
    let radius = (2.0 * exponential(rng)).sqrt();
    radius * (std::f64::consts::TAU * rng.f64()).cos()
}

/// A text that names no distribution.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected constant:TIME, exponential:TIME, lognormal:TIME:SIGMA or bimodal:TIME:TIME:SHARE, \
     found \"{0}\""
)]
pub struct DistributionError(String);

impl FromStr for Distribution {
    type Err = DistributionError;

    fn from_str(text: &str) -> Result<Self, DistributionError> {
        parse(text).ok_or_else(|| DistributionError(text.to_owned()))
    }
}

forebay_config::from_text! {
    Distribution = "constant:TIME, exponential:TIME, lognormal:TIME:SIGMA or \
                    bimodal:TIME:TIME:SHARE";
}

impl Default for Distribution {
    /// No time at all.
    fn default() -> Self {
        Self::Constant(0.0)
    }
}

/// As it is read: `constant:0.005s`.
impl Shown for Distribution {
    const KIND: &'static str = "DISTRIBUTION";

    fn shown(&self) -> String {
        match *self {
            Self::Constant(mean) => format!("\"constant:{mean}s\""),
            Self::Exponential(mean) => format!("\"exponential:{mean}s\""),
            Self::LogNormal { mean, sigma } => format!("\"lognormal:{mean}s:{sigma}\""),
            Self::Bimodal { short, long, share } => format!("\"bimodal:{short}s:{long}s:{share}\""),
        }
    }
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let span = units::seconds;
        match *self {
            Self::Constant(mean) => write!(f, "constant, {}", span(mean)),
            Self::Exponential(mean) => write!(f, "exponential, mean {}", span(mean)),
            Self::LogNormal { mean, sigma } => {
                write!(f, "lognormal, mean {}, sigma {sigma}", span(mean))
            }
            Self::Bimodal { short, long, share } => {
                write!(f, "bimodal, {} and {} for {}", span(short), span(long), share)
            }
        }
    }
}

fn parse(text: &str) -> Option<Distribution> {
    let parts: Vec<&str> = text.split(':').collect();
    let time = |text: &str| text.parse::<TimeSpan>().ok().map(|span| span.0.as_secs_f64());
    let number = |text: &str| text.parse::<f64>().ok().filter(|n| n.is_finite() && *n >= 0.0);
    Some(match parts.as_slice() {
        ["constant", mean] => Distribution::Constant(time(mean)?),
        ["exponential", mean] => Distribution::Exponential(time(mean)?),
        ["lognormal", mean, sigma] => Distribution::LogNormal {
            mean: time(mean)?,
            sigma: number(sigma).filter(|sigma| *sigma <= 5.0)?,
        },
        ["bimodal", short, long, share] => Distribution::Bimodal {
            short: time(short)?,
            long: time(long)?,
            share: number(share).filter(|share| *share <= 1.0)?,
        },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that fails may say so bluntly")]
    use super::*;

    #[test]
    fn samples_have_the_stated_mean() {
        const SAMPLES: u32 = 200_000;
        for text in
            ["constant:5ms", "exponential:20ms", "lognormal:20ms:0.8", "bimodal:5ms:100ms:0.1"]
        {
            let distribution: Distribution = text.parse().unwrap();
            let mut rng = fastrand::Rng::with_seed(7);
            let total: Duration = (0..SAMPLES).map(|_| distribution.draw(&mut rng)).sum();
            let mean = total.as_secs_f64() / f64::from(SAMPLES);
            let error = (mean / distribution.mean() - 1.0).abs();
            assert!(error < 0.02, "{text}: mean {mean}, seed 7");
        }
    }

    #[test]
    fn a_distribution_stands_in_a_file_as_it_is_read_there() {
        for text in
            ["constant:0s", "exponential:20ms", "lognormal:20ms:0.8", "bimodal:5ms:100ms:0.1"]
        {
            let distribution: Distribution = text.parse().unwrap();
            assert_eq!(distribution.shown().trim_matches('"').parse(), Ok(distribution));
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "constant",
            "constant:5",
            "exponential:20ms:1",
            "lognormal:20ms:-1",
            "lognormal:20ms:NaN",
            "bimodal:1ms:2ms:1.5",
            "normal:3ms",
        ] {
            assert!(text.parse::<Distribution>().is_err(), "{text}");
        }
    }
}
