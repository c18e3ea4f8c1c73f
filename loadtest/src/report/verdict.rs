//! Whether a run, or a part of it, reached its objectives.

use super::times::Times;
use crate::scenario::{Measure, Objective};
use crate::units;
use serde::{Deserialize, Serialize};

/// The figures that objectives are judged by: of a whole run, or of a part of it.
#[derive(Debug, Clone, Copy)]
pub struct Sample<'a> {
    /// Latencies of the successes.
    pub latency: &'a Times,
    /// Requests.
    pub total: u64,
    /// Successes.
    pub ok: u64,
    /// Time that was measured.
    pub seconds: f64,
}

/// An objective beside what was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evaluation {
    /// The objective.
    pub objective: Objective,
    /// The measured value; `None` if no request succeeded.
    pub value: Option<f64>,
    /// Whether it was reached.
    pub met: bool,
}

/// An objective's verdict.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Judged {
    /// The objective as it was given.
    pub objective: String,
    /// The measured value, formatted for people.
    pub measured: String,
    /// The same as a number.
    pub value: Option<f64>,
    /// Reached?
    pub met: bool,
}

impl Sample<'_> {
    /// The share of requests that did not succeed, 0 to 1.
    pub fn error_share(&self) -> f64 {
        match self.total {
            0 => 0.0,
            total => units::float(total - self.ok) / units::float(total),
        }
    }

    /// Compares `objective` with what was measured.
    pub fn judge(&self, objective: Objective) -> Evaluation {
        let latency = self.latency;
        let of_latency = |value: f64| (!latency.is_empty()).then_some(value);
        let value = match objective.measure {
            Measure::Quantile(quantile) => of_latency(latency.quantile(quantile)),
            Measure::Mean => of_latency(latency.mean()),
            Measure::Max => of_latency(latency.max()),
            Measure::ErrorShare => (self.total > 0).then(|| self.error_share()),
            Measure::ErrorCount => Some(units::float(self.total - self.ok)),
            Measure::Rate => (self.seconds > 0.0).then(|| units::float(self.ok) / self.seconds),
        };
        let met = value.is_some_and(|value| objective.comparison.holds(value, objective.bound));
        Evaluation { objective, value, met }
    }
}

impl From<Evaluation> for Judged {
    fn from(verdict: Evaluation) -> Self {
        let measured = verdict.value.map(|value| verdict.objective.format(value));
        Self {
            objective: verdict.objective.to_string(),
            measured: measured.unwrap_or_else(|| "nothing".to_owned()),
            value: verdict.value,
            met: verdict.met,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that fails may say so bluntly")]
    use super::*;
    use crate::plan::timeline::Timeline;
    use crate::report::outcome::{Finished, Outcome};
    use crate::report::record::Record;
    use std::time::Duration;

    fn record() -> Record {
        let timeline = Timeline { warm_up: Duration::ZERO, interval: Duration::from_secs(1) };
        let mut record = Record::default();
        for i in 1..=1000_u64 {
            let outcome = if i == 1000 { Outcome::refused(503, None) } else { Outcome::Ok(200) };
            let done = Duration::from_millis(i);
            let zero = Duration::ZERO;
            record.finish(
                timeline,
                &Finished {
                    intended: zero,
                    taken: zero,
                    sent: zero,
                    done,
                    outcome,
                    bytes_out: 0,
                    bytes_in: 0,
                },
            );
        }
        record
    }

    #[test]
    fn objectives_are_met_or_missed() {
        let record = record();
        for (text, met) in [
            ("p50<501ms", true),
            ("p50 < 400ms", false),
            ("p99.9<=999.9ms", true),
            ("max<1s", true),
            ("max<0.9s", false),
            ("mean>=490ms", true),
            ("errors<=0.1%", true),
            ("errors<0.1%", false),
            ("errors<2", true),
            ("errors<=0", false),
            ("rate>99/s", true),
            ("rate>100/s", false),
        ] {
            let objective: Objective = text.parse().unwrap();
            assert_eq!(record.sample(10.0).judge(objective).met, met, "{text}");
        }
    }

    #[test]
    fn a_run_without_a_success_meets_no_latency_objective() {
        let objective: Objective = "p99<50ms".parse().unwrap();
        assert!(!Record::default().sample(10.0).judge(objective).met);
        let errors: Objective = "errors<1%".parse().unwrap();
        assert!(!Record::default().sample(10.0).judge(errors).met);
    }
}
