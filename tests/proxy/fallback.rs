//! A cheaper variant answers where the one that was asked for can't, and says so.

use crate::client::{get, post, post_with};
use crate::endpoint::{Behaviour, Endpoint, echo};
use crate::grpc_client::{call, framed};
use crate::harness::{ARITH, Proxy, Worker, anywhere, eventually};
use forebay_protocol::grpc::{Code, infer as wire};
use forebay_protocol::oip::{Data, InferRequest, Tensor};
use std::net::SocketAddr;

const PROBE: &str = "probe = { interval = \"300ms\", fast_interval = \"30ms\" }";

/// A route to the pool `large`, in whose place others may stand.
fn config(large: SocketAddr, small: SocketAddr, large_more: &str, fallback: &str) -> String {
    format!(
        "[pool.large]\nendpoints = [\"{large}\"]\n{PROBE}\n{large_more}\n\
         [pool.small]\nendpoints = [\"{small}\"]\n{PROBE}\n\
         [[route]]\nname = \"r\"\npool = \"large\"\nfallback = {fallback}\n"
    )
}

/// An address without a listener.
fn nobody() -> SocketAddr {
    std::net::TcpListener::bind(anywhere()).unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn while_a_pool_is_down_a_cheaper_one_answers_and_says_so() {
    let small = Endpoint::start(Behaviour::Echo).await;
    let proxy = Proxy::start(&config(nobody(), small.address, "", "[\"small\"]")).await;
    proxy.wait_ready(1).await;
    // Held in memory, and piped through.
    for path in ["/v2/models/m/infer", "/v2/models/m/generate"] {
        let answer = post(proxy.address, path, "x").await;
        assert_eq!((answer.status.as_u16(), answer.text()), (200, echo(b"x")), "{path}");
        assert_eq!(answer.header("x-forebay-variant"), "small");
        assert_eq!(answer.header("x-forebay-degraded"), "no_endpoint");
        let line = proxy.next_line();
        assert_eq!((&line["variant"], &line["degraded"]), (&"small".into(), &"no_endpoint".into()));
        assert_eq!((&line["reason"], &line["route"]), (&"ok".into(), &"r".into()));
    }
    let labels = ["route=\"r\"", "from=\"large\"", "to=\"small\"", "reason=\"no_endpoint\""];
    assert_eq!(proxy.metric("forebay_degraded_total", &labels).await, 2.0);
}

#[tokio::test]
async fn a_queue_that_is_full_is_a_reason_too_and_an_answer_is_none() {
    let large = Endpoint::start(Behaviour::Gated).await;
    let small = Endpoint::start(Behaviour::Echo).await;
    let more = "slots = 1\nqueue = { size = 0, handoff_delay = \"1us\" }";
    let proxy = Proxy::start(&config(large.address, small.address, more, "[\"small\"]")).await;
    proxy.wait_ready(2).await;
    let address = proxy.address;
    // Until it has answered it may have one more than its slots.
    large.let_go(1);
    assert_eq!(post(address, "/v2/models/m/infer", "0").await.header("x-forebay-variant"), "large");
    let first = tokio::spawn(async move { post(address, "/v2/models/m/infer", "1").await });
    eventually("the first one there", async || (large.served() == 2).then_some(())).await;
    let second = post(address, "/v2/models/m/infer", "2").await;
    assert_eq!(second.header("x-forebay-degraded"), "queue_full", "{}", second.text());
    assert_eq!(second.text(), echo(b"2"));
    large.let_go(1);
    let first = first.await.unwrap();
    assert_eq!(
        (first.header("x-forebay-variant"), first.header("x-forebay-degraded")),
        ("large", "")
    );
    // An endpoint's verdict on the request is an answer, whatever another one might say.
    large.becomes(Behaviour::Missing);
    let answer = post(address, "/v2/models/m/infer", "3").await;
    assert_eq!((answer.status.as_u16(), answer.header("x-forebay-degraded")), (404, ""));
}

#[tokio::test]
async fn a_request_that_waits_leaves_while_there_is_time_for_the_cheaper_variant() {
    let large = Endpoint::start(Behaviour::Gated).await;
    let small = Endpoint::start(Behaviour::Echo).await;
    let proxy = Proxy::start(&format!(
        "[pool.large]\nendpoints = [\"{}\"]\n{PROBE}\nslots = 1\nqueue = {{ handoff_delay = \"1us\" }}\n\
         [pool.small]\nendpoints = [\"{}\"]\n{PROBE}\n\
         [[route]]\nname = \"direct\"\nmodels = [\"direct\"]\npool = \"small\"\n\
         [[route]]\nname = \"r\"\npool = \"large\"\nfallback = [\"small\"]\ndeadline = \"60s\"\n",
        large.address, small.address
    ))
    .await;
    proxy.wait_ready(2).await;
    let address = proxy.address;
    // How long the cheaper one takes is known.
    for _ in 0..30 {
        assert_eq!(post(address, "/v2/models/direct/infer", "0").await.status, 200);
    }
    large.let_go(1);
    assert_eq!(post(address, "/v2/models/m/infer", "0").await.header("x-forebay-variant"), "large");
    let first = tokio::spawn(async move { post(address, "/v2/models/m/infer", "1").await });
    eventually("the first one there", async || (large.served() == 2).then_some(())).await;
    let hurried = [("x-request-deadline", "1500")];
    let second = post_with(address, "/v2/models/m/infer", &hurried, "2").await;
    assert_eq!(second.status, 200, "{}", second.text());
    assert_eq!(second.header("x-forebay-variant"), "small");
    assert_eq!(second.header("x-forebay-degraded"), "deadline_unreachable");
    large.let_go(1);
    assert_eq!(first.await.unwrap().header("x-forebay-variant"), "large");
}

#[tokio::test]
async fn if_nobody_can_stand_in_the_refusal_is_that_of_the_variant_that_was_asked_for() {
    let proxy = Proxy::start(&config(nobody(), nobody(), "", "[\"small\"]")).await;
    for path in ["/v2/models/m/infer", "/v2/models/m/generate"] {
        let answer = post(proxy.address, path, "x").await;
        assert_eq!((answer.status.as_u16(), answer.reason()), (503, "no_endpoint"));
        assert!(answer.text().contains("pool large"), "{}", answer.text());
        let line = proxy.next_line();
        assert_eq!((&line["variant"], line["degraded"].is_null()), (&"large".into(), true));
    }
}

#[tokio::test]
async fn another_model_can_stand_in_over_rest_and_grpc() {
    let worker = Worker::start(anywhere()).await;
    let fallback = "[{ pool = \"small\", model = \"arith\" }]";
    let proxy = Proxy::start(&config(nobody(), worker.address, "", fallback)).await;
    proxy.wait_ready(1).await;
    for path in ["/v2/models/large-arith/infer", "/v2/models/large-arith/versions/7/infer"] {
        let answer = post(proxy.address, path, ARITH).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()["model_name"], "arith");
        assert_eq!(answer.json()["outputs"][0]["data"][0], 11.0);
    }
    let metadata = get(proxy.address, "/v2/models/large-arith").await;
    assert_eq!(metadata.json()["name"], "arith", "what is piped through too");

    let tensor =
        |name: &str| Tensor::new(name, vec![1, 4], Data::Fp32(vec![2.0; 4].into())).unwrap();
    let inputs = vec![tensor("a"), tensor("b")];
    let request = InferRequest { inputs, ..InferRequest::default() };
    let message = wire::write_request("large-arith", Some("7"), &request);
    let _ = framed(&message);
    let ended = call(proxy.address, "/inference.GRPCInferenceService/ModelInfer", &message).await;
    assert_eq!(ended.code(), Code::Ok, "{}", ended.words());
    assert_eq!(ended.headers["x-forebay-degraded"], "no_endpoint");
    let answer = wire::read_response(&ended.messages[0]).unwrap();
    assert_eq!(answer.outputs[0].data, Data::Fp32(vec![4.0; 4].into()));
}
