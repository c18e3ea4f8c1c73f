//! Objectives: what a run must reach, `p99<50ms`, `errors<0.1%`, `rate>=490/s`.
//!
//! A load test in a deployment pipeline needs a verdict, not a table. An objective is one word, one
//! comparison and one value with its unit; it is met or missed, and the exit status says which.

use crate::units::{self, Rate, TimeSpan, UnitError};
use forebay_config::form::Shown;
use std::fmt;
use std::str::FromStr;

/// A measured quantity and the bound that it must keep.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Objective {
    /// The quantity.
    pub measure: Measure,
    /// The comparison.
    pub comparison: Comparison,
    /// The bound: seconds, a share from 0 to 1, a count or a rate, as the measure wants.
    pub bound: f64,
}

/// The quantity of an objective.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Measure {
    /// Latency of successes, seconds, at a quantile from 0 to 1.
    Quantile(f64),
    /// Mean latency of successes, seconds.
    Mean,
    /// Maximum latency of a success, seconds.
    Max,
    /// Share of requests that did not succeed.
    ErrorShare,
    /// Number of requests that did not succeed.
    ErrorCount,
    /// Successes a second.
    Rate,
}

/// The comparison of a measured value with the bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// `<`
    Less,
    /// `<=`
    AtMost,
    /// `>`
    Greater,
    /// `>=`
    AtLeast,
}

impl Objective {
    /// A value of this objective's measure as text.
    pub fn format(self, value: f64) -> String {
        match self.measure {
            Measure::Quantile(_) | Measure::Mean | Measure::Max => units::seconds(value),
            Measure::ErrorShare => units::percent(value),
            Measure::ErrorCount => units::count(units::whole(value)),
            Measure::Rate => Rate(value).to_string(),
        }
    }
}

impl Comparison {
    pub(crate) fn holds(self, value: f64, bound: f64) -> bool {
        match self {
            Self::Less => value < bound,
            Self::AtMost => value <= bound,
            Self::Greater => value > bound,
            Self::AtLeast => value >= bound,
        }
    }

    fn sign(self) -> &'static str {
        match self {
            Self::Less => "<",
            Self::AtMost => "<=",
            Self::Greater => ">",
            Self::AtLeast => ">=",
        }
    }
}

/// Why a text is no objective.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ObjectiveError {
    /// Not of the form word, comparison, value.
    #[error("expected an objective such as \"p99<50ms\" or \"errors<0.1%\", found \"{0}\"")]
    Form(String),
    /// A word that is not measured.
    #[error("expected p50 to p99.999, mean, max, errors or rate before the bound, found \"{0}\"")]
    Measure(String),
    /// A value that is not a count or a percentage.
    #[error("expected a percentage such as \"0.1%\" or a count, found \"{0}\"")]
    Errors(String),
    /// A value in a wrong unit.
    #[error(transparent)]
    Unit(#[from] UnitError),
}

impl FromStr for Objective {
    type Err = ObjectiveError;

    fn from_str(text: &str) -> Result<Self, ObjectiveError> {
        let form = || ObjectiveError::Form(text.to_owned());
        let at = text.find(['<', '>']).ok_or_else(form)?;
        let (word, rest) = (text[..at].trim(), &text[at..]);
        let (comparison, value) = [
            ("<=", Comparison::AtMost),
            (">=", Comparison::AtLeast),
            ("<", Comparison::Less),
            (">", Comparison::Greater),
        ]
        .into_iter()
        .find_map(|(sign, comparison)| Some((comparison, rest.strip_prefix(sign)?.trim())))
        .ok_or_else(form)?;
        let span = |value: &str| value.parse::<TimeSpan>().map(|span| span.0.as_secs_f64());
        let (measure, bound) = match word {
            "mean" => (Measure::Mean, span(value)?),
            "max" => (Measure::Max, span(value)?),
            "rate" => (Measure::Rate, value.parse::<Rate>()?.0),
            "errors" => errors(value)?,
            _ => {
                let quantile = word
                    .strip_prefix('p')
                    .and_then(|digits| digits.parse::<f64>().ok())
                    .filter(|percent| (0.0..100.0).contains(percent))
                    .ok_or_else(|| ObjectiveError::Measure(word.to_owned()))?;
                (Measure::Quantile(quantile / 100.0), span(value)?)
            }
        };
        Ok(Self { measure, comparison, bound })
    }
}

/// As it is written: `p99.9 < 50.0 ms`.
impl fmt::Display for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.measure, self.comparison.sign(), self.format(self.bound))
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // 99.9 is not exactly representable; rounding brings back what was written.
            Self::Quantile(quantile) => write!(f, "p{}", (quantile * 1e7).round() / 1e5),
            Self::Mean => f.write_str("mean"),
            Self::Max => f.write_str("max"),
            Self::ErrorShare | Self::ErrorCount => f.write_str("errors"),
            Self::Rate => f.write_str("rate"),
        }
    }
}

fn errors(value: &str) -> Result<(Measure, f64), ObjectiveError> {
    let wrong = || ObjectiveError::Errors(value.to_owned());
    let (measure, number, scale) = match value.strip_suffix('%') {
        Some(percent) => (Measure::ErrorShare, percent.trim(), 100.0),
        None => (Measure::ErrorCount, value, 1.0),
    };
    let bound: f64 = number.parse().map_err(|_| wrong())?;
    if bound.is_finite() && bound >= 0.0 { Ok((measure, bound / scale)) } else { Err(wrong()) }
}

forebay_config::from_text! {
    Objective = "an objective such as \"p99<50ms\" or \"errors<0.1%\"";
}

/// In a file: `"p99<0.05s"`.
impl Shown for Objective {
    const KIND: &'static str = "OBJECTIVE";

    fn shown(&self) -> String {
        let bound = match self.measure {
            Measure::Quantile(_) | Measure::Mean | Measure::Max => format!("{}s", self.bound),
            Measure::ErrorShare => format!("{}%", self.bound * 100.0),
            Measure::ErrorCount => self.bound.to_string(),
            Measure::Rate => format!("{}/s", self.bound),
        };
        format!("\"{}{}{bound}\"", self.measure, self.comparison.sign())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that fails may say so bluntly")]
    use super::*;

    #[test]
    fn objectives_are_written_as_they_are_read() {
        for (text, expected) in [
            ("p99<50ms", "p99 < 50.0 ms"),
            ("p99.9>=1.5s", "p99.9 >= 1.50 s"),
            ("errors<0.1%", "errors < 0.100 %"),
            ("errors<=5", "errors <= 5"),
            ("rate>=10k/s", "rate >= 10,000/s"),
        ] {
            assert_eq!(text.parse::<Objective>().unwrap().to_string(), expected);
        }
    }

    #[test]
    fn objectives_stand_in_a_file_as_they_are_read_there() {
        for text in
            ["p99<50ms", "p99.9>=1.5s", "mean<2us", "errors<0.1%", "errors<=5", "rate>10k/s"]
        {
            let objective: Objective = text.parse().unwrap();
            let shown = objective.shown();
            assert_eq!(shown.trim_matches('"').parse(), Ok(objective), "{shown}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_what_was_expected() {
        for (text, expected) in [
            ("p99", "expected an objective"),
            ("p99<50", "expected a span"),
            ("p100<5ms", "expected p50"),
            ("speed<5ms", "expected p50"),
            ("errors<few", "expected a percentage"),
            ("rate>5ms", "expected a rate"),
        ] {
            let error = text.parse::<Objective>().unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
