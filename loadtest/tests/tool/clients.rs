//! The clients of requests: spread as the scenario says, independently of everything else that is random.

use crate::harness::{self, Backend, plan, refused, report, steady};
use forebay_loadtest::corpus::Corpus;
use forebay_loadtest::scenario;
use forebay_loadtest::sim::{self, SimPlan, SimPolicy};
use std::collections::BTreeMap;

const DRAWS: u64 = 10_000;

/// Of each request of a run its demand and its client, by the header of this name.
fn drawn(flags: &str, header: &str) -> Vec<(String, Option<String>)> {
    let backend = Backend::slots(1);
    let plan = plan(&format!("{} --model synthetic --demand exponential:5ms {flags}", backend.url));
    let corpus = harness::local(async move { Corpus::make(&plan).await.unwrap() });
    let draw = |index| {
        let request = corpus.draw(index).request();
        let text = |name| request.headers().get(name).map(|it| it.to_str().unwrap().to_owned());
        (text("x-service-demand").unwrap(), text(header))
    };
    (0..DRAWS).map(draw).collect()
}

#[test]
fn requests_are_spread_over_clients_and_ask_for_the_same_as_without() {
    let with = drawn("--rate 1/s --clients 10", "x-client");
    let mut counts = BTreeMap::new();
    for (_, client) in &with {
        *counts.entry(client.clone().unwrap()).or_insert(0) += 1;
    }
    let names: Vec<&str> = counts.keys().map(String::as_str).collect();
    assert_eq!((names.len(), names[0], names[9]), (10, "client-0", "client-9"));
    // Six standard deviations around a thousand.
    assert!(counts.values().all(|count| (820..1180).contains(count)), "{counts:?}, seed 1");
    let without = drawn("--rate 1/s", "x-client");
    assert!(without.iter().all(|(_, client)| client.is_none()));
    let demands = |all: &[(String, _)]| all.iter().map(|it| it.0.clone()).collect::<Vec<_>>();
    assert_eq!(demands(&with), demands(&without));
    assert_eq!(with, drawn("--rate 1/s --clients 10", "x-client"));
    assert_ne!(with, drawn("--rate 1/s --clients 10 --seed 2", "x-client"));
}

#[test]
fn the_header_can_be_named_and_one_that_stands_there_stays() {
    let named = drawn("-c 1 --clients 3 --client-header x-team", "x-team");
    assert!(named.iter().all(|(_, client)| client.as_ref().unwrap().starts_with("client-")));
    let own = drawn("-c 1 --clients 3 -H x-client:archive", "x-client");
    assert!(own.iter().all(|(_, client)| client.as_deref() == Some("archive")));
}

#[test]
fn every_protocol_carries_clients_and_the_report_counts_them() {
    let backend = Backend::slots(4);
    for protocol in ["http/1.1", "h2", "grpc"] {
        let report = report(&format!(
            "{} --model synthetic --protocol {protocol} --clients 1000 --requests 40 -c 2 --for 20s \
             --warm-up 0s",
            backend.url
        ));
        assert_eq!(
            (report.results.ok, report.results.requests),
            (40, 40),
            "{protocol}: {:?}",
            report.results.outcomes
        );
        assert!(report.run.load.ends_with(", 1,000 clients"), "{}", report.run.load);
    }
}

#[test]
fn a_number_or_a_name_that_can_not_be_is_refused_in_words() {
    let told = |flags: &str| refused(&format!("http://127.0.0.1:9 --model m -c 1 {flags}"));
    for (flags, words) in [
        ("--clients 0", "expected 1 to 1000000, found 0"),
        ("--clients 1000001", "expected 1 to 1000000, found 1000001"),
        ("--threads 65", "expected 1 to 64, found 65"),
        ("--zipf 11", "expected 0 to 10, found 11"),
        ("--batch 1,0", "expected 1 to 1000000, found 0"),
        ("--timeout 0s", "expected more than 0, found 0"),
        ("--for 0s", "expected more than 0, found 0"),
    ] {
        let told = told(flags);
        assert!(told.contains(words), "{flags}: {told}");
    }
    assert_eq!(
        told("--clients 2 --client-header x(y"),
        "client_header: expected a header's name, found x(y"
    );
    assert_eq!(
        told("--client-header x-team"),
        "clients: expected their number, to name them in a header, found x-team"
    );
}

#[test]
fn in_a_simulation_clients_matter_where_requests_wait_and_nowhere_else() {
    let report = |rate: &str, clients: u32| {
        let load = steady("poisson", rate, "2s");
        let text = format!(
            "clients = {clients}\nwarm_up = \"0s\"\n{load}\
             [[request]]\nkind = \"http\"\npath = \"/\"\ndeadline = \"10s\"\n\
             demand = \"exponential:10ms\"\n\
             [[request]]\nkind = \"http\"\npath = \"/\"\ndeadline = \"5s\"\n\
             demand = \"exponential:10ms\"\n\
             [sim]\nslots = 1\n[[fleet.endpoint]]\nslots = 1\n"
        );
        let plan = SimPlan::new(scenario::parse(&text).unwrap()).unwrap();
        let report = sim::run(&plan, SimPolicy::named("least_inflight").unwrap());
        assert!(report.run.load.contains(" clients"), "{}", report.run.load);
        (report.results.requests, serde_json::to_string(&report.results.latency).unwrap())
    };
    // One request of 10 ms in a second: no request waits for another.
    assert_eq!(report("1/s", 1), report("1/s", 5));
    // Ten times the capacity fills the queue, which takes turns among clients and drops from the one
    // that has the most in it.
    assert_ne!(report("1k/s", 1).1, report("1k/s", 5).1);
}
