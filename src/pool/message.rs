//! What the control task is told, and what it answers.

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
        /// What its probes say.
        health: Health,
        /// Whether it is down only for having said nothing in time.
        silent: bool,
    },
    /// An operator wants an endpoint drained, or used again.
    Drain(Drain, oneshot::Sender<Result<Drained, Unknown>>),
    /// Run this configuration from now on.
    Reload(Box<Config>, oneshot::Sender<Result<u64, ReloadError>>),
}

/// Which endpoint is drained, or used again.
#[derive(Debug, Clone)]
pub struct Drain {
    /// Name of its pool.
    pub pool: String,
    /// Its address.
    pub address: SocketAddr,
    /// Whether it gets nothing new from now on.
    pub drained: bool,
}

/// What became of an endpoint that was drained, or is used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Its health now.
    pub health: Health,
    /// What it still has of ours.
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
    #[error("the process is stopping")]
    Stopping,
    /// A mistake of this program.
    #[error("the task that drains endpoints failed")]
    Failed,
}

/// Why a valid configuration can't be taken over by the running process.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReloadError {
    /// A part that is fixed at start.
    #[error("{0} changed, which needs a restart: the running configuration stays")]
    NeedsRestart(&'static str),
    /// A mistake of this program.
    #[error("taking it over failed: the running configuration stays")]
    Failed,
}
