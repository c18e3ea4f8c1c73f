//! The command line: what can be asked for, what is printed, with which status the program ends.

pub mod args;

use crate::generate::capacity::{self, CapacityError, End};
use crate::generate::run::{self, Options};
use crate::plan::Plan;
use crate::report::compare::{self, Comparison, Verdict};
use crate::report::style::Style;
use crate::report::{Report, hdr, html, table};
use crate::scenario::{Scenario, reference};
use crate::sim::{self, SimError, SimPlan};
use anyhow::Context as _;
use args::{CapacityArgs, Cli, Command, FileArgs, ReportArgs, RunArgs, SimArgs};
use forebay_cli::Parsed;
use std::ffi::OsString;
use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

/// All is well.
const OK: u8 = 0;
/// An objective was missed.
const MISSED: u8 = 1;
/// The command line or the scenario is wrong. clap's own status.
const USAGE: u8 = 2;
/// There is no measurement, or none that may be quoted.
const INVALID: u8 = 3;

/// Runs the program with these arguments, the program's name first.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli: Cli = match forebay_cli::parse(args) {
        Ok(Parsed::Arguments(cli)) => cli,
        Ok(Parsed::Generated) => return ExitCode::from(OK),
        Err(error) => {
            // Also `--help` and `--version`, which end with 0.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(USAGE));
        }
    };
    let status = match cli.command {
        Command::Run(args) => run(&args),
        Command::Capacity(args) => capacity(&args),
        Command::Sim(args) => simulate(&args),
        Command::Compare(args) => compare(&args),
        Command::Report(args) => report(&args),
        Command::Reference => write_reference(),
    };
    let (status, error) = match status {
        Ok(status) => return ExitCode::from(status),
        Err(Fault::Usage(error)) => (USAGE, error),
        Err(Fault::Run(error)) => (INVALID, error),
    };
    let text = format!("{error:#}");
    // Errors in a file bring their own places along.
    let prefix = if text.contains('\n') { "" } else { "forebay-load: " };
    let _ = writeln!(std::io::stderr(), "{prefix}{text}");
    ExitCode::from(status)
}

/// Why there is no result, which decides the exit status.
enum Fault {
    /// The command line or the scenario.
    Usage(anyhow::Error),
    /// The run.
    Run(anyhow::Error),
}

fn run(args: &RunArgs) -> Result<u8, Fault> {
    let scenario = args.scenario().map_err(Fault::Usage)?;
    let plan = Plan::new(scenario).map_err(|error| Fault::Usage(error.into()))?;
    let progress = !args.quiet && std::io::stderr().is_terminal();
    let options = Options { progress, wait: args.wait() };
    let report = run::run(args.finish(plan), options).map_err(|error| Fault::Run(error.into()))?;
    let text = |style| table::render(&report, style);
    print(args.json.as_deref(), &report, text).map_err(Fault::Run)?;
    write_files(&args.files, &report).map_err(Fault::Run)?;
    Ok(match (report.is_valid(), report.met()) {
        (false, _) => INVALID,
        (true, false) => MISSED,
        (true, true) => OK,
    })
}

fn simulate(args: &SimArgs) -> Result<u8, Fault> {
    if let Some(log) = &args.from {
        return bounds(log, args);
    }
    if let Some(log) = &args.decisions {
        return decisions(log, args);
    }
    if args.rollouts {
        return rollouts(args);
    }
    if args.goals {
        let goals = sim::goals::all(args.scenario()).map_err(|error| Fault::Usage(error.into()))?;
        let text = sim::goals::render(&goals);
        std::io::stdout().write_all(text.as_bytes()).map_err(|error| Fault::Run(error.into()))?;
        return Ok(if goals.iter().all(|goal| goal.met) { OK } else { MISSED });
    }
    if args.deadlines {
        return deadlines(args);
    }
    if args.matrix {
        return matrix(args);
    }
    let plan = sim_plan(args).map_err(|error| Fault::Usage(error.into()))?;
    let start = std::time::Instant::now();
    let say = |requests, events| {
        if !args.quiet {
            let line = sim::table::speed(requests, events, start.elapsed());
            let _ = writeln!(std::io::stderr(), "{line}");
        }
    };
    if args.table {
        let rows = sim::table::rows(&plan);
        let sum = |of: fn(&sim::SimResult) -> u64| rows.iter().map(|row| of(&row.found)).sum();
        say(sum(|found| found.record.total() + found.record.warm_up), sum(|found| found.events));
        let table = sim::table::render(&plan, &rows);
        std::io::stdout().write_all(table.as_bytes()).map_err(|error| Fault::Run(error.into()))?;
        return Ok(OK);
    }
    let found = sim::engine::run(&plan, plan.policy);
    say(found.record.total() + found.record.warm_up, found.events);
    let report = sim::report(&plan, plan.policy, &found);
    print(args.json.as_deref(), &report, |style| table::render(&report, style))
        .map_err(Fault::Run)?;
    write_files(&args.files, &report).map_err(Fault::Run)?;
    Ok(if report.met() { OK } else { MISSED })
}

/// The best that was possible with a fleet, by the log of its proxy.
fn bounds(log: &Path, args: &SimArgs) -> Result<u8, Fault> {
    let reports =
        sim::bounds::log::reports(log, args.slots).map_err(|error| Fault::Usage(error.into()))?;
    let text = |style| reports.iter().map(|report| report.render(style)).collect::<String>();
    print(args.json.as_deref(), &reports, text).map_err(Fault::Run)?;
    Ok(OK)
}

/// Recorded decisions, explained or made again.
fn decisions(log: &Path, args: &SimArgs) -> Result<u8, Fault> {
    let usage = |error: sim::decisions::DecisionsError| Fault::Usage(error.into());
    let (recorded, unread) = sim::decisions::read(log).map_err(usage)?;
    if let Some(id) = &args.explain {
        let text = sim::decisions::explain(&recorded, id, log).map_err(usage)?;
        std::io::stdout().write_all(text.as_bytes()).map_err(|error| Fault::Run(error.into()))?;
        return Ok(OK);
    }
    let found = sim::decisions::replay(&recorded, unread);
    print(args.json.as_deref(), &found, |style| found.render(style)).map_err(Fault::Run)?;
    Ok(if found.is_same() { OK } else { MISSED })
}

/// The statistics of rollouts.
fn rollouts(args: &SimArgs) -> Result<u8, Fault> {
    let seed = args.seed.over(crate::scenario::General::default()).seed;
    let found = sim::rollouts::all(args.runs, seed);
    let text = sim::rollouts::render(&found);
    std::io::stdout().write_all(text.as_bytes()).map_err(|error| Fault::Run(error.into()))?;
    Ok(if found.iter().all(|row| row.met) { OK } else { MISSED })
}

fn deadlines(args: &SimArgs) -> Result<u8, Fault> {
    let scenario = scenario(args).map_err(|error| Fault::Usage(error.into()))?;
    let found = sim::deadlines::all(&scenario, &sim::deadlines::cells())
        .map_err(|error| Fault::Usage(error.into()))?;
    let text = sim::deadlines::render(&found);
    std::io::stdout().write_all(text.as_bytes()).map_err(|error| Fault::Run(error.into()))?;
    Ok(OK)
}

fn matrix(args: &SimArgs) -> Result<u8, Fault> {
    let scenario = scenario(args).map_err(|error| Fault::Usage(error.into()))?;
    let cells = match args.drawn {
        Some(count) => sim::matrix::cells::drawn(usize::from(count), scenario.general.seed),
        None if args.special => sim::matrix::cells::special(),
        None => sim::matrix::cells::listed(),
    };
    let found = sim::matrix::all(&scenario, &cells, f64::from(args.requests))
        .map_err(|error| Fault::Usage(error.into()))?;
    let text = sim::matrix::render(&found);
    std::io::stdout().write_all(text.as_bytes()).map_err(|error| Fault::Run(error.into()))?;
    let sum = sim::matrix::Sum::of(&found);
    let met = if args.drawn.is_some() { sum.keeps_drawn() } else { sum.keeps_listed() };
    Ok(if met { OK } else { MISSED })
}

/// The simulation that the arguments ask for.
fn sim_plan(args: &SimArgs) -> Result<SimPlan, SimError> {
    Ok(SimPlan::new(scenario(args)?)?)
}

fn scenario(args: &SimArgs) -> Result<Scenario, SimError> {
    let mut scenario = Scenario::read(args.scenario())?;
    scenario.general = args.seed.over(scenario.general);
    scenario.simulated.sim = args.policies.over(scenario.simulated.sim);
    Ok(scenario)
}

fn report(args: &ReportArgs) -> Result<u8, Fault> {
    let report = compare::read(&args.report).map_err(|error| Fault::Usage(error.into()))?;
    print(None, &report, |style| table::render(&report, style)).map_err(Fault::Run)?;
    write_files(&args.files, &report).map_err(Fault::Run)?;
    Ok(OK)
}

fn write_reference() -> Result<u8, Fault> {
    let text = reference::text();
    std::io::stdout().write_all(text.as_bytes()).map_err(|error| Fault::Run(error.into()))?;
    Ok(OK)
}

fn write_files(files: &FileArgs, report: &Report) -> anyhow::Result<()> {
    if let Some(path) = &files.html {
        std::fs::write(path, html::render(report)).with_context(|| path.display().to_string())?;
    }
    if let Some(path) = &files.hdr {
        let text = hdr::render(report, path).map_err(anyhow::Error::msg)?;
        std::fs::write(path, text).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn capacity(args: &CapacityArgs) -> Result<u8, Fault> {
    let progress = !args.quiet && std::io::stderr().is_terminal();
    let plan = args.plan().map_err(Fault::Usage)?;
    let found = capacity::search(&plan, progress).map_err(|error| match error {
        error @ CapacityError::Plan(_) => Fault::Usage(error.into()),
        error @ CapacityError::Run(_) => Fault::Run(error.into()),
    })?;
    let text = |style| capacity::render(&found, style);
    print(args.json.as_deref(), &found, text).map_err(Fault::Run)?;
    Ok(match found.rate {
        Some(_) => OK,
        None if found.end == End::Target => MISSED,
        None => INVALID,
    })
}

fn compare(args: &compare::CompareArgs) -> Result<u8, Fault> {
    let comparison = Comparison::new(args).map_err(|error| match error.is_usage() {
        true => Fault::Usage(error.into()),
        false => Fault::Run(error.into()),
    })?;
    let text = |style| compare::render(&comparison, style);
    print(args.json.as_deref(), &comparison, text).map_err(Fault::Run)?;
    Ok(match comparison.verdict {
        _ if !comparison.problems.is_empty() => INVALID,
        Verdict::Worse => MISSED,
        _ => OK,
    })
}

/// Writes `data` where it is wanted, and `text` to standard output, unless the data went there.
fn print(
    json: Option<&Path>,
    data: &impl serde::Serialize,
    text: impl FnOnce(Style) -> String,
) -> anyhow::Result<()> {
    let stdout = std::io::stdout();
    if let Some(path) = json {
        let json = serde_json::to_string_pretty(data)? + "\n";
        if path.as_os_str() == "-" {
            stdout.lock().write_all(json.as_bytes())?;
            return Ok(());
        }
        std::fs::write(path, json).with_context(|| path.display().to_string())?;
    }
    let style = if stdout.is_terminal() { Style::Colour } else { Style::Plain };
    stdout.lock().write_all(text(style).as_bytes())?;
    Ok(())
}
