//! `[pool.NAME.poll]`: where the load of an endpoint is asked for.

use super::check::{request_path, timeout_within};
use forebay_config::form::{interval, one_of, optional, positive, required, text, within};
use forebay_config::{Section, Table};
use forebay_protocol::prometheus::{Gauge, QueueMetrics, Running};
use std::time::Duration;

/// Polling of each endpoint for its load, out of band.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Poll {
    /// The form of the answer.
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

/// The form of an answer to a poll.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PollSource {
    /// A load report among its headers.
    Orca,
    /// Metrics as text for Prometheus.
    Metrics(QueueMetrics),
}

/// The word for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KindName {
    Orca,
    Custom,
    Forebay,
    Vllm,
    Sglang,
    Tgi,
    Triton,
    TensorRtLlm,
}

const KINDS: &[(&str, KindName)] = &[
    ("forebay", KindName::Forebay),
    ("vllm", KindName::Vllm),
    ("sglang", KindName::Sglang),
    ("tgi", KindName::Tgi),
    ("triton", KindName::Triton),
    ("tensorrt_llm", KindName::TensorRtLlm),
    ("orca", KindName::Orca),
    ("custom", KindName::Custom),
];

forebay_config::section! {
    /// Polls each endpoint for its load, out of band. Forebay's own workers state their load on every
    /// answer; for other servers, a poll tells the proxy of requests that others sent, and of those that
    /// wait. If it fails, the proxy's own counts are used. Default: none.
    pub(super) struct PollKeys {
        /// Required. The kind of server, and the metrics that count (all are gauges):
        ///   forebay       /metrics of Forebay's worker
        ///   vllm          vllm:num_requests_waiting, vllm:num_requests_running
        ///   sglang        sglang:num_queue_reqs, sglang:num_running_reqs (started with --enable-metrics)
        ///   tgi           tgi_queue_size, tgi_batch_current_size
        ///   triton        nv_inference_pending_request_count; the running ones are the proxy's own count
        ///   tensorrt_llm  nv_trt_llm_request_metrics in Triton: waiting, scheduled
        ///   orca          a load report among the headers of the answer, with any body
        ///   custom        the metrics named by `waiting` and `running`
        kind: KindName = KindName::Forebay, required(one_of(KINDS)), shown "\"forebay\"";
        /// Path of the GET. Default: "/metrics"; for orca "/v2/health/live".
        path: String = "/metrics".to_owned(), request_path();
        /// Port of the metrics, such as Triton's 8002. Default: the endpoint's.
        port: Option<u16> = None, optional(within(1..=65535)), shown "8002";
        /// Time between two polls of an endpoint. A shorter interval gives fresher numbers and costs both
        /// sides more.
        interval: Duration = Duration::from_millis(100), interval();
        /// Time limit of a poll. At most `interval`, which is the default: a server with slow metrics needs
        /// a longer interval.
        timeout: Duration = Duration::from_millis(100), positive();
    }
}

forebay_config::section! {
    /// Metrics of a server that has no kind of its own.
    pub(super) struct CustomPollKeys {
        /// Required for custom. A gauge of waiting requests.
        waiting: String = String::new(), required(metric_name()), shown "\"forebay_worker_queue_depth\"";
        /// A gauge of running requests. Default: the proxy's own count.
        running: Option<String> = None, optional(metric_name()), shown "\"my_requests_running\"";
    }
}

/// Reads the table, and checks its keys together.
pub(super) fn read(table: &Table<'_, '_>) -> Poll {
    let PollKeys { kind, path, port, interval, timeout } = PollKeys::read(table);
    if kind != KindName::Custom {
        CustomPollKeys::refuse(table, "kind = \"custom\"");
    }
    let is_default = !table.has("path") && kind == KindName::Orca;
    Poll {
        source: source(kind, table),
        path: if is_default { "/v2/health/live".to_owned() } else { path },
        port,
        interval,
        timeout: timeout_within(table, timeout, interval, interval),
    }
}

fn source(kind: KindName, table: &Table<'_, '_>) -> PollSource {
    PollSource::Metrics(match kind {
        KindName::Orca => return PollSource::Orca,
        KindName::Forebay => QueueMetrics::FOREBAY,
        KindName::Vllm => QueueMetrics::VLLM,
        KindName::Sglang => QueueMetrics::SGLANG,
        KindName::Tgi => QueueMetrics::TGI,
        KindName::Triton => QueueMetrics::TRITON,
        KindName::TensorRtLlm => QueueMetrics::TENSORRT_LLM,
        KindName::Custom => {
            let CustomPollKeys { waiting, running } = CustomPollKeys::read(table);
            let gauge = |name: String| Gauge { name: name.into(), label: None };
            QueueMetrics {
                waiting: gauge(waiting),
                running: running.map(gauge).map_or(Running::Unsaid, Running::Apart),
                slots: None,
            }
        }
    })
}

/// The name of a metric, as Prometheus allows it.
const fn metric_name() -> forebay_config::form::Text {
    const WORDS: &str = "the name of a metric";
    text("METRIC", WORDS, |name| {
        let letter = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
        let fits = !name.is_empty()
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && name.chars().all(letter);
        (!fits).then_some(WORDS)
    })
}
