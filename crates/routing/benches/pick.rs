//! What a pick costs, by policy and by size of the pool: `cargo bench -p forebay-routing`.
//!
//! Prints nanoseconds a pick: the median of several rounds, since machines are shared. Every
//! tenth pick is counted in and out, so that loads differ and change as they do in a proxy.
#![allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a benchmark prints and measures"
)]

use forebay_routing::{Candidate, InFlight, Load, Policy, Report, Rng, Time, pick};
use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

const SIZES: [usize; 4] = [4, 64, 1024, 10_000];
const ROUNDS: usize = 15;
const PICKS: u32 = 20_000;

struct Endpoint(Arc<Load>);

impl Candidate for Endpoint {
    fn load(&self) -> &Load {
        &self.0
    }
}

fn main() {
    println!("{:<16}{}", "ns a pick", SIZES.map(|n| format!("{n:>10}")).concat());
    for &(name, policy) in Policy::NAMES {
        let costs = SIZES.map(|size| format!("{:>10.0}", median(policy, size)));
        println!("{name:<16}{}", costs.concat());
    }
}

fn median(policy: Policy, size: usize) -> f64 {
    let fleet = fleet(size);
    let (turn, mut rng) = (AtomicUsize::new(0), Rng::new(1));
    let mut held: VecDeque<InFlight> = VecDeque::new();
    let mut rounds: Vec<f64> =
        (0..ROUNDS).map(|_| round(policy, &fleet, &turn, &mut rng, &mut held)).collect();
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}

fn round(
    policy: Policy,
    fleet: &[Endpoint],
    turn: &AtomicUsize,
    rng: &mut Rng,
    held: &mut VecDeque<InFlight>,
) -> f64 {
    let started = Instant::now();
    for number in 0..PICKS {
        let context = pick::Context {
            now: Time::new(Duration::from_millis(1)),
            report_ttl: Duration::from_secs(1),
            turn,
        };
        let chosen = black_box(pick::pick(policy, black_box(fleet), |_| false, &context, rng));
        if number % 10 == 0
            && let Some(index) = chosen
        {
            held.push_back(fleet[index].0.enter());
            if held.len() > fleet.len() {
                held.pop_front();
            }
        }
    }
    started.elapsed().as_secs_f64() * 1e9 / f64::from(PICKS)
}

/// Endpoints of different speeds that have reported.
fn fleet(size: usize) -> Vec<Endpoint> {
    let mut rng = Rng::new(7);
    let endpoint = |_| {
        let load = Arc::new(Load::new(4));
        let millis = 5 + rng.below(20) as u64;
        let report = Report {
            in_flight: Some(0),
            slots: Some(4),
            service_time: Some(Duration::from_millis(millis)),
            ..Report::default()
        };
        load.report(&report, Time::default());
        Endpoint(load)
    };
    (0..size).map(endpoint).collect()
}
