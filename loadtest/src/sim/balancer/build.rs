//! The balancers of a simulation.

use super::Balancer;
use super::forebay::Forebay;
use super::informed::Informed;
use super::oracles::{Central, Expected, Oracle};
use super::peers::{LeastConn, LeastRequest, LeastTime};
use super::policy::SimPolicy;
use super::prequal::Prequal;
use crate::sim::plan::SimPlan;

/// Makes the balancers of `policy` that `plan` needs: of each pool one for each proxy, or one for all.
pub(in crate::sim) fn build(policy: SimPolicy, plan: &SimPlan) -> Vec<Box<dyn Balancer>> {
    let central = matches!(policy, SimPolicy::Central | SimPolicy::Informed { .. });
    let proxies = if central { 1 } else { u64::from(plan.sim.proxies) };
    let pools = plan.pools.members.iter();
    pools.flat_map(|members| (0..proxies).map(|proxy| one(policy, plan, members, proxy))).collect()
}

fn one(policy: SimPolicy, plan: &SimPlan, members: &[bool], proxy: u64) -> Box<dyn Balancer> {
    let (n, seed) = (plan.endpoints(), plan.seed_of(proxy));
    match policy {
        SimPolicy::Forebay(policy) => Box::new(Forebay::new(policy, plan, members, seed)),
        SimPolicy::NginxLeastConn => Box::new(LeastConn::new(vec![u32::MAX; n])),
        SimPolicy::HaproxyMaxconn => Box::new(LeastConn::new(plan.slots())),
        SimPolicy::NginxRandomTwo => Box::new(LeastRequest::new(n, false, seed)),
        SimPolicy::EnvoyLeastRequest => Box::new(LeastRequest::new(n, true, seed)),
        SimPolicy::TraefikLeastTime => Box::new(LeastTime::new(n)),
        SimPolicy::Prequal => Box::new(Prequal::new(n, seed)),
        SimPolicy::Central => Box::new(Central::new(members)),
        SimPolicy::Expected => Box::new(Expected::new(n, plan.mean_demand, seed)),
        SimPolicy::Informed { floor, in_time } => {
            Box::new(Informed::new(plan, members, [floor, in_time].map(f64::from)))
        }
        SimPolicy::Oracle => Box::new(Oracle::new(plan.one_way, seed)),
    }
}
