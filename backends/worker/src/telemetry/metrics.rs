//! The worker's metrics, in a recorder of its own: several workers in one process (tests) do not
//! mix, and labels come from the repository only.

use crate::telemetry::version_metrics::VersionMetrics;
use forebay_protocol::family::{CounterFamily, GaugeFamily, HistogramFamily, Kind};
use forebay_protocol::metric::worker as name;
use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder};
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

/// The store of metrics.
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
            let matcher = Matcher::Full(histogram.name.to_owned());
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
        self.counter(&name::MODEL_LOADS, [model, outcome])
    }

    /// Versions that were taken out of service, by why.
    pub(crate) fn unloads(&self, model: &str, why: &'static str) -> Counter {
        self.counter(&name::MODEL_UNLOADS, [model, why])
    }

    /// A counter with these values of its labels.
    pub(crate) fn counter<const N: usize>(
        &self,
        family: &CounterFamily<N>,
        values: [&str; N],
    ) -> Counter {
        self.recorder.register_counter(&family.key(values), &METADATA)
    }

    /// A histogram with these values of its labels.
    pub(crate) fn histogram<const N: usize>(
        &self,
        family: &HistogramFamily<N>,
        values: [&str; N],
    ) -> Histogram {
        self.recorder.register_histogram(&family.key(values), &METADATA)
    }

    /// A gauge with these values of its labels.
    pub(crate) fn gauge<const N: usize>(
        &self,
        family: &GaugeFamily<N>,
        values: [&str; N],
    ) -> Gauge {
        self.recorder.register_gauge(&family.key(values), &METADATA)
    }

    /// Shows what this worker is, with what engines say of their machine in labels of their own.
    pub(crate) fn info(&self, version: &str, facts: &[(&'static str, String)]) {
        let (name, labels) = name::INFO.key([version]).into_parts();
        let facts = facts.iter().map(|(name, value)| Label::new(*name, value.clone()));
        let labels = labels.into_iter().chain(facts).collect::<Vec<_>>();
        self.recorder.register_gauge(&Key::from_parts(name, labels), &METADATA).set(1.0);
    }

    /// Text for Prometheus.
    pub(crate) fn render(&self) -> String {
        for (cause, count) in forebay_process::log::lost() {
            self.counter(&name::LOG_DROPPED, [cause]).absolute(count);
        }
        self.counter(&name::PANICS, []).absolute(forebay_process::log::panics());
        let mut text = self.handle.render();
        self.by_version.render(&mut text);
        text
    }

    /// Folds raw samples into the histograms; without it they would pile up between scrapes.
    pub(crate) fn upkeep(&self) {
        self.handle.run_upkeep();
    }

    fn describe(&self) {
        for family in name::ALL.iter().filter(|family| !VersionMetrics::has(family)) {
            let (name, help) = (family.name.into(), family.help().into());
            match family.kind {
                Kind::Counter => self.recorder.describe_counter(name, None, help),
                Kind::Gauge => self.recorder.describe_gauge(name, None, help),
                Kind::Histogram => self.recorder.describe_histogram(name, None, help),
            }
        }
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}
