//! Requests wait in the proxy until an endpoint has room, in the right order, and no longer than they
//! may.

use crate::client::{Load, Response, get, post_with};
use crate::endpoint::{Behaviour, Endpoint};
use crate::grpc_client::call;
use crate::harness::{Folder, Proxy, Worker, addresses, eventually};
use forebay_loadtest::sim::decisions;
use forebay_protocol::grpc::{Code, MODEL_INFER, infer as wire};
use forebay_protocol::oip::{Data, InferRequest, Parameter, Tensor};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

const INFER: &str = "/v2/models/m/infer";
/// However fast the endpoint is, it gets no more than it has slots.
const ONE_SLOT: &str = "slots = 1\nqueue = { handoff_delay = \"1us\" }";

/// A client that waits for the answer to `body`.
fn ask(
    proxy: &Proxy,
    body: &'static str,
    headers: &'static [(&'static str, &'static str)],
) -> JoinHandle<Response> {
    let address = proxy.address;
    tokio::spawn(async move { post_with(address, INFER, headers, body).await })
}

async fn queued(proxy: &Proxy, count: u64) {
    eventually(&format!("{count} queued requests"), async || {
        let status = proxy.status().await;
        let queued = status["pools"]["test"]["queued"].as_object().unwrap();
        let found: u64 = queued.values().map(|count| count.as_u64().unwrap()).sum();
        (found == count).then_some(())
    })
    .await;
}

async fn came(endpoint: &Endpoint, count: usize) {
    eventually(&format!("{count} requests at the endpoint"), async || {
        (endpoint.came().len() >= count).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_endpoint_gets_no_more_at_once_than_it_has_slots_and_the_urgent_first() {
    let endpoint = Endpoint::start(Behaviour::Gated).await;
    let proxy = Proxy::in_front_of(&[endpoint.address], 1, ONE_SLOT).await;
    let first = ask(&proxy, "first", &[]);
    came(&endpoint, 1).await;
    // An endpoint that has never answered may have one more than its slots: its speed is unknown.
    let second = ask(&proxy, "second", &[]);
    came(&endpoint, 2).await;
    endpoint.let_go(2);
    for answer in [first, second] {
        assert_eq!(answer.await.unwrap().status, 200);
    }

    let mut asked = vec![ask(&proxy, "held", &[])];
    came(&endpoint, 3).await;
    for (number, (body, headers)) in [
        ("batch", &[("x-request-priority", "batch")][..]),
        ("later", &[("x-request-deadline", "25000")]),
        ("sooner", &[("x-request-deadline", "20000")]),
        ("high", &[("x-request-priority", "high")]),
    ]
    .into_iter()
    .enumerate()
    {
        asked.push(ask(&proxy, body, headers));
        queued(&proxy, number as u64 + 1).await;
    }
    assert_eq!(endpoint.came().len(), 3, "the others wait in the proxy");
    let metrics = proxy.metrics().await;
    for priority in ["high", "batch"] {
        let line = format!("forebay_queued_requests{{pool=\"test\",priority=\"{priority}\"}} 1");
        assert!(metrics.contains(&line), "{metrics}");
    }
    for _ in 0..asked.len() {
        endpoint.let_go(1);
    }
    for answer in asked {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    assert_eq!(endpoint.came()[3..], ["high", "sooner", "later", "batch"]);
    let line = (0..7).map(|_| proxy.next_line()).find(|line| line["priority"] == "batch").unwrap();
    assert!(line["balance_us"].as_u64().unwrap() > 0, "{line}");
}

#[tokio::test]
async fn what_a_body_says_of_its_urgency_counts_where_no_header_does() {
    let endpoint = Endpoint::start(Behaviour::Echo).await;
    let proxy = Proxy::in_front_of(&[endpoint.address], 1, "").await;
    let body = r#"{"parameters":{"priority":3,"timeout":60000000},"inputs":[]}"#;
    let length = body.len().to_string();
    let binary = format!("{body}\"binary\"");
    for (headers, body, expected) in [
        (&[][..], body, "batch"),
        (&[("inference-header-content-length", &*length)], &*binary, "batch"),
        (&[("x-request-priority", "high")], body, "high"),
        (&[("inference-header-content-length", "0")], body, "normal"),
        (&[], "not JSON \"priority\"", "normal"),
    ] {
        let answer = post_with(proxy.address, INFER, headers, body.to_owned()).await;
        assert_eq!(answer.status, 200);
        assert_eq!(proxy.next_line()["priority"], expected, "{headers:?} {body}");
    }
    endpoint.becomes(Behaviour::Silent);
    let hurried = r#"{"parameters":{"timeout":60000}}"#;
    let answer = post_with(proxy.address, INFER, &[], hurried).await;
    assert_eq!((answer.status.as_u16(), answer.reason()), (504, "deadline_exceeded"));
}

#[tokio::test]
async fn what_a_grpc_message_says_of_its_urgency_counts_too() {
    let worker = Worker::start_many(1).await;
    let proxy = Proxy::in_front_of(&addresses(&worker), 1, "").await;
    let tensor = |name| Tensor::new(name, vec![1, 4], Data::Fp32(vec![2.0; 4].into())).unwrap();
    let parameters = [("priority".to_owned(), Parameter::Int(1))].into_iter().collect();
    let inputs = vec![tensor("a"), tensor("b")];
    let request = InferRequest { inputs, parameters, ..InferRequest::default() };
    let message = wire::write_request("arith", None, &request);
    let answer = call(proxy.address, MODEL_INFER, &message).await;
    assert_eq!(answer.code(), Code::Ok);
    assert_eq!(proxy.next_line()["priority"], "high");
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_makes_way_for_what_is_more_urgent() {
    let endpoint = Endpoint::start(Behaviour::Gated).await;
    let more = "slots = 1\nqueue = { size = 1, handoff_delay = \"1us\" }";
    let proxy = Proxy::in_front_of(&[endpoint.address], 1, more).await;
    let running = [ask(&proxy, "1", &[]), ask(&proxy, "2", &[])];
    came(&endpoint, 2).await;
    let waiting = ask(&proxy, "waits", &[]);
    queued(&proxy, 1).await;

    let refused = ask(&proxy, "refused", &[]).await.unwrap();
    assert_eq!((refused.status.as_u16(), refused.reason()), (503, "queue_full"));
    assert!(refused.header("retry-after").parse::<u64>().unwrap() >= 1);

    let urgent = ask(&proxy, "urgent", &[("x-request-priority", "high")]);
    let displaced = waiting.await.unwrap();
    assert_eq!((displaced.status.as_u16(), displaced.reason()), (503, "displaced"));
    endpoint.let_go(3);
    for answer in running.into_iter().chain([urgent]) {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    assert_eq!(endpoint.came().last().unwrap(), "urgent");
    for (reason, priority) in [("queue_full", "normal"), ("displaced", "normal")] {
        let labels = [format!("reason=\"{reason}\""), format!("priority=\"{priority}\"")];
        let labels = labels.each_ref().map(String::as_str);
        assert_eq!(proxy.metric("forebay_shed_total", &labels).await, 1.0);
    }
}

#[tokio::test]
async fn what_can_not_be_done_in_time_is_refused_when_it_comes() {
    let endpoint = Endpoint::start(Behaviour::Gated).await;
    let proxy = Proxy::in_front_of(&[endpoint.address], 1, ONE_SLOT).await;
    // The endpoint needs 300 ms or more, as far as anybody knows.
    let slow = ask(&proxy, "slow", &[]);
    came(&endpoint, 1).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    endpoint.let_go(1);
    assert_eq!(slow.await.unwrap().status, 200);
    let mut asked: Vec<_> = (0..4).map(|_| ask(&proxy, "busy", &[])).collect();
    queued(&proxy, 3).await;
    // One has three before it, and the other no time for its own work. One for which it would be enough that
    // the slot frees early may wait for that.
    let behind: &[_] = &[("x-request-deadline", "500"), ("x-request-priority", "batch")];
    for headers in [behind, &[("x-request-deadline", "250")]] {
        let hopeless = ask(&proxy, "hopeless", headers).await.unwrap();
        assert_eq!((hopeless.status.as_u16(), hopeless.reason()), (503, "deadline_unreachable"));
        assert!(hopeless.header("retry-after").parse::<u64>().unwrap() >= 1);
    }
    // More urgent, so that nothing is before it but what runs.
    let urgent = &[("x-request-deadline", "20000"), ("x-request-priority", "high")];
    asked.push(ask(&proxy, "urgent", urgent));
    queued(&proxy, 4).await;
    endpoint.let_go(5);
    for answer in asked {
        assert_eq!(answer.await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn who_waits_in_vain_or_leaves_costs_the_endpoint_nothing() {
    let endpoint = Endpoint::start(Behaviour::Gated).await;
    let proxy = Proxy::in_front_of(&[endpoint.address], 1, ONE_SLOT).await;
    let running = [ask(&proxy, "1", &[]), ask(&proxy, "2", &[])];
    came(&endpoint, 2).await;
    let late = ask(&proxy, "late", &[("x-request-deadline", "300")]);
    let leaves = ask(&proxy, "leaves", &[]);
    queued(&proxy, 2).await;
    leaves.abort();
    let late = late.await.unwrap();
    assert_eq!((late.status.as_u16(), late.reason()), (504, "deadline_exceeded"));
    queued(&proxy, 0).await;
    endpoint.let_go(2);
    for answer in running {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    assert_eq!(endpoint.came().len(), 2);
    assert_eq!(endpoint.abandoned.load(Relaxed), 0);
    assert_eq!(get(proxy.admin, "/readyz").await.status, 200);
}

#[tokio::test]
async fn a_reload_that_brings_an_endpoint_serves_who_waits() {
    let (busy, new) =
        (Endpoint::start(Behaviour::Gated).await, Endpoint::start(Behaviour::Gated).await);
    let proxy = Proxy::in_front_of(&[busy.address], 1, ONE_SLOT).await;
    let running = [ask(&proxy, "1", &[]), ask(&proxy, "2", &[])];
    came(&busy, 2).await;
    let waits = ask(&proxy, "waits", &[]);
    queued(&proxy, 1).await;
    // Other retries, too: the pool's record of them is rebuilt, and waiting requests are not lost.
    let more = &format!("{ONE_SLOT}\nretry = {{ attempts = 2 }}");
    let config = crate::harness::pool_of(&[busy.address, new.address], more);
    std::fs::write(&proxy.config, Proxy::text("", &config)).unwrap();
    let reloaded = post_with(proxy.admin, "/reload", &[], "").await;
    assert_eq!(reloaded.status, 200, "{}", reloaded.text());
    came(&new, 1).await;
    new.let_go(1);
    assert_eq!(waits.await.unwrap().status, 200);
    busy.let_go(2);
    for answer in running {
        assert_eq!(answer.await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn connections_that_last_take_no_slot_from_requests() {
    let endpoint = Endpoint::start(Behaviour::Gated).await;
    let config = crate::harness::pool_of(&[endpoint.address], ONE_SLOT)
        + "[[listener]]\naddress = \"127.0.0.1:0\"\nprotocol = \"tcp\"\npool = \"test\"\n";
    let proxy = Proxy::start(&config).await;
    proxy.wait_ready(1).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(TcpStream::connect(proxy.listeners[1]).await.unwrap());
    }
    eventually("three connections at the endpoint", async || {
        (proxy.endpoints().await[0]["in_flight"] == 3).then_some(())
    })
    .await;
    for body in ["1", "2", "3"] {
        let one = ask(&proxy, body, &[]);
        endpoint.let_go(1);
        assert_eq!(one.await.unwrap().status, 200);
    }
    assert_eq!(proxy.endpoints().await[0]["in_flight"], 3);
}

#[tokio::test]
async fn a_priority_that_nobody_knows_is_refused_and_a_route_can_say_one() {
    let endpoint = Endpoint::start(Behaviour::Echo).await;
    let config = crate::harness::pool_of(&[endpoint.address], "") + "priority = \"batch\"\n";
    let proxy = Proxy::start(&config).await;
    proxy.wait_ready(1).await;
    let answer = ask(&proxy, "x", &[("x-request-priority", "urgent")]).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.reason()), (400, "invalid_request"));
    assert!(answer.text().contains("expected high, normal or batch"), "{}", answer.text());
    assert_eq!(ask(&proxy, "x", &[]).await.unwrap().status, 200);
    let mut lines = [proxy.next_line(), proxy.next_line()];
    lines.sort_by_key(|line| line["status"].as_u64());
    assert_eq!(lines.map(|line| line["priority"].clone()), ["batch", "normal"]);
}

#[tokio::test]
async fn an_endpoint_that_says_nothing_is_limited_by_what_its_latencies_say() {
    let endpoint = Endpoint::start(Behaviour::InTurn).await;
    let proxy = Proxy::in_front_of(&[endpoint.address], 1, "").await;
    let one = Load::start(proxy.address, INFER, "{}", 1);
    one.wait(100).await;
    one.stop().await;
    assert!(proxy.endpoints().await[0]["slots"].is_null(), "nothing to be seen yet");

    let many = Load::start(proxy.address, INFER, "{}", 24);
    eventually("most of them waiting in the proxy", async || {
        let status = proxy.status().await;
        let pool = &status["pools"]["test"];
        let endpoint = &pool["endpoints"][0];
        let limited = endpoint["slots_learnt"] == true
            && endpoint["in_flight"].as_u64()? < 8
            && pool["queued"]["normal"].as_u64()? > 12;
        limited.then_some(())
    })
    .await;
    let outcomes = many.stop().await;
    assert!(outcomes.keys().all(|outcome| outcome == "200"), "{outcomes:?}");
}

#[tokio::test]
async fn a_sampled_request_has_its_decisions_in_the_log_and_they_come_to_the_same_again() {
    let endpoint = Endpoint::start(Behaviour::Gated).await;
    let settings = format!("{ONE_SLOT}\ndecisions = \"100%\"");
    let proxy = Proxy::in_front_of(&[endpoint.address], 1, &settings).await;
    let mut asked = vec![ask(&proxy, "first", &[])];
    came(&endpoint, 1).await;
    endpoint.let_go(1);
    assert_eq!(asked.remove(0).await.unwrap().status, 200);
    asked.push(ask(&proxy, "held", &[]));
    came(&endpoint, 2).await;
    asked.push(ask(&proxy, "waits", &[]));
    queued(&proxy, 1).await;
    endpoint.let_go(2);
    for answer in asked {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    let lines: Vec<_> = (0..3).map(|_| proxy.next_line()).collect();
    for line in &lines {
        let steps = line["decisions"].as_array().unwrap();
        let last = steps.last().unwrap();
        assert_eq!(last["kind"], "bind", "{line}");
        let chosen = usize::try_from(last["chosen"].as_u64().unwrap()).unwrap();
        assert_eq!(last["candidates"][chosen]["endpoint"], line["endpoint"], "{line}");
    }
    let waited = |line: &&serde_json::Value| line["decisions"][0]["why"] == "none_free";
    assert_eq!(lines.iter().filter(waited).count(), 1, "{lines:?}");
    let folder = Folder::new();
    let log = folder.0.join("access.jsonl");
    std::fs::write(&log, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    let (recorded, unread) = decisions::read(&log).unwrap();
    let found = decisions::replay(&recorded, unread);
    assert!(found.is_same() && found.decisions >= 4, "{found:?}");
    let text = decisions::explain(&recorded, &recorded[0].id, &log).unwrap();
    assert!(text.contains(&endpoint.address.to_string()), "{text}");
}
