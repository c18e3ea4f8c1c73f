//! Whole rollouts: the controller that the proxy runs, on a virtual clock.

use super::case::{Bound, Case};
use super::noise::{drift, normal, poisson};
use forebay_rollout::Arm;
use forebay_rollout::controller::{OnInconclusive, Outcome, Plan, Rollout};
use forebay_rollout::evidence::{Observation, Terms};
use forebay_routing::Rng;

/// A canary and its circumstances.
#[derive(Debug, Clone, Copy)]
struct Trial {
    /// Requests a second.
    rate: f64,
    /// Share of failed requests at stable.
    bad: f64,
    /// The canary's share over stable's.
    ratio: f64,
    /// The canary's time over stable's.
    slowdown: f64,
    /// Failed requests in a row, when one fails.
    burst: f64,
    /// Common drift of failures.
    drifts: f64,
}

const EQUAL: Trial =
    Trial { rate: 100.0, bad: 0.01, ratio: 1.0, slowdown: 1.0, burst: 1.0, drifts: 0.0 };

fn plan() -> Plan {
    Plan {
        steps: vec![10, 50, 250, 500],
        step_min: 60.0,
        max_duration: 3600.0,
        watch: 60.0,
        on_inconclusive: OnInconclusive::RollBack,
    }
}

/// The outcome of one rollout and the number of requests until then.
fn run(rng: &mut Rng, trial: &Trial) -> (Outcome, f64) {
    let mut rollout = Rollout::new(plan(), Terms::default());
    let (phase, mut requests, mut second) = (rng.share(), 0.0, 0.0);
    // Failed requests that are still to come, of each variant.
    let mut burst = [0.0_f64; 2];
    loop {
        let arrivals = poisson(rng, trial.rate);
        let weight = f64::from(rollout.weight()) / 1000.0;
        let common = drift(second, trial.drifts, phase);
        for number in 0..arrivals as u32 {
            let now = second + f64::from(number) / arrivals;
            let is_canarys = rng.share() < weight;
            let arm = usize::from(is_canarys);
            let bad = trial.bad * common * if is_canarys { trial.ratio } else { 1.0 };
            if burst[arm] < 1.0 && rng.share() < bad / trial.burst {
                burst[arm] = trial.burst;
            }
            let failed = burst[arm] >= 1.0;
            burst[arm] -= f64::from(u8::from(failed));
            let slowdown = if is_canarys { trial.slowdown } else { 1.0 };
            let took = 0.02 * (0.6 * normal(rng)).exp() * slowdown;
            let arm = if is_canarys { Arm::Canary } else { Arm::Stable };
            let took = Some(took);
            rollout.add(now, &Observation { arm, weight, group: None, failed, took });
        }
        requests += arrivals;
        second += 1.0;
        rollout.look(second);
        if let Some(outcome) = rollout.outcome() {
            return (outcome, requests);
        }
    }
}

pub(super) fn cases() -> Vec<Case> {
    let rolled_back = |name: &str, bound: Bound, trial: Trial| {
        Case::new(format!("rollout: {name}"), bound, move |rng| {
            let (outcome, requests) = run(rng, &trial);
            (outcome == Outcome::RolledBack).then_some(requests)
        })
        .of_fewer(0.1)
    };
    let promoted = |name: &str, bound: Bound, trial: Trial| {
        Case::new(format!("rollout: {name}"), bound, move |rng| {
            let (outcome, requests) = run(rng, &trial);
            (outcome == Outcome::Promoted).then_some(requests)
        })
        .of_fewer(0.1)
    };
    vec![
        rolled_back("equal canary rolled back", Bound::False, EQUAL),
        rolled_back(
            "equal canary rolled back, failures in bursts of 5, drift",
            Bound::False,
            Trial { burst: 5.0, drifts: 0.6, ..EQUAL },
        ),
        rolled_back(
            "equal canary rolled back, failures in bursts of 20",
            Bound::False,
            Trial { burst: 20.0, bad: 0.02, ..EQUAL },
        ),
        promoted("equal canary promoted", Bound::Power(0.95), EQUAL),
        promoted(
            "equal canary without failures promoted",
            Bound::Power(0.95),
            Trial { bad: 0.0, ..EQUAL },
        ),
        promoted(
            "canary that fails 3 times as often promoted",
            Bound::False,
            Trial { ratio: 3.0, ..EQUAL },
        ),
        rolled_back(
            "canary that fails 5 times as often rolled back",
            Bound::Power(0.99),
            Trial { ratio: 5.0, ..EQUAL },
        ),
        rolled_back(
            "canary with 5 % failures beside none rolled back",
            Bound::Power(0.99),
            Trial { bad: 1e-4, ratio: 500.0, ..EQUAL },
        ),
        rolled_back(
            "canary 2 times as slow rolled back",
            Bound::Power(0.99),
            Trial { slowdown: 2.0, ..EQUAL },
        ),
    ]
}
