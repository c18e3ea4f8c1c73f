//! The arguments of the command line, and how flags become a [`Scenario`].

mod capacity;
mod flags;
mod load;
mod request;
mod target;

pub use capacity::CapacityArgs;

use crate::plan::Plan;
use crate::report::compare::CompareArgs;
use crate::scenario::Scenario;
use anyhow::bail;
use clap::{Args, Parser, Subcommand};
use flags::{PolicyFlags, SeedFlag};
use load::{GeneratorArgs, LoadArgs};
use request::RequestArgs;
use std::path::{Path, PathBuf};
use target::{is_file, refuse_what_a_scenario_says, scenario_of};

/// An open-loop load generator that speaks inference
///
/// Latency is measured from the moment a request was meant to start, so that a stall of the target
/// shows in full; the generator's own lag is measured beside it, and a run in which it could not
/// keep up says so.
#[derive(Debug, Parser)]
#[command(name = "forebay-load", max_term_width = 100, after_help = EXIT_STATUS)]
pub struct Cli {
    /// The subcommand.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_STATUS: &str = "\
Exit status:
  0  the run is valid and met its objectives
  1  an objective was missed
  2  the command line or the scenario is wrong
  3  there is no measurement, or none that may be quoted";

const RUN_EXAMPLES: &str = "\
Examples:
  500 requests a second for 30 s, random tensors of the shape that the model itself states:
      forebay-load run http://127.0.0.1:8080 --model magika --rate 500/s --for 30s

  A gate in a pipeline: exit status 1 if an objective is missed:
      forebay-load run http://127.0.0.1:8080 --model magika --rate 500/s --arrivals poisson \\
          --objective 'p99<50ms' 'errors<0.1%'

  32 connections as fast as they can, any POST:
      forebay-load run http://127.0.0.1:8080 --path /v1/score --body request.json --connections 32

  A scenario file, its report as JSON:
      forebay-load run mixed.toml --json=report.json

Exit status:
  0  the run is valid and met its objectives
  1  an objective was missed
  2  the command line or the scenario is wrong
  3  there is no measurement, or none that may be quoted";

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Send requests, measure, report
    Run(Box<RunArgs>),
    /// Simulate a fleet on a virtual clock, with the proxy's own routing core
    Sim(SimArgs),
    /// Find the highest rate that meets the objectives
    Capacity(Box<CapacityArgs>),
    /// Decide whether one run is worse than another, beyond chance.
    Compare(CompareArgs),
    /// Show a report again, or turn it into a page
    Report(ReportArgs),
    /// Write all keys of a scenario with their documentation and their defaults
    Reference,
}

/// Arguments of `run`.
#[derive(Debug, Args)]
#[command(after_help = RUN_EXAMPLES)]
pub struct RunArgs {
    /// Where to send requests: a URL (http://host:port or https://…), or a scenario file (*.toml)
    #[arg(id = "where", value_name = "URL|SCENARIO.toml")]
    target: String,

    #[command(flatten)]
    load: LoadArgs,

    #[command(flatten)]
    generator: GeneratorArgs,

    #[command(flatten)]
    request: RequestArgs,

    /// Write the report as JSON, to standard output if no file is named
    #[arg(
        long, value_name = "FILE", num_args = 0..=1, require_equals = true,
        default_missing_value = "-", help_heading = "Result"
    )]
    pub json: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) files: FileArgs,

    /// No progress line
    #[arg(long, short, help_heading = "Result")]
    pub quiet: bool,
}

/// Other forms of a report.
#[derive(Debug, Args)]
#[command(next_help_heading = "Result")]
pub(crate) struct FileArgs {
    /// Write the report as a page that needs nothing else
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,

    /// Write latencies as HdrHistogram does: *.hgrm the percentiles, anything else a log of intervals
    #[arg(long, value_name = "FILE")]
    pub(crate) hdr: Option<PathBuf>,
}

const SIM_EXAMPLES: &str = "\
Examples:
  One policy, its report as a live run has it:
      forebay-load sim loadtest/scenarios/sim/tail75.toml --policy least_cost --json=a.json

  All policies beside what other proxies do and what an oracle could do, as Markdown:
      forebay-load sim loadtest/scenarios/sim/tail75.toml --table

  Add machines, or look at the proxy? By what the proxy has logged:
      forebay-load sim --from access.jsonl

  Why did a request go there? By its line in the log of a pool with decisions = \"1%\":
      forebay-load sim --decisions access.jsonl --explain REQUEST-ID

Exit status:
  0  the objectives were met
  1  an objective was missed, or a recorded decision comes to another choice
  2  the command line, the scenario or the log is wrong";

/// Arguments of `sim`.
#[derive(Debug, Args)]
#[command(after_help = SIM_EXAMPLES)]
pub struct SimArgs {
    /// A scenario with [[fleet.endpoint]]; with --goals a directory of them
    #[arg(value_name = "SCENARIO.toml", required_unless_present_any = ["from", "decisions", "rollouts"])]
    scenario: Option<PathBuf>,

    /// In place of a scenario: how far a fleet was from the best that was possible, by its proxy's access log
    #[arg(
        long, value_name = "ACCESS.jsonl",
        conflicts_with_all = ["scenario", "goals", "deadlines", "matrix", "table", "policy", "seed", "html", "hdr"]
    )]
    pub from: Option<PathBuf>,

    /// With --from: the slots of endpoints of which the log has none [default: the most requests that it shows
    /// there at once]
    #[arg(long, value_name = "N", requires = "from", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub slots: Option<u32>,

    /// In place of a scenario: make the decisions again that an access log has of a pool with `decisions`. Ends with
    /// status 1 if one comes to another choice
    #[arg(
        long, value_name = "ACCESS.jsonl",
        conflicts_with_all = ["scenario", "from", "goals", "deadlines", "matrix", "table", "policy", "seed", "html", "hdr"]
    )]
    pub decisions: Option<PathBuf>,

    /// With --decisions: explain those on this request instead
    #[arg(long, value_name = "REQUEST-ID", requires = "decisions", conflicts_with = "json")]
    pub explain: Option<String>,

    /// Check every goal of the project that can be simulated, beside its bound and its peers
    #[arg(long, alias = "bars", conflicts_with_all = ["policy", "table", "seed", "json"])]
    pub goals: bool,

    /// Goodput with deadlines near the service time, over a matrix of fleets, as a Markdown table; the
    /// scenario says on which way to endpoints and by which policy
    #[arg(long, conflicts_with_all = ["goals", "table", "json"])]
    pub deadlines: bool,

    /// The policy beside the best of its peers, over a matrix of fleets, as a Markdown table; the scenario says
    /// what they have in common. Ends with status 1 if a bar is missed
    #[arg(long, conflicts_with_all = ["goals", "deadlines", "table", "json"])]
    pub matrix: bool,

    /// With --matrix: so many fleets that follow from the seed, in place of the listed ones
    #[arg(long, value_name = "N", requires = "matrix", value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub drawn: Option<u16>,

    /// With --matrix: the fleets that have something beside endpoints and a steady load (several proxies, batches, no
    /// reports, two models, a lost endpoint, days, bursts, deadlines, drifting speeds, streams), in place of the others
    #[arg(long, requires = "matrix", conflicts_with = "drawn")]
    pub special: bool,

    /// With --matrix: requests that are measured in each fleet; fewer leave a p99.9 to chance
    #[arg(long, value_name = "N", requires = "matrix", default_value_t = 60_000,
        value_parser = clap::value_parser!(u32).range(1_000..=10_000_000))]
    pub requests: u32,

    /// In place of a scenario: the statistics of rollouts beside their bounds, false verdicts and detection alike,
    /// and those of tests that must fail. Ends with status 1 if a bound is missed
    #[arg(
        long,
        conflicts_with_all = ["scenario", "from", "decisions", "goals", "deadlines", "matrix", "table", "policy", "html", "hdr", "json"]
    )]
    pub rollouts: bool,

    /// With --rollouts: simulated rollouts in each case
    #[arg(long, value_name = "N", requires = "rollouts", default_value_t = 1_000,
        value_parser = clap::value_parser!(u32).range(100..=100_000))]
    pub runs: u32,

    /// Compare policies, as a Markdown table
    #[arg(long)]
    pub table: bool,

    /// The policies, which override the scenario's.
    #[command(flatten)]
    pub(crate) policies: PolicyFlags,

    /// The seed, which overrides the scenario's.
    #[command(flatten)]
    pub(crate) seed: SeedFlag,

    /// Write the report as JSON, to standard output if no file is named
    #[arg(
        long, value_name = "FILE", num_args = 0..=1, require_equals = true,
        default_missing_value = "-", conflicts_with = "table"
    )]
    pub json: Option<PathBuf>,

    /// Say nothing of the simulation's own speed
    #[arg(long, short)]
    pub quiet: bool,

    #[command(flatten)]
    pub(crate) files: FileArgs,
}

/// Arguments of `report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// A report that `run --json=FILE` wrote
    #[arg(value_name = "REPORT.json")]
    pub report: PathBuf,

    #[command(flatten)]
    pub(crate) files: FileArgs,
}

impl SimArgs {
    /// The scenario, or the directory; empty where there is none.
    pub fn scenario(&self) -> &Path {
        self.scenario.as_deref().unwrap_or(Path::new(""))
    }
}

impl RunArgs {
    /// The scenario that the arguments name or describe.
    ///
    /// # Errors
    /// The file can't be read, or flags contradict each other.
    pub fn scenario(&self) -> anyhow::Result<Scenario> {
        let requested = self.load.described(self.generator.has_connections());
        if is_file(&self.target) {
            refuse_what_a_scenario_says(self.load.given())?;
        } else if requested.is_none() {
            bail!(
                "expected --rate for an open loop (500/s) or --connections for a closed one (32), \
                 found neither"
            );
        }
        scenario_of(&self.target, &self.request, &self.generator, requested)
    }

    /// How long to wait for the target before the start.
    pub fn wait(&self) -> Option<std::time::Duration> {
        self.generator.wait()
    }

    /// Adds the settings that a scenario can't have.
    pub fn finish(&self, plan: Plan) -> Plan {
        Plan { limit: self.load.requests, busy: self.generator.busy(), ..plan }
    }
}
