//! The load report: what an endpoint says of its own queue.
//!
//! A proxy that only counts what it sent itself is blind to everything else that an endpoint is
//! busy with. Endpoints therefore state their load on every answer, in the form that Envoy and
//! gRPC read (ORCA, `xds.data.orca.v3.OrcaLoadReport`), so that our workers are understood by
//! other proxies and other servers by ours. Three forms are in use: text, JSON and a protobuf
//! message (`BIN`); all become one [`LoadReport`].
//!
//! A report is a hint from the network. One that is damaged (a duplicate, a NaN, a negative, an
//! unknown key outside `named_metrics` and `utilization`) is dropped whole: half a report would
//! be believed like a whole one.

mod binary;

use crate::header;
use http::HeaderMap;
use serde_json::value::RawValue;
use std::fmt;

/// Longest report that is read, in bytes; ours have about 150.
pub const MAX_REPORT_BYTES: usize = 4096;
/// Most entries that are read.
const MAX_ENTRIES: usize = 64;

/// An endpoint's statement of its load, at the time of one answer.
///
/// Counts are requests. `None` means "not said", which is not zero.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LoadReport {
    /// Requests in flight: executing and queued.
    pub rif: Option<u32>,
    /// Requests queued only.
    pub queue: Option<u32>,
    /// Requests that run at once: executors x the rows that are worth joining, on average of what ran
    /// lately.
    pub slots: Option<u32>,
    /// Rows that are worth joining, on average of what ran lately: above 1 the endpoint works better
    /// if the next batch waits there while one runs.
    pub batch: Option<u32>,
    /// Requests in the batch that is open at the moment.
    pub forming: Option<u32>,
    /// Milliseconds until the open batch closes.
    pub close_in_ms: Option<f64>,
    /// Mean service time in milliseconds, of a batch where there are batches, at the present `rif`.
    pub lat_at_rif_ms: Option<f64>,
    /// Grows by one with every report of a process: an older report is recognised.
    pub seq: Option<u64>,
    /// Changes whenever the content of any model that it serves does, or which version is served by
    /// default: equal numbers of two endpoints mean equal content. Below 2^53, never 0.
    pub generation: Option<u64>,
    /// CPU use, 1.0 = everything that the endpoint may use.
    pub cpu_utilization: Option<f64>,
    /// Memory use, 0.0 to 1.0.
    pub mem_utilization: Option<f64>,
    /// The application's own measure of its use.
    pub application_utilization: Option<f64>,
}

/// Why a load report was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// Longer than [`MAX_REPORT_BYTES`], or more entries than are read.
    #[error("load report is too long")]
    TooLong,
    /// Not of the form `key=value`, JSON, or base64 of the message.
    #[error("load report is malformed")]
    Malformed,
    /// A key that is neither of ORCA's nor under `named_metrics.` or `utilization.`.
    #[error("load report has an unknown key")]
    UnknownKey,
    /// The same key twice.
    #[error("load report has a duplicate key")]
    Duplicate,
    /// NaN, infinite, negative, or not a number.
    #[error("load report has a value that is not a finite number of 0 or more")]
    BadValue,
}

impl ReportError {
    /// The word in metrics and logs.
    pub const fn cause(self) -> &'static str {
        match self {
            Self::TooLong => "too_long",
            Self::Malformed => "malformed",
            Self::UnknownKey => "unknown_key",
            Self::Duplicate => "duplicate",
            Self::BadValue => "bad_value",
        }
    }
}

impl LoadReport {
    /// Reads the report among the headers (or gRPC trailers) of an answer, if there is one. Of both
    /// headers the binary one counts, as in Envoy.
    ///
    /// # Errors
    /// Anything that makes the report doubtful, the same header twice among it; the caller counts
    /// it and goes on without.
    pub fn from_headers(headers: &HeaderMap) -> Result<Option<Self>, ReportError> {
        for (name, parse) in [
            (header::LOAD_REPORT_BIN, Self::parse_base64 as fn(&str) -> _),
            (header::LOAD_REPORT, Self::parse),
        ] {
            let mut values = headers.get_all(name).iter();
            let Some(value) = values.next() else { continue };
            if values.next().is_some() {
                return Err(ReportError::Duplicate);
            }
            return parse(value.to_str().map_err(|_| ReportError::Malformed)?).map(Some);
        }
        Ok(None)
    }

    /// Reads the value of the header `endpoint-load-metrics`: `TEXT k=v, …`, `JSON {…}` or
    /// `BIN <base64>`.
    ///
    /// The prefix may be missing, and `k:v` is taken for `k=v`: some servers send that.
    ///
    /// # Errors
    /// Anything that makes the report doubtful; the caller counts it and goes on without.
    pub fn parse(value: &str) -> Result<Self, ReportError> {
        if value.len() > MAX_REPORT_BYTES {
            return Err(ReportError::TooLong);
        }
        let value = value.trim();
        if let Some(text) = value.strip_prefix("TEXT ") {
            return Self::parse_text(text);
        }
        if let Some(json) = value.strip_prefix("JSON ") {
            return Self::parse_json(json);
        }
        if let Some(base64) = value.strip_prefix("BIN ") {
            return Self::parse_base64(base64);
        }
        if value.starts_with('{') { Self::parse_json(value) } else { Self::parse_text(value) }
    }

    fn parse_text(text: &str) -> Result<Self, ReportError> {
        let mut builder = Builder::default();
        for pair in text.split(',') {
            let (key, value) = pair.split_once(['=', ':']).ok_or(ReportError::Malformed)?;
            let value = value.trim().parse().map_err(|_| ReportError::BadValue)?;
            builder.entry(key.trim(), value)?;
        }
        Ok(builder.report)
    }

    fn parse_json(json: &str) -> Result<Self, ReportError> {
        let mut builder = Builder::default();
        for (key, value) in entries(json)?.0 {
            let key = snake_case(&key);
            if value.get().starts_with('{') {
                for (inner, value) in entries(value.get())?.0 {
                    builder.nested(key, &inner, number(value)?)?;
                }
            } else {
                builder.entry(key, number(value)?)?;
            }
        }
        Ok(builder.report)
    }

    /// The report as JSON, for those who ask with `endpoint-load-metrics-format: json`.
    pub fn to_json(&self) -> String {
        let mut top = serde_json::Map::new();
        let mut named = serde_json::Map::new();
        self.for_each(|key, value| {
            let value = serde_json::Number::from_f64(value).map(Into::into).unwrap_or_default();
            match key.strip_prefix("named_metrics.") {
                Some(name) => named.insert(name.to_owned(), value),
                None => top.insert(key.to_owned(), value),
            };
        });
        top.insert("named_metrics".to_owned(), named.into());
        format!("JSON {}", serde_json::Value::from(top))
    }

    #[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    fn for_each(&self, mut f: impl FnMut(&'static str, f64)) {
        let count = |n: Option<u32>| n.map(f64::from);
        for (key, value) in [
            ("cpu_utilization", self.cpu_utilization),
            ("mem_utilization", self.mem_utilization),
            ("application_utilization", self.application_utilization),
            ("named_metrics.rif", count(self.rif)),
            ("named_metrics.queue", count(self.queue)),
            ("named_metrics.slots", count(self.slots)),
            ("named_metrics.batch", count(self.batch)),
            ("named_metrics.forming", count(self.forming)),
            ("named_metrics.close_in_ms", self.close_in_ms),
            ("named_metrics.lat_at_rif_ms", self.lat_at_rif_ms),
            ("named_metrics.seq", self.seq.map(|n| n as f64)),
            ("named_metrics.generation", self.generation.map(|n| n as f64)),
        ] {
            if let Some(value) = value {
                f(key, value);
            }
        }
    }
}

/// The text form, prefix included: what our workers send.
impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TEXT ")?;
        let mut separator = "";
        let mut result = Ok(());
        self.for_each(|key, value| {
            if result.is_ok() {
                result = write!(f, "{separator}{key}={value}");
                separator = ", ";
            }
        });
        result
    }
}

/// The names that protobuf's own JSON has for the fields.
fn snake_case(key: &str) -> &str {
    match key {
        "cpuUtilization" => "cpu_utilization",
        "memUtilization" => "mem_utilization",
        "applicationUtilization" => "application_utilization",
        "rpsFractional" => "rps_fractional",
        "namedMetrics" => "named_metrics",
        "requestCost" => "request_cost",
        other => other,
    }
}

/// Entries of a JSON object in their order, duplicates kept so that they can be refused.
struct Entries<'a>(Vec<(String, &'a RawValue)>);

fn entries(json: &str) -> Result<Entries<'_>, ReportError> {
    serde_json::from_str(json).map_err(|_| ReportError::Malformed)
}

impl<'de> serde::Deserialize<'de> for Entries<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Entries<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    if entries.len() == MAX_ENTRIES {
                        return Err(serde::de::Error::custom("too many entries"));
                    }
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

fn number(value: &RawValue) -> Result<f64, ReportError> {
    value.get().parse().map_err(|_| ReportError::BadValue)
}

/// Collects entries, each key once.
#[derive(Default)]
struct Builder {
    report: LoadReport,
    entries: usize,
    /// Unknown keys: a duplicate of one is a sign of damage all the same.
    others: Vec<String>,
}

impl Builder {
    fn entry(&mut self, key: &str, value: f64) -> Result<(), ReportError> {
        if let Some((map, name)) = key.split_once('.') {
            return self.nested(map, name, value);
        }
        let value = self.check(value)?;
        match key {
            "cpu_utilization" => once(&mut self.report.cpu_utilization, value),
            "mem_utilization" => once(&mut self.report.mem_utilization, value),
            "application_utilization" => once(&mut self.report.application_utilization, value),
            "eps" | "rps_fractional" | "rps" => self.other("", key),
            _ => Err(ReportError::UnknownKey),
        }
    }

    fn nested(&mut self, map: &str, name: &str, value: f64) -> Result<(), ReportError> {
        let value = self.check(value)?;
        match map {
            "named_metrics" => {}
            "utilization" | "request_cost" => return self.other(map, name),
            _ => return Err(ReportError::UnknownKey),
        }
        let report = &mut self.report;
        match name {
            "rif" => once(&mut report.rif, count(value)?),
            // The second is vLLM's word for it.
            "queue" | "num_requests_waiting" => once(&mut report.queue, count(value)?),
            "slots" => once(&mut report.slots, count(value)?),
            "batch" => once(&mut report.batch, count(value)?),
            "forming" => once(&mut report.forming, count(value)?),
            "close_in_ms" => once(&mut report.close_in_ms, value),
            "lat_at_rif_ms" => once(&mut report.lat_at_rif_ms, value),
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked")]
            "seq" => once(&mut report.seq, value as u64),
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked")]
            "generation" => once(&mut report.generation, value as u64),
            _ => self.other(map, name),
        }
    }

    fn other(&mut self, map: &str, name: &str) -> Result<(), ReportError> {
        let key = format!("{map}.{name}");
        if self.others.contains(&key) {
            return Err(ReportError::Duplicate);
        }
        self.others.push(key);
        Ok(())
    }

    fn check(&mut self, value: f64) -> Result<f64, ReportError> {
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            return Err(ReportError::TooLong);
        }
        if value.is_finite() && value >= 0.0 { Ok(value) } else { Err(ReportError::BadValue) }
    }
}

fn once<T>(slot: &mut Option<T>, value: T) -> Result<(), ReportError> {
    if slot.replace(value).is_some() { Err(ReportError::Duplicate) } else { Ok(()) }
}

/// A count that no honest endpoint exceeds; a larger one would overflow what is computed from it.
fn count(value: f64) -> Result<u32, ReportError> {
    const MAX_VALUE: f64 = 1e9;
    if value > MAX_VALUE {
        return Err(ReportError::BadValue);
    }
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "0 <= value <= MAX_VALUE"
    )]
    Ok(value as u32)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test says its seed")]
    use super::*;

    pub(super) fn sample() -> LoadReport {
        LoadReport {
            rif: Some(4),
            queue: Some(2),
            slots: Some(2),
            batch: Some(3),
            lat_at_rif_ms: Some(12.5),
            seq: Some(9),
            ..LoadReport::default()
        }
    }

    #[test]
    fn what_is_written_is_read_back_in_every_form() {
        assert_eq!(LoadReport::parse(&sample().to_string()), Ok(sample()));
        assert_eq!(LoadReport::parse(&sample().to_json()), Ok(sample()));
        assert_eq!(LoadReport::parse(&format!("BIN {}", sample().to_base64())), Ok(sample()));
        assert_eq!(LoadReport::parse_base64(&sample().to_base64()), Ok(sample()));
        assert_eq!(LoadReport::parse_binary(&sample().to_binary()), Ok(sample()));
    }

    #[test]
    fn an_answer_may_bear_its_report_in_either_header() {
        let (text, base64) = (sample().to_string(), sample().to_base64());
        let read = |lines: &[(http::HeaderName, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.append(name, value.parse().unwrap());
            }
            LoadReport::from_headers(&headers)
        };
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[(header::LOAD_REPORT, &text)]), Ok(Some(sample())));
        assert_eq!(read(&[(header::LOAD_REPORT_BIN, &base64)]), Ok(Some(sample())));
        let both = [(header::LOAD_REPORT, "junk"), (header::LOAD_REPORT_BIN, &base64)];
        assert_eq!(read(&both), Ok(Some(sample())));
        let twice = [(header::LOAD_REPORT, text.as_str()), (header::LOAD_REPORT, &text)];
        assert_eq!(read(&twice), Err(ReportError::Duplicate));
    }

    #[test]
    fn other_servers_spellings_are_understood() {
        let expected =
            LoadReport { rif: Some(4), cpu_utilization: Some(0.3), ..Default::default() };
        for text in [
            "TEXT cpu_utilization=0.3, named_metrics.rif=4",
            "cpu_utilization=0.3,named_metrics.rif=4",
            "cpu_utilization:0.3, named_metrics.rif:4, named_metrics.kv_cache=0.5",
            r#"JSON {"cpu_utilization": 0.3, "named_metrics": {"rif": 4, "other": 1}}"#,
            r#"{"named_metrics":{"rif":4},"cpu_utilization":0.3,"rps_fractional":12}"#,
            r#"JSON {"cpuUtilization":0.3,"namedMetrics":{"rif":4},"rpsFractional":12}"#,
            "BIN CTMzMzMzM9M/Qg4KA3JpZhEAAAAAAAAQQA==",
        ] {
            assert_eq!(LoadReport::parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn vllms_word_for_its_queue_is_understood() {
        let text =
            "TEXT named_metrics.kv_cache_usage_perc=0.4, named_metrics.num_requests_waiting=7";
        let expected = LoadReport { queue: Some(7), ..Default::default() };
        assert_eq!(LoadReport::parse(text), Ok(expected));
    }

    #[test]
    fn a_doubtful_report_is_dropped_whole() {
        use ReportError::*;
        for (text, error) in [
            ("TEXT named_metrics.rif=NaN", BadValue),
            ("TEXT named_metrics.rif=inf", BadValue),
            ("TEXT named_metrics.rif=-1", BadValue),
            ("TEXT named_metrics.rif=1e30", BadValue),
            ("TEXT named_metrics.rif=4, named_metrics.rif=5", Duplicate),
            (r#"JSON {"named_metrics":{"rif":4,"rif":5}}"#, Duplicate),
            ("TEXT nonsense=1", UnknownKey),
            ("TEXT rif", Malformed),
            ("", Malformed),
            ("JSON {", Malformed),
            (r#"JSON {"named_metrics":{"rif":"4"}}"#, BadValue),
            ("BIN AAAA", Malformed),
            ("BIN ", Malformed),
            ("BIN CTMz*", Malformed),
            ("TEXT named_metrics.kv=1, named_metrics.kv=1", Duplicate),
            ("TEXT eps=1, eps=1", Duplicate),
            ("TEXT cpu_utilization=0.1=0.2", BadValue),
            (r#"JSON {"cpuUtilization":1,"cpu_utilization":1}"#, Duplicate),
            (r#"JSON {"named_metrics":{"rif":1e999}}"#, BadValue),
        ] {
            assert_eq!(LoadReport::parse(text), Err(error), "{text}");
        }
        assert_eq!(LoadReport::parse(&"x".repeat(5000)), Err(TooLong));
        assert_eq!(LoadReport::parse_base64(&"A".repeat(5000)), Err(TooLong));
        assert_eq!(LoadReport::parse_binary(&[0; 5000]), Err(TooLong));
        let many: Vec<_> = (0..=MAX_ENTRIES).map(|n| format!("named_metrics.m{n}=1")).collect();
        assert_eq!(LoadReport::parse(&many.join(",")), Err(TooLong));
    }

    #[test]
    fn no_damage_makes_a_report_that_is_not_a_number() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut bin = sample().to_binary();
        let forms = [sample().to_string(), sample().to_json(), sample().to_base64()];
        for round in 0..30_000 {
            let mut text = forms[round % 3].clone().into_bytes();
            for bytes in [&mut text, &mut bin] {
                for _ in 0..rng.usize(1..4) {
                    let at = rng.usize(..bytes.len());
                    match rng.u8(..3) {
                        0 => bytes[at] = rng.u8(..),
                        1 => bytes.insert(at, rng.u8(..)),
                        _ => bytes.truncate(at.max(1)),
                    }
                }
            }
            let damaged = String::from_utf8_lossy(&text).into_owned();
            for report in [
                LoadReport::parse(&damaged),
                LoadReport::parse_base64(&damaged),
                LoadReport::parse_binary(&bin),
            ] {
                let Ok(report) = report else { continue };
                report.for_each(|key, value| {
                    assert!(value.is_finite() && value >= 0.0, "{key}={value} seed {seed}");
                });
            }
            bin = sample().to_binary();
        }
    }
}
