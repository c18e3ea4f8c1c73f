//! The arguments of the command line, and how flags become a [`Scenario`].

use crate::arrivals::Spacing;
use crate::capacity::CapacityArgs;
use crate::compare::CompareArgs;
use crate::distribution::Distribution;
use crate::objective::Objective;
use crate::plan::Plan;
use crate::scenario::{Ask, Encoding, Header, Infer, Load, Phase, Request, Scenario, Shape, Sim};
use crate::target::Protocol;
use crate::tensor::Range;
use crate::tls::Trust;
use crate::units::{Rate, Span};
use anyhow::bail;
use clap::{Args, Parser, Subcommand, ValueEnum};
use forebay_protocol::Priority;
use std::path::{Path, PathBuf};

/// An open-loop load generator that speaks inference
///
/// Latency is measured from the moment a request was meant to start, so that a stall of the target
/// shows in full; the generator's own lag is measured beside it, and a run in which it could not
/// keep up says so.
#[derive(Debug, Parser)]
#[command(name = "forebay-load", version, max_term_width = 100, after_help = EXIT_STATUS)]
pub struct Cli {
    /// What to do.
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

/// What the program can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Send requests, measure, report
    Run(Box<RunArgs>),
    /// Simulate a fleet on a virtual clock, with the proxy's own routing core
    Sim(SimArgs),
    /// Find the highest rate that meets the objectives
    Capacity(Box<CapacityArgs>),
    /// Is one run worse than another, or is it chance?
    Compare(CompareArgs),
    /// Show a report again, or turn it into a page
    Report(ReportArgs),
    /// Be a backend with known service times, to measure proxies and balancers against
    Backend(forebay_synthetic::Args),
}

/// Arguments of `run`.
#[derive(Debug, Args)]
#[command(after_help = RUN_EXAMPLES)]
pub struct RunArgs {
    /// Where to send requests: a URL (http://host:port or https://…), or a scenario file (*.toml)
    #[arg(value_name = "URL|SCENARIO.toml")]
    target: String,

    #[command(flatten)]
    load: LoadArgs,

    #[command(flatten)]
    generator: GeneratorArgs,

    #[command(flatten)]
    request: RequestArgs,

    /// What the run must reach: p50…p99.999, mean, max, errors or rate with a bound
    #[arg(long, value_name = "OBJECTIVE", num_args = 1.., help_heading = "Result")]
    objective: Vec<Objective>,

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

Exit status:
  0  the objectives were met
  1  an objective was missed
  2  the command line or the scenario is wrong";

/// Arguments of `sim`.
#[derive(Debug, Args)]
#[command(after_help = SIM_EXAMPLES)]
pub struct SimArgs {
    /// A scenario with [[fleet.endpoint]]; with --bars a directory of them
    #[arg(value_name = "SCENARIO.toml")]
    pub scenario: PathBuf,

    /// Check every bar that can be simulated, beside its peers and its bound
    #[arg(long, conflicts_with_all = ["policy", "table", "seed", "json"])]
    pub bars: bool,

    /// Who balances [default: the scenario's, or adaptive]
    #[arg(long, value_name = "NAME", conflicts_with = "table")]
    pub policy: Option<String>,

    /// Compare policies, as a Markdown table
    #[arg(long)]
    pub table: bool,

    /// The rows of the table [default: the scenario's, or all]
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', requires = "table")]
    pub policies: Vec<String>,

    /// Everything random follows from it [default: the scenario's, or 1]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,

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

/// When requests start.
#[derive(Debug, Args)]
#[command(next_help_heading = "Load")]
struct LoadArgs {
    /// Open loop: requests a second, whatever the answers do (500/s, 10k/s, 30/m)
    #[arg(long)]
    rate: Option<Rate>,

    /// How the open loop's requests are spaced [default: constant]
    #[arg(long, value_name = "KIND", requires = "rate")]
    arrivals: Option<ArrivalsArg>,

    /// How long to measure [default: 10s]
    #[arg(long = "for", value_name = "TIME")]
    length: Option<Span>,

    /// Stop after so many requests, those of the warm-up included
    #[arg(long, value_name = "N")]
    requests: Option<u64>,
}

/// How load is made, whatever its rate.
#[derive(Debug, Args)]
#[command(next_help_heading = "Load")]
pub(crate) struct GeneratorArgs {
    /// Open loop: most connections [default: 1000, with HTTP/2 10]. Without --rate: so many that send
    /// as soon as they have their answer
    #[arg(long, short, value_name = "N")]
    connections: Option<usize>,

    /// Requests at a time on one HTTP/2 connection [default: 100]
    #[arg(long, value_name = "N")]
    streams: Option<usize>,

    /// How requests are put on the wire [default: http/1.1]
    #[arg(long, value_name = "PROTOCOL")]
    protocol: Option<Protocol>,

    /// https: believe certificates of the authorities in this PEM file [default: the system's]
    #[arg(long, value_name = "FILE", conflicts_with = "insecure")]
    ca: Option<PathBuf>,

    /// https: believe any certificate
    #[arg(long)]
    insecure: bool,

    /// Time before anything is measured [default: 1s]
    #[arg(long, value_name = "TIME")]
    warm_up: Option<Span>,

    /// Give a request up so long after it was meant to start [default: 30s]
    #[arg(long, value_name = "TIME")]
    timeout: Option<Span>,

    /// Threads that generate load [default: 1]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,

    /// Open loop: never sleep between requests. The generator's own lag falls to a few microseconds
    /// and a core of the machine is kept busy
    #[arg(long)]
    busy: bool,

    /// Everything random follows from it [default: 1]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Before the start, wait so long for the target to answer, and to know the model
    #[arg(long, value_name = "TIME")]
    wait: Option<Span>,

    /// With a scenario: send to this URL instead of the scenario's target
    #[arg(long = "target", id = "instead", value_name = "URL")]
    to: Option<String>,
}

/// What requests are made of.
#[derive(Debug, Args)]
#[command(next_help_heading = "Requests")]
pub(crate) struct RequestArgs {
    /// Infer with this model; inputs are random tensors after the model's own metadata
    #[arg(long, short, value_name = "NAME", conflicts_with_all = ["path", "method", "body"])]
    model: Option<String>,

    /// Version of the model [default: the server's choice]
    #[arg(long, value_name = "VERSION", requires = "model")]
    model_version: Option<String>,

    /// How tensors are written [default: json]
    #[arg(long, value_name = "ENCODING", requires = "model")]
    encoding: Option<Encoding>,

    /// Batch sizes, chosen at random (1,1,8: two thirds have one item) [default: 1]
    #[arg(long, value_name = "N,…", value_delimiter = ',', requires = "model")]
    batch: Vec<u64>,

    /// Number of different inputs [default: 16]
    #[arg(long, value_name = "N", requires = "model")]
    distinct: Option<usize>,

    /// Popularity of the inputs: 0 all alike, 1 Zipf's law [default: 0]
    #[arg(long, value_name = "EXPONENT", requires = "model")]
    zipf: Option<f64>,

    /// Shape of an input whose dimensions are not all fixed (ids:1,128)
    #[arg(long, value_name = "INPUT:N,…", requires = "model")]
    shape: Vec<Shape>,

    /// Random values lie from LOW up to, not including, HIGH [default: 0..1, integers 0..100]
    #[arg(long, value_name = "LOW..HIGH", requires = "model")]
    range: Option<Range>,

    /// Send these files, JSON inference requests, instead of random tensors
    #[arg(long, value_name = "FILE", num_args = 1.., requires = "model")]
    input: Vec<PathBuf>,

    /// Any other request: path and query [default: the URL's]
    #[arg(long)]
    path: Option<String>,

    /// Any other request: method [default: GET, with a body POST]
    #[arg(long)]
    method: Option<String>,

    /// Any other request: file with the body
    #[arg(long, value_name = "FILE")]
    body: Option<PathBuf>,

    /// A header of every request
    #[arg(long, short = 'H', value_name = "NAME: VALUE")]
    header: Vec<Header>,

    /// Send x-request-deadline
    #[arg(long, value_name = "TIME")]
    deadline: Option<Span>,

    /// Send x-request-priority: high, normal or batch
    #[arg(long, value_name = "PRIORITY")]
    priority: Option<Priority>,

    /// Ask a synthetic backend for service times, drawn anew for every request (exponential:20ms)
    #[arg(long, value_name = "DISTRIBUTION")]
    demand: Option<Distribution>,
}

/// How arrivals are spaced, as a flag.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum ArrivalsArg {
    /// Evenly
    Constant,
    /// As independent callers come
    Poisson,
}

impl RunArgs {
    /// The scenario that the arguments name or describe.
    ///
    /// # Errors
    /// The file can't be read, or flags contradict each other.
    pub fn scenario(&self) -> anyhow::Result<Scenario> {
        let load = &self.load;
        let length = load.length.unwrap_or(Span(std::time::Duration::from_secs(10)));
        let wish = match (load.rate, self.generator.connections) {
            (Some(rate), _) => Some(Load::Open {
                spacing: load.arrivals.unwrap_or(ArrivalsArg::Constant).spacing(),
                phases: vec![Phase::Constant { rate, length }],
            }),
            (None, Some(_)) => Some(Load::Closed { length }),
            (None, None) => None,
        };
        if is_file(&self.target) {
            let given = [("--rate", load.rate.is_some()), ("--for", load.length.is_some())];
            refuse_what_a_scenario_says(&given)?;
        } else if wish.is_none() {
            bail!(
                "expected --rate for an open loop (500/s) or --connections for a closed one (32), \
                 found neither"
            );
        }
        let mut scenario = scenario_of(&self.target, &self.request, &self.generator, wish)?;
        scenario.objectives.extend(&self.objective);
        Ok(scenario)
    }

    /// How long to wait for the target before the start.
    pub fn wait(&self) -> Option<std::time::Duration> {
        self.generator.wait()
    }

    /// What a scenario can't say.
    pub fn finish(&self, plan: Plan) -> Plan {
        Plan { limit: self.load.requests, ..self.generator.finish(plan) }
    }
}

impl GeneratorArgs {
    /// How long to wait for the target before the start.
    pub(crate) fn wait(&self) -> Option<std::time::Duration> {
        self.wait.map(|span| span.0)
    }

    /// What a scenario can't say.
    pub(crate) fn finish(&self, plan: Plan) -> Plan {
        Plan { busy: self.busy, ..plan }
    }

    /// Flags win over what a file says.
    fn override_in(&self, scenario: &mut Scenario) {
        scenario.target = self.to.clone().or(scenario.target.take());
        scenario.seed = self.seed.unwrap_or(scenario.seed);
        scenario.protocol = self.protocol.unwrap_or(scenario.protocol);
        if self.insecure || self.ca.is_some() {
            // The flag's path is relative to where the program was called, not to the scenario.
            let ca = self.ca.as_ref().map(|file| std::path::absolute(file).unwrap_or(file.clone()));
            scenario.tls = Trust { insecure: self.insecure, ca };
        }
        scenario.connections = self.connections.or(scenario.connections);
        scenario.streams = self.streams.or(scenario.streams);
        scenario.threads = self.threads.or(scenario.threads);
        scenario.warm_up = self.warm_up.or(scenario.warm_up);
        scenario.timeout = self.timeout.or(scenario.timeout);
    }
}

impl ArrivalsArg {
    pub(crate) fn spacing(self) -> Spacing {
        match self {
            Self::Constant => Spacing::Constant,
            Self::Poisson => Spacing::Poisson,
        }
    }
}

/// The scenario in the file `target`, or with `load` (or one second of nothing in particular) the
/// one that flags describe for the URL `target`.
pub(crate) fn scenario_of(
    target: &str,
    request: &RequestArgs,
    generator: &GeneratorArgs,
    load: Option<Load>,
) -> anyhow::Result<Scenario> {
    let mut scenario = if is_file(target) {
        refuse_what_a_scenario_says(&request.given())?;
        Scenario::read(Path::new(target))?
    } else {
        let load = load.unwrap_or(Load::Closed { length: Span(std::time::Duration::from_secs(1)) });
        described(target, request, load)?
    };
    generator.override_in(&mut scenario);
    Ok(scenario)
}

fn is_file(target: &str) -> bool {
    !target.contains("://") && Path::new(target).extension().is_some_and(|e| e == "toml")
}

fn refuse_what_a_scenario_says(given: &[(&str, bool)]) -> anyhow::Result<()> {
    match given.iter().find(|(_, given)| *given) {
        Some((flag, _)) => bail!("{flag} is what a scenario file says: change it there"),
        None => Ok(()),
    }
}

fn described(target: &str, request: &RequestArgs, load: Load) -> anyhow::Result<Scenario> {
    Ok(Scenario {
        name: Some(request.model.clone().unwrap_or_else(|| "run".to_owned())),
        target: Some(target.to_owned()),
        seed: 1,
        protocol: Protocol::default(),
        tls: Trust::default(),
        connections: None,
        streams: None,
        threads: None,
        warm_up: None,
        timeout: None,
        objectives: Vec::new(),
        load,
        requests: vec![request.described(target)?],
        processes: Vec::new(),
        faults: Vec::new(),
        fleet: Vec::new(),
        episodes: Vec::new(),
        sim: Sim::default(),
        base: PathBuf::new(),
    })
}

/// Path and query of a URL; what is no URL is refused later, with what was expected.
fn path_of(url: &str) -> String {
    let uri = url.parse::<http::Uri>().unwrap_or_default();
    uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string)
}

impl RequestArgs {
    fn given(&self) -> [(&'static str, bool); 8] {
        [
            ("--model", self.model.is_some()),
            ("--path", self.path.is_some()),
            ("--method", self.method.is_some()),
            ("--body", self.body.is_some()),
            ("--header", !self.header.is_empty()),
            ("--deadline", self.deadline.is_some()),
            ("--priority", self.priority.is_some()),
            ("--demand", self.demand.is_some()),
        ]
    }

    fn described(&self, url: &str) -> anyhow::Result<Request> {
        let ask = match (&self.model, &self.path) {
            (Some(model), _) => Ask::Infer(Infer {
                model: model.clone(),
                version: self.model_version.clone(),
                encoding: self.encoding.unwrap_or_default(),
                batch: self.batch.clone(),
                distinct: self.distinct,
                zipf: self.zipf.unwrap_or(0.0),
                shape: self.shape.clone(),
                range: self.range,
                input: self.input.clone(),
            }),
            (None, path) => Ask::Http {
                method: self.method.clone(),
                path: match path {
                    Some(path) => path.clone(),
                    None => path_of(url),
                },
                body: self.body.clone(),
            },
        };
        Ok(Request {
            weight: 1.0,
            deadline: self.deadline,
            priority: self.priority,
            demand: self.demand,
            headers: self.header.clone(),
            ask,
        })
    }
}
