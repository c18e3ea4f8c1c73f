//! `compare`: is B worse than A, or is it chance?
//!
//! Two runs of the same thing never give the same p99. The answer here has an interval: the seconds
//! of each run are drawn again with replacement, a few thousand times, and the figures computed again
//! ("bootstrap"). Neighbouring seconds depend on each other (a queue that is long stays long), so
//! they are drawn in blocks. Seconds say nothing about changes from run to run: give all runs if you have several
//! on a side; then runs are drawn first.

mod resample;
mod text;

pub use text::render;

use crate::report::Report;
use crate::units::{self, Ratio};
use clap::Args;
use resample::{Grid, Side, Totals};
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Largest report that is read, in bytes.
const MAX_REPORT: u64 = 64 << 20;
/// Maximum number of reports on one side.
const MAX_RUNS: usize = 100;
/// Bounds of the number of resamples.
const RESAMPLES: std::ops::RangeInclusive<usize> = 100..=100_000;
/// Seconds of a run below which its interval is not to be relied upon.
const MIN_INTERVALS: usize = 20;
/// Share of resamples that must have a value, so that an interval can be stated.
const MIN_RESAMPLES_USED: f64 = 0.95;

const EXAMPLES: &str = "\
Examples:
  A gate for a new version:
      forebay-load run fleet.toml --target http://old:8080 --json=a.json
      forebay-load run fleet.toml --target http://new:8080 --json=b.json
      forebay-load compare a.json b.json

  Several runs in alternation, which also shows what changes from run to run:
      forebay-load compare a1.json,a2.json,a3.json b1.json,b2.json,b3.json

Exit status:
  0  B is not shown to be worse
  1  B is worse
  2  a report can't be read
  3  there is nothing to compare, or a run that may not be quoted";

/// Arguments of `compare`.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub struct CompareArgs {
    /// The baseline: reports that `run --json=FILE` wrote
    #[arg(value_name = "A.json[,…]", value_delimiter = ',', num_args = 1, required = true)]
    pub a: Vec<PathBuf>,

    /// The reports to be judged against it
    #[arg(value_name = "B.json[,…]", value_delimiter = ',', num_args = 1, required = true)]
    pub b: Vec<PathBuf>,

    /// Change of a latency or a rate that does not matter
    #[arg(long, value_name = "SHARE", default_value = "5%")]
    pub tolerance: Ratio,

    /// Change of the error share that does not matter, in points
    #[arg(long, value_name = "SHARE", default_value = "0.1%")]
    pub errors: Ratio,

    /// Confidence of all intervals together
    #[arg(long, value_name = "SHARE", default_value = "95%")]
    pub confidence: Ratio,

    /// Number of resamples
    #[arg(long, value_name = "N", default_value_t = 4000)]
    pub resamples: usize,

    /// The resamples follow from it
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,

    /// Write the comparison as JSON, to standard output if no file is named
    #[arg(
        long, value_name = "FILE", num_args = 0..=1, require_equals = true,
        default_missing_value = "-"
    )]
    pub json: Option<PathBuf>,
}

/// Two sides and how they differ.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// The baseline.
    pub a: Group,
    /// The side that is judged.
    pub b: Group,
    /// One for each quantity.
    pub rows: Vec<ComparisonRow>,
    /// All rows together: worse if one is.
    pub verdict: Verdict,
    /// Confidence of all intervals together, 0 to 1.
    pub confidence: f64,
    /// Number of resamples.
    pub resamples: usize,
    /// Resamples followed from it.
    pub seed: u64,
    /// Reservations that a reader should know.
    pub notes: Vec<String>,
    /// Why nothing may be concluded; empty: it may.
    pub problems: Vec<String>,
}

/// The runs on one side.
#[derive(Debug, Clone, Serialize)]
pub struct Group {
    /// Scenario, target and load in words, and how many others occur.
    pub what: String,
    /// Number of runs.
    pub runs: usize,
    /// Requests that were measured.
    pub requests: u64,
    /// Time that was measured, in seconds.
    pub seconds: f64,
}

/// One quantity on both sides.
#[derive(Debug, Clone, Serialize)]
pub struct ComparisonRow {
    /// A quantity that is compared.
    pub quantity: Quantity,
    /// On side A; nothing if no request succeeded.
    pub a: Option<f64>,
    /// On side B.
    pub b: Option<f64>,
    /// B / A, or B - A for the error share.
    pub change: Option<f64>,
    /// The interval of the change.
    pub interval: Option<(f64, f64)>,
    /// The verdict on it.
    pub verdict: Verdict,
}

/// A quantity that is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantity {
    /// Median latency, seconds.
    P50,
    /// 99th percentile of latency, seconds.
    P99,
    /// Share of requests that did not succeed.
    Errors,
    /// Successes a second.
    Rate,
}

/// The verdict on a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// By more than the tolerance, the whole interval.
    Worse,
    /// By more than the tolerance, the whole interval.
    Better,
    /// Not by more than the tolerance, the whole interval.
    Same,
    /// The interval reaches over a border: longer or more runs would tell.
    Unclear,
}

/// Why there is no comparison.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// A report can't be read.
    #[error("{path}: {what}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        what: String,
    },
    /// A number out of its bounds.
    #[error("{0}")]
    Bounds(String),
    /// A side without a request.
    #[error("side {0}: expected at least one measured request, found none")]
    Empty(&'static str),
}

impl CompareError {
    /// Whether it lies in what was asked for, not in what was measured.
    pub fn is_usage(&self) -> bool {
        !matches!(self, Self::Empty(_))
    }
}

/// Reads a report that `run --json=FILE` wrote.
///
/// # Errors
/// The file can't be read, or is no report.
pub fn read(path: &Path) -> Result<Report, CompareError> {
    let fail = |what: String| CompareError::Read { path: path.to_owned(), what };
    let size = std::fs::metadata(path).map_err(|error| fail(error.to_string()))?.len();
    if size > MAX_REPORT {
        return Err(fail(format!("expected at most {MAX_REPORT} bytes, found {size}")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
    serde_json::from_str(&text)
        .map_err(|error| fail(format!("expected a report of forebay-load run, {error}")))
}

impl Comparison {
    /// Reads the reports and compares them.
    ///
    /// # Errors
    /// A report that can't be read, or a side without a request.
    pub fn new(args: &CompareArgs) -> Result<Self, CompareError> {
        if !RESAMPLES.contains(&args.resamples) {
            let (low, high, found) = (RESAMPLES.start(), RESAMPLES.end(), args.resamples);
            let text = format!("--resamples: expected {low} to {high}, found {found}");
            return Err(CompareError::Bounds(text));
        }
        if !(0.5..1.0).contains(&args.confidence.0) {
            let found = units::percent(args.confidence.0);
            let text = format!("--confidence: expected 50% to below 100%, found {found}");
            return Err(CompareError::Bounds(text));
        }
        let side = |paths: &[PathBuf]| paths.iter().map(|path| read(path)).collect();
        let (a, b): (Result<Vec<_>, _>, Result<Vec<_>, _>) = (side(&args.a), side(&args.b));
        Self::of(&a?, &b?, args)
    }

    /// Compares reports that are there.
    ///
    /// # Errors
    /// A side without a request, or with too many runs.
    pub fn of(a: &[Report], b: &[Report], args: &CompareArgs) -> Result<Self, CompareError> {
        for (name, side) in [("A", a), ("B", b)] {
            if side.iter().all(|report| report.results.requests == 0) {
                return Err(CompareError::Empty(name));
            }
            if side.len() > MAX_RUNS {
                let text = format!("expected at most {MAX_RUNS} reports on a side");
                return Err(CompareError::Bounds(text));
            }
        }
        let grid = Grid::new(a.iter().chain(b));
        let sides = (Side::new(a, &grid), Side::new(b, &grid));
        let rows = rows(&grid, &sides, args);
        Ok(Self {
            a: Group::of(a),
            b: Group::of(b),
            verdict: together(&rows),
            rows,
            confidence: args.confidence.0,
            resamples: args.resamples,
            seed: args.seed,
            notes: notes(a, b),
            problems: problems(a, b),
        })
    }
}

impl Group {
    fn of(reports: &[Report]) -> Self {
        let words: BTreeSet<String> = reports
            .iter()
            .map(|report| {
                format!("{} at {}, {}", report.run.name, report.run.target, report.run.load)
            })
            .collect();
        let first = words.first().cloned().unwrap_or_default();
        let more = match words.len() {
            0 | 1 => String::new(),
            count => format!(" and {} more", count - 1),
        };
        Self {
            what: first + &more,
            runs: reports.len(),
            requests: reports
                .iter()
                .fold(0, |sum, report| sum.saturating_add(report.results.requests)),
            seconds: reports.iter().map(|report| report.run.measured_seconds).sum(),
        }
    }
}

impl Quantity {
    /// All, in the order in which they are shown.
    pub const ALL: [Self; 4] = [Self::P50, Self::P99, Self::Errors, Self::Rate];

    fn of(self, grid: &Grid, totals: &Totals) -> Option<f64> {
        match self {
            Self::P50 => totals.quantile(grid, 0.5),
            Self::P99 => totals.quantile(grid, 0.99),
            Self::Errors => totals.error_share(),
            Self::Rate => totals.rate(),
        }
    }

    fn change(self, a: Option<f64>, b: Option<f64>) -> Option<f64> {
        let (a, b) = (a?, b?);
        match self {
            Self::Errors => Some(b - a),
            _ => (a > 0.0).then(|| b / a),
        }
    }

    /// Judges an interval of the change.
    fn judge(self, interval: Option<(f64, f64)>, args: &CompareArgs) -> Verdict {
        let Some((low, high)) = interval else { return Verdict::Unclear };
        // Turned so that above the upper border is worse.
        let (low, high, min, max) = match self {
            Self::P50 | Self::P99 => (low, high, 1.0 - args.tolerance.0, 1.0 + args.tolerance.0),
            Self::Errors => (low, high, -args.errors.0, args.errors.0),
            Self::Rate => (-high, -low, -1.0 - args.tolerance.0, -1.0 + args.tolerance.0),
        };
        match () {
            () if low > max => Verdict::Worse,
            () if high < min => Verdict::Better,
            () if low >= min && high <= max => Verdict::Same,
            () => Verdict::Unclear,
        }
    }
}

fn rows(grid: &Grid, sides: &(Side, Side), args: &CompareArgs) -> Vec<ComparisonRow> {
    let mut rng = fastrand::Rng::with_seed(args.seed);
    let (mut a, mut b) = (Totals::new(grid), Totals::new(grid));
    let mut changes = Quantity::ALL.map(|_| Vec::with_capacity(args.resamples));
    for _ in 0..args.resamples {
        sides.0.resample(&mut rng, &mut a);
        sides.1.resample(&mut rng, &mut b);
        for (quantity, changes) in Quantity::ALL.iter().zip(&mut changes) {
            changes.extend(quantity.change(quantity.of(grid, &a), quantity.of(grid, &b)));
        }
    }
    sides.0.whole(&mut a);
    sides.1.whole(&mut b);
    // All intervals are to hold together: each has its share of the doubt (Bonferroni).
    let doubt = (1.0 - args.confidence.0) / units::float(Quantity::ALL.len() as u64);
    let row = |(quantity, changes): (Quantity, Vec<f64>)| {
        let (a, b) = (quantity.of(grid, &a), quantity.of(grid, &b));
        let enough = units::float(args.resamples as u64) * MIN_RESAMPLES_USED;
        let interval = (units::float(changes.len() as u64) >= enough)
            .then(|| resample::interval(changes, doubt));
        let change = quantity.change(a, b);
        ComparisonRow { quantity, a, b, change, interval, verdict: quantity.judge(interval, args) }
    };
    Quantity::ALL.into_iter().zip(changes).map(row).collect()
}

fn together(rows: &[ComparisonRow]) -> Verdict {
    let any = |verdict| rows.iter().any(|row| row.verdict == verdict);
    match () {
        () if any(Verdict::Worse) => Verdict::Worse,
        () if any(Verdict::Unclear) => Verdict::Unclear,
        () if any(Verdict::Better) => Verdict::Better,
        () => Verdict::Same,
    }
}

fn notes(a: &[Report], b: &[Report]) -> Vec<String> {
    let mut notes = Vec::new();
    let differs = |what: fn(&Report) -> &str| {
        let first = a.first().map(what);
        a.iter().chain(b).any(|report| Some(what(report)) != first)
    };
    for (setting, differs) in [
        ("scenario", differs(|report| &report.run.name)),
        ("load", differs(|report| &report.run.load)),
        ("protocol", differs(|report| &report.run.protocol)),
        ("processor", differs(|report| &report.run.machine.processor)),
    ] {
        if differs {
            notes.push(format!("the runs differ in their {setting}"));
        }
    }
    if a.iter().chain(b).any(|report| report.series.len() < MIN_INTERVALS) {
        notes.push(format!(
            "a run has fewer than {MIN_INTERVALS} intervals: the range of chance is a rough guess"
        ));
    }
    if a.len().min(b.len()) < 2 {
        notes.push("one run on a side: changes from run to run are not visible".to_owned());
    }
    notes
}

fn problems(a: &[Report], b: &[Report]) -> Vec<String> {
    let of = |name: &'static str, side: &[Report]| -> Vec<String> {
        let problems = side.iter().flat_map(|report| &report.problems);
        problems.map(|problem| format!("side {name}: {problem}")).collect()
    };
    let mut problems = of("A", a);
    problems.extend(of("B", b));
    problems.dedup();
    problems
}
