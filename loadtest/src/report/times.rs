//! Distributions of times: histograms while a run goes on, a few quantiles in its report.

use crate::units::float;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// Significant digits of the buckets of a whole run.
pub const RUN_DIGITS: u8 = 3;
/// Significant digits of the buckets of one interval of the series.
pub const SERIES_DIGITS: u8 = 2;
/// Latencies above it count as this one, in nanoseconds: an hour.
pub(super) const MAX_LATENCY: u64 = 3_600_000_000_000;
/// Quantiles that reports state.
pub const QUANTILES: [(&str, f64); 6] = [
    ("p50", 0.5),
    ("p90", 0.9),
    ("p95", 0.95),
    ("p99", 0.99),
    ("p99.9", 0.999),
    ("p99.99", 0.9999),
];

/// A histogram of nanoseconds, 1 ns to an hour, exact to three digits.
#[derive(Debug, Clone)]
pub struct Times(Histogram<u64>);

/// A distribution of times.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Quantiles {
    /// Number of values.
    pub count: u64,
    /// Least.
    pub min: f64,
    /// Mean.
    pub mean: f64,
    /// Standard deviation.
    pub deviation: f64,
    /// `p50` to `p99.99`.
    #[serde(flatten)]
    pub quantiles: BTreeMap<String, f64>,
    /// Maximum.
    pub max: f64,
}

impl Default for Times {
    fn default() -> Self {
        let histogram = Histogram::new_with_bounds(1, MAX_LATENCY, RUN_DIGITS);
        Self(histogram.unwrap_or_else(|_| unreachable!("the bounds are constants that fit")))
    }
}

impl Times {
    /// Adds one value; what is longer than an hour counts as an hour.
    pub fn add(&mut self, value: Duration) {
        self.0.saturating_record(crate::units::nanos(value).max(1));
    }

    /// Adds all values of another histogram.
    pub fn merge(&mut self, other: &Self) {
        // Both have the same bounds, so nothing can be out of range.
        let _ = self.0.add(&other.0);
    }

    /// The value in seconds below which the share `quantile` (0 to 1) of all values lies.
    pub fn quantile(&self, quantile: f64) -> f64 {
        if self.0.is_empty() { 0.0 } else { float(self.0.value_at_quantile(quantile)) / 1e9 }
    }

    /// Mean in seconds.
    pub fn mean(&self) -> f64 {
        self.0.mean() / 1e9
    }

    /// Standard deviation in seconds.
    pub fn deviation(&self) -> f64 {
        self.0.stdev() / 1e9
    }

    /// Minimum in seconds, 0 if there is none.
    pub fn min(&self) -> f64 {
        if self.0.is_empty() { 0.0 } else { float(self.0.min()) / 1e9 }
    }

    /// Maximum in seconds, 0 if there is none.
    pub fn max(&self) -> f64 {
        if self.0.is_empty() { 0.0 } else { float(self.0.max()) / 1e9 }
    }

    /// Number of values.
    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The histogram itself, to be written down.
    pub fn histogram(&self) -> &Histogram<u64> {
        &self.0
    }
}

impl Quantiles {
    /// Of a histogram.
    pub fn of(times: &Times) -> Self {
        Self {
            count: times.len(),
            min: times.min(),
            mean: times.mean(),
            deviation: times.deviation(),
            quantiles: QUANTILES
                .iter()
                .map(|(name, quantile)| ((*name).to_owned(), times.quantile(*quantile)))
                .collect(),
            max: times.max(),
        }
    }

    /// One of [`QUANTILES`] by its name; 0 for any other.
    pub fn get(&self, name: &str) -> f64 {
        self.quantiles.get(name).copied().unwrap_or(0.0)
    }
}
