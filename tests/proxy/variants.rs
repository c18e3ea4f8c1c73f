//! A route that is split: variants by weight, and those that are asked for another model.

use crate::client::{get, post};
use crate::endpoint::{Behaviour, Endpoint, echo};
use crate::grpc_client::call;
use crate::harness::{ARITH, Proxy, Worker, anywhere};
use forebay_protocol::grpc::{Code, infer as wire};
use forebay_protocol::oip::{Data, InferRequest, Tensor};
use std::collections::BTreeMap;
use std::net::SocketAddr;

const INFER: &str = "/v2/models/m/infer";
const MODEL_INFER: &str = "/inference.GRPCInferenceService/ModelInfer";
const PROBE: &str = "probe = { interval = \"300ms\", fast_interval = \"30ms\" }";

/// Two pools, and a route whose variants are these.
fn config(first: SocketAddr, second: SocketAddr, variants: &[&str]) -> String {
    let variants: String = variants.iter().map(|it| format!("[[route.variant]]\n{it}\n")).collect();
    format!(
        "[pool.first]\nendpoints = [\"{first}\"]\n{PROBE}\n\
         [pool.second]\nendpoints = [\"{second}\"]\n{PROBE}\n\
         [[route]]\nname = \"r\"\n{variants}"
    )
}

/// Number of answers of each variant, by the header and by the log.
async fn counts(proxy: &Proxy, requests: usize) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..requests {
        let answer = post(proxy.address, INFER, "x").await;
        assert_eq!((answer.status.as_u16(), answer.text()), (200, echo(b"x")));
        let line = proxy.next_line();
        assert_eq!(line["variant"], answer.header("x-forebay-variant"));
        assert!(line["degraded"].is_null());
        *counts.entry(answer.header("x-forebay-variant").to_owned()).or_default() += 1;
    }
    counts
}

#[tokio::test]
async fn variants_share_the_requests_of_a_route_by_their_weights() {
    let first = Endpoint::start(Behaviour::Echo).await;
    let second = Endpoint::start(Behaviour::Echo).await;
    let (a, b) = (first.address, second.address);
    let halves =
        ["name = \"a\"\npool = \"first\"\nweight = 500", "pool = \"second\"\nweight = 500"];
    let proxy = Proxy::start(&config(a, b, &halves)).await;
    proxy.wait_ready(2).await;
    let counted = counts(&proxy, 64).await;
    assert_eq!(counted.keys().map(String::as_str).collect::<Vec<_>>(), ["a", "second"]);
    assert_eq!(first.served(), counted["a"]);
    let labels = ["route=\"r\"", "variant=\"a\"", "reason=\"ok\""];
    #[allow(clippy::cast_precision_loss, reason = "a small count")]
    let expected = counted["a"] as f64;
    assert_eq!(proxy.metric("forebay_requests_total", &labels).await, expected);
    let table = get(proxy.admin, "/status?format=text").await.text();
    assert!(table.contains("route r -> 50% a at pool first, 50% pool second"), "{table}");

    let off = ["pool = \"first\"\nweight = 0", "pool = \"second\"\nweight = 1000"];
    let proxy = Proxy::start(&config(a, b, &off)).await;
    proxy.wait_ready(2).await;
    assert_eq!(counts(&proxy, 64).await, [("second".to_owned(), 64)].into());
}

#[tokio::test]
async fn a_variant_may_be_another_model_or_version_over_rest_and_grpc() {
    let worker = Worker::start(anywhere()).await;
    let other = Endpoint::start(Behaviour::Echo).await;
    let variants = [
        "name = \"v1\"\npool = \"first\"\nmodel = \"arith\"\nversion = \"1\"\nweight = 1000",
        "name = \"plain\"\npool = \"second\"\nweight = 0",
    ];
    let proxy = Proxy::start(&config(worker.address, other.address, &variants)).await;
    proxy.wait_ready(2).await;
    for path in [INFER, "/v2/models/m/versions/99/infer"] {
        let answer = post(proxy.address, path, ARITH).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("x-forebay-variant"), "v1");
        let said = answer.json();
        assert_eq!((&said["model_name"], &said["model_version"]), (&"arith".into(), &"1".into()));
        assert_eq!(said["outputs"][0]["data"][0], 11.0);
    }
    assert_eq!(get(proxy.address, "/v2/models/m").await.json()["name"], "arith");
    let tensor =
        |name: &str| Tensor::new(name, vec![1, 4], Data::Fp32(vec![2.0; 4].into())).unwrap();
    let request =
        InferRequest { inputs: vec![tensor("a"), tensor("b")], ..InferRequest::default() };
    let message = wire::write_request("m", Some("99"), &request);
    let ended = call(proxy.address, MODEL_INFER, &message).await;
    assert_eq!(ended.code(), Code::Ok, "{}", ended.words());
    assert_eq!(ended.headers["x-forebay-variant"], "v1");
    let answer = wire::read_response(&ended.messages[0]).unwrap();
    assert_eq!(answer.outputs[0].data, Data::Fp32(vec![4.0; 4].into()));
    // The model of this request stands in its body, which is not changed: it is not counted for v1.
    let answer = post(proxy.address, "/v1/embeddings", "{\"model\":\"m\"}").await;
    assert_eq!((answer.status.as_u16(), answer.header("x-forebay-variant")), (200, "plain"));

    let only = &variants[..1];
    let proxy = Proxy::start(&config(worker.address, other.address, only)).await;
    proxy.wait_ready(2).await;
    let answer = post(proxy.address, "/v1/embeddings", "{\"model\":\"m\"}").await;
    assert_eq!((answer.status.as_u16(), answer.reason()), (404, "no_route"), "{}", answer.text());
    assert!(answer.text().contains("no variant of route r"), "{}", answer.text());
}

#[tokio::test]
async fn one_variant_may_stand_in_for_another() {
    let nobody = std::net::TcpListener::bind(anywhere()).unwrap().local_addr().unwrap();
    let second = Endpoint::start(Behaviour::Echo).await;
    let variants = ["pool = \"first\"\nweight = 900", "pool = \"second\"\nweight = 100"];
    let text = config(nobody, second.address, &variants);
    let text = text.replace("name = \"r\"\n", "name = \"r\"\nfallback = [\"second\"]\n");
    let proxy = Proxy::start(&text).await;
    proxy.wait_ready(1).await;
    let mut degraded = 0;
    for _ in 0..64 {
        let answer = post(proxy.address, INFER, "x").await;
        assert_eq!((answer.status.as_u16(), answer.header("x-forebay-variant")), (200, "second"));
        degraded += usize::from(answer.header("x-forebay-degraded") == "no_endpoint");
    }
    assert!(degraded > 0, "the requests that were drawn for the first");
}
