//! What an operator writes: a scenario file, or the same by flags.
//!
//! Flags are turned into the same structure that a file is read into, so that there is one way from
//! wish to plan, and every run that was tried by flags can be written down.

use crate::arrivals::Spacing;
use crate::distribution::Distribution;
use crate::objective::Objective;
use crate::target::Protocol;
use crate::units::{Rate, Span};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Largest scenario file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// A whole run, as it is written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// For reports; the file's name if absent.
    pub name: Option<String>,
    /// `http://host:port[/base]`; `--target` overrides it.
    pub target: Option<String>,
    /// Everything random in the run follows from it. Default 1.
    #[serde(default = "one")]
    pub seed: u64,
    /// `http/1.1` (default) or `h2c`.
    #[serde(default)]
    pub protocol: Protocol,
    /// Open loop: most connections. Closed loop: connections.
    pub connections: Option<usize>,
    /// Requests at a time on one HTTP/2 connection.
    pub streams: Option<usize>,
    /// Threads that generate load; one is enough for tens of thousands of requests a second.
    pub threads: Option<usize>,
    /// Time before anything is measured, in addition to the load's own length.
    pub warm_up: Option<Span>,
    /// After it, counted from the intended start, a request is given up.
    pub timeout: Option<Span>,
    /// What the run must reach.
    #[serde(default)]
    pub objectives: Vec<Objective>,
    /// When requests start.
    pub load: Load,
    /// What requests are made of.
    #[serde(rename = "request")]
    pub requests: Vec<Request>,
    /// Directory to which paths in the scenario are relative.
    #[serde(skip)]
    pub base: PathBuf,
}

/// When requests start.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Load {
    /// At planned times, whatever the answers do.
    Open {
        /// `constant` (evenly, default) or `poisson`.
        #[serde(default = "evenly")]
        spacing: Spacing,
        /// One after the other.
        #[serde(rename = "phase")]
        phases: Vec<Phase>,
    },
    /// Each connection sends its next request when it has the answer to the last one.
    Closed {
        /// How long.
        #[serde(rename = "for")]
        length: Span,
    },
    /// At the times of an access log.
    Replay {
        /// JSON lines with a field `time`; `model` picks the request of the same model.
        file: PathBuf,
        /// 2.0 is twice as fast.
        #[serde(default = "unit")]
        speed: f64,
    },
}

/// A stretch of an open loop.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields are those of `arrivals::Shape`, with units")]
pub enum Phase {
    /// The same rate all the time.
    Constant {
        rate: Rate,
        #[serde(rename = "for")]
        length: Span,
    },
    /// From one rate to another.
    Ramp {
        from: Rate,
        to: Rate,
        #[serde(rename = "for")]
        length: Span,
    },
    /// A burst at the end of every period.
    Bursts {
        base: Rate,
        peak: Rate,
        every: Span,
        burst: Span,
        #[serde(rename = "for")]
        length: Span,
    },
    /// A sine.
    Diurnal {
        low: Rate,
        high: Rate,
        period: Span,
        #[serde(rename = "for")]
        length: Span,
    },
}

/// One kind of request in the mix.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// An inference, made from the model's own metadata or from files.
    Infer {
        /// The model's name.
        model: String,
        /// Its version; the server's choice if absent.
        version: Option<String>,
        /// `json` (default) or `binary`.
        #[serde(default)]
        encoding: Encoding,
        /// Batch sizes with their weights: `[{ size = 1, weight = 9 }, { size = 8 }]`.
        #[serde(default)]
        batch: Vec<Batch>,
        /// Number of different inputs. Default 16.
        distinct: Option<usize>,
        /// Exponent of the inputs' popularity; 0 (default): all alike.
        #[serde(default)]
        zipf: f64,
        /// Shapes of inputs with dynamic dimensions, the batch included.
        #[serde(default)]
        shape: BTreeMap<String, Vec<u64>>,
        /// Random values lie in `[low, high)`.
        range: Option<(f64, f64)>,
        /// Files with whole JSON requests; then nothing is random.
        #[serde(default)]
        input: Vec<PathBuf>,
        /// What all kinds have.
        #[serde(default)]
        with: With,
    },
    /// Any other request.
    Http {
        /// Default `GET`, with a body `POST`.
        method: Option<String>,
        /// Path and query.
        path: String,
        /// File with the body.
        body: Option<PathBuf>,
        /// What all kinds have.
        #[serde(default)]
        with: With,
    },
}

/// What a request may carry, whatever its kind.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct With {
    /// Its share in the mix, relative to the others. Default 1.
    #[serde(default = "unit")]
    pub weight: f64,
    /// Sent as `x-request-deadline`.
    pub deadline: Option<Span>,
    /// `high`, `normal` or `batch`; sent as `x-request-priority`.
    pub priority: Option<Priority>,
    /// Service time to ask a synthetic backend for, drawn anew for every request:
    /// `"exponential:20ms"`. The same seed draws the same times for every balancer.
    pub demand: Option<Distribution>,
    /// Any other header.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
}

impl Default for With {
    fn default() -> Self {
        Self { weight: 1.0, deadline: None, priority: None, demand: None, headers: BTreeMap::new() }
    }
}

/// How urgent a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Before all others.
    High,
    /// The default.
    Normal,
    /// When there is nothing else to do.
    Batch,
}

impl Priority {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Normal => "normal",
            Self::Batch => "batch",
        }
    }
}

/// How tensors are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    /// As JSON numbers.
    #[default]
    Json,
    /// With the binary tensor extension, in both directions.
    Binary,
}

/// A batch size and its share.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    /// Items in one request.
    pub size: u64,
    /// Its share relative to the others. Default 1.
    #[serde(default = "unit")]
    pub weight: f64,
}

/// Why a scenario file can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// The file can't be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is larger than any scenario.
    #[error("{path}: expected at most {MAX_FILE} bytes, found {size}")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// The file is not a scenario; the text says line, column and what was expected.
    #[error("{path}: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: Box<toml::de::Error>,
    },
}

impl Scenario {
    /// Reads a scenario file.
    ///
    /// # Errors
    /// The file is not there, too large, or not a scenario.
    pub fn read(path: &Path) -> Result<Self, ScenarioError> {
        let fail = |source| ScenarioError::Read { path: path.to_owned(), source };
        let size = std::fs::metadata(path).map_err(fail)?.len();
        if size > MAX_FILE {
            return Err(ScenarioError::TooLarge { path: path.to_owned(), size });
        }
        let text = std::fs::read_to_string(path).map_err(fail)?;
        let mut scenario: Self = toml::from_str(&text).map_err(|source| ScenarioError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        scenario.base = path.parent().map(Path::to_owned).unwrap_or_default();
        if scenario.name.is_none() {
            scenario.name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        }
        Ok(scenario)
    }
}

fn one() -> u64 {
    1
}

fn unit() -> f64 {
    1.0
}

fn evenly() -> Spacing {
    Spacing::Constant
}
