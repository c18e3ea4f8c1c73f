//! The access log: one JSON line a request, written without making a request wait.
//!
//! A disk that is full or slow must not slow down inference, so lines go through a
//! [`LineWriter`]: it drops and counts lines rather than let a request wait.

use crate::config::AccessLog;
use crate::pool::steps::StepLog;
use chrono::{DateTime, SecondsFormat, Utc};
use forebay_process::writer::{LineWriter, Lost, Settings, Target};
use serde::Serialize;
use std::io;
use std::time::{Duration, SystemTime};

const SETTINGS: Settings = Settings {
    name: "access-log",
    lines: 16 * 1024,
    bytes: 16 * 1024 * 1024,
    // Far below what anyone watches a log with; the queue holds what comes meanwhile.
    gather: Duration::from_millis(20),
    tick: None,
};

/// Longest model name or path in a log line, in bytes.
const MAX_FIELD: usize = 256;

/// The beginning of a text, as long as a field may be.
pub fn shortened(text: &str) -> &str {
    let mut end = text.len().min(MAX_FIELD);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// One finished request. Times are microseconds, sizes bytes.
#[derive(Debug, Default, Serialize)]
pub struct Entry<'a> {
    /// End of the request, UTC.
    pub time: String,
    /// `x-request-id`.
    pub request_id: &'a str,
    /// Trace id of `traceparent`.
    pub trace_id: &'a str,
    /// Address of the client.
    pub client: Option<String>,
    /// TLS version, such as `1.3`; null without TLS.
    pub tls: Option<&'a str>,
    /// HTTP method.
    pub method: &'a str,
    /// Path without the query.
    pub path: &'a str,
    /// HTTP status; 0 if the client got no answer.
    pub status: u16,
    /// Status of a gRPC call, whose HTTP status is always 200.
    pub grpc_status: Option<u8>,
    /// `ok`, or the code of the refusal.
    pub reason: &'static str,
    /// Name of the route.
    pub route: Option<&'a str>,
    /// Name of the variant.
    pub variant: Option<&'a str>,
    /// The way to the variant, of a route that is split: `drawn` (at random), `sticky` (by the client's key),
    /// `asked` (by `x-forebay-variant`), `moved` (another was drawn and has no endpoint) or `restricted` (not
    /// every variant can answer a request of this form).
    pub assignment: Option<&'static str>,
    /// Weight in thousandths that the variant was drawn with; null if weights did not decide.
    pub weight: Option<u32>,
    /// Name of its pool.
    pub pool: Option<&'a str>,
    /// Model named by the request.
    pub model: Option<&'a str>,
    /// Version named by the request.
    pub version: Option<&'a str>,
    /// `high`, `normal` or `batch`.
    pub priority: &'static str,
    /// `buffered` (held in memory) or `streamed`.
    pub mode: Option<&'static str>,
    /// The endpoint that was tried last.
    pub endpoint: Option<&'a str>,
    /// Number of requests that this endpoint can run at once; null if unknown.
    pub slots: Option<u32>,
    /// Number of attempts.
    pub attempts: usize,
    /// Outcome of a hedge: `won`, `lost` or `failed`; null without one.
    pub hedged: Option<&'static str>,
    /// Reason for which a fallback answered; null if the requested variant did.
    pub degraded: Option<&'static str>,
    /// The part of the cache: `hit`, `hit:shared` (from the shared store), `stale` (a kept answer whose time was up), `absent` (the model is known not to
    /// be there), `rows:KEPT/ALL` (the model was asked for the other rows of the batch), `join`
    /// (an equal request was under way), `miss` or `bypass:REASON`; null if the route keeps no answers.
    pub cache: Option<String>,
    /// Bytes of the request's body.
    pub bytes_in: u64,
    /// Bytes of the answer's body.
    pub bytes_out: u64,
    /// Time from the header's arrival to the deadline; null without one.
    pub deadline_us: Option<u64>,
    /// Time from the header's arrival to the end.
    pub total_us: u64,
    /// Time to receive the body, if it was held.
    pub receive_us: u64,
    /// Time until an endpoint was picked, including the wait in the queue.
    pub balance_us: u64,
    /// Time spent waiting for endpoints.
    pub forward_us: u64,
    /// Text of the refusal.
    pub error: Option<&'a str>,
    /// The decisions on its way to endpoints, of the share of requests that `decisions` of the pool names: the
    /// candidates, what was known of each, what was chosen and why. Absent from other lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decisions: Option<StepLog>,
    /// Of a copy whose answer no client gets (a shadow): the variant that answered the client (`of`), how the two
    /// answers compare (`outcome`), and how far they lie apart, from 0 to 1 (`score`; null without an answer to
    /// compare). The request has a line of its own with the same `request_id`. Absent from other lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow: Option<ShadowEntry<'a>>,
}

/// The comparison of a copy's answer with the client's.
#[derive(Debug, Serialize)]
pub struct ShadowEntry<'a> {
    /// The variant that answered the client.
    pub of: &'a str,
    /// `equal`, `differs`, `mismatch`, `failed` or `unread`.
    pub outcome: &'static str,
    /// From 0 to 1.
    pub score: Option<f64>,
}

/// One ended connection at Layer 4. Times are microseconds, sizes bytes.
#[derive(Debug, Serialize)]
pub struct ConnectionEntry<'a> {
    /// End of the connection, UTC.
    pub time: String,
    /// `tcp`; lines of requests have no such field.
    pub protocol: &'static str,
    /// Address of the listener.
    pub listener: &'a str,
    /// Address of the client.
    pub client: String,
    /// TLS version, such as `1.3`; null without TLS.
    pub tls: Option<&'static str>,
    /// `ok`, or the code of the reason.
    pub reason: &'static str,
    /// Name of the pool.
    pub pool: &'a str,
    /// The endpoint that was tried last.
    pub endpoint: Option<&'a str>,
    /// Number of endpoints tried.
    pub attempts: usize,
    /// Bytes from the client to the endpoint.
    pub bytes_in: u64,
    /// Bytes from the endpoint to the client.
    pub bytes_out: u64,
    /// Time from the connection's arrival to its end.
    pub total_us: u64,
    /// Time from the connection's arrival until an endpoint accepted it.
    pub connect_us: u64,
    /// Text of the reason.
    pub error: Option<&'a str>,
}

/// Takes lines.
pub struct AccessLogger(Option<LineWriter>);

impl AccessLogger {
    /// Starts the writer.
    ///
    /// # Errors
    /// The file can't be opened, or no thread started.
    pub fn start(target: &AccessLog) -> io::Result<Self> {
        let target = match target {
            AccessLog::Off => return Ok(Self(None)),
            AccessLog::Stdout => Target::stdout()?,
            AccessLog::File(path) => Target::file(path)?,
        };
        LineWriter::start(target, SETTINGS).map(|writer| Self(Some(writer)))
    }

    /// Whether the log is written at all.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Queues a line for writing; drops it if the queue is full.
    pub fn write(&self, line: &impl Serialize) {
        let Some(writer) = &self.0 else { return };
        let mut text = Vec::with_capacity(512);
        // Writing JSON to memory does not fail: there are no maps with odd keys in a line.
        if serde_json::to_writer(&mut text, line).is_ok() {
            text.push(b'\n');
            writer.write(text);
        }
    }

    /// Reopens the file under its name, for log rotation.
    pub fn reopen(&self) {
        if let Some(writer) = &self.0 {
            writer.reopen();
        }
    }

    /// Number of lines dropped so far, by cause.
    pub fn lost(&self) -> Lost {
        self.0.as_ref().map(LineWriter::lost).unwrap_or_default()
    }

    /// Lets the writer write the lines that wait, but not for longer than `patience`: a reader of
    /// standard output that stands still must not keep the process.
    pub fn stop(&self, patience: Duration) {
        if let Some(writer) = &self.0 {
            writer.close(patience);
        }
    }
}

/// `2026-01-31T12:00:00.000Z`, as Elasticsearch and CloudWatch read it.
pub fn timestamp(time: SystemTime) -> String {
    DateTime::<Utc>::from(time).to_rfc3339_opts(SecondsFormat::Millis, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_right_over_leap_years() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(timestamp(time), expected);
        }
    }
}
