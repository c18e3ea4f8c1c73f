//! Ejection by answers, by shares and by latency, and the way back.

use super::*;

const RULES: Ejection = Ejection {
    consecutive_failures: 5,
    interval: Duration::from_secs(2),
    min_requests: 20,
    success_rate: 0.8,
    latency_factor: Some(3.0),
    base_time: Duration::from_secs(3),
    max_time: Duration::from_secs(60),
    max_share: 0.5,
    panic_below: 0.5,
};

fn at(millis: u64) -> Time {
    Time::new(Duration::from_millis(millis))
}

struct Fleet {
    rules: Ejection,
    detector: OutlierDetector,
    counts: Vec<OutcomeCounts>,
    histories: Vec<EjectionHistory>,
    probed: Vec<Health>,
    draining: Vec<bool>,
}

impl Fleet {
    fn new(n: usize) -> Self {
        let mut fleet = Self {
            rules: RULES,
            detector: OutlierDetector::default(),
            counts: (0..n).map(|_| OutcomeCounts::default()).collect(),
            histories: vec![EjectionHistory::default(); n],
            probed: vec![Health::Ready; n],
            draining: vec![false; n],
        };
        assert_eq!(fleet.evaluate(0), []);
        fleet
    }

    fn evaluate(&mut self, millis: u64) -> Vec<(usize, Verdict)> {
        let histories = self.histories.iter_mut().zip(&self.counts);
        let mut members: Vec<_> = histories
            .zip(self.probed.iter().zip(&self.draining))
            .map(|((history, counts), (&probed, &draining))| Member {
                counts,
                history,
                probed,
                draining,
            })
            .collect();
        self.detector.evaluate(&self.rules, &mut members, at(millis))
    }

    /// Whether any of them had the endpoint looked at.
    fn ends(&self, index: usize, outcome: Outcome, times: usize) -> bool {
        (0..times).filter(|_| self.counts[index].note(outcome)).count() > 0
    }

    fn answers(&self, index: usize, millis: u64, times: usize) {
        self.ends(index, Outcome::Answered(Duration::from_millis(millis)), times);
    }
}

const OUT: Verdict = Verdict::Ejected(Cause::ConsecutiveFailures);

#[test]
fn failures_in_a_row_take_an_endpoint_out_at_once() {
    let mut fleet = Fleet::new(3);
    assert!(!fleet.ends(1, Outcome::Failed, 4));
    fleet.answers(1, 1, 1);
    assert!(!fleet.ends(1, Outcome::Failed, 4), "an answer between starts the count again");
    assert_eq!(fleet.evaluate(10), []);
    assert!(fleet.ends(1, Outcome::Failed, 1), "the fifth failure wakes the judge");
    assert_eq!(fleet.evaluate(11), [(1, OUT)]);
    assert_eq!(fleet.histories[1].out(), Some((Cause::ConsecutiveFailures, at(3011))));
    assert_eq!(fleet.evaluate(3010), []);
    assert_eq!(fleet.evaluate(3011), [(1, Verdict::Returned)]);
}

#[test]
fn what_is_not_the_endpoints_fault_never_counts() {
    let mut fleet = Fleet::new(2);
    assert!(!fleet.ends(0, Outcome::Understood, 100));
    assert!(!fleet.ends(0, Outcome::Busy, 100));
    fleet.answers(1, 1, 100);
    assert_eq!(fleet.evaluate(2500), []);
}

#[test]
fn who_comes_back_is_on_trial_and_goes_for_longer_each_time() {
    let mut fleet = Fleet::new(2);
    fleet.ends(0, Outcome::Failed, 5);
    assert_eq!(fleet.evaluate(0), [(0, OUT)]);
    let mut now = 0;
    for (time, sign) in [(3000, Outcome::Busy), (6000, Outcome::Failed), (12_000, Outcome::Busy)] {
        now += time;
        assert_eq!(fleet.evaluate(now), [(0, Verdict::Returned)]);
        assert!(fleet.ends(0, sign, 1), "one is enough, even the word that it is busy");
        assert_eq!(fleet.evaluate(now), [(0, Verdict::Ejected(Cause::Recovery))]);
    }
    assert_eq!(fleet.histories[0].out(), Some((Cause::Recovery, at(now + 24_000))));
    for _ in 0..20 {
        fleet.histories[0].eject(Cause::Recovery, &RULES, at(now));
    }
    assert_eq!(fleet.histories[0].out(), Some((Cause::Recovery, at(now + 60_000))), "at most");
}

#[test]
fn good_behaviour_shortens_the_next_time_out() {
    let mut fleet = Fleet::new(2);
    fleet.histories[0].multiplier = 4;
    let multiplier = |fleet: &mut Fleet, millis| {
        fleet.answers(0, 1, 30);
        fleet.answers(1, 1, 30);
        assert_eq!(fleet.evaluate(millis), []);
        fleet.histories[0].multiplier
    };
    assert_eq!(multiplier(&mut fleet, 2000), 4, "the next time would be 24 s");
    assert_eq!(multiplier(&mut fleet, 4000), 3, "3 s have passed");
    assert_eq!(multiplier(&mut fleet, 6000), 2);
    assert_eq!(multiplier(&mut fleet, 8000), 2);
    assert_eq!(multiplier(&mut fleet, 12_000), 0);
}

#[test]
fn however_often_it_failed_it_is_soon_as_good_as_new() {
    let mut fleet = Fleet::new(2);
    for _ in 0..1000 {
        fleet.histories[0].eject(Cause::Recovery, &RULES, at(0));
    }
    assert_eq!(fleet.histories[0].out(), Some((Cause::Recovery, at(60_000))), "the longest time");
    assert_eq!(fleet.evaluate(60_000), [(0, Verdict::Returned)]);
    let mut now = 60_000;
    while fleet.histories[0].multiplier > 0 {
        now += 2000;
        fleet.answers(0, 1, 30);
        fleet.answers(1, 1, 30);
        assert_eq!(fleet.evaluate(now), []);
    }
    assert!(now <= 82_000, "{now}: 3, 6, 12, 24, 48, 60 and 60 s are seven steps of 3 s");
}

#[test]
fn the_trial_ends_with_a_window_without_failures() {
    let mut fleet = Fleet::new(2);
    fleet.ends(0, Outcome::Failed, 5);
    fleet.evaluate(0);
    fleet.evaluate(3000);
    fleet.answers(0, 1, 1);
    fleet.evaluate(5000);
    assert!(!fleet.ends(0, Outcome::Busy, 9) && !fleet.ends(0, Outcome::Failed, 4));
    assert_eq!(fleet.evaluate(5001), []);
}

#[test]
fn at_most_a_share_of_the_pool_is_out_and_one_always_stays() {
    for (n, most) in [(1, 0), (2, 1), (3, 1), (4, 2), (9, 4)] {
        let mut fleet = Fleet::new(n);
        for index in 0..n {
            fleet.ends(index, Outcome::Failed, 5);
        }
        let verdicts = fleet.evaluate(1);
        let out = verdicts.iter().filter(|(_, verdict)| *verdict == OUT).count();
        let spared = Verdict::Spared(Cause::ConsecutiveFailures);
        assert_eq!(out, most, "{n}");
        assert_eq!(verdicts.iter().filter(|(_, v)| *v == spared).count(), n - most, "{n}");
    }
    let mut fleet = Fleet::new(4);
    fleet.probed[1..].fill(Health::Down);
    fleet.ends(0, Outcome::Failed, 5);
    let spared = [(0, Verdict::Spared(Cause::ConsecutiveFailures))];
    assert_eq!(fleet.evaluate(1), spared, "the last one in rotation");
    fleet.probed[1] = Health::Ready;
    fleet.draining[1] = true;
    fleet.ends(0, Outcome::Failed, 5);
    assert_eq!(fleet.evaluate(2), spared, "one that drains is no help");
}

#[test]
fn a_low_share_of_answers_counts_only_against_the_rest_of_the_pool() {
    let window = |shares: &[usize]| {
        let mut fleet = Fleet::new(shares.len());
        for (index, &well) in shares.iter().enumerate() {
            for number in 0..30 {
                // Spread, so that no run of failures is long enough by itself.
                let good = number * well / 30 != (number + 1) * well / 30;
                let outcome = if good { Outcome::Understood } else { Outcome::Failed };
                fleet.ends(index, outcome, 1);
            }
        }
        fleet.evaluate(2000)
    };
    let bad = Verdict::Ejected(Cause::SuccessRate);
    assert_eq!(window(&[30, 20, 30]), [(1, bad)]);
    assert_eq!(window(&[30, 20]), [(1, bad)], "of two, the better one is the measure");
    assert_eq!(window(&[20, 20, 20]), [], "requests that fail everywhere are to blame");
    assert_eq!(window(&[30, 25, 30]), []);
}

#[test]
fn too_few_requests_say_nothing() {
    let mut fleet = Fleet::new(2);
    fleet.answers(0, 1, 30);
    fleet.answers(1, 100, 19);
    assert_eq!(fleet.evaluate(2000), []);
}

#[test]
fn one_that_answers_much_later_than_the_others_is_out() {
    let mut fleet = Fleet::new(3);
    for (index, millis) in [(0, 10), (1, 31), (2, 10)] {
        fleet.answers(index, millis, 20);
    }
    assert_eq!(fleet.evaluate(2000), [(1, Verdict::Ejected(Cause::Latency))]);
}

#[test]
fn one_that_flaps_changes_rotation_once_in_a_back_off() {
    // Its probes fail for a second and succeed for a second, for ten minutes.
    let mut fleet = Fleet::new(3);
    let mut changes = Vec::new();
    let mut was_in = true;
    for tick in 0..6000 {
        let now = tick * 100;
        let well = (now / 1000) % 2 == 0;
        if !well && fleet.probed[0] == Health::Ready && was_in {
            fleet.histories[0].probe_failed(&RULES, at(now));
        }
        fleet.probed[0] = if well { Health::Ready } else { Health::Down };
        fleet.evaluate(now);
        let is_in = well && fleet.histories[0].out().is_none();
        if is_in != was_in {
            changes.push((now, is_in));
        }
        was_in = is_in;
    }
    let returns: Vec<_> = changes.iter().filter(|(_, is_in)| *is_in).collect();
    for pair in returns.windows(2).skip(1) {
        assert!(pair[1].0 - pair[0].0 >= 3000, "{returns:?}");
    }
    assert!(returns.len() <= 18, "{} returns in ten minutes", returns.len());
    let gap = |pair: &[&(u64, bool)]| pair[1].0 - pair[0].0;
    assert!(returns.windows(2).last().is_some_and(|pair| gap(pair) >= 60_000), "{returns:?}");
}

#[test]
fn one_restart_holds_no_endpoint_back() {
    let mut history = EjectionHistory::default();
    assert_eq!(history.probe_failed(&RULES, at(0)), None);
    assert_eq!(history.out(), None);
    assert_eq!(history.probe_failed(&RULES, at(2000)), Some(Cause::Flapping));
    assert_eq!(history.out(), Some((Cause::Flapping, at(5000))));
}

#[test]
fn switching_ejection_off_brings_all_of_them_back() {
    let mut fleet = Fleet::new(2);
    fleet.ends(0, Outcome::Failed, 5);
    assert_eq!(fleet.evaluate(0), [(0, OUT)]);
    fleet.rules.max_share = 0.0;
    assert_eq!(fleet.evaluate(1), [(0, Verdict::Returned)]);
    fleet.ends(0, Outcome::Failed, 50);
    assert_eq!(fleet.evaluate(2), []);
}

#[test]
fn with_fewer_than_half_in_rotation_all_are_used() {
    let cases = [(2, 4, false), (1, 4, true), (0, 2, true), (1, 1, false), (0, 1, true)];
    for (ready, all, expected) in cases {
        assert_eq!(panics(ready, all, 0.5), expected, "{ready} of {all}");
    }
    assert!(!panics(0, 4, 0.0), "0 switches it off");
}

#[test]
fn what_is_slow_while_it_answers_others_is_judged_by_its_share_alone() {
    let mut fleet = Fleet::new(3);
    let answered = fleet.counts[1].answers();
    assert!(!fleet.ends(1, Outcome::Late, 20));
    assert_eq!(fleet.counts[1].answers(), answered, "none of them is an answer");
    assert_eq!(fleet.evaluate(10), [], "no failures in a row");
    // All are equally bad: none is at fault.
    for index in 0..3 {
        fleet.answers(index, 1, 20);
        fleet.ends(index, Outcome::Late, 20);
    }
    assert_eq!(fleet.evaluate(2000), []);
    for index in 0..3 {
        fleet.answers(index, 1, 20);
    }
    fleet.ends(2, Outcome::Late, 20);
    assert_eq!(fleet.evaluate(4000), [(2, Verdict::Ejected(Cause::SuccessRate))]);
    assert_eq!(fleet.evaluate(7001), [(2, Verdict::Returned)]);
    assert!(fleet.ends(2, Outcome::Late, 1), "on trial it counts");
    assert_eq!(fleet.evaluate(7002), [(2, Verdict::Ejected(Cause::Recovery))]);
}
