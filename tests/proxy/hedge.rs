//! A second attempt beside one that is slow: who wins, what it may cost, and what becomes of the loser.

use crate::client::{get, post, post_with};
use crate::endpoint::{Behaviour, Endpoint, SLOW};
use crate::grpc_client::call;
use crate::harness::{ARITH, Proxy, Worker, addresses, eventually};
use forebay_protocol::grpc::{Code, infer as wire};
use forebay_protocol::oip::{Data, InferRequest, Tensor};
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::task::JoinSet;

const INFER: &str = "/v2/models/m/infer";
const ARITH_INFER: &str = "/v2/models/arith/infer";
const HEDGE: &str = "policy = \"round_robin\"\nhedge = { quantile = 0.95, budget = \"5%\" }";

/// Enough requests that what is usual is known.
async fn learn(proxy: &Proxy) {
    for _ in 0..160 {
        assert_eq!(post(proxy.address, INFER, "x").await.status, 200);
    }
}

async fn hedges(proxy: &Proxy, outcome: &str) -> f64 {
    proxy.metric("forebay_hedges_total", &[&format!("outcome=\"{outcome}\"")]).await
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_answered_by_another_and_the_first_is_dropped() {
    let stuck = Endpoint::start(Behaviour::Echo).await;
    let well = Endpoint::start(Behaviour::Echo).await;
    // An abandoned request is over sooner than this test gives up.
    let proxy = Proxy::in_front_of(&[stuck.address, well.address], 2, HEDGE).await;
    learn(&proxy).await;
    stuck.becomes(Behaviour::Silent);
    for _ in 0..4 {
        assert_eq!(post(proxy.address, INFER, "x").await.status, 200);
    }
    let won = hedges(&proxy, "won").await;
    assert!(won >= 1.0, "{}", proxy.metrics().await);
    eventually("the end of the attempts that lost", async || {
        (stuck.abandoned.load(Relaxed) as f64 >= won).then_some(())
    })
    .await;
    let lines: Vec<_> = (0..164).map(|_| proxy.next_line()).collect();
    let hedged = lines.iter().find(|line| line["hedged"] == "won").unwrap();
    assert_eq!((&hedged["attempts"], &hedged["reason"]), (&2.into(), &"ok".into()));
    assert_eq!(hedged["endpoint"], well.address.to_string(), "the one that answered");
    assert!(proxy.endpoints().await.iter().all(|endpoint| endpoint["in_flight"] == 0));
    assert_eq!(proxy.metric("forebay_retries_total", &[]).await, 0.0, "budgets are apart");
}

#[tokio::test]
async fn what_hedges_add_is_bounded() {
    let stuck = Endpoint::start(Behaviour::Echo).await;
    let well = Endpoint::start(Behaviour::Echo).await;
    let pool = format!("{HEDGE}\nejection = {{ max_share = \"0%\" }}");
    let proxy = Proxy::in_front_of(&[stuck.address, well.address], 2, &pool).await;
    learn(&proxy).await;
    stuck.becomes(Behaviour::Silent);
    // However fast this machine is: until the budget is spent, and requests are late for that.
    let (mut asked, mut late) = (160_u32, 0_u32);
    let refused =
        async || proxy.metric("forebay_hedges_refused_total", &["cause=\"budget\""]).await;
    while late < 3 || refused().await < 1.0 {
        assert!(asked < 1000, "{late} late, {} refused", refused().await);
        let answer = post_with(proxy.address, INFER, &[("x-request-deadline", "100")], "x").await;
        late += u32::from(answer.status == 504);
        asked += 1;
    }
    // One in twenty may have a second attempt.
    let made = proxy.metric("forebay_hedges_total", &[]).await;
    assert!(made >= 1.0 && made <= f64::from(asked) / 20.0, "{made} for {asked}");
}

#[tokio::test]
async fn a_model_is_hedged_after_what_it_takes_itself() {
    let stuck = Endpoint::start(Behaviour::Paced).await;
    let well = Endpoint::start(Behaviour::Paced).await;
    let proxy = Proxy::in_front_of(&[stuck.address, well.address], 2, HEDGE).await;
    learn(&proxy).await;
    let made = proxy.metric("forebay_hedges_total", &[]).await;
    let mut slow = JoinSet::new();
    for _ in 0..150 {
        let address = proxy.address;
        slow.spawn(async move { post(address, "/v2/models/slow/infer", "x").await.status });
    }
    assert!(slow.join_all().await.iter().all(|status| *status == 200));
    // Of the slow one nothing was known, and what the other takes says nothing of it.
    assert_eq!(proxy.metric("forebay_hedges_total", &[]).await, made, "no further ones");

    stuck.becomes(Behaviour::Silent);
    for _ in 0..4 {
        assert_eq!(post(proxy.address, INFER, "x").await.status, 200);
    }
    let lines: Vec<_> = (0..314).map(|_| proxy.next_line()).collect();
    let hedged = lines[310..].iter().find(|line| line["hedged"] == "won").unwrap();
    let took = Duration::from_micros(hedged["total_us"].as_u64().unwrap());
    assert!(took < SLOW, "{took:?}: half of all requests took longer");
}

#[tokio::test]
async fn without_the_setting_there_are_none() {
    let endpoint = Endpoint::start(Behaviour::Echo).await;
    let proxy = Proxy::in_front_of(&[endpoint.address], 1, "").await;
    learn(&proxy).await;
    assert_eq!(proxy.metric("forebay_hedges_total", &[]).await, 0.0);
    assert!(proxy.next_line()["hedged"].is_null());
}

async fn worker_metric(worker: SocketAddr, name: &str, label: &str) -> f64 {
    let text = get(worker, "/metrics").await.text();
    let lines = text.lines().filter(|line| line.starts_with(name) && line.contains(label));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

#[tokio::test]
async fn the_loser_leaves_the_queue_of_its_worker() {
    loser_leaves(async |address| post(address, ARITH_INFER, ARITH).await.status == 200).await;
}

#[tokio::test]
async fn the_loser_leaves_the_queue_over_grpc_too() {
    loser_leaves(async |address| {
        let tensor = |name| Tensor::new(name, vec![1, 4], Data::Fp32(vec![2.0; 4].into())).unwrap();
        let inputs = vec![tensor("a"), tensor("b")];
        let request = InferRequest { inputs, ..InferRequest::default() };
        let message = wire::write_request("arith", None, &request);
        call(address, "/inference.GRPCInferenceService/ModelInfer", &message).await.code()
            == Code::Ok
    })
    .await;
}

/// Sends requests with `infer` while the only executor of one of two workers is busy.
async fn loser_leaves(infer: impl AsyncFn(SocketAddr) -> bool) {
    let workers = Worker::start_many(2).await;
    // Reports are not believed, or nothing would be sent to the one that is busy.
    let pool = format!("{HEDGE}\nreport_ttl = \"0ms\"\nslots = 4");
    let proxy = Proxy::in_front_of(&addresses(&workers), 2, &pool).await;
    for _ in 0..160 {
        assert!(infer(proxy.address).await);
    }
    let busy = workers[0].address;
    // Seconds of its only executor, from somebody else, in one node of a graph: it can't be lent.
    let steps = 300_000;
    let long = format!(
        "{{\"inputs\":[{{\"name\":\"x\",\"shape\":[{steps},1,3],\"datatype\":\"FP32\",\"data\":[{}]}}]}}",
        vec!["0.5"; 3 * steps].join(",")
    );
    let other = tokio::spawn(async move { post(busy, "/v2/models/endless/infer", long).await });
    eventually("a busy worker", async || {
        (worker_metric(busy, "forebay_worker_requests_in_flight", "").await >= 1.0).then_some(())
    })
    .await;
    eventually("the end of a wait in the queue", async || {
        assert!(infer(proxy.address).await);
        (worker_metric(busy, "forebay_worker_abandoned_total", "stage=\"queue\"").await >= 1.0)
            .then_some(())
    })
    .await;
    // Whichever of the two lost: the one that had to wait there.
    assert!(proxy.metric("forebay_hedges_total", &[]).await >= 1.0);
    other.abort();
}
