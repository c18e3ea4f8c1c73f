//! The ways of choosing, each a small type.

use super::candidates::{Candidate, Context, Sample, allowed_from, choose};
use crate::decision::least;
use crate::{Load, Rng};
use std::time::Duration;

/// Requests in flight that an endpoint may have before others are asked in its place, as a multiple of
/// the mean: the bound of Mirrokni, Thorup and Zadimoghaddam, "Consistent hashing with bounded loads".
const MAX_LOAD_FACTOR: f64 = 1.25;
/// Endpoints from whose counts that mean is taken.
const MAX_POLLED: usize = 8;

/// The candidates of a policy.
pub(super) struct Field<'a, C, X> {
    pub(super) endpoints: &'a [C],
    pub(super) excluded: &'a X,
    pub(super) context: &'a Context<'a>,
}

/// A way of choosing.
pub(super) trait Choose {
    /// Index of the endpoint that gets the next request; `None` if there is none.
    fn choose<C: Candidate, X: Fn(&C) -> bool>(
        &self,
        field: &Field<'_, C, X>,
        rng: &mut Rng,
    ) -> Option<usize>;
}

impl<C: Candidate, X: Fn(&C) -> bool> Field<'_, C, X> {
    fn load(&self, index: usize) -> &Load {
        self.endpoints[index].load()
    }

    /// The one that costs least of so many random ones.
    fn best_of<const N: usize>(&self, cost: impl Fn(&Load) -> f64, rng: &mut Rng) -> Option<usize> {
        let mut buffer = [0; N];
        let mut found = choose(&mut buffer, 0, self.endpoints, self.excluded, rng).len();
        let n = self.endpoints.len();
        if found == 1 && found < N.min(n) {
            // The same one was drawn twice: two different ones are much better than that.
            let other = (buffer[0] + 1 + rng.below(n - 1)) % n;
            if !(self.excluded)(&self.endpoints[other]) {
                buffer[1] = other;
                found = 2;
            }
        }
        let indices = &buffer[..found];
        least(indices.iter().map(|index| cost(self.load(*index))), rng).map(|at| indices[at])
    }
}

/// The endpoint where a request is expected to finish first.
pub(super) struct LeastCost {
    /// With what it costs others to wait behind it.
    pub adaptive: bool,
}

impl Choose for LeastCost {
    fn choose<C: Candidate, X: Fn(&C) -> bool>(
        &self,
        field: &Field<'_, C, X>,
        rng: &mut Rng,
    ) -> Option<usize> {
        let Field { endpoints, excluded, context } = *field;
        let sample = Sample::at(endpoints, excluded, None, context, rng);
        let best = sample.new_endpoint_service(endpoints, context);
        let (now, ttl) = (context.now, context.report_ttl);
        let costs = sample.costs(endpoints, |load| match self.adaptive {
            true => load.cost(now, ttl, best),
            false => load.completion(now, ttl, best),
        });
        let costs = &costs[..sample.indices().len()];
        let at = sample
            .explore(endpoints, context, rng)
            .or_else(|| least(costs.iter().copied(), rng))?;
        Some(sample.take(at, costs, endpoints, context))
    }
}

/// The fewest requests of ours in flight.
pub(super) struct LeastInFlight {
    /// Of two random ones, or of all that are looked at.
    pub of_two: bool,
}

impl Choose for LeastInFlight {
    fn choose<C: Candidate, X: Fn(&C) -> bool>(
        &self,
        field: &Field<'_, C, X>,
        rng: &mut Rng,
    ) -> Option<usize> {
        let count = |load: &Load| f64::from(load.in_flight());
        match self.of_two {
            true => field.best_of::<2>(count, rng),
            false => field.best_of::<MAX_POLLED>(count, rng),
        }
    }
}

/// Two choices by the peak of the latency and the requests in flight, as Finagle has it.
pub(super) struct PeakEwma;

impl Choose for PeakEwma {
    fn choose<C: Candidate, X: Fn(&C) -> bool>(
        &self,
        field: &Field<'_, C, X>,
        rng: &mut Rng,
    ) -> Option<usize> {
        let now = field.context.now;
        field.best_of::<2>(
            |load| match (load.peak_seconds(now), load.in_flight()) {
                // Nothing is known of it: one request may find out.
                (None, 0) => 0.0,
                (None, others) => f64::MAX / 2.0 + f64::from(others),
                (Some(peak), others) => peak * (1.0 + f64::from(others)) + load.penalty(now),
            },
            rng,
        )
    }
}

/// By chance, weighted by what endpoints report of their queues.
pub(super) struct Weighted;

impl Choose for Weighted {
    fn choose<C: Candidate, X: Fn(&C) -> bool>(
        &self,
        field: &Field<'_, C, X>,
        rng: &mut Rng,
    ) -> Option<usize> {
        let mut buffer = [0; MAX_POLLED];
        let indices = choose(&mut buffer, 0, field.endpoints, field.excluded, rng);
        let weight = |index: &usize| {
            let load = field.load(*index);
            let is_fresh = |at| field.context.now.since(at) <= field.context.report_ttl;
            let fresh = load.reported_at().is_some_and(is_fresh);
            // An endpoint without reports has at least the requests of this proxy beyond its slots.
            let ours = load.in_flight().saturating_sub(load.slots());
            let queue = load.reported_queue().filter(|_| fresh).unwrap_or(ours);
            f64::from(load.slots()) / (1.0 + f64::from(queue))
        };
        let total: f64 = indices.iter().map(weight).sum();
        let mut left = rng.share() * total;
        let drawn = indices.iter().find(|index| {
            left -= weight(index);
            left < 0.0
        });
        // The last one if rounding left a little over.
        drawn.or(indices.last()).copied()
    }
}

/// One after the other.
pub(super) struct RoundRobin;

impl Choose for RoundRobin {
    fn choose<C: Candidate, X: Fn(&C) -> bool>(
        &self,
        field: &Field<'_, C, X>,
        _: &mut Rng,
    ) -> Option<usize> {
        allowed_from(field.context.memory.next_turn(), field.endpoints, field.excluded)
    }
}

/// Any.
pub(super) struct Random;

impl Choose for Random {
    fn choose<C: Candidate, X: Fn(&C) -> bool>(
        &self,
        field: &Field<'_, C, X>,
        rng: &mut Rng,
    ) -> Option<usize> {
        allowed_from(rng.below(field.endpoints.len()), field.endpoints, field.excluded)
    }
}

/// The same endpoint for the same key, with bounded loads. A request without a key goes where it is expected
/// to finish first.
pub(super) struct Sticky;

impl Choose for Sticky {
    fn choose<C: Candidate, X: Fn(&C) -> bool>(
        &self,
        field: &Field<'_, C, X>,
        rng: &mut Rng,
    ) -> Option<usize> {
        let context = field.context;
        let (Some(key), Some(ring)) = (context.key, context.ring) else {
            return LeastCost { adaptive: true }.choose(field, rng);
        };
        let mut buffer = [0; MAX_POLLED];
        let polled = choose(&mut buffer, 0, field.endpoints, field.excluded, rng);
        let total: u32 = polled.iter().map(|index| field.load(*index).in_flight()).sum();
        let mean = f64::from(total + 1) / (polled.len().max(1) as f64);
        let max = (mean * MAX_LOAD_FACTOR).ceil();
        let allowed = |index: usize| {
            let endpoint = field.endpoints.get(index).filter(|it| !(field.excluded)(it))?;
            Some(endpoint.load())
        };
        // One that fails keeps no keys while it does.
        let fits = |load: &Load| {
            let room = max.max(f64::from(load.slots()));
            f64::from(load.in_flight()) < room
                && load.penalty(context.now) < MAX_STICKY_PENALTY.as_secs_f64()
        };
        let mut first = None;
        for index in ring.from(key) {
            match allowed(index) {
                Some(load) if fits(load) => return Some(index),
                Some(_) => first = first.or(Some(index)),
                None => {}
            }
        }
        first.or_else(|| {
            allowed_from(rng.below(field.endpoints.len()), field.endpoints, field.excluded)
        })
    }
}

/// A penalty for failures above this sends keys elsewhere.
const MAX_STICKY_PENALTY: Duration = Duration::from_millis(20);
