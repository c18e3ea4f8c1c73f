//! What a scenario says of the fleet and of the proxies before it, for the simulator.

use super::file::required;
use crate::distribution::Distribution;
use crate::units::Span;
use forebay_config::Table;
use std::time::Duration;

/// Most endpoints of a group.
const MAX_COUNT: u32 = 10_000;

/// A group of endpoints that are alike.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// How many.
    pub count: u32,
    /// Requests that one serves at once.
    pub slots: u32,
    /// Every service takes so many times as long.
    pub slow: f64,
    /// Requests that may wait in line; more are refused.
    pub queue: u32,
    /// Service time of requests that do not ask for one.
    pub service: Distribution,
}

/// The proxies and what they are told.
#[derive(Debug, Clone, PartialEq)]
pub struct Sim {
    /// How a pool chooses, where a single run is asked for.
    pub policy: Option<String>,
    /// The rows of a table; all if empty.
    pub policies: Vec<String>,
    /// Proxies; each request comes to one of them by chance.
    pub proxies: u32,
    /// From a proxy to an endpoint and back.
    pub round_trip: Span,
    /// Slots that are assumed until a report says otherwise.
    pub slots: u32,
    /// Load reports.
    pub reports: Reports,
}

/// How proxies learn of the endpoints' load.
#[derive(Debug, Clone, PartialEq)]
pub struct Reports {
    /// With every answer.
    pub in_band: bool,
    /// By asking, so often.
    pub every: Option<Span>,
    /// How old a report is when it is taken in, beside the time on the wire.
    pub delay: Span,
    /// After it a report is not believed.
    pub ttl: Span,
}

impl Default for Sim {
    fn default() -> Self {
        Self {
            policy: None,
            policies: Vec::new(),
            proxies: 1,
            round_trip: Span::default(),
            slots: 1,
            reports: Reports::default(),
        }
    }
}

impl Default for Reports {
    fn default() -> Self {
        Self { in_band: true, every: None, delay: Span::default(), ttl: SECOND }
    }
}

pub(super) fn groups(top: &Table<'_, '_>) -> Vec<Group> {
    let Some(fleet) = top.table("fleet") else { return Vec::new() };
    let groups = fleet.tables("endpoint");
    if groups.is_empty() {
        fleet.note(
            fleet.span(),
            "endpoint",
            "expected at least one [[fleet.endpoint]], found none",
        );
    }
    groups.iter().map(group).collect()
}

fn group(table: &Table<'_, '_>) -> Group {
    Group {
        count: table.within("count", 1..=MAX_COUNT, 1),
        slots: table.within("slots", 1..=100_000, 1),
        slow: table.within("slow", 1e-3..=1e3, 1.0),
        queue: table.or("queue", 10_000),
        service: table.or("service", Distribution::Constant(0.0)),
    }
}

pub(super) fn sim(top: &Table<'_, '_>) -> Sim {
    let table = top.table_or_empty("sim");
    let reports = table.table_or_empty("reports");
    let (sim, told) = (Sim::default(), Reports::default());
    Sim {
        policy: table.get("policy"),
        policies: table.get("policies").unwrap_or_default(),
        proxies: table.within("proxies", 1..=64, sim.proxies),
        round_trip: table.or("round_trip", sim.round_trip),
        slots: table.within("slots", 1..=100_000, sim.slots),
        reports: Reports {
            in_band: reports.or("in_band", told.in_band),
            every: reports.has("every").then(|| required(&reports, "every", SECOND)),
            delay: reports.or("delay", told.delay),
            ttl: reports.or("ttl", told.ttl),
        },
    }
}

const SECOND: Span = Span(Duration::from_secs(1));
