//! What is simulated: a scenario whose every number has been checked, once.

use super::balancer::{Kind, UnknownPolicy};
use crate::mix::mix;
use crate::plan::{Load, Plan, PlanError};
use crate::scenario::{Group, Scenario, Sim};
use crate::units::nanos;

/// Most endpoints of a simulation.
pub const MAX_ENDPOINTS: usize = 10_000;
/// Most requests of a simulation: beyond it somebody mistyped a rate.
const MAX_REQUESTS: f64 = 1e9;
/// The policy where none is named.
const DEFAULT_POLICY: &str = "least_cost";

/// A simulation, ready to run.
#[derive(Debug, Clone)]
pub struct Setting {
    /// Arrivals, requests, what is measured.
    pub plan: Plan,
    /// The endpoints.
    pub groups: Vec<Group>,
    /// The proxies.
    pub sim: Sim,
    /// Who balances in a single run.
    pub policy: Kind,
    /// Who is compared in a table.
    pub policies: Vec<Kind>,
    /// Mean service time in seconds at speed 1.
    pub mean_demand: f64,
    /// From a proxy to an endpoint, in nanoseconds.
    pub half_trip: u64,
}

/// Why a scenario can't be simulated.
#[derive(Debug, thiserror::Error)]
pub enum SettingError {
    /// As for a live run.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// There is nothing to send requests to.
    #[error("expected at least one [[fleet.endpoint]], found none")]
    NoFleet,
    /// More endpoints than can be simulated.
    #[error("fleet.endpoint: expected at most {MAX_ENDPOINTS} endpoints, found {0}")]
    Endpoints(usize),
    /// A policy that nobody has.
    #[error(transparent)]
    Policy(#[from] UnknownPolicy),
    /// Arrivals that depend on answers.
    #[error("load.kind: expected \"open\" or \"replay\", found \"closed\"")]
    Closed,
    /// More requests than anybody waits for.
    #[error("load: expected at most {MAX_REQUESTS} requests, found {0}")]
    Requests(f64),
}

impl Setting {
    /// Checks a scenario.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn new(scenario: Scenario) -> Result<Self, SettingError> {
        let (groups, sim) = (scenario.fleet.clone(), scenario.sim.clone());
        let plan = Plan::simulated(scenario)?;
        let Load::Open(source) = &plan.load else { return Err(SettingError::Closed) };
        if source.expected() > MAX_REQUESTS {
            return Err(SettingError::Requests(source.expected()));
        }
        let endpoints: usize = groups.iter().map(|group| group.count as usize).sum();
        match endpoints {
            0 => return Err(SettingError::NoFleet),
            1..=MAX_ENDPOINTS => {}
            _ => return Err(SettingError::Endpoints(endpoints)),
        }
        let policy = Kind::named(sim.policy.as_deref().unwrap_or(DEFAULT_POLICY))?;
        let named: Result<Vec<Kind>, _> =
            sim.policies.iter().map(|name| Kind::named(name)).collect();
        let mut policies = named?;
        if policies.is_empty() {
            policies = Kind::all().map(|(_, kind)| kind).collect();
        }
        let half_trip = nanos(sim.round_trip.0) / 2;
        let mean_demand = mean_demand(&plan, &groups);
        Ok(Self { plan, groups, sim, policy, policies, mean_demand, half_trip })
    }

    /// How many endpoints there are.
    pub fn endpoints(&self) -> usize {
        self.groups.iter().map(|group| group.count as usize).sum()
    }

    /// Requests a second that all endpoints together can serve.
    pub fn capacity(&self) -> f64 {
        let group = |group: &Group| {
            f64::from(group.count) * f64::from(group.slots) / (self.mean_demand * group.slow)
        };
        self.groups.iter().map(group).sum()
    }

    /// Chance of proxy number `proxy`, the same for all policies.
    pub(super) fn seed_of(&self, proxy: u64) -> u64 {
        mix(self.plan.seed ^ mix(proxy ^ PROXY))
    }
}

/// Keeps the proxies' chance apart from that of the requests.
pub(super) const PROXY: u64 = 0x70_72_6f_78_79;

/// By the shares of the kinds; those that ask for nothing get what the endpoints choose.
fn mean_demand(plan: &Plan, groups: &[Group]) -> f64 {
    let endpoints: f64 = groups.iter().map(|group| f64::from(group.count)).sum();
    let own = groups.iter().map(|group| f64::from(group.count) * group.service.mean()).sum::<f64>();
    let weights: f64 = plan.requests.iter().map(|request| request.weight).sum();
    let asked = plan.requests.iter().map(|request| {
        request.weight * request.demand.map_or(own / endpoints, |demand| demand.mean())
    });
    asked.sum::<f64>() / weights
}
