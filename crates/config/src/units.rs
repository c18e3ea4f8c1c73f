//! Quantities as people write and read them: `250ms`, `500/s`, `0.1%`, `4.21 ms`.
//!
//! A bare number where a unit is due is the classic way to test for 30 milliseconds instead of 30
//! seconds. Here the unit is part of the value: without one it is refused.

use crate::value::FromToml;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;
use toml::de::DeValue;

/// Longest duration that is accepted: a year. A longer one is a typing error, and overflows clocks.
const MAX_DURATION: Duration = Duration::from_secs(366 * 24 * 3600);
/// Highest rate that is accepted, per second: above it one arrival is less than 100 ns long.
const MAX_RATE: f64 = 1e7;
/// Most bytes: a tebibyte, exact as a float, and beyond any body, queue or cache.
const MAX_BYTE_SIZE: f64 = 1_099_511_627_776.0;

/// Units of durations, with the seconds of each.
const DURATION_UNITS: &[(&str, f64)] = &[
    ("ns", 1e-9),
    ("us", 1e-6),
    ("µs", 1e-6),
    ("ms", 1e-3),
    ("s", 1.0),
    ("m", 60.0),
    ("min", 60.0),
    ("h", 3600.0),
    ("d", 86400.0),
];

/// A duration, written `250us`, `250ms`, `1.5s`, `2m`, `1h`, as a flag or a report has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct TimeSpan(pub Duration);

/// Events per second, written `500/s`, `30/m`, `10k/s`.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Rate(pub f64);

/// A share of a whole, 0 to 1, written `5%`.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Ratio(pub f64);

/// Why a quantity was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a duration.
    #[error("expected a span of time such as \"250ms\", \"30s\" or \"2m\", found \"{0}\"")]
    TimeSpan(String),
    /// Not a rate.
    #[error("expected a rate such as \"500/s\", \"10k/s\" or \"30/m\", found \"{0}\"")]
    Rate(String),
    /// Not a ratio.
    #[error("expected a percentage such as \"5%\" or \"0.1%\", found \"{0}\"")]
    Ratio(String),
}

fn duration(text: &str) -> Option<Duration> {
    let duration = Duration::try_from_secs_f64(with_unit(text, DURATION_UNITS)?).ok()?;
    (duration <= MAX_DURATION).then_some(duration)
}

fn rate(text: &str) -> Option<f64> {
    let (count, per) = text.split_once('/')?;
    let (number, scale) = split_number(count)?;
    let scale = match scale {
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        _ => return None,
    };
    let seconds = match per.trim() {
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    Some(number * scale / seconds).filter(|rate| (0.0..=MAX_RATE).contains(rate))
}

fn ratio(text: &str) -> Option<f64> {
    let percent = with_unit(text, &[("%", 1.0)])?;
    (percent <= 100.0).then_some(percent / 100.0)
}

impl FromStr for TimeSpan {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        duration(text).map(Self).ok_or_else(|| UnitError::TimeSpan(text.to_owned()))
    }
}

impl FromStr for Rate {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        rate(text).map(Self).ok_or_else(|| UnitError::Rate(text.to_owned()))
    }
}

impl FromStr for Ratio {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        ratio(text).map(Self).ok_or_else(|| UnitError::Ratio(text.to_owned()))
    }
}

crate::from_text! {
    TimeSpan = "a span of time such as \"250ms\", \"30s\" or \"2m\"";
    Rate = "a rate such as \"500/s\", \"10k/s\" or \"30/m\"";
    Ratio = "a share from \"0%\" to \"100%\"";
}

impl FromToml for Duration {
    const EXPECTED: &'static str = "a duration such as \"250ms\", \"10s\" or \"5m\"";
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Option<String>> {
        value.as_str().and_then(duration).ok_or(None)
    }
}

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl FromToml for ByteSize {
    const EXPECTED: &'static str = "a size such as \"64KiB\" or \"16MiB\"";
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Option<String>> {
        const UNITS: &[(&str, f64)] = &[
            ("KiB", 1024.0),
            ("MiB", 1024.0 * 1024.0),
            ("GiB", 1024.0 * 1024.0 * 1024.0),
            ("kB", 1e3),
            ("MB", 1e6),
            ("GB", 1e9),
            ("B", 1.0),
        ];
        let text = value.as_str().ok_or(None)?;
        let bytes = with_unit(text, UNITS).filter(|bytes| *bytes <= MAX_BYTE_SIZE).ok_or(None)?;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded above")]
        Ok(Self(bytes as u64))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        match units.iter().find(|(size, _)| self.0 >= *size && self.0.is_multiple_of(*size)) {
            Some((size, unit)) => write!(f, "\"{}{unit}\"", self.0 / size),
            None => write!(f, "\"{}B\"", self.0),
        }
    }
}

/// Bytes per second.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct ByteRate(pub f64);

impl FromToml for ByteRate {
    const EXPECTED: &'static str = "a rate such as \"16KiB/s\"";
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Option<String>> {
        const UNITS: &[(&str, f64)] = &[
            ("KiB/s", 1024.0),
            ("MiB/s", 1024.0 * 1024.0),
            ("kB/s", 1e3),
            ("MB/s", 1e6),
            ("B/s", 1.0),
        ];
        with_unit(value.as_str().ok_or(None)?, UNITS).map(Self).ok_or(None)
    }
}

/// Three significant digits and the unit that suits: `842 us`, `4.21 ms`, `31.5 s`.
impl fmt::Display for TimeSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&seconds(self.0.as_secs_f64()))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/s", decimal(self.0)))
    }
}

/// A number of seconds as text, see [`TimeSpan`].
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

/// Nanoseconds of a span; a span is at most [`MAX_DURATION`], which fits 584 times.
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

/// `"12.5ms"` -> 12.5 x the factor of `ms`. The unit is due; the number is finite and not negative.
fn with_unit(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let (number, unit) = split_number(text)?;
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    Some(number * factor).filter(|n| n.is_finite())
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
            assert_eq!(text.parse::<TimeSpan>().unwrap().0.as_secs_f64(), expected, "{text}");
        }
        for (text, expected) in [("500/s", 500.0), ("10k/s", 10_000.0), ("30/m", 0.5)] {
            assert_eq!(text.parse::<Rate>().unwrap().0, expected, "{text}");
        }
        for text in ["", "30", "s", "-1s", "1e9h", "1..2s", "NaNs", "5 parsecs", "9999999999h"] {
            assert!(text.parse::<TimeSpan>().is_err(), "{text}");
        }
        for (text, expected) in [("5%", 0.05), ("0.1 %", 0.001), ("100%", 1.0)] {
            assert_eq!(text.parse::<Ratio>().unwrap().0, expected, "{text}");
        }
        for text in ["", "5", "%", "-5%", "101%", "5 percent"] {
            assert!(text.parse::<Ratio>().is_err(), "{text}");
        }
        for text in ["", "500", "500/", "/s", "-5/s", "1G/s", "99999999/s"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_file_and_a_flag_read_the_same_durations() {
        for unit in ["ns", "us", "µs", "ms", "s", "m", "min", "h", "d", "", "w", "S"] {
            let text = format!("7{unit}");
            let source = format!("a = {text:?}");
            let document = crate::Document::parse(&source);
            let in_file = document.root().get::<Duration>("a");
            assert_eq!(text.parse::<TimeSpan>().ok().map(|span| span.0), in_file, "{text}");
            assert_eq!(in_file.is_some(), DURATION_UNITS.iter().any(|(name, _)| *name == unit));
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
