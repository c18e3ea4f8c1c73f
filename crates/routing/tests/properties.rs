//! Properties of every policy, tried on random fleets and random histories. Each failure names the seed that
//! brings it back.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_lossless,
    reason = "small numbers"
)]

use forebay_routing::decision::{Decision, Trace};
use forebay_routing::pick::{self, Context, Ring};
use forebay_routing::{
    Binding, Candidate, Dispatch, Entry, FairQueue, InFlight, Load, PickMemory, Policy, PoolView,
    RelativeCost, Report, Rng, Time,
};
use std::sync::Arc;
use std::time::Duration;

const TTL: Duration = Duration::from_secs(2);
const HANDOFF_DELAY: Duration = Duration::from_micros(500);

struct Endpoint {
    load: Arc<Load>,
    tried: bool,
}

impl Candidate for Endpoint {
    fn load(&self) -> &Load {
        &self.load
    }
}

/// A pool as a proxy has it.
struct Pool {
    fleet: Vec<Endpoint>,
    picks: Arc<PickMemory>,
    ring: Ring,
}

impl Pool {
    fn new(n: usize, mut slots: impl FnMut() -> u32) -> Self {
        let endpoint = |_| Endpoint { load: Arc::new(Load::new(slots())), tried: false };
        let fleet = (0..n).map(endpoint).collect();
        Self { fleet, picks: Arc::default(), ring: Ring::new(0..n as u64) }
    }

    fn context(&self, now: Time, key: Option<u64>) -> Context<'_> {
        Context {
            now,
            report_ttl: TTL,
            memory: &self.picks,
            key,
            ring: Some(&self.ring),
            trace: None,
        }
    }

    /// Picks among those that were not tried.
    fn pick(&self, policy: Policy, now: Time, key: Option<u64>, rng: &mut Rng) -> Option<usize> {
        pick::pick(policy, &self.fleet, |it| it.tried, &self.context(now, key), rng)
    }
}

/// A pool that lives: requests come and go, reports arrive or not, some endpoints fail.
struct World {
    rng: Rng,
    now: Time,
    pool: Pool,
    millis: Vec<u64>,
    held: Vec<(usize, Time, InFlight)>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let sizes = [1, 2, 3, 8, 9, 40, 300];
        let n = sizes[rng.below(sizes.len())];
        let pool = Pool::new(n, || u32::try_from(1 + rng.below(6)).unwrap());
        let millis = (0..n).map(|_| 1 + rng.below(60) as u64).collect();
        Self { rng, now: Time::default(), pool, millis, held: Vec::new() }
    }

    fn chance(&mut self, of: usize) -> bool {
        self.rng.below(of) == 0
    }

    /// Something happens that is no pick.
    fn step(&mut self) {
        self.now = self.now + Duration::from_micros(self.rng.below(3000) as u64);
        let number = self.rng.below(self.pool.fleet.len());
        if self.chance(3) {
            let in_flight = u32::try_from(self.rng.below(20)).ok();
            let service_time = self.chance(2).then(|| Duration::from_millis(self.millis[number]));
            let report = Report { in_flight, queue: in_flight, service_time, ..Report::default() };
            self.pool.fleet[number].load.report(&report, self.now);
        }
        if self.chance(50) {
            self.pool.fleet[number].load.failed(self.now);
        }
        while !self.held.is_empty() && self.chance(2) {
            let (number, since, guard) = self.held.swap_remove(self.rng.below(self.held.len()));
            let took = Duration::from_millis(self.millis[number]);
            if !self.chance(10) {
                guard.answered(took.max(self.now.since(since)), self.now);
            }
        }
        for endpoint in &mut self.pool.fleet {
            endpoint.tried = self.rng.below(4) == 0;
        }
    }
}

/// Has worlds live with every policy, from this seed on: after each step `request` says where one goes,
/// if anywhere. In the end nothing is in flight that was not left out.
fn worlds(
    first_seed: u64,
    request: impl Fn(&Pool, Policy, Time, &mut Rng, &str) -> Option<(usize, InFlight)>,
) {
    for (seed, &(name, policy)) in (first_seed..).zip(Policy::NAMES.iter().cycle().take(120)) {
        let what = format!("{name}, seed {seed}");
        let mut world = World::new(seed);
        for _ in 0..300 {
            world.step();
            if let Some((at, guard)) =
                request(&world.pool, policy, world.now, &mut world.rng, &what)
            {
                assert!(!world.pool.fleet[at].tried, "{what}");
                world.held.push((at, world.now, guard));
            }
        }
        world.held.clear();
        let left: u32 = world.pool.fleet.iter().map(|endpoint| endpoint.load.in_flight()).sum();
        assert_eq!(left, 0, "{what}: every guard counts out");
    }
}

#[test]
fn nothing_is_picked_that_was_tried_and_something_is_if_there_is_anything() {
    worlds(0, |pool, policy, now, rng, what| {
        let key = (rng.below(2) == 0).then(|| rng.next_u64());
        let chosen = pool.pick(policy, now, key, rng);
        assert_eq!(chosen.is_some(), pool.fleet.iter().any(|it| !it.tried), "{what}");
        chosen.map(|at| (at, pool.fleet[at].load.enter()))
    });
}

#[test]
fn no_policy_binds_beyond_the_limit() {
    worlds(1000, |pool, policy, now, rng, what| {
        let context = pool.context(now, Some(rng.next_u64()));
        let view = PoolView {
            policy,
            endpoints: &pool.fleet,
            freed: None,
            handoff_delay: HANDOFF_DELAY,
            context,
            time_budget: None,
        };
        let Binding::Bind(at) = view.bind(|it| it.tried, 0, rng) else { return None };
        let load = &pool.fleet[at].load;
        assert!(view.is_free(load), "{what}");
        Some((at, view.enter(load).unwrap_or_else(|| panic!("{what}: no room"))))
    });
}

/// Picks after which every endpoint must have been picked, per endpoint: at the worst it is never
/// preferred, and one pick in 1500 looks for such ones, in a large pool at 3 of its endpoints.
const MAX_PICKS: usize = 15_000;

#[test]
fn every_healthy_endpoint_gets_requests_within_a_bound() {
    for (seed, &(name, policy)) in (2000..).zip(Policy::NAMES.iter().cycle().take(18)) {
        let n = [4, 12][seed as usize % 2];
        let (pool, mut rng) = (Pool::new(n, || 4), Rng::new(seed));
        let mut shares = vec![0; n];
        for number in 0..MAX_PICKS * n {
            let now = Time::new(Duration::from_micros(number as u64 * 200));
            let key = Some(rng.next_u64());
            let at = pool.pick(policy, now, key, &mut rng).unwrap();
            shares[at] += 1;
            // The last one is ten times as slow: it should get little, and never nothing.
            let millis = if at == n - 1 { 100 } else { 10 };
            pool.fleet[at].load.enter().answered(Duration::from_millis(millis), now);
        }
        assert!(shares.iter().all(|share| *share > 0), "{name}, seed {seed}: {shares:?}");
    }
}

#[test]
fn a_key_keeps_its_endpoint_and_few_keys_move_when_one_leaves() {
    let (mut pool, mut rng) = (Pool::new(20, || 4), Rng::new(7));
    let mut homes = |pool: &Pool| -> Vec<usize> {
        let mut home =
            |key| pool.pick(Policy::Sticky, Time::default(), Some(key), &mut rng).unwrap();
        (0..2000).map(&mut home).collect()
    };
    let before = homes(&pool);
    assert_eq!(before, homes(&pool));
    let mut shares = vec![0; 20];
    before.iter().for_each(|at| shares[*at] += 1);
    assert!(shares.iter().all(|share| (50..=170).contains(share)), "{shares:?}");
    pool.fleet[3].tried = true;
    let after = homes(&pool);
    let moved = before.iter().zip(&after).filter(|(one, other)| one != other).count();
    assert_eq!(moved, shares[3], "only the keys of the one that left");
}

#[test]
fn a_hot_key_does_not_drown_its_endpoint() {
    let (pool, mut rng) = (Pool::new(10, || 1), Rng::new(9));
    let guards: Vec<InFlight> = (0..100)
        .map(|_| {
            let at = pool.pick(Policy::Sticky, Time::default(), Some(5), &mut rng).unwrap();
            pool.fleet[at].load.enter()
        })
        .collect();
    let most = pool.fleet.iter().map(|endpoint| endpoint.load.in_flight()).max().unwrap();
    // 100 over 10 endpoints: 1.25 times the mean, which is taken of 8 of them.
    assert!((10..=25).contains(&most), "{most}");
    drop(guards);
}

#[test]
fn counters_do_not_leak_when_threads_meet() {
    let load = Arc::new(Load::new(4));
    std::thread::scope(|scope| {
        for seed in 0..4_u64 {
            let load = &load;
            scope.spawn(move || {
                let mut rng = Rng::new(seed);
                let mut held = Vec::new();
                for step in 0..5000_u64 {
                    held.push(load.enter());
                    if rng.below(2) == 0 {
                        let guard = held.swap_remove(rng.below(held.len()));
                        guard.answered(Duration::from_millis(step % 50), Time::default());
                    }
                    held.truncate(32);
                }
            });
        }
    });
    assert_eq!(load.in_flight(), 0);
}

#[test]
fn a_traced_decision_is_the_one_without_a_trace_and_comes_to_the_same_again() {
    let mut replayed = 0;
    for seed in 3000..3030 {
        let policy = [Policy::Adaptive, Policy::LeastCost, Policy::P2c][seed as usize % 3];
        // Two worlds that are alike in everything but that one is traced.
        let (mut traced, mut plain) = (World::new(seed), World::new(seed));
        for step in 0..300 {
            traced.step();
            plain.step();
            let trace = Trace::default();
            let bind = |world: &mut World, trace: Option<&Trace>| {
                let context = Context { trace, ..world.pool.context(world.now, None) };
                let view = PoolView {
                    policy,
                    endpoints: &world.pool.fleet,
                    freed: None,
                    handoff_delay: HANDOFF_DELAY,
                    context,
                    time_budget: None,
                };
                view.bind(|it| it.tried, step % 5, &mut world.rng)
            };
            let found = bind(&mut traced, Some(&trace));
            assert_eq!(found, bind(&mut plain, None), "seed {seed}, step {step}");
            for decision in trace.take() {
                if let Some(again) = decision.replay() {
                    assert_eq!(again, decision.recorded(), "seed {seed}: {decision:?}");
                    replayed += 1;
                }
            }
            for world in [&mut traced, &mut plain] {
                if let Binding::Bind(at) = found {
                    let guard = world.pool.fleet[at].load.enter();
                    world.held.push((at, world.now, guard));
                }
            }
        }
    }
    assert!(replayed > 4000, "{replayed}");
}

#[test]
fn a_request_that_is_sent_ahead_is_so_by_its_record_as_well() {
    let trace = Trace::default();
    let (pool, mut rng) = (Pool::new(8, || 1), Rng::new(5));
    let mut held = Vec::new();
    for endpoint in &pool.fleet {
        for _ in 0..20 {
            endpoint.load.enter().answered(Duration::from_millis(5), Time::default());
        }
        held.push(endpoint.load.enter());
    }
    let mut queue = FairQueue::new(100);
    for number in 0..40_u64 {
        let entry = Entry {
            class: 1,
            since: Time::default(),
            deadline: Time::new(Duration::from_secs(30)),
            client: 1,
            key: None,
            relative_cost: RelativeCost::default(),
        };
        queue.enqueue(&entry, number);
    }
    let next = |trace, rng: &mut Rng| {
        let context = Context { trace, ..pool.context(Time::default(), None) };
        let view = PoolView {
            policy: Policy::Adaptive,
            endpoints: &pool.fleet,
            freed: None,
            handoff_delay: HANDOFF_DELAY,
            context,
            time_budget: None,
        };
        view.next(&queue, |_, _| false, rng).map(|(_, dispatch)| dispatch)
    };
    let found = next(Some(&trace), &mut rng.clone());
    assert!(matches!(found, Some(Dispatch::BindAhead(_))), "{found:?}");
    assert_eq!(found, next(None, &mut rng));
    let last = trace.take().pop().unwrap();
    assert!(matches!(last, Decision::Ahead(_)), "{last:?}");
    assert_eq!(last.replay(), Some(last.recorded()));
}
