//! Before, during and after: a run cut where faults begin and end.
//!
//! A p99 over a whole run hides thirty bad seconds in ten good minutes. A request belongs to the window
//! in which it was meant to start, as it belongs to the interval of the series.

use super::outcome::{Count, Finished, Outcome, counts};
use super::times::{Quantiles, Times};
use super::verdict::{Judged, Sample};
use crate::plan::Plan;
use crate::scenario::Objective;
use crate::units::float;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::time::Duration;

/// The record of one window.
#[derive(Debug, Clone, Default)]
pub struct FaultWindow {
    /// Latencies of the successes.
    pub latency: Times,
    /// Outcomes of the requests.
    pub outcomes: HashMap<Outcome, u64>,
}

/// The windows of a run, in order: before the first fault, during it, between it and the second, …
#[derive(Debug, Clone, Default)]
pub struct FaultWindows {
    borders: Vec<Duration>,
    windows: Vec<FaultWindow>,
}

/// A window in a report.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FaultWindowReport {
    /// `before kill a`, `kill a`, `after kill a`.
    pub name: String,
    /// Whether a fault goes on in it.
    pub is_fault: bool,
    /// Begin and end, in seconds from the end of the warm-up.
    pub span: (f64, f64),
    /// Requests that were meant to start in it.
    pub requests: u64,
    /// Share of them that did not succeed.
    pub error_share: f64,
    /// Successes a second.
    pub ok_rate: f64,
    /// Latencies of the successes.
    pub latency: Quantiles,
    /// Outcomes of the other requests.
    pub errors: Vec<Count>,
    /// The run's objectives, for this window.
    pub objectives: Vec<Judged>,
}

impl FaultWindows {
    /// For these borders, ascending, from the end of the warm-up; without any there are no windows.
    pub fn new(borders: &[Duration]) -> Self {
        let count = if borders.is_empty() { 0 } else { borders.len() + 1 };
        Self { borders: borders.to_vec(), windows: vec![FaultWindow::default(); count] }
    }

    /// Takes in a request that was meant to start `since` the end of the warm-up.
    pub fn finish(&mut self, since: Duration, request: &Finished) {
        let index = self.borders.partition_point(|border| *border <= since);
        let Some(window) = self.windows.get_mut(index) else { return };
        *window.outcomes.entry(request.outcome).or_default() += 1;
        if request.outcome.is_ok() {
            window.latency.add(request.done.saturating_sub(request.intended));
        }
    }

    /// Adds the windows of another thread.
    pub fn merge(&mut self, other: &Self) {
        if self.windows.is_empty() {
            self.clone_from(other);
            return;
        }
        for (mine, theirs) in self.windows.iter_mut().zip(&other.windows) {
            mine.latency.merge(&theirs.latency);
            for (outcome, count) in &theirs.outcomes {
                *mine.outcomes.entry(*outcome).or_default() += count;
            }
        }
    }

    /// For a report of a run that measured for `seconds`.
    pub fn report(&self, plan: &Plan, seconds: f64) -> Vec<FaultWindowReport> {
        let names = names(plan);
        let border = |index: usize| self.borders.get(index).map_or(seconds, Duration::as_secs_f64);
        let windows = self.windows.iter().zip(names).enumerate();
        let all = windows.map(|(index, (window, name))| {
            let from = index.checked_sub(1).map_or(0.0, border).min(seconds);
            let until = border(index).min(seconds);
            let sample = window.sample(until - from);
            FaultWindowReport {
                name,
                is_fault: index % 2 == 1,
                span: (from, until),
                requests: sample.total,
                error_share: sample.error_share(),
                ok_rate: if until > from { float(sample.ok) / (until - from) } else { 0.0 },
                latency: Quantiles::of(&window.latency),
                errors: counts(&window.outcomes).into_iter().filter(|count| !count.ok).collect(),
                objectives: judged(&plan.objectives, &sample),
            }
        });
        // A fault that begins at once leaves nothing before it; a run that was cut short, nothing after.
        all.filter(|window| window.span.1 > window.span.0).collect()
    }
}

impl FaultWindowReport {
    /// The objectives that this window did not reach.
    pub fn missed(&self) -> impl Iterator<Item = &str> {
        let missed = self.objectives.iter().filter(|judged| !judged.met);
        missed.map(|judged| judged.objective.as_str())
    }
}

impl FaultWindow {
    fn sample(&self, seconds: f64) -> Sample<'_> {
        let ok = |(outcome, count): (&Outcome, &u64)| outcome.is_ok().then_some(*count);
        Sample {
            latency: &self.latency,
            total: self.outcomes.values().sum(),
            ok: self.outcomes.iter().filter_map(ok).sum(),
            seconds,
        }
    }
}

fn judged(objectives: &[Objective], sample: &Sample<'_>) -> Vec<Judged> {
    objectives.iter().map(|objective| Judged::from(sample.judge(*objective))).collect()
}

fn names(plan: &Plan) -> Vec<String> {
    let faults: Vec<String> = plan.faults.iter().map(ToString::to_string).collect();
    let mut names = Vec::with_capacity(2 * faults.len() + 1);
    for (index, fault) in faults.iter().enumerate() {
        names.push(match index.checked_sub(1) {
            None => format!("before {fault}"),
            Some(last) => format!("after {}", faults[last]),
        });
        names.push(fault.clone());
    }
    names.extend(faults.last().map(|fault| format!("after {fault}")));
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(intended: u64, took: u64, outcome: Outcome) -> Finished {
        let intended = Duration::from_millis(intended);
        let done = intended + Duration::from_millis(took);
        let (taken, sent, bytes_out, bytes_in) = (intended, intended, 0, 0);
        Finished { intended, taken, sent, done, outcome, bytes_out, bytes_in }
    }

    #[test]
    fn a_request_belongs_to_the_window_in_which_it_was_meant_to_start() {
        let borders = [Duration::from_secs(1), Duration::from_secs(2)];
        let mut all = FaultWindows::new(&borders);
        let mut thread = FaultWindows::new(&borders);
        for (at, took, outcome) in [
            (0, 5000, Outcome::Ok(200)),
            (999, 1, Outcome::Ok(200)),
            (1000, 1, Outcome::refused(503, None)),
            (2000, 7, Outcome::Ok(200)),
        ] {
            let request = request(at, took, outcome);
            thread.finish(request.intended, &request);
        }
        all.merge(&thread);
        all.merge(&FaultWindows::new(&borders));
        let counts: Vec<(u64, u64)> =
            all.windows.iter().map(|s| s.sample(1.0)).map(|s| (s.total, s.ok)).collect();
        assert_eq!(counts, [(2, 2), (1, 0), (1, 1)]);
        assert!((all.windows[0].latency.max() / 5.0 - 1.0).abs() < 1e-3);
    }

    #[test]
    fn a_run_without_faults_has_no_windows() {
        let mut none = FaultWindows::new(&[]);
        let request = request(0, 1, Outcome::Ok(200));
        none.finish(request.intended, &request);
        assert!(none.windows.is_empty());
    }
}
