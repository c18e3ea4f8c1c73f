//! How far a fleet is from the best that is possible with it: add machines, or look at the proxy?
//!
//! A latency alone does not say whose fault it is. So the same requests stand at four levels, each of which adds one
//! cause of waiting: none at all; more work than all endpoints can do; the chance that many requests come at once
//! and that slots are not one; and the routing of the proxy, which knows less than there is to know.

use super::style::Style;
use super::times::{Quantiles, Times};
use crate::units::{self, seconds};
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;

/// Share of the ideal mean below which a wait is not worth a change.
const MIN_WAIT_SHARE: f64 = 0.1;
/// Share of requests without a good answer below which it is none.
const MIN_LOST_SHARE: f64 = 0.01;

/// The levels of one pool and what follows from them. Times are seconds, shares 0 to 1.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FleetReport {
    /// The pool, where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Number of endpoints.
    pub endpoints: usize,
    /// Requests that are compared.
    pub requests: u64,
    /// The work of these as a share of what all endpoints can do in the time.
    pub load: f64,
    /// Every request begins at once, at the speed of the fastest endpoint.
    pub ideal: Level,
    /// All slots are one server, as fast as all of them together.
    pub capacity: Level,
    /// Each request goes where it will be finished first, which is known exactly; absent where that can't be
    /// foreseen.
    pub perfect: Option<Level>,
    /// As it was.
    pub actual: Level,
    /// The advice that follows.
    pub advice: Advice,
    /// Facts that are not known, and how they were replaced.
    pub missing: Vec<String>,
}

/// Requests at one level.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Level {
    /// From arrival to the answer, of good answers.
    pub latency: Quantiles,
    /// Share of requests without a good answer in their time.
    pub lost: f64,
}

/// The part of a fleet to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Advice {
    /// More is asked for than the endpoints can do, or most of the wait remains with perfect routing.
    AddMachines,
    /// Most of the wait would be gone with perfect routing.
    LookAtTheProxy,
    /// Requests hardly wait.
    Nothing,
    /// They do, and it is not known what perfect routing would do.
    Unknown,
}

impl Level {
    /// Of answers that took so long, and so many requests without one.
    pub fn new(latency: &Times, lost: u64) -> Self {
        let all = (latency.len() + lost).max(1);
        Self { latency: Quantiles::of(latency), lost: units::float(lost) / units::float(all) }
    }

    fn mean(&self) -> f64 {
        self.latency.mean
    }
}

impl FleetReport {
    /// The mean in its parts, in seconds: service at the fastest endpoint, lack of capacity, chance, routing.
    pub fn parts(&self) -> [f64; 4] {
        let (ideal, actual) = (self.ideal.mean(), self.actual.mean());
        // Those that are refused or given up take no part, so a level may be below the one before it.
        let capacity = self.capacity.mean().clamp(ideal, actual.max(ideal));
        let perfect = self.perfect.as_ref().map_or(capacity, Level::mean);
        let perfect = perfect.clamp(capacity, actual.max(capacity));
        [ideal, capacity - ideal, perfect - capacity, (actual - perfect).max(0.0)]
    }

    /// The same report with the advice that follows from it.
    #[must_use]
    pub fn advised(mut self) -> Self {
        let [ideal, capacity, chance, routing] = self.parts();
        let lost = |level: &Level| level.lost - self.ideal.lost;
        let perfect = self.perfect.as_ref().unwrap_or(&self.actual);
        self.advice = if lost(&self.capacity) >= MIN_LOST_SHARE {
            Advice::AddMachines
        } else if self.actual.lost - perfect.lost >= MIN_LOST_SHARE {
            Advice::LookAtTheProxy
        } else if capacity + chance + routing < MIN_WAIT_SHARE * ideal {
            Advice::Nothing
        } else if self.perfect.is_none() && routing > capacity {
            Advice::Unknown
        } else if routing > capacity + chance {
            Advice::LookAtTheProxy
        } else {
            Advice::AddMachines
        };
        self
    }

    /// As text, with a line break at the end.
    pub fn render(&self, style: Style) -> String {
        let mut out = String::new();
        // Writing to a string does not fail.
        let _ = self.write(&mut out, style);
        out
    }

    fn write(&self, out: &mut String, style: Style) -> std::fmt::Result {
        let pool = self.pool.as_ref().map(|pool| format!("pool {pool}: ")).unwrap_or_default();
        let head = format!(
            "  fleet      {pool}{} requests at {}, {} of the capacity",
            units::count(self.requests),
            endpoints(self.endpoints),
            units::percent(self.load)
        );
        writeln!(out, "\n{head}")?;
        let names =
            format!("  {:<11}{:>9}{:>9}{:>9}{:>9}{:>9}", "", "mean", "p50", "p99", "p99.9", "lost");
        writeln!(out, "{}", style.dim(&names))?;
        let rows = [
            ("ideal", Some(&self.ideal), "every request begins at once, at the fastest endpoint"),
            ("capacity", Some(&self.capacity), "all slots are one server"),
            ("perfect", self.perfect.as_ref(), "each goes where it will be finished first"),
            ("actual", Some(&self.actual), ""),
        ];
        for (name, level, note) in rows {
            let Some(level) = level else { continue };
            let it = &level.latency;
            let times = [it.mean, it.get("p50"), it.get("p99"), it.get("p99.9")];
            let times: String = times.iter().map(|time| format!("{:>9}", seconds(*time))).collect();
            let lost = units::percent(level.lost);
            let line = format!("  {name:<11}{times}{lost:>9}  {}", style.dim(note));
            writeln!(out, "{}", line.trim_end())?;
        }
        let [ideal, capacity, chance, routing] = self.parts().map(seconds);
        let chance = match &self.perfect {
            Some(_) => format!("{chance} chance, {routing} routing"),
            None => format!("{routing} chance and routing"),
        };
        // Means over different requests have no parts.
        if self.actual.lost < MIN_LOST_SHARE {
            writeln!(
                out,
                "  of the mean {ideal} are service, {capacity} lack of capacity, {chance}"
            )?;
        }
        writeln!(out, "  {}", style.bold(self.advice.text()))?;
        for missing in &self.missing {
            writeln!(out, "  not known: {missing}")?;
        }
        Ok(())
    }
}

impl Advice {
    /// In words.
    pub fn text(self) -> &'static str {
        match self {
            Self::AddMachines => "add machines: most of the wait would remain with perfect routing",
            Self::LookAtTheProxy => {
                "look at the proxy: most of the wait would be gone with perfect routing"
            }
            Self::Nothing => "nothing to do: requests hardly wait",
            Self::Unknown => "requests wait, and it is not known what perfect routing would do",
        }
    }
}

fn endpoints(n: usize) -> String {
    if n == 1 { "1 endpoint".to_owned() } else { format!("{} endpoints", units::count(n as u64)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(mean: f64, lost: f64) -> Level {
        Level { latency: Quantiles { mean, count: 1, ..Quantiles::default() }, lost }
    }

    fn report(means: [f64; 4], lost: [f64; 3]) -> FleetReport {
        let [ideal, capacity, perfect, actual] = means;
        FleetReport {
            pool: None,
            endpoints: 2,
            requests: 100,
            load: 0.8,
            ideal: level(ideal, 0.0),
            capacity: level(capacity, lost[0]),
            perfect: Some(level(perfect, lost[1])),
            actual: level(actual, lost[2]),
            advice: Advice::Nothing,
            missing: Vec::new(),
        }
        .advised()
    }

    #[test]
    fn the_advice_is_about_the_larger_part_of_the_wait() {
        let advice = |means| report(means, [0.0; 3]).advice;
        assert_eq!(advice([0.010, 0.010, 0.0104, 0.0108]), Advice::Nothing);
        assert_eq!(advice([0.010, 0.011, 0.015, 0.017]), Advice::AddMachines);
        assert_eq!(advice([0.010, 0.010, 0.011, 0.020]), Advice::LookAtTheProxy);
    }

    #[test]
    fn what_is_lost_counts_before_what_waits() {
        let means = [0.010, 0.010, 0.0101, 0.0102];
        assert_eq!(report(means, [0.3, 0.31, 0.31]).advice, Advice::AddMachines);
        assert_eq!(report(means, [0.0, 0.0, 0.05]).advice, Advice::LookAtTheProxy);
    }

    #[test]
    fn the_parts_add_up_even_where_a_level_is_below_the_one_before() {
        for means in [[0.010, 0.012, 0.011, 0.010], [0.010, 5.0, 0.02, 0.03]] {
            let report = report(means, [0.0; 3]);
            let parts = report.parts();
            assert!(parts.iter().all(|part| *part >= 0.0), "{parts:?}");
            assert!((parts.iter().sum::<f64>() - means[3]).abs() < 1e-9, "{parts:?}");
        }
        let text = report([0.010, 0.011, 0.015, 0.017], [0.0; 3]).render(Style::Plain);
        assert!(
            text.contains("10 ms are service") || text.contains("10.0 ms are service"),
            "{text}"
        );
    }
}
