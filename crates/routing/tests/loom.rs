//! Counters under every order in which threads can meet that a model checker finds: a counter that leaks
//! once in a million times takes a slot for good.
//!
//!     RUSTFLAGS="--cfg loom" cargo test --release -p forebay-routing --test loom --target-dir target/loom
#![cfg(loom)]
#![allow(clippy::unwrap_used, missing_docs, reason = "a test stops at the first surprise")]

use forebay_routing::health::outlier::OutcomeCounts;
use forebay_routing::pick::Context;
use forebay_routing::{Candidate, Load, Outcome, Policy, PoolView, RetryBudget, Time};
use loom::model::Builder;
use loom::thread;
use std::sync::Arc;
use std::time::Duration;

const TTL: Duration = Duration::from_secs(2);

struct Endpoint(Arc<Load>);

impl Candidate for Endpoint {
    fn load(&self) -> &Load {
        &self.0
    }
}

/// Tries every order of `run`'s threads, with so many switches at most where one could go on: all, if
/// `None`.
fn every_order(switches: Option<usize>, run: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = switches;
    builder.check(run);
}

/// Runs this in two more threads, and here.
fn thrice<T: 'static>(run: impl Fn() -> T + Clone + 'static) -> [T; 3] {
    let others = [(); 2].map(|()| thread::spawn(run.clone()));
    let here = run();
    let [one, other] = others.map(|other| other.join().unwrap());
    [here, one, other]
}

#[test]
fn every_request_is_counted_out_however_it_ends() {
    every_order(Some(3), || {
        let load = Arc::new(Load::new(4));
        let shared = Arc::clone(&load);
        let others = thrice(move || {
            let guard = shared.enter();
            let others = guard.others();
            assert!(others < 3 && shared.in_flight() >= 1);
            drop(guard);
            others
        });
        assert!(others.contains(&0), "somebody was the first: {others:?}");
        assert_eq!(load.in_flight(), 0);
    });
}

#[test]
fn what_is_answered_or_fails_is_counted_out_too() {
    every_order(Some(2), || {
        let load = Arc::new(Load::new(4));
        let (answers, fails) = (Arc::clone(&load), Arc::clone(&load));
        let answers = thread::spawn(move || {
            answers.enter().answered(Duration::from_millis(1), Time::default());
        });
        let guard = fails.enter();
        fails.failed(Time::default());
        drop(guard);
        answers.join().unwrap();
        assert_eq!(load.in_flight(), 0);
    });
}

#[test]
fn of_those_that_meet_at_an_endpoint_no_more_stay_than_it_has_room_for() {
    every_order(Some(3), || {
        // One slot and one on its way, as long as the service time is unknown.
        let load = Arc::new(Load::new(1));
        let shared = Arc::clone(&load);
        let stay = thrice(move || {
            let (endpoints, memory) = ([Endpoint(Arc::clone(&shared))], Arc::default());
            let now = Time::default();
            let context = Context {
                now,
                report_ttl: TTL,
                memory: &memory,
                key: None,
                ring: None,
                trace: None,
            };
            let (policy, handoff_delay) = (Policy::RoundRobin, Duration::ZERO);
            let view = PoolView {
                policy,
                endpoints: &endpoints,
                freed: None,
                handoff_delay,
                context,
                time_budget: None,
            };
            view.enter(&shared)
        });
        let stay = stay.iter().flatten().count();
        assert!((1..=2).contains(&stay), "{stay}");
        assert_eq!(load.in_flight() as usize, stay);
    });
}

#[test]
fn no_retry_is_paid_for_twice_and_none_is_lost() {
    every_order(None, || {
        let budget = Arc::new(RetryBudget::for_hedges(0.5));
        // Two retries' worth.
        (0..4).for_each(|_| budget.earn(Time::default()));
        let shared = Arc::clone(&budget);
        let allowed = thrice(move || shared.try_retry(Time::default()));
        assert_eq!(allowed.iter().filter(|allowed| **allowed).count(), 2, "{allowed:?}");
        assert!(!budget.try_retry(Time::default()));
    });
}

#[test]
fn time_earns_a_retry_once() {
    every_order(Some(3), || {
        let budget = Arc::new(RetryBudget::new(0.0, 1.0));
        // The balance is spent.
        (0..10).for_each(|_| assert!(budget.try_retry(Time::default())));
        let shared = Arc::clone(&budget);
        let second = Time::new(Duration::from_secs(1));
        let allowed = thrice(move || shared.try_retry(second));
        let allowed = allowed.iter().filter(|allowed| **allowed).count();
        // A caller that comes while another cashes may go without, but no two cash the same time.
        assert!(allowed <= 1, "{allowed}");
        assert_eq!(allowed + usize::from(budget.try_retry(second)), 1);
    });
}

#[test]
fn no_answer_is_lost_among_failures() {
    every_order(Some(3), || {
        let counts = Arc::new(OutcomeCounts::default());
        let shared = Arc::clone(&counts);
        thrice(move || {
            let _ = shared.note(Outcome::Failed);
            let _ = shared.note(Outcome::Understood);
        });
        assert_eq!(counts.answers(), 3);
    });
}
