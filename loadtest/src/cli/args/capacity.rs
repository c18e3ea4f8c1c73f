//! The arguments of `capacity`.

use super::flags::SpacingFlag;
use super::load::GeneratorArgs;
use super::request::RequestArgs;
use super::target::scenario_of;
use crate::generate::capacity::CapacityPlan;
use crate::scenario::{Comparison, Load, Measure, Objective, Open, Scenario, Spacing};
use crate::units::{Rate, Ratio, TimeSpan};
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;

/// When a request is given up where nothing is said: after a step that overloads the target, the
/// next one waits for the rest.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
/// Errors that are tolerated where no objective speaks of them, so that a target that refuses
/// everything quickly has no capacity.
const DEFAULT_OBJECTIVE: Objective =
    Objective { measure: Measure::ErrorShare, comparison: Comparison::Less, bound: 0.01 };

const EXAMPLES: &str = "\
Examples:
  How many requests a second with a p99 below 50 ms?
      forebay-load capacity http://127.0.0.1:8080 --model magika --objective 'p99<50ms'

  The mix and the objectives of a scenario; its own load is not used:
      forebay-load capacity mixed.toml --from 1k/s --for 30s --precision 2%

Unless an objective is on errors, errors<1% is one too.

Exit status:
  0  a rate was found
  1  not even the lowest rate meets the objectives
  2  the command line or the scenario is wrong
  3  there is no measurement";

/// Arguments of `capacity`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct CapacityArgs {
    /// Where to send requests: a URL (http://host:port), or a scenario file (*.toml)
    #[arg(id = "where", value_name = "URL|SCENARIO.toml")]
    target: String,

    /// The first rate
    #[arg(long, value_name = "RATE", default_value = "100/s", help_heading = "Search")]
    from: Rate,

    /// The highest rate
    #[arg(long, value_name = "RATE", default_value = "100k/s", help_heading = "Search")]
    to: Rate,

    /// Gap between the highest rate that is good and the lowest that is not, at which it ends
    #[arg(long, value_name = "SHARE", default_value = "5%", help_heading = "Search")]
    precision: Ratio,

    /// How long to measure each rate
    #[arg(long = "for", value_name = "TIME", default_value = "10s", help_heading = "Search")]
    length: TimeSpan,

    #[command(flatten)]
    arrivals: SpacingFlag,

    #[command(flatten)]
    generator: GeneratorArgs,

    #[command(flatten)]
    request: RequestArgs,

    /// Write the result as JSON, to standard output if no file is named
    #[arg(
        long, value_name = "FILE", num_args = 0..=1, require_equals = true,
        default_missing_value = "-", help_heading = "Result"
    )]
    pub json: Option<PathBuf>,

    /// No progress line
    #[arg(long, short, help_heading = "Result")]
    pub quiet: bool,
}

impl CapacityArgs {
    /// The search that the arguments ask for.
    ///
    /// # Errors
    /// The scenario can't be read, or the arguments contradict each other.
    pub fn plan(&self) -> anyhow::Result<CapacityPlan> {
        let scenario = self.scenario()?;
        // A search finds what a target can take of independent clients, unless another spacing is named.
        let named = match &scenario.load {
            Load::Open(open) => open.spacing,
            _ => Spacing::Poisson,
        };
        let Open { spacing, .. } = self.arrivals.over(Open { spacing: named, ..Open::default() });
        Ok(CapacityPlan {
            scenario,
            spacing,
            length: self.length.0,
            from: self.from,
            to: self.to,
            precision: self.precision,
            wait: self.generator.wait(),
            busy: self.generator.busy(),
        })
    }

    fn scenario(&self) -> anyhow::Result<Scenario> {
        anyhow::ensure!(
            self.from.0 > 0.0 && self.from <= self.to,
            "expected --from above 0 and not above --to, found {} and {}",
            self.from,
            self.to
        );
        let mut scenario = scenario_of(&self.target, &self.request, &self.generator, None)?;
        anyhow::ensure!(
            !scenario.general.objectives.is_empty(),
            "expected at least one --objective, such as 'p99<50ms': without one any rate will do"
        );
        let is_of_errors = |objective: &Objective| {
            matches!(objective.measure, Measure::ErrorShare | Measure::ErrorCount)
        };
        if !scenario.general.objectives.iter().any(is_of_errors) {
            scenario.general.objectives.push(DEFAULT_OBJECTIVE);
        }
        scenario.general.timeout = scenario.general.timeout.or(Some(DEFAULT_TIMEOUT));
        Ok(scenario)
    }
}
