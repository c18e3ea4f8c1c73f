//! Scenarios as operators write them: a file, or the same by flags.
//!
//! Each key is declared once ([`forebay_config::section!`]): its name, default, bounds and documentation. The
//! reader of files, the flags of the same names, their help and the [reference] come from that, so that there
//! is one way from spec to plan, and every run that was tried by flags can be written down.

mod fault;
mod file;
mod fleet;
mod load;
mod objective;
pub mod reference;
mod request;
mod run;

pub use fault::{Fault, FaultKind, MAX_FAULTS, MAX_PROCESSES, Process, Slow, Upgrade};
pub use file::{ScenarioError, parse};
pub use fleet::{
    Batch, EndpointFault, EndpointFaultKind, Fallback, Group, Reports, Sim, Simulated, Sinkhole,
    SlowServices,
};
pub use load::{Bursts, Closed, Constant, Diurnal, Load, Open, Phase, Ramp, Replay, Spacing};
pub use objective::{Comparison, Measure, Objective, ObjectiveError};
pub use request::{Encoding, Header, Http, Infer, Range, Request, RequestKind, Shape, Wrong};
pub use run::{General, Live, MAX_THREADS, Protocol, Trust};

use std::path::PathBuf;

/// A whole run, as it is written.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// Settings of the whole run.
    pub general: General,
    /// The start times of requests.
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
