//! The simulated part of a scenario: the fleet and the proxies before it.

use super::load::SECOND;
use crate::distribution::Distribution;
use forebay_config::form::{any, list, optional, positive, required, within};
use forebay_config::pool::{Ejection, Hedge, ProbeSchedule, Queue, Retry};
use std::time::Duration;

/// Maximum number of endpoints in a group.
const MAX_COUNT: u32 = 10_000;
/// Maximum number of requests that an endpoint serves at once.
const MAX_SLOTS: u32 = 100_000;

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

forebay_config::section! {
    /// A group of simulated endpoints that are alike.
    pub struct Group {
        /// Number of endpoints.
        count: u32 = 1, within(1..=MAX_COUNT);
        /// Requests that one serves at once.
        slots: u32 = 1, within(1..=MAX_SLOTS);
        /// Factor by which every service takes longer.
        slow: f64 = 1.0, within(1e-3..=1e3);
        /// Requests that may wait in its queue; more are refused.
        queue: u32 = 10_000, any();
        /// The pool that they belong to. Default: that of the route; others are those of fallbacks.
        pool: Option<String> = None, optional(any()), shown "\"small\"";
        /// Service time of requests that do not ask for one.
        service: Distribution = Distribution::Constant(0.0), any();
    }
    beside {
        /// Requests are served together, a batch on each slot; one by one if absent.
        batch: Option<Batch> = None;
    }
}

forebay_config::section! {
    /// Batching: a batch of n takes `base` and n times `each` and the sum of its requests' demands. Default:
    /// requests are served one by one.
    pub struct Batch {
        /// Maximum number of requests in a batch.
        max_size: u32 = 1, within(1..=MAX_SLOTS);
        /// Time that any batch takes, whatever its size.
        base: Duration = Duration::ZERO, any();
        /// Time that each request in it adds.
        each: Duration = Duration::ZERO, any();
        /// Time for which a batch that is not full is kept open.
        wait: Duration = Duration::ZERO, any();
    }
}

impl Copy for Batch {}

impl Group {
    /// Requests a second that the group can serve if they ask for `demand` seconds on average.
    pub fn capacity(&self, demand: f64) -> f64 {
        let servers = f64::from(self.count) * f64::from(self.slots);
        let (requests, takes) = match self.batch {
            None => (1.0, demand),
            Some(batch) => {
                let size = f64::from(batch.max_size);
                let each = batch.each.as_secs_f64() + demand;
                (size, batch.base.as_secs_f64() + size * each)
            }
        };
        servers * requests / (takes * self.slow)
    }
}

forebay_config::section! {
    /// A fault of simulated endpoints.
    pub struct EndpointFault {
        /// Begin, counted from the end of the warm-up.
        at: Duration = SECOND, required(any()), shown "\"10s\"";
        /// Duration. Default: to the end of the run.
        length as "for": Option<Duration> = None, optional(any()), shown "\"5s\"";
        /// The endpoints: numbers from 0, in the order of the groups.
        endpoints: Vec<u32> = Vec::new(), required(list()), shown "[0]";
    }
    beside {
        /// The kind of fault.
        kind: EndpointFaultKind = EndpointFaultKind::Down;
    }
}

forebay_config::kinds! {
    /// A kind of fault of an endpoint.
    pub enum EndpointFaultKind {
        "slow" => Slow(SlowServices),
        /// It is killed: what it has is lost, and it accepts no connection. At the end it starts again.
        "down" => Down,
        "sinkhole" => Sinkhole(Sinkhole),
        /// It stands still, and answers nothing, probes neither; what comes waits there. At the end it goes on.
        "silent" => Silent,
    }
}

impl Copy for EndpointFaultKind {}

forebay_config::section! {
    /// Services take longer: a neighbour takes the processor.
    pub struct SlowServices {
        /// Factor by which services take longer.
        factor: f64 = 1.0, within(1e-3..=1e3);
    }
}

impl Copy for SlowServices {}

forebay_config::section! {
    /// It answers everything with an internal error, without doing the work.
    pub struct Sinkhole {
        /// Time until the error.
        after: Duration = SECOND, required(any()), shown "\"1ms\"";
    }
}

impl Copy for Sinkhole {}

forebay_config::section! {
    /// The simulated proxies, and what they are told.
    pub struct Sim {
        /// Policy of a single run. Default: adaptive.
        policy: Option<String> = None, optional(any()), shown "\"adaptive\"";
        /// The rows of a table. None: all policies.
        policies: Vec<String> = Vec::new(), list();
        /// Number of proxies; each request comes to one of them at random.
        proxies: u32 = 1, within(1..=64);
        /// Time from a proxy to an endpoint and back.
        round_trip: Duration = Duration::ZERO, any();
        /// Slots that are assumed until a report says otherwise. 0: an endpoint takes every request.
        slots: u32 = 0, within(0..=MAX_SLOTS);
        /// Time in which an endpoint that comes into rotation grows to its full share.
        slow_start: Duration = Duration::ZERO, any();
    }
    beside {
        /// Requests that wait in a proxy; the keys and defaults of the proxy's `[pool.NAME.queue]`.
        queue: Queue = Queue::default();
        /// Load reports.
        reports: Reports = Reports::default();
        /// Second attempts after failures; the keys and defaults of the proxy's `[pool.NAME.retry]`.
        retry: Retry = Retry::default();
        /// Variants that stand in where the route's own can't answer, in this order; peers of the proxy have none.
        fallbacks: Vec<Fallback> = Vec::new();
        /// Second attempts beside slow first ones, if there are any; the keys and defaults of the proxy's
        /// `[pool.NAME.hedge]`.
        hedge: Option<Hedge> = None;
        /// Conditions of ejections; the keys and defaults of the proxy's `[pool.NAME.ejection]`. Peers of
        /// the proxy eject none.
        ejection: Ejection = Ejection::default();
        /// Active checks; the keys and defaults of the proxy's `[pool.NAME.probe]`, as far as simulated endpoints
        /// have them.
        probe: ProbeSchedule = ProbeSchedule::default();
    }
}

forebay_config::section! {
    /// A variant that stands in where the route's own can't answer: another model, at the same endpoints or at
    /// others. They are tried in the order of the file.
    pub struct Fallback {
        /// The pool of its endpoints. Default: those of the route, which are asked for another model.
        pool: Option<String> = None, optional(any()), shown "\"small\"";
        /// Its services take so many times as long as those of the model that was asked for.
        cost: f64 = 1.0, within(1e-3..=1e3);
    }
}

forebay_config::section! {
    /// The proxies' way to learn of the endpoints' load.
    pub struct Reports {
        /// Whether every answer carries a report.
        in_band: bool = true, any();
        /// Interval of polls. Default: none.
        every: Option<Duration> = None, optional(positive()), shown "\"1s\"";
        /// Age of a report when it arrives, in addition to the time on the wire.
        delay: Duration = Duration::ZERO, any();
        /// Age after which a report is ignored.
        ttl: Duration = Duration::from_secs(2), any();
    }
}
