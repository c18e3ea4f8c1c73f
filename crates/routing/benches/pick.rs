//! The cost of a pick, by policy and by size of the pool: `cargo bench -p forebay-routing`.
//!
//! Prints nanoseconds per pick: the minimum of several rounds, since other work on the machine only adds.
//! Every tenth pick is counted in and out, so that loads differ and change as they do in a proxy.
#![allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a benchmark prints and measures"
)]

use forebay_routing::{Candidate, InFlight, Load, PickMemory, Policy, Report, Rng, Time, pick};
use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

const SIZES: [usize; 6] = [4, 8, 16, 64, 1024, 10_000];
const ROUNDS: usize = 30;
const PICKS: u32 = 10_000;

struct Endpoint(Arc<Load>);

impl Candidate for Endpoint {
    fn load(&self) -> &Load {
        &self.0
    }
}

fn main() {
    println!("{:<16}{}", "ns a pick", SIZES.map(|n| format!("{n:>10}")).concat());
    for &(name, policy) in Policy::NAMES {
        let costs = SIZES.map(|size| format!("{:>10.0}", least(policy, size)));
        println!("{name:<16}{}", costs.concat());
    }
}

fn least(policy: Policy, size: usize) -> f64 {
    let fleet = fleet(size);
    let (memory, mut rng) = (Arc::default(), Rng::new(1));
    let mut held: VecDeque<InFlight> = VecDeque::new();
    let rounds = (0..ROUNDS).map(|_| round(policy, &fleet, &memory, &mut rng, &mut held));
    rounds.fold(f64::INFINITY, f64::min)
}

fn round(
    policy: Policy,
    fleet: &[Endpoint],
    memory: &Arc<PickMemory>,
    rng: &mut Rng,
    held: &mut VecDeque<InFlight>,
) -> f64 {
    let ring = pick::Ring::new((0..fleet.len() as u64).take(1024));
    let started = Instant::now();
    for number in 0..PICKS {
        let context = pick::Context {
            now: Time::new(Duration::from_millis(1)),
            report_ttl: Duration::from_secs(1),
            memory,
            key: Some(u64::from(number)),
            ring: Some(&ring),
            trace: None,
        };
        let chosen = black_box(pick::pick(policy, black_box(fleet), |_| false, &context, rng));
        if number % 10 == 0
            && let Some(index) = chosen
        {
            held.push_back(fleet[index].0.enter());
            if held.len() > fleet.len()
                && let Some(oldest) = held.pop_front()
            {
                oldest.answered(Duration::from_millis(10), context.now);
            }
        }
    }
    started.elapsed().as_secs_f64() * 1e9 / f64::from(PICKS)
}

/// Endpoints of different speeds that have answered, and have reported what others have there.
fn fleet(size: usize) -> Vec<Endpoint> {
    let mut rng = Rng::new(7);
    let mut endpoint = |_| {
        let load = Arc::new(Load::new(4));
        let took = Duration::from_millis(5 + rng.below(20) as u64);
        for _ in 0..50 {
            load.observe(took, 0, Time::default());
            let in_flight = u32::try_from(rng.below(5)).ok();
            let report =
                Report { in_flight, slots: Some(4), service_time: Some(took), ..Report::default() };
            load.report(&report, Time::default());
        }
        Endpoint(load)
    };
    (0..size).map(&mut endpoint).collect()
}
