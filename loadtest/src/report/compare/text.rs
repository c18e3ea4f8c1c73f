//! A comparison for people.

use super::{Comparison, ComparisonRow, Group, Quantity, Verdict};
use crate::report::style::Style;
use crate::units::{self, Rate, seconds};
use std::fmt::Write as _;

/// The comparison as text, with a line break at the end.
pub fn render(comparison: &Comparison, style: Style) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = write(&mut out, comparison, style);
    out
}

fn write(out: &mut String, comparison: &Comparison, style: Style) -> std::fmt::Result {
    for (name, group) in [("A", &comparison.a), ("B", &comparison.b)] {
        writeln!(out, "{}  {}", style.bold(name), side(group))?;
    }
    let interval = format!("{} % interval", units::decimal(comparison.confidence * 100.0));
    let head = format!("  {:<8}{:>10}{:>10}{:>10}   {interval:<20}", "", "A", "B", "B / A");
    writeln!(out, "\n{}", style.dim(head.trim_end()))?;
    for row in &comparison.rows {
        let show =
            |value: Option<f64>| value.map_or("–".to_owned(), |v| measured(row.quantity, v));
        let change = row.change.map_or("–".to_owned(), |v| changed(row.quantity, v));
        let interval = row.interval.map_or("–".to_owned(), |(low, high)| {
            format!("{} … {}", changed(row.quantity, low), changed(row.quantity, high))
        });
        let name = label(row.quantity);
        let (a, b, verdict) = (show(row.a), show(row.b), word(row, style));
        writeln!(out, "  {name:<8}{a:>10}{b:>10}{change:>10}   {interval:<20}  {verdict}")?;
    }
    writeln!(out, "\n  {}", conclusion(comparison, style))?;
    for note in &comparison.notes {
        writeln!(out, "  note: {note}")?;
    }
    for problem in &comparison.problems {
        writeln!(out, "  {} {problem}", style.bad("do not quote this run:"))?;
    }
    Ok(())
}

fn side(group: &Group) -> String {
    let runs = if group.runs == 1 { "1 run".to_owned() } else { format!("{} runs", group.runs) };
    let (requests, length) = (units::count(group.requests), seconds(group.seconds));
    format!("{} ({runs}, {requests} requests in {length})", group.what)
}

fn label(quantity: Quantity) -> &'static str {
    match quantity {
        Quantity::P50 => "p50",
        Quantity::P99 => "p99",
        Quantity::Errors => "errors",
        Quantity::Rate => "rate",
    }
}

fn measured(quantity: Quantity, value: f64) -> String {
    match quantity {
        Quantity::P50 | Quantity::P99 => seconds(value),
        Quantity::Errors => units::percent(value),
        Quantity::Rate => Rate(value).to_string(),
    }
}

fn changed(quantity: Quantity, value: f64) -> String {
    match quantity {
        Quantity::Errors => format!("{:+.2} pt", value * 100.0),
        _ => format!("{value:.3}"),
    }
}

fn word(row: &ComparisonRow, style: Style) -> String {
    match row.verdict {
        Verdict::Worse => style.bad("worse"),
        Verdict::Better => style.good("better"),
        Verdict::Same => "the same".to_owned(),
        Verdict::Unclear => style.dim("can't be told"),
    }
}

fn conclusion(comparison: &Comparison, style: Style) -> String {
    match comparison.verdict {
        Verdict::Worse => style.bad("B is worse"),
        Verdict::Better => style.good("B is better, and worse in nothing"),
        Verdict::Same => style.good("B is neither better nor worse"),
        Verdict::Unclear => {
            "B is not shown to be worse; where the result is open, longer or more runs would decide"
                .to_owned()
        }
    }
}
