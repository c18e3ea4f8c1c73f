//! The worker's metrics, in a recorder of its own: several workers in one process (tests) do not
//! mix, and labels come from the repository only.

use crate::telemetry::version_metrics::VersionMetrics;
use forebay_protocol::metric::worker as name;
use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder, Unit};
use metrics_exporter_prometheus::{
    Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};

/// Upper bounds of the histograms, in seconds: about 2 for each doubling from 100 us to 30 s.
const BUCKETS: &[f64] = &[
    0.0001, 0.00015, 0.0002, 0.0003, 0.0005, 0.0007, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.007,
    0.01, 0.015, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0,
    10.0, 30.0,
];

/// The same for batch sizes, in rows.
const BATCH_BUCKETS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 1024.0, 4096.0];

/// The label value for requests that named no model of ours.
pub(crate) const NO_MODEL: &str = "";

const METADATA: Metadata<'static> =
    Metadata::new("forebay_worker", Level::INFO, Some("forebay_worker"));

/// Where metrics are kept.
pub(crate) struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    /// Those by version.
    pub(crate) by_version: VersionMetrics,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut builder = PrometheusBuilder::new();
        for (histogram, buckets) in [
            (name::QUEUE_SECONDS, BUCKETS),
            (name::EXECUTE_SECONDS, BUCKETS),
            (name::BATCH_ROWS, BATCH_BUCKETS),
        ] {
            let matcher = Matcher::Full(histogram.to_owned());
            // Fails only for an empty list of buckets.
            builder = builder
                .set_buckets_for_metric(matcher, buckets)
                .unwrap_or_else(|_| PrometheusBuilder::new());
        }
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        let metrics = Self { recorder, handle, by_version: VersionMetrics::default() };
        metrics.describe();
        metrics
    }

    /// Counts one finished request.
    pub(crate) fn inference(&self, model: &str, version: &str, reason: &'static str) {
        self.by_version.inferences(model, version, reason).increment(1);
    }

    /// Attempts to load a model, by outcome.
    pub(crate) fn loads(&self, model: &str, outcome: &'static str) -> Counter {
        self.counter(name::MODEL_LOADS, &[("model", model), ("outcome", outcome)])
    }

    /// Versions that were taken out of service, by why.
    pub(crate) fn unloads(&self, model: &str, why: &'static str) -> Counter {
        self.counter(name::MODEL_UNLOADS, &[("model", model), ("why", why)])
    }

    /// A counter with labels.
    pub(crate) fn counter(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Counter {
        self.recorder.register_counter(&key(name, labels), &METADATA)
    }

    /// A histogram by model.
    pub(crate) fn histogram(&self, name: &'static str, model: &str) -> Histogram {
        self.recorder.register_histogram(&key(name, &[("model", model)]), &METADATA)
    }

    /// A gauge with labels.
    pub(crate) fn gauge(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Gauge {
        self.recorder.register_gauge(&key(name, labels), &METADATA)
    }

    /// Text for Prometheus.
    pub(crate) fn render(&self) -> String {
        for (cause, count) in forebay_process::log::lost() {
            self.counter(name::LOG_DROPPED, &[("cause", cause)]).absolute(count);
        }
        self.counter(name::PANICS, &[]).absolute(forebay_process::log::panics());
        let mut text = self.handle.render();
        self.by_version.render(&mut text);
        text
    }

    /// Folds raw samples into the histograms; without it they would pile up between scrapes.
    pub(crate) fn upkeep(&self) {
        self.handle.run_upkeep();
    }

    fn describe(&self) {
        let counter = |name: &'static str, text: &'static str| {
            self.recorder.describe_counter(name.into(), None, text.into());
        };
        let histogram = |name: &'static str, text: &'static str| {
            self.recorder.describe_histogram(name.into(), Some(Unit::Seconds), text.into());
        };
        let gauge = |name: &'static str, text: &'static str| {
            self.recorder.describe_gauge(name.into(), None, text.into());
        };
        counter(name::ABANDONED, "requests that nobody waited for any more, by stage and reason");
        counter(name::EMBEDDING_TOKENS, "tokens that were embedded");
        counter(name::BATCH_RETRIES, "requests that were tried alone after their batch failed");
        counter(name::OVERRUNS, "runs that were stopped at max_execution");
        counter(name::LENT, "times that a run lent its executor to a shorter one");
        histogram(name::QUEUE_SECONDS, "seconds in the queue");
        histogram(name::EXECUTE_SECONDS, "seconds of a batch in the engine");
        self.recorder.describe_histogram(
            name::BATCH_ROWS.into(),
            None,
            "rows that ran as one batch".into(),
        );
        gauge(name::EXECUTORS_LOST, "executors given up because a run did not end");
        gauge(name::IN_FLIGHT, "requests executing and queued");
        gauge(name::QUEUE_DEPTH, "requests queued");
        gauge(name::SLOTS, "requests that can run at once");
        counter(name::MODEL_LOADS, "attempts to load a version, by outcome");
        counter(name::MODEL_UNLOADS, "versions that were taken out of service, by why");
        counter(name::CONNECTIONS_CLOSED, "connections that the worker closed, by reason");
        counter(name::ACCEPT_ERRORS, "connections that could not be accepted");
        counter(name::HTTP2_FLOODS, "connections ended for a flood of HTTP/2 frames, by kind");
        gauge(name::CONNECTIONS, "open connections");
        gauge(name::MODELS_MEMORY, "bytes that all models take in memory");
        counter(name::PANICS, "panics, which are mistakes of this program or of the engine");
        counter(name::TASK_RESTARTS, "tasks of the process that were started again");
        counter(name::LOG_DROPPED, "lines of the process log that were not written, by cause");
        gauge(name::INFO, "1, with what this worker is in the labels");
    }
}

fn key(name: &'static str, labels: &[(&'static str, &str)]) -> Key {
    let labels = labels.iter().map(|(key, value)| Label::new(*key, (*value).to_owned()));
    Key::from_parts(name, labels.collect::<Vec<_>>())
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}
