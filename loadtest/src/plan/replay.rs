//! Arrival times from an access log: yesterday's peak, again, against today's binary.
//!
//! Only times, models and paths are taken. Bodies are not in the log, and should not be. forebay's log is
//! written when requests end; the replay uses the times when they came.

use chrono::DateTime;
use forebay_protocol::oip::{self, Call};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// Maximum number of lines that are read.
const MAX_LINES: usize = 10_000_000;
/// Maximum length of a line, in bytes: one with 32 recorded decisions between 16 candidates each has a third of it.
const MAX_LINE: u64 = 1024 * 1024;

/// One request of a log.
#[derive(Debug, Clone, PartialEq)]
pub struct LogLine {
    /// Its arrival: seconds from an arbitrary but fixed moment.
    pub time: f64,
    /// The model that was asked for, if the log says so.
    pub model: Option<String>,
    /// The path that was asked for, if the log says so; without the query.
    pub path: Option<String>,
}

impl LogLine {
    /// Whether it is a question to a model, as far as the log tells: no metadata, no probe.
    pub fn is_inference(&self) -> bool {
        let Some(path) = &self.path else { return true };
        oip::Path::parse(path).is_some_and(|path| path.call == Call::Infer)
    }
}

/// Why a log can't be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The file can't be read.
    #[error(transparent)]
    Read(#[from] std::io::Error),
    /// A line is not a JSON object with a time.
    #[error("line {0}: expected a JSON object with \"time\" (seconds or RFC 3339), found \"{1}\"")]
    Line(usize, String),
    /// Nothing in it.
    #[error("expected at least one request, found an empty log")]
    Empty,
    /// More than can be held.
    #[error("expected at most {MAX_LINES} lines, found more")]
    TooLong,
}

/// Reads a log of JSON lines and sorts it by arrival.
///
/// A line with `total_us`, as forebay writes it, has in `time` the moment when the request ended.
///
/// # Errors
/// The file can't be read, a line has no time, or there are none or too many.
pub fn read(path: &Path) -> Result<Vec<LogLine>, ReplayError> {
    let mut lines = each_line(path, parse)?;
    lines.sort_by(|a, b| a.time.total_cmp(&b.time));
    Ok(lines)
}

/// Reads a log of JSON lines in its own order; `parse` gives the meaning of one, or nothing if it has none.
///
/// # Errors
/// As for [`read`].
pub(crate) fn each_line<T>(
    path: &Path,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Vec<T>, ReplayError> {
    let mut lines = Vec::new();
    let mut reader = BufReader::new(std::fs::File::open(path)?);
    let mut text = String::new();
    for number in 1.. {
        text.clear();
        if reader.by_ref().take(MAX_LINE).read_line(&mut text)? == 0 {
            break;
        }
        if text.trim().is_empty() {
            continue;
        }
        if lines.len() == MAX_LINES {
            return Err(ReplayError::TooLong);
        }
        let line = parse(&text)
            .ok_or_else(|| ReplayError::Line(number, text.trim_end().chars().take(60).collect()))?;
        lines.push(line);
    }
    if lines.is_empty() {
        return Err(ReplayError::Empty);
    }
    Ok(lines)
}

fn parse(text: &str) -> Option<LogLine> {
    let value: Value = serde_json::from_str(text).ok()?;
    let written = match ["time", "timestamp", "ts"].iter().find_map(|key| value.get(key))? {
        Value::Number(seconds) => seconds.as_f64()?,
        Value::String(text) => rfc3339(text)?,
        _ => return None,
    };
    let took = value.get("total_us").and_then(Value::as_f64).unwrap_or(0.0) / 1e6;
    let text = |key| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let time = written - took;
    time.is_finite().then(|| LogLine { time, model: text("model"), path: text("path") })
}

/// Seconds since 1970 of a time such as `2026-03-01T12:30:00.25+01:00`.
pub(crate) fn rfc3339(text: &str) -> Option<f64> {
    let time = DateTime::parse_from_rfc3339(text).ok()?;
    Some(seconds(time.timestamp()) + f64::from(time.timestamp_subsec_nanos()) / 1e9)
}

#[allow(clippy::cast_precision_loss, reason = "years of four digits have 38 bits of seconds")]
fn seconds(whole: i64) -> f64 {
    whole as f64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that fails may say so bluntly")]
    use super::*;

    #[test]
    fn times_are_read_as_seconds_and_as_rfc_3339() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", 0.0),
            ("2000-02-29T12:00:00Z", 951_825_600.0),
            ("2026-03-01T12:30:00.25+01:00", 1_772_364_600.25),
            ("2026-03-01T06:00:00.25-05:30", 1_772_364_600.25),
        ] {
            assert_eq!(rfc3339(text), Some(expected), "{text}");
        }
        for text in [
            "",
            "yesterday",
            "2026-03-01",
            "2026-03-01T12:30:00",
            "2026-03-01T12:30:xxZ",
            "2026-03-01T12:30:00+99999999:00",
        ] {
            assert_eq!(rfc3339(text), None, "{text}");
        }
        let line = parse(r#"{"ts": 5.5, "model": "magika", "status": 200}"#).unwrap();
        assert_eq!(line, LogLine { time: 5.5, model: Some("magika".to_owned()), path: None });
    }

    #[test]
    fn a_line_of_forebays_own_log_is_replayed_from_its_arrival() {
        let line = parse(
            r#"{"time":"2026-03-01T12:00:01.500Z","request_id":"x","client":null,"method":"POST",
            "path":"/v2/models/magika/infer","status":200,"reason":"ok","model":"magika",
            "attempts":1,"total_us":250000,"forward_us":240000,"error":null}"#,
        )
        .unwrap();
        let arrival = rfc3339("2026-03-01T12:00:01.250Z").unwrap();
        assert!((line.time - arrival).abs() < 1e-6, "{line:?}");
        assert_eq!(line.model.as_deref(), Some("magika"));
        assert!(line.is_inference());
        let probe = parse(r#"{"time":1,"path":"/v2/health/ready","model":null}"#).unwrap();
        assert!(!probe.is_inference());
        assert_eq!(parse(r#"{"time":"soon","total_us":1}"#), None);
    }

    #[test]
    fn a_log_is_sorted_by_time_and_a_bad_line_is_named() {
        let directory = std::env::temp_dir().join(format!("forebay-replay-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let file = directory.join("log");
        std::fs::write(&file, "{\"time\":2}\n\n{\"time\":1}\n").unwrap();
        let times: Vec<f64> = read(&file).unwrap().iter().map(|line| line.time).collect();
        assert_eq!(times, [1.0, 2.0]);
        std::fs::write(&file, "{\"time\":2}\n{\"tim\":1}\n").unwrap();
        assert!(read(&file).unwrap_err().to_string().starts_with("line 2: expected"));
        std::fs::write(&file, "").unwrap();
        assert!(matches!(read(&file), Err(ReplayError::Empty)));
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
