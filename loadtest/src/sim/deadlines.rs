//! Goodput where deadlines are near the service time, over a matrix of fleets, beside the best that is
//! possible.
//!
//! One scenario shows one cell: 32 slots hide the losses of a pool of one slot, constant services hide those
//! of random ones. And a share of the capacity says little by itself: of exponential services a third takes
//! longer than 1.2 means, whichever are picked, and a single slot stands idle while the queue happens to be
//! empty. So each cell stands beside the best result of a policy that knows the true distribution of
//! services and the true state of all slots, but not the future ([`SimPolicy::Informed`]).

use super::engine::{self, SimResult};
use super::{SimError, SimPlan, SimPolicy, parallel};
use crate::distribution::Distribution;
use crate::report::outcome::Outcome;
use crate::scenario::{Constant, Load, Open, Phase, Scenario, Spacing};
use crate::units::{self, Rate, float, nanos};
use forebay_protocol::Reason;
use std::fmt::Write as _;
use std::time::Duration;

/// Mean service time in seconds.
const SERVICE: f64 = 0.02;
const ENDPOINTS: [u32; 3] = [1, 3, 8];
const SLOTS: [u32; 4] = [1, 2, 4, 16];
/// Deadlines, in mean services.
const RATIOS: [f64; 3] = [1.2, 1.5, 2.2];
/// Offered load, as a share of the capacity.
const OFFERED: [f64; 3] = [1.0, 1.5, 3.0];
/// Least requests and least mean services of a cell's measured part.
const REQUESTS: f64 = 4_000.0;
const SERVICES: f64 = 40.0;
/// Offered before it, so that services are known, and for how many requests and mean services.
const CALM: f64 = 0.5;
const CALM_REQUESTS: f64 = 200.0;
const CALM_SERVICES: f64 = 50.0;
/// Parameters of the informed policy: in percent of a fresh request's chance, the minimum with which one is
/// begun, and the minimum with which the earliest deadline goes before the best chance.
const FLOORS: [u8; 2] = [0, 80];
const IN_TIME: [u8; 2] = [95, 101];
/// A cell keeps the bar with this share of what the informed policy reached.
pub const BAR: f64 = 0.95;

/// One cell of the matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cell {
    /// Endpoints of the pool.
    pub endpoints: u32,
    /// Slots of each.
    pub slots: u32,
    /// Service times, with a mean of [`SERVICE`] seconds.
    pub service: (&'static str, Distribution),
    /// The deadline, in mean services.
    pub ratio: f64,
    /// The offered load as a share of the capacity.
    pub offered: f64,
    /// The proxy's way to know the slots of endpoints.
    pub known: Known,
}

/// A proxy's way to know the slots of endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// By load reports, on each answer.
    Reported,
    /// By its configuration; there are no reports.
    Stated,
    /// By what it learns from latency; there are no reports.
    Learnt,
}

impl Known {
    const ALL: [Self; 3] = [Self::Reported, Self::Stated, Self::Learnt];

    fn name(self) -> &'static str {
        match self {
            Self::Reported => "reported",
            Self::Stated => "stated",
            Self::Learnt => "learnt",
        }
    }
}

/// A cell and what came of it; shares of the capacity.
#[derive(Debug, Clone, PartialEq)]
pub struct CellResult {
    /// The cell.
    pub cell: Cell,
    /// Answered in time.
    pub goodput: f64,
    /// The same by the informed policy at its best.
    pub informed: f64,
    /// Sent to an endpoint, but not answered in time.
    pub late: f64,
    /// Refused when they came.
    pub refused: f64,
    /// Refused after they had waited.
    pub waited: f64,
}

impl CellResult {
    /// Goodput as a share of what the informed policy reached.
    pub fn ratio(&self) -> f64 {
        self.goodput / self.informed.max(f64::MIN_POSITIVE)
    }
}

fn services() -> [(&'static str, Distribution); 4] {
    [
        ("constant", Distribution::Constant(SERVICE)),
        ("lognormal 0.5", Distribution::LogNormal { mean: SERVICE, sigma: 0.5 }),
        ("exponential", Distribution::Exponential(SERVICE)),
        (
            "bimodal 1:8",
            Distribution::Bimodal { short: SERVICE / 1.7, long: SERVICE * 8.0 / 1.7, share: 0.1 },
        ),
    ]
}

/// All cells.
pub fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    for (service, ratio) in services().into_iter().flat_map(|it| RATIOS.map(|ratio| (it, ratio))) {
        for (endpoints, slots) in ENDPOINTS.iter().flat_map(|n| SLOTS.map(|slots| (*n, slots))) {
            for (offered, known) in
                OFFERED.iter().flat_map(|offered| Known::ALL.map(|known| (*offered, known)))
            {
                cells.push(Cell { endpoints, slots, service, ratio, offered, known });
            }
        }
    }
    cells
}

/// Simulates these cells; `template` gives the seed, the way to endpoints, and what is asked for.
///
/// # Errors
/// The template has no endpoint or no request.
pub fn all(template: &Scenario, cells: &[Cell]) -> Result<Vec<CellResult>, SimError> {
    let plan = |cell: &Cell| Ok((*cell, plan(template, cell)?));
    let plans: Result<Vec<(Cell, SimPlan)>, SimError> = cells.iter().map(plan).collect();
    Ok(parallel::each(&plans?, |(cell, plan)| measure(cell, plan)))
}

fn plan(template: &Scenario, cell: &Cell) -> Result<SimPlan, SimError> {
    let mut scenario = template.clone();
    let capacity = f64::from(cell.endpoints * cell.slots) / SERVICE;
    let phase = |share: f64, requests: f64, services: f64| {
        let rate = capacity * share;
        let seconds = (requests / rate).max(services * SERVICE);
        let length = Duration::from_secs_f64(seconds);
        (Phase::Constant(Constant { rate: Rate(rate), length }), length)
    };
    let (calm, before) = phase(CALM, CALM_REQUESTS, CALM_SERVICES);
    let (busy, length) = phase(cell.offered, REQUESTS, SERVICES);
    scenario.load = Load::Open(Open { spacing: Spacing::Poisson, phases: vec![calm, busy] });
    scenario.general.warm_up = Duration::ZERO;
    for request in &mut scenario.requests {
        request.demand = Some(cell.service.1);
        request.deadline = Some(Duration::from_secs_f64(SERVICE * cell.ratio));
    }
    for group in &mut scenario.simulated.fleet {
        (group.count, group.slots) = (cell.endpoints, cell.slots);
    }
    scenario.simulated.fleet.truncate(1);
    scenario.simulated.sim.reports.in_band = cell.known == Known::Reported;
    if cell.known == Known::Stated {
        scenario.simulated.sim.slots = cell.slots;
    }
    let mut plan = SimPlan::new(scenario)?;
    plan.overload = Some((nanos(before), nanos(before + length)));
    plan.run.timeline.warm_up = before;
    Ok(plan)
}

fn measure(cell: &Cell, plan: &SimPlan) -> CellResult {
    let found = engine::run(plan, plan.policy);
    let (begin, end) = plan.overload.unwrap_or_default();
    let all = plan.capacity() * float(end - begin) / 1e9;
    let goodput = |found: &SimResult| {
        found.overload.as_ref().map_or(0.0, |it| it.summary().goodput / plan.capacity())
    };
    let counted = |reason: Reason| {
        let counts = found.record.outcomes.iter().filter_map(|(outcome, count)| match outcome {
            Outcome::Refused(_, Some(code)) if *code == reason.code() => Some(*count),
            _ => None,
        });
        float(counts.sum()) / all
    };
    let policies = FLOORS
        .iter()
        .flat_map(|floor| IN_TIME.map(|in_time| SimPolicy::Informed { floor: *floor, in_time }));
    let informed = policies.map(|policy| goodput(&engine::run(plan, policy))).fold(0.0, f64::max);
    let late = found.late;
    CellResult {
        cell: *cell,
        goodput: goodput(&found),
        informed,
        late: float(late) / all,
        refused: counted(Reason::DeadlineUnreachable),
        waited: counted(Reason::DeadlineExceeded) - float(late) / all,
    }
}

/// The result as Markdown: the mean of each kind of cell, then all cells.
pub fn render(found: &[CellResult]) -> String {
    let mut out = format!(
        "Simulated: {} cells of at least {REQUESTS} requests each, deadlines in mean services. Shares of \
         the capacity; best: by the informed policy.\n\n\
         | service | deadline | slots are | cells | goodput / best, mean | least | below {} |\n\
         |---|---|---|---|---|---|---|\n",
        found.len(),
        units::percent(BAR)
    );
    for (service, ratio) in services().into_iter().flat_map(|it| RATIOS.map(|ratio| (it, ratio))) {
        for known in Known::ALL {
            let is_it = |it: &&CellResult| {
                let cell = it.cell;
                (cell.service, cell.ratio, cell.known) == (service, ratio, known)
            };
            let shares: Vec<f64> =
                found.iter().filter(is_it).map(|it| it.ratio().min(1.0)).collect();
            if !shares.is_empty() {
                // Writing to a string does not fail.
                let _ = writeln!(out, "{}", summary(service.0, ratio, known, &shares));
            }
        }
    }
    out += "\n| service | deadline | endpoints x slots | offered | slots are | goodput | best | of that | \
            late | refused at once | refused later |\n|---|---|---|---|---|---|---|---|---|---|---|\n";
    for it in found {
        let _ = writeln!(out, "{}", row(it));
    }
    out
}

fn summary(service: &str, ratio: f64, known: Known, shares: &[f64]) -> String {
    let percent = units::percent;
    let mean = shares.iter().sum::<f64>() / float(shares.len() as u64);
    let least = shares.iter().copied().fold(1.0, f64::min);
    let below = shares.iter().filter(|share| **share < BAR).count();
    let (known, cells) = (known.name(), shares.len());
    let (mean, least) = (percent(mean), percent(least));
    format!("| {service} | {ratio} x | {known} | {cells} | {mean} | {least} | {below} |")
}

fn row(it: &CellResult) -> String {
    let (cell, percent) = (&it.cell, units::percent);
    format!(
        "| {} | {} x | {} x {} | {} | {} | {} | {} | {} | {} | {} | {} |",
        cell.service.0,
        cell.ratio,
        cell.endpoints,
        cell.slots,
        cell.offered,
        cell.known.name(),
        percent(it.goodput),
        percent(it.informed),
        percent(it.ratio()),
        percent(it.late),
        percent(it.refused),
        percent(it.waited),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that fails may say so bluntly")]
    use super::*;
    use std::path::Path;

    #[test]
    fn what_can_be_had_is_had_where_services_are_constant_and_slots_known() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/sim");
        let template = Scenario::read(&directory.join("tight12.toml")).unwrap();
        let few = |cell: &Cell| cell.endpoints * cell.slots <= 4 && cell.offered == 1.5;
        let constant = |cell: &Cell| cell.service.0 == "constant" && cell.known != Known::Learnt;
        let cells: Vec<Cell> =
            cells().into_iter().filter(|cell| few(cell) && constant(cell)).collect();
        let found = all(&template, &cells).unwrap();
        assert_eq!(found, all(&template, &cells).unwrap(), "the same again");
        for it in found {
            assert!(it.ratio() >= BAR, "{it:?}");
            assert!(it.informed > 0.5 && it.informed <= 1.01, "{it:?}");
        }
    }
}
