//! Messages to the control task, and its answers.

use super::EndpointState;
use crate::config::Config;
use crate::split::Split;
use forebay_routing::Health;
use forebay_routing::split::WeightError;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Something that happened.
pub enum Message {
    /// A prober found that what an endpoint says of itself has changed.
    Probed {
        /// The endpoint.
        state: Arc<EndpointState>,
        /// The result of its probes.
        health: Health,
        /// Whether it is down only for having said nothing in time.
        silent: bool,
    },
    /// An operator wants an endpoint drained, or used again.
    Drain(Drain, oneshot::Sender<Result<Drained, Unknown>>),
    /// Weights of a route are to change.
    Weights(SetWeights, oneshot::Sender<Result<Arc<Split>, WeightsError>>),
    /// Run this configuration from now on.
    Reload(Box<Config>, oneshot::Sender<Result<u64, ReloadError>>),
}

/// A request to drain an endpoint, or to put it back into use.
#[derive(Debug, Clone)]
pub struct Drain {
    /// Name of its pool.
    pub pool: String,
    /// Its address.
    pub address: SocketAddr,
    /// Whether it gets nothing new from now on.
    pub drained: bool,
}

/// The state of an endpoint that was drained, or put back into use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Its health now.
    pub health: Health,
    /// Requests of this proxy that are unfinished there.
    pub in_flight: u32,
}

/// Why an endpoint can't be drained.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// No such pool.
    #[error("there is no pool {0:?}")]
    Pool(String),
    /// No such endpoint.
    #[error("pool {0:?} has no endpoint {1}")]
    Endpoint(String, SocketAddr),
    /// The process is on its way out.
    #[error("the process is shutting down")]
    Stopping,
    /// A mistake of this program.
    #[error("the task that drains endpoints failed")]
    Failed,
}

/// A change of weights.
#[derive(Debug, Clone)]
pub struct SetWeights {
    /// Name of the route.
    pub route: String,
    /// New weights by the names of variants, in thousandths. A single variant that is left out gets the rest;
    /// several keep theirs.
    pub weights: Vec<(String, u32)>,
    /// The side that changes them, for the log: such as `operator`.
    pub by: String,
}

/// Why weights can't be changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WeightsError {
    /// No such route.
    #[error("there is no route {0:?}")]
    Route(String),
    /// The route has one variant.
    #[error("expected a route with several variants, found {0:?} with one")]
    NotSplit(String),
    /// The weights are wrong.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// The process is on its way out.
    #[error("the process is shutting down")]
    Stopping,
    /// A mistake of this program.
    #[error("the task that changes weights failed")]
    Failed,
}

/// Why a valid configuration can't be taken over by the running process.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReloadError {
    /// A part that is fixed at start.
    #[error("{0} changed, which needs a restart; keeping the running configuration")]
    NeedsRestart(&'static str),
    /// The process ends.
    #[error("the process is shutting down")]
    ShuttingDown,
    /// A mistake of this program.
    #[error("taking it over failed; keeping the running configuration")]
    Failed,
}
