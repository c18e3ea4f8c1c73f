//! The load report: what an endpoint says of its own queue.
//!
//! A proxy that only counts what it sent itself is blind to everything else that an endpoint is
//! busy with. Endpoints therefore state their load on every answer, in the form that Envoy and
//! gRPC read (ORCA, `xds.data.orca.v3.OrcaLoadReport`), so that our workers are understood by
//! other proxies and other servers by ours.
//!
//! A report is a hint from the network. One that is damaged (a duplicate, a NaN, a negative, an
//! unknown key outside `named_metrics` and `utilization`) is dropped whole: half a report would
//! be believed like a whole one.

mod binary;

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
    /// Requests that can run at once: instances x maximal batch.
    pub slots: Option<u32>,
    /// Requests in the batch that is open at the moment.
    pub forming: Option<u32>,
    /// Milliseconds until the open batch closes.
    pub close_in_ms: Option<f64>,
    /// Mean service time in milliseconds at the present `rif`.
    pub lat_at_rif_ms: Option<f64>,
    /// Grows by one with every report of a process: an older report is recognised.
    pub seq: Option<u64>,
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
    /// Not of the form `key=value`, JSON or the binary form.
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

impl LoadReport {
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
            if value.get().starts_with('{') {
                for (inner, value) in entries(value.get())?.0 {
                    builder.nested(&key, &inner, number(value)?)?;
                }
            } else {
                builder.entry(&key, number(value)?)?;
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
            ("named_metrics.forming", count(self.forming)),
            ("named_metrics.close_in_ms", self.close_in_ms),
            ("named_metrics.lat_at_rif_ms", self.lat_at_rif_ms),
            ("named_metrics.seq", self.seq.map(|n| n as f64)),
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

/// Which of our own keys were seen; duplicates of foreign ones do no harm, nobody reads them.
#[derive(Default)]
struct Builder {
    report: LoadReport,
    entries: usize,
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
            "eps" | "rps_fractional" | "rps" => Ok(()),
            _ => Err(ReportError::UnknownKey),
        }
    }

    fn nested(&mut self, map: &str, name: &str, value: f64) -> Result<(), ReportError> {
        let value = self.check(value)?;
        match map {
            "named_metrics" => {}
            "utilization" | "request_cost" => return Ok(()),
            _ => return Err(ReportError::UnknownKey),
        }
        let report = &mut self.report;
        match name {
            "rif" => once(&mut report.rif, count(value)?),
            "queue" => once(&mut report.queue, count(value)?),
            "slots" => once(&mut report.slots, count(value)?),
            "forming" => once(&mut report.forming, count(value)?),
            "close_in_ms" => once(&mut report.close_in_ms, value),
            "lat_at_rif_ms" => once(&mut report.lat_at_rif_ms, value),
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked")]
            "seq" => once(&mut report.seq, value as u64),
            _ => Ok(()),
        }
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
    const MOST: f64 = 1e9;
    if value > MOST {
        return Err(ReportError::BadValue);
    }
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "0 <= value <= MOST"
    )]
    Ok(value as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> LoadReport {
        LoadReport {
            rif: Some(4),
            queue: Some(2),
            slots: Some(2),
            lat_at_rif_ms: Some(12.5),
            seq: Some(9),
            ..LoadReport::default()
        }
    }

    #[test]
    fn what_is_written_is_read_back_in_both_forms() {
        assert_eq!(LoadReport::parse(&sample().to_string()), Ok(sample()));
        assert_eq!(LoadReport::parse(&sample().to_json()), Ok(sample()));
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
        ] {
            assert_eq!(LoadReport::parse(text), Ok(expected), "{text}");
        }
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
        ] {
            assert_eq!(LoadReport::parse(text), Err(error), "{text}");
        }
        assert_eq!(LoadReport::parse(&"x".repeat(5000)), Err(TooLong));
    }
}
