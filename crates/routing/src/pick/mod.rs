//! Picks the endpoint for the next request.
//!
//! Policies differ in what they know. [`Policy::Adaptive`], the default, sends a request where it is
//! expected to finish first; the others are what people know from elsewhere, kept as baselines in the
//! same benchmark and for those who ask for them. Each is a [`Choose`](policies::Choose); the enum
//! [`Policy`] is their names. A pick allocates nothing, and beyond [`FULL_SCAN`] endpoints none looks at
//! more than a few, so that the cost of a pick does not grow with the fleet.

pub(crate) mod candidates;
mod policies;
pub(crate) mod recent;
mod ring;

pub use candidates::{Candidate, Context, FULL_SCAN, best_service};
pub use recent::PickMemory;
pub use ring::{Ring, identity};

use crate::Rng;
use policies::{
    Choose, Field, LeastCost, LeastInFlight, PeakEwma, Random, RoundRobin, Sticky, Weighted,
};

/// The policy of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// The endpoint where the request is expected to finish first, with what it costs others to wait
    /// behind it; a request waits in the proxy as long as that is much better than the best endpoint
    /// that is free, see [`bind`](crate::queue::bind).
    #[default]
    Adaptive,
    /// The endpoint where the request is expected to finish first.
    LeastCost,
    /// The fewest requests of ours in flight.
    LeastInFlight,
    /// The better of two random ones by requests in flight.
    P2c,
    /// The better of two random ones by requests in flight and the highest latency of late.
    PeakEwma,
    /// By chance, the more often the fewer requests wait there by its own word.
    Weighted,
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
    /// The same endpoint for the same key, unless it has much more to do than the others.
    Sticky,
}

impl Policy {
    /// Every policy by its name in the configuration.
    pub const NAMES: &'static [(&'static str, Self)] = &[
        ("adaptive", Self::Adaptive),
        ("least_cost", Self::LeastCost),
        ("least_inflight", Self::LeastInFlight),
        ("p2c", Self::P2c),
        ("peak_ewma", Self::PeakEwma),
        ("weighted", Self::Weighted),
        ("round_robin", Self::RoundRobin),
        ("random", Self::Random),
        ("sticky", Self::Sticky),
    ];
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
    let field = Field { endpoints, excluded: &excluded, context };
    match policy {
        Policy::Adaptive => LeastCost { adaptive: true }.choose(&field, rng),
        Policy::LeastCost => LeastCost { adaptive: false }.choose(&field, rng),
        Policy::LeastInFlight => LeastInFlight { of_two: false }.choose(&field, rng),
        Policy::P2c => LeastInFlight { of_two: true }.choose(&field, rng),
        Policy::PeakEwma => PeakEwma.choose(&field, rng),
        Policy::Weighted => Weighted.choose(&field, rng),
        Policy::RoundRobin => RoundRobin.choose(&field, rng),
        Policy::Random => Random.choose(&field, rng),
        Policy::Sticky => Sticky.choose(&field, rng),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Load, Report, Time};
    use std::sync::Arc;
    use std::time::Duration;

    struct Endpoint(Arc<Load>);
    impl Candidate for Endpoint {
        fn load(&self) -> &Load {
            &self.0
        }
    }

    fn fleet(n: usize) -> Vec<Endpoint> {
        (0..n).map(|_| Endpoint(Arc::new(Load::new(4)))).collect()
    }

    fn context(now: Time, memory: &Arc<PickMemory>) -> Context<'_> {
        Context {
            now,
            report_ttl: Duration::from_secs(1),
            memory,
            key: None,
            ring: None,
            trace: None,
        }
    }

    fn serves_in(endpoint: &Endpoint, millis: u64) {
        let report =
            Report { service_time: Some(Duration::from_millis(millis)), ..Report::default() };
        endpoint.0.report(&report, Time::default());
    }

    fn run(
        policy: Policy,
        fleet: &[Endpoint],
        memory: &Arc<PickMemory>,
        rng: &mut Rng,
    ) -> Option<usize> {
        let context = context(Time::default(), memory);
        pick(policy, fleet, |_| false, &context, rng)
    }

    #[test]
    fn least_cost_prefers_the_faster_and_fills_by_completion_time() {
        let (fleet, memory, mut rng) = (fleet(2), Arc::default(), Rng::new(1));
        serves_in(&fleet[0], 10);
        serves_in(&fleet[1], 30);
        let mut held = Vec::new();
        let mut shares = [0; 2];
        for _ in 0..12 {
            let chosen = run(Policy::LeastCost, &fleet, &memory, &mut rng).unwrap_or(usize::MAX);
            shares[chosen] += 1;
            held.push(fleet[chosen].0.enter());
        }
        assert_eq!(shares, [11, 1], "the slow one is used once its finish is as near");
    }

    #[test]
    fn one_slow_answer_does_not_starve_an_endpoint() {
        let (fleet, memory, mut rng) = (fleet(3), Arc::default(), Rng::new(5));
        let at = |millis: u64| Time::new(Duration::from_millis(millis));
        // Cold: the first answer of one takes thirty times as long as all that follow.
        fleet[0].0.enter().answered(Duration::from_millis(300), at(0));
        let mut shares = [0; 3];
        for number in 0..600 {
            let now = at(number * 50);
            let context = context(now, &memory);
            let chosen = pick(Policy::LeastCost, &fleet, |_| false, &context, &mut rng);
            let chosen = chosen.unwrap_or(usize::MAX);
            shares[chosen] += 1;
            fleet[chosen].0.enter().answered(Duration::from_millis(10), now);
        }
        assert!(shares[0] >= 60, "30 seconds at 20 a second: {shares:?}");
    }

    /// Picks until the first of three endpoints has had ten of them, 500 a second of 10 ms each, after
    /// `episode` happened to it.
    fn picks_until_back(seed: u64, episode: impl Fn(&Load)) -> usize {
        let (fleet, memory, mut rng) = (fleet(3), Arc::default(), Rng::new(seed));
        let at = |number: usize| Time::new(Duration::from_millis(2 * number as u64));
        for number in 0..600 {
            let millis = if number % 3 == 0 { 300 } else { 10 };
            fleet[number % 3].0.enter().answered(Duration::from_millis(millis), at(number));
        }
        episode(&fleet[0].0);
        let (mut had, mut held) = (0, std::collections::VecDeque::new());
        (600..60_000)
            .find(|number| {
                let now = at(*number);
                let context = context(now, &memory);
                let chosen = pick(Policy::Adaptive, &fleet, |_| false, &context, &mut rng);
                let chosen = chosen.unwrap_or(usize::MAX);
                held.push_back(fleet[chosen].0.enter());
                if held.len() > 5
                    && let Some(done) = held.pop_front()
                {
                    done.answered(Duration::from_millis(10), now);
                }
                had += usize::from(chosen == 0);
                had == 10
            })
            .map_or(usize::MAX, |number| number - 600)
    }

    #[test]
    fn one_that_was_slow_is_found_to_have_recovered() {
        for seed in 0..20 {
            let picks = picks_until_back(seed, |_| {});
            assert!(picks < 5000, "seed {seed}: ten requests after {picks} picks");
        }
    }

    #[test]
    fn one_that_comes_back_after_failures_gets_requests_at_once() {
        for seed in 0..20 {
            let picks = picks_until_back(seed, |load| {
                (0..9).for_each(|_| load.failed(Time::new(Duration::from_millis(1200))));
                load.rejoined();
            });
            assert!(picks < 1500, "seed {seed}: ten requests after {picks} picks");
        }
    }

    #[test]
    fn ties_are_spread() {
        let (fleet, memory, mut rng) = (fleet(4), Arc::default(), Rng::new(7));
        let mut shares = [0; 4];
        for _ in 0..4000 {
            shares[run(Policy::LeastCost, &fleet, &memory, &mut rng).unwrap_or(0)] += 1;
        }
        assert!(shares.iter().all(|&n| (850..1150).contains(&n)), "{shares:?}");
    }

    #[test]
    fn no_policy_picks_what_is_excluded_and_each_finds_what_is_left() {
        for n in [1, 2, 5, 33, 200] {
            let (fleet, memory, mut rng) = (fleet(n), Arc::default(), Rng::new(3));
            let context =
                Context { report_ttl: Duration::ZERO, ..context(Time::default(), &memory) };
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
        let (fleet, memory, mut rng) = (fleet(3), Arc::default(), Rng::new(3));
        let mut shares = [0; 3];
        for _ in 0..300 {
            shares[run(Policy::RoundRobin, &fleet, &memory, &mut rng).unwrap_or(0)] += 1;
        }
        assert!(shares.iter().all(|n| (98..=102).contains(n)), "{shares:?}");
    }

    #[test]
    fn every_endpoint_of_a_large_pool_is_reached() {
        let (fleet, memory, mut rng) = (fleet(100), Arc::default(), Rng::new(11));
        let mut shares = vec![0; 100];
        for _ in 0..10_000 {
            shares[run(Policy::LeastCost, &fleet, &memory, &mut rng).unwrap_or(0)] += 1;
        }
        assert!(shares.iter().all(|&n| n > 30), "{shares:?}");
    }
}
