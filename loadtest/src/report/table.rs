//! A report for people: one screen, the answer first, figures aligned.

use super::Report;
use super::style::Style;
use super::summary::{self, Shares};
use super::times::{QUANTILES, Quantiles};
use crate::units::{self, Rate, seconds};
use std::fmt::Write as _;

/// Maximum number of lines for any list; the rest is summed up.
const MAX_LINES: usize = 12;

/// The report as text, with a line break at the end.
pub fn render(report: &Report, style: Style) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = write(&mut out, report, style);
    out
}

fn write(out: &mut String, report: &Report, style: Style) -> std::fmt::Result {
    writeln!(out, "{}  {}", style.bold(&report.run.name), report.run.target)?;
    writeln!(out, "{}\n", style.dim(&summary::headline(report)))?;
    let errors = report.results.requests.saturating_sub(report.results.ok);
    let errors = if errors == 0 {
        style.good("no errors")
    } else {
        style.bad(&format!(
            "{} errors ({})",
            units::count(errors),
            units::percent(report.results.error_share)
        ))
    };
    writeln!(
        out,
        "  requests   {} offered at {} · {} answered well at {} · {errors}",
        units::count(report.results.requests),
        Rate(report.results.offered_rate),
        units::count(report.results.ok),
        Rate(report.results.ok_rate)
    )?;
    quantiles(out, report, style)?;
    generator(out, report)?;
    lists(out, report, style)?;
    fault_windows(out, report, style)?;
    if let Some(fleet) = &report.fleet {
        out.push_str(&fleet.render(style));
    }
    verdicts(out, report, style)
}

fn quantiles(out: &mut String, report: &Report, style: Style) -> std::fmt::Result {
    let mut head = format!("  {:<11}", "");
    for (name, _) in QUANTILES {
        write!(head, "{name:>9}")?;
    }
    writeln!(out, "\n{}", style.dim(&format!("{head}{:>9}{:>9}", "max", "mean")))?;
    let mut row = |name: &str, of: &Quantiles, note: &str| {
        if of.count == 0 {
            return Ok(());
        }
        write!(out, "  {name:<11}")?;
        for (name, _) in QUANTILES {
            write!(out, "{:>9}", seconds(of.get(name)))?;
        }
        writeln!(out, "{:>9}{:>9}  {}", seconds(of.max), seconds(of.mean), style.dim(note))
    };
    row("latency", &report.results.latency, "from the intended start")?;
    if report.run.kind == "open" {
        row("service", &report.results.service, "from when a connection was free")?;
        row("own lag", &report.generator.lag, "of the generator")?;
        row("own wait", &report.generator.wait, "for a connection")?;
    }
    row("errors", &report.results.error_latency, "until they were known")
}

fn generator(out: &mut String, report: &Report) -> std::fmt::Result {
    let generator = &report.generator;
    let requests = units::float(
        report.results.requests.saturating_add(report.results.warm_up_requests).max(1),
    );
    writeln!(
        out,
        "\n  generator  {} connections opened · max in flight {} · {} CPU a request · {} out, {} in",
        units::count(generator.connections),
        units::count(generator.max_in_flight),
        seconds(generator.cpu_seconds / requests),
        bytes(generator.bytes_out),
        bytes(generator.bytes_in),
    )
}

fn lists(out: &mut String, report: &Report, style: Style) -> std::fmt::Result {
    list(out, "errors", &Shares::of_errors(report, MAX_LINES), style)?;
    list(out, "variants", &Shares::of(&report.results.variants, MAX_LINES), style)?;
    list(out, "endpoints", &Shares::of(&report.results.endpoints, MAX_LINES), style)
}

fn list(out: &mut String, title: &str, shares: &Shares<'_>, style: Style) -> std::fmt::Result {
    if shares.entries.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    for (i, (name, count)) in shares.entries.iter().enumerate() {
        let title = if i == 0 { title } else { "" };
        let share = units::percent(shares.share(*count));
        let count = units::count(*count);
        writeln!(out, "  {title:<11}{count:>9}{}  {name}", style.dim(&format!("{share:>9}")))?;
    }
    let (more, sum) = shares.rest;
    if more > 0 {
        writeln!(out, "  {:<11}{:>9}           in {more} more", "", units::count(sum))?;
    }
    Ok(())
}

/// Before, during and after each fault: a line of figures, and below it what went wrong.
fn fault_windows(out: &mut String, report: &Report, style: Style) -> std::fmt::Result {
    if report.fault_windows.is_empty() {
        return Ok(());
    }
    let head = format!(
        "  {:<24}{:>17}{:>11}{:>9}{:>9}{:>9}{:>10}  objectives",
        "faults", "from – to", "good", "p50", "p99", "max", "errors"
    );
    writeln!(out, "\n{}", style.dim(&head))?;
    for window in &report.fault_windows {
        let span = format!("{} – {}", seconds(window.span.0), seconds(window.span.1));
        let errors = format!("{:>10}", units::percent(window.error_share));
        let errors = if window.error_share > 0.0 { style.bad(&errors) } else { errors };
        let verdict = match summary::verdict(window) {
            None => String::new(),
            Some((true, words)) => style.good(&words),
            Some((false, words)) => style.bad(&words),
        };
        let name = format!("{:<24}", window.name);
        writeln!(
            out,
            "  {}{span:>17}{:>11}{:>9}{:>9}{:>9}{errors}  {verdict}",
            if window.is_fault { style.bold(&name) } else { name },
            Rate(window.ok_rate).to_string(),
            seconds(window.latency.get("p50")),
            seconds(window.latency.get("p99")),
            seconds(window.latency.max),
        )?;
        for error in window.errors.iter().take(MAX_LINES) {
            writeln!(out, "  {:<24}{:>17}  {}", "", units::count(error.count), error.class)?;
        }
    }
    Ok(())
}

fn verdicts(out: &mut String, report: &Report, style: Style) -> std::fmt::Result {
    if !report.objectives.is_empty() {
        writeln!(out)?;
    }
    for (i, judged) in report.objectives.iter().enumerate() {
        let title = if i == 0 { "objectives" } else { "" };
        let verdict = if judged.met { style.good("✓ met   ") } else { style.bad("✗ missed") };
        writeln!(out, "  {title:<11}{verdict}  {}: {}", judged.objective, judged.measured)?;
    }
    for note in &report.notes {
        writeln!(out, "\n  note: {note}")?;
    }
    for problem in &report.problems {
        writeln!(out, "\n  {} {problem}", style.bad("do not quote this run:"))?;
    }
    Ok(())
}

/// A number of bytes as text: `1.23 MiB`.
pub fn bytes(count: u64) -> String {
    let mut value = units::float(count);
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 999.5 {
            return format!("{} {unit}", units::decimal(value));
        }
        value /= 1024.0;
    }
    format!("{} TiB", units::decimal(value))
}
