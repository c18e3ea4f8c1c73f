//! Statistics of one content of a model: its metrics, and the sums for the statistics call.
//!
//! They outlive the version in memory: one that made room for others and is loaded again goes on
//! counting.

use crate::telemetry::metrics::Metrics;
use forebay_engine::{Device, Model};
use forebay_protocol::Reason;
use forebay_protocol::metric::worker as metric;
use forebay_protocol::oip::{
    BatchStatistics, DurationStatistic, InferStatistics, MemoryUsage, ModelStatistics,
};
use metrics::{Counter, Histogram};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// Counters of one version.
pub(crate) struct Stats {
    answered: Counter,
    queue_seconds: Histogram,
    execute_seconds: Histogram,
    batch_rows: Histogram,
    retries: Counter,
    overruns: Counter,
    lent: Counter,
    /// By stage, then by reason: see [`Stage`].
    abandoned: [[Counter; 2]; 2],
    /// Requests that were answered, from their arrival on.
    success: Spent,
    /// Requests that were not.
    fail: Spent,
    /// Time of requests in the queue.
    queue: Spent,
    /// Reading and checking their inputs.
    input: Spent,
    /// Time of requests in the engine: each of a batch counts the whole batch's.
    engine: Spent,
    /// Writing their outputs.
    output: Spent,
    /// Rows that were run.
    rows: AtomicU64,
    /// Milliseconds from 1970 to the last run.
    last: AtomicU64,
    /// Batches by their rows; as many entries as a batch may have rows.
    batches: Mutex<BTreeMap<usize, (u64, Duration)>>,
}

/// The stage that a request had reached when its client left or its deadline passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It never started, and cost nothing.
    Queue,
    /// It was stopped, or others of its batch went on.
    Engine,
}

/// A number of times, and the time that they took together.
#[derive(Debug, Default)]
struct Spent {
    count: AtomicU64,
    nanos: AtomicU64,
}

impl Spent {
    fn add(&self, count: u64, took: Duration) {
        self.count.fetch_add(count, Relaxed);
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).saturating_mul(count);
        self.nanos.fetch_add(nanos, Relaxed);
    }

    fn sums(&self) -> DurationStatistic {
        DurationStatistic { count: self.count.load(Relaxed), ns: self.nanos.load(Relaxed) }
    }
}

impl Stats {
    /// Counters with the labels of this model and version.
    pub(crate) fn new(metrics: &Metrics, model: &str, version: &str) -> Self {
        let by_model = |family| metrics.counter(family, [model]);
        let abandoned = |stage, reason: Reason| {
            metrics.counter(&metric::ABANDONED, [model, stage, reason.code()])
        };
        let both = |stage| {
            [Reason::DeadlineExceeded, Reason::ClientClosed].map(|reason| abandoned(stage, reason))
        };
        Self {
            answered: metrics.by_version.inferences(model, version, "ok"),
            queue_seconds: metrics.histogram(&metric::QUEUE_SECONDS, [model]),
            execute_seconds: metrics.histogram(&metric::EXECUTE_SECONDS, [model]),
            batch_rows: metrics.histogram(&metric::BATCH_ROWS, [model]),
            retries: by_model(&metric::BATCH_RETRIES),
            overruns: by_model(&metric::OVERRUNS),
            lent: by_model(&metric::LENT),
            abandoned: [both("queue"), both("engine")],
            success: Spent::default(),
            fail: Spent::default(),
            queue: Spent::default(),
            input: Spent::default(),
            engine: Spent::default(),
            output: Spent::default(),
            rows: AtomicU64::new(0),
            last: AtomicU64::new(0),
            batches: Mutex::default(),
        }
    }

    /// A request was answered after so long; so long took its reading and checking, and the writing.
    pub(crate) fn answered(&self, took: Duration, [input, output]: [Duration; 2]) {
        self.answered.increment(1);
        self.success.add(1, took);
        self.input.add(1, input);
        self.output.add(1, output);
    }

    /// A request was refused or abandoned after so long.
    pub(crate) fn failed(&self, took: Duration) {
        self.fail.add(1, took);
    }

    /// A request starts that has waited so long.
    pub(crate) fn queued(&self, waited: Duration) {
        self.queue_seconds.record(waited.as_secs_f64());
        self.queue.add(1, waited);
    }

    /// A batch was run.
    #[allow(clippy::cast_precision_loss, reason = "rows are few")]
    pub(crate) fn executed(&self, rows: usize, requests: usize, took: Duration) {
        self.execute_seconds.record(took.as_secs_f64());
        self.batch_rows.record(rows as f64);
        self.engine.add(requests as u64, took);
        self.rows.fetch_add(rows as u64, Relaxed);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.last.store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Relaxed);
        let mut batches = self.batches.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, time) = batches.entry(rows).or_default();
        *count += 1;
        *time += took;
    }

    /// In Triton's form; `bytes` of a device's memory are taken, if any. Inputs are read and outputs written
    /// request by request, so of a batch there is the engine's time alone.
    pub(crate) fn statistics(
        &self,
        name: &str,
        version: &str,
        memory: Option<(Device, u64)>,
    ) -> ModelStatistics {
        let batches = self.batches.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let batch = |(&rows, &(count, time)): (&usize, &(u64, Duration))| BatchStatistics {
            batch_size: rows as u64,
            compute_infer: DurationStatistic {
                count,
                ns: u64::try_from(time.as_nanos()).unwrap_or(u64::MAX),
            },
            compute_input: DurationStatistic { count, ns: 0 },
            compute_output: DurationStatistic { count, ns: 0 },
        };
        let memory = memory.filter(|&(_, bytes)| bytes > 0).map(|(device, byte_size)| {
            MemoryUsage { kind: device.memory().to_owned(), id: 0, byte_size }
        });
        ModelStatistics {
            name: name.to_owned(),
            version: version.to_owned(),
            last_inference: self.last.load(Relaxed),
            inference_count: self.rows.load(Relaxed),
            execution_count: batches.values().map(|(count, _)| count).sum(),
            inference_stats: InferStatistics {
                success: self.success.sums(),
                fail: self.fail.sums(),
                queue: self.queue.sums(),
                compute_input: self.input.sums(),
                compute_infer: self.engine.sums(),
                compute_output: self.output.sums(),
                ..InferStatistics::default()
            },
            batch_stats: batches.iter().map(batch).collect(),
            memory_usage: memory.into_iter().collect(),
        }
    }

    /// Shows what batches cost, and what compiling plans has cost.
    #[allow(clippy::cast_precision_loss, reason = "rows are few")]
    pub(crate) fn show_model(metrics: &Metrics, version: (&str, &str), model: &dyn Model) {
        let (curve, (compilations, took)) = (model.curve(), model.compilations());
        metrics.by_version.counter(&metric::MODEL_COMPILATIONS, version).absolute(compilations);
        metrics.by_version.counter(&metric::MODEL_FALLBACKS, version).absolute(model.fallbacks());
        let seconds = metrics.by_version.gauge(&metric::MODEL_COMPILE_SECONDS, version);
        seconds.set(took.as_secs_f64());
        metrics.by_version.gauge(&metric::BATCH_BEST, version).set(curve.best() as f64);
        for (rows, seconds) in curve.known() {
            metrics.by_version.gauge_of_rows(&metric::BATCH_SECONDS, version, rows).set(seconds);
        }
    }

    /// Counts requests that are tried alone because their batch failed.
    pub(crate) fn retried(&self, requests: usize) {
        self.retries.increment(requests as u64);
    }

    /// A run was stopped at its limit.
    pub(crate) fn overran(&self) {
        self.overruns.increment(1);
    }

    /// A run lent its executor.
    pub(crate) fn lent(&self) {
        self.lent.increment(1);
    }

    /// Counts a request whose deadline has passed or whose client has left.
    pub(crate) fn abandoned(&self, stage: Stage, is_late: bool) {
        self.abandoned[usize::from(stage == Stage::Engine)][usize::from(!is_late)].increment(1);
    }
}

impl std::fmt::Debug for Stats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stats").field("queue", &self.queue).finish_non_exhaustive()
    }
}
