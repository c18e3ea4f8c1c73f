//! Clients that stay with a variant, requests that ask for one, and weights that change while the proxy runs.

use crate::client::{get, post, post_with};
use crate::endpoint::{Behaviour, Endpoint};
use crate::grpc_client::{SERVICE, call_with, framed};
use crate::harness::{ARITH, Proxy, Worker, anywhere, eventually};
use forebay_protocol::grpc::{Code, infer as wire};
use forebay_protocol::oip::{Data, InferRequest, Tensor};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

const INFER: &str = "/v2/models/m/infer";
const PROBE: &str = "probe = { interval = \"300ms\", fast_interval = \"30ms\" }";

/// Two pools and a route between them, with these keys of its own.
fn config((stable, canary): (SocketAddr, SocketAddr), keys: &str, weight: u32) -> String {
    format!(
        "[pool.a]\nendpoints = [\"{stable}\"]\n{PROBE}\n\
         [pool.b]\nendpoints = [\"{canary}\"]\n{PROBE}\n\
         [[route]]\nname = \"r\"\n{keys}\n\
         [[route.variant]]\nname = \"stable\"\npool = \"a\"\nweight = {}\n\
         [[route.variant]]\nname = \"canary\"\npool = \"b\"\nweight = {weight}\n",
        1000 - weight
    )
}

/// A proxy with two endpoints that echo.
async fn split(keys: &str, weight: u32) -> (Proxy, [Endpoint; 2]) {
    let both = [Endpoint::start(Behaviour::Echo).await, Endpoint::start(Behaviour::Echo).await];
    let proxy = Proxy::start(&config((both[0].address, both[1].address), keys, weight)).await;
    proxy.wait_ready(2).await;
    (proxy, both)
}

/// The variants of some users by their header, and how the log says that they came to them.
async fn by_user(proxy: &Proxy, weight: u32) -> BTreeMap<u32, String> {
    let mut variants = BTreeMap::new();
    for user in 0..40_u32 {
        let answer = post_with(proxy.address, INFER, &[("x-user", &user.to_string())], "x").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let variant = answer.header("x-forebay-variant").to_owned();
        let line = proxy.next_line();
        assert_eq!(line["assignment"], "sticky");
        assert_eq!(line["variant"], variant);
        let own = if line["variant"] == "canary" { weight } else { 1000 - weight };
        assert_eq!(line["weight"], own);
        variants.insert(user, variant);
    }
    variants
}

async fn set(proxy: &Proxy, body: &str) -> crate::client::Response {
    post(proxy.admin, "/routes/r/weights", body.to_owned()).await
}

/// Waits until the log has these words.
async fn logged(proxy: &Proxy, words: &str) {
    eventually(words, async || proxy.messages().contains(words).then_some(())).await;
}

#[tokio::test]
async fn raising_a_weight_moves_clients_one_way_and_lowering_it_moves_them_back() {
    let (proxy, _both) = split("sticky = { header = \"x-user\" }", 0).await;
    let mut seen = vec![by_user(&proxy, 0).await];
    for weight in [100, 400, 800, 1000] {
        let answer = set(&proxy, &format!("{{\"weights\":{{\"canary\":{weight}}}}}")).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let after = by_user(&proxy, weight).await;
        let before = seen.last().unwrap();
        let went_back = before.iter().filter(|(it, was)| *was == "canary" && after[it] != "canary");
        assert_eq!(went_back.count(), 0, "at {weight}");
        seen.push(after);
    }
    assert!(seen[4].values().all(|variant| variant == "canary"));
    assert!(seen[2].values().collect::<BTreeSet<_>>().len() == 2, "{:?}", seen[2]);
    for (weight, expected) in [(800, 3), (400, 2), (100, 1)] {
        assert_eq!(
            set(&proxy, &format!("{{\"weights\":{{\"canary\":{weight}}}}}")).await.status,
            200
        );
        assert_eq!(by_user(&proxy, weight).await, seen[expected], "the same ones at {weight}");
    }
    // Without the key, each request is drawn by itself.
    assert_eq!(post(proxy.address, INFER, "x").await.status, 200);
    assert_eq!(proxy.next_line()["assignment"], "drawn");
}

#[tokio::test]
async fn a_cookie_keeps_a_client_with_its_variant_and_a_malformed_one_is_replaced() {
    let keys = "sticky = { cookie = \"split\", max_age = \"1h\" }";
    let (proxy, _both) = split(keys, 500).await;
    let mut used = BTreeSet::new();
    for _ in 0..16 {
        let first = post(proxy.address, INFER, "x").await;
        let cookie = first.header("set-cookie").to_owned();
        let (pair, rest) = cookie.split_once("; ").unwrap();
        assert_eq!(rest, "Path=/; Max-Age=3600; SameSite=Lax; HttpOnly");
        let variant = first.header("x-forebay-variant").to_owned();
        for field in [pair.to_owned(), format!("a=b; {pair}; c=d")] {
            let again = post_with(proxy.address, INFER, &[("cookie", &field)], "x").await;
            assert_eq!(again.header("x-forebay-variant"), variant, "{field}");
            assert_eq!(again.header("set-cookie"), "", "it has one");
        }
        used.insert(variant);
    }
    assert_eq!(used.len(), 2, "{used:?}");
    for malformed in ["split=", "split", "split=\"; DROP\"", "split=%00", ";;;=;", "x=1"] {
        let answer = post_with(proxy.address, INFER, &[("cookie", malformed)], "x").await;
        assert_eq!(answer.status, 200);
        assert!(answer.header("set-cookie").starts_with("split="), "{malformed}");
    }
}

#[tokio::test]
async fn a_client_is_one_by_its_address_or_by_the_header_that_names_clients() {
    let limits = "[limits]\nclient_header = \"x-client\"\n";
    let both = [Endpoint::start(Behaviour::Echo).await, Endpoint::start(Behaviour::Echo).await];
    let text = config((both[0].address, both[1].address), "sticky = \"client\"", 500);
    let proxy = Proxy::start(&format!("{limits}{text}")).await;
    proxy.wait_ready(2).await;
    let mut variants = BTreeMap::new();
    for turn in 0..2 {
        for client in 0..24 {
            let fields = [("x-client", &*client.to_string())];
            let answer = post_with(proxy.address, INFER, &fields, "x").await;
            let variant = answer.header("x-forebay-variant").to_owned();
            let before = variants.insert(client, variant.clone());
            assert!(turn == 0 || before == Some(variant), "{client} has moved");
        }
    }
    assert_eq!(variants.values().collect::<BTreeSet<_>>().len(), 2);
    // By the address, all of these are one.
    let mut variants = BTreeSet::new();
    for _ in 0..12 {
        let answer = post(proxy.address, INFER, "x").await;
        variants.insert(answer.header("x-forebay-variant").to_owned());
    }
    assert_eq!(variants.len(), 1, "{variants:?}");
}

#[tokio::test]
async fn a_request_may_ask_for_a_variant_where_its_route_lets_it() {
    let asks = |name| [("x-forebay-variant", name)];
    let (proxy, both) = split("allow_override = true\nfallback = [\"a\"]", 0).await;
    for name in ["canary", "stable", "canary"] {
        let answer = post_with(proxy.address, INFER, &asks(name), "x").await;
        assert_eq!((answer.status.as_u16(), answer.header("x-forebay-variant")), (200, name));
        let line = proxy.next_line();
        assert_eq!(line["assignment"], "asked");
        assert!(line["weight"].is_null());
    }
    for unknown in ["nosuch", "", "CANARY", "a\u{e9}"] {
        let answer = post_with(proxy.address, INFER, &asks(unknown), "x").await;
        assert_eq!((answer.status.as_u16(), answer.reason()), (400, "invalid_request"));
        assert!(answer.text().contains("no such variant"), "{}", answer.text());
        assert!(!answer.text().contains("stable"), "names are not given away: {}", answer.text());
    }
    let labels = ["variant=\"canary\"", "assignment=\"asked\""];
    assert_eq!(proxy.metric("forebay_variant_assignments_total", &labels).await, 2.0);
    // No other answers for it.
    let [_stable, canary] = both;
    drop(canary);
    proxy.wait_ready(1).await;
    let answer = post_with(proxy.address, INFER, &asks("canary"), "x").await;
    assert_eq!((answer.status.as_u16(), answer.reason()), (503, "no_endpoint"));

    let (proxy, _both) = split("", 0).await;
    let answer = post_with(proxy.address, INFER, &asks("canary"), "x").await;
    assert_eq!((answer.status.as_u16(), answer.header("x-forebay-variant")), (200, "stable"));
    assert_eq!(proxy.next_line()["assignment"], "drawn");
}

#[tokio::test]
async fn over_grpc_metadata_are_the_key_and_the_wish() {
    let worker = Worker::start(anywhere()).await;
    let both = (worker.address, worker.address);
    let keys = "sticky = { header = \"x-user\" }\nallow_override = true";
    let text = config(both, keys, 500);
    let proxy = Proxy::start(&text).await;
    proxy.wait_ready(2).await;
    let tensor =
        |name: &str| Tensor::new(name, vec![1, 4], Data::Fp32(vec![2.0; 4].into())).unwrap();
    let request =
        InferRequest { inputs: vec![tensor("a"), tensor("b")], ..InferRequest::default() };
    let message = framed(&wire::write_request("arith", None, &request));
    let method = format!("{SERVICE}/ModelInfer");
    let ask = async |fields: &[(&str, &str)]| {
        call_with(proxy.address, &method, fields, message.clone()).await
    };
    let mut used = BTreeSet::new();
    for user in 0..16 {
        let fields = [("x-user", &*user.to_string())];
        let (first, again) = (ask(&fields).await, ask(&fields).await);
        assert_eq!(first.code(), Code::Ok, "{}", first.words());
        let variant = first.headers["x-forebay-variant"].clone();
        assert_eq!(again.headers["x-forebay-variant"], variant);
        // The same client over REST.
        let path = "/v2/models/arith/infer";
        let rest = post_with(proxy.address, path, &fields, ARITH).await;
        assert_eq!(rest.header("x-forebay-variant"), variant.to_str().unwrap());
        used.insert(variant.to_str().unwrap().to_owned());
    }
    assert_eq!(used.len(), 2, "{used:?}");
    for name in ["stable", "canary"] {
        assert_eq!(ask(&[("x-forebay-variant", name)]).await.headers["x-forebay-variant"], name);
    }
    let refused = ask(&[("x-forebay-variant", "nosuch")]).await;
    refused.refused(Code::InvalidArgument, "invalid_request", "no such variant");
}

#[tokio::test]
async fn weights_change_without_a_reload_and_survive_one_until_the_file_says_otherwise() {
    let (proxy, both) = split("", 50).await;
    let weights = async || get(proxy.admin, "/routes/r/weights").await.json();
    let said = weights().await;
    assert_eq!(
        (&said["weights"]["canary"], &said["configured"]["canary"]),
        (&50.into(), &50.into())
    );

    let admin = proxy.admin.to_string();
    let cli = async |pairs: &[&str]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_forebay"));
        command.args(["rollout", "weight", "--admin", &admin, "r"]).args(pairs);
        let output = command.output().await.unwrap();
        let words = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(words).unwrap())
    };
    let told = "r: canary=1000 (50 in the file) stable=0 (950 in the file)\n";
    assert_eq!(cli(&["canary=100%"]).await, (Some(0), told.to_owned()));
    assert_eq!(cli(&[]).await, (Some(0), told.to_owned()));
    for _ in 0..8 {
        assert_eq!(post(proxy.address, INFER, "x").await.header("x-forebay-variant"), "canary");
        let line = proxy.next_line();
        assert_eq!((&line["assignment"], &line["weight"]), (&"drawn".into(), &1000.into()));
    }
    assert_eq!(proxy.metric("forebay_variant_weight", &["variant=\"canary\""]).await, 1000.0);
    let table = get(proxy.admin, "/status?format=text").await.text();
    assert!(table.contains("0% stable at pool a, canary at pool b"), "{table}");
    logged(&proxy, "\"to\":\"stable=0 canary=1000\"").await;

    // A change that is refused changes nothing.
    for (body, status, words) in [
        ("", 400, "expected {"),
        ("{\"weights\":{}}", 422, "found none"),
        ("{\"weights\":{\"nosuch\":5}}", 422, "no variant \\\"nosuch\\\""),
        ("{\"weights\":{\"canary\":5,\"stable\":5}}", 422, "found 10"),
        ("{\"weights\":{\"canary\":1001}}", 422, "found 1001"),
        ("{\"weights\":{\"canary\":5,\"canary\":6}}", 422, "\\\"canary\\\" again"),
    ] {
        let answer = set(&proxy, body).await;
        assert_eq!(answer.status, status, "{body}: {}", answer.text());
        assert!(answer.text().contains(words), "{body}: {}", answer.text());
    }
    let long = format!("{{\"weights\":{{\"{}\":5}}}}", "x".repeat(70_000));
    assert_eq!(set(&proxy, &long).await.status, 400);
    assert_eq!(
        post(proxy.admin, "/routes/nosuch/weights", "{\"weights\":{\"a\":1}}").await.status,
        404
    );
    assert_eq!(get(proxy.admin, "/routes/r/nosuch").await.status, 404);
    let foreign = [("origin", "http://evil.example")];
    let answer =
        post_with(proxy.admin, "/routes/r/weights", &foreign, "{\"weights\":{\"canary\":0}}");
    assert_eq!(answer.await.status, 403);
    assert_eq!(weights().await["weights"]["canary"], 1000);
    let refused = cli(&["canary=5", "stable=5"]).await;
    assert_eq!(refused.0, Some(1), "{}", refused.1);
    assert!(refused.1.contains("expected weights that add up to 1000"), "{}", refused.1);

    let reload = async || assert_eq!(post(proxy.admin, "/reload", "").await.status, 200);
    reload().await;
    assert_eq!(weights().await["weights"]["canary"], 1000, "the file says the same");
    let text = std::fs::read_to_string(&proxy.config).unwrap();
    let own = config((both[0].address, both[1].address), "", 50);
    let other = config((both[0].address, both[1].address), "", 60);
    std::fs::write(&proxy.config, text.replace(&own, &other)).unwrap();
    reload().await;
    assert_eq!(weights().await["weights"]["canary"], 60, "the file says something else");
    logged(&proxy, "\"by\":\"reload\"").await;
}

#[tokio::test]
async fn a_canary_that_weights_were_moved_to_and_that_is_gone_costs_no_request() {
    let (proxy, both) = split("", 0).await;
    let answer = set(&proxy, "{\"weights\":{\"canary\":1000}}").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let [_stable, canary] = both;
    drop(canary);
    proxy.wait_ready(1).await;
    // No weight is left to the other.
    let answer = post(proxy.address, INFER, "x").await;
    assert_eq!((answer.status.as_u16(), answer.reason()), (503, "no_endpoint"));
    assert_eq!(proxy.next_line()["assignment"], "drawn");
    assert_eq!(get(proxy.admin, "/readyz").await.status, 503, "no pool answers the route");

    assert_eq!(set(&proxy, "{\"weights\":{\"canary\":990}}").await.status, 200);
    assert_eq!(get(proxy.admin, "/readyz").await.status, 200);
    for _ in 0..16 {
        let answer = post(proxy.address, INFER, "x").await;
        assert_eq!((answer.status.as_u16(), answer.header("x-forebay-variant")), (200, "stable"));
        let line = proxy.next_line();
        let moved = (&"moved".into(), &990.into());
        let drawn = (&"drawn".into(), &10.into());
        let found = (&line["assignment"], &line["weight"]);
        assert!(found == moved || found == drawn, "{line}");
    }
}

#[tokio::test]
async fn keys_that_can_not_be_are_refused() {
    let folder = crate::harness::Folder::new();
    let file = folder.0.join("test.toml");
    let nowhere = anywhere();
    for (keys, words) in [
        ("sticky = \"user\"", "found \"user\""),
        ("sticky = 5", "expected a table"),
        ("sticky = {}", "expected either a header or a cookie"),
        ("sticky = { header = \"x\", cookie = \"y\" }", "expected either a header or a cookie"),
        ("sticky = { header = \"a b\" }", "expected the name of a header"),
        ("sticky = { header = \"x\", max_age = \"1h\" }", "max_age"),
        ("sticky = { cookie = \"a;b\" }", "expected the name of a cookie"),
        ("sticky = { cookie = \"a\", max_age = \"1ms\" }", "expected at least 1s"),
        ("sticky = { cookie = \"a\", more = 1 }", "more"),
        ("sticky = { cookie = \"a\" }\ncache = { public = true }", "expected no cookie"),
        ("allow_override = \"yes\"", "allow_override"),
    ] {
        let text = format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n{}",
            config((nowhere, nowhere), keys, 5)
        );
        std::fs::write(&file, text).unwrap();
        let program = env!("CARGO_BIN_EXE_forebay");
        let output = std::process::Command::new(program).arg("check").arg(&file).output().unwrap();
        let words_found = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{keys}");
        assert!(words_found.contains(words), "{keys}: {words_found}");
    }
}
