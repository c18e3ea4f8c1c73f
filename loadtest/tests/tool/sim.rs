//! The simulator against figures that were had without it, and against itself.

use crate::harness;
use forebay_loadtest::scenario::{self, Scenario};
use forebay_loadtest::sim::{self, SimPlan, SimPolicy, engine};
use std::path::Path;

fn shipped(name: &str) -> Scenario {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/sim").join(name);
    Scenario::read(&path).unwrap()
}

fn p99(plan: &SimPlan, policy: &str) -> f64 {
    let found = engine::run(plan, SimPolicy::named(policy).unwrap());
    found.record.latency.quantile(0.99) * 1e3
}

/// Each line: policy, and its p99 in ms as an independent simulation of the same fleet found it.
fn agrees(scenario: &str, expected: &[(&str, f64)]) {
    let mut scenario_file = shipped(scenario);
    // Nothing is held back there; a proxy that is told of more slots than requests holds nothing back here.
    scenario_file.simulated.sim.reports.in_band = false;
    scenario_file.simulated.sim.slots = 100_000;
    let plan = SimPlan::new(scenario_file).unwrap();
    for (policy, expected) in expected {
        let found = p99(&plan, policy);
        let error = found / expected - 1.0;
        assert!(error.abs() <= 0.03, "{scenario}, {policy}: {found:.1} ms, not {expected}");
    }
}

#[test]
fn figures_agree_with_an_independent_simulation_at_three_quarters_of_the_capacity() {
    agrees(
        "tail75.toml",
        &[
            ("nginx_least_conn", 155.0),
            ("p2c", 172.0),
            ("central_queue", 134.5),
            ("known_means", 99.7),
            ("oracle", 95.4),
        ],
    );
}

#[test]
fn figures_agree_with_an_independent_simulation_near_the_capacity() {
    agrees(
        "tail90.toml",
        &[
            ("nginx_least_conn", 193.0),
            ("central_queue", 153.0),
            ("known_means", 141.0),
            ("oracle", 118.0),
        ],
    );
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_seed_others() {
    let json = |seed, policy: &str| {
        let load = harness::steady("poisson", "400/s", "3s");
        let mut scenario = scenario::parse(&format!("warm_up = \"1s\"\n{load}{VARIED}")).unwrap();
        scenario.general.seed = seed;
        let plan = SimPlan::new(scenario).unwrap();
        serde_json::to_string(&sim::run(&plan, SimPolicy::named(policy).unwrap())).unwrap()
    };
    for (policy, _) in SimPolicy::all() {
        assert_eq!(json(5, policy), json(5, policy), "{policy}");
        assert_ne!(json(5, policy), json(6, policy), "{policy}");
    }
}

/// The rest of a scenario after its load, with a bit of everything.
const VARIED: &str = r#"
    [[request]]
    kind = "http"
    path = "/"
    demand = "lognormal:20ms:1.0"
    [[request]]
    kind = "http"
    path = "/small"
    [sim]
    proxies = 3
    round_trip = "1ms"
    [sim.reports]
    every = "50ms"
    delay = "10ms"
    [sim.hedge]
    budget = "10%"
    [[fleet.endpoint]]
    count = 5
    slots = 2
    service = "exponential:5ms"
    [[fleet.endpoint]]
    slow = 2.0
"#;

/// A fleet under a steady load for ten seconds after one of warm-up, and what else the text says.
fn fleet(rate: &str, rest: &str) -> SimPlan {
    let load = harness::steady("poisson", rate, "10s");
    let text = format!(
        r#"
        warm_up = "1s"
        {load}
        [[request]]
        kind = "http"
        path = "/"
        demand = "exponential:10ms"
        {rest}
        "#
    );
    SimPlan::new(scenario::parse(&text).unwrap()).unwrap()
}

fn simulated(plan: &SimPlan, policy: &str) -> sim::SimResult {
    engine::run(plan, SimPolicy::named(policy).unwrap())
}

const FOUR: &str = "[[fleet.endpoint]]\ncount = 4\nslots = 4\n";

fn fault(rest: &str) -> String {
    format!("{FOUR}[[fleet.fault]]\nat = \"3s\"\nfor = \"3s\"\nendpoints = [1]\n{rest}")
}

#[test]
fn every_scenario_of_the_simulator_can_be_simulated() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/sim");
    let mut found = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        SimPlan::new(Scenario::read(&entry.unwrap().path()).unwrap()).unwrap();
        found += 1;
    }
    assert!(found >= 8, "{found}");
}

#[test]
fn a_killed_endpoint_costs_retries_and_no_errors() {
    // Enough for each of the four to be needed.
    let plan = fleet("1000/s", &fault("kind = \"down\""));
    for policy in ["adaptive", "nginx_least_conn"] {
        let found = simulated(&plan, policy);
        assert_eq!(found.record.error_share(), 0.0, "{policy}");
        let impact = found.faults[0].summary();
        assert!(impact.share_before > 0.2 && impact.share_later < 0.02, "{policy}: {impact:?}");
        assert!(impact.back_after.is_some_and(|after| after < 2.5), "{policy}: {impact:?}");
    }
}

#[test]
fn a_lost_request_is_an_error_where_retries_are_off() {
    let plan = fleet("500/s", &fault("kind = \"down\"\n[sim.retry]\nattempts = 1"));
    let found = simulated(&plan, "nginx_least_conn");
    let classes: Vec<String> = found.record.outcomes.keys().map(|o| o.class()).collect();
    assert!(classes.iter().any(|class| class == "502 endpoint_reset"), "{classes:?}");
    assert!(classes.iter().any(|class| class == "503 connect_failed"), "{classes:?}");
}

#[test]
fn an_endpoint_that_becomes_slow_moves_the_ends_of_its_services() {
    let plan = fleet("500/s", &fault("kind = \"slow\"\nfactor = 10.0"));
    let found = simulated(&plan, "oracle");
    let impact = found.faults[0].summary();
    assert_eq!(found.record.error_share(), 0.0);
    assert!(impact.left_after.is_some_and(|after| after < 0.5), "{impact:?}");
    assert!(impact.p99_during < impact.p99_before * 2.0, "{impact:?}");
    let blind = simulated(&plan, "round_robin").faults[0].summary();
    assert!(blind.p99_during > blind.p99_before * 3.0, "{blind:?}");
}

#[test]
fn an_endpoint_that_fails_fast_attracts_policies_that_count_requests() {
    let rest = fault("kind = \"sinkhole\"\nafter = \"1ms\"");
    let plan = fleet("1000/s", &format!("{rest}\n[sim.retry]\nattempts = 1"));
    let blind = simulated(&plan, "nginx_least_conn").faults[0].summary();
    assert!(blind.share_later > 0.3 && blind.errors_during > 0.3, "{blind:?}");
    let least_cost = simulated(&plan, "least_cost").faults[0].summary();
    assert!(least_cost.share_later < blind.share_later / 4.0, "{least_cost:?}");
}

#[test]
fn an_endpoint_that_fails_fast_is_ejected_by_the_proxy_and_by_no_peer() {
    let rest = fault("kind = \"sinkhole\"\nafter = \"1ms\"");
    let plan = fleet("1000/s", &rest);
    for policy in ["random", "round_robin"] {
        let found = simulated(&plan, policy);
        let impact = found.faults[0].summary();
        assert!(found.taken_out > 0, "{policy}: never ejected");
        assert!(impact.share_later < 0.01, "{policy}: {impact:?}");
        assert_eq!(found.record.error_share(), 0.0, "{policy}: retries cover for it");
    }
    assert_eq!(simulated(&plan, "nginx_least_conn").taken_out, 0);
    let plan = fleet("1000/s", &format!("{rest}\n[sim.ejection]\nmax_share = \"0%\""));
    let found = simulated(&plan, "round_robin");
    assert_eq!(found.taken_out, 0, "switched off");
    assert!(found.faults[0].summary().share_later > 0.2);
}

#[test]
fn an_attempt_that_takes_longer_than_one_may_is_made_elsewhere() {
    let stalls = fault("kind = \"slow\"\nfactor = 1000.0");
    let worst = |sim: &str| {
        let found = simulated(&fleet("200/s", &format!("{stalls}\n{sim}")), "round_robin");
        assert_eq!(found.record.error_share(), 0.0, "{sim}");
        found.record.latency.max()
    };
    let without = worst("[sim.ejection]\nmax_share = \"0%\"\n[sim.retry]\nbudget = \"100%\"\n");
    let with = worst(
        "[sim.ejection]\nmax_share = \"0%\"\n[sim.retry]\nbudget = \"100%\"\nattempt_timeout = \"200ms\"\n",
    );
    assert!(with < 0.6 && without > 1.0, "{with} with, {without} without");
}

#[test]
fn nothing_is_answered_after_its_deadline_and_overload_is_accounted_for() {
    let phases = "deadline = \"100ms\"\n[[load.phase]]\nkind = \"constant\"\nrate = \"4000/s\"\n\
                  for = \"3s\"\n[[load.phase]]\nkind = \"constant\"\nrate = \"100/s\"\nfor = \"3s\"\n";
    let plan = fleet("500/s", &format!("{phases}{FOUR}"));
    assert_eq!(plan.capacity().round(), 1600.0);
    let found = simulated(&plan, "central_queue");
    assert!(found.record.latency.max() <= 0.1 + 1e-3, "{}", found.record.latency.max());
    let overload = found.overload.unwrap().summary();
    assert!(overload.errors_during > 0.5, "{overload:?}");
    assert!(overload.goodput > 100.0 && overload.goodput < 1650.0, "{overload:?}");
    assert!(overload.recovered_after < 0.5, "{overload:?}");
}

#[test]
fn batches_are_filled_under_load_and_closed_in_time_without() {
    let batch = "service = \"constant:0ms\"\n[fleet.endpoint.batch]
max_size = 8\nbase = \"4ms\"\n\
                 each = \"1ms\"\nwait = \"2ms\"\n";
    let rest = format!("[[fleet.endpoint]]\nslots = 1\n{batch}");
    let mut light = fleet("10/s", &rest);
    let mut heavy = fleet("2000/s", &rest);
    for plan in [&mut light, &mut heavy] {
        plan.run.requests[0].demand = None;
    }
    // Alone in its batch: 2 ms until it is closed, 5 ms of service.
    let found = simulated(&light, "least_cost");
    assert!((found.record.latency.quantile(0.5) / 0.007 - 1.0).abs() < 0.01);
    // 8 in 12 ms.
    let found = simulated(&heavy, "least_cost");
    let rate = found.served[0] as f64 / (found.record.last_done.as_secs_f64());
    assert!((rate / 666.7 - 1.0).abs() < 0.02, "{rate}");
    let text = format!("{rest}[sim]\npolicy = \"oracle\"");
    let load = harness::steady("constant", "10/s", "1s");
    let request = "[[request]]\nkind = \"http\"\npath = \"/\"\n";
    let scenario = scenario::parse(&format!("{load}{request}{text}")).unwrap();
    let error = SimPlan::new(scenario).unwrap_err().to_string();
    assert!(error.starts_with("policy: expected"), "{error}");
}

#[test]
fn under_overload_the_least_urgent_is_refused_and_nothing_urgent_is_late() {
    let plan = SimPlan::new(shipped("priorities.toml")).unwrap();
    let found = simulated(&plan, "adaptive");
    let [high, normal, batch] = &found.classes[..] else {
        panic!("{} classes", found.classes.len())
    };
    let [high, normal, batch] = [high, normal, batch].map(|class| class.summary());
    assert_eq!(high.errors_during, 0.0, "{high:?}");
    assert!(high.p99_during < 0.125, "{high:?}");
    assert!(normal.errors_during < 0.01, "{normal:?}");
    assert!(batch.errors_during > 0.6 && batch.goodput > 0.0, "{batch:?}");
}

#[test]
fn a_slow_start_keeps_requests_from_an_endpoint_that_has_just_come() {
    let share = |slow_start: &str| {
        // The second after it is back.
        let back = "[[fleet.fault]]\nkind = \"slow\"\nat = \"7s\"\nfor = \"1s\"\nendpoints = [1]";
        let sim = format!("[sim]\nslow_start = \"{slow_start}\"");
        let plan = fleet("500/s", &fault(&format!("kind = \"down\"\n{back}\n{sim}")));
        simulated(&plan, "round_robin").faults[1].summary().share_first
    };
    let (with, without) = (share("10s"), share("0s"));
    assert!(without > 0.2 && with < without / 2.0, "{with} with, {without} without");
}

#[test]
fn hedges_take_the_tail_of_endpoints_that_stall_and_keep_to_their_budget() {
    let mut plan = SimPlan::new(shipped("hedge.toml")).unwrap();
    let with = simulated(&plan, "adaptive");
    plan.sim.hedge = None;
    let without = simulated(&plan, "adaptive");
    let tail = |found: &sim::SimResult| found.record.latency.quantile(0.999);
    assert!(tail(&with) < 0.5 * tail(&without), "{} with, {}", tail(&with), tail(&without));
    let requests: u64 = without.served.iter().sum();
    assert!(with.hedges > 0 && with.hedges * 20 <= requests, "{} of {requests}", with.hedges);
    assert_eq!((without.hedges, with.record.error_share()), (0, 0.0));
}

#[test]
fn what_waits_at_an_endpoint_that_stands_still_is_sent_elsewhere_and_nothing_is_lost_there() {
    // Enough for each of the four to be needed.
    let plan = fleet("1000/s", &fault("kind = \"silent\""));
    let found = simulated(&plan, "adaptive");
    assert_eq!(found.record.error_share(), 0.0);
    let impact = found.faults[0].summary();
    assert!(impact.share_before > 0.2 && impact.share_later < 0.1, "{impact:?}");
    assert!(impact.back_after.is_some_and(|after| after < 2.5), "{impact:?}");
    // Found out within three seconds, even by what came just before.
    let longest = found.record.latency.max();
    assert!((0.5..=3.0).contains(&longest), "{longest}");
    // Peers leave it there until the endpoint goes on.
    let peer = simulated(&plan, "nginx_least_conn");
    assert_eq!(peer.record.error_share(), 0.0, "it goes on with what it had");
    assert!(peer.record.latency.max() > 2.9, "{}", peer.record.latency.max());
}

#[test]
fn where_all_endpoints_stand_still_they_are_used_all_the_same_and_go_on() {
    // Moving them is paid for as a retry is.
    let rest = fault("kind = \"silent\"\n[sim.retry]\nbudget = \"100%\"\nmin_per_second = 10.0");
    let rest = rest.replace("[1]", "[0, 1, 2, 3]");
    // As many as there are slots; of more the proxy would refuse some, as it can't know when they go on.
    let plan = fleet("5/s", &rest);
    let found = simulated(&plan, "adaptive");
    assert_eq!(found.record.error_share(), 0.0, "{:?}", found.record.outcomes);
    let longest = found.record.latency.max();
    assert!((2.0..3.5).contains(&longest), "{longest}");
}

#[test]
fn a_variant_stands_in_for_what_the_routes_own_endpoints_can_not_do() {
    let own = "[[fleet.endpoint]]\ncount = 2\nslots = 4\n";
    let other = "[[fleet.endpoint]]\npool = \"small\"\nslots = 4\n";
    let fallback = |rest: &str| {
        let deadline = "deadline = \"100ms\"\n";
        fleet("1500/s", &format!("{deadline}{own}{rest}"))
    };
    let without = simulated(&fallback(""), "adaptive");
    assert!(without.record.error_share() > 0.3, "{}", without.record.error_share());
    assert_eq!(without.degraded, 0);
    let plan = fallback(&format!("{other}[[sim.fallback]]\npool = \"small\"\ncost = 0.2\n"));
    assert_eq!(plan.capacity().round(), 800.0, "that of the route's own");
    let with = simulated(&plan, "adaptive");
    // Little time is left to those that have waited for the route's own in vain.
    assert!(with.record.error_share() < 0.01, "{:?}", with.record.outcomes);
    let share = with.degraded as f64 / with.record.total() as f64;
    assert!((0.4..0.65).contains(&share), "{share}");
    // Peers have none.
    assert_eq!(simulated(&plan, "nginx_least_conn").degraded, 0);
    // Another model at the same endpoints is paid for as a retry is.
    let same = simulated(&fallback("[[sim.fallback]]\ncost = 0.1\n"), "adaptive");
    assert!(same.degraded > 0, "never");
    assert!(same.record.error_share() < without.record.error_share(), "{:?}", same.record.outcomes);
}

#[test]
fn a_variant_stands_in_while_all_endpoints_of_the_route_are_down() {
    let fleet_text = "[[fleet.endpoint]]\ncount = 2\nslots = 4\n[[fleet.endpoint]]\npool = \"small\"\nslots = 4\n\
                      [[sim.fallback]]\npool = \"small\"\n[[fleet.fault]]\nkind = \"down\"\nat = \"3s\"\n\
                      for = \"3s\"\nendpoints = [0, 1]\n";
    let plan = fleet("200/s", fleet_text);
    let found = simulated(&plan, "adaptive");
    assert!(found.record.error_share() < 0.001, "{:?}", found.record.outcomes);
    assert!((400..1000).contains(&found.degraded), "{}", found.degraded);
}
