//! Endpoints whose answers are bad are taken out, for a while, and not all of them.

use crate::client::{Load, post, post_with};
use crate::endpoint::{Behaviour, Endpoint};
use crate::harness::{Proxy, eventually, pool_of};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::task::JoinSet;

const INFER: &str = "/v2/models/m/infer";

async fn start<const N: usize>(behaviours: [Behaviour; N]) -> Vec<Endpoint> {
    let mut endpoints = Vec::new();
    for behaviour in behaviours {
        endpoints.push(Endpoint::start(behaviour).await);
    }
    endpoints
}

fn addresses(endpoints: &[Endpoint]) -> Vec<SocketAddr> {
    endpoints.iter().map(|endpoint| endpoint.address).collect()
}

/// The entry of an endpoint in `/status`.
async fn seen(proxy: &Proxy, endpoint: &Endpoint) -> serde_json::Value {
    let all = proxy.endpoints().await;
    all.into_iter().find(|e| e["address"] == endpoint.address.to_string()).unwrap()
}

async fn ejections(proxy: &Proxy, cause: &str) -> f64 {
    proxy.metric("forebay_ejections_total", &[&format!("cause=\"{cause}\"")]).await
}

#[tokio::test]
async fn an_endpoint_that_answers_500_at_once_gets_next_to_nothing_and_no_client_sees_it() {
    let all = start([Behaviour::Failing, Behaviour::Echo, Behaviour::Echo, Behaviour::Echo]).await;
    for policy in ["least_inflight", "round_robin", "adaptive"] {
        let before = all[0].served();
        let pool = format!("policy = \"{policy}\"\nejection = {{ base_time = \"1m\" }}");
        let proxy = Proxy::in_front_of(&addresses(&all), 4, &pool).await;
        let load = Load::start(proxy.address, INFER, "x", 8);
        load.wait(3000).await;
        let outcomes = load.stop().await;
        assert_eq!(outcomes.keys().collect::<Vec<_>>(), ["200"], "{policy}: {outcomes:?}");
        let drawn = all[0].served() - before;
        assert!(drawn * 50 < outcomes["200"], "{policy}: {drawn} of {outcomes:?}");
        if policy != "adaptive" {
            // There the penalty on its cost may keep it from failing five times.
            let state = seen(&proxy, &all[0]).await;
            assert_eq!((&state["health"], &state["strikes"]), (&"ejected".into(), &1.into()));
            assert_eq!(state["ejected_for"], "consecutive_failures");
            assert_eq!(ejections(&proxy, "consecutive_failures").await, 1.0);
        }
    }
}

#[tokio::test]
async fn one_that_is_well_again_is_tried_and_used() {
    let all = start([Behaviour::Failing, Behaviour::Echo]).await;
    let pool =
        "policy = \"round_robin\"\nejection = { base_time = \"100ms\", interval = \"100ms\" }";
    let proxy = Proxy::in_front_of(&addresses(&all), 2, pool).await;
    let load = Load::start(proxy.address, INFER, "x", 2);
    eventually("a second ejection", async || {
        (ejections(&proxy, "recovery").await >= 1.0).then_some(())
    })
    .await;
    all[0].becomes(Behaviour::Echo);
    let before = all[0].served();
    eventually("its traffic", async || (all[0].served() > before + 100).then_some(())).await;
    eventually("what is made good", async || {
        (seen(&proxy, &all[0]).await["strikes"] == 0).then_some(())
    })
    .await;
    let outcomes = load.stop().await;
    assert_eq!(outcomes.keys().collect::<Vec<_>>(), ["200"], "{outcomes:?}");
}

#[tokio::test]
async fn a_request_that_fails_everywhere_takes_nobody_out() {
    let all = start([Behaviour::Failing, Behaviour::Failing, Behaviour::Failing]).await;
    let proxy = Proxy::in_front_of(&addresses(&all), 3, "").await;
    for number in 1..=40 {
        let answer = post(proxy.address, INFER, "x").await;
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (500, "{\"error\":\"mine\"}"));
        let served: usize = all.iter().map(Endpoint::served).sum();
        if number <= 3 {
            let why = "asked once more, to see whose fault it is, and no further";
            assert_eq!(served, 2 * number, "{why}");
        }
        assert!(served <= number + 10, "as often as the budget allows: {served} of {number}");
    }
    assert_eq!(proxy.metric("forebay_ejections_total", &[]).await, 0.0);
    let line = proxy.next_line();
    assert_eq!((&line["status"], &line["attempts"]), (&500.into(), &2.into()));
}

#[tokio::test]
async fn a_clients_mistakes_and_haste_take_nobody_out() {
    let all = start([Behaviour::Missing, Behaviour::Missing]).await;
    let proxy = Proxy::in_front_of(&addresses(&all), 2, "").await;
    for _ in 0..20 {
        assert_eq!(post(proxy.address, INFER, "x").await.status, 404);
    }
    all.iter().for_each(|endpoint| endpoint.becomes(Behaviour::Silent));
    for _ in 0..20 {
        let answer = post_with(proxy.address, INFER, &[("x-request-deadline", "60")], "x").await;
        assert_eq!(answer.status, 504);
    }
    assert_eq!(proxy.metric("forebay_ejections_total", &[]).await, 0.0);
    let refused = proxy.metric("forebay_ejections_refused_total", &[]).await;
    assert_eq!(refused, 0.0);
}

#[tokio::test]
async fn timeouts_at_endpoints_that_answer_others_meanwhile_take_nobody_out() {
    let all = start([Behaviour::Paced, Behaviour::Paced]).await;
    let rules = "policy = \"round_robin\"\nejection = { interval = \"1h\" }";
    let config = pool_of(&addresses(&all), rules) + "deadline = \"500ms\"\n";
    let proxy = Proxy::start(&config).await;
    proxy.wait_ready(2).await;
    let load = Load::start(proxy.address, INFER, "x", 2);
    load.wait(20).await;
    let mut late = JoinSet::new();
    for _ in 0..40 {
        let address = proxy.address;
        late.spawn(async move { post(address, "/v2/models/slow/infer", "x").await.status });
    }
    assert!(late.join_all().await.iter().all(|status| *status == 504));
    load.stop().await;
    for name in ["forebay_ejections_total", "forebay_ejections_refused_total"] {
        assert_eq!(proxy.metric(name, &[]).await, 0.0, "{name}");
    }
    // One that says nothing at all is out.
    all.iter().for_each(|endpoint| endpoint.becomes(Behaviour::Silent));
    for _ in 0..10 {
        assert_eq!(post(proxy.address, INFER, "x").await.status, 504);
    }
    eventually("an ejection", async || {
        (ejections(&proxy, "consecutive_failures").await >= 1.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_is_retried_is_the_operators_choice() {
    let all = start([Behaviour::Failing, Behaviour::Echo]).await;
    let pool = "policy = \"round_robin\"\nretry = { on = [\"connect\"] }\n\
                ejection = { max_share = \"0%\" }";
    let proxy = Proxy::in_front_of(&addresses(&all), 2, pool).await;
    let mut statuses = Vec::new();
    for _ in 0..20 {
        statuses.push(post(proxy.address, INFER, "x").await.status.as_u16());
    }
    assert_eq!(statuses.iter().filter(|status| **status == 500).count(), 10, "{statuses:?}");
    assert_eq!(
        proxy.metric("forebay_ejections_total", &[]).await,
        0.0,
        "nothing is ejected where no share may be out"
    );
}

#[tokio::test]
async fn with_too_few_left_those_that_are_out_are_used_again() {
    let mut all = start([Behaviour::Failing, Behaviour::Echo]).await;
    let pool = "policy = \"round_robin\"\nejection = { base_time = \"1h\" }";
    let proxy = Proxy::in_front_of(&addresses(&all), 2, pool).await;
    for _ in 0..12 {
        assert_eq!(post(proxy.address, INFER, "x").await.status, 200);
    }
    assert_eq!(seen(&proxy, &all[0]).await["health"], "ejected");
    assert_eq!(proxy.metric("forebay_pool_panic", &[]).await, 0.0);
    all[0].becomes(Behaviour::Echo);
    drop(all.pop());
    eventually("panic", async || {
        (proxy.status().await["pools"]["test"]["panic"] == true).then_some(())
    })
    .await;
    assert_eq!(proxy.metric("forebay_pool_panic", &[]).await, 1.0);
    assert_eq!(post(proxy.address, INFER, "x").await.status, 200);
}

/// The number of some requests, sent one after the other, that each of two endpoints gets.
async fn shares(proxy: &Proxy, all: &[Endpoint], requests: usize) -> [usize; 2] {
    let served = || [all[0].served(), all[1].served()];
    let before = served();
    for _ in 0..requests {
        assert_eq!(post(proxy.address, INFER, "x").await.status, 200);
    }
    let after = served();
    [after[0] - before[0], after[1] - before[1]]
}

#[tokio::test]
async fn one_that_has_just_come_back_gets_its_share_little_by_little() {
    const WINDOW: Duration = Duration::from_secs(4);
    let all = start([Behaviour::Echo, Behaviour::Echo]).await;
    let pool = format!("policy = \"round_robin\"\nslow_start = \"{}s\"", WINDOW.as_secs());
    let proxy = Proxy::in_front_of(&addresses(&all), 2, &pool).await;
    let [first, second] = shares(&proxy, &all, 200).await;
    assert!(first >= 70 && second >= 70, "neither is passed over for the other: {first}, {second}");
    tokio::time::sleep(WINDOW).await;
    for verb in ["drain", "undrain"] {
        let path = format!("/pools/test/endpoints/{}/{verb}", all[1].address);
        assert_eq!(post(proxy.admin, &path, "").await.status, 200);
    }
    let [first, second] = shares(&proxy, &all, 100).await;
    assert!(second * 2 < first, "{first}, {second}");
    tokio::time::sleep(WINDOW).await;
    let [first, second] = shares(&proxy, &all, 100).await;
    assert_eq!((first, second), (50, 50));
}
