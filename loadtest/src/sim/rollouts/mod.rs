//! The statistics of rollouts, tried over thousands of canaries.
//!
//! A test that is looked at after every request must not call a canary worse that is not, whatever the noise: bursts,
//! drift, clients that differ. It must also find the one that is worse, and soon. Both are rates, and rates are
//! measured: each row is a case with its bound. The controls are tests that are known to be wrong in that case; if
//! they passed, the cases would be too easy to show anything.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "numbers of runs and of requests, which are small"
)]

mod case;
mod controller;
mod noise;
mod tests_alone;

use crate::sim::parallel;
use case::Case;
use forebay_routing::Rng;
use std::fmt::Write as _;

/// One case and what was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The case, in words.
    pub case: String,
    /// The figure found.
    pub found: String,
    /// The bound.
    pub bound: String,
    /// Whether it keeps the bound.
    pub met: bool,
}

/// Simulates `runs` rollouts in each case.
pub fn all(runs: u32, seed: u64) -> Vec<Row> {
    let mut cases = tests_alone::cases();
    cases.extend(controller::cases());
    cases.iter().enumerate().map(|(number, case)| row(case, runs, seed ^ number as u64)).collect()
}

fn row(case: &Case, runs: u32, seed: u64) -> Row {
    let runs = (f64::from(runs) * case.share()).ceil().max(20.0) as u64;
    let mut seeds = Rng::new(seed);
    let seeds: Vec<u64> = (0..runs).map(|_| seeds.next_u64()).collect();
    let mut verdicts = parallel::each(&seeds, |seed| case.run(&mut Rng::new(*seed)));
    let (found, bound, met) = case.bound().judge(&mut verdicts);
    Row { case: case.name().to_owned(), found, bound, met }
}

/// The rows as a Markdown table.
pub fn render(rows: &[Row]) -> String {
    let mut out = "Simulated. A share is one of false verdicts, of verdicts where there should be one, or of a control \
        that must be wrong; a number is the median of the requests until the verdict.\n\n\
        | case | found | bound | met |\n|---|---|---|---|\n"
        .to_owned();
    for row in rows {
        let met = if row.met { "yes" } else { "**no**" };
        // Writing to a string does not fail.
        let _ = writeln!(out, "| {} | {} | {} | {met} |", row.case, row.found, row.bound);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::case::Bound;
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_rows_and_a_missed_bound_is_told() {
        let case = |bound| Case::new("a coin", bound, |rng| (rng.share() < 0.5).then_some(10.0));
        let found = row(&case(Bound::False), 200, 1);
        assert!(!found.met && found == row(&case(Bound::False), 200, 1));
        assert!(row(&case(Bound::Blind(0.15)), 200, 1).met);
        assert!(!row(&case(Bound::Power(0.9)), 200, 1).met);
        assert!(!row(&case(Bound::Median(5.0)), 200, 1).met);
        assert!(render(&[found]).contains("| a coin | 5"));
    }
}
