//! The plan of a simulation: a scenario whose every number has been checked, once.

use super::balancer::policy::{SimPolicy, UnknownPolicy};
use super::pools::{PoolError, Pools};
use crate::plan::arrivals::{Shape, Source};
use crate::plan::seed::derive;
use crate::plan::{Loop, Plan, PlanError};
use crate::report::outcome::{Failure, Outcome};
use crate::scenario::{EndpointFault, Group, Request, RequestKind, Scenario, Sim, Simulated};
use crate::units::{nanos, nanos_of};
use forebay_protocol::{Priority, Reason};
use std::time::Duration;

/// Maximum number of endpoints of a simulation.
pub const MAX_ENDPOINTS: usize = 10_000;
/// Maximum number of requests of a simulation: more are a mistyped rate.
const MAX_REQUESTS: f64 = 1e9;
/// The policy where none is named.
const DEFAULT_POLICY: &str = "adaptive";

/// A simulation, ready to run.
#[derive(Debug, Clone)]
pub struct SimPlan {
    /// Arrivals, requests, what is measured.
    pub run: Plan,
    /// The endpoints.
    pub groups: Vec<Group>,
    /// The pools of these endpoints, and the fallbacks of the route.
    pub pools: Pools,
    /// The proxies.
    pub sim: Sim,
    /// The policy of a single run.
    pub policy: SimPolicy,
    /// The policies of a table.
    pub policies: Vec<SimPolicy>,
    /// Mean service time in seconds at speed 1.
    pub mean_demand: f64,
    /// From a proxy to an endpoint, in nanoseconds.
    pub one_way: u64,
    /// By kind of request: after how many nanoseconds it is given up, and why then.
    pub timeouts: Vec<(u64, Outcome)>,
    /// By kind of request: how urgent it is, 0 being the most urgent class.
    pub classes: Vec<u8>,
    /// By kind of request: the number of the model that it asks for.
    pub models: Vec<u64>,
    /// Faults of endpoints.
    pub faults: Vec<EndpointFault>,
    /// From when to when, in nanoseconds, more is asked for than all endpoints can serve.
    pub overload: Option<(u64, u64)>,
}

/// Why a scenario can't be simulated.
#[derive(Debug, thiserror::Error)]
pub enum SimPlanError {
    /// An error that a live run would have as well.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// There is nothing to send requests to.
    #[error("expected at least one [[fleet.endpoint]], found none")]
    NoFleet,
    /// Endpoints and fallbacks do not fit.
    #[error(transparent)]
    Pools(#[from] PoolError),
    /// More endpoints than can be simulated.
    #[error("fleet.endpoint: expected at most {MAX_ENDPOINTS} endpoints, found {0}")]
    Endpoints(usize),
    /// A fault names an endpoint that is not there.
    #[error("fleet.fault.endpoints: expected numbers of endpoints, from 0, found {0}")]
    Fault(u32),
    /// A policy that can't foresee batches.
    #[error("policy: expected one that needs not foresee when batches end, found \"{0}\"")]
    Batches(&'static str),
    /// A policy that does not exist.
    #[error(transparent)]
    Policy(#[from] UnknownPolicy),
    /// Arrivals that depend on answers.
    #[error("load.kind: expected \"open\" or \"replay\", found \"closed\"")]
    Closed,
    /// More requests than can be simulated in reasonable time.
    #[error("load: expected at most {MAX_REQUESTS} requests, found {0}")]
    Requests(f64),
}

impl SimPlan {
    /// Checks a scenario.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn new(scenario: Scenario) -> Result<Self, SimPlanError> {
        let Simulated { fleet: groups, faults, sim } = scenario.simulated.clone();
        let run = Plan::simulated(scenario)?;
        let Loop::Open(source) = &run.load else { return Err(SimPlanError::Closed) };
        if source.expected() > MAX_REQUESTS {
            return Err(SimPlanError::Requests(source.expected()));
        }
        let endpoints: usize = groups.iter().map(|group| group.count as usize).sum();
        match endpoints {
            0 => return Err(SimPlanError::NoFleet),
            1..=MAX_ENDPOINTS => {}
            _ => return Err(SimPlanError::Endpoints(endpoints)),
        }
        let pools = Pools::new(&groups, &sim.fallbacks)?;
        let (policy, policies) = policies(&sim, &groups)?;
        let one_way = nanos(sim.round_trip) / 2;
        let timeouts = run.requests.iter().map(|request| timeout(request, run.timeout)).collect();
        let classes = run.requests.iter().map(|request| class(request.priority)).collect();
        let models = models(&run.requests);
        for number in faults.iter().flat_map(|fault| &fault.endpoints) {
            if *number as usize >= endpoints {
                return Err(SimPlanError::Fault(*number));
            }
        }
        let mean_demand = mean_demand(&run, &groups);
        let overload = overload(&run, capacity(&groups, mean_demand));
        Ok(Self {
            run,
            groups,
            pools,
            sim,
            policy,
            policies,
            mean_demand,
            one_way,
            timeouts,
            classes,
            models,
            faults,
            overload,
        })
    }

    /// From when to when a fault lasts, in nanoseconds.
    pub fn fault_span(&self, fault: &EndpointFault) -> (u64, u64) {
        let begin = nanos(self.run.timeline.warm_up + fault.at);
        let end = fault.length.map(|length| begin + nanos(length));
        (begin, end.unwrap_or_else(|| nanos(self.run.length()).max(begin)))
    }

    /// Number of endpoints.
    pub fn endpoints(&self) -> usize {
        self.groups.iter().map(|group| group.count as usize).sum()
    }

    /// Requests that each endpoint serves at once.
    pub fn slots(&self) -> Vec<u32> {
        let slots = |group: &Group| group.slots * group.batch.map_or(1, |batch| batch.max_size);
        let each = |group: &Group| std::iter::repeat_n(slots(group), group.count as usize);
        self.groups.iter().flat_map(each).collect()
    }

    /// Whether a request of this kind states its deadline; otherwise its client just leaves.
    pub fn states_deadline(&self, kind: usize) -> bool {
        let deadline = self.run.requests.get(kind).and_then(|request| request.deadline);
        deadline.is_some_and(|deadline| deadline < self.run.timeout)
    }

    /// Requests a second that all endpoints of the route together can serve.
    pub fn capacity(&self) -> f64 {
        capacity(&self.groups, self.mean_demand)
    }

    /// Chance of proxy number `proxy`, the same for all policies.
    pub(super) fn seed_of(&self, proxy: u64) -> u64 {
        derive(self.run.seed, proxy ^ PROXY)
    }
}

/// The endpoints of the route itself.
fn own(groups: &[Group]) -> impl Iterator<Item = &Group> + Clone {
    groups.iter().filter(|group| group.pool.is_none())
}

fn capacity(groups: &[Group], mean_demand: f64) -> f64 {
    own(groups).map(|group| group.capacity(mean_demand)).sum()
}

/// The policy of a single run, and those of a table.
fn policies(sim: &Sim, groups: &[Group]) -> Result<(SimPolicy, Vec<SimPolicy>), SimPlanError> {
    let policy = SimPolicy::named(sim.policy.as_deref().unwrap_or(DEFAULT_POLICY))?;
    let named: Result<Vec<SimPolicy>, _> =
        sim.policies.iter().map(|name| SimPolicy::named(name)).collect();
    let mut policies = named?;
    let batches = groups.iter().any(|group| group.batch.is_some());
    // Oracles know when each slot will be free, but not which requests will share a batch.
    let bad = |kind: &&SimPolicy| batches && kind.is_oracle();
    if let Some(kind) = policies.iter().chain([&policy]).find(bad) {
        return Err(SimPlanError::Batches(kind.name()));
    }
    if policies.is_empty() {
        policies = SimPolicy::all().map(|(_, kind)| kind).filter(|kind| !bad(&kind)).collect();
    }
    Ok((policy, policies))
}

/// The first stretch of phases with a constant rate above `capacity`.
fn overload(plan: &Plan, capacity: f64) -> Option<(u64, u64)> {
    let Loop::Open(Source::Phases { phases, .. }) = &plan.load else { return None };
    let (mut at, mut found) = (0.0, None);
    for phase in phases {
        let begin = nanos_of(at);
        at += phase.length;
        match (phase.shape, found) {
            (Shape::Constant(rate), None) if rate > capacity => found = Some((begin, nanos_of(at))),
            (Shape::Constant(rate), Some((begin, _))) if rate > capacity => {
                found = Some((begin, nanos_of(at)));
            }
            (_, Some(_)) => break,
            _ => {}
        }
    }
    found
}

/// The class of a priority in a proxy's queue.
fn class(priority: Option<Priority>) -> u8 {
    match priority.unwrap_or_default() {
        Priority::High => 0,
        Priority::Normal => 1,
        Priority::Batch => 2,
    }
}

/// The number of the model that each kind asks for: the same one for the same model and version.
fn models(requests: &[Request]) -> Vec<u64> {
    let name = |request: &Request| match &request.kind {
        RequestKind::Infer(infer) => (infer.model.clone(), infer.version.clone()),
        RequestKind::Http(http) => (http.path.clone(), None),
    };
    let names: Vec<_> = requests.iter().map(name).collect();
    let number = |name| names.iter().position(|it| it == name).unwrap_or_default() as u64;
    names.iter().map(number).collect()
}

/// A request's own deadline, or the run's timeout.
fn timeout(request: &Request, timeout: Duration) -> (u64, Outcome) {
    match request.deadline {
        Some(deadline) if deadline < timeout => {
            (nanos(deadline), refused(Reason::DeadlineExceeded))
        }
        _ => (nanos(timeout), Outcome::Failed(Failure::Timeout)),
    }
}

/// The outcome of a refusal for its client.
pub(super) fn refused(reason: Reason) -> Outcome {
    Outcome::refused(reason.status().as_u16(), Some(reason.code()))
}

/// Keeps the proxies' chance apart from that of the requests.
pub(super) const PROXY: u64 = 0x70_72_6f_78_79;

/// By the shares of the kinds; those that ask for nothing get what the endpoints choose.
fn mean_demand(plan: &Plan, groups: &[Group]) -> f64 {
    let groups = own(groups);
    let endpoints: f64 = groups.clone().map(|group| f64::from(group.count)).sum();
    let own = groups.map(|group| f64::from(group.count) * group.service.mean()).sum::<f64>();
    let weights: f64 = plan.requests.iter().map(|request| request.weight).sum();
    let asked = plan.requests.iter().map(|request| {
        request.weight * request.demand.map_or(own / endpoints, |demand| demand.mean())
    });
    asked.sum::<f64>() / weights
}
