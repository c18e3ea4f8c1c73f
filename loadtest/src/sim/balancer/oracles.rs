//! Oracles: bounds on what any policy could do, from knowledge that no proxy can have.

use super::{Balancer, Decision, Done, RequestView, bind, least, usable};
use crate::sim::fleet::{Endpoint, Fleet};
use crate::sim::keys::RequestKey;
use crate::units::float;
use std::collections::VecDeque;

/// One queue before all endpoints, first come, first served; the fastest free slot gets the next
/// request. It keeps every slot busy while requests wait, the slow ones too.
pub(super) struct Central {
    waiting: VecDeque<RequestKey>,
    busy: Vec<usize>,
    ready: Vec<bool>,
}

impl Central {
    pub(super) fn new(members: &[bool]) -> Self {
        Self { waiting: VecDeque::new(), busy: vec![0; members.len()], ready: members.to_vec() }
    }

    fn fastest_free(&self, fleet: &Fleet) -> Option<usize> {
        let all = fleet.endpoints.iter().enumerate();
        let free =
            all.filter(|(at, endpoint)| self.ready[*at] && self.busy[*at] < endpoint.slots());
        free.min_by(|(_, a), (_, b)| a.slowness().total_cmp(&b.slowness())).map(|(at, _)| at)
    }

    fn fill(&mut self, endpoint: usize, fleet: &Fleet, out: &mut Vec<Decision>) {
        let slots = fleet.endpoints[endpoint].slots();
        while self.ready[endpoint] && self.busy[endpoint] < slots {
            let Some(request) = self.waiting.pop_front() else { return };
            self.busy[endpoint] += 1;
            bind(request, Some(endpoint), out);
        }
    }
}

impl Balancer for Central {
    fn arrive(&mut self, ask: &RequestView<'_>, fleet: &Fleet, out: &mut Vec<Decision>) {
        match self.fastest_free(fleet) {
            None => self.waiting.push_back(ask.request),
            Some(endpoint) => {
                self.busy[endpoint] += 1;
                bind(ask.request, Some(endpoint), out);
            }
        }
    }

    fn finished(&mut self, done: &Done, fleet: &Fleet, out: &mut Vec<Decision>) {
        self.busy[done.endpoint] -= 1;
        self.fill(done.endpoint, fleet, out);
    }

    fn abandoned(&mut self, request: RequestKey, _: &mut Vec<Decision>) {
        self.waiting.retain(|waiting| *waiting != request);
    }

    fn health_changed(
        &mut self,
        endpoint: usize,
        ready: bool,
        fleet: &Fleet,
        out: &mut Vec<Decision>,
    ) {
        self.ready[endpoint] = ready;
        self.fill(endpoint, fleet, out);
    }
}

/// Picks the endpoint where a request is expected to finish first. It knows every endpoint's slots and
/// true mean service time, and counts its own requests.
pub(super) struct Expected {
    in_flight: Vec<u32>,
    mean: f64,
    rng: fastrand::Rng,
}

impl Expected {
    /// `mean` demand in seconds.
    pub(super) fn new(endpoints: usize, mean: f64, seed: u64) -> Self {
        Self { in_flight: vec![0; endpoints], mean, rng: fastrand::Rng::with_seed(seed) }
    }
}

impl Balancer for Expected {
    fn arrive(&mut self, ask: &RequestView<'_>, fleet: &Fleet, out: &mut Vec<Decision>) {
        let expected = |(index, (endpoint, count)): (usize, (&Endpoint, &u32))| {
            let slots = float(endpoint.slots() as u64);
            let ahead = (f64::from(*count) + 1.0 - slots).max(0.0);
            (index, self.mean * endpoint.slowness() * (1.0 + ahead / slots))
        };
        let all = fleet.endpoints.iter().zip(&self.in_flight).enumerate();
        let all = all.filter(|(index, _)| usable(ask, *index)).map(expected);
        let chosen = least(all, &mut self.rng);
        if let Some(endpoint) = chosen {
            self.in_flight[endpoint] += 1;
        }
        bind(ask.request, chosen, out);
    }

    fn finished(&mut self, done: &Done, _: &Fleet, _: &mut Vec<Decision>) {
        self.in_flight[done.endpoint] -= 1;
    }
}

/// Picks the endpoint where the request *will* finish first. It knows the demand of every request and
/// how much is left of those that run, but not which requests come next.
pub(super) struct Oracle {
    one_way: u64,
    rng: fastrand::Rng,
}

impl Oracle {
    pub(super) fn new(one_way: u64, seed: u64) -> Self {
        Self { one_way, rng: fastrand::Rng::with_seed(seed) }
    }
}

impl Balancer for Oracle {
    fn arrive(&mut self, ask: &RequestView<'_>, fleet: &Fleet, out: &mut Vec<Decision>) {
        let at = ask.now + self.one_way;
        let all = fleet.endpoints.iter().enumerate().filter(|(index, _)| usable(ask, *index));
        let all = all.map(|(index, endpoint)| (index, endpoint.finish(at, ask.demand)));
        let chosen = least(all, &mut self.rng);
        bind(ask.request, chosen, out);
    }

    fn finished(&mut self, _: &Done, _: &Fleet, _: &mut Vec<Decision>) {}
}
