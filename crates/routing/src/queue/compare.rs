//! Which endpoint is expected to finish a request first?
//!
//! The choice itself is in [`decision`](crate::decision), as it has to be made again from records. Here are the
//! loads that it compares: read as far as they matter, or, where the decision is recorded, all at once.

use super::bind::Exploration;
use crate::decision::{Comparison, Decision, Field, Known, Terms, Wish, decide};
use crate::pick::candidates::{Sample, explorable};
use crate::{Binding, Candidate, Load, Policy, PoolView, Rng};

impl<C: Candidate> PoolView<'_, C> {
    /// The free one that is expected to be done first, against the best that is not free.
    pub(crate) fn compare(
        &self,
        excluded: &impl Fn(&C) -> bool,
        ahead: usize,
        exploration: Exploration,
        rng: &mut Rng,
    ) -> Binding {
        let sampled = Sample::at(self.endpoints, excluded, self.freed, &self.context, rng);
        if sampled.indices().is_empty() {
            return Binding::NoEndpoint;
        }
        let best = sampled.new_endpoint_service(self.endpoints, &self.context);
        let may_wait = self.policy == Policy::Adaptive;
        // The sample is a part of the pool, and so is the queue for that part.
        let part = sampled.indices().len() as f64 / self.endpoints.len().max(1) as f64;
        let may_explore = exploration == Exploration::Allowed;
        let terms = Terms { may_wait, may_explore, before: ahead as f64 * part };
        let loads = Loads { view: self, sample: sampled.indices(), best };
        if let Some(trace) = self.context.trace {
            let (comparison, costs) = loads.record(terms, ahead, rng);
            let chosen = comparison.chosen;
            trace.add(Decision::Bind(comparison));
            return self.taken(chosen, &sampled, &costs);
        }
        let costs = sampled.costs(self.endpoints, |load| match self.is_free(load) {
            true => loads.cost(load, may_wait),
            false => f64::INFINITY,
        });
        let costs = &costs[..sampled.indices().len()];
        self.taken(decide(&loads, costs, terms, rng).0, &sampled, costs)
    }

    fn taken(&self, chosen: Option<usize>, sampled: &Sample, costs: &[f64]) -> Binding {
        match chosen {
            Some(at) => Binding::Bind(sampled.take(at, costs, self.endpoints, &self.context)),
            None => Binding::Wait,
        }
    }
}

/// The endpoints with these indices.
struct Loads<'v, 'p, C> {
    view: &'v PoolView<'p, C>,
    sample: &'v [usize],
    /// The expected service of an endpoint that has not answered yet, in seconds.
    best: f64,
}

impl<C: Candidate> Loads<'_, '_, C> {
    #[inline]
    fn load(&self, at: usize) -> &Load {
        self.view.endpoints[self.sample[at]].load()
    }

    /// The number that is compared, of one that is free.
    #[inline]
    fn cost(&self, load: &Load, adaptive: bool) -> f64 {
        let (now, ttl) = (self.view.context.now, self.view.context.report_ttl);
        match adaptive {
            true => load.cost(now, ttl, self.best),
            false => load.completion(now, ttl, self.best),
        }
    }

    /// Compares what is known of all at this moment; the costs besides.
    fn record(&self, terms: Terms, before: usize, rng: &mut Rng) -> (Comparison, Vec<f64>) {
        let candidates: Vec<Known> = (0..self.sample.len()).map(|at| self.known(at)).collect();
        let costs: Vec<f64> = candidates.iter().map(Known::compared).collect();
        let chance = format!("{:x}", rng.state());
        let (chosen, why) = decide(&candidates[..], &costs, terms, rng);
        let Terms { may_wait, may_explore, .. } = terms;
        let endpoints = self.view.endpoints.len();
        let comparison = Comparison {
            endpoints,
            before,
            may_wait,
            may_explore,
            chance,
            candidates,
            chosen,
            why,
        };
        (comparison, costs)
    }

    fn known(&self, at: usize) -> Known {
        let (view, load) = (self.view, self.load(at));
        let (now, ttl) = (view.context.now, view.context.report_ttl);
        let (service, penalty) = self.service(at);
        let age = load.reported_at().map(|at| now.since(at).as_secs_f64());
        Known {
            endpoint: view.endpoints[self.sample[at]].name().to_owned(),
            in_flight: load.in_flight(),
            there: load.occupancy(now, ttl),
            slots: load.slots(),
            limit: view.limit(load),
            report_age: age,
            has_room: view.has_room(load),
            suits: view.suits(load),
            cost: self.cost(load, view.policy == Policy::Adaptive),
            done: self.done(at),
            service,
            penalty,
            frees: self.frees(at, service),
            may_explore: load.may_explore(now.nanos()),
            is_due: load.is_due_for_exploration(now.nanos()),
            is_unsure: load.is_unsure(now.nanos()),
            silence: Some(load.silence(now.nanos())).filter(|silence| *silence < u64::MAX),
            finds_out: load.is_worth_finding_out(now),
        }
    }
}

impl<C: Candidate> Field for Loads<'_, '_, C> {
    fn len(&self) -> usize {
        self.sample.len()
    }

    #[inline]
    fn is_free(&self, at: usize) -> bool {
        self.view.is_free(self.load(at))
    }

    #[inline]
    fn done(&self, at: usize) -> f64 {
        let (load, now) = (self.load(at), self.view.context.now);
        // The load of other proxies may be out of date: where none of ours is in flight, it holds no request back.
        match load.in_flight() {
            0 => load.expected_service(now, self.best) + load.penalty(now),
            _ => load.completion(now, self.view.context.report_ttl, self.best),
        }
    }

    #[inline]
    fn service(&self, at: usize) -> (f64, f64) {
        let (load, now) = (self.load(at), self.view.context.now);
        (load.expected_service(now, self.best), load.penalty(now))
    }

    #[inline]
    fn slots(&self, at: usize) -> u32 {
        self.load(at).slots()
    }

    #[inline]
    fn beyond(&self, at: usize) -> u32 {
        let (load, context) = (self.load(at), &self.view.context);
        load.occupancy(context.now, context.report_ttl).saturating_sub(load.slots())
    }

    #[inline]
    fn frees(&self, at: usize, service: f64) -> f64 {
        self.view.frees_in(self.load(at), service).0
    }

    fn explorable(&self, at: usize, wish: Wish) -> Option<u64> {
        let load = self.load(at);
        if !self.view.has_room(load) {
            return None;
        }
        explorable(load, wish, self.view.context.now)
    }

    fn finds_out(&self, at: usize) -> bool {
        self.load(at).is_worth_finding_out(self.view.context.now)
    }
}
