//! Each test by itself, and the controls.

use super::case::{ALPHA, Bound, Case};
use super::noise::{Clients, drift, normal, poisson, until_bad};
use forebay_rollout::blocks::{Block, BlockTest};
use forebay_rollout::count::CountTest;
use forebay_rollout::groups::GroupTest;
use forebay_rollout::pairs::PairTest;
use forebay_routing::Rng;

/// Share of bad requests at stable.
const BAD: f64 = 0.01;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.extend(counts());
    cases.extend(blocks());
    cases.extend(groups());
    cases.extend(pairs());
    cases.extend(controls());
    cases
}

/// Bad events one by one until the test rejects: requests until then.
fn count(
    rng: &mut Rng,
    mut test: CountTest,
    (weight, ratio): (f64, f64),
    events: u32,
) -> Option<f64> {
    let share = weight * ratio / (weight * ratio + 1.0 - weight);
    let bad = BAD * (weight * ratio + 1.0 - weight);
    let mut requests = 0.0;
    for _ in 0..events {
        requests += until_bad(rng, bad);
        test.add(rng.share() < share, weight);
        if test.rejects(ALPHA, 1.0) {
            return Some(requests);
        }
    }
    None
}

fn counts() -> Vec<Case> {
    let mut cases = Vec::new();
    for weight in [0.01, 0.05, 0.1, 0.5] {
        let name = format!("count test, equal canary, weight {weight}, 2,000 events");
        cases.push(Case::new(name, Bound::False, move |rng| {
            count(rng, CountTest::worse_than(1.0), (weight, 1.0), 2000)
        }));
    }
    cases.push(Case::new(
        "count test, equal canary, weight that changes with each event",
        Bound::False,
        |rng| {
            let mut test = CountTest::worse_than(1.0);
            (0..2000).find_map(|event| {
                let weight = 0.01 + 0.9 * rng.share();
                test.add(rng.share() < weight, weight);
                test.rejects(ALPHA, 1.0).then_some(f64::from(event))
            })
        },
    ));
    for ratio in [1.5, 2.0, 3.0] {
        let name = format!("promotion test, canary exactly {ratio} times as bad");
        cases.push(Case::new(name, Bound::False, move |rng| {
            count(rng, CountTest::better_than(ratio), (0.1, ratio), 2000)
        }));
    }
    for (ratio, most) in [(1.5, 40e3), (2.0, 12e3), (5.0, 1.3e3), (10.0, 450.0)] {
        let name = format!("count test, canary {ratio} times as bad as 1 %, weight 0.1");
        cases.push(Case::new(name, Bound::Median(most), move |rng| {
            count(rng, CountTest::worse_than(1.0), (0.1, ratio), 100_000)
        }));
    }
    for (weight, most) in [(0.05, 22e3), (0.5, 4.5e3)] {
        let name = format!("count test, canary 2 times as bad as 1 %, weight {weight}");
        cases.push(Case::new(name, Bound::Median(most), move |rng| {
            count(rng, CountTest::worse_than(1.0), (weight, 2.0), 100_000)
        }));
    }
    for (refused, most) in [(1.5, 40e3), (2.0, 12e3), (3.0, 3.5e3)] {
        let name =
            format!("promotion test against {refused} times as bad, equal canary, weight 0.1");
        cases.push(Case::new(name, Bound::Median(most), move |rng| {
            count(rng, CountTest::better_than(refused), (0.1, 1.0), 100_000)
        }));
    }
    cases
}

/// Blocks of 2,000 requests at a weight of 0.1; bad requests come in bursts of this size.
fn block_run(rng: &mut Rng, (ratio, burst): (f64, f64), drifts: f64, is_fine: bool) -> Option<f64> {
    const WEIGHT: f64 = 0.1;
    const REQUESTS: f64 = 2000.0;
    let (mut test, phase) = (BlockTest::default(), rng.share());
    for number in 0..360 {
        let bad = BAD * drift(f64::from(number) * 10.0, drifts, phase);
        let mut block = Block::default();
        for (is_canarys, share, ratio) in [(true, WEIGHT, ratio), (false, 1.0 - WEIGHT, 1.0)] {
            let requests = (REQUESTS * share).round();
            let found = burst * poisson(rng, requests * bad * ratio / burst);
            block.add_many(is_canarys, requests, found.min(requests), WEIGHT);
        }
        test.add(&block);
        let is_over = match is_fine {
            true => test.upper(ALPHA).is_some_and(|upper| upper < 0.005),
            false => test.lower(ALPHA).is_some_and(|lower| lower > 0.0),
        };
        if is_over {
            return Some(f64::from(number + 1) * REQUESTS);
        }
    }
    None
}

fn blocks() -> Vec<Case> {
    let mut cases = Vec::new();
    for (burst, drifts) in [(1.0, 0.0), (5.0, 0.0), (20.0, 0.0), (1.0, 0.6), (5.0, 0.6)] {
        let name = format!("blocks, equal canary, one hour, bursts of {burst}, drift {drifts}");
        cases.push(Case::new(name, Bound::False, move |rng| {
            block_run(rng, (1.0, burst), drifts, false)
        }));
    }
    for burst in [1.0, 5.0] {
        let name = format!("blocks, promotion of a canary at the margin, bursts of {burst}");
        cases.push(Case::new(name, Bound::False, move |rng| {
            block_run(rng, (1.5, burst), 0.0, true)
        }));
    }
    for (burst, most) in [(1.0, 48e3), (5.0, 160e3)] {
        let name = format!("blocks, canary 2 times as bad, bursts of {burst}");
        cases.push(Case::new(name, Bound::Median(most), move |rng| {
            block_run(rng, (2.0, burst), 0.0, false)
        }));
    }
    cases
}

/// Requests of clients that stay at their variant. `harm`: factor of the canary's bad requests.
fn sticky(rng: &mut Rng, clients: usize, harm: f64) -> GroupTest {
    let clients = Clients::new(rng, clients, BAD);
    let mut test = GroupTest::default();
    for _ in 0..100_000 {
        let client = clients.draw(rng);
        let group = clients.group[client];
        let is_canarys = group < 100;
        let bad = clients.bad[client] * if is_canarys { harm } else { 1.0 };
        test.add(is_canarys, rng.share() < bad, group);
    }
    test
}

fn groups() -> Vec<Case> {
    let worse = |rng: &mut Rng, clients, harm| {
        let bounds = sticky(rng, clients, harm).bounds(ALPHA);
        bounds.filter(|(lower, _)| *lower > 0.0).map(|_| 100_000.0)
    };
    let mut cases: Vec<_> = [50, 500, 5000]
        .into_iter()
        .map(|clients| {
            let name = format!("groups, equal canary, sticky, {clients} clients that differ");
            Case::new(name, Bound::False, move |rng| worse(rng, clients, 1.0)).of_fewer(0.5)
        })
        .collect();
    cases.push(
        Case::new(
            "groups, canary 5 times as bad, sticky, 5,000 clients that differ",
            Bound::Power(0.5),
            move |rng| worse(rng, 5000, 5.0),
        )
        .of_fewer(0.2),
    );
    cases
}

fn pairs() -> Vec<Case> {
    let pairs = |rng: &mut Rng, differ: f64, is_fine: bool| {
        let mut test = PairTest::new(0.01);
        (1..=50_000).find_map(|pair| {
            test.add(if rng.share() < differ { 1.0 } else { 0.0 }, (0.0, 0.0));
            let is_over = if is_fine { test.is_fine(ALPHA) } else { test.differs(ALPHA) };
            is_over.then_some(f64::from(pair))
        })
    };
    let mut cases = Vec::new();
    for (differ, most) in [(0.0, 480.0), (0.003, 900.0), (0.005, 2300.0)] {
        let name = format!("outputs, {} % differ, 1 % allowed: fine", differ * 100.0);
        cases.push(Case::new(name, Bound::Median(most), move |rng| pairs(rng, differ, true)));
    }
    for (differ, most) in [(0.02, 1000.0), (0.05, 110.0), (0.2, 12.0)] {
        let name = format!("outputs, {} % differ, 1 % allowed: refused", differ * 100.0);
        cases.push(Case::new(name, Bound::Median(most), move |rng| pairs(rng, differ, false)));
    }
    for is_fine in [true, false] {
        let word = if is_fine { "fine" } else { "refused" };
        let name = format!("outputs, exactly as many differ as are allowed: {word}");
        let case = Case::new(name, Bound::False, move |rng| pairs(rng, 0.01, is_fine));
        cases.push(case.of_fewer(0.5));
    }
    cases
}

/// Tests that are known to be wrong in their cases.
fn controls() -> Vec<Case> {
    let mut cases = vec![Case::new(
        "control: z test every 1,000 of 100,000 requests, equal canary",
        Bound::Blind(0.15),
        |rng| {
            let (mut difference, mut variance) = (0.0, 0.0);
            (1..=100).find_map(|look| {
                let step = BAD * (1.0 - BAD) * 1000.0 / 9.0 * 10.0;
                difference += step.sqrt() * normal(rng);
                variance += step;
                (difference / f64::sqrt(variance) > 1.645).then_some(f64::from(look) * 1000.0)
            })
        },
    )];
    for burst in [2_u32, 5, 20] {
        let name = format!("control: count test on bursts of {burst}, equal canary");
        cases.push(Case::new(name, Bound::Blind(0.15), move |rng| {
            let mut test = CountTest::worse_than(1.0);
            (0..2000 / burst).find_map(|number| {
                let is_canarys = rng.share() < 0.1;
                (0..burst).for_each(|_| test.add(is_canarys, 0.1));
                test.rejects(ALPHA, 1.0).then_some(f64::from(number))
            })
        }));
    }
    for clients in [50, 500, 5000] {
        let name = format!("control: count test on {clients} sticky clients that differ");
        let control = Case::new(name, Bound::Blind(0.15), move |rng| {
            let clients = Clients::new(rng, clients, BAD);
            let mut test = CountTest::worse_than(1.0);
            (0..100_000).find_map(|request| {
                let client = clients.draw(rng);
                let is_canarys = clients.group[client] < 100;
                if rng.share() < clients.bad[client] {
                    test.add(is_canarys, 0.1);
                }
                test.rejects(ALPHA, 1.0).then_some(f64::from(request))
            })
        });
        cases.push(control.of_fewer(0.5));
    }
    cases
}
