//! Does the proxy's policy win everywhere, or on the fleet that it was tuned on?
//!
//! One fleet shows what a policy can do there. So many fleets are simulated, with the same requests for every
//! policy, and in each of them the default stands beside the best of what a user would pick instead, whichever
//! that is there. The listed fleets can be tuned to; those that are drawn from a seed can't.

pub mod cells;
pub mod extras;

use super::{SimError, SimPlan, SimPolicy, engine, parallel};
use crate::scenario::{Load, Open, Scenario, Spacing};
use crate::units;
use cells::Cell;
use std::fmt::Write as _;
use std::time::Duration;

/// The policies that a user would pick instead.
const PEERS: [SimPolicy; 4] = [
    SimPolicy::NginxLeastConn,
    SimPolicy::HaproxyMaxconn,
    SimPolicy::EnvoyLeastRequest,
    SimPolicy::TraefikLeastTime,
];
const NGINX: usize = 0;
/// Bars: of the best peer's p99 and p99.9, of nginx's p50 where endpoints are alike and elsewhere, of the
/// geometric mean of p99 over the best peer's.
const MAX_P99: f64 = 1.03;
const MAX_P999: f64 = 1.06;
const MAX_P50_ALIKE: f64 = 1.10;
const MAX_P50_MIXED: f64 = 1.25;
const MAX_MEAN: f64 = 0.95;
/// Of the least share of requests without a good answer, and the difference below which it is none.
const MAX_LOST: f64 = 1.03;
const MIN_LOST: f64 = 0.0005;
/// Share of the drawn cells that must keep them, and what the p99 of none of those may be above.
const MIN_SHARE: f64 = 0.95;
const MAX_P99_DRAWN: f64 = 1.15;
/// Before anything is measured, as a share of what is.
const WARM_UP: f64 = 1.0 / 6.0;

/// A cell and what came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The cell.
    pub cell: Cell,
    /// The median over nginx's.
    pub p50_to_nginx: f64,
    /// The same of p99.
    pub p99_to_nginx: f64,
    /// Over the least of the peers.
    pub p99_to_best: f64,
    /// Over the least of the peers.
    pub p999_to_best: f64,
    /// The p99 of the policy that knows each service, over the least of the peers; `None` where it can't foresee
    /// batches.
    pub oracle_to_best: Option<f64>,
    /// Share of requests without a good answer, and the least of the peers'.
    pub lost: [f64; 2],
    /// The peer with the least p99.
    pub best: &'static str,
}

impl Found {
    /// Does it keep the bars?
    pub fn is_met(&self) -> bool {
        let [lost, least] = self.lost;
        if lost > (least * MAX_LOST).max(least + MIN_LOST) {
            return false;
        }
        if self.cell.extra.counts_losses() {
            return true;
        }
        let max = if self.cell.is_alike() { MAX_P50_ALIKE } else { MAX_P50_MIXED };
        self.p50_to_nginx <= max && self.p99_to_best <= MAX_P99 && self.p999_to_best <= MAX_P999
    }
}

/// Cells together.
#[derive(Debug, Clone, PartialEq)]
pub struct Sum {
    /// How many there are, and how many keep the bars.
    pub cells: usize,
    /// See above.
    pub met: usize,
    /// Geometric mean of p99 over the best peer's.
    pub mean: f64,
    /// The most of it.
    pub worst: f64,
}

impl Sum {
    /// Of all that was found.
    pub fn of(found: &[Found]) -> Self {
        // Where most of the late are not answered, a p99 is that of those that were lucky.
        let timed = || found.iter().filter(|it| !it.cell.extra.counts_losses());
        let logs: f64 = timed().map(|it| it.p99_to_best.ln()).sum();
        Self {
            cells: found.len(),
            met: found.iter().filter(|it| it.is_met()).count(),
            mean: (logs / units::float(timed().count().max(1) as u64)).exp(),
            worst: timed().map(|it| it.p99_to_best).fold(0.0, f64::max),
        }
    }

    /// Are the bars of listed cells kept?
    pub fn keeps_listed(&self) -> bool {
        self.met == self.cells && self.mean <= MAX_MEAN
    }

    /// Are those of cells that were drawn kept?
    pub fn keeps_drawn(&self) -> bool {
        let share = units::float(self.met as u64) / units::float(self.cells.max(1) as u64);
        share >= MIN_SHARE && self.worst <= MAX_P99_DRAWN
    }
}

/// Simulates these cells with so many requests each; `template` gives the seed, and what is asked for.
///
/// # Errors
/// The template has no endpoint or no request.
pub fn all(template: &Scenario, cells: &[Cell], requests: f64) -> Result<Vec<Found>, SimError> {
    let plan = |cell: &Cell| Ok((cell.clone(), plan(template, cell, requests)?));
    let plans: Result<Vec<(Cell, SimPlan)>, SimError> = cells.iter().map(plan).collect();
    Ok(parallel::each(&plans?, |(cell, plan)| measure(cell, plan)))
}

fn plan(template: &Scenario, cell: &Cell, requests: f64) -> Result<SimPlan, SimError> {
    let mut scenario = template.clone();
    let rate = cell.capacity() * cell.load;
    let length = Duration::from_secs_f64(requests / rate);
    let phase = cell.extra.phase(rate, length);
    scenario.load = Load::Open(Open { spacing: Spacing::Poisson, phases: vec![phase] });
    scenario.general.warm_up = length.mul_f64(WARM_UP);
    for request in &mut scenario.requests {
        request.demand = Some(cell.demand);
    }
    let simulated = &mut scenario.simulated;
    simulated.sim.round_trip = cell.round_trip;
    let kind = simulated.fleet.first().cloned();
    let group = |slow: &f64| {
        kind.clone().map(|mut group| {
            (group.count, group.slots, group.slow) = (1, cell.slots, *slow);
            group
        })
    };
    simulated.fleet = cell.slow.iter().filter_map(group).collect();
    cell.extra.apply(&mut scenario, cell.demand, length);
    Ok(SimPlan::new(scenario)?)
}

fn measure(cell: &Cell, plan: &SimPlan) -> Found {
    let figures = |policy| {
        let found = engine::run(plan, policy);
        let quantile = |quantile| found.record.latency.quantile(quantile).max(1e-9);
        [quantile(0.5), quantile(0.99), quantile(0.999), found.record.error_share()]
    };
    let [p50, p99, p999, lost] = figures(plan.policy);
    let peers = PEERS.map(figures);
    let has_batches = plan.groups.iter().any(|group| group.batch.is_some());
    let oracle = (!has_batches).then(|| figures(SimPolicy::Oracle)[1]);
    let least = |at: usize| peers.iter().map(|it| it[at]).fold(f64::INFINITY, f64::min);
    let best = PEERS.iter().zip(&peers).min_by(|(_, one), (_, other)| one[1].total_cmp(&other[1]));
    Found {
        cell: cell.clone(),
        p50_to_nginx: p50 / peers[NGINX][0],
        p99_to_nginx: p99 / peers[NGINX][1],
        p99_to_best: p99 / least(1),
        p999_to_best: p999 / least(2),
        oracle_to_best: oracle.map(|p99| p99 / least(1)),
        lost: [lost, least(3)],
        best: best.map_or("", |(policy, _)| policy.name()),
    }
}

/// As Markdown: all cells, then what they are together.
pub fn render(found: &[Found]) -> String {
    let mut out =
        "| cell | p50 / nginx | p99 / nginx | p99 / best | p99.9 / best | best | oracle | lost, least | met |\n\
                   |---|---|---|---|---|---|---|---|---|\n"
            .to_owned();
    for it in found {
        // Writing to a string does not fail.
        let _ = writeln!(
            out,
            "| {} | {:.2} | {:.2} | {:.2} | {:.2} | {} | {} | {} | {} |",
            it.cell.name,
            it.p50_to_nginx,
            it.p99_to_nginx,
            it.p99_to_best,
            it.p999_to_best,
            it.best,
            it.oracle_to_best.map_or("–".to_owned(), |it| format!("{it:.2}")),
            lost(it.lost),
            if it.is_met() { "yes" } else { "**no**" }
        );
    }
    let Sum { cells, met, mean, worst } = Sum::of(found);
    let _ = writeln!(
        out,
        "\n{met} of {cells} cells met; p99 over the best peer's: geometric mean {mean:.3}, worst {worst:.2}\n"
    );
    out
}

fn lost(shares: [f64; 2]) -> String {
    if shares == [0.0; 2] {
        return "–".to_owned();
    }
    shares.map(units::percent).join(", ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that fails may say so bluntly")]
    use super::*;
    use std::path::Path;

    fn template() -> Scenario {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/sim");
        Scenario::read(&directory.join("matrix.toml")).unwrap()
    }

    #[test]
    fn endpoints_with_one_slot_lose_nothing_to_a_request_that_waits_behind_another() {
        let few = |cell: &Cell| cell.slots == 1 && cell.slow.len() == 8 && cell.load == 0.9;
        let cells: Vec<Cell> = cells::listed().into_iter().filter(few).collect();
        assert_eq!(cells.len(), 4);
        for found in all(&template(), &cells, 12_000.0).unwrap() {
            assert!(found.p99_to_best < 1.1, "{found:?}");
        }
    }

    #[test]
    fn a_cell_is_what_it_says() {
        let cell = cells::listed().into_iter().find(|cell| !cell.is_alike()).unwrap();
        let plan = plan(&template(), &cell, 1000.0).unwrap();
        assert_eq!(plan.endpoints(), 4);
        let offered = cell.capacity() * cell.load;
        assert!((plan.capacity() * 0.6 / offered - 1.0).abs() < 1e-9, "{offered}");
    }

    #[test]
    fn bars_are_kept_or_not() {
        let cell = cells::listed()[0].clone();
        let good = Found {
            cell,
            p50_to_nginx: 1.1,
            p99_to_nginx: 0.9,
            p99_to_best: 0.9,
            p999_to_best: 1.06,
            oracle_to_best: Some(0.8),
            lost: [0.0; 2],
            best: "nginx_least_conn",
        };
        let slow = Found { p99_to_best: 1.04, ..good.clone() };
        assert!(good.is_met() && !slow.is_met());
        assert!(!Found { p50_to_nginx: 1.11, ..good.clone() }.is_met());
        assert!(!Found { lost: [0.002, 0.001], ..good.clone() }.is_met());
        assert!(Found { lost: [0.102, 0.1], ..good.clone() }.is_met());
        let mut found = vec![good; 19];
        assert!(Sum::of(&found).keeps_listed());
        found.push(slow.clone());
        assert!(!Sum::of(&found).keeps_listed() && Sum::of(&found).keeps_drawn());
        found.push(Found { p99_to_best: 1.2, ..slow });
        assert!(!Sum::of(&found).keeps_drawn());
    }
}
