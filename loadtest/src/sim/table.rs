//! Policies side by side, as Markdown.

use super::impact::Impact;
use super::{SimPlan, SimPolicy, SimResult, engine, parallel};
use crate::scenario::{EndpointFault, EndpointFaultKind, Sinkhole, SlowServices};
use crate::units::{self, Rate, float, seconds};
use std::fmt::Write as _;

/// One policy and its result.
#[derive(Debug)]
pub struct PolicyRow {
    /// The policy.
    pub policy: SimPolicy,
    /// Its result.
    pub found: SimResult,
}

/// Simulates all policies of `plan`, as many at a time as there are processors.
pub fn rows(plan: &SimPlan) -> Vec<PolicyRow> {
    parallel::each(&plan.policies, |policy| PolicyRow {
        policy: *policy,
        found: engine::run(plan, *policy),
    })
}

/// The table with a sentence on what was simulated.
pub fn render(plan: &SimPlan, rows: &[PolicyRow]) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = write(&mut out, plan, rows);
    out
}

fn write(out: &mut String, plan: &SimPlan, rows: &[PolicyRow]) -> std::fmt::Result {
    let run = &plan.run;
    let offered = match &run.load {
        crate::plan::Loop::Open(source) => source.expected() / source.length().max(1e-9),
        crate::plan::Loop::Closed => 0.0,
    };
    writeln!(
        out,
        "{}: {} endpoints, {} proxies, {}, {} of the capacity of {}; {} measured after {} of \
         warm-up, seed {}. Simulated; the same requests for all. Times in ms.\n",
        run.name,
        units::count(plan.endpoints() as u64),
        plan.sim.proxies,
        run.describe(),
        units::percent(offered / plan.capacity()),
        Rate(plan.capacity()),
        seconds(run.measured.as_secs_f64()),
        seconds(run.timeline.warm_up.as_secs_f64()),
        run.seed
    )?;
    writeln!(
        out,
        "| policy | p50 | p99 | p99.9 | p99 / nginx | p99 / oracle | errors | requests |"
    )?;
    writeln!(out, "|---|---|---|---|---|---|---|---|")?;
    let base = |kind| {
        let row = rows.iter().find(|row| row.policy == kind)?;
        Some(row.found.record.latency.quantile(0.99)).filter(|p99| *p99 > 0.0)
    };
    let (nginx, oracle) = (base(SimPolicy::NginxLeastConn), base(SimPolicy::Oracle));
    for PolicyRow { policy, found } in rows {
        let latency = &found.record.latency;
        let ms = |quantile| format!("{:.1}", latency.quantile(quantile) * 1e3);
        let ratio = |base: Option<f64>| {
            base.map_or("–".to_owned(), |base| format!("{:.2}", latency.quantile(0.99) / base))
        };
        let name = name(*policy);
        writeln!(
            out,
            "| {name} | {} | {} | {} | {} | {} | {} | {} |",
            ms(0.5),
            ms(0.99),
            ms(0.999),
            ratio(nginx),
            ratio(oracle),
            units::percent(found.record.error_share()),
            units::count(found.record.total())
        )?;
    }
    for (number, fault) in plan.faults.iter().enumerate() {
        fault_table(out, fault, rows.iter().map(|row| (row.policy, &row.found.faults[number])))?;
    }
    overload(out, plan, rows)
}

fn fault_table<'a>(
    out: &mut String,
    fault: &EndpointFault,
    faults: impl Iterator<Item = (SimPolicy, &'a Impact)>,
) -> std::fmt::Result {
    let what = match fault.kind {
        EndpointFaultKind::Slow(SlowServices { factor }) => format!("takes {factor} times as long"),
        EndpointFaultKind::Down => "is killed".to_owned(),
        EndpointFaultKind::Silent => "falls silent".to_owned(),
        EndpointFaultKind::Sinkhole(Sinkhole { after }) => {
            format!("answers 500 after {}", seconds(after.as_secs_f64()))
        }
    };
    let length = fault
        .length
        .map_or("to the end".to_owned(), |length| format!("for {}", seconds(length.as_secs_f64())));
    writeln!(
        out,
        "\nAt {} {} {what}, {length}. A share has left when it has halved, and is back when it is more \
         than half of what it was.\n",
        seconds(fault.at.as_secs_f64()),
        of_endpoints(&fault.endpoints)
    )?;
    writeln!(
        out,
        "| policy | share before | first second | later | left after | back after | p99 before | \
         p99 during | ratio | errors during |"
    )?;
    writeln!(out, "|---|---|---|---|---|---|---|---|---|---|")?;
    for (policy, impact) in faults {
        let it = impact.summary();
        let after = |time: Option<f64>| time.map_or("–".to_owned(), seconds);
        writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} | {:.1} | {:.1} | {:.2} | {} |",
            name(policy),
            units::percent(it.share_before),
            units::percent(it.share_first),
            units::percent(it.share_later),
            after(it.left_after),
            after(it.back_after),
            it.p99_before * 1e3,
            it.p99_during * 1e3,
            it.p99_during / it.p99_before,
            units::percent(it.errors_during)
        )?;
    }
    Ok(())
}

fn of_endpoints(numbers: &[u32]) -> String {
    match numbers {
        [number] => format!("endpoint {number}"),
        many => format!("each of {} endpoints", many.len()),
    }
}

fn overload(out: &mut String, plan: &SimPlan, rows: &[PolicyRow]) -> std::fmt::Result {
    let Some((begin, end)) = plan.overload else { return Ok(()) };
    writeln!(
        out,
        "\nFor {} more is asked for than can be served. Goodput is what was answered well, as a \
         share of the capacity.\n",
        seconds(float(end - begin) / 1e9)
    )?;
    writeln!(
        out,
        "| policy | goodput | p99 before | p99 of what was answered | recovered after |"
    )?;
    writeln!(out, "|---|---|---|---|---|")?;
    for PolicyRow { policy, found } in rows {
        let Some(it) = found.overload.as_ref().map(Impact::summary) else { continue };
        writeln!(
            out,
            "| {} | {} | {:.1} | {:.1} | {} |",
            name(*policy),
            units::percent(it.goodput / plan.capacity()),
            it.p99_before * 1e3,
            it.p99_during * 1e3,
            seconds(it.recovered_after)
        )?;
    }
    Ok(())
}

fn name(policy: SimPolicy) -> String {
    if policy.is_forebay() { format!("**{}**", policy.name()) } else { policy.name().to_owned() }
}

/// The speed of the simulation: not part of any report, which must not depend on it.
pub fn speed(requests: u64, events: u64, took: std::time::Duration) -> String {
    format!(
        "{} requests, {} events in {}",
        units::count(requests),
        units::count(events),
        seconds(took.as_secs_f64().max(float(1) / 1e9))
    )
}
