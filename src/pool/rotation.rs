//! The endpoints of a pool that are used, as picks see them.

use super::endpoint::{Endpoint, EndpointState, LongLived};
use crate::config;
use forebay_routing::health::rotation as health;
use forebay_routing::pick::{Ring, identity};
use forebay_routing::{PickMemory, Policy};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// The endpoints of a pool that are used, at one moment.
#[derive(Debug)]
pub struct Rotation {
    /// The pool's configuration.
    pub config: Arc<config::Pool>,
    /// Those in rotation.
    pub ready: Vec<Arc<Endpoint>>,
    /// The same, for what lasts.
    pub long_lived: Vec<LongLived>,
    /// Whether so few are ready that those that are ejected are in rotation too.
    pub panics: bool,
    /// Whether none is ready, so that those are in rotation that are down for their silence alone.
    pub last_resort: bool,
    /// Those in rotation in a circle, if the policy wants it.
    pub ring: Ring,
    /// State shared by the pool's picks, across snapshots.
    pub pick_memory: Arc<PickMemory>,
}

impl Rotation {
    /// Of those `endpoints` whose health allows it now.
    pub(super) fn new(
        config: Arc<config::Pool>,
        endpoints: &[Arc<Endpoint>],
        pick_memory: Arc<PickMemory>,
    ) -> Self {
        let ReadySet { used: ready, panics, last_resort } = ready_set(&config, endpoints);
        let long_lived = ready.iter().map(|endpoint| LongLived(Arc::clone(endpoint))).collect();
        let ring = circle(&config, &ready);
        Self { config, ready, long_lived, panics, last_resort, ring, pick_memory }
    }

    /// Position of an endpoint among those in rotation.
    pub(super) fn place(&self, endpoint: &EndpointState) -> Option<usize> {
        let place = endpoint.place.load(Relaxed);
        self.ready.get(place).filter(|it| std::ptr::eq(&*it.state, endpoint)).map(|_| place)
    }
}

/// The endpoints in rotation in a circle, if keys are to find theirs. By their addresses, so that all
/// proxies agree.
fn circle(config: &config::Pool, ready: &[Arc<Endpoint>]) -> Ring {
    if config.policy != Policy::Sticky {
        return Ring::default();
    }
    Ring::new(ready.iter().map(|endpoint| identity(endpoint.state.name.as_bytes())))
}

struct ReadySet {
    used: Vec<Arc<Endpoint>>,
    /// Whether those that are ejected have to be among them.
    panics: bool,
    /// Whether only those are left that are down for their silence.
    last_resort: bool,
}

/// The endpoints that are used.
fn ready_set(config: &config::Pool, endpoints: &[Arc<Endpoint>]) -> ReadySet {
    let healths = endpoints.iter().map(|endpoint| endpoint.state.health());
    let rule = health::Rotation::of(healths, config.ejection.panic_below);
    let is_used =
        |endpoint: &&Arc<Endpoint>| rule.uses(endpoint.state.health(), endpoint.state.is_silent());
    let used: Vec<_> = endpoints.iter().filter(is_used).map(Arc::clone).collect();
    for (place, endpoint) in used.iter().enumerate() {
        endpoint.state.place.store(place, Relaxed);
    }
    let last_resort = rule.last_resort && !used.is_empty();
    ReadySet { used, panics: rule.panics, last_resort }
}
