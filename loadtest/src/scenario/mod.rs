//! Scenarios as operators write them: a file, or the same by flags.
//!
//! Flags are turned into the same structure that a file is read into, with the same words for the
//! same things, so that there is one way from spec to plan, and every run that was tried by flags
//! can be written down.

mod fault;
mod file;
mod fleet;
mod objective;
mod table;

pub use fault::{Fault, FaultKind, MAX_FAULTS, MAX_PROCESSES, Process};
pub use file::{ScenarioError, parse};
pub use fleet::{Batch, EndpointFault, EndpointFaultKind, Group, Reports, Sim, Simulated};
pub use objective::{Comparison, Measure, Objective, ObjectiveError};

use crate::distribution::Distribution;
use crate::units::{Rate, TimeSpan};
use forebay_protocol::Priority;
use std::path::PathBuf;
use std::str::FromStr;

/// A whole run, as it is written.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// For reports; the file's name if absent.
    pub name: Option<String>,
    /// Everything random in the run follows from it. Default 1.
    pub seed: u64,
    /// Time before anything is measured, in addition to the load's own length.
    pub warm_up: Option<TimeSpan>,
    /// After it, counted from the intended start, a request is given up.
    pub timeout: Option<TimeSpan>,
    /// Requests come from so many clients, each as often as any other.
    pub clients: Option<u32>,
    /// The header in which requests name their client. Default `x-client`.
    pub client_header: Option<String>,
    /// Objectives that the run must reach.
    pub objectives: Vec<Objective>,
    /// When requests start.
    pub load: Load,
    /// The kinds of requests.
    pub requests: Vec<Request>,
    /// Directory to which paths in the scenario are relative.
    pub base: PathBuf,
    /// Settings of a live run alone.
    pub live: Live,
    /// Settings of a simulation alone.
    pub simulated: Simulated,
}

/// The target of a live run, the connections to it and the programs around it.
#[derive(Debug, Clone, Default)]
pub struct Live {
    /// `http[s]://host:port[/base]`; `--target` overrides it.
    pub target: Option<String>,
    /// `http/1.1` (default), `h2` or `grpc`.
    pub protocol: Protocol,
    /// Which certificates are believed, where the target says https.
    pub tls: Trust,
    /// Open loop: most connections. Closed loop: connections.
    pub connections: Option<usize>,
    /// Requests at a time on one HTTP/2 connection.
    pub streams: Option<usize>,
    /// Threads that generate load; one is enough for tens of thousands of requests a second.
    pub threads: Option<usize>,
    /// Programs that the run starts.
    pub processes: Vec<Process>,
    /// Faults of these programs.
    pub faults: Vec<Fault>,
}

/// When requests start.
#[derive(Debug, Clone)]
pub enum Load {
    /// At planned times, whatever the answers do.
    Open {
        /// `constant` (evenly, default) or `poisson`.
        spacing: Spacing,
        /// One after the other.
        phases: Vec<Phase>,
    },
    /// Each connection sends its next request when it has the answer to the last one.
    Closed {
        /// How long.
        length: TimeSpan,
    },
    /// At the times of an access log.
    Replay {
        /// JSON lines such as forebay's access log: `time` (less `total_us`) is when a request
        /// came; `model`, else `path`, picks the request that stands for it.
        file: PathBuf,
        /// 2.0 is twice as fast.
        speed: f64,
    },
}

/// A stretch of an open loop; the fields are those of [`crate::plan::arrivals::Shape`], with units.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "see the enum")]
pub enum Phase {
    /// The same rate all the time.
    Constant { rate: Rate, length: TimeSpan },
    /// From one rate to another.
    Ramp { from: Rate, to: Rate, length: TimeSpan },
    /// A burst at the end of every period.
    Bursts { base: Rate, peak: Rate, every: TimeSpan, burst: TimeSpan, length: TimeSpan },
    /// A sine.
    Diurnal { low: Rate, high: Rate, period: TimeSpan, length: TimeSpan },
}

/// One kind of request in the mix.
#[derive(Debug, Clone)]
pub struct Request {
    /// Its share in the mix, relative to the others. Default 1.
    pub weight: f64,
    /// Sent as `x-request-deadline`.
    pub deadline: Option<TimeSpan>,
    /// Sent as `x-request-priority`.
    pub priority: Option<Priority>,
    /// Service time to ask a synthetic backend for, drawn for every request. The same seed
    /// draws the same times for every balancer.
    pub demand: Option<Distribution>,
    /// Any other headers. One that names the client stays as it is.
    pub headers: Vec<Header>,
    /// An inference, or anything else.
    pub kind: RequestKind,
}

/// A kind of request.
#[derive(Debug, Clone)]
pub enum RequestKind {
    /// An inference, made from the model's own metadata or from files.
    Infer(Infer),
    /// Anything else.
    Http {
        /// Default `GET`, with a body `POST`.
        method: Option<String>,
        /// Path and query.
        path: String,
        /// File with the body.
        body: Option<PathBuf>,
    },
}

/// An inference.
#[derive(Debug, Clone, Default)]
pub struct Infer {
    /// The model's name.
    pub model: String,
    /// Its version; the server's choice if absent.
    pub version: Option<String>,
    /// `json` (default) or `binary`; gRPC knows binary alone.
    pub encoding: Encoding,
    /// Batch sizes, chosen at random. Default 1.
    pub batch: Vec<u64>,
    /// Number of different inputs. Default 16.
    pub distinct: Option<usize>,
    /// Exponent of the inputs' popularity; 0 (default): all alike.
    pub zipf: f64,
    /// Shapes of inputs with dynamic dimensions, the batch included.
    pub shape: Vec<Shape>,
    /// Where random values lie.
    pub range: Option<Range>,
    /// Files with whole JSON requests; then nothing is random.
    pub input: Vec<PathBuf>,
}

/// How tensors are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Encoding {
    /// As JSON numbers
    #[default]
    Json,
    /// With the binary tensor extension, in both directions
    Binary,
}

/// A header, written `name: value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Before the colon.
    pub name: String,
    /// Behind it.
    pub value: String,
}

/// The shape of one input, written `input:1,128`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// The input's name.
    pub input: String,
    /// Its dimensions.
    pub sizes: Vec<u64>,
}

/// How requests are put on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Protocol {
    /// HTTP/1.1 with keep-alive, one request at a time on a connection
    #[default]
    #[value(name = "http/1.1", alias = "h1")]
    Http1,
    /// HTTP/2, many requests at a time on a connection; in clear text with prior knowledge
    #[value(name = "h2", alias = "h2c")]
    Http2,
    /// Inferences over gRPC, whose tensors are always binary; many at a time on a connection
    #[value(name = "grpc")]
    Grpc,
}

/// Which certificates are believed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Trust {
    /// Any at all.
    pub insecure: bool,
    /// Those of the authorities in this PEM file; without it those that the system trusts.
    pub ca: Option<PathBuf>,
}

/// How arrivals are spaced at a given rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spacing {
    /// Evenly: nothing is random.
    Constant,
    /// As independent clients come: a Poisson process.
    Poisson,
}

/// Where random numbers lie: from `low` up to, not including, `high`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range {
    /// Least value.
    pub low: f64,
    /// Bound above.
    pub high: f64,
}

/// A text that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, found \"{found}\"")]
pub struct Wrong {
    /// In words, with an example.
    pub expected: &'static str,
    /// The text.
    pub found: String,
}

impl Header {
    /// Description of a header, for errors.
    pub const EXPECTED: &'static str = "a header such as \"x-client: search\"";
}

impl Shape {
    /// Description of a shape, for errors.
    pub const EXPECTED: &'static str = "a shape such as \"ids:1,128\"";
}

impl Range {
    /// Description of a range, for errors.
    pub const EXPECTED: &'static str = "a range such as \"0..256\", its low end below the high one";
}

impl FromStr for Header {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let wrong = || Wrong { expected: Self::EXPECTED, found: text.to_owned() };
        let (name, value) = text.split_once(':').ok_or_else(wrong)?;
        http::HeaderName::try_from(name.trim()).map_err(|_| wrong())?;
        http::HeaderValue::try_from(value.trim()).map_err(|_| wrong())?;
        Ok(Self { name: name.trim().to_owned(), value: value.trim().to_owned() })
    }
}

impl FromStr for Shape {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let wrong = || Wrong { expected: Self::EXPECTED, found: text.to_owned() };
        let (input, sizes) = text.rsplit_once(':').ok_or_else(wrong)?;
        let sizes: Result<Vec<u64>, _> = sizes.split(',').map(|size| size.trim().parse()).collect();
        Ok(Self { input: input.to_owned(), sizes: sizes.map_err(|_| wrong())? })
    }
}

impl FromStr for Range {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let number = |text: &str| text.trim().parse::<f64>().ok().filter(|n| n.is_finite());
        text.split_once("..")
            .and_then(|(low, high)| Some(Self { low: number(low)?, high: number(high)? }))
            .filter(|range| range.low < range.high)
            .ok_or_else(|| Wrong { expected: Self::EXPECTED, found: text.to_owned() })
    }
}
