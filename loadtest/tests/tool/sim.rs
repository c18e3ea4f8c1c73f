//! The simulator against figures that were had without it, and against itself.

use forebay_loadtest::scenario::{self, Scenario};
use forebay_loadtest::sim::{self, Kind, Setting, engine};
use std::path::Path;

fn shipped(name: &str) -> Scenario {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/sim").join(name);
    Scenario::read(&path).unwrap()
}

fn p99(setting: &Setting, policy: &str) -> f64 {
    let found = engine::run(setting, Kind::named(policy).unwrap());
    found.record.latency.quantile(0.99) * 1e3
}

/// Each line: policy, and its p99 in ms as an independent simulation of the same fleet found it.
fn agrees(scenario: &str, expected: &[(&str, f64)]) {
    let setting = Setting::new(shipped(scenario)).unwrap();
    for (policy, expected) in expected {
        let found = p99(&setting, policy);
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
        let mut scenario = scenario::parse(SHORT).unwrap();
        scenario.seed = seed;
        let setting = Setting::new(scenario).unwrap();
        serde_json::to_string(&sim::run(&setting, Kind::named(policy).unwrap())).unwrap()
    };
    for (policy, _) in Kind::all() {
        assert_eq!(json(5, policy), json(5, policy), "{policy}");
        assert_ne!(json(5, policy), json(6, policy), "{policy}");
    }
}

const SHORT: &str = r#"
    warm_up = "1s"
    [load]
    kind = "open"
    spacing = "poisson"
    [[load.phase]]
    kind = "constant"
    rate = "400/s"
    for = "3s"
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
    [[fleet.endpoint]]
    count = 5
    slots = 2
    service = "exponential:5ms"
    [[fleet.endpoint]]
    slow = 2.0
"#;
