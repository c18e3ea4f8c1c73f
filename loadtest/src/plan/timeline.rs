//! The division of a run into a warm-up and intervals.

use std::time::Duration;

/// Maximum number of intervals of the time series; a longer run has longer intervals.
pub const MAX_INTERVALS: usize = 1200;
/// Borders of what is measured.
#[derive(Debug, Clone, Copy)]
pub struct Timeline {
    /// Length of the warm-up.
    pub warm_up: Duration,
    /// Length of one interval of the time series.
    pub interval: Duration,
}

impl Timeline {
    /// For a run of `measured` after a `warm_up`: intervals of a second, or as long as needed.
    pub fn new(warm_up: Duration, measured: Duration) -> Self {
        let max = u32::try_from(MAX_INTERVALS).unwrap_or(u32::MAX);
        Self { warm_up, interval: (measured / max).max(Duration::from_secs(1)) }
    }
}
