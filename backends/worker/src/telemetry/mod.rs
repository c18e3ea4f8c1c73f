//! The worker's word of itself: load reports, metrics, statistics.

pub(crate) mod load_report;
pub(crate) mod metrics;
pub(crate) mod stats;
pub(crate) mod version_metrics;
