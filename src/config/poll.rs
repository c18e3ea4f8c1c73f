//! `[pool.NAME.poll]`: where the load of an endpoint is asked for.

use super::check::{absolute_path, interval, timeout_within};
use forebay_config::Table;
use forebay_protocol::prometheus::{Gauge, QueueMetrics, Running};
use std::time::Duration;

/// Where the load of each endpoint of a pool is asked for, out of band.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Poll {
    /// What the answer looks like.
    pub source: PollSource,
    /// Path that is asked with GET.
    pub path: String,
    /// Port, if it is another than the endpoint's.
    pub port: Option<u16>,
    /// Time between two polls of an endpoint.
    pub interval: Duration,
    /// Time that a poll may take.
    pub timeout: Duration,
}

/// What an answer to a poll looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PollSource {
    /// A load report among its headers.
    Orca,
    /// Metrics as text for Prometheus.
    Metrics(QueueMetrics),
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Orca,
    Custom,
    Forebay,
    Vllm,
    Sglang,
    Tgi,
    Triton,
    TensorRtLlm,
}

const KINDS: [(&str, Kind); 8] = [
    ("forebay", Kind::Forebay),
    ("vllm", Kind::Vllm),
    ("sglang", Kind::Sglang),
    ("tgi", Kind::Tgi),
    ("triton", Kind::Triton),
    ("tensorrt_llm", Kind::TensorRtLlm),
    ("orca", Kind::Orca),
    ("custom", Kind::Custom),
];
const DEFAULT_INTERVAL: Duration = Duration::from_millis(100);

pub(super) fn poll(table: &Table<'_, '_>) -> Poll {
    if !table.has("kind") {
        let known: Vec<_> = KINDS.iter().map(|(name, _)| format!("{name:?}")).collect();
        let message = format!("expected {}, found nothing", known.join(" or "));
        table.note(table.span(), "kind", message);
    }
    let kind = table.choice("kind", &KINDS, Kind::Forebay);
    let path = if matches!(kind, Kind::Orca) { "/v2/health/live" } else { "/metrics" };
    let interval = interval(table, "interval", DEFAULT_INTERVAL);
    Poll {
        source: source(kind, table),
        path: absolute_path(table, "path", path),
        port: table.spanned::<u16>("port").and_then(|(port, span)| {
            if port == 0 {
                table.note(span, "port", "expected 1 to 65535, found 0");
            }
            (port != 0).then_some(port)
        }),
        interval,
        timeout: timeout_within(table, "timeout", interval, interval),
    }
}

fn source(kind: Kind, table: &Table<'_, '_>) -> PollSource {
    PollSource::Metrics(match kind {
        Kind::Orca => return PollSource::Orca,
        Kind::Forebay => QueueMetrics::FOREBAY,
        Kind::Vllm => QueueMetrics::VLLM,
        Kind::Sglang => QueueMetrics::SGLANG,
        Kind::Tgi => QueueMetrics::TGI,
        Kind::Triton => QueueMetrics::TRITON,
        Kind::TensorRtLlm => QueueMetrics::TENSORRT_LLM,
        Kind::Custom => {
            let gauge = |name: String| Gauge { name: name.into(), label: None };
            let running = metric_name(table, "running").map(gauge);
            let waiting = if table.has("waiting") {
                metric_name(table, "waiting").unwrap_or_default()
            } else {
                table.required::<String>("waiting").unwrap_or_default()
            };
            QueueMetrics {
                waiting: gauge(waiting),
                running: running.map_or(Running::Unsaid, Running::Apart),
                slots: None,
            }
        }
    })
}

fn metric_name(table: &Table<'_, '_>, key: &str) -> Option<String> {
    let (name, span) = table.spanned::<String>(key)?;
    let letter = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    if name.is_empty()
        || name.starts_with(|c: char| c.is_ascii_digit())
        || !name.chars().all(letter)
    {
        table.note(span, key, format!("expected the name of a metric, found {name:?}"));
    }
    Some(name)
}
