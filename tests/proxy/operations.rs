//! Operators reload, stop and look while clients call.

use crate::client::{Load, get, post};
use crate::endpoint::{Behaviour, Endpoint};
use crate::harness::{ARITH, Proxy, Worker, addresses, eventually, pool_of};
use rustix::process::Signal;
use std::time::Duration;

const ARITH_INFER: &str = "/v2/models/arith/infer";

#[tokio::test]
async fn fifty_reloads_under_load_fail_no_request() {
    let workers = Worker::start_many(2).await;
    let endpoints = addresses(&workers);
    let proxy = Proxy::in_front_of(&endpoints, 2, "").await;
    let load = Load::start(proxy.address, ARITH_INFER, ARITH, 8);
    load.wait(100).await;
    for round in 0..50 {
        // Every other round takes an endpoint away or changes the probes.
        let used = if round % 2 == 0 { &endpoints[..1] } else { &endpoints[..] };
        let text = pool_of(used, &format!("slots = {}", 1 + round % 3));
        std::fs::write(&proxy.config, Proxy::text("", &text)).unwrap();
        let answer = post(proxy.admin, "/reload", "").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()["generation"], round + 2);
        load.wait(5).await;
    }
    let outcomes = load.stop().await;
    assert_eq!(outcomes.keys().collect::<Vec<_>>(), ["200"], "{outcomes:?}");
    assert_eq!(proxy.metric("forebay_reloads_total", &["ok"]).await, 50.0);
}

#[tokio::test]
async fn a_reload_that_is_wrong_changes_nothing_and_says_why() {
    let endpoint = Endpoint::start(Behaviour::Echo).await;
    let proxy = Proxy::in_front_of(&[endpoint.address], 1, "").await;
    let good = std::fs::read_to_string(&proxy.config).unwrap();
    for (bad, expected) in [
        (
            good.replace("pool = \"test\"", "pool = \"nope\""),
            "expected a pool (\"test\"), found \"nope\"",
        ),
        (good.replace("[[route]]", "[[route"), "forebay.toml:"),
        (String::new(), "expected at least one [[listener]], found none"),
        (good.replace("threads = 2", "threads = 3"), "[server] changed, which needs a restart"),
    ] {
        std::fs::write(&proxy.config, bad).unwrap();
        let answer = post(proxy.admin, "/reload", "").await;
        assert_eq!(answer.status, 422);
        let error = answer.json()["error"].as_str().unwrap().to_owned();
        assert!(error.contains(expected), "{expected}\n--- not in\n{error}");
        assert_eq!(proxy.status().await["generation"], 1);
        assert_eq!(post(proxy.address, "/v2/models/m/infer", "x").await.status, 200);
    }
    std::fs::remove_file(&proxy.config).unwrap();
    assert!(post(proxy.admin, "/reload", "").await.text().contains("can't read"));
    assert_eq!(proxy.metric("forebay_reloads_total", &["refused"]).await, 5.0);

    std::fs::write(&proxy.config, &good).unwrap();
    proxy.signal(Signal::HUP);
    eventually("the reload by signal", async || {
        (proxy.status().await["generation"] == 2).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_reload_keeps_what_was_learnt() {
    let endpoint = Endpoint::start(Behaviour::Echo).await;
    let proxy = Proxy::in_front_of(&[endpoint.address], 1, "").await;
    post(proxy.address, "/v2/models/m/infer", "x").await;
    // The client may have its answer before everything is taken in.
    let learnt = eventually("the request taken in", async || {
        let endpoint = proxy.endpoints().await[0].clone();
        (endpoint["in_flight"] == 0 && endpoint["service_ms"].is_number()).then_some(endpoint)
    })
    .await;
    assert_eq!(learnt["slots"], 4, "as it reported");
    post(proxy.admin, "/reload", "").await;
    let kept = proxy.endpoints().await[0].clone();
    assert_eq!(kept["health"], "ready", "a reload does not start from nothing");
    assert_eq!((&kept["slots"], &kept["service_ms"]), (&learnt["slots"], &learnt["service_ms"]));
}

#[tokio::test]
async fn a_stop_under_load_fails_no_accepted_request() {
    let workers = Worker::start_many(2).await;
    let mut proxy = Proxy::in_front_of(&addresses(&workers), 2, "").await;
    let load = Load::start(proxy.address, ARITH_INFER, ARITH, 16);
    load.wait(300).await;
    proxy.signal(Signal::TERM);
    let status = proxy.ended().await;
    assert!(status.success(), "{status}: {}", proxy.messages());
    let outcomes = load.stop().await;
    assert_eq!(outcomes.keys().collect::<Vec<_>>(), ["200"], "{outcomes:?}");
    eventually("its last words", async || proxy.messages().contains("stopped").then_some(())).await;
    assert!(proxy.messages().contains("draining"));
}

#[tokio::test]
async fn a_stop_waits_for_what_is_in_flight_and_no_longer() {
    let worker = Worker::start_many(1).await;
    let mut proxy = Proxy::in_front_of(&addresses(&worker), 1, "").await;
    let load = Load::start(proxy.address, ARITH_INFER, ARITH, 2);
    load.wait(10).await;
    proxy.signal(Signal::TERM);
    eventually("not ready", async || {
        (get(proxy.admin, "/readyz").await.status == 503).then_some(())
    })
    .await;
    let started = std::time::Instant::now();
    assert!(proxy.ended().await.success());
    assert!(started.elapsed() < Duration::from_secs(20), "the grace is a bound, not a sleep");
    load.stop().await;
}

#[tokio::test]
async fn a_second_signal_stops_at_once() {
    let silent = Endpoint::start(Behaviour::Silent).await;
    let mut proxy = Proxy::in_front_of(&[silent.address], 1, "").await;
    let address = proxy.address;
    let stuck = tokio::spawn(async move {
        let request = hyper::Request::post("/v2/models/m/infer").body("x".to_owned()).unwrap();
        crate::client::send(address, request).await.is_err()
    });
    eventually("the request", async || (silent.served() == 1).then_some(())).await;
    proxy.signal(Signal::TERM);
    eventually("draining", async || proxy.messages().contains("draining").then_some(())).await;
    proxy.signal(Signal::TERM);
    assert!(proxy.ended().await.success());
    assert!(stuck.await.unwrap(), "what was cut is an error to its client");
}

#[tokio::test]
async fn the_admin_listener_answers_operators() {
    let endpoint = Endpoint::start(Behaviour::Echo).await;
    let proxy = Proxy::in_front_of(&[endpoint.address], 1, "").await;
    for (path, part) in [("/", "POST /reload"), ("/livez", "live"), ("/readyz", "ready")] {
        let answer = get(proxy.admin, path).await;
        assert_eq!(answer.status, 200, "{path}");
        assert!(answer.text().contains(part), "{path}: {}", answer.text());
    }
    assert_eq!(get(proxy.admin, "/reload").await.status, 405);
    assert_eq!(get(proxy.admin, "/nothing").await.status, 404);
    let status = proxy.status().await;
    assert_eq!((&status["ready"], &status["generation"]), (&true.into(), &1.into()));
    assert_eq!(status["pools"]["test"]["policy"], "adaptive");
    assert_eq!(status["routes"][0]["variants"][0]["pool"], "test");
    post(proxy.address, ARITH_INFER, "x").await;
    let known = &proxy.endpoints().await[0];
    let report = (&known["reported_in_flight"], &known["slots"], &known["origin"]);
    assert_eq!(report, (&3.into(), &4.into(), &"in_band".into()), "{known}");
    assert_eq!((&known["stale"], &known["health"]), (&false.into(), &"ready".into()));
    let table = get(proxy.admin, "/status?format=text").await;
    assert!(table.header("content-type").starts_with("text/plain"));
    let text = table.text();
    let address = known["address"].as_str().unwrap();
    let line = text.lines().find(|line| line.contains(address)).unwrap_or_else(|| panic!("{text}"));
    assert!(line.contains("ready") && line.ends_with("ago, in_band"), "{line}");
}
