//! Copies of requests whose answers are compared, and that no client notices.

use crate::client::{get, post, post_with};
use crate::endpoint::{Behaviour, Endpoint};
use crate::grpc_client::{SERVICE, call_with, framed};
use crate::harness::{ARITH, Folder, Proxy, Worker, anywhere, eventually};
use crate::scripted::{Answers, Scripted, Send};
use forebay_protocol::grpc::{Code, infer as wire};
use forebay_protocol::oip::{Data, InferRequest, Tensor};
use serde_json::Value;
use std::net::SocketAddr;

const INFER: &str = "/v2/models/m/infer";
const PROBE: &str = "probe = { interval = \"300ms\", fast_interval = \"30ms\" }";

/// A stable variant that answers all clients and a canary that gets all copies.
fn config((stable, canary): (SocketAddr, SocketAddr), keys: &str, more: &str) -> String {
    format!(
        "[pool.a]\nendpoints = [\"{stable}\"]\n{PROBE}\n\
         [pool.b]\nendpoints = [\"{canary}\"]\n{PROBE}\n\
         [[route]]\nname = \"r\"\n{keys}\n\
         [[route.variant]]\nname = \"stable\"\npool = \"a\"\nweight = 1000\n\
         [[route.variant]]\nname = \"canary\"\npool = \"b\"\nweight = 0\n\
         [route.shadow]\nvariant = \"canary\"\nshare = \"100%\"\n{more}\n"
    )
}

async fn start(both: (SocketAddr, SocketAddr), keys: &str, more: &str) -> Proxy {
    let proxy = Proxy::start(&config(both, keys, more)).await;
    proxy.wait_ready(2).await;
    proxy
}

/// An endpoint that answers everything with this JSON.
async fn answering(body: &str) -> Scripted {
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    Scripted::start(Answers::Requests, vec![Send(answer)]).await
}

fn outputs(datatype: &str, shape: &str, data: &str) -> String {
    format!(
        "{{\"model_name\":\"m\",\"outputs\":[{{\"name\":\"y\",\"datatype\":\"{datatype}\",\
         \"shape\":{shape},\"data\":{data}}}]}}"
    )
}

/// The route's counts of copies in `/status`.
async fn counts(proxy: &Proxy) -> Value {
    proxy.status().await["routes"][0]["shadow"].clone()
}

/// Asks until so many copies have ended in this way; every client must get the stable answer.
async fn ask_until(proxy: &Proxy, path: &str, outcome: &str, count: u64) {
    eventually(outcome, async || {
        let answer = post(proxy.address, path, "{\"model\":\"m\",\"input\":\"x\"}").await;
        assert_eq!((answer.status.as_u16(), answer.header("x-forebay-variant")), (200, "stable"));
        (counts(proxy).await["outcomes"][outcome].as_u64().unwrap() >= count).then_some(())
    })
    .await;
}

/// Waits until these differences are `mean` in the mean: copies may still be under way.
async fn settles(proxy: &Proxy, labels: &[&str], mean: f64) {
    eventually(&format!("a mean of {mean} of {labels:?}"), async || {
        let count = proxy.metric("forebay_shadow_difference_count", labels).await;
        let sum = proxy.metric("forebay_shadow_difference_sum", labels).await;
        (count >= 3.0 && (sum / count - mean).abs() < 1e-6).then_some(())
    })
    .await;
}

/// The next line of a copy.
fn shadow_line(proxy: &Proxy) -> Value {
    loop {
        let line = proxy.next_line();
        if !line["shadow"].is_null() && line["variant"] == "canary" {
            return line;
        }
        assert_ne!(line["variant"], "canary", "a copy that is not marked: {line}");
    }
}

#[tokio::test]
async fn answers_are_compared_tensor_by_tensor_and_the_worst_are_kept() {
    let stable = answering(&outputs("FP32", "[1,2]", "[0.25,0.75]")).await;
    let canary = answering(&outputs("FP32", "[1,2]", "[0.75,0.25]")).await;
    let folder = Folder::new();
    let report = folder.0.join("worst.jsonl");
    let more = format!("report = \"{}\"\nworst = 2", report.display());
    let proxy = start((stable.address, canary.address), "", &more).await;
    ask_until(&proxy, INFER, "differs", 4).await;

    let line = shadow_line(&proxy);
    assert_eq!(
        (&line["shadow"]["of"], &line["shadow"]["outcome"]),
        (&"stable".into(), &"differs".into())
    );
    assert!(line["shadow"]["score"].as_f64().unwrap() > 0.5, "{line}");
    assert_eq!(
        (&line["priority"], &line["status"], &line["pool"]),
        (&"batch".into(), &200.into(), &"b".into())
    );
    let sent = canary.bytes(0);
    assert!(
        sent.contains("x-forebay-shadow: 1") && sent.contains("x-request-priority: batch"),
        "{sent}"
    );

    let of = |measure: &str| format!("measure=\"{measure}\"");
    for (measure, sum) in
        [("max_absolute", 0.5), ("mean_absolute", 0.5), ("argmax_disagreement", 1.0)]
    {
        let labels = ["against=\"shadow\"", "output=\"y\"", "model=\"m\"", &of(measure)];
        settles(&proxy, &labels, sum).await;
    }
    // No client's figure knows of them.
    assert_eq!(proxy.metric("forebay_requests_total", &["variant=\"canary\""]).await, 0.0);
    assert_eq!(proxy.metric("forebay_attempts_total", &["pool=\"b\""]).await, 0.0);
    let table = get(proxy.admin, "/status?format=text").await.text();
    assert!(table.contains("100% copied to canary: "), "{table}");

    let lines = eventually("the report", async || {
        let text = std::fs::read_to_string(&report).ok()?;
        let lines: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (lines.len() == 2).then_some(lines)
    })
    .await;
    assert_eq!(lines[0]["differences"][0]["disagreement"], 1.0, "{}", lines[0]);
    assert!(lines[0]["request"]["text"].as_str().unwrap().contains("input"));
    assert!(lines[0]["answer"]["text"].as_str().unwrap().contains("[0.25,0.75]"));
    assert!(lines[0]["shadow_answer"]["text"].as_str().unwrap().contains("[0.75,0.25]"));
}

#[tokio::test]
async fn outputs_that_are_not_alike_failures_and_unreadable_answers_are_told_apart() {
    let given = outputs("FP32", "[2]", "[1,2]");
    for (other, outcome) in [
        (given.clone(), "equal"),
        (outputs("FP32", "[2]", "[1,2.5]"), "differs"),
        (outputs("INT32", "[2]", "[1,2]"), "mismatch"),
        (outputs("FP32", "[2,1]", "[1,2]"), "mismatch"),
        ("{\"model_name\":\"m\",\"outputs\":[]}".to_owned(), "mismatch"),
        ("{}".to_owned(), "unread"),
    ] {
        let (stable, canary) = (answering(&given).await, answering(&other).await);
        let proxy = start((stable.address, canary.address), "", "").await;
        ask_until(&proxy, INFER, outcome, 2).await;
        let found = counts(&proxy).await;
        let all = found["outcomes"].as_object().unwrap().values();
        assert_eq!(
            all.map(|count| count.as_u64().unwrap()).filter(|count| *count > 0).count(),
            1,
            "{found}"
        );
    }
}

#[tokio::test]
async fn embeddings_are_compared_by_their_angle() {
    let body = |numbers: &str| format!("{{\"data\":[{{\"index\":0,\"embedding\":{numbers}}}]}}");
    let (stable, canary) = (answering(&body("[1,0]")).await, answering(&body("[0,1]")).await);
    let proxy = start((stable.address, canary.address), "", "").await;
    ask_until(&proxy, "/v1/embeddings", "differs", 3).await;
    let labels = ["against=\"shadow\"", "output=\"embedding\"", "measure=\"cosine_distance\""];
    settles(&proxy, &labels, 1.0).await;
    // Another kind of request is not copied.
    assert_eq!(post(proxy.address, "/v1/other", "x").await.status, 200);
    assert_eq!(get(proxy.address, "/v2/models/m").await.status, 200);
}

#[tokio::test]
async fn over_grpc_and_of_real_models_equal_answers_are_equal() {
    let worker = Worker::start(anywhere()).await;
    let proxy = start((worker.address, worker.address), "", "").await;
    let tensor =
        |name: &str| Tensor::new(name, vec![1, 4], Data::Fp32(vec![2.0; 4].into())).unwrap();
    let request =
        InferRequest { inputs: vec![tensor("a"), tensor("b")], ..InferRequest::default() };
    let message = framed(&wire::write_request("arith", None, &request));
    let method = format!("{SERVICE}/ModelInfer");
    let ended = eventually("equal answers", async || {
        let fields = [("accept-encoding", "gzip")];
        let answer = call_with(proxy.address, &method, &fields, message.clone());
        let answer = answer.await;
        assert_eq!(answer.code(), Code::Ok, "{}", answer.words());
        let rest = post_with(proxy.address, "/v2/models/arith/infer", &fields, ARITH).await;
        assert_eq!(rest.status, 200);
        let found = counts(&proxy).await;
        (found["outcomes"]["equal"].as_u64().unwrap() >= 6).then_some(found)
    })
    .await;
    for outcome in ["differs", "mismatch", "failed", "unread"] {
        assert_eq!(ended["outcomes"][outcome], 0, "{ended}");
    }
}

#[tokio::test]
async fn a_shadow_that_fails_costs_neither_retries_nor_its_endpoint() {
    let stable = answering(&outputs("FP32", "[1]", "[1]")).await;
    let canary = Endpoint::start(Behaviour::Failing).await;
    let proxy = start((stable.address, canary.address), "", "").await;
    ask_until(&proxy, INFER, "failed", 20).await;
    canary.becomes(Behaviour::Reset);
    ask_until(&proxy, INFER, "failed", 40).await;
    assert_eq!(proxy.metric("forebay_retries_total", &[]).await, 0.0);
    assert_eq!(proxy.metric("forebay_ejections_total", &[]).await, 0.0);
    proxy.wait_ready(2).await;
    let line = shadow_line(&proxy);
    assert_eq!((&line["shadow"]["outcome"], &line["status"]), (&"failed".into(), &500.into()));
}

#[tokio::test]
async fn a_shadow_that_hangs_ends_at_the_deadline_and_holds_nothing_else() {
    let stable = answering(&outputs("FP32", "[1]", "[1]")).await;
    let canary = Endpoint::start(Behaviour::Silent).await;
    let both = (stable.address, canary.address);
    let proxy = start(both, "deadline = \"500ms\"", "").await;
    ask_until(&proxy, INFER, "failed", 3).await;
    eventually("the end of all copies", async || {
        let held = proxy.metric("forebay_memory_held_bytes", &[]).await;
        let busy = proxy.metric("forebay_endpoint_in_flight", &["pool=\"b\""]).await;
        (held == 0.0 && busy == 0.0).then_some(())
    })
    .await;
    let line = shadow_line(&proxy);
    assert_eq!(line["reason"], "deadline_exceeded", "{line}");

    // With far more time, a drain does not wait for it.
    let mut proxy = start(both, "deadline = \"50s\"", "").await;
    let came = canary.served();
    eventually("a copy under way", async || {
        assert_eq!(post(proxy.address, INFER, "x").await.status, 200);
        (canary.served() > came).then_some(())
    })
    .await;
    eventually("no request in flight beside the copy", async || {
        (proxy.metric("forebay_requests_in_flight", &[]).await == 0.0).then_some(())
    })
    .await;
    let started = std::time::Instant::now();
    proxy.signal(rustix::process::Signal::TERM);
    assert!(proxy.ended().await.success());
    assert!(started.elapsed().as_secs() < 10, "{:?}", started.elapsed());
}

#[tokio::test]
async fn copies_give_way_where_requests_wait() {
    let endpoint = Endpoint::start(Behaviour::Gated).await;
    let text = config((endpoint.address, endpoint.address), "", "");
    // One pool for both, with a single slot.
    let text = text.replace("pool = \"b\"", "pool = \"a\"").replacen(
        PROBE,
        &format!("{PROBE}\nslots = 1"),
        1,
    );
    let proxy = Proxy::start(&text).await;
    proxy.wait_ready(2).await;
    let address = proxy.address;
    let ask = || tokio::spawn(async move { post(address, INFER, "x").await.status });
    let clients: Vec<_> = (0..6).map(|_| ask()).collect();
    eventually("three that wait", async || {
        let queued = proxy.metric("forebay_queued_requests", &["pool=\"a\""]).await;
        (queued >= 3.0).then_some(())
    })
    .await;
    // An answer lets one of them go, so that one waits still when the second one is away.
    endpoint.let_go(2);
    eventually("dropped copies", async || {
        (counts(&proxy).await["dropped"]["queued"] == 2).then_some(())
    })
    .await;
    endpoint.let_go(100);
    for client in clients {
        assert_eq!(client.await.unwrap(), 200);
    }
    eventually("a copy once nothing waits", async || (endpoint.served() > 6).then_some(())).await;
}

#[test]
fn a_shadow_is_one_of_the_routes_variants() {
    let folder = Folder::new();
    let file = folder.0.join("test.toml");
    let text = config((anywhere(), anywhere()), "", "");
    for (from, to, words) in [
        (
            "[route.shadow]\nvariant = \"canary\"",
            "[route.shadow]\nvariant = \"x\"",
            "one of the route's variants",
        ),
        ("[route.shadow]\nvariant = \"canary\"", "[route.shadow]", "variant"),
        ("share = \"100%\"", "share = \"101%\"", "found \"101%\""),
        ("share = \"100%\"", "share = \"1%\"\nworst = 0", "1 to 1000"),
    ] {
        let text = text.replace(from, to);
        std::fs::write(&file, format!("[[listener]]\naddress = \"127.0.0.1:0\"\n{text}")).unwrap();
        let program = env!("CARGO_BIN_EXE_forebay");
        let output = std::process::Command::new(program).arg("check").arg(&file).output().unwrap();
        let found = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{to}");
        assert!(found.contains(words), "{to}: {found}");
    }
}
