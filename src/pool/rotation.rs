//! Which endpoints are used: what probes, operators and requests say of each, brought together.
//!
//! All of this is called by the control task alone, which is why it may write without asking.

use super::control::{Drain, Drained, Unknown};
use super::{Endpoint, EndpointState, Pool, Snapshot, eject};
use crate::{clock, config};
use forebay_routing::{Health, outlier};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// What is used of a pool.
pub(super) struct Rotation {
    pub(super) used: Vec<Arc<Endpoint>>,
    /// Whether those that are ejected have to be among them.
    pub(super) panics: bool,
    /// Whether only those are left that are down for their silence.
    pub(super) last_resort: bool,
}

/// Takes in what an endpoint's probes say, and whether it is down only for its silence. Did that change
/// which endpoints are used?
pub(super) fn probed(
    current: &Snapshot,
    state: &EndpointState,
    health: Health,
    silent: bool,
) -> bool {
    let from = health_of(state);
    state.probed.store(health as u8, Relaxed);
    let was_silent = state.silent.swap(silent, Relaxed);
    if from == Health::Ready && health == Health::Down {
        let has = |pool: &&Arc<Pool>| pool.endpoints.iter().any(|e| std::ptr::eq(&*e.state, state));
        if let Some(pool) = current.pools.iter().find(has) {
            eject::fell(pool, state);
        }
    }
    let changed = settle(state) || was_silent != silent;
    if silent {
        state.has_not_answered();
    }
    changed
}

/// Drains an endpoint, or has it used again.
pub(super) fn drain(current: &Snapshot, wanted: &Drain) -> Result<Drained, Unknown> {
    let pool = current.pools.iter().find(|pool| pool.config.name == wanted.pool);
    let pool = pool.ok_or_else(|| Unknown::Pool(wanted.pool.clone()))?;
    let found = pool.endpoints.iter().find(|endpoint| endpoint.state.address == wanted.address);
    let unknown = || Unknown::Endpoint(wanted.pool.clone(), wanted.address);
    let state = &found.ok_or_else(unknown)?.state;
    state.drained.store(wanted.drained, Relaxed);
    settle(state);
    Ok(Drained { health: state.health(), in_flight: state.in_flight() })
}

/// What an endpoint's health is, all in all: the operator's word goes first, then that of its probes,
/// then what its answers were like.
fn health_of(state: &EndpointState) -> Health {
    match state.probed() {
        _ if state.is_drained() => Health::Draining,
        Health::Ready if state.record().out().is_some() => Health::Ejected,
        probed => probed,
    }
}

/// Brings an endpoint's health up to date. Did it change?
pub(super) fn settle(state: &EndpointState) -> bool {
    let (from, to) = (state.health(), health_of(state));
    state.health.store(to as u8, Relaxed);
    if from == to {
        return false;
    }
    if to == Health::Ready {
        state.load.came_back();
        state.ready_since.store(clock::now().nanos(), Relaxed);
    }
    let cause = state.record().out().map(|(cause, _)| cause.as_str());
    tracing::info!(
        endpoint = &*state.name,
        from = from.as_str(),
        to = to.as_str(),
        cause,
        "health changed"
    );
    true
}

/// The endpoints that are used. A probe that has no answer in time is weak evidence: the endpoint may have
/// much to do. It is enough to prefer others, but not to refuse every request where there is no other. One
/// that refuses connections, or says that it is not ready, is not asked.
pub(super) fn of(config: &config::Pool, endpoints: &[Arc<Endpoint>]) -> Rotation {
    let count = |health| endpoints.iter().filter(|e| e.state.health() == health).count();
    let (ready, ejected) = (count(Health::Ready), count(Health::Ejected));
    let all = endpoints.len() - count(Health::Draining);
    let panics = ejected > 0 && outlier::panics(ready, all, config.ejection.panic_below);
    let last_resort = ready == 0 && !panics;
    let is_used = |endpoint: &&Arc<Endpoint>| match endpoint.state.health() {
        Health::Ready => true,
        Health::Ejected => panics,
        Health::Down => last_resort && endpoint.state.is_silent(),
        Health::Probing | Health::Draining => false,
    };
    let used: Vec<_> = endpoints.iter().filter(is_used).map(Arc::clone).collect();
    for (place, endpoint) in used.iter().enumerate() {
        endpoint.state.place.store(place, Relaxed);
    }
    let last_resort = last_resort && !used.is_empty();
    Rotation { used, panics, last_resort }
}
