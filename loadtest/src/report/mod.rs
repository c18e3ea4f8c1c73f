//! The report of a run: JSON, from which tables and pages are made.
//!
//! Times are seconds, sizes bytes, shares 0 to 1. The report says by itself whether it may be
//! believed: a figure from a generator that could not keep up is a figure of the generator.

pub mod buckets;
pub mod compare;
pub mod fault_window;
pub mod fleet;
pub mod hdr;
pub mod html;
pub mod outcome;
pub mod record;
pub mod style;
pub mod summary;
pub mod table;
pub mod times;
pub mod verdict;

use crate::plan::{Loop, Plan};
use crate::units::{self, float};
use buckets::Buckets;
use fault_window::FaultWindowReport;
use fleet::FleetReport;
use outcome::{Count, Outcome, counts};
use record::{Interval, Record};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;
use times::Quantiles;
use verdict::Judged;

/// Version of the JSON form.
pub const SCHEMA: &str = "forebay-load/1";
/// Own lag at the 99th percentile up to which a run is believed in any case, in seconds.
pub const MAX_LAG: f64 = 0.001;
/// The same as a share of the median service time: less than that can't change the picture.
pub const MAX_LAG_SHARE: f64 = 0.1;
/// Share of CPU time taken by the hypervisor from which a report mentions it.
const MIN_STOLEN_NOTED: f64 = 0.01;
/// A run's report. The JSON form is flat: `run` and `results` stand for their fields.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: String,
    /// The run that was made.
    #[serde(flatten)]
    pub run: RunInfo,
    /// The figures of all requests.
    #[serde(flatten)]
    pub results: Results,
    /// The generator's account of itself.
    pub generator: Generator,
    /// Objectives and whether they were met.
    pub objectives: Vec<Judged>,
    /// Faults of the programs behind the target, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<FaultRecord>,
    /// The same figures before, during and after each of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fault_windows: Vec<FaultWindowReport>,
    /// How far the fleet is from the best that is possible, where everything is known: in a simulation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleet: Option<FleetReport>,
    /// Why this run must not be quoted; empty: it may.
    pub problems: Vec<String>,
    /// Reservations that a reader should know.
    pub notes: Vec<String>,
    /// Length of one interval of the series.
    pub interval_seconds: f64,
    /// The time series, by intended start.
    pub series: Vec<Point>,
    /// Latencies of the successes, to [`times::RUN_DIGITS`].
    pub latency_buckets: Buckets,
}

/// The run that a report is of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunInfo {
    /// The scenario's name.
    pub name: String,
    /// Target of the requests.
    pub target: String,
    /// Protocol of the requests.
    pub protocol: String,
    /// The load in words.
    pub load: String,
    /// `open` or `closed`.
    pub kind: String,
    /// Everything random followed from it.
    pub seed: u64,
    /// The machine, as far as it matters.
    pub machine: Machine,
    /// Unix time of the start, in seconds.
    pub started: u64,
    /// Length of the warm-up, whose requests count nowhere.
    pub warm_up_seconds: f64,
    /// Time that was measured.
    pub measured_seconds: f64,
    /// Whether the run was ended before its time.
    pub interrupted: bool,
}

/// The figures of all measured requests of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Results {
    /// Requests that were measured.
    pub requests: u64,
    /// Requests of the warm-up.
    pub warm_up_requests: u64,
    /// Successes.
    pub ok: u64,
    /// Share of requests that did not succeed.
    pub error_share: f64,
    /// Measured requests a second that were meant to start.
    pub offered_rate: f64,
    /// Successes a second.
    pub ok_rate: f64,
    /// Successes: from the intended start to the end of the answer.
    pub latency: Quantiles,
    /// Successes: from the moment a connection was free.
    pub service: Quantiles,
    /// Errors: from the intended start to when it was known.
    pub error_latency: Quantiles,
    /// Outcomes of the requests: class and count, most frequent first.
    pub outcomes: Vec<Count>,
    /// Answers by `x-forebay-variant`.
    pub variants: BTreeMap<String, u64>,
    /// Answers by `x-forebay-endpoint`.
    pub endpoints: BTreeMap<String, u64>,
}

/// The generator's own figures: its lag, connections and CPU time.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Generator {
    /// From the intended start to when the generator took the request up.
    pub lag: Quantiles,
    /// From then until a connection was free, for those that had to wait.
    pub wait: Quantiles,
    /// Connections opened.
    pub connections: u64,
    /// Maximum number of requests under way at once.
    pub max_in_flight: u64,
    /// Threads.
    pub threads: usize,
    /// CPU seconds of the generator, all threads.
    pub cpu_seconds: f64,
    /// Share of the machine's CPU time that its hypervisor gave to others during the run.
    pub stolen_share: f64,
    /// Bytes of bodies sent.
    pub bytes_out: u64,
    /// Bytes of bodies received.
    pub bytes_in: u64,
}

/// A fault as it was carried out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FaultRecord {
    /// `kill a`, `slow b x 3`.
    pub fault: String,
    /// Planned begin and end, in seconds from the end of the warm-up.
    pub planned: (f64, f64),
    /// Actual begin and end.
    pub actual: (f64, f64),
    /// Why it could not be done.
    pub problem: Option<String>,
}

/// Figures of a run that no request tells.
#[derive(Debug, Clone, Copy, Default)]
pub struct Circumstances {
    /// Unix time of the start.
    pub started: Duration,
    /// CPU time of the generator.
    pub cpu: Duration,
    /// Share of the machine's CPU time that its hypervisor gave to others.
    pub stolen: f64,
    /// Whether the run was ended before its time.
    pub interrupted: bool,
}

/// One interval.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Point {
    /// Start of the interval, from the end of the warm-up.
    pub at: f64,
    /// Successes.
    pub ok: u64,
    /// Everything else.
    pub errors: u64,
    /// Median latency.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Maximum.
    pub max: f64,
    /// Latencies of the successes, to [`times::SERIES_DIGITS`]: what [`crate::compare`] draws from.
    pub buckets: Buckets,
}

/// The machine of the run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Machine {
    /// Processors that this process may use.
    pub cores: usize,
    /// Model of the processor.
    pub processor: String,
    /// Version of the generator.
    pub version: String,
}

impl Report {
    /// Makes a report of a record.
    pub fn new(plan: &Plan, record: &Record, circumstances: &Circumstances) -> Self {
        // A run that was cut short measured less than was planned.
        let measured = record.last_done.saturating_sub(plan.timeline.warm_up).min(plan.measured);
        let seconds = measured.as_secs_f64();
        let sample = record.sample(seconds);
        let verdicts = plan.objectives.iter().map(|objective| sample.judge(*objective));
        Self {
            schema: SCHEMA.to_owned(),
            run: RunInfo::new(plan, seconds, circumstances),
            results: Results::new(record, seconds),
            generator: Generator::new(plan, record, circumstances),
            objectives: verdicts.map(Judged::from).collect(),
            faults: Vec::new(),
            fault_windows: record.fault_windows.report(plan, seconds),
            fleet: None,
            problems: problems(plan, record),
            notes: notes(record, circumstances),
            interval_seconds: plan.timeline.interval.as_secs_f64(),
            series: series(plan, record),
            latency_buckets: Buckets::of(record.latency.histogram()),
        }
    }

    /// Adds what was done to the programs; what could not be done makes the run one of something else.
    pub fn with_faults(mut self, faults: Vec<FaultRecord>) -> Self {
        for fault in &faults {
            let Some(problem) = &fault.problem else { continue };
            self.problems.push(format!("\"{}\" failed: {problem}", fault.fault));
        }
        self.faults = faults;
        self
    }

    /// Whether all objectives were met.
    pub fn met(&self) -> bool {
        self.objectives.iter().all(|judged| judged.met)
    }

    /// Whether the figures are those of the target and not of the generator.
    pub fn is_valid(&self) -> bool {
        self.problems.is_empty()
    }
}

impl RunInfo {
    fn new(plan: &Plan, seconds: f64, circumstances: &Circumstances) -> Self {
        let kind = if matches!(plan.load, Loop::Open(_)) { "open" } else { "closed" };
        Self {
            name: plan.name.clone(),
            target: plan.target.to_string(),
            protocol: plan.target.wire().to_owned(),
            load: plan.describe(),
            kind: kind.to_owned(),
            seed: plan.seed,
            machine: Machine::here(),
            started: circumstances.started.as_secs(),
            warm_up_seconds: plan.timeline.warm_up.as_secs_f64(),
            measured_seconds: seconds,
            interrupted: circumstances.interrupted,
        }
    }
}

impl Results {
    fn new(record: &Record, seconds: f64) -> Self {
        let rate = |count: u64| if seconds > 0.0 { float(count) / seconds } else { 0.0 };
        Self {
            requests: record.total(),
            warm_up_requests: record.warm_up,
            ok: record.ok(),
            error_share: record.error_share(),
            offered_rate: rate(record.total()),
            ok_rate: rate(record.ok()),
            latency: Quantiles::of(&record.latency),
            service: Quantiles::of(&record.service),
            error_latency: Quantiles::of(&record.errors),
            outcomes: counts(&record.outcomes),
            variants: record.variants.clone(),
            endpoints: record.endpoints.clone(),
        }
    }
}

impl Generator {
    fn new(plan: &Plan, record: &Record, circumstances: &Circumstances) -> Self {
        Self {
            lag: Quantiles::of(&record.lag),
            wait: Quantiles::of(&record.wait),
            connections: record.connections,
            max_in_flight: record.max_in_flight,
            threads: plan.threads,
            cpu_seconds: circumstances.cpu.as_secs_f64(),
            stolen_share: circumstances.stolen,
            bytes_out: record.bytes_out,
            bytes_in: record.bytes_in,
        }
    }
}

impl Machine {
    /// This machine.
    pub fn here() -> Self {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = info.lines().find_map(|line| line.strip_prefix("model name"));
        let model = model.map(|rest| rest.trim_start_matches([' ', '\t', ':']));
        Self {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            processor: model.unwrap_or("unknown").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

fn problems(plan: &Plan, record: &Record) -> Vec<String> {
    let mut problems = Vec::new();
    if record.total() == 0 {
        problems.push("no request was measured".to_owned());
    }
    let unsent = record.outcomes.get(&Outcome::Unsent).copied().unwrap_or(0);
    if unsent > 0 {
        problems.push(format!(
            "the generator could not keep up: {} requests were never sent, because {} connections \
             were busy and its queue was full",
            units::count(unsent),
            units::count(plan.connections as u64)
        ));
    }
    let lag = record.lag.quantile(0.99);
    let max = MAX_LAG.max(record.service.quantile(0.5) * MAX_LAG_SHARE);
    if matches!(plan.load, Loop::Open(_)) && lag > max {
        problems.push(format!(
            "the generator could not keep up: its own lag is {} at p99, more than {}; give it a \
             quieter core, --threads, or a lower rate",
            units::seconds(lag),
            units::seconds(max)
        ));
    }
    problems
}

fn notes(record: &Record, circumstances: &Circumstances) -> Vec<String> {
    let mut notes = Vec::new();
    let stolen = circumstances.stolen;
    if circumstances.interrupted {
        notes.push("interrupted before its time".to_owned());
    }
    if stolen > MIN_STOLEN_NOTED {
        notes.push(format!(
            "the hypervisor took {} of this machine's CPU time during the run; every latency has \
             its share of that",
            units::percent(stolen)
        ));
    }
    if record.waited > 0 {
        notes.push(format!(
            "{} requests waited for a free connection, {} at p99; the wait counts as latency, and \
             the target never saw the full load: raise --connections",
            units::count(record.waited),
            units::seconds(record.wait.quantile(0.99))
        ));
    }
    notes
}

fn series(plan: &Plan, record: &Record) -> Vec<Point> {
    let interval = plan.timeline.interval.as_secs_f64();
    let point = |(index, piece): (usize, &Interval)| Point {
        at: float(index as u64) * interval,
        ok: piece.ok,
        errors: piece.errors,
        p50: piece.quantile(0.5),
        p99: piece.quantile(0.99),
        max: piece.quantile(1.0),
        buckets: Buckets::of(&piece.latency),
    };
    record.intervals.iter().enumerate().map(point).collect()
}
