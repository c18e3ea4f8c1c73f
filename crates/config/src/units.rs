//! Quantities as people write and read them: `250ms`, `500/s`, `0.1%`, `4.21 ms`.
//!
//! A bare number where a unit is due is the classic way to test for 30 milliseconds instead of 30
//! seconds. Here the unit is part of the value: without one it is refused.

use crate::from_text;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Longest span that is accepted: a year. What is longer is a typing error, and would overflow.
const LONGEST: f64 = 366.0 * 86_400.0;
/// Highest rate that is accepted, per second: above it one arrival is less than 100 ns long.
const HIGHEST_RATE: f64 = 1e7;

/// A span of time, written `250us`, `250ms`, `1.5s`, `2m`, `1h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Span(pub Duration);

/// Events per second, written `500/s`, `30/m`, `10k/s`.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Rate(pub f64);

/// A share of one, written `5%`.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Share(pub f64);

/// Why a quantity was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a span of time.
    #[error("expected a span of time such as \"250ms\", \"30s\" or \"2m\", found \"{0}\"")]
    Span(String),
    /// Not a rate.
    #[error("expected a rate such as \"500/s\", \"10k/s\" or \"30/m\", found \"{0}\"")]
    Rate(String),
    /// Not a share.
    #[error("expected a percentage such as \"5%\" or \"0.1%\", found \"{0}\"")]
    Share(String),
}

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let wrong = || UnitError::Span(text.to_owned());
        let (number, unit) = split_number(text).ok_or_else(wrong)?;
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" | "min" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        } * number;
        if (0.0..=LONGEST).contains(&seconds) {
            Ok(Self(Duration::from_secs_f64(seconds)))
        } else {
            Err(wrong())
        }
    }
}

impl FromStr for Rate {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let wrong = || UnitError::Rate(text.to_owned());
        let (count, per) = text.split_once('/').ok_or_else(wrong)?;
        let (number, scale) = split_number(count).ok_or_else(wrong)?;
        let scale = match scale {
            "" => 1.0,
            "k" => 1e3,
            "M" => 1e6,
            _ => return Err(wrong()),
        };
        let seconds = match per.trim() {
            "s" => 1.0,
            "m" | "min" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        let rate = number * scale / seconds;
        if (0.0..=HIGHEST_RATE).contains(&rate) { Ok(Self(rate)) } else { Err(wrong()) }
    }
}

from_text! {
    Span = "a span of time such as \"250ms\", \"30s\" or \"2m\"";
    Share = "a percentage such as \"20%\"";
    Rate = "a rate such as \"500/s\", \"10k/s\" or \"30/m\"";
}

/// Three significant digits and the unit that suits: `842 us`, `4.21 ms`, `31.5 s`.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&seconds(self.0.as_secs_f64()))
    }
}

impl FromStr for Share {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let percent = split_number(text).filter(|(_, unit)| *unit == "%").map(|(number, _)| number);
        let percent = percent.filter(|percent| (0.0..=100.0).contains(percent));
        percent
            .map(|percent| Self(percent / 100.0))
            .ok_or_else(|| UnitError::Share(text.to_owned()))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/s", decimal(self.0)))
    }
}

/// A number of seconds as text, see [`Span`].
pub fn seconds(value: f64) -> String {
    let (scaled, unit) = match value {
        v if v <= 0.0 => return "0 s".to_owned(),
        v if v < 999.5e-6 => (v * 1e6, "us"),
        v if v < 999.5e-3 => (v * 1e3, "ms"),
        v => (v, "s"),
    };
    format!("{} {unit}", three_digits(scaled))
}

/// A whole number with thousands apart: `15,003`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number of things a second: whole above 1,000, three digits below.
pub fn decimal(value: f64) -> String {
    if value < 999.5 {
        let text = three_digits(value);
        return match text.strip_suffix(".00").or_else(|| text.strip_suffix(".0")) {
            Some(whole) => whole.to_owned(),
            None => text,
        };
    }
    count(whole(value))
}

/// A share of one as per cent: `0.013 %`.
pub fn percent(share: f64) -> String {
    let text = match share * 100.0 {
        p if p <= 0.0 => "0".to_owned(),
        p if p < 0.001 => "<0.001".to_owned(),
        p if p < 1.0 => format!("{p:.3}"),
        p => format!("{p:.1}"),
    };
    format!("{text} %")
}

/// Nanoseconds of a span; a span is at most [`LONGEST`], which fits 584 times.
#[allow(clippy::cast_possible_truncation, reason = "u64 nanoseconds are 584 years")]
pub fn nanos(span: Duration) -> u64 {
    span.as_nanos() as u64
}

/// Nanoseconds of a number of seconds, 0 for what is negative or not a number.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
pub fn nanos_of(seconds: f64) -> u64 {
    (seconds * 1e9).round() as u64
}

/// The nearest whole number, 0 for what is negative or not a number.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
pub fn whole(value: f64) -> u64 {
    value.round() as u64
}

/// A count as a number to calculate with.
#[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
pub fn float(count: u64) -> f64 {
    count as f64
}

fn three_digits(value: f64) -> String {
    match value {
        v if v < 9.995 => format!("{v:.2}"),
        v if v < 99.95 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}

fn split_number(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number = text[..end].parse().ok()?;
    Some((number, text[end..].trim_start()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that fails may say so bluntly")]
    use super::*;

    #[test]
    fn spans_and_rates_are_read_with_their_units_only() {
        for (text, expected) in
            [("250us", 0.000_25), ("250ms", 0.25), ("1.5s", 1.5), ("2m", 120.0), ("1 h", 3600.0)]
        {
            assert_eq!(text.parse::<Span>().unwrap().0.as_secs_f64(), expected, "{text}");
        }
        for (text, expected) in [("500/s", 500.0), ("10k/s", 10_000.0), ("30/m", 0.5)] {
            assert_eq!(text.parse::<Rate>().unwrap().0, expected, "{text}");
        }
        for text in ["", "30", "s", "-1s", "1e9h", "1..2s", "NaNs", "5 parsecs", "9999999999h"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
        for (text, expected) in [("5%", 0.05), ("0.1 %", 0.001), ("100%", 1.0)] {
            assert_eq!(text.parse::<Share>().unwrap().0, expected, "{text}");
        }
        for text in ["", "5", "%", "-5%", "101%", "5 percent"] {
            assert!(text.parse::<Share>().is_err(), "{text}");
        }
        for text in ["", "500", "500/", "/s", "-5/s", "1G/s", "99999999/s"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }

    #[test]
    fn quantities_are_written_with_three_digits() {
        for (value, expected) in [
            (0.0, "0 s"),
            (0.000_000_8, "0.80 us"),
            (0.000_842, "842 us"),
            (0.000_999_9, "1.00 ms"),
            (0.004_214, "4.21 ms"),
            (0.099_99, "100 ms"),
            (31.54, "31.5 s"),
        ] {
            assert_eq!(seconds(value), expected);
        }
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(decimal(500.0), "500");
        assert_eq!(decimal(12_345.6), "12,346");
        assert_eq!(percent(0.000_13), "0.013 %");
        assert_eq!(percent(0.5), "50.0 %");
    }
}
