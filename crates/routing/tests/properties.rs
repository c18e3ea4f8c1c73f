//! What must hold of every policy, whatever happens: tried on random fleets and random histories. Each
//! failure names the seed that brings it back.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_lossless,
    reason = "small numbers"
)]

use forebay_routing::pick::{self, Context, Ring};
use forebay_routing::{Binding, Candidate, InFlight, Load, Picks, Policy, Report, Rng, Time, View};
use std::sync::Arc;
use std::time::Duration;

const TTL: Duration = Duration::from_secs(2);
const HOP: Duration = Duration::from_micros(500);

struct Endpoint {
    load: Arc<Load>,
    tried: bool,
}

impl Candidate for Endpoint {
    fn load(&self) -> &Load {
        &self.load
    }
}

/// A fleet that lives: requests come and go, reports arrive or not, some endpoints fail.
struct World {
    rng: Rng,
    now: Time,
    fleet: Vec<Endpoint>,
    millis: Vec<u64>,
    held: Vec<(usize, Time, InFlight)>,
    picks: Arc<Picks>,
    ring: Ring,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let sizes = [1, 2, 3, 8, 9, 40, 300];
        let n = sizes[rng.below(sizes.len())];
        let mut endpoint = |_| Endpoint {
            load: Arc::new(Load::new(u32::try_from(1 + rng.below(6)).unwrap())),
            tried: false,
        };
        let fleet: Vec<Endpoint> = (0..n).map(&mut endpoint).collect();
        let millis = (0..n).map(|_| 1 + rng.below(60) as u64).collect();
        let ring = Ring::new(0..n as u64);
        let (now, held, picks) = (Time::default(), Vec::new(), Arc::default());
        Self { rng, now, fleet, millis, held, picks, ring }
    }

    fn chance(&mut self, of: usize) -> bool {
        self.rng.below(of) == 0
    }

    /// Something happens that is no pick.
    fn step(&mut self) {
        self.now = self.now + Duration::from_micros(self.rng.below(3000) as u64);
        let number = self.rng.below(self.fleet.len());
        if self.chance(3) {
            let in_flight = u32::try_from(self.rng.below(20)).ok();
            let service_time = self.chance(2).then(|| Duration::from_millis(self.millis[number]));
            let report = Report { in_flight, queue: in_flight, service_time, ..Report::default() };
            self.fleet[number].load.report(&report, self.now);
        }
        if self.chance(50) {
            self.fleet[number].load.failed(self.now);
        }
        while !self.held.is_empty() && self.chance(2) {
            let (number, since, guard) = self.held.swap_remove(self.rng.below(self.held.len()));
            let took = Duration::from_millis(self.millis[number]);
            if !self.chance(10) {
                guard.answered(took.max(self.now.since(since)), self.now);
            }
        }
        for endpoint in &mut self.fleet {
            endpoint.tried = self.rng.below(4) == 0;
        }
    }
}

#[test]
fn nothing_is_picked_that_was_tried_and_something_is_if_there_is_anything() {
    for (seed, &(name, policy)) in (0..).zip(Policy::NAMES.iter().cycle().take(120)) {
        let mut world = World::new(seed);
        for _ in 0..300 {
            world.step();
            let mut rng = world.rng.clone();
            let key = (rng.below(2) == 0).then(|| rng.next_u64());
            let context = Context {
                now: world.now,
                report_ttl: TTL,
                turn: &world.picks,
                key,
                ring: Some(&world.ring),
            };
            let chosen = pick::pick(policy, &world.fleet, |it| it.tried, &context, &mut rng);
            let any = world.fleet.iter().any(|endpoint| !endpoint.tried);
            assert_eq!(chosen.is_some(), any, "{name}, seed {seed}");
            if let Some(at) = chosen {
                assert!(!world.fleet[at].tried, "{name}, seed {seed}");
                let guard = world.fleet[at].load.enter();
                world.held.push((at, world.now, guard));
            }
            world.rng = rng;
        }
        world.held.clear();
        let left: u32 = world.fleet.iter().map(|endpoint| endpoint.load.in_flight()).sum();
        assert_eq!(left, 0, "{name}, seed {seed}: every guard counts out");
    }
}

#[test]
fn no_policy_binds_beyond_the_limit() {
    for (seed, &(name, policy)) in (1000..).zip(Policy::NAMES.iter().cycle().take(120)) {
        let mut world = World::new(seed);
        for _ in 0..300 {
            world.step();
            let mut rng = world.rng.clone();
            let key = Some(rng.next_u64());
            let context = Context {
                now: world.now,
                report_ttl: TTL,
                turn: &world.picks,
                key,
                ring: Some(&world.ring),
            };
            let view = View { policy, endpoints: &world.fleet, freed: None, hop: HOP, context };
            if let Binding::Bind(at) = view.bind(|it| it.tried, 0, &mut rng) {
                let endpoint = &world.fleet[at];
                assert!(view.is_free(&endpoint.load), "{name}, seed {seed}");
                assert!(!endpoint.tried, "{name}, seed {seed}");
                let guard = view.enter(&endpoint.load);
                let guard = guard.unwrap_or_else(|| panic!("{name}, seed {seed}: no room"));
                world.held.push((at, world.now, guard));
            }
            world.rng = rng;
        }
    }
}

/// Picks after which every endpoint must have been picked, per endpoint: at the worst it is never
/// preferred, and one pick in 1500 looks for such ones, in a large pool at 3 of its endpoints.
const PATIENCE: usize = 15_000;

#[test]
fn every_healthy_endpoint_gets_requests_within_a_bound() {
    for (seed, &(name, policy)) in (2000..).zip(Policy::NAMES.iter().cycle().take(18)) {
        let n = [4, 12][seed as usize % 2];
        let picks = Arc::default();
        let ring = Ring::new(0..n as u64);
        let mut rng = Rng::new(seed);
        let endpoint = |_| Endpoint { load: Arc::new(Load::new(4)), tried: false };
        let fleet: Vec<Endpoint> = (0..n).map(endpoint).collect();
        let mut shares = vec![0; n];
        for number in 0..PATIENCE * n {
            let now = Time::new(Duration::from_micros(number as u64 * 200));
            let key = Some(rng.next_u64());
            let context = Context { now, report_ttl: TTL, turn: &picks, key, ring: Some(&ring) };
            let at = pick::pick(policy, &fleet, |_| false, &context, &mut rng).unwrap();
            shares[at] += 1;
            // The last one is ten times as slow: it should get little, and never nothing.
            let millis = if at == n - 1 { 100 } else { 10 };
            fleet[at].load.enter().answered(Duration::from_millis(millis), now);
        }
        assert!(shares.iter().all(|share| *share > 0), "{name}, seed {seed}: {shares:?}");
    }
}

#[test]
fn a_key_keeps_its_endpoint_and_few_keys_move_when_one_leaves() {
    let n = 20;
    let endpoint = |_| Endpoint { load: Arc::new(Load::new(4)), tried: false };
    let fleet: Vec<Endpoint> = (0..n).map(endpoint).collect();
    let picks = Arc::default();
    let mut rng = Rng::new(7);
    let mut home = |ring: &Ring, gone: usize, key: u64| {
        let now = Time::default();
        let context =
            Context { now, report_ttl: TTL, turn: &picks, key: Some(key), ring: Some(ring) };
        let gone = |it: &Endpoint| gone < n && std::ptr::eq(it, &raw const fleet[gone]);
        pick::pick(Policy::Sticky, &fleet, gone, &context, &mut rng).unwrap()
    };
    let ring = Ring::new(0..n as u64);
    let before: Vec<usize> = (0..2000).map(|key| home(&ring, n, key)).collect();
    let again: Vec<usize> = (0..2000).map(|key| home(&ring, n, key)).collect();
    assert_eq!(before, again);
    let mut shares = vec![0; n];
    before.iter().for_each(|at| shares[*at] += 1);
    assert!(shares.iter().all(|share| (50..=170).contains(share)), "{shares:?}");
    let after: Vec<usize> = (0..2000).map(|key| home(&ring, 3, key)).collect();
    let moved = before.iter().zip(&after).filter(|(one, other)| one != other).count();
    assert_eq!(moved, shares[3], "only the keys of the one that left");
}

#[test]
fn a_hot_key_does_not_drown_its_endpoint() {
    let n = 10;
    let endpoint = |_| Endpoint { load: Arc::new(Load::new(1)), tried: false };
    let fleet: Vec<Endpoint> = (0..n).map(endpoint).collect();
    let picks = Arc::default();
    let ring = Ring::new(0..n as u64);
    let mut rng = Rng::new(9);
    let now = Time::default();
    let context = Context { now, report_ttl: TTL, turn: &picks, key: Some(5), ring: Some(&ring) };
    let guards: Vec<InFlight> = (0..100)
        .map(|_| {
            let at = pick::pick(Policy::Sticky, &fleet, |_| false, &context, &mut rng).unwrap();
            fleet[at].load.enter()
        })
        .collect();
    let most = fleet.iter().map(|endpoint| endpoint.load.in_flight()).max().unwrap();
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
