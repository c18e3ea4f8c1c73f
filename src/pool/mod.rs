//! What the proxy knows of the endpoints, and who may change it.
//!
//! A request must see one consistent picture, and a reload or a health change must not disturb
//! the requests that run. So the picture is an immutable [`Snapshot`], loaded once a request and
//! replaced as a whole by one task ([`control`]). What must outlive snapshots (counts in flight,
//! learnt service times, the retry budget) hangs on the identity of an endpoint or a pool and is
//! carried from one snapshot to the next: a reload never resets a counter.

pub mod attempt;
pub mod awaited;
pub mod bind;
pub mod control;
mod eject;
pub mod endpoint;
pub mod fleet;
mod health;
pub mod liveness;
pub mod message;
mod poll;
pub mod probe;
pub mod queue;
pub mod readiness;
pub mod report;
pub mod rotation;
mod side_request;

pub use endpoint::{Endpoint, EndpointState, LongLived};

use crate::config;
use crate::telemetry::variant_metrics::VariantMetrics;
use forebay_routing::{ModelHandle, ModelStats, PickMemory, RetryBudget, RetryPolicy};
use queue::Queue;
use rotation::Rotation;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

/// Everything a request needs to know of the configuration and the fleet, at one moment.
#[derive(Debug)]
pub struct Snapshot {
    /// What the file says.
    pub config: Arc<config::Config>,
    /// The metrics of its variants.
    pub metrics: Arc<VariantMetrics>,
    /// In the order of [`config::Config::pools`].
    pub pools: Vec<Arc<Pool>>,
    /// How many configurations this process has run, this one included.
    pub generation: u64,
    /// When this configuration was loaded.
    pub loaded_at: SystemTime,
}

/// A pool at one moment.
#[derive(Debug)]
pub struct Pool {
    /// What the file says of it.
    pub config: Arc<config::Pool>,
    /// All endpoints.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// Those of them that are used.
    pub rotation: Arc<Rotation>,
    /// What outlives the snapshot.
    pub state: Arc<PoolState>,
}

impl Pool {
    /// With those in rotation whose health allows it now.
    fn new(
        config: Arc<config::Pool>,
        endpoints: Vec<Arc<Endpoint>>,
        state: Arc<PoolState>,
    ) -> Self {
        let pick_memory = Arc::clone(&state.pick_memory);
        let rotation = Arc::new(Rotation::new(Arc::clone(&config), &endpoints, pick_memory));
        Self { config, endpoints, rotation, state }
    }

    /// Is an endpoint silent alone? Where others answer probes since, it is neither the network nor work
    /// that keeps all of them busy.
    pub fn is_silent_alone(&self, silent: &EndpointState) -> bool {
        let since = silent.silent_since.load(Relaxed);
        let answers = |other: &Arc<Endpoint>| {
            !std::ptr::eq(&*other.state, silent)
                && other.state.answered_probe_at.load(Relaxed) > since
        };
        silent.is_silent() && self.endpoints.iter().any(answers)
    }

    /// How many of those in rotation are there on their own merits.
    pub fn ready_count(&self) -> usize {
        if self.rotation.last_resort { 0 } else { self.rotation.ready.len() }
    }
}

/// What a pool remembers across snapshots.
#[derive(Debug)]
pub struct PoolState {
    /// What its picks share.
    pub pick_memory: Arc<PickMemory>,
    /// When its reports were last looked at for stale ones; see [`report::refresh_stale`].
    pub looked_for_stale: AtomicU64,
    /// Requests that wait for an endpoint.
    pub queue: Arc<Queue>,
    /// How many retries are left.
    pub budget: RetryBudget,
    /// What is sent again.
    pub retry_policy: RetryPolicy,
    /// What the budget and the policy were made from.
    retry: config::Retry,
    /// Second attempts, if there are any.
    pub hedges: Option<Hedges>,
    /// What is known of each model.
    pub models: Arc<ModelStats>,
}

impl PoolState {
    /// Was it made from what `config` says?
    fn follows(&self, config: &config::Pool) -> bool {
        let hedge = self.hedges.as_ref().map(|hedges| &hedges.settings);
        self.retry == config.retry && hedge == config.hedge.as_ref()
    }
}

/// What decides on second attempts beside slow first ones.
#[derive(Debug)]
pub struct Hedges {
    /// How many are left.
    pub budget: RetryBudget,
    /// What they are made after.
    settings: config::Hedge,
}

impl Hedges {
    fn new(settings: &config::Hedge) -> Self {
        Self { budget: RetryBudget::for_hedges(settings.budget), settings: settings.clone() }
    }

    /// The time after which a second attempt is worth its cost; `None` while nothing is known of what the
    /// model takes.
    pub fn after(&self, asked: &ModelHandle) -> Option<Duration> {
        asked.estimate().map(|usual| usual.max(self.settings.min_delay))
    }
}

/// Time without a sign of life after which one of the tasks that watch endpoints counts as one that stands
/// still: far more than a busy machine or a large reload takes.
const STANDSTILL: Duration = Duration::from_secs(10);
