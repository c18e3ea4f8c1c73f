//! Applies the results of probes and the operator's drains to an endpoint.
//!
//! Only the control task calls this module, which is why it may write without asking.

use super::eject;
use super::message::{Drain, Drained, Unknown};
use super::{EndpointState, Pool, Snapshot};
use forebay_routing::Health;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Takes in what an endpoint's probes say, and whether it is down only for its silence. Did that change
/// which endpoints are used?
pub(super) fn apply_probe(
    current: &Snapshot,
    state: &EndpointState,
    health: Health,
    silent: bool,
) -> bool {
    let from = state.present_health();
    state.probed.store(health as u8, Relaxed);
    let was_silent = state.silent.swap(silent, Relaxed);
    if from == Health::Ready && health == Health::Down {
        let has = |pool: &&Arc<Pool>| pool.endpoints.iter().any(|e| std::ptr::eq(&*e.state, state));
        if let Some(pool) = current.pools.iter().find(has) {
            eject::probe_failed(pool, state);
        }
    }
    let changed = state.update_health() || was_silent != silent;
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
    state.update_health();
    Ok(Drained { health: state.health(), in_flight: state.in_flight() })
}
