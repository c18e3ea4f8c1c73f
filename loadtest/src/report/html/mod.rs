//! A report as one page that needs nothing else: no script, no font, no network.
//!
//! It goes into the artefacts of a pipeline and is opened a month later on another machine. Names
//! of variants, endpoints and errors come from the network; all text is escaped.

mod escape;
mod svg;

use super::summary::{self, Shares};
use super::times::{QUANTILES, Quantiles, RUN_DIGITS};
use super::{Point, Report, table};
use crate::units::{self, Rate, float, seconds};
use escape::escape;
use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};
use svg::{Chart, Scale};

const STYLE: &str = include_str!("style.css");
/// Maximum number of rows of a list; the rest is summed up.
const MAX_ROWS: usize = 16;
/// Maximum over median from which the tail counts as far.
const FAR: f64 = 20.0;
/// Points of the percentile curve for every ten-fold of what is above.
const POINTS_PER_DECADE: f64 = 40.0;

/// The page.
pub fn render(report: &Report) -> String {
    let mut out = String::with_capacity(64 * 1024);
    // Writing to a string does not fail.
    let _ = page(&mut out, report);
    out
}

fn page(out: &mut String, report: &Report) -> std::fmt::Result {
    let name = escape(&report.run.name);
    writeln!(out, "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">")?;
    writeln!(out, "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">")?;
    writeln!(
        out,
        "<title>{name} · forebay-load</title>\n<style>\n{STYLE}</style>\n</head>\n<body>"
    )?;
    let target = escape(&report.run.target);
    writeln!(
        out,
        "<h1>{name}</h1>\n<div>{target}</div>\n<div class=\"dim\">{}</div>",
        escape(&summary::headline(report))
    )?;
    for problem in &report.problems {
        let text = escape(problem);
        writeln!(out, "<p class=\"notice bad\"><b>Do not quote this run:</b> {text}</p>")?;
    }
    for note in &report.notes {
        writeln!(out, "<p class=\"notice\">{}</p>", escape(note))?;
    }
    figures(out, report)?;
    writeln!(out, "<div class=\"grid2\">")?;
    objectives(out, report)?;
    fault_windows(out, report)?;
    quantiles(out, report)?;
    writeln!(out, "<div class=\"stack\">")?;
    percentiles(out, report)?;
    rate(out, report)?;
    generator(out, report)?;
    writeln!(out, "</div><div class=\"stack\">")?;
    over_time(out, report)?;
    shares(out, report)?;
    writeln!(out, "</div></div>\n</body>\n</html>")
}

fn figures(out: &mut String, report: &Report) -> std::fmt::Result {
    let state = if report.results.error_share > 0.0 { "bad" } else { "good" };
    writeln!(out, "<div class=\"figures\">")?;
    for (label, value, class) in [
        ("median latency", seconds(report.results.latency.get("p50")), ""),
        ("99th percentile", seconds(report.results.latency.get("p99")), ""),
        ("greatest", seconds(report.results.latency.max), ""),
        ("answered well", Rate(report.results.ok_rate).to_string(), ""),
        ("requests", units::count(report.results.requests), ""),
        ("errors", units::percent(report.results.error_share), state),
    ] {
        writeln!(out, "<div class=\"figure\"><b class=\"{class}\">{value}</b>{label}</div>")?;
    }
    writeln!(out, "</div>")
}

fn objectives(out: &mut String, report: &Report) -> std::fmt::Result {
    if report.objectives.is_empty() {
        return Ok(());
    }
    writeln!(out, "<section class=\"wide\"><h2>Objectives</h2><table class=\"narrow\">")?;
    for judged in &report.objectives {
        let (class, word) = if judged.met { ("good", "✓ met") } else { ("bad", "✗ missed") };
        let (objective, measured) = (escape(&judged.objective), escape(&judged.measured));
        writeln!(
            out,
            "<tr><td>{objective}</td><td>{measured}</td><td class=\"{class}\">{word}</td></tr>"
        )?;
    }
    writeln!(out, "</table></section>")
}

/// Before, during and after each fault.
fn fault_windows(out: &mut String, report: &Report) -> std::fmt::Result {
    if report.fault_windows.is_empty() {
        return Ok(());
    }
    writeln!(out, "<section class=\"wide\"><h2>Before, during and after faults</h2><table><tr>")?;
    let head = ["", "from", "to", "good", "p50", "p99", "max", "errors", "most frequent error"];
    head.iter().try_for_each(|title| write!(out, "<th>{title}</th>"))?;
    writeln!(out, "<th>objectives</th></tr>")?;
    for window in &report.fault_windows {
        let class = if window.is_fault { "fault" } else { "" };
        let state = if window.error_share > 0.0 { "bad" } else { "" };
        write!(out, "<tr class=\"{class}\"><td>{}</td>", escape(&window.name))?;
        for value in [
            seconds(window.span.0),
            seconds(window.span.1),
            Rate(window.ok_rate).to_string(),
            seconds(window.latency.get("p50")),
            seconds(window.latency.get("p99")),
            seconds(window.latency.max),
        ] {
            write!(out, "<td>{value}</td>")?;
        }
        let worst = window.errors.first().map_or("", |count| count.class.as_str());
        let (verdict, words) = match summary::verdict(window) {
            None => ("", String::new()),
            Some((true, words)) => ("good", words),
            Some((false, words)) => ("bad", words),
        };
        writeln!(
            out,
            "<td class=\"{state}\">{}</td><td>{}</td><td class=\"{verdict}\">{}</td></tr>",
            units::percent(window.error_share),
            escape(worst),
            escape(&words)
        )?;
    }
    writeln!(out, "</table></section>")
}

fn quantiles(out: &mut String, report: &Report) -> std::fmt::Result {
    writeln!(out, "<section class=\"wide\"><h2>Latency</h2><table><tr><th></th>")?;
    for (name, _) in QUANTILES {
        write!(out, "<th>{name}</th>")?;
    }
    writeln!(out, "<th>max</th><th>mean</th><th>values</th></tr>")?;
    let open = report.run.kind == "open";
    for (name, of, shown) in [
        ("from the intended start", &report.results.latency, true),
        ("from when a connection was free", &report.results.service, open),
        ("errors, until known", &report.results.error_latency, true),
        ("the generator's own lag", &report.generator.lag, open),
        ("the generator's wait for a connection", &report.generator.wait, open),
    ] {
        if shown && of.count > 0 {
            quantile_row(out, name, of)?;
        }
    }
    writeln!(out, "</table></section>")
}

fn quantile_row(out: &mut String, name: &str, of: &Quantiles) -> std::fmt::Result {
    write!(out, "<tr><td>{name}</td>")?;
    for (quantile, _) in QUANTILES {
        write!(out, "<td>{}</td>", seconds(of.get(quantile)))?;
    }
    let (max, mean, count) = (seconds(of.max), seconds(of.mean), units::count(of.count));
    writeln!(out, "<td>{max}</td><td>{mean}</td><td>{count}</td></tr>")
}

/// Latency over percentile; each nine has the same width.
fn percentiles(out: &mut String, report: &Report) -> std::fmt::Result {
    let histogram = report.latency_buckets.histogram(RUN_DIGITS);
    if histogram.is_empty() {
        return Ok(());
    }
    let count = float(histogram.len()).max(10.0);
    let steps = units::whole((count.log10() * POINTS_PER_DECADE).ceil());
    let points: Vec<(f64, f64)> = (0..=steps)
        .map(|step| {
            let above = 10_f64.powf(float(step) / POINTS_PER_DECADE).min(count);
            let value = histogram.value_at_quantile(1.0 - 1.0 / above);
            (above, float(value) / 1e9)
        })
        .collect();
    let x = Scale::Log(1.0, count);
    let values = || points.iter().map(|(_, y)| *y);
    // A far tail would press everything else to the ground.
    let (median, max) = (report.results.latency.get("p50"), values().fold(0.0, f64::max));
    let y = if max > FAR * median { Scale::log(values()) } else { Scale::from_zero(values()) };
    let ticks: Vec<f64> =
        [1.0, 2.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6].into_iter().filter(|t| *t <= count).collect();
    let name = |above: f64| match above {
        a if a < 1.5 => "min".to_owned(),
        a => format!("p{}", (1e4 * (100.0 - 100.0 / a)).round() / 1e4),
    };
    let mut chart = Chart::new("latency by percentile", (x, &ticks, name), (y, seconds));
    let service: Vec<(f64, f64)> = QUANTILES
        .iter()
        .map(|(name, quantile)| (1.0 / (1.0 - quantile), report.results.service.get(name)))
        .filter(|(above, _)| *above <= count)
        .collect();
    let mut legend = vec![("one", "from intended start")];
    if report.run.kind == "open" {
        // Its quantiles are all that is known of it: no line between them.
        service.iter().for_each(|point| chart.line("three", &[*point]));
        legend.push(("three", "from free connection"));
    }
    chart.line("one", &points);
    section(out, "Latency by percentile", &legend, &chart.finish())
}

fn over_time(out: &mut String, report: &Report) -> std::fmt::Result {
    let pick = |value: fn(&Point) -> f64| -> Vec<(f64, f64)> {
        let middle = report.interval_seconds / 2.0;
        let good = report.series.iter().filter(|point| point.ok > 0);
        good.map(|point| (point.at + middle, value(point))).collect()
    };
    let (p50, p99, max) = (pick(|point| point.p50), pick(|point| point.p99), pick(|p| p.max));
    let y = Scale::log(p50.iter().chain(&max).map(|(_, y)| *y));
    let mut chart = time_chart("latency over time", report, (y, seconds));
    for (class, line) in [("three", &max), ("two", &p99), ("one", &p50)] {
        chart.line(class, line);
    }
    for point in &report.series {
        let text = format!(
            "at {}: p50 {}, p99 {}, max {}",
            seconds(point.at),
            seconds(point.p50),
            seconds(point.p99),
            seconds(point.max)
        );
        chart.hint((point.at, point.at + report.interval_seconds), &text);
    }
    let legend = [("one", "p50"), ("two", "p99"), ("three", "max")];
    section(out, "Latency over time", &legend, &chart.finish())
}

fn rate(out: &mut String, report: &Report) -> std::fmt::Result {
    // The last interval may be cut short by the end of the run, and would look like a fall.
    let length = |point: &Point| {
        let left = report.run.measured_seconds - point.at;
        if left > 0.0 { report.interval_seconds.min(left) } else { report.interval_seconds }
    };
    let all = |point: &Point| (float(point.ok) + float(point.errors)) / length(point);
    let show = |value: f64| Rate(value).to_string();
    let y = Scale::from_zero(report.series.iter().map(all));
    let mut chart = time_chart("answers over time", report, (y, show));
    for point in &report.series {
        let x = (point.at, point.at + length(point));
        let ok = float(point.ok) / length(point);
        chart.bar("one", x, 0.0, ok);
        chart.bar("error", x, ok, all(point));
        let (good, errors) = (units::count(point.ok), units::count(point.errors));
        chart.hint(x, &format!("at {}: {good} good, {errors} errors", seconds(point.at)));
    }
    let legend = [("one", "good"), ("error", "errors")];
    section(out, "Requests by intended start", &legend, &chart.finish())
}

fn time_chart(label: &str, report: &Report, y: (Scale, fn(f64) -> String)) -> Chart {
    let end = report.series.last().map_or(1.0, |point| point.at + report.interval_seconds);
    let x = Scale::Linear(0.0, end);
    let mut chart = Chart::new(label, (x, &x.ticks(), |at| format!("{at} s")), y);
    for window in report.fault_windows.iter().filter(|window| window.is_fault) {
        chart.band(window.span, &window.name);
    }
    chart
}

fn shares(out: &mut String, report: &Report) -> std::fmt::Result {
    share_table(out, "Errors by reason", Shares::of_errors(report, MAX_ROWS), "bad")?;
    share_table(out, "Answers by variant", Shares::of(&report.results.variants, MAX_ROWS), "")?;
    share_table(out, "Answers by endpoint", Shares::of(&report.results.endpoints, MAX_ROWS), "")
}

fn share_table(
    out: &mut String,
    title: &str,
    mut shares: Shares<'_>,
    class: &str,
) -> std::fmt::Result {
    if shares.entries.is_empty() {
        return Ok(());
    }
    if shares.rest.0 > 0 {
        shares.entries.push(("all others", shares.rest.1));
    }
    let max = shares.entries.iter().map(|(_, count)| *count).max().unwrap_or(0).max(1);
    writeln!(out, "<section><h2>{title}</h2><table>")?;
    for (name, count) in &shares.entries {
        let (count, share) = (*count, shares.share(*count));
        let (name, width) = (escape(name), float(count) / float(max) * 100.0);
        let (count, share) = (units::count(count), units::percent(share));
        writeln!(
            out,
            "<tr><td class=\"name\" title=\"{name}\">{name}</td><td>{count}</td><td>{share}</td>\
             <td class=\"share {class}\"><div style=\"width:{width:.2}%\"></div></td></tr>"
        )?;
    }
    writeln!(out, "</table></section>")
}

fn generator(out: &mut String, report: &Report) -> std::fmt::Result {
    let of = &report.generator;
    let requests =
        float(report.results.requests.saturating_add(report.results.warm_up_requests)).max(1.0);
    writeln!(out, "<section><h2>Generator and machine</h2><table>")?;
    for (name, value) in [
        ("offered", Rate(report.results.offered_rate).to_string()),
        ("connections opened", units::count(of.connections)),
        ("max in flight", units::count(of.max_in_flight)),
        ("CPU time a request", seconds(of.cpu_seconds / requests)),
        (
            "bodies sent, received",
            format!("{}, {}", table::bytes(of.bytes_out), table::bytes(of.bytes_in)),
        ),
        ("CPU time taken by the hypervisor", units::percent(of.stolen_share)),
        ("processor", format!("{} × {}", report.run.machine.cores, report.run.machine.processor)),
        ("started", started(report)),
        ("forebay-load", report.run.machine.version.clone()),
    ] {
        writeln!(out, "<tr><td>{name}</td><td>{}</td></tr>", escape(&value))?;
    }
    writeln!(out, "</table></section>")
}

/// Start of the run, in a form for people.
fn started(report: &Report) -> String {
    // A date has four digits for its year.
    const END_OF_TIME: u64 = 253_402_300_799;
    let since = Duration::from_secs(report.run.started.min(END_OF_TIME));
    httpdate::fmt_http_date(UNIX_EPOCH + since)
}

fn section(out: &mut String, title: &str, legend: &[(&str, &str)], body: &str) -> std::fmt::Result {
    write!(out, "<section><div class=\"legend\">")?;
    for (class, text) in legend {
        write!(out, "<span class=\"{class}\">{text}</span>")?;
    }
    writeln!(out, "</div><h2>{title}</h2>\n{body}</section>")
}
