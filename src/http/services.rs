//! Parts of the process that stages use, beside what the request carries.

use crate::http::cache::Cache;
use crate::http::shadow::Shadows;
use crate::lifecycle::Lifecycle;
use crate::pool::Snapshot;
use crate::pool::connector::Connector;
use arc_swap::ArcSwap;
use std::sync::Arc;

/// Parts of the process that stages use.
#[derive(Clone)]
pub struct Services {
    /// Connections to endpoints.
    pub connector: Arc<Connector>,
    /// Whether the process is on its way out, what is in flight, and the memory for bodies.
    pub lifecycle: Arc<Lifecycle>,
    /// Kept answers.
    pub cache: Arc<Cache>,
    /// Copies of requests whose answers are compared.
    pub shadows: Arc<Shadows>,
    /// The present picture of configuration and fleet, which may change while a request is on its way.
    pub present: Arc<ArcSwap<Snapshot>>,
}
