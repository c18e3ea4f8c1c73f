//! The simulated part of a scenario: the fleet and the proxies before it.

use super::table::{kind_of, required};
use crate::distribution::Distribution;
use crate::units::TimeSpan;
use forebay_config::pool::{Ejection, Hedge, ProbeSchedule, Queue, Retry};
use forebay_config::{Section, Table};
use std::time::Duration;

/// Maximum number of endpoints in a group.
const MAX_COUNT: u32 = 10_000;

/// The fleet of a simulation.
#[derive(Debug, Clone, Default)]
pub struct Simulated {
    /// The endpoints.
    pub fleet: Vec<Group>,
    /// The faults of the endpoints.
    pub faults: Vec<EndpointFault>,
    /// The proxies.
    pub sim: Sim,
}

/// A group of endpoints that are alike.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// How many.
    pub count: u32,
    /// Requests that one serves at once.
    pub slots: u32,
    /// Every service takes so many times as long.
    pub slow: f64,
    /// Requests that may wait in its queue; more are refused.
    pub queue: u32,
    /// Service time of requests that do not ask for one.
    pub service: Distribution,
    /// Requests are served together, a batch on each slot; one by one if absent.
    pub batch: Option<Batch>,
}

/// How requests are served together: a batch of n takes `base` and n times `each` and the sum of
/// what its requests ask for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Batch {
    /// Requests in a batch, at most.
    pub max_size: u32,
    /// Time that any batch takes, of whatever size.
    pub base: TimeSpan,
    /// Time that each request in it adds.
    pub each: TimeSpan,
    /// How long a batch that is not full is kept open.
    pub wait: TimeSpan,
}

impl Group {
    /// Requests a second that the group can serve if they ask for `demand` seconds on average.
    pub fn capacity(&self, demand: f64) -> f64 {
        let servers = f64::from(self.count) * f64::from(self.slots);
        let (requests, takes) = match self.batch {
            None => (1.0, demand),
            Some(batch) => {
                let size = f64::from(batch.max_size);
                let each = batch.each.0.as_secs_f64() + demand;
                (size, batch.base.0.as_secs_f64() + size * each)
            }
        };
        servers * requests / (takes * self.slow)
    }
}

/// A fault of endpoints.
#[derive(Debug, Clone, PartialEq)]
pub struct EndpointFault {
    /// When it begins, counted from the end of the warm-up.
    pub at: TimeSpan,
    /// How long it lasts; to the end of the run if absent.
    pub length: Option<TimeSpan>,
    /// The endpoints: numbers from 0, in the order of the groups.
    pub endpoints: Vec<u32>,
    /// The kind of fault.
    pub kind: EndpointFaultKind,
}

/// A kind of fault of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum EndpointFaultKind {
    /// Services take so many times as long: a neighbour takes the processor.
    Slow(f64),
    /// It is killed: what it has is lost, and it accepts no connection. At the end it starts again.
    Down,
    /// It answers everything with an internal error, after so long, without doing the work.
    Sinkhole(TimeSpan),
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
    pub round_trip: TimeSpan,
    /// Slots that are assumed until a report says otherwise; 0: an endpoint takes what comes.
    pub slots: u32,
    /// Time in which an endpoint that comes into rotation comes to its full share.
    pub slow_start: TimeSpan,
    /// Requests that wait in a proxy; the keys and defaults of the proxy's `[pool.NAME.queue]`.
    pub queue: Queue,
    /// Load reports.
    pub reports: Reports,
    /// Second attempts after failures; the keys and defaults of the proxy's `[pool.NAME.retry]`.
    pub retry: Retry,
    /// Second attempts beside slow first ones, if there are any; the keys and defaults of the proxy's
    /// `[pool.NAME.hedge]`.
    pub hedge: Option<Hedge>,
    /// When an endpoint is taken out for its answers; the keys and defaults of the proxy's
    /// `[pool.NAME.ejection]`. Peers of the proxy take none out.
    pub ejection: Ejection,
    /// Active checks; the keys and defaults of the proxy's `[pool.NAME.probe]`, as far as simulated
    /// endpoints have them.
    pub probe: ProbeSchedule,
}

/// How proxies learn of the endpoints' load.
#[derive(Debug, Clone, PartialEq)]
pub struct Reports {
    /// With every answer.
    pub in_band: bool,
    /// By asking, so often.
    pub every: Option<TimeSpan>,
    /// How old a report is when it is taken in, beside the time on the wire.
    pub delay: TimeSpan,
    /// After it a report is not believed.
    pub ttl: TimeSpan,
}

impl Default for Sim {
    fn default() -> Self {
        Self {
            policy: None,
            policies: Vec::new(),
            proxies: 1,
            round_trip: TimeSpan::default(),
            slots: 0,
            slow_start: TimeSpan::default(),
            queue: Queue::default(),
            reports: Reports::default(),
            hedge: None,
            retry: Retry::default(),
            ejection: Ejection::default(),
            probe: ProbeSchedule::default(),
        }
    }
}

impl Default for Reports {
    fn default() -> Self {
        Self {
            in_band: true,
            every: None,
            delay: TimeSpan::default(),
            ttl: TimeSpan(Duration::from_secs(2)),
        }
    }
}

/// The fleet that a scenario describes, if it describes one.
pub(super) fn simulated(top: &Table<'_, '_>) -> Simulated {
    let sim = sim(top);
    let Some(table) = top.table("fleet") else { return Simulated { sim, ..Simulated::default() } };
    let groups = table.tables("endpoint");
    if groups.is_empty() {
        table.note(
            table.span(),
            "endpoint",
            "expected at least one [[fleet.endpoint]], found none",
        );
    }
    let fleet = groups.iter().map(group).collect();
    let faults = table.tables("fault").iter().map(fault).collect();
    Simulated { fleet, faults, sim }
}

fn fault(table: &Table<'_, '_>) -> EndpointFault {
    let kind = match kind_of(table, &["slow", "down", "sinkhole"]) {
        "slow" => EndpointFaultKind::Slow(table.within("factor", 1e-3..=1e3, 1.0)),
        "down" => EndpointFaultKind::Down,
        _ => EndpointFaultKind::Sinkhole(required(table, "after", SECOND)),
    };
    EndpointFault {
        at: required(table, "at", SECOND),
        length: table.get("for"),
        endpoints: required(table, "endpoints", Vec::new()),
        kind,
    }
}

fn group(table: &Table<'_, '_>) -> Group {
    Group {
        count: table.within("count", 1..=MAX_COUNT, 1),
        slots: table.within("slots", 1..=100_000, 1),
        slow: table.within("slow", 1e-3..=1e3, 1.0),
        queue: table.or("queue", 10_000),
        service: table.or("service", Distribution::Constant(0.0)),
        batch: table.table("batch").map(|table| Batch {
            max_size: table.within("max_size", 1..=100_000, 1),
            base: table.or("base", TimeSpan::default()),
            each: table.or("each", TimeSpan::default()),
            wait: table.or("wait", TimeSpan::default()),
        }),
    }
}

fn sim(top: &Table<'_, '_>) -> Sim {
    let table = top.table_or_empty("sim");
    let reports = table.table_or_empty("reports");
    let (sim, told) = (Sim::default(), Reports::default());
    Sim {
        policy: table.get("policy"),
        policies: table.get("policies").unwrap_or_default(),
        proxies: table.within("proxies", 1..=64, sim.proxies),
        round_trip: table.or("round_trip", sim.round_trip),
        slots: table.within("slots", 1..=100_000, sim.slots),
        slow_start: table.or("slow_start", sim.slow_start),
        queue: Queue::read(&table.table_or_empty("queue")),
        reports: Reports {
            in_band: reports.or("in_band", told.in_band),
            every: reports.has("every").then(|| required(&reports, "every", SECOND)),
            delay: reports.or("delay", told.delay),
            ttl: reports.or("ttl", told.ttl),
        },
        retry: Retry::read(&table.table_or_empty("retry")),
        hedge: table.table("hedge").map(|table| Hedge::read(&table)),
        ejection: Ejection::read(&table.table_or_empty("ejection")),
        probe: ProbeSchedule::checked(&table.table_or_empty("probe")),
    }
}

const SECOND: TimeSpan = TimeSpan(Duration::from_secs(1));
