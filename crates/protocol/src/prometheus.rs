//! Queue lengths from the metrics of other servers, in Prometheus' text form.
//!
//! Few servers state their load on their answers; nearly all have a page of metrics. Of a hundred kilobytes
//! of it two numbers matter: how many requests wait, and how many run. Both must be gauges: a counter only
//! grows, and a proxy that took one for a load would send the endpoint less and less until it gets nothing.
//! A page that is damaged where it matters is dropped whole, like any other load report.
//!
//! Source: <https://prometheus.io/docs/instrumenting/exposition_formats/>.

use crate::LoadReport;
use crate::metric::worker;
use std::borrow::Cow;
use std::collections::BTreeSet;

/// Longest page that is read, in bytes: a server with hundreds of models writes less.
pub const MAX_PAGE_BYTES: usize = 4 * 1024 * 1024;
/// Most series of one metric: a label for each model, version and rank.
const MAX_SERIES: usize = 10_000;
/// Most requests that are believed to be anywhere.
const MAX_VALUE: f64 = 1e9;

/// Why a page of metrics is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PrometheusError {
    /// More than [`MAX_PAGE_BYTES`], or more series than are read.
    #[error("page of metrics is too long")]
    TooLong,
    /// A line that matters is not of the form, or the page is not UTF-8.
    #[error("page of metrics is malformed")]
    Malformed,
    /// None of the metrics is there: another server, or another page.
    #[error("page has none of the metrics that are looked for")]
    Missing,
    /// A metric that is declared to be a counter, histogram or summary.
    #[error("metric is not a gauge")]
    NotAGauge,
    /// The same series twice.
    #[error("page has the same series twice")]
    Duplicate,
    /// NaN, infinite, negative, or more than anyone can have.
    #[error("metric has a value that is not a count")]
    BadValue,
}

impl PrometheusError {
    /// The word in metrics and logs.
    pub const fn cause(self) -> &'static str {
        match self {
            Self::TooLong => "too_long",
            Self::Malformed => "malformed",
            Self::Missing => "missing",
            Self::NotAGauge => "not_a_gauge",
            Self::Duplicate => "duplicate",
            Self::BadValue => "bad_value",
        }
    }
}

/// One gauge; all its series are added up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gauge {
    /// The metric's name.
    pub name: Cow<'static, str>,
    /// Counts series with this label and value only.
    pub label: Option<(&'static str, &'static str)>,
}

impl Gauge {
    /// All series of `name`.
    pub const fn named(name: &'static str) -> Self {
        Self { name: Cow::Borrowed(name), label: None }
    }
}

/// The metrics in which a server reports its queue. Numbers are requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueMetrics {
    /// Waiting there.
    pub waiting: Gauge,
    /// The running requests.
    pub running: Running,
    /// Requests that it can run at once, if it reports them.
    pub slots: Option<Gauge>,
}

/// The form in which a server reports its running requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Running {
    /// It does not.
    Unsaid,
    /// As a gauge of its own.
    Apart(Gauge),
    /// Together with what waits.
    WithWaiting(Gauge),
}

impl QueueMetrics {
    /// vLLM: <https://docs.vllm.ai/en/latest/design/metrics.html>.
    pub const VLLM: Self = Self::of("vllm:num_requests_waiting", "vllm:num_requests_running");
    /// SGLang, with `--enable-metrics`.
    pub const SGLANG: Self = Self::of("sglang:num_queue_reqs", "sglang:num_running_reqs");
    /// Text Generation Inference.
    pub const TGI: Self = Self::of("tgi_queue_size", "tgi_batch_current_size");
    /// Triton; on a port of its own (8002). Its metrics of running inferences are counters.
    pub const TRITON: Self = Self {
        waiting: Gauge::named("nv_inference_pending_request_count"),
        running: Running::Unsaid,
        slots: None,
    };
    /// Triton's backend for TensorRT-LLM.
    pub const TENSORRT_LLM: Self = {
        const NAME: Cow<'static, str> = Cow::Borrowed("nv_trt_llm_request_metrics");
        Self {
            waiting: Gauge { name: NAME, label: Some(("request_type", "waiting")) },
            running: Running::Apart(Gauge {
                name: NAME,
                label: Some(("request_type", "scheduled")),
            }),
            slots: None,
        }
    };
    /// Our own worker.
    pub const FOREBAY: Self = Self {
        waiting: Gauge::named(worker::QUEUE_DEPTH.name),
        running: Running::WithWaiting(Gauge::named(worker::IN_FLIGHT.name)),
        slots: Some(Gauge::named(worker::SLOTS.name)),
    };

    const fn of(waiting: &'static str, running: &'static str) -> Self {
        Self {
            waiting: Gauge::named(waiting),
            running: Running::Apart(Gauge::named(running)),
            slots: None,
        }
    }

    /// Reads a page of metrics.
    ///
    /// A server that has had no request yet may leave out one of its gauges: the other counts.
    ///
    /// # Errors
    /// Anything that makes the page doubtful; the reader counts that and goes on without it.
    pub fn read(&self, page: &[u8]) -> Result<LoadReport, PrometheusError> {
        if page.len() > MAX_PAGE_BYTES {
            return Err(PrometheusError::TooLong);
        }
        let page = std::str::from_utf8(page).map_err(|_| PrometheusError::Malformed)?;
        let running = match &self.running {
            Running::Unsaid => None,
            Running::Apart(gauge) | Running::WithWaiting(gauge) => Some(gauge),
        };
        let [waiting, running, slots] =
            sums(page, [Some(&self.waiting), running, self.slots.as_ref()])?;
        if waiting.is_none() && running.is_none() {
            return Err(PrometheusError::Missing);
        }
        let rif = match (&self.running, running) {
            (Running::Unsaid, _) => None,
            (Running::WithWaiting(_), Some(all)) => Some(all),
            (_, running) => Some(running.unwrap_or(0).saturating_add(waiting.unwrap_or(0))),
        };
        Ok(LoadReport { rif, queue: waiting, slots, ..LoadReport::default() })
    }
}

/// The sum of each gauge's series; `None`: it has none.
fn sums<const N: usize>(
    page: &str,
    gauges: [Option<&Gauge>; N],
) -> Result<[Option<u32>; N], PrometheusError> {
    let mut sums = [None; N];
    let mut seen = BTreeSet::new();
    for line in page.lines().map(str::trim) {
        if let Some(comment) = line.strip_prefix('#') {
            let mut words = comment.split_ascii_whitespace();
            let declares = (words.next(), words.next(), words.next());
            if let (Some("TYPE"), Some(name), Some(kind)) = declares
                && !matches!(kind, "gauge" | "untyped" | "unknown")
                && gauges.iter().flatten().any(|gauge| gauge.name == name)
            {
                return Err(PrometheusError::NotAGauge);
            }
            continue;
        }
        let end = line.find(|c: char| c == '{' || c.is_ascii_whitespace()).unwrap_or(line.len());
        let (name, rest) = line.split_at(end);
        if !gauges.iter().flatten().any(|gauge| gauge.name == name) {
            continue;
        }
        let (labels, rest) = split_labels(rest)?;
        if !seen.insert((name, labels)) {
            return Err(PrometheusError::Duplicate);
        }
        if seen.len() > MAX_SERIES {
            return Err(PrometheusError::TooLong);
        }
        let value = count(rest)?;
        for (sum, gauge) in sums.iter_mut().zip(gauges) {
            let Some(gauge) = gauge.filter(|gauge| gauge.name == name) else { continue };
            if gauge.label.is_none_or(|(key, value)| has_label(labels, key, value)) {
                *sum = Some(sum.unwrap_or(0.0) + value);
            }
        }
    }
    if sums.iter().flatten().any(|sum| *sum > MAX_VALUE) {
        return Err(PrometheusError::BadValue);
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to MAX_VALUE")]
    Ok(sums.map(|sum| sum.map(|sum: f64| sum.round() as u32)))
}

/// `{a="1",b="2"} 3` -> `a="1",b="2"` and ` 3`; a brace may stand inside of quotes.
fn split_labels(rest: &str) -> Result<(&str, &str), PrometheusError> {
    let Some(inside) = rest.strip_prefix('{') else { return Ok(("", rest)) };
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in inside.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'}' if !quoted => return Ok((&inside[..at], &inside[at + 1..])),
            _ => {}
        }
    }
    Err(PrometheusError::Malformed)
}

/// The value, which a time or an exemplar may follow.
fn count(rest: &str) -> Result<f64, PrometheusError> {
    let text = rest.split_ascii_whitespace().next().ok_or(PrometheusError::Malformed)?;
    let value: f64 = text.parse().map_err(|_| PrometheusError::Malformed)?;
    if (0.0..=MAX_VALUE).contains(&value) { Ok(value) } else { Err(PrometheusError::BadValue) }
}

/// Whether `key="value"` is among `labels`. The values that are looked for have nothing to escape.
fn has_label(labels: &str, key: &str, value: &str) -> bool {
    let mut rest = labels;
    while let Some((name, quoted)) = rest.split_once("=\"") {
        let Some(end) = end_of_quote(quoted) else { return false };
        if name.trim_matches([',', ' ']) == key {
            return &quoted[..end] == value;
        }
        rest = &quoted[end + 1..];
    }
    false
}

fn end_of_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test says its seed")]
    use super::*;

    fn read(page: &str) -> Result<(Option<u32>, Option<u32>), PrometheusError> {
        QueueMetrics::VLLM.read(page.as_bytes()).map(|report| (report.rif, report.queue))
    }

    #[test]
    fn series_are_added_up_and_all_else_is_passed_over() {
        let page = "# HELP anything } \" {\n\
            vllm:num_requests_waiting{model_name=\"a\",note=\"x\\\"} 9\"} 2.0\n\
            vllm:num_requests_waiting{model_name=\"b\"}\t3 1700000000000\n\
            vllm:num_requests_running 4 # {trace=\"1\"} 5\n\
            vllm:num_requests_running_total{} 400\nvllm:num_requests_runnin 7\n\
            other{broken 5\n\n  vllm:num_requests_waiting{} 1";
        assert_eq!(read(page), Ok((Some(10), Some(6))));
    }

    #[test]
    fn what_is_doubtful_is_dropped_whole() {
        use PrometheusError::{BadValue, Duplicate, Malformed, Missing, NotAGauge, TooLong};
        for (page, error) in [
            ("", Missing),
            ("<html>not metrics</html>", Missing),
            ("vllm:num_requests_waiting", Malformed),
            ("vllm:num_requests_waiting many", Malformed),
            ("vllm:num_requests_waiting{a=\"1\" 5", Malformed),
            ("vllm:num_requests_waiting{a=\"1} 5", Malformed),
            ("vllm:num_requests_waiting NaN", BadValue),
            ("vllm:num_requests_waiting +Inf", BadValue),
            ("vllm:num_requests_waiting -1", BadValue),
            ("vllm:num_requests_waiting 1e30", BadValue),
            ("vllm:num_requests_waiting 1\nvllm:num_requests_waiting 1", Duplicate),
            ("# TYPE vllm:num_requests_running counter\nvllm:num_requests_running 1", NotAGauge),
            ("# TYPE vllm:num_requests_waiting histogram", NotAGauge),
        ] {
            assert_eq!(read(page), Err(error), "{page}");
        }
        assert_eq!(QueueMetrics::VLLM.read(&[0xff]), Err(Malformed));
        assert_eq!(read(&" ".repeat(MAX_PAGE_BYTES + 1)), Err(TooLong));
        let many: String = (0..=MAX_SERIES)
            .map(|n| format!("vllm:num_requests_waiting{{n=\"{n}\"}} 0\n"))
            .collect();
        assert_eq!(read(&many), Err(TooLong));
    }

    #[test]
    fn no_damage_makes_a_panic_or_a_report_of_nonsense() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let page = "# TYPE vllm:num_requests_waiting gauge\n\
            vllm:num_requests_waiting{engine=\"0\",model_name=\"a\\\"b\"} 2.0\n\
            vllm:num_requests_running{engine=\"0\"} 3.0\n";
        for _ in 0..30_000 {
            let mut damaged = page.as_bytes().to_vec();
            for _ in 0..rng.usize(1..5) {
                let at = rng.usize(..damaged.len());
                match rng.u8(..3) {
                    0 => damaged[at] = rng.u8(..),
                    1 => damaged.insert(at, *b"{}\"\\=,\n# ".get(rng.usize(..9)).unwrap()),
                    _ => damaged.truncate(at.max(1)),
                }
            }
            if let Ok(report) = QueueMetrics::VLLM.read(&damaged) {
                assert!(report.rif >= report.queue, "{report:?} seed {seed}");
            }
        }
    }
}
