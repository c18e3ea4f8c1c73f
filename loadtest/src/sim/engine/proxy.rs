//! The state of one proxy beside its balancer: its rotation, health checks and retry budget.

use crate::scenario::EndpointFaultKind;
use crate::sim::plan::SimPlan;
use forebay_routing::{Health, HealthCheck, RetryBudget};

/// The state of one proxy beside its balancer.
pub(super) struct Proxy {
    /// Pays for second attempts.
    pub budget: RetryBudget,
    /// By endpoint: whether it is in rotation.
    pub ready: Vec<bool>,
    /// Of the endpoints that are ever down: others would only ever be found ready.
    pub checks: Vec<Check>,
}

pub(super) struct Check {
    pub endpoint: usize,
    pub check: HealthCheck,
    /// The one that is under way or planned; those before it do not count any more.
    pub number: u32,
    pub last: u64,
}

impl Proxy {
    pub(super) fn new(plan: &SimPlan) -> Self {
        let (retry, probe) = (&plan.sim.retry, &plan.sim.probe);
        let down = plan.faults.iter().filter(|fault| fault.kind == EndpointFaultKind::Down);
        let mut watched: Vec<usize> =
            down.flat_map(|fault| &fault.endpoints).map(|number| *number as usize).collect();
        watched.sort_unstable();
        watched.dedup();
        let check = |endpoint| Check {
            endpoint,
            check: HealthCheck::resume(probe.rise, probe.fall, Health::Ready),
            number: 0,
            last: 0,
        };
        Self {
            budget: RetryBudget::new(retry.budget, retry.min_per_second),
            ready: vec![true; plan.endpoints()],
            checks: watched.into_iter().map(check).collect(),
        }
    }
}
