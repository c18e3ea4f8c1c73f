//! `sim`: the same scenario on a virtual clock.
//!
//! A policy that looks good on a laptop with four backends may herd with sixteen proxies and a
//! thousand endpoints, which few people have at hand. Here the routing core that the proxy runs
//! ([`forebay_routing`]) is driven by a discrete-event simulation: minutes of a fleet take seconds,
//! the very same requests come to every policy, and beside the core's policies stand those of other
//! proxies, and bounds that follow from knowing the future. Same scenario, same seed, same bytes out.
//!
//! | module | does |
//! |---|---|
//! | [`plan`] | the plan of a simulation, checked once |
//! | [`engine`] | the loop, and the way of one request |
//! | [`fleet`] | endpoints: slots, queues, speeds |
//! | [`impact`] | the effect of a fault or of overload on traffic and latency |
//! | [`keys`] | names of requests and attempts |
//! | [`bounds`] | the best that is possible with a fleet, simulated or recorded in an access log |
//! | [`balancer`] | the policies that say where a request goes |
//! | [`decisions`] | recorded decisions of a proxy, explained and made again |
//! | [`deadlines`] | goodput where deadlines are near the service time |
//! | [`pools`] | which endpoints belong to which pool, and which variants stand in |
//! | [`matrix`] | the default beside the best of its peers, over many fleets |
//! | [`rollouts`] | the statistics of rollouts: false verdicts, detection, controls that must fail |
//! | [`table`] | policies side by side |
//! | [`goals`] | the project's goals, each beside its bound and its peers |

pub mod balancer;
pub mod bounds;
mod clock;
pub mod deadlines;
pub mod decisions;
pub mod engine;
pub mod fleet;
pub mod goals;
pub mod impact;
pub mod keys;
pub mod matrix;
mod parallel;
pub mod plan;
pub mod pools;
pub mod rollouts;
pub mod table;

pub use balancer::policy::SimPolicy;
pub use engine::SimResult;
pub use plan::{SimPlan, SimPlanError};

use crate::report::{Circumstances, Machine, Report};
use crate::scenario::ScenarioError;
use crate::units;

/// Why there is no simulation.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// The scenario can't be read.
    #[error(transparent)]
    Scenario(#[from] ScenarioError),
    /// The scenario can't be simulated.
    #[error(transparent)]
    SimPlan(#[from] SimPlanError),
}

/// Simulates one policy.
pub fn run(plan: &SimPlan, policy: SimPolicy) -> Report {
    report(plan, policy, &engine::run(plan, policy))
}

/// The report of a simulation has the form of a live run's, and nothing in it depends on when and
/// where it was made.
pub fn report(plan: &SimPlan, policy: SimPolicy, found: &SimResult) -> Report {
    let mut report = Report::new(&plan.run, &found.record, &Circumstances::default());
    report.run.target = format!(
        "simulated: {} by {}, {} proxies",
        endpoints(plan.endpoints()),
        policy.name(),
        plan.sim.proxies
    );
    "simulated".clone_into(&mut report.run.protocol);
    report.run.machine =
        Machine { version: env!("CARGO_PKG_VERSION").to_owned(), ..Machine::default() };
    report.fleet = Some(bounds::simulated::report(plan, found));
    report.notes.push("simulated: nothing was sent, and time did not pass".to_owned());
    report
}

fn endpoints(n: usize) -> String {
    if n == 1 { "1 endpoint".to_owned() } else { format!("{} endpoints", units::count(n as u64)) }
}
