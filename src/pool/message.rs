//! Messages to the control task, and its answers.

use super::EndpointState;
use crate::config::Config;
use forebay_routing::Health;
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
