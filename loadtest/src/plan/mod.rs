//! The plan of a run: a scenario whose every number has been checked, once.
//!
//! A run that stops after ten minutes because of a typing error in its last phase has cost ten
//! minutes. Everything that can be known beforehand is checked here; after it nothing is validated
//! again.

pub mod arrivals;
pub mod mix;
pub mod replay;
pub(crate) mod seed;
pub mod target;
pub mod timeline;
pub mod tls;

use crate::scenario::{
    self, Bursts, Closed, Constant, Diurnal, General, Http, Live, Load, MAX_FAULTS, MAX_PROCESSES,
    MAX_THREADS, Objective, Open, Protocol, Ramp, Replay, RequestKind, Scenario, Spacing, Trust,
};
use crate::units::{self, Rate, TimeSpan};
use arrivals::{Phase, Shape, Source};
use http::HeaderName;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use target::{Target, TargetError};
use timeline::Timeline;

/// The header that names a client where none is given: what the proxy's documentation suggests.
pub(crate) const DEFAULT_CLIENT_HEADER: &str = "x-client";
/// Default time after which a request is given up.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum number of connections of an open loop where nothing is said, and over HTTP/2.
const DEFAULT_CONNECTIONS: [usize; 2] = [1000, 10];

/// A run, ready to start but for the bodies of its requests.
#[derive(Debug, Clone)]
pub struct Plan {
    /// For reports.
    pub name: String,
    /// The target and the protocol of requests.
    pub target: Target,
    /// Everything random follows from it.
    pub seed: u64,
    /// Connections, at most or exactly.
    pub connections: usize,
    /// Requests at a time on one connection; 1 with HTTP/1.1.
    pub streams: usize,
    /// Generating threads.
    pub threads: usize,
    /// Never sleep: less lag of the generator's own, for a whole core.
    pub busy: bool,
    /// The start times of requests.
    pub load: Loop,
    /// The warm-up, and the intervals that are measured.
    pub timeline: Timeline,
    /// Time that is measured: the run without its warm-up.
    pub measured: Duration,
    /// After it, counted from the intended start, a request is given up.
    pub timeout: Duration,
    /// Stop after so many requests, the warm-up's included.
    pub limit: Option<u64>,
    /// The kinds of requests.
    pub requests: Vec<scenario::Request>,
    /// The clients that requests name, if they do.
    pub clients: Option<Clients>,
    /// For each recorded arrival the request that it stands for; empty unless replayed.
    pub recorded: Arc<[Option<u32>]>,
    /// Programs that the run starts.
    pub processes: Vec<scenario::Process>,
    /// Faults of these programs, one after the other.
    pub faults: Vec<scenario::Fault>,
    /// Directory to which paths are relative.
    pub base: PathBuf,
    /// Objectives that the run must reach.
    pub objectives: Vec<Objective>,
}

/// The clients that requests name: `client-0`, `client-1`, and so on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clients {
    /// Number of clients; at least one.
    pub count: u32,
    /// The header that names them.
    pub header: HeaderName,
}

/// The start times of requests.
#[derive(Debug, Clone)]
pub enum Loop {
    /// At planned times.
    Open(Source),
    /// Each starts when the last answer is there.
    Closed,
}

/// Why a scenario can't run.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Nowhere to go.
    #[error("expected a target, in the scenario (target = \"http://…\") or as --target URL")]
    NoTarget,
    /// The target is wrong.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// A number out of its bounds.
    #[error("{what}: expected {expected}, found {found}")]
    Bounds {
        /// The part that is wrong.
        what: String,
        /// The bounds.
        expected: String,
        /// The number.
        found: String,
    },
    /// The log can't be replayed.
    #[error("{path}: {error}")]
    Replay {
        /// The log.
        path: PathBuf,
        /// Why.
        error: replay::ReplayError,
    },
}

impl Plan {
    /// Checks a scenario and computes what follows from it. Reads the access log of a replay.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn new(scenario: Scenario) -> Result<Self, PlanError> {
        let url = scenario.live.target.as_deref().ok_or(PlanError::NoTarget)?;
        let trust = Trust {
            ca: scenario.live.tls.ca.as_ref().map(|file| scenario.base.join(file)),
            ..scenario.live.tls
        };
        let target = Target::parse(url, scenario.live.protocol, &trust)?;
        Self::towards(target, scenario)
    }

    /// The same for a run that sends nothing: it needs no target.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn simulated(scenario: Scenario) -> Result<Self, PlanError> {
        let live = Live { processes: Vec::new(), faults: Vec::new(), ..scenario.live };
        let scenario = Scenario { live, ..scenario };
        Self::towards(Target::nowhere(), scenario)
    }

    fn towards(target: Target, scenario: Scenario) -> Result<Self, PlanError> {
        let General { name, seed, warm_up, timeout, clients: count, client_header, objectives } =
            scenario.general;
        let timeout = timeout.unwrap_or(DEFAULT_TIMEOUT);
        let Live { protocol, connections, streams, threads, processes, mut faults, .. } =
            scenario.live;
        let (streams, default) = match protocol {
            Protocol::Http1 => (1, DEFAULT_CONNECTIONS[0]),
            Protocol::Http2 | Protocol::Grpc => (streams, DEFAULT_CONNECTIONS[1]),
        };
        let connections = connections.unwrap_or(default);
        if threads > connections {
            let expected = format!("1 to {}", MAX_THREADS.min(connections));
            return Err(bounds("threads", &expected, &threads.to_string()));
        }
        if scenario.requests.is_empty() {
            return Err(bounds("request", "at least one [[request]]", "none"));
        }
        let not_inference =
            |request: &scenario::Request| matches!(request.kind, RequestKind::Http(_));
        if protocol == Protocol::Grpc && scenario.requests.iter().any(not_inference) {
            return Err(bounds("request", "inferences alone with the protocol grpc", "others"));
        }
        let clients = clients(count, client_header.as_deref())?;
        let mut recorded = Vec::new();
        let (load, measured) = match &scenario.load {
            Load::Closed(Closed { length }) => (Loop::Closed, *length),
            Load::Open(Open { spacing, phases }) => open(*spacing, phases, warm_up)?,
            Load::Replay(Replay { file, speed }) => {
                let path = scenario.base.join(file);
                let (load, span, picks) = replayed(&path, *speed, &scenario.requests)?;
                recorded = picks;
                // The log's own beginning serves as warm-up.
                let measured = span.saturating_sub(warm_up);
                if measured.is_zero() {
                    return Err(bounds("the log without warm_up", "more than 0 s", "0 s"));
                }
                (load, measured)
            }
        };
        faults.sort_by_key(|fault| fault.at);
        check_faults(&processes, &faults, measured)?;
        Ok(Self {
            name: name.unwrap_or_else(|| "run".to_owned()),
            target,
            seed,
            connections,
            streams,
            threads,
            busy: false,
            load,
            timeline: Timeline::new(warm_up, measured),
            measured,
            timeout,
            limit: None,
            requests: scenario.requests,
            clients,
            recorded: recorded.into(),
            processes,
            faults,
            base: scenario.base,
            objectives,
        })
    }

    /// From the start of the run until no request starts any more.
    pub fn length(&self) -> Duration {
        self.timeline.warm_up + self.measured
    }

    /// Begin and end of faults, from the end of the warm-up.
    pub fn borders(&self) -> Vec<Duration> {
        self.faults.iter().flat_map(|fault| [fault.at, fault.at + fault.length]).collect()
    }

    /// The load in words, for people.
    pub fn describe(&self) -> String {
        match &self.clients {
            Some(Clients { count, .. }) => {
                format!("{}, {} clients", self.describe_load(), units::count(u64::from(*count)))
            }
            None => self.describe_load(),
        }
    }

    fn describe_load(&self) -> String {
        match &self.load {
            Loop::Closed if self.streams > 1 => {
                format!("closed loop, {} connections x {} streams", self.connections, self.streams)
            }
            Loop::Closed => format!("closed loop, {} connections", self.connections),
            Loop::Open(Source::Recorded(times)) => {
                format!("open loop, {} recorded requests", units::count(times.len() as u64))
            }
            Loop::Open(Source::Phases { phases, spacing }) => {
                let spacing = match spacing {
                    Spacing::Constant => "evenly spaced",
                    Spacing::Poisson => "poisson",
                };
                // The first phase is the warm-up, if there is one.
                let skip = usize::from(!self.timeline.warm_up.is_zero());
                let mut words: Vec<String> = phases
                    .iter()
                    .skip(skip)
                    .take(4)
                    .map(|phase| phase_words(phase.shape))
                    .collect();
                if phases.len() > skip + 4 {
                    words.push("…".to_owned());
                }
                format!("open loop, {spacing}, {}", words.join(", then "))
            }
        }
    }
}

fn phase_words(shape: Shape) -> String {
    match shape {
        Shape::Constant(rate) => Rate(rate).to_string(),
        Shape::Ramp { from, to } => format!("{} to {}", Rate(from), Rate(to)),
        Shape::Bursts { base, peak, every, .. } => {
            format!("{} with bursts of {} every {}", Rate(base), Rate(peak), units::seconds(every))
        }
        Shape::Diurnal { low, high, period } => {
            format!("{} to {} and back in {}", Rate(low), Rate(high), units::seconds(period))
        }
    }
}

fn clients(count: Option<u32>, header: Option<&str>) -> Result<Option<Clients>, PlanError> {
    let Some(count) = count else {
        return match header {
            Some(header) => {
                Err(bounds("clients", "their number, to name them in a header", header))
            }
            None => Ok(None),
        };
    };
    let name = header.unwrap_or(DEFAULT_CLIENT_HEADER);
    let header = name.parse().map_err(|_| bounds("client_header", "a header's name", name))?;
    Ok(Some(Clients { count, header }))
}

fn open(
    spacing: Spacing,
    specs: &[scenario::Phase],
    warm_up: Duration,
) -> Result<(Loop, Duration), PlanError> {
    let phases: Vec<Phase> = specs.iter().map(phase).collect::<Result<_, _>>()?;
    let length: f64 = phases.iter().map(|phase| phase.length).sum();
    let first = phases.first().ok_or_else(|| bounds("load.phase", "at least one", "none"))?;
    let mut all = Vec::with_capacity(phases.len() + 1);
    if !warm_up.is_zero() {
        let shape = Shape::Constant(first.first_rate());
        all.push(Phase { shape, length: warm_up.as_secs_f64() });
    }
    all.extend(phases);
    let source = Source::Phases { phases: all, spacing };
    Ok((Loop::Open(source), Duration::from_secs_f64(length)))
}

fn phase(spec: &scenario::Phase) -> Result<Phase, PlanError> {
    let seconds = Duration::as_secs_f64;
    let (shape, length) = match spec {
        scenario::Phase::Constant(Constant { rate, length }) => (Shape::Constant(rate.0), length),
        scenario::Phase::Ramp(Ramp { from, to, length }) => {
            (Shape::Ramp { from: from.0, to: to.0 }, length)
        }
        scenario::Phase::Bursts(Bursts { base, peak, every, burst, length }) => {
            let (every, burst) = (seconds(every), seconds(burst));
            if burst > every {
                let (expected, found) = (units::seconds(every), units::seconds(burst));
                return Err(bounds("burst", &format!("at most every = {expected}"), &found));
            }
            (Shape::Bursts { base: base.0, peak: peak.0, every, length: burst }, length)
        }
        scenario::Phase::Diurnal(Diurnal { low, high, period, length }) => {
            (Shape::Diurnal { low: low.0, high: high.0, period: seconds(period) }, length)
        }
    };
    Ok(Phase { shape, length: seconds(length) })
}

type Replayed = (Loop, Duration, Vec<Option<u32>>);

fn replayed(
    path: &std::path::Path,
    speed: f64,
    requests: &[scenario::Request],
) -> Result<Replayed, PlanError> {
    let fail = |error| PlanError::Replay { path: path.to_owned(), error };
    let lines = replay::read(path).map_err(fail)?;
    // Metadata and probes that nothing in the scenario stands for are left out.
    let (mut times, mut picks) = (Vec::with_capacity(lines.len()), Vec::new());
    for line in &lines {
        let pick = stands_for(line, requests);
        if pick.is_some() || line.is_inference() {
            times.push(line.time);
            picks.push(pick);
        }
    }
    let first = *times.first().ok_or_else(|| fail(replay::ReplayError::Empty))?;
    let times: Vec<u64> =
        times.into_iter().map(|time| units::nanos_of((time - first) / speed)).collect();
    let length = Duration::from_nanos(times.last().copied().unwrap_or(0) + 1);
    Ok((Loop::Open(Source::Recorded(times.into())), length, picks))
}

/// The request of the scenario that a line of the log is replayed with; `None`: any.
fn stands_for(line: &replay::LogLine, requests: &[scenario::Request]) -> Option<u32> {
    let found = requests.iter().position(|request| match &request.kind {
        RequestKind::Infer(infer) => {
            line.is_inference() && line.model.as_deref() == Some(infer.model.as_str())
        }
        RequestKind::Http(Http { path, .. }) => {
            let path = path.split_once('?').map_or(path.as_str(), |(path, _)| path);
            line.path.as_deref() == Some(path)
        }
    })?;
    u32::try_from(found).ok()
}

/// Each fault has its process and ends before the next one begins: otherwise a figure could belong to
/// either of them.
fn check_faults(
    processes: &[scenario::Process],
    faults: &[scenario::Fault],
    measured: Duration,
) -> Result<(), PlanError> {
    if processes.len() > MAX_PROCESSES || faults.len() > MAX_FAULTS {
        let expected = format!("at most {MAX_PROCESSES} processes and {MAX_FAULTS} faults");
        return Err(bounds("scenario", &expected, "more"));
    }
    for (index, process) in processes.iter().enumerate() {
        if process.command.is_empty() {
            return Err(bounds("process.command", "a program and its arguments", "none"));
        }
        if processes[..index].iter().any(|other| other.name == process.name) {
            return Err(bounds("process.name", "a name of its own", &process.name));
        }
    }
    let mut free = Duration::ZERO;
    for fault in faults {
        if processes.iter().all(|process| process.name != fault.process) {
            return Err(bounds("fault.process", "the name of a [[process]]", &fault.process));
        }
        if fault.at < free || fault.at >= measured {
            let expected = format!(
                "a time after the fault before, and before the end: {} to {}",
                units::seconds(free.as_secs_f64()),
                units::seconds(measured.as_secs_f64())
            );
            return Err(bounds("fault.at", &expected, &TimeSpan(fault.at).to_string()));
        }
        free = fault.at + fault.length;
    }
    Ok(())
}

fn bounds(what: &str, expected: &str, found: &str) -> PlanError {
    PlanError::Bounds {
        what: what.to_owned(),
        expected: expected.to_owned(),
        found: found.to_owned(),
    }
}
