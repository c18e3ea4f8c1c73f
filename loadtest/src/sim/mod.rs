//! `sim`: the same scenario on a virtual clock.
//!
//! A policy that looks good on a laptop with four backends may herd with sixteen proxies and a
//! thousand endpoints, and nobody has those at hand. Here the routing core that the proxy runs
//! ([`forebay_routing`]) is driven by a discrete-event simulation: minutes of a fleet take seconds,
//! the very same requests come to every policy, and beside ours stand what other proxies do and what
//! somebody could do who knew everything. Same scenario, same seed, same bytes out.
//!
//! | module | does |
//! |---|---|
//! | [`setting`] | what is simulated, checked once |
//! | [`engine`] | the loop, and the way of one request |
//! | [`fleet`] | endpoints: slots, lines, speeds |
//! | [`episode`] | what an episode of trouble did to traffic and latency |
//! | [`balancer`] | who says where a request goes |
//! | [`table`] | policies side by side |
//! | [`bars`] | what we hold ourselves to |

pub mod balancer;
pub mod bars;
mod clock;
pub mod engine;
pub mod episode;
pub mod fleet;
pub mod setting;
mod slab;
pub mod table;

pub use balancer::Kind;
pub use engine::Found;
pub use setting::{Setting, SettingError};

use crate::args::SimArgs;
use crate::report::{Circumstances, Machine, Report};
use crate::scenario::{Scenario, ScenarioError};
use crate::units;

/// Why there is no simulation.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// The scenario can't be read.
    #[error(transparent)]
    Scenario(#[from] ScenarioError),
    /// The scenario can't be simulated.
    #[error(transparent)]
    Setting(#[from] SettingError),
}

/// What the arguments ask for.
///
/// # Errors
/// The scenario is not there, or is wrong.
pub fn setting(args: &SimArgs) -> Result<Setting, SimError> {
    let mut scenario = Scenario::read(&args.scenario)?;
    scenario.seed = args.seed.unwrap_or(scenario.seed);
    if args.policy.is_some() {
        scenario.sim.policy.clone_from(&args.policy);
    }
    if !args.policies.is_empty() {
        scenario.sim.policies.clone_from(&args.policies);
    }
    Ok(Setting::new(scenario)?)
}

/// Simulates one policy.
pub fn run(setting: &Setting, policy: Kind) -> Report {
    report(setting, policy, &engine::run(setting, policy))
}

/// The report of a simulation has the form of a live run's, and nothing in it depends on when and
/// where it was made.
pub fn report(setting: &Setting, policy: Kind, found: &Found) -> Report {
    let mut report = Report::new(&setting.plan, &found.record, &Circumstances::default());
    report.target = format!(
        "simulated: {} by {}, {} proxies",
        endpoints(setting.endpoints()),
        policy.name(),
        setting.sim.proxies
    );
    "simulated".clone_into(&mut report.protocol);
    report.machine =
        Machine { version: env!("CARGO_PKG_VERSION").to_owned(), ..Machine::default() };
    report.notes.push("simulated: nothing was sent, and time did not pass".to_owned());
    report
}

fn endpoints(n: usize) -> String {
    if n == 1 { "1 endpoint".to_owned() } else { format!("{} endpoints", units::count(n as u64)) }
}
