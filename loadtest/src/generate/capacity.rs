//! `capacity`: the highest rate at which a target still meets its objectives.
//!
//! "How much can it take?" has no answer without "and still be good enough". The rate is doubled
//! until an objective is missed, then the gap between the highest rate that met them and the lowest
//! that did not is halved until it is small. Each step is an open-loop run of its own: in a closed
//! loop a target that is too slow slows its clients down and never looks overloaded.

use super::run::{self, Options, RunError};
use crate::plan::{Plan, PlanError};
use crate::report::Report;
use crate::report::style::Style;
use crate::scenario::{Constant, Load, Open, Phase, Scenario, Spacing};
use crate::units::{self, Rate, Ratio, seconds};
use serde::Serialize;
use std::fmt::Write as _;
use std::time::Duration;

/// Maximum number of runs of one search: from 1/s to 10 million/s and back to 0.1 % take fewer.
const MAX_STEPS: usize = 60;
/// Times that a rate is tried when the generator was in trouble, which may be a neighbour's fault.
const MAX_TRIES: usize = 3;
/// Requests that a step must have at least; rates with fewer are not tried.
const MIN_REQUESTS: f64 = 10.0;
/// Finest precision that makes sense: rates have three digits.
const MIN_PRECISION: f64 = 0.01;
/// Length of the longest bar of the curve.
const BAR: f64 = 24.0;

/// A search that is to be made.
#[derive(Debug, Clone)]
pub struct CapacityPlan {
    /// The requests and their objectives; its load is not used.
    pub scenario: Scenario,
    /// The spacing of requests.
    pub spacing: Spacing,
    /// The time for which each rate is measured.
    pub length: Duration,
    /// The first rate.
    pub from: Rate,
    /// The highest rate.
    pub to: Rate,
    /// Gap between the highest rate that is good and the lowest that is not, at which the search ends.
    pub precision: Ratio,
    /// Time to wait for the target before the first run.
    pub wait: Option<Duration>,
    /// Whether the generator never sleeps.
    pub busy: bool,
}

/// The result of a search.
#[derive(Debug, Clone, Serialize)]
pub struct Capacity {
    /// The scenario's name.
    pub name: String,
    /// The target of the requests.
    pub target: String,
    /// Objectives that a rate had to reach.
    pub objectives: Vec<String>,
    /// The highest rate that did, per second.
    pub rate: Option<f64>,
    /// The reason for which the search ended.
    pub end: End,
    /// All rates that were tried, ascending.
    pub steps: Vec<Step>,
}

/// A reason for which a search ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// Above the rate that was found an objective is missed.
    Target,
    /// Above it the generator could not keep up; what the target can do is not known.
    Generator,
    /// It is the highest one that was asked for.
    Bound,
    /// Ctrl-C.
    Interrupted,
}

/// One rate that was tried.
#[derive(Debug, Clone, Serialize)]
pub struct Step {
    /// Requests a second that were meant to start.
    pub rate: f64,
    /// Successes a second.
    pub ok_rate: f64,
    /// Median latency, seconds.
    pub p50: f64,
    /// 99th percentile, seconds.
    pub p99: f64,
    /// Share of requests that did not succeed.
    pub error_share: f64,
    /// Whether the rate counts as good.
    pub met: bool,
    /// Objectives that were missed, with what was measured.
    pub missed: Vec<String>,
    /// Why the figures are not the target's; matters where an objective was missed.
    pub problems: Vec<String>,
}

/// The next rate to try, given how the last ones went. Nothing but numbers.
#[derive(Debug, Clone, Copy)]
pub struct Search {
    lowest: f64,
    from: f64,
    to: f64,
    precision: f64,
    good: Option<f64>,
    bad: Option<f64>,
}

/// Searches the capacity; draws a progress line if wanted.
///
/// # Errors
/// The scenario can't be run, or a run could not be made.
pub fn search(capacity: &CapacityPlan, progress: bool) -> Result<Capacity, CapacityError> {
    let first = capacity.step(capacity.from)?;
    let mut search = capacity.search();
    let mut steps: Vec<Step> = Vec::new();
    let mut interrupted = false;
    let mut wait = capacity.wait;
    while let Some(rate) = search.next().filter(|_| steps.len() < MAX_STEPS && !interrupted) {
        let plan = capacity.step(Rate(rate))?;
        let mut tries = 0;
        let step = loop {
            let options = Options { progress, wait: wait.take() };
            let report = run::run(plan.clone(), options)?;
            interrupted = report.run.interrupted;
            tries += 1;
            let step = Step::new(rate, &report);
            if interrupted || step.met || step.problems.is_empty() || tries == MAX_TRIES {
                break step;
            }
        };
        if !interrupted {
            search.tell(rate, step.met);
            steps.push(step);
        }
    }
    steps.sort_by(|a, b| a.rate.total_cmp(&b.rate));
    let bad = steps.iter().find(|step| !step.met);
    let end = match bad {
        _ if interrupted => End::Interrupted,
        None => End::Bound,
        Some(step) if step.problems.is_empty() => End::Target,
        Some(_) => End::Generator,
    };
    Ok(Capacity {
        name: first.name,
        target: first.target.to_string(),
        objectives: first.objectives.iter().map(ToString::to_string).collect(),
        rate: search.good,
        end,
        steps,
    })
}

/// Why there is no capacity.
#[derive(Debug, thiserror::Error)]
pub enum CapacityError {
    /// The scenario can't be run.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A run.
    #[error(transparent)]
    Run(#[from] RunError),
}

impl Search {
    /// Begins at `from`, stays between `lowest` and `to`; rates are per second, `precision` is a
    /// share.
    pub fn new(lowest: f64, from: f64, to: f64, precision: f64) -> Self {
        let to = to.max(lowest);
        let from = from.clamp(lowest, to);
        Self { lowest, from, to, precision: precision.max(MIN_PRECISION), good: None, bad: None }
    }

    /// The next rate to try; `None`: it is known.
    pub fn next(&self) -> Option<f64> {
        match (self.good, self.bad) {
            (None, None) => Some(self.from),
            (Some(good), None) => (good < self.to).then(|| round(good * 2.0).min(self.to)),
            (None, Some(bad)) => (bad > self.lowest).then(|| round(bad / 4.0).max(self.lowest)),
            (Some(good), Some(bad)) => {
                let middle = round((good * bad).sqrt());
                (bad / good > 1.0 + self.precision && good < middle && middle < bad)
                    .then_some(middle)
            }
        }
    }

    /// Takes in whether `rate` was good.
    pub fn tell(&mut self, rate: f64, good: bool) {
        if good {
            self.good = Some(self.good.map_or(rate, |best| best.max(rate)));
        } else {
            self.bad = Some(self.bad.map_or(rate, |worst| worst.min(rate)));
        }
    }
}

impl CapacityPlan {
    fn search(&self) -> Search {
        let lowest = MIN_REQUESTS / self.length.as_secs_f64().max(1e-3);
        Search::new(lowest, self.from.0, self.to.0, self.precision.0)
    }

    fn step(&self, rate: Rate) -> Result<Plan, PlanError> {
        let phases = vec![Phase::Constant(Constant { rate, length: self.length })];
        let load = Load::Open(Open { spacing: self.spacing, phases });
        let plan = Plan::new(Scenario { load, ..self.scenario.clone() })?;
        Ok(Plan { busy: self.busy, ..plan })
    }
}

impl Step {
    fn new(rate: f64, report: &Report) -> Self {
        let missed = report.objectives.iter().filter(|judged| !judged.met);
        Self {
            rate,
            ok_rate: report.results.ok_rate,
            p50: report.results.latency.get("p50"),
            p99: report.results.latency.get("p99"),
            error_share: report.results.error_share,
            // The generator's own lag is in the latency: a rate that is good in spite of it is good.
            met: report.met(),
            missed: missed.map(|j| format!("{}: {}", j.objective, j.measured)).collect(),
            problems: report.problems.clone(),
        }
    }
}

/// To three digits: a rate of 1,131.3708 requests a second is no easier to quote than 1,130.
fn round(rate: f64) -> f64 {
    let scale = 10_f64.powf(rate.max(1.0).log10().floor() - 2.0);
    (rate / scale).round() * scale
}

/// The curve as text, with a line break at the end.
pub fn render(capacity: &Capacity, style: Style) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = write(&mut out, capacity, style);
    out
}

fn write(out: &mut String, capacity: &Capacity, style: Style) -> std::fmt::Result {
    writeln!(out, "{}  {}", style.bold(&capacity.name), capacity.target)?;
    writeln!(out, "{}\n", style.dim(&capacity.objectives.join(" · ")))?;
    let head =
        format!("  {:>10}{:>11}{:>10}{:>10}{:>10}", "rate", "answered", "errors", "p50", "p99");
    writeln!(out, "{}", style.dim(&head))?;
    let max_p99 = capacity.steps.iter().map(|step| step.p99).fold(0.0, f64::max);
    for step in &capacity.steps {
        let (rate, ok_rate) = (Rate(step.rate).to_string(), Rate(step.ok_rate).to_string());
        let (errors, p50) = (units::percent(step.error_share), seconds(step.p50));
        let filled = units::whole(step.p99 / max_p99.max(1e-9) * BAR);
        let bar = "━".repeat(usize::try_from(filled).unwrap_or(0).max(1));
        let bar = if step.met { style.good(&bar) } else { style.bad(&bar) };
        let why = match step.met {
            true => String::new(),
            false => {
                step.missed.iter().chain(&step.problems).cloned().collect::<Vec<_>>().join(" · ")
            }
        };
        let sign = if step.met { "✓ " } else { "✗ " };
        let p99 = seconds(step.p99);
        let row =
            format!("  {rate:>10}{ok_rate:>11}{errors:>10}{p50:>10}{p99:>10} {sign}{bar} {why}");
        writeln!(out, "{}", row.trim_end())?;
    }
    let rate = capacity.rate.map(|rate| style.bold(&Rate(rate).to_string()));
    let text = match (rate, capacity.end) {
        (Some(rate), End::Target) => format!("the objectives hold up to {rate}"),
        (Some(rate), End::Generator) => format!(
            "the objectives hold at {rate}, the most that the generator could do: the target's \
             limit is higher"
        ),
        (Some(rate), End::Bound) => {
            format!("the objectives hold at {rate}, the highest rate that was asked for")
        }
        (Some(rate), End::Interrupted) => {
            format!("the objectives hold at {rate}; interrupted before the limit was found")
        }
        (None, End::Interrupted) => "interrupted before any rate was good".to_owned(),
        (None, _) => style.bad("no rate that was tried meets the objectives"),
    };
    writeln!(out, "\n  {text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search(limit: f64, from: f64, to: f64, precision: f64) -> (Option<f64>, usize) {
        let mut search = Search::new(1.0, from, to, precision);
        let mut steps = 0;
        while let Some(rate) = search.next() {
            steps += 1;
            assert!(steps <= MAX_STEPS, "{limit} {from} {to} {precision}");
            search.tell(rate, rate <= limit);
        }
        (search.good, steps)
    }

    #[test]
    fn the_limit_is_found_to_the_precision_that_was_asked_for() {
        for (limit, from, precision) in
            [(777.0, 100.0, 0.05), (777.0, 50_000.0, 0.01), (1.5, 100.0, 0.05), (9e6, 1.0, 0.0)]
        {
            let (found, steps) = search(limit, from, 1e7, precision);
            let found = found.unwrap_or(0.0);
            let least = limit / (1.0 + precision.max(MIN_PRECISION)) * 0.99;
            assert!((least..=limit).contains(&found), "{limit}: {found} in {steps} steps");
            assert!(steps <= 35, "{limit}: {steps} steps");
        }
    }

    #[test]
    fn a_search_ends_where_there_is_no_limit_and_where_nothing_is_good() {
        assert_eq!(search(1e9, 100.0, 1000.0, 0.05), (Some(1000.0), 5));
        assert_eq!(search(0.1, 100.0, 1000.0, 0.05).0, None);
        assert_eq!(search(1e9, 5.0, 5.0, 0.05), (Some(5.0), 1));
    }

    #[test]
    fn rates_have_three_digits() {
        for (rate, expected) in [(1131.37, 1130.0), (1.0, 1.0), (99.96, 100.0), (12.345, 12.3)] {
            assert!((round(rate) - expected).abs() < 1e-9, "{rate}: {}", round(rate));
        }
    }
}
