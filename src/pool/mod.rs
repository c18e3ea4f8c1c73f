//! The proxy's knowledge of the endpoints.
//!
//! A request must see one consistent picture, and a reload or a health change must not disturb the requests
//! that run. So the picture is an immutable [`Snapshot`], loaded once per request and replaced as a whole by
//! one task ([`control`]). State that must outlive snapshots (counts in flight, learnt service times, the
//! retry budget) belongs to the identity of an endpoint or a pool and is carried from one snapshot to the
//! next: a reload never resets a counter.

pub mod attempt;
pub mod awaited;
pub mod bind;
pub mod connector;
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
pub mod steps;
mod waits;

pub use endpoint::{Endpoint, EndpointState, LongLived};

use crate::config;
use crate::split::Splits;
use crate::telemetry::variant_metrics::VariantMetrics;
use forebay_routing::waits::PoolWaits;
use forebay_routing::{ModelHandle, ModelStats, PickMemory, RetryBudget, RetryPolicy};
use queue::Queue;
use rotation::Rotation;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

/// Everything a request needs to know of the configuration and the fleet, at one moment.
#[derive(Debug)]
pub struct Snapshot {
    /// The configuration.
    pub config: Arc<config::Config>,
    /// The metrics of its variants.
    pub metrics: Arc<VariantMetrics>,
    /// The live weights of its routes that are split.
    pub splits: Arc<Splits>,
    /// In the order of [`config::Config::pools`].
    pub pools: Vec<Arc<Pool>>,
    /// Number of configurations that this process has run, including this one.
    pub generation: u64,
    /// Time at which this configuration was loaded.
    pub loaded_at: SystemTime,
}

/// A pool at one moment.
#[derive(Debug)]
pub struct Pool {
    /// The pool's configuration.
    pub config: Arc<config::Pool>,
    /// All endpoints.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// Those of them that are used.
    pub rotation: Arc<Rotation>,
    /// State that outlives the snapshot.
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

    /// Whether an endpoint is silent alone. If others have answered probes since, the cause is neither the
    /// network nor work that keeps all of them busy.
    pub fn is_silent_alone(&self, silent: &EndpointState) -> bool {
        let since = silent.silent_since.load(Relaxed);
        let answers = |other: &Arc<Endpoint>| {
            !std::ptr::eq(&*other.state, silent)
                && other.state.answered_probe_at.load(Relaxed) > since
        };
        silent.is_silent() && self.endpoints.iter().any(answers)
    }

    /// Number of endpoints that are in rotation on their own merits.
    pub fn ready_count(&self) -> usize {
        if self.rotation.last_resort { 0 } else { self.rotation.ready.len() }
    }
}

/// State of a pool across snapshots.
#[derive(Debug)]
pub struct PoolState {
    /// State shared by its picks.
    pub pick_memory: Arc<PickMemory>,
    /// Time of the last search for stale reports; see [`report::refresh_stale`].
    pub looked_for_stale: AtomicU64,
    /// Requests that wait for an endpoint.
    pub queue: Arc<Queue>,
    /// The remaining retries.
    pub budget: RetryBudget,
    /// The conditions of retries.
    pub retry_policy: RetryPolicy,
    /// The settings behind the budget and the policy.
    retry: config::Retry,
    /// Second attempts, if there are any.
    pub hedges: Option<Hedges>,
    /// Statistics of each model.
    pub models: Arc<ModelStats>,
    /// The waits of its requests.
    waits: Mutex<PoolWaits>,
}

impl PoolState {
    /// Whether it was made from the settings in `config`.
    fn follows(&self, config: &config::Pool) -> bool {
        let hedge = self.hedges.as_ref().map(|hedges| &hedges.settings);
        self.retry == config.retry && hedge == config.hedge.as_ref()
    }
}

/// The state of hedging.
#[derive(Debug)]
pub struct Hedges {
    /// The remaining hedges.
    pub budget: RetryBudget,
    /// The settings behind it.
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
