//! The ways of choosing, each a small type.

use super::candidates::{Candidate, Context, Looked, allowed_from, choose, least};
use crate::{Load, Rng};
use std::time::Duration;

/// Requests in flight that an endpoint may have before others are asked in its place, as a multiple of
/// the mean: the bound of Mirrokni, Thorup and Zadimoghaddam, "Consistent hashing with bounded loads".
const MOST_ABOVE_MEAN: f64 = 1.25;
/// Endpoints from whose counts that mean is taken.
const POLLED: usize = 8;

/// What a policy chooses from.
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
    fn load(&self, place: usize) -> &Load {
        self.endpoints[place].load()
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
        let places = &buffer[..found];
        least(places.iter().map(|place| cost(self.load(*place))), rng).map(|at| places[at])
    }
}

/// Where a request is expected to finish first.
pub(super) struct Expected {
    /// With what it costs others to wait behind it.
    pub adaptive: bool,
}

impl Choose for Expected {
    fn choose<C: Candidate, X: Fn(&C) -> bool>(
        &self,
        field: &Field<'_, C, X>,
        rng: &mut Rng,
    ) -> Option<usize> {
        let Field { endpoints, excluded, context } = *field;
        let looked = Looked::at(endpoints, excluded, None, context, rng);
        let best = looked.stranger_service(endpoints, context);
        let (now, ttl) = (context.now, context.report_ttl);
        let costs = looked.costs(endpoints, |load| match self.adaptive {
            true => load.cost(now, ttl, best),
            false => load.completion(now, ttl, best),
        });
        let costs = &costs[..looked.places().len()];
        let at = looked
            .revisit(endpoints, |_| true, context, rng)
            .or_else(|| least(costs.iter().copied(), rng))?;
        Some(looked.take(at, costs, endpoints, context))
    }
}

/// The fewest requests of ours in flight.
pub(super) struct Fewest {
    /// Of two random ones, or of all that are looked at.
    pub of_two: bool,
}

impl Choose for Fewest {
    fn choose<C: Candidate, X: Fn(&C) -> bool>(
        &self,
        field: &Field<'_, C, X>,
        rng: &mut Rng,
    ) -> Option<usize> {
        let count = |load: &Load| f64::from(load.in_flight());
        match self.of_two {
            true => field.best_of::<2>(count, rng),
            false => field.best_of::<POLLED>(count, rng),
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
        let mut buffer = [0; POLLED];
        let places = choose(&mut buffer, 0, field.endpoints, field.excluded, rng);
        let weight = |place: &usize| {
            let load = field.load(*place);
            let is_fresh = |at| field.context.now.since(at) <= field.context.report_ttl;
            let fresh = load.reported_at().is_some_and(is_fresh);
            // Who says nothing has at least what we sent beyond its slots.
            let ours = load.in_flight().saturating_sub(load.slots());
            let queue = load.reported_queue().filter(|_| fresh).unwrap_or(ours);
            f64::from(load.slots()) / (1.0 + f64::from(queue))
        };
        let total: f64 = places.iter().map(weight).sum();
        let mut left = rng.share() * total;
        let drawn = places.iter().find(|place| {
            left -= weight(place);
            left < 0.0
        });
        // The last one if rounding left a little over.
        drawn.or(places.last()).copied()
    }
}

/// One after the other.
pub(super) struct InTurn;

impl Choose for InTurn {
    fn choose<C: Candidate, X: Fn(&C) -> bool>(
        &self,
        field: &Field<'_, C, X>,
        _: &mut Rng,
    ) -> Option<usize> {
        allowed_from(field.context.turn.turn(), field.endpoints, field.excluded)
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

/// The same endpoint for the same key, with bounded loads. What has no key goes where it is expected to
/// finish first.
pub(super) struct Sticky;

impl Choose for Sticky {
    fn choose<C: Candidate, X: Fn(&C) -> bool>(
        &self,
        field: &Field<'_, C, X>,
        rng: &mut Rng,
    ) -> Option<usize> {
        let context = field.context;
        let (Some(key), Some(ring)) = (context.key, context.ring) else {
            return Expected { adaptive: true }.choose(field, rng);
        };
        let mut buffer = [0; POLLED];
        let polled = choose(&mut buffer, 0, field.endpoints, field.excluded, rng);
        let total: u32 = polled.iter().map(|place| field.load(*place).in_flight()).sum();
        let mean = f64::from(total + 1) / (polled.len().max(1) as f64);
        let most = (mean * MOST_ABOVE_MEAN).ceil();
        let allowed = |place: usize| {
            let endpoint = field.endpoints.get(place).filter(|it| !(field.excluded)(it))?;
            Some(endpoint.load())
        };
        // One that fails keeps no keys while it does.
        let fits = |load: &Load| {
            let room = most.max(f64::from(load.slots()));
            f64::from(load.in_flight()) < room && load.penalty(context.now) < GRACE.as_secs_f64()
        };
        let mut first = None;
        for place in ring.from(key) {
            match allowed(place) {
                Some(load) if fits(load) => return Some(place),
                Some(_) => first = first.or(Some(place)),
                None => {}
            }
        }
        first.or_else(|| {
            allowed_from(rng.below(field.endpoints.len()), field.endpoints, field.excluded)
        })
    }
}

/// A penalty for failures above this sends keys elsewhere.
const GRACE: Duration = Duration::from_millis(20);
