//! Clients see nothing of failing endpoints, as long as one can answer.

use crate::client::{Load, get, post, post_with};
use crate::endpoint::{Behaviour, Endpoint, echo};
use crate::harness::{
    ARITH, MAX_WAIT, Proxy, Worker, addresses, anywhere, eventually, pool_of, test_models,
};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;

const INFER: &str = "/v2/models/m/infer";
const ARITH_INFER: &str = "/v2/models/arith/infer";

fn only_ok(outcomes: &BTreeMap<String, usize>) {
    assert!(outcomes.keys().all(|outcome| outcome == "200"), "{outcomes:?}");
    assert!(outcomes.get("200").is_some_and(|&n| n > 0));
}

#[tokio::test]
async fn a_worker_that_is_killed_under_load_costs_no_client_an_answer_and_comes_back() {
    let mut workers = Worker::start_many(3).await;
    let proxy = Proxy::in_front_of(&addresses(&workers), 3, "").await;
    let load = Load::start(proxy.address, ARITH_INFER, ARITH, 16);
    load.wait(500).await;

    let victim = workers[1].address;
    workers[1].signal(Signal::KILL);
    let killed = Instant::now();
    eventually("the dead worker out of rotation", async || {
        (health(&proxy, victim).await != "ready").then_some(())
    })
    .await;
    let out_after = killed.elapsed();
    load.wait(500).await;

    workers[1] = Worker::start(victim).await;
    proxy.wait_ready(3).await;
    let before = attempts(&proxy, victim).await;
    eventually("traffic at the worker that came back", async || {
        (attempts(&proxy, victim).await > before + 10.0).then_some(())
    })
    .await;
    only_ok(&load.stop().await);
    // The interval of the test's probes is 300 ms; reading /status takes its time on a busy machine.
    assert!(out_after < Duration::from_secs(2), "out of rotation after {out_after:?}");
}

#[tokio::test]
async fn half_of_the_workers_killed_at_once_cost_no_client_an_answer() {
    let workers = Worker::start_many(4).await;
    let proxy = Proxy::in_front_of(&addresses(&workers), 4, "").await;
    let load = Load::start(proxy.address, ARITH_INFER, ARITH, 16);
    load.wait(500).await;
    workers[1].signal(Signal::KILL);
    workers[3].signal(Signal::KILL);
    for victim in [workers[1].address, workers[3].address] {
        eventually("the dead worker out of rotation", async || {
            (health(&proxy, victim).await != "ready").then_some(())
        })
        .await;
    }
    load.wait(500).await;
    only_ok(&load.stop().await);
}

#[tokio::test]
async fn a_worker_that_is_stopped_costs_its_requests_one_attempt_and_no_more_are_sent_to_it() {
    let workers = Worker::start_many(3).await;
    let pool = "retry = { attempt_timeout = \"1s\" }\nejection = { consecutive_failures = 2 }";
    let proxy = Proxy::in_front_of(&addresses(&workers), 3, pool).await;
    let load = Load::start(proxy.address, ARITH_INFER, ARITH, 8);
    load.wait(300).await;
    let victim = workers[0].address;
    workers[0].signal(Signal::STOP);
    eventually("the stopped worker out of rotation", async || {
        (health(&proxy, victim).await != "ready").then_some(())
    })
    .await;
    load.wait(300).await;
    workers[0].signal(Signal::CONT);
    proxy.wait_ready(3).await;
    only_ok(&load.stop().await);
}

async fn health(proxy: &Proxy, endpoint: SocketAddr) -> String {
    let endpoints = proxy.endpoints().await;
    let found = endpoints.iter().find(|e| e["address"] == endpoint.to_string()).unwrap();
    found["health"].as_str().unwrap().to_owned()
}

async fn attempts(proxy: &Proxy, endpoint: SocketAddr) -> f64 {
    let labels = [format!("endpoint=\"{endpoint}\""), "outcome=\"answered\"".to_owned()];
    proxy.metric("forebay_attempts_total", &labels.each_ref().map(String::as_str)).await
}

#[tokio::test]
async fn a_worker_that_drains_under_load_costs_no_client_an_answer() {
    let mut workers = Worker::start_many(2).await;
    let proxy = Proxy::in_front_of(&addresses(&workers), 2, "").await;
    let load = Load::start(proxy.address, ARITH_INFER, ARITH, 8);
    load.wait(200).await;
    workers[0].signal(Signal::TERM);
    assert!(workers[0].ended().await.success());
    load.wait(200).await;
    only_ok(&load.stop().await);
}

#[tokio::test]
async fn all_endpoints_down_is_said_at_once() {
    let (first, second) =
        (Endpoint::start(Behaviour::Echo).await, Endpoint::start(Behaviour::Echo).await);
    let proxy = Proxy::in_front_of(&[first.address, second.address], 2, "").await;
    assert_eq!(get(proxy.address, "/v2/health/ready").await.status, 200);
    drop((first, second));
    proxy.wait_ready(0).await;
    for path in [INFER, "/v2/models/m/generate"] {
        let started = Instant::now();
        let answer = post(proxy.address, path, "x").await;
        assert_eq!((answer.status.as_u16(), answer.reason()), (503, "no_endpoint"), "{path}");
        assert_eq!(answer.header("retry-after"), "1");
        assert!(answer.json()["error"].as_str().unwrap().contains("pool test"));
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    }
    assert_eq!(get(proxy.address, "/v2/health/ready").await.status, 503);
    assert_eq!(get(proxy.address, "/v2/health/live").await.status, 200);
    assert_eq!(get(proxy.admin, "/readyz").await.status, 503);
}

#[tokio::test]
async fn an_endpoint_that_never_answers_is_bounded_by_the_deadline() {
    let silent = Endpoint::start(Behaviour::Silent).await;
    let proxy = Proxy::in_front_of(&[silent.address], 1, "").await;
    for path in [INFER, "/v2/models/m/generate"] {
        let started = Instant::now();
        let asked = [("x-request-deadline", "300")];
        let answer = post_with(proxy.address, path, &asked, "x").await;
        assert_eq!((answer.status.as_u16(), answer.reason()), (504, "deadline_exceeded"), "{path}");
        let took = started.elapsed();
        assert!(took >= Duration::from_millis(300) && took < Duration::from_secs(5), "{took:?}");
    }
}

#[tokio::test]
async fn what_an_endpoint_is_told_of_the_time_is_what_is_left_of_it() {
    let silent = Endpoint::start(Behaviour::Silent).await;
    let well = Endpoint::start(Behaviour::Echo).await;
    let pool = "policy = \"round_robin\"\nretry = { attempt_timeout = \"300ms\" }";
    let proxy = Proxy::in_front_of(&[silent.address, well.address], 2, pool).await;
    let mut told = Vec::new();
    for _ in 0..2 {
        let answer = post_with(proxy.address, INFER, &[("x-request-deadline", "20000")], "x").await;
        told.push(answer.header("x-seen-deadline").parse::<u64>().unwrap());
    }
    // One of the two was sent to the silent one first.
    assert!(told.iter().all(|told| *told <= 20_001), "{told:?}");
    assert!(told.iter().any(|told| *told <= 19_701), "{told:?}");
}

#[tokio::test]
async fn a_route_bounds_what_a_client_may_ask_for() {
    let silent = Endpoint::start(Behaviour::Silent).await;
    let config = pool_of(&[silent.address], "") + "deadline = \"300ms\"\n";
    let proxy = Proxy::start(&config).await;
    proxy.wait_ready(1).await;
    let asked = [("x-request-deadline", "3600000")];
    let answer = post_with(proxy.address, INFER, &asked, "x").await;
    assert_eq!(answer.reason(), "deadline_exceeded");
}

#[tokio::test]
async fn an_attempt_that_takes_too_long_is_made_elsewhere() {
    let silent = Endpoint::start(Behaviour::Silent).await;
    let echo_endpoint = Endpoint::start(Behaviour::Echo).await;
    let pool = "policy = \"round_robin\"\nretry = { attempt_timeout = \"100ms\" }";
    let proxy = Proxy::in_front_of(&[silent.address, echo_endpoint.address], 2, pool).await;
    for _ in 0..4 {
        let answer = post(proxy.address, INFER, "x").await;
        assert_eq!((answer.status.as_u16(), answer.text()), (200, echo(b"x")));
    }
    assert!(silent.served() >= 1);
}

#[tokio::test]
async fn the_last_attempt_may_take_all_that_is_left() {
    let gated = [Endpoint::start(Behaviour::Gated).await, Endpoint::start(Behaviour::Gated).await];
    let pool = "policy = \"round_robin\"\nretry = { attempt_timeout = \"50ms\" }";
    let addresses = [gated[0].address, gated[1].address];
    let proxy = Proxy::in_front_of(&addresses, 2, pool).await;
    let address = proxy.address;
    let asked = tokio::spawn(async move { post(address, INFER, "x").await });
    eventually("both attempts", async || {
        (gated.iter().map(Endpoint::served).sum::<usize>() == 2).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(150)).await;
    gated.iter().for_each(|endpoint| endpoint.let_go(1));
    assert_eq!(asked.await.unwrap().text(), echo(b"x"));
}

#[tokio::test]
async fn whatever_an_endpoint_does_wrong_another_makes_good() {
    for bad in [Behaviour::Reset, Behaviour::Truncated, Behaviour::Garbage, Behaviour::Busy] {
        let broken = Endpoint::start(bad).await;
        let good = Endpoint::start(Behaviour::Echo).await;
        let pool = "policy = \"round_robin\"";
        let proxy = Proxy::in_front_of(&[broken.address, good.address], 2, pool).await;
        for _ in 0..10 {
            let answer = post(proxy.address, INFER, "x").await;
            assert_eq!((answer.status.as_u16(), answer.text()), (200, echo(b"x")));
        }
        assert!(broken.served() >= 3, "the broken one had its turns: {}", broken.served());
        assert!(proxy.metric("forebay_retries_total", &[]).await >= 3.0);
    }
}

#[tokio::test]
async fn a_connection_that_was_kept_for_too_long_costs_no_client_an_answer() {
    let endpoint = Endpoint::start(Behaviour::OnePerConnection).await;
    let proxy = Proxy::in_front_of(&[endpoint.address], 1, "").await;
    for _ in 0..10 {
        let answer = post(proxy.address, INFER, "x").await;
        assert_eq!((answer.status.as_u16(), answer.text()), (200, echo(b"x")));
    }
    assert_eq!(proxy.metric("forebay_retries_total", &[]).await, 0.0, "nothing is charged");
}

#[tokio::test]
async fn an_endpoint_that_fails_fast_does_not_draw_the_traffic() {
    let broken = Endpoint::start(Behaviour::Busy).await;
    let workers = Worker::start_many(1).await;
    let endpoints = [broken.address, workers[0].address];
    let proxy = Proxy::in_front_of(&endpoints, 2, "").await;
    let load = Load::start(proxy.address, ARITH_INFER, ARITH, 4);
    load.wait(1000).await;
    let outcomes = load.stop().await;
    let ok = outcomes.get("200").copied().unwrap_or(0);
    assert!(ok * 100 >= outcomes.values().sum::<usize>() * 99, "{outcomes:?}");
    assert!(broken.served() < ok / 10, "{} of {ok} went to the broken one", broken.served());
}

#[tokio::test]
async fn what_nobody_can_make_good_is_said_with_its_reason() {
    for (bad, status, reason) in [
        (Behaviour::Reset, 502, "endpoint_reset"),
        (Behaviour::Truncated, 502, "endpoint_reset"),
        (Behaviour::Garbage, 502, "invalid_response"),
        (Behaviour::Busy, 503, "queue_full"),
    ] {
        let broken = Endpoint::start(bad).await;
        let proxy = Proxy::in_front_of(&[broken.address], 1, "").await;
        let answer = post(proxy.address, INFER, "x").await;
        assert_eq!((answer.status.as_u16(), answer.reason()), (status, reason));
        assert!(answer.json()["error"].is_string());
        assert_eq!(broken.served(), 1, "one attempt for one endpoint");
    }
}

#[tokio::test]
async fn the_budget_bounds_what_retries_add() {
    let (first, second) =
        (Endpoint::start(Behaviour::Reset).await, Endpoint::start(Behaviour::Reset).await);
    // No probe may take them out before the budget is seen at work.
    let pool = "retry = { budget = \"10%\", min_per_second = 0 }";
    let config = pool_of(&[first.address, second.address], pool);
    let proxy = Proxy::start(&config).await;
    proxy.wait_ready(2).await;
    for _ in 0..200 {
        assert_eq!(post(proxy.address, INFER, "x").await.status, 502);
    }
    let served = first.served() + second.served();
    assert!((200..=220).contains(&served), "{served} attempts for 200 requests");
    assert!(proxy.metric("forebay_retries_refused_total", &[]).await > 0.0);
}

/// Sends 120 requests one after the other, of which none is answered well.
async fn storm(proxy: &Proxy, path: &str, endpoints: &[Endpoint]) -> usize {
    let before: usize = endpoints.iter().map(Endpoint::served).sum();
    for _ in 0..120 {
        let status = post(proxy.address, path, "x").await.status;
        assert!(status.is_server_error(), "{status}");
    }
    endpoints.iter().map(Endpoint::served).sum::<usize>() - before
}

#[tokio::test]
async fn a_pool_that_fails_everything_gets_hardly_more_than_is_offered() {
    // Cold, and after it has worked for a while: what it has saved up then is not spent at once.
    for good in [0, 300] {
        for bad in [Behaviour::Reset, Behaviour::Busy, Behaviour::Failing, Behaviour::Garbage] {
            let start = if good > 0 { Behaviour::Echo } else { bad };
            let endpoints = [
                Endpoint::start(start).await,
                Endpoint::start(start).await,
                Endpoint::start(start).await,
            ];
            let addresses = endpoints.each_ref().map(|endpoint| endpoint.address);
            let more = "ejection = { consecutive_failures = 0 }";
            let proxy = Proxy::in_front_of(&addresses, 3, more).await;
            for _ in 0..good {
                assert_eq!(post(proxy.address, INFER, "x").await.status, 200);
            }
            endpoints.iter().for_each(|endpoint| endpoint.becomes(bad));
            let attempts = storm(&proxy, INFER, &endpoints).await;
            assert!(attempts <= 132, "{attempts} attempts for 120 requests after {good} good ones");
            let retries = proxy.metric("forebay_retries_total", &[]).await;
            assert!(retries > 0.0, "the first of them are sent again");
        }
    }
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_attempt_with_it() {
    let silent = Endpoint::start(Behaviour::Silent).await;
    let proxy = Proxy::in_front_of(&[silent.address], 1, "").await;
    let mut stream = tokio::net::TcpStream::connect(proxy.address).await.unwrap();
    let request = format!("POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nx");
    stream.write_all(request.as_bytes()).await.unwrap();
    eventually("the attempt", async || (silent.served() == 1).then_some(())).await;
    drop(stream);
    eventually("its end", async || (silent.abandoned.load(Relaxed) == 1).then_some(())).await;
    let line = proxy.next_line();
    assert_eq!((&line["reason"], &line["status"]), (&"client_closed".into(), &0.into()));
    assert_eq!(proxy.status().await["in_flight"], 0);
}

#[tokio::test]
async fn a_fleet_is_started_watched_and_ended_with_the_proxy() {
    let models = test_models();
    let config = format!(
        "[pool.local]\nfleet = {{ workers = 2, models = {models:?} }}\n\
         probe = {{ interval = \"300ms\", fast_interval = \"30ms\" }}\n\
         [[route]]\nname = \"local\"\npool = \"local\"\n"
    );
    let mut proxy = Proxy::start(&config).await;
    proxy.wait_ready(2).await;
    let load = Load::start(proxy.address, ARITH_INFER, ARITH, 4);
    load.wait(50).await;
    let pids = worker_pids(&proxy);
    assert_eq!(pids.len(), 2, "{}", proxy.messages());
    rustix::process::kill_process(pids[0], Signal::KILL).unwrap();
    eventually("a third start", async || (worker_pids(&proxy).len() == 3).then_some(())).await;
    proxy.wait_ready(2).await;
    load.wait(50).await;
    only_ok(&load.stop().await);
    proxy.signal(Signal::TERM);
    assert!(proxy.ended().await.success());
    for pid in worker_pids(&proxy) {
        assert!(rustix::process::test_kill_process(pid).is_err(), "worker {pid:?} lives on");
    }
}

#[tokio::test]
async fn a_fleet_ends_even_if_the_proxy_is_killed() {
    let config = format!(
        "[pool.local]\nfleet = {{ workers = 1, models = {:?} }}\n\
         [[route]]\nname = \"local\"\npool = \"local\"\n",
        test_models()
    );
    let mut proxy = Proxy::start(&config).await;
    let pid = worker_pids(&proxy)[0];
    proxy.signal(Signal::KILL);
    proxy.ended().await;
    eventually("the end of the worker", async || {
        rustix::process::test_kill_process(pid).is_err().then_some(())
    })
    .await;
}

fn worker_pids(proxy: &Proxy) -> Vec<rustix::process::Pid> {
    proxy
        .messages()
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|event| event["message"] == "worker started")
        .filter_map(|event| {
            rustix::process::Pid::from_raw(i32::try_from(event["pid"].as_i64()?).ok()?)
        })
        .collect()
}

#[tokio::test]
async fn nothing_is_sent_before_an_endpoint_is_ready() {
    // A port without a listener so far.
    let reserved = std::net::TcpListener::bind(anywhere()).unwrap();
    let address = reserved.local_addr().unwrap();
    drop(reserved);
    let proxy = Proxy::start(&pool_of(&[address], "")).await;
    assert_eq!(post(proxy.address, ARITH_INFER, ARITH).await.reason(), "no_endpoint");
    let _worker = Worker::start(address).await;
    proxy.wait_ready(1).await;
    let started = Instant::now();
    let answer = post(proxy.address, ARITH_INFER, ARITH).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["outputs"][0]["data"][3], 44.0);
    assert!(started.elapsed() < MAX_WAIT);
}
