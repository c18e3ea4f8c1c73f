//! Flags that say how load is made: they win over what a scenario file says.

use super::flags::{ConstantFlags, DEFAULT_LENGTH, GeneralFlags, LiveFlags, OpenFlags, TrustFlags};
use crate::scenario::{Closed, Constant, Load, Open, Phase, Scenario, Trust};
use crate::units::TimeSpan;
use clap::Args;

/// When requests start.
#[derive(Debug, Args)]
#[command(next_help_heading = "Load")]
pub(super) struct LoadArgs {
    #[command(flatten)]
    constant: ConstantFlags,

    #[command(flatten)]
    open: OpenFlags,

    /// Stop after so many requests, those of the warm-up included
    #[arg(long, value_name = "N")]
    pub(super) requests: Option<u64>,
}

/// Flags on how load is made at any rate.
#[derive(Debug, Args)]
#[command(next_help_heading = "Load")]
pub(super) struct GeneratorArgs {
    #[command(flatten)]
    live: LiveFlags,

    #[command(flatten)]
    tls: TrustFlags,

    #[command(flatten)]
    general: GeneralFlags,

    /// Open loop: never sleep between requests. The generator's own lag falls to a few microseconds
    /// and a core of the machine is kept busy
    #[arg(long)]
    busy: bool,

    /// Before the start, wait so long for the target to answer, and to know the model
    #[arg(long, value_name = "TIME")]
    wait: Option<TimeSpan>,
}

impl LoadArgs {
    /// The load that the flags describe, if they describe one; `closes`: connections were given, which without a
    /// rate is a closed loop.
    pub(super) fn described(&self, closes: bool) -> Option<Load> {
        let Constant { rate, length } =
            self.constant.over(Constant { length: DEFAULT_LENGTH, ..Constant::default() });
        if self.constant.has("rate") {
            let phases = vec![Phase::Constant(Constant { rate, length })];
            return Some(Load::Open(Open { phases, ..self.open.over(Open::default()) }));
        }
        closes.then_some(Load::Closed(Closed { length }))
    }

    /// The flags that were given, as they are written.
    pub(super) fn given(&self) -> impl Iterator<Item = String> {
        self.constant.given()
    }
}

impl GeneratorArgs {
    /// How long to wait for the target before the start.
    pub(super) fn wait(&self) -> Option<std::time::Duration> {
        self.wait.map(|span| span.0)
    }

    /// Whether the generator never sleeps, which a scenario can't say.
    pub(super) fn busy(&self) -> bool {
        self.busy
    }

    /// Whether the number of connections was given.
    pub(super) fn has_connections(&self) -> bool {
        self.live.has("connections")
    }

    /// Flags win over what a file says; only objectives come on top of the file's.
    pub(super) fn override_in(&self, scenario: &mut Scenario) {
        scenario.live = self.live.over(std::mem::take(&mut scenario.live));
        if self.tls.given().next().is_some() {
            let Trust { insecure, ca } = self.tls.over(Trust::default());
            // The flag's path is relative to where the program was called, not to the scenario.
            let ca = ca.map(|file| std::path::absolute(&file).unwrap_or(file));
            scenario.live.tls = Trust { insecure, ca };
        }
        let mut objectives = scenario.general.objectives.clone();
        scenario.general = self.general.over(std::mem::take(&mut scenario.general));
        if self.general.has("objectives") {
            objectives.append(&mut scenario.general.objectives);
            scenario.general.objectives = objectives;
        }
    }
}
