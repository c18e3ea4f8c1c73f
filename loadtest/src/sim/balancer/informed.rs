//! A bound on goodput under deadlines: a policy that knows everything but the future.
//!
//! An oracle that knows the duration of each service begins the short ones only, which no proxy can do. This
//! policy knows what a proxy could know at best: the distribution of services, and at every moment which
//! slots are busy, including those with abandoned work. It never refuses, keeps one queue before all
//! endpoints, and begins no request whose chance has fallen too far.

use super::{Balancer, Decision, Done, RequestView, bind};
use crate::sim::fleet::Fleet;
use crate::sim::keys::RequestKey;
use crate::sim::plan::SimPlan;
use crate::units::{float, nanos};
use std::collections::VecDeque;

/// Services that are drawn to know their distribution.
const DRAWS: usize = 20_000;
const SEED: u64 = 7;

/// See above.
pub(super) struct Informed {
    /// Service times at speed 1 in nanoseconds, in order.
    services: Vec<u64>,
    one_way: u64,
    /// Of a fresh request's chance: without which none is begun, and with which deadlines decide.
    floor: f64,
    in_time: f64,
    waiting: Vec<Waiting>,
    /// By endpoint: when each request gets there that is on its way.
    coming: Vec<VecDeque<u64>>,
    ready: Vec<bool>,
    woken: u64,
}

#[derive(Clone, Copy)]
struct Waiting {
    request: RequestKey,
    deadline: u64,
    /// Its chance when it came.
    fresh: f64,
}

impl Informed {
    /// Of the kinds of requests of `plan`, the first stands for all.
    pub(super) fn new(plan: &SimPlan, members: &[bool], [floor, in_time]: [f64; 2]) -> Self {
        let mut rng = fastrand::Rng::with_seed(SEED);
        let demand = plan.run.requests.first().and_then(|request| request.demand);
        let demand = demand.or_else(|| plan.groups.first().map(|group| group.service));
        let mut services: Vec<u64> =
            (0..DRAWS).filter_map(|_| demand.map(|demand| nanos(demand.draw(&mut rng)))).collect();
        services.sort_unstable();
        let n = plan.endpoints();
        Self {
            services,
            one_way: plan.one_way,
            floor: floor / 100.0,
            in_time: in_time / 100.0,
            waiting: Vec::new(),
            coming: vec![VecDeque::new(); n],
            ready: members.to_vec(),
            woken: 0,
        }
    }

    /// The chance to be answered by `deadline` if sent now.
    fn chance(&self, deadline: u64, now: u64) -> f64 {
        let Some(left) = deadline.checked_sub(now + 2 * self.one_way) else { return 0.0 };
        let within = self.services.partition_point(|service| *service < left);
        float(within as u64) / float(self.services.len().max(1) as u64)
    }

    /// The fastest endpoint with a free slot.
    fn free(&mut self, fleet: &Fleet, now: u64) -> Option<usize> {
        for coming in &mut self.coming {
            while coming.front().is_some_and(|at| *at < now) {
                coming.pop_front();
            }
        }
        let all = fleet.endpoints.iter().zip(&self.coming).enumerate();
        let free = all.filter(|(at, (endpoint, coming))| {
            self.ready[*at] && endpoint.in_flight() + coming.len() < endpoint.slots()
        });
        free.min_by(|(_, (a, _)), (_, (b, _))| a.slowness().total_cmp(&b.slowness()))
            .map(|(at, _)| at)
    }

    /// The next request.
    fn next(&self, now: u64) -> Option<usize> {
        let chances = self.waiting.iter().map(|it| (it, self.chance(it.deadline, now)));
        let in_time = chances
            .clone()
            .position(|(it, chance)| chance > 0.0 && chance >= self.in_time * it.fresh);
        in_time.or_else(|| {
            let worth = chances
                .enumerate()
                .filter(|(_, (it, chance))| *chance > 0.0 && *chance >= self.floor * it.fresh);
            // Of equals the first, whose deadline is the earliest.
            let best = worth.reduce(|best, it| if it.1.1 > best.1.1 { it } else { best });
            best.map(|(at, _)| at)
        })
    }

    fn fill(&mut self, fleet: &Fleet, now: u64, out: &mut Vec<Decision>) {
        while !self.waiting.is_empty() {
            let Some(endpoint) = self.free(fleet, now) else { break };
            let Some(at) = self.next(now) else { return };
            let taken = self.waiting.remove(at);
            self.coming[endpoint].push_back(now + self.one_way);
            bind(taken.request, Some(endpoint), out);
        }
        // No report tells when a slot frees whose client had left.
        let frees = fleet.endpoints.iter().filter_map(|it| it.next_end(now)).min();
        // A request that arrives at this very moment is counted twice at worst, so that is checked again.
        let unsure = self.coming.iter().any(|coming| coming.front() == Some(&now));
        let frees = if unsure { Some(now + 1) } else { frees };
        if let (Some(last), Some(at)) = (self.waiting.last(), frees)
            && (at < self.woken || self.woken <= now)
        {
            self.woken = at;
            out.push(Decision::Wake { request: last.request, at });
        }
    }
}

impl Balancer for Informed {
    fn arrive(&mut self, ask: &RequestView<'_>, fleet: &Fleet, out: &mut Vec<Decision>) {
        let fresh = self.chance(ask.deadline, ask.now);
        let waiting = Waiting { request: ask.request, deadline: ask.deadline, fresh };
        let at = self.waiting.partition_point(|it| it.deadline <= ask.deadline);
        self.waiting.insert(at, waiting);
        self.fill(fleet, ask.now, out);
    }

    fn finished(&mut self, done: &Done, fleet: &Fleet, out: &mut Vec<Decision>) {
        self.fill(fleet, done.now, out);
    }

    fn wake(&mut self, ask: &RequestView<'_>, fleet: &Fleet, out: &mut Vec<Decision>) {
        self.fill(fleet, ask.now, out);
    }

    fn abandoned(&mut self, request: RequestKey, _: &mut Vec<Decision>) {
        self.waiting.retain(|waiting| waiting.request != request);
    }

    fn health_changed(&mut self, endpoint: usize, ready: bool, _: &Fleet, _: &mut Vec<Decision>) {
        self.ready[endpoint] = ready;
    }
}
