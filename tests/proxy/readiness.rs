//! The proxy is ready while what comes in can be answered, and says which pool it misses.

use crate::client::{get, post};
use crate::endpoint::{Behaviour, Endpoint, echo};
use crate::grpc_client::call;
use crate::harness::{Proxy, anywhere, eventually};
use forebay_protocol::grpc::pb::ServerReadyRequest;
use std::net::SocketAddr;

const INFER: &str = "/v2/models/m/infer";
const SERVER_READY: &str = "/inference.GRPCInferenceService/ServerReady";
/// An empty message says `false`.
const TRUE: &[u8] = &[8, 1];

/// Pools of one endpoint each.
fn pools(pools: &[(&str, SocketAddr)]) -> String {
    let probe = "probe = { interval = \"300ms\", fast_interval = \"30ms\" }";
    let pool = |(name, address): &(&str, SocketAddr)| {
        format!("[pool.{name}]\nendpoints = [\"{address}\"]\n{probe}\n")
    };
    pools.iter().map(pool).collect()
}

/// A route with this half of a line for each of its variants.
fn split(more: &str, variants: &[(&str, u32)]) -> String {
    let variant = |(pool, weight): &(&str, u32)| {
        format!("[[route.variant]]\npool = \"{pool}\"\nweight = {weight}\n")
    };
    let variants: String = variants.iter().map(variant).collect();
    format!("[[route]]\nname = \"r\"\n{more}\n{variants}")
}

/// An address without a listener.
/// An address without a listener.
fn nobody() -> SocketAddr {
    std::net::TcpListener::bind(anywhere()).unwrap().local_addr().unwrap()
}

/// Whether the proxy is ready by all that say so, and what `/readyz` says beside that.
async fn readiness(proxy: &Proxy) -> (bool, String) {
    let told = get(proxy.admin, "/readyz").await;
    let is_ready = told.status == 200;
    let text = told.text();
    let (word, rest) = text.split_once('\n').unwrap();
    assert_eq!(word, if is_ready { "ready" } else { "not ready" });
    assert_eq!(proxy.status().await["ready"], is_ready);
    assert_eq!(get(proxy.address, "/v2/health/ready").await.status == 200, is_ready);
    let call = call(proxy.address, SERVER_READY, &ServerReadyRequest {}).await;
    assert_eq!(&call.messages[0][..] == TRUE, is_ready);
    assert_eq!(proxy.metric("forebay_ready", &[]).await > 0.5, is_ready);
    (is_ready, rest.to_owned())
}

#[tokio::test]
async fn a_canary_without_endpoints_is_missed_and_costs_no_answer_and_no_readiness() {
    let stable = Endpoint::start(Behaviour::Echo).await;
    let two = pools(&[("canary", nobody()), ("stable", stable.address)]);
    let shares = [("stable", 500), ("canary", 500)];
    // Whether another variant is named to stand in or not.
    for more in ["fallback = [\"stable\"]", ""] {
        let proxy = Proxy::start(&format!("{two}{}", split(more, &shares))).await;
        proxy.wait_ready(1).await;
        let (is_ready, missing) = readiness(&proxy).await;
        assert!(is_ready, "{missing}");
        assert_eq!(missing, "pool canary: 0 of 1 endpoints ready: others answer its requests\n");
        let mut degraded = 0;
        for path in [INFER, "/v2/models/m/generate"].repeat(32) {
            let answer = post(proxy.address, path, "x").await;
            assert_eq!((answer.status.as_u16(), answer.text()), (200, echo(b"x")), "{path}");
            assert_eq!(answer.header("x-forebay-variant"), "stable");
            // Questions for its health are logged, too.
            let mut lines = std::iter::repeat_with(|| proxy.next_line());
            let line = lines.find(|line| line["path"] == path).unwrap();
            let why = answer.header("x-forebay-degraded");
            assert_eq!(line["degraded"].as_str().unwrap_or_default(), why);
            assert!(["", "no_endpoint"].contains(&why), "{why}");
            degraded += usize::from(!why.is_empty());
        }
        assert!((1..64).contains(&degraded), "those that were drawn for the canary: {degraded}");
        let labels = ["route=\"r\"", "from=\"canary\"", "to=\"stable\"", "reason=\"no_endpoint\""];
        #[allow(clippy::cast_precision_loss, reason = "a small count")]
        let expected = degraded as f64;
        assert_eq!(proxy.metric("forebay_degraded_total", &labels).await, expected);
        let status = proxy.status().await;
        assert_eq!(status["missing"], serde_json::json!(["canary"]));
        let route = &status["routes"][0];
        assert_eq!((&route["ready"], &route["missing"][0]), (&true.into(), &"canary".into()));
        assert_eq!(proxy.metric("forebay_route_ready", &["route=\"r\""]).await, 1.0);
        let table = get(proxy.admin, "/status?format=text").await.text();
        assert!(table.contains("ready without pool canary"), "{table}");
    }
}

#[tokio::test]
async fn a_variant_that_is_switched_off_answers_for_none_and_is_not_missed() {
    let off = Endpoint::start(Behaviour::Echo).await;
    let two = pools(&[("on", nobody()), ("off", off.address)]);
    let proxy = Proxy::start(&format!("{two}{}", split("", &[("on", 1000), ("off", 0)]))).await;
    proxy.wait_ready(1).await;
    let answer = post(proxy.address, INFER, "x").await;
    assert_eq!((answer.status.as_u16(), answer.reason()), (503, "no_endpoint"));
    let (is_ready, missing) = readiness(&proxy).await;
    assert!(!is_ready, "{missing}");
    assert!(missing.starts_with("route r: no pool that could answer"), "{missing}");
    drop(proxy);

    let two = pools(&[("on", off.address), ("off", nobody())]);
    let proxy = Proxy::start(&format!("{two}{}", split("", &[("on", 1000), ("off", 0)]))).await;
    proxy.wait_ready(1).await;
    assert_eq!(readiness(&proxy).await, (true, String::new()));
}

#[tokio::test]
async fn each_route_and_each_tcp_listener_must_be_answered_and_no_other_pool() {
    let (one, two) =
        (Endpoint::start(Behaviour::Echo).await, Endpoint::start(Behaviour::Echo).await);
    let all = pools(&[
        ("one", one.address),
        ("two", two.address),
        ("unused", nobody()),
        ("spare", nobody()),
    ]);
    let text = format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\nprotocol = \"tcp\"\npool = \"two\"\n{all}\
         [[route]]\nname = \"a\"\nmodels = [\"a-*\"]\npool = \"one\"\nfallback = [\"spare\"]\n\
         [[route]]\nname = \"hidden\"\nmodels = [\"a-b*\"]\npool = \"unused\"\n\
         [[route]]\nname = \"rest\"\npool = \"one\"\n"
    );
    let proxy = Proxy::start(&text).await;
    proxy.wait_ready(2).await;
    let (is_ready, missing) = readiness(&proxy).await;
    assert!(is_ready, "{missing}");
    assert_eq!(missing, "pool spare: 0 of 1 endpoints ready: others answer its requests\n");

    drop(two);
    proxy.wait_ready(1).await;
    let (is_ready, missing) = readiness(&proxy).await;
    assert!(!is_ready && missing.starts_with("tcp listener: its pool two"), "{missing}");
    drop(one);
    let missing = eventually("both routes out", async || {
        let (_, missing) = readiness(&proxy).await;
        missing.contains("route a:").then_some(missing)
    })
    .await;
    assert!(missing.contains("route rest:") && !missing.contains("unused"), "{missing}");
    assert_eq!(proxy.metric("forebay_route_ready", &["route=\"a\""]).await, 0.0);
}
