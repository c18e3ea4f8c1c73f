//! The virtual clock: what happens next, in exact nanoseconds.
//!
//! Events of the same moment happen in the order in which they were planned, so that a run depends
//! on nothing but its scenario and its seed.

use super::keys::{AttemptKey, ProbeKey, ReportKey, RequestKey};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Something that will happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Event {
    /// An attempt reaches its endpoint.
    Reach(AttemptKey),
    /// A service ends, unless it was ended or moved before.
    Served {
        /// The endpoint.
        endpoint: usize,
        /// The service.
        service: u32,
    },
    /// The batch that an endpoint keeps open is closed.
    Close(usize),
    /// A fault of endpoints begins or ends.
    Fault {
        /// Its number in the scenario.
        fault: usize,
        /// Whether it begins.
        begins: bool,
    },
    /// The answer to a health check reaches a proxy, unless there was another one since.
    Check {
        /// The proxy that asked.
        proxy: usize,
        /// The endpoint.
        endpoint: usize,
        /// The number of the check.
        number: u32,
    },
    /// The time of a health check is up, to which an endpoint that stands still gave no answer.
    CheckExpired {
        /// The proxy that asked.
        proxy: usize,
        /// The endpoint that was asked.
        endpoint: usize,
    },
    /// A balancer wants to look at a request again.
    Wake {
        /// The balancer that asked.
        balancer: usize,
        /// The request.
        request: RequestKey,
    },
    /// A second attempt beside a slow first one is due.
    Hedge(RequestKey),
    /// The time that one attempt may take is up.
    AttemptTimeout(AttemptKey),
    /// A proxy looks for outliers among its endpoints.
    Outliers(usize),
    /// An attempt's answer reaches its proxy.
    Answer(AttemptKey),
    /// A load report reaches a proxy.
    Report(ReportKey),
    /// A proxy asks all endpoints for their load.
    Poll(usize),
    /// A balancer's probe reaches the endpoint.
    ProbeAsks {
        /// The balancer that asked.
        balancer: usize,
        /// The endpoint.
        endpoint: usize,
    },
    /// The answer to a balancer's probe reaches it.
    ProbeAnswers(ProbeKey),
}

/// Events to come.
#[derive(Debug, Default)]
pub(super) struct Clock {
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    planned: u64,
}

impl Clock {
    /// Plans `event` for `at`, in nanoseconds from the start.
    pub(super) fn plan(&mut self, at: u64, event: Event) {
        self.events.push(Reverse((at, self.planned, event)));
        self.planned += 1;
    }

    /// Time of the next event.
    pub(super) fn next(&self) -> Option<u64> {
        self.events.peek().map(|Reverse((at, ..))| *at)
    }

    /// Takes the next event.
    pub(super) fn pop(&mut self) -> Option<Event> {
        self.events.pop().map(|Reverse((.., event))| event)
    }

    /// Events that were planned so far.
    pub(super) fn planned(&self) -> u64 {
        self.planned
    }
}
