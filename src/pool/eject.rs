//! Passive health checking: feeds the outcomes of requests to the outlier detector, and applies its
//! verdicts.
//!
//! The detector itself is pure ([`forebay_routing::health::outlier`]). Only the control task calls this
//! module, so that ejections, probes and operators never overrule each other half way.

use super::{EndpointState, Pool};
use crate::clock;
use forebay_protocol::family::CounterFamily;
use forebay_protocol::metric::proxy as metric;
use forebay_routing::health::outlier::{Cause, Member, OutlierDetector, Verdict};

/// Judges a pool's endpoints. Did anybody's health change?
pub(super) fn apply_outlier_detection(detector: &mut OutlierDetector, pool: &Pool) -> bool {
    let rules = &pool.config.ejection;
    let mut records: Vec<_> = pool.endpoints.iter().map(|e| e.state.record()).collect();
    let mut members: Vec<_> = records
        .iter_mut()
        .zip(&pool.endpoints)
        .map(|(record, endpoint)| Member {
            counts: &endpoint.state.counts,
            history: record,
            probed: endpoint.state.probed(),
            draining: endpoint.state.is_drained(),
        })
        .collect();
    let verdicts = detector.evaluate(rules, &mut members, clock::now());
    drop(members);
    drop(records);
    let mut changed = false;
    for (place, verdict) in verdicts {
        let state = &pool.endpoints[place].state;
        match verdict {
            Verdict::Ejected(cause) => count(metric::EJECTIONS, pool, state, cause),
            Verdict::Spared(cause) => count(metric::EJECTIONS_REFUSED, pool, state, cause),
            Verdict::Returned => {}
        }
        changed |= state.update_health();
    }
    changed
}

/// The probes of an endpoint took it out of rotation.
pub(super) fn probe_failed(pool: &Pool, state: &EndpointState) {
    let held = state.record().probe_failed(&pool.config.ejection, clock::now());
    if let Some(cause) = held {
        count(metric::EJECTIONS, pool, state, cause);
    }
}

fn count(family: CounterFamily<3>, pool: &Pool, state: &EndpointState, cause: Cause) {
    family.with([pool.config.name.as_str(), &state.name, cause.as_str()]).increment(1);
}
