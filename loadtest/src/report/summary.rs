//! Sentences that the table and the page share.

use super::Report;
use super::fault_window::FaultWindowReport;
use crate::units::{self, seconds};
use std::collections::BTreeMap;

/// A list of names with their counts, the greatest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shares<'a> {
    /// At most so many as were asked for.
    pub entries: Vec<(&'a str, u64)>,
    /// Number of the remaining entries, and their sum.
    pub rest: (usize, u64),
    /// The sum that the counts are shares of.
    pub total: u64,
}

impl<'a> Shares<'a> {
    fn new(mut entries: Vec<(&'a str, u64)>, total: u64, max: usize) -> Self {
        entries.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let rest = entries.split_off(entries.len().min(max));
        let sum = rest.iter().fold(0, |sum: u64, (_, count)| sum.saturating_add(*count));
        Self { entries, rest: (rest.len(), sum), total: total.max(1) }
    }

    /// Requests that did not succeed, by the way in which they ended.
    pub fn of_errors(report: &'a Report, max: usize) -> Self {
        let errors = report.results.outcomes.iter().filter(|count| !count.ok);
        let entries = errors.map(|count| (count.class.as_str(), count.count)).collect();
        Self::new(entries, report.results.requests, max)
    }

    /// Answers by the variant or endpoint that gave them.
    pub fn of(shares: &'a BTreeMap<String, u64>, max: usize) -> Self {
        let entries = shares.iter().map(|(name, count)| (name.as_str(), *count)).collect();
        let total = shares.values().fold(0, |sum: u64, count| sum.saturating_add(*count));
        Self::new(entries, total, max)
    }

    /// A count as a share of all, 0 to 1.
    pub fn share(&self, count: u64) -> f64 {
        units::float(count) / units::float(self.total)
    }
}

/// The load, the protocol and the seed of a run, in a line.
pub fn headline(report: &Report) -> String {
    format!(
        "{} · {} · {} measured after {} of warm-up · seed {}",
        report.run.load,
        report.run.protocol,
        seconds(report.run.measured_seconds),
        seconds(report.run.warm_up_seconds),
        report.run.seed
    )
}

/// Whether a window reached the run's objectives, and in words; `None`: there are none.
pub fn verdict(window: &FaultWindowReport) -> Option<(bool, String)> {
    let missed: Vec<&str> = window.missed().collect();
    match (window.objectives.is_empty(), missed.is_empty()) {
        (true, _) => None,
        (false, true) => Some((true, "✓ met".to_owned())),
        (false, false) => Some((false, format!("✗ {}", missed.join(", ")))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_is_cut_and_the_rest_is_summed_up() {
        let counts = (0..9_u64).map(|i| (i.to_string(), i * 10)).collect();
        let shares = Shares::of(&counts, 3);
        assert_eq!(shares.entries, [("8", 80), ("7", 70), ("6", 60)]);
        assert_eq!((shares.rest, shares.total), ((6, 150), 360));
        assert!(Shares::of(&BTreeMap::new(), 3).share(1).is_finite());
    }
}
