//! Which endpoint gets the next request.
//!
//! Policies differ in what they know. [`Policy::LeastCost`], the default, sends a request where it
//! is expected to finish first; the others are what people know from elsewhere, kept as baselines
//! in the same benchmark and for those who ask for them. A pick allocates nothing, and beyond
//! [`FULL_SCAN`] endpoints it looks at a random sample, so that its cost does not grow with the
//! fleet.

use crate::{Load, Rng, Time};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// Up to this many endpoints are all looked at.
pub const FULL_SCAN: usize = 32;
/// How many are looked at in a larger pool: the least of 16 random ones is among the best 6% of
/// the pool on average, and a sample keeps many proxies from choosing the same endpoint.
const SAMPLE: usize = 16;
/// Costs within this factor of the least are ties, broken by chance: reports are not that exact,
/// and proxies that see the same reports must not all choose alike.
const TIE: f64 = 1.05;
/// Service time in seconds if no endpoint has one yet; any value does, since it is common to all.
const UNKNOWN_SERVICE: f64 = 0.001;

/// How a pool chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// The endpoint where the request is expected to finish first; a request waits in the proxy as
    /// long as that is better than the best endpoint that is free, see [`bind`](crate::bind).
    #[default]
    Adaptive,
    /// The endpoint where the request is expected to finish first.
    LeastCost,
    /// The fewest requests of ours in flight.
    LeastInFlight,
    /// The better of two random ones by requests in flight.
    P2c,
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
}

impl Policy {
    /// Every policy by its name in the configuration.
    pub const NAMES: &'static [(&'static str, Self)] = &[
        ("adaptive", Self::Adaptive),
        ("least_cost", Self::LeastCost),
        ("least_inflight", Self::LeastInFlight),
        ("p2c", Self::P2c),
        ("round_robin", Self::RoundRobin),
        ("random", Self::Random),
    ];
}

/// Something that can be picked.
pub trait Candidate {
    /// What is known of its load.
    fn load(&self) -> &Load;
}

impl<C: Candidate + ?Sized> Candidate for std::sync::Arc<C> {
    fn load(&self) -> &Load {
        (**self).load()
    }
}

/// What a pick needs to know beside the endpoints.
#[derive(Debug)]
pub struct Context<'a> {
    /// The time of the pick.
    pub now: Time,
    /// A report older than this is not believed.
    pub report_ttl: Duration,
    /// The pool's turn counter, for [`Policy::RoundRobin`].
    pub turn: &'a AtomicUsize,
}

/// Index of the endpoint that gets the next request; `None` if all are `excluded`.
///
/// `endpoints` are those that may be used at all (ready, not draining); `excluded` says which
/// this request has already tried.
pub fn pick<C: Candidate>(
    policy: Policy,
    endpoints: &[C],
    excluded: impl Fn(&C) -> bool,
    context: &Context<'_>,
    rng: &mut Rng,
) -> Option<usize> {
    let looked_at = match policy {
        Policy::RoundRobin => {
            let first = context.turn.fetch_add(1, Relaxed);
            return allowed_from(first, endpoints, excluded);
        }
        Policy::Random => return allowed_from(rng.below(endpoints.len()), endpoints, excluded),
        Policy::P2c => 2,
        Policy::Adaptive | Policy::LeastCost | Policy::LeastInFlight => scan(endpoints.len()),
    };
    let mut sample = [0; FULL_SCAN];
    let sample = choose(&mut sample[..looked_at], endpoints, &excluded, rng);
    let mut costs = [0.0; FULL_SCAN];
    let costs = &mut costs[..sample.len()];
    if matches!(policy, Policy::Adaptive | Policy::LeastCost) {
        expected_completion(costs, sample, endpoints, context);
    } else {
        for (cost, &index) in costs.iter_mut().zip(sample) {
            *cost = f64::from(endpoints[index].load().in_flight());
        }
    }
    least(costs, rng).map(|at| sample[at])
}

/// How many of `n` endpoints a policy looks at that compares them.
pub(crate) fn scan(n: usize) -> usize {
    if n > FULL_SCAN { SAMPLE } else { FULL_SCAN }
}

/// The least service time, in seconds, among endpoints that have one.
pub fn best_service<'a, C: Candidate + 'a>(endpoints: impl Iterator<Item = &'a C>) -> f64 {
    let known = endpoints.filter_map(|endpoint| endpoint.load().service_seconds());
    known.reduce(f64::min).unwrap_or(UNKNOWN_SERVICE)
}

/// Seconds until a request would finish on each sampled endpoint. One without a service time is
/// taken for as fast as the best: it is tried, and known from then on.
fn expected_completion<C: Candidate>(
    costs: &mut [f64],
    sample: &[usize],
    endpoints: &[C],
    context: &Context<'_>,
) {
    let best = best_service(sample.iter().map(|&index| &endpoints[index]));
    for (cost, &index) in costs.iter_mut().zip(sample) {
        *cost = endpoints[index].load().cost(context.now, context.report_ttl, best);
    }
}

/// Position of the least cost; ties are broken by chance.
pub(crate) fn least(costs: &[f64], rng: &mut Rng) -> Option<usize> {
    let bound = costs.iter().copied().fold(f64::INFINITY, f64::min) * TIE;
    let ties = costs.iter().filter(|cost| **cost <= bound).count();
    let chosen = if ties > 1 { rng.below(ties) } else { 0 };
    costs.iter().enumerate().filter(|(_, cost)| **cost <= bound).nth(chosen).map(|(at, _)| at)
}

/// Fills `buffer` with distinct indices of allowed endpoints: all of them if they fit, else a
/// random sample.
pub(crate) fn choose<'b, C>(
    buffer: &'b mut [usize],
    endpoints: &[C],
    excluded: &impl Fn(&C) -> bool,
    rng: &mut Rng,
) -> &'b [usize] {
    let mut filled = 0;
    if endpoints.len() <= buffer.len() {
        for index in (0..endpoints.len()).filter(|&index| !excluded(&endpoints[index])) {
            buffer[filled] = index;
            filled += 1;
        }
        return &buffer[..filled];
    }
    // A few draws hit one that is taken or excluded; the walk from there finds the next.
    for _ in 0..buffer.len() {
        let first = rng.below(endpoints.len());
        let taken = &buffer[..filled];
        let next = (0..endpoints.len())
            .map(|step| (first + step) % endpoints.len())
            .find(|index| !taken.contains(index) && !excluded(&endpoints[*index]));
        let Some(index) = next else { break };
        buffer[filled] = index;
        filled += 1;
    }
    &buffer[..filled]
}

/// The first allowed endpoint, counted from `first`.
fn allowed_from<C>(first: usize, endpoints: &[C], excluded: impl Fn(&C) -> bool) -> Option<usize> {
    (0..endpoints.len())
        .map(|step| (first % endpoints.len() + step) % endpoints.len())
        .find(|&index| !excluded(&endpoints[index]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Report;
    use std::sync::Arc;

    struct Endpoint(Arc<Load>);
    impl Candidate for Endpoint {
        fn load(&self) -> &Load {
            &self.0
        }
    }

    fn fleet(n: usize) -> Vec<Endpoint> {
        (0..n).map(|_| Endpoint(Arc::new(Load::new(4)))).collect()
    }

    fn serves_in(endpoint: &Endpoint, millis: u64) {
        let report =
            Report { service_time: Some(Duration::from_millis(millis)), ..Report::default() };
        endpoint.0.report(&report, Time::default());
    }

    fn run(policy: Policy, fleet: &[Endpoint], turn: &AtomicUsize, rng: &mut Rng) -> Option<usize> {
        let context = Context { now: Time::default(), report_ttl: Duration::from_secs(1), turn };
        pick(policy, fleet, |_| false, &context, rng)
    }

    #[test]
    fn least_cost_prefers_the_faster_and_fills_by_completion_time() {
        let (fleet, turn, mut rng) = (fleet(2), AtomicUsize::new(0), Rng::new(1));
        serves_in(&fleet[0], 10);
        serves_in(&fleet[1], 30);
        let mut held = Vec::new();
        let mut shares = [0; 2];
        for _ in 0..12 {
            let chosen = run(Policy::LeastCost, &fleet, &turn, &mut rng).unwrap_or(usize::MAX);
            shares[chosen] += 1;
            held.push(fleet[chosen].0.enter());
        }
        assert_eq!(shares, [11, 1], "the slow one is used once its finish is as near");
    }

    #[test]
    fn one_slow_answer_does_not_starve_an_endpoint() {
        let (fleet, turn, mut rng) = (fleet(3), AtomicUsize::new(0), Rng::new(5));
        let at = |millis: u64| Time::new(Duration::from_millis(millis));
        // Cold: the first answer of one takes thirty times as long as all that follow.
        fleet[0].0.enter().answered(Duration::from_millis(300), at(0));
        let mut shares = [0; 3];
        for number in 0..600 {
            let now = at(number * 50);
            let context = Context { now, report_ttl: Duration::from_secs(1), turn: &turn };
            let chosen = pick(Policy::LeastCost, &fleet, |_| false, &context, &mut rng);
            let chosen = chosen.unwrap_or(usize::MAX);
            shares[chosen] += 1;
            fleet[chosen].0.enter().answered(Duration::from_millis(10), now);
        }
        assert!(shares[0] >= 60, "30 seconds at 20 a second: {shares:?}");
    }

    #[test]
    fn ties_are_spread() {
        let (fleet, turn, mut rng) = (fleet(4), AtomicUsize::new(0), Rng::new(7));
        let mut shares = [0; 4];
        for _ in 0..4000 {
            shares[run(Policy::LeastCost, &fleet, &turn, &mut rng).unwrap_or(0)] += 1;
        }
        assert!(shares.iter().all(|&n| (850..1150).contains(&n)), "{shares:?}");
    }

    #[test]
    fn no_policy_picks_what_is_excluded_and_each_finds_what_is_left() {
        for n in [1, 2, 5, 33, 200] {
            let (fleet, turn, mut rng) = (fleet(n), AtomicUsize::new(0), Rng::new(3));
            let context = Context { now: Time::default(), report_ttl: Duration::ZERO, turn: &turn };
            for &(name, policy) in Policy::NAMES {
                let only: *const Endpoint = &raw const fleet[n / 2];
                let chosen = pick(policy, &fleet, |e| !std::ptr::eq(e, only), &context, &mut rng);
                assert_eq!(chosen, Some(n / 2), "{name} of {n}");
                assert_eq!(pick(policy, &fleet, |_| true, &context, &mut rng), None, "{name}");
                assert_eq!(pick::<Endpoint>(policy, &[], |_| false, &context, &mut rng), None);
            }
        }
    }

    #[test]
    fn round_robin_takes_turns() {
        let (fleet, turn, mut rng) = (fleet(3), AtomicUsize::new(usize::MAX - 1), Rng::new(3));
        let mut shares = [0; 3];
        for _ in 0..300 {
            shares[run(Policy::RoundRobin, &fleet, &turn, &mut rng).unwrap_or(0)] += 1;
        }
        assert!(shares.iter().all(|n| (98..=102).contains(n)), "{shares:?}");
    }

    #[test]
    fn every_endpoint_of_a_large_pool_is_reached() {
        let (fleet, turn, mut rng) = (fleet(100), AtomicUsize::new(0), Rng::new(11));
        let mut shares = vec![0; 100];
        for _ in 0..10_000 {
            shares[run(Policy::LeastCost, &fleet, &turn, &mut rng).unwrap_or(0)] += 1;
        }
        assert!(shares.iter().all(|&n| n > 30), "{shares:?}");
    }
}
