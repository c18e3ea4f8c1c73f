//! The response cache: which requests have one answer, which must not, and for how long.

mod embeddings;
mod freshness;
mod get_infer;
mod restart;
mod shared;

use crate::client::{Response, get, post, post_with};
use crate::endpoint::{Behaviour, Endpoint};
use crate::grpc_client::call;
use crate::harness::{ARITH, Folder, MAX_WAIT, Proxy, Worker, anywhere, eventually, test_models};
use flate2::Compression;
use flate2::write::GzEncoder;
use forebay_protocol::grpc::{Code, infer as wire};
use forebay_protocol::oip::{
    Data, InferRequest, InferResponse, Parameter, RequestedOutput, Tensor,
};
use std::io::Write;
use std::net::SocketAddr;
use tokio::task::JoinSet;

const INFER: &str = "/v2/models/arith/infer";
const MODEL_INFER: &str = "/inference.GRPCInferenceService/ModelInfer";
const JSON_LENGTH: &str = "inference-header-content-length";

fn config(endpoint: SocketAddr, cache: &str) -> String {
    format!(
        "[pool.test]\nendpoints = [\"{endpoint}\"]\n\
         probe = {{ interval = \"300ms\", fast_interval = \"30ms\" }}\n\
         [[route]]\nname = \"r\"\npool = \"test\"\n[route.cache]\n{cache}\n"
    )
}

async fn in_front_of(endpoint: SocketAddr, cache: &str) -> Proxy {
    let proxy = Proxy::start(&config(endpoint, cache)).await;
    proxy.wait_ready(1).await;
    proxy
}

/// The part of the cache in an answer: `hit`, `miss`, `stored` and so on.
fn status(answer: &Response) -> &str {
    let status = answer.header("cache-status");
    status.rsplit_once("; ").map_or(status, |(_, last)| last).split('=').next().unwrap_or_default()
}

fn is_hit(answer: &Response) -> bool {
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.header("cache-status").starts_with("forebay; hit")
}

/// A request for the sum of two vectors.
fn request(a: f32) -> InferRequest {
    let tensor = |name: &str, value| {
        Tensor::new(name, vec![1, 4], Data::Fp32(vec![value; 4].into())).unwrap()
    };
    InferRequest { inputs: vec![tensor("a", a), tensor("b", 1.0)], ..InferRequest::default() }
}

async fn ask(proxy: &Proxy, request: &InferRequest, binary: bool) -> Response {
    let encoded = request.encode(|_| binary).unwrap();
    let length = encoded.json_len.map(|length| length.to_string());
    let headers: Vec<_> = length.iter().map(|length| (JSON_LENGTH, length.as_str())).collect();
    post_with(proxy.address, INFER, &headers, encoded.body).await
}

fn read(answer: &Response) -> InferResponse {
    let length = answer.header(JSON_LENGTH).parse().ok();
    InferResponse::parse(&answer.body, length).unwrap()
}

fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn every_form_of_one_request_has_one_answer_in_the_form_asked_for() {
    let worker = Worker::start(anywhere()).await;
    let proxy = in_front_of(worker.address, "ttl = \"10m\"").await;
    let asked = InferRequest { id: Some("first".to_owned()), ..request(2.0) };
    let first = ask(&proxy, &asked, false).await;
    assert_eq!(first.status, 200, "{}", first.text());
    assert_eq!(first.header("cache-status"), "forebay; fwd=miss; stored");
    assert_eq!(first.header("x-forebay-model-content"), "", "it is for the proxy alone");
    let expected = read(&first);
    assert_eq!(expected.id.as_deref(), Some("first"));
    assert_eq!(proxy.next_line()["cache"], "miss");

    for (id, binary, answers_binary) in
        [(None, false, false), (Some("mine"), true, false), (None, true, true)]
    {
        let output = |name: &str| RequestedOutput { name: name.to_owned(), ..Default::default() };
        assert!(!expected.outputs.is_empty() && output("x").name == "x");
        let parameters = [("binary_data_output".to_owned(), Parameter::Bool(answers_binary))];
        let asked = InferRequest {
            id: id.map(str::to_owned),
            parameters: parameters.into_iter().collect(),
            ..request(2.0)
        };
        let answer = ask(&proxy, &asked, binary).await;
        assert!(is_hit(&answer), "{:?}", answer.headers);
        assert_eq!(answer.header("age"), "0");
        assert_eq!(!answer.header(JSON_LENGTH).is_empty(), answers_binary);
        let found = read(&answer);
        assert_eq!(found.id.unwrap_or_default(), id.unwrap_or_default());
        assert_eq!(found.outputs, expected.outputs);
        let line = proxy.next_line();
        assert_eq!((&line["cache"], &line["attempts"]), (&"hit".into(), &0.into()));
    }
    let body = gzipped(&request(2.0).encode(|_| false).unwrap().body);
    let zipped = post_with(proxy.address, INFER, &[("content-encoding", "gzip")], body).await;
    assert!(is_hit(&zipped));
    let message = wire::write_request(
        "arith",
        None,
        &InferRequest { id: Some("g".to_owned()), ..request(2.0) },
    );
    let ended = call(proxy.address, MODEL_INFER, &message).await;
    assert_eq!(ended.code(), Code::Ok, "{}", ended.words());
    assert!(ended.headers["cache-status"].to_str().unwrap().starts_with("forebay; hit"));
    let found = wire::read_response(&ended.messages[0]).unwrap();
    assert_eq!((found.id.as_deref(), found.outputs), (Some("g"), expected.outputs));
    // A request is counted when it has ended, which its client need not wait for.
    eventually("five hits to be counted", async || {
        let hits = proxy.metric("forebay_cache_requests_total", &["outcome=\"hit\""]).await;
        ((hits - 5.0).abs() < 0.5).then_some(())
    })
    .await;
    assert!((proxy.metric("forebay_cache_entries", &[]).await - 1.0).abs() < 0.5);
}

#[tokio::test]
async fn a_request_that_comes_again_in_the_same_bytes_has_the_answer_that_is_kept_now() {
    let worker = Worker::start(anywhere()).await;
    let proxy = in_front_of(worker.address, "").await;
    let with_id = |id: &str| InferRequest { id: Some(id.to_owned()), ..request(2.0) };
    for round in 0..3 {
        let first = ask(&proxy, &request(2.0), false).await;
        assert_eq!(status(&first), "stored", "{round}");
        for _ in 0..4 {
            for binary in [false, true] {
                let again = ask(&proxy, &request(2.0), binary).await;
                assert!(is_hit(&again));
                assert_eq!(read(&again).outputs, read(&first).outputs);
                assert_eq!(again.header(JSON_LENGTH), first.header(JSON_LENGTH));
                assert_eq!(again.header("content-type"), first.header("content-type"));
            }
            let named = ask(&proxy, &with_id(&round.to_string()), false).await;
            assert!(is_hit(&named));
            assert_eq!(read(&named).id, Some(round.to_string()));
            let message = wire::write_request("arith", None, &request(2.0));
            let called = call(proxy.address, MODEL_INFER, &message).await;
            assert!(called.headers["cache-status"].to_str().unwrap().starts_with("forebay; hit"));
            assert_eq!(
                wire::read_response(&called.messages[0]).unwrap().outputs,
                read(&first).outputs
            );
        }
        // It is known which question these bytes ask, but there is no kept answer.
        post(proxy.admin, "/cache/purge", "").await;
    }
}

#[tokio::test]
async fn a_kept_answer_of_grpc_serves_rest() {
    let worker = Worker::start(anywhere()).await;
    let proxy = in_front_of(worker.address, "").await;
    let message = wire::write_request("arith", None, &request(3.0));
    let first = call(proxy.address, MODEL_INFER, &message).await;
    assert_eq!(first.code(), Code::Ok, "{}", first.words());
    assert_eq!(first.headers["cache-status"], "forebay; fwd=miss; stored");
    let answer = ask(&proxy, &request(3.0), false).await;
    assert!(is_hit(&answer));
    assert_eq!(read(&answer).outputs, wire::read_response(&first.messages[0]).unwrap().outputs);
}

#[tokio::test]
async fn what_differs_is_asked_again_and_what_is_not_understood_passes_by() {
    let worker = Worker::start(anywhere()).await;
    let proxy = in_front_of(worker.address, "vary = [\"x-tenant\"]").await;
    let first = ask(&proxy, &request(2.0), false).await;
    assert_eq!(status(&first), "stored");
    let output = |count: i64| RequestedOutput {
        name: read(&first).outputs[0].name.clone(),
        parameters: [("classification".to_owned(), Parameter::Int(count))].into_iter().collect(),
    };
    for other in [
        request(-2.0),
        InferRequest { outputs: vec![output(1)], ..request(2.0) },
        InferRequest { outputs: vec![output(2)], ..request(2.0) },
    ] {
        let answer = ask(&proxy, &other, false).await;
        assert_eq!(status(&answer), "stored", "{}", answer.text());
        assert!(is_hit(&ask(&proxy, &other, false).await));
    }
    let body = request(2.0).encode(|_| false).unwrap().body;
    let with = |name: &'static str, value: &'static str| {
        post_with_owned(proxy.address, INFER, name, value, body.clone())
    };
    assert_eq!(status(&with("x-tenant", "a").await), "stored");
    assert!(is_hit(&with("x-tenant", "a").await));
    assert_eq!(status(&with("x-tenant", "b").await), "stored");
    assert_eq!(
        with("authorization", "Bearer x").await.header("cache-status"),
        "forebay; fwd=bypass; detail=authorization"
    );
    let more = String::from_utf8(body.clone()).unwrap().replacen('{', "{\"extra\":1,", 1);
    let answer = post(proxy.address, INFER, more).await;
    assert_eq!(answer.header("cache-status"), "forebay; fwd=bypass; detail=unread");
    let answer = post_with(proxy.address, INFER, &[(JSON_LENGTH, "7")], body.clone()).await;
    assert_eq!(answer.status, 400, "the worker finds the lie");
    let answer = post(proxy.address, &format!("{INFER}?x=1"), body.clone()).await;
    assert_eq!(answer.header("cache-status"), "forebay; fwd=bypass; detail=query");
    let wrong = post(proxy.address, INFER, "{\"inputs\":[]}").await;
    assert_eq!(wrong.status, 400);
    let again = post(proxy.address, INFER, "{\"inputs\":[]}").await;
    assert_eq!((again.status.as_u16(), status(&again)), (400, "fwd"), "errors are not kept");
}

async fn post_with_owned(
    address: SocketAddr,
    path: &str,
    name: &str,
    value: &str,
    body: Vec<u8>,
) -> Response {
    post_with(address, path, &[(name, value)], body).await
}

#[tokio::test]
async fn clients_say_what_they_take_and_what_may_be_kept() {
    let worker = Worker::start(anywhere()).await;
    let proxy = in_front_of(worker.address, "").await;
    let body = request(5.0).encode(|_| false).unwrap().body;
    let with = |value: &'static str| {
        post_with_owned(proxy.address, INFER, "cache-control", value, body.clone())
    };
    let none = with("only-if-cached").await;
    assert_eq!((none.status.as_u16(), none.reason()), (504, "not_cached"));
    assert_eq!(status(&with("no-store").await), "detail");
    assert_eq!(status(&with("max-age=60").await), "stored", "nothing was kept before");
    assert!(is_hit(&with("only-if-cached").await));
    assert!(is_hit(&with("max-age=60").await));
    assert_eq!(status(&with("no-cache").await), "stored");
    assert_eq!(status(&with("max-age=0").await), "stored");
    assert!(is_hit(&with("x").await));
}

#[tokio::test]
async fn clients_of_their_own_do_not_share_answers() {
    let worker = Worker::start(anywhere()).await;
    let text = format!(
        "[limits]\nclient_header = \"x-client\"\n{}",
        config(worker.address, "scope = \"client\"")
    );
    let proxy = Proxy::start(&text).await;
    proxy.wait_ready(1).await;
    let of = |client: &'static str| {
        post_with_owned(proxy.address, INFER, "x-client", client, ARITH.as_bytes().to_vec())
    };
    assert_eq!(status(&of("a").await), "stored");
    assert!(is_hit(&of("a").await));
    assert_eq!(status(&of("b").await), "stored");
    assert_eq!(status(&of("").await), "stored");
}

/// Until so many requests wait for the answer of an equal one.
async fn waiting(proxy: &Proxy, count: u64) {
    eventually("requests to wait", async || {
        let found = get(proxy.admin, "/cache").await.json();
        (found["waiting"] == count).then_some(())
    })
    .await;
}

#[tokio::test]
async fn equal_requests_at_once_are_one_inference() {
    let endpoint = Endpoint::start(Behaviour::Gated).await;
    let proxy = in_front_of(endpoint.address, "").await;
    let body = request(1.0).encode(|_| false).unwrap().body;
    let mut clients = JoinSet::new();
    for _ in 0..100 {
        let (address, body) = (proxy.address, body.clone());
        clients.spawn(async move { post(address, INFER, body).await });
    }
    waiting(&proxy, 99).await;
    eventually("one to be sent", async || (!endpoint.came().is_empty()).then_some(())).await;
    assert_eq!(endpoint.came().len(), 1, "the others wait for its answer");
    // That is no inference's, so that no other client may have it: the others go on, together.
    endpoint.let_go(1);
    eventually("the others to be sent", async || (endpoint.came().len() == 100).then_some(()))
        .await;
    endpoint.let_go(99);
    while let Some(answer) = clients.join_next().await {
        assert_eq!(answer.unwrap().status, 200);
    }

    let worker = Worker::start(anywhere()).await;
    let proxy = in_front_of(worker.address, "").await;
    let mut clients = JoinSet::new();
    for _ in 0..200 {
        let (address, body) = (proxy.address, body.clone());
        clients.spawn(async move { post(address, INFER, body).await });
    }
    let mut asked = 0;
    while let Some(answer) = clients.join_next().await {
        let answer = answer.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        asked += usize::from(status(&answer) == "stored");
    }
    assert_eq!(asked, 1, "the others had its answer");
}

#[tokio::test]
async fn an_answer_that_others_wait_for_is_not_lost_with_the_client_that_asked_first() {
    let endpoint = Endpoint::start(Behaviour::Gated).await;
    let proxy = in_front_of(endpoint.address, "").await;
    let body = request(1.0).encode(|_| false).unwrap().body;
    let send = |body: Vec<u8>| {
        let address = proxy.address;
        tokio::spawn(async move { post(address, INFER, body).await })
    };
    let first = send(body.clone());
    eventually("the first to be sent", async || (endpoint.came().len() == 1).then_some(())).await;
    let second = send(body.clone());
    waiting(&proxy, 1).await;
    first.abort();
    // Without followers the attempt would be dropped now, and the endpoint would notice.
    let third = send(request(7.0).encode(|_| false).unwrap().body);
    eventually("another request to be sent", async || (endpoint.came().len() == 2).then_some(()))
        .await;
    assert_eq!(endpoint.abandoned.load(std::sync::atomic::Ordering::Relaxed), 0);
    endpoint.let_go(3);
    assert_eq!(second.await.unwrap().status, 200);
    assert_eq!(third.await.unwrap().status, 200);
}

#[tokio::test]
async fn kept_answers_are_given_while_the_pool_is_down_until_an_operator_forgets_them() {
    let worker = Worker::start(anywhere()).await;
    let proxy = in_front_of(worker.address, "").await;
    assert_eq!(status(&post(proxy.address, INFER, ARITH).await), "stored");
    drop(worker);
    eventually("the pool to be down", async || {
        let endpoints = proxy.endpoints().await;
        (endpoints[0]["health"] == "down").then_some(())
    })
    .await;
    assert!(is_hit(&post(proxy.address, INFER, ARITH).await));
    let purged = post(proxy.admin, "/cache/purge?model=other", "").await.json();
    assert_eq!(purged["purged"], 0);
    let purged = post(proxy.admin, "/cache/purge?model=arith&route=r", "").await.json();
    assert_eq!(purged["purged"], 1);
    let answer = post(proxy.address, INFER, ARITH).await;
    assert_eq!((answer.status.as_u16(), answer.reason()), (503, "no_endpoint"));
    let stats = get(proxy.admin, "/cache").await.json();
    assert_eq!((&stats["entries"], &stats["purged"]), (&0.into(), &1.into()));
    assert_eq!(post(proxy.admin, "/cache/purge?x=1", "").await.status, 400);
}

#[tokio::test]
async fn answers_grow_old() {
    let worker = Worker::start(anywhere()).await;
    let proxy = in_front_of(worker.address, "ttl = \"1ms\"").await;
    assert_eq!(status(&post(proxy.address, INFER, ARITH).await), "stored");
    eventually("it to be too old", async || {
        (status(&post(proxy.address, INFER, ARITH).await) == "stored").then_some(())
    })
    .await;
}

/// A repository with one model, `arith`, whose content can be exchanged.
struct Repository(Folder);

impl Repository {
    fn new() -> Self {
        let repository = Self(Folder::new());
        repository.put("1", false);
        let settings = repository.0.0.join("arith/model.toml");
        std::fs::write(settings, "versions = { kind = \"all\" }\n").unwrap();
        repository
    }

    /// Writes a version of the model, in which sums and differences may be exchanged.
    fn put(&self, version: &str, exchanged: bool) {
        let mut model = std::fs::read(test_models().join("arith/1/model.onnx")).unwrap();
        let place = |model: &[u8], name: &[u8]| {
            model.windows(name.len()).position(|window| window == name).unwrap()
        };
        let (add, sub) = (place(&model, b"\x22\x03Add"), place(&model, b"\x22\x03Sub"));
        if exchanged {
            model[add + 2..add + 5].copy_from_slice(b"Sub");
            model[sub + 2..sub + 5].copy_from_slice(b"Add");
        }
        let folder = self.0.0.join("arith").join(version);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("model.onnx"), model).unwrap();
    }
}

async fn load(worker: &Worker) {
    let loaded = post(worker.address, "/v2/repository/models/arith/load", "").await;
    assert_eq!(loaded.status, 200, "{}", loaded.text());
}

/// The first element of the first output.
fn first(answer: &Response) -> f32 {
    match &read(answer).outputs[0].data {
        Data::Fp32(data) => data[0],
        other => panic!("expected FP32, found {other:?}"),
    }
}

#[tokio::test]
async fn a_model_that_is_loaded_again_from_other_files_is_asked_again() {
    let repository = Repository::new();
    let worker = Worker::start_serving(&repository.0.0, anywhere()).await;
    let proxy = in_front_of(worker.address, "").await;
    assert_eq!(first(&post(proxy.address, INFER, ARITH).await), 11.0);
    let kept = post(proxy.address, INFER, ARITH).await;
    assert_eq!((is_hit(&kept), first(&kept)), (true, 11.0));
    repository.put("1", true);
    load(&worker).await;
    let mut number = 0;
    let answer = eventually("the next report of the worker", async || {
        number += 1;
        let answer = post(proxy.address, INFER, ARITH).await;
        (first(&answer) == -9.0).then_some(answer)
    })
    .await;
    assert_eq!(status(&answer), "stored", "after {number}");
    let kept = post(proxy.address, INFER, ARITH).await;
    assert_eq!((is_hit(&kept), first(&kept)), (true, -9.0));
    // The former content is known still, and none of its answers was lost.
    repository.put("1", false);
    load(&worker).await;
    let answer = eventually("the report after that", async || {
        let answer = post(proxy.address, INFER, ARITH).await;
        (first(&answer) == 11.0).then_some(answer)
    })
    .await;
    assert!(is_hit(&answer));
}

#[tokio::test]
async fn a_newer_version_is_asked_where_none_is_named() {
    let repository = Repository::new();
    let worker = Worker::start_serving(&repository.0.0, anywhere()).await;
    let proxy = in_front_of(worker.address, "").await;
    let named = "/v2/models/arith/versions/1/infer";
    for path in [INFER, named] {
        assert_eq!(status(&post(proxy.address, path, ARITH).await), "stored");
        assert!(is_hit(&post(proxy.address, path, ARITH).await));
    }
    repository.put("2", true);
    load(&worker).await;
    eventually("the newer version", async || {
        (first(&post(proxy.address, INFER, ARITH).await) == -9.0).then_some(())
    })
    .await;
    let answer = post(proxy.address, named, ARITH).await;
    assert_eq!((first(&answer), status(&answer)), (11.0, "stored"), "its content is to be learnt");
    assert!(is_hit(&post(proxy.address, named, ARITH).await));
    let newest = post(proxy.address, INFER, ARITH).await;
    assert_eq!((is_hit(&newest), first(&newest)), (true, -9.0));
}

/// Sums of rows whose first elements are these, in one batch.
fn rows(values: &[f32]) -> InferRequest {
    let tensor = |name: &str, data: Vec<f32>| {
        Tensor::new(name, vec![values.len(), 4], Data::Fp32(data.into())).unwrap()
    };
    let a = values.iter().flat_map(|value| [*value; 4]).collect();
    let inputs = vec![tensor("a", a), tensor("b", vec![1.0; 4 * values.len()])];
    InferRequest { inputs, ..InferRequest::default() }
}

/// Each first element of the rows of the first output.
fn sums(answer: &Response) -> Vec<f32> {
    match &read(answer).outputs[0].data {
        Data::Fp32(data) => data.chunks(4).map(|row| row[0]).collect(),
        other => panic!("expected FP32, found {other:?}"),
    }
}

#[tokio::test]
async fn of_a_batch_only_the_unknown_rows_are_computed() {
    let worker = Worker::start(anywhere()).await;
    let proxy = in_front_of(worker.address, "rows = true").await;
    let first = ask(&proxy, &rows(&[1.0, 2.0, 3.0]), false).await;
    assert_eq!((status(&first), sums(&first)), ("stored", vec![2.0, 3.0, 4.0]));
    proxy.next_line();
    for (binary, values, expected) in [
        (false, &[3.0, 5.0, 1.0, 5.0][..], "rows:2/4"),
        (true, &[5.0, 6.0, 7.0, 7.0, 1.0], "rows:2/5"),
        (true, &[7.0, 5.0, 3.0, 2.0], "hit"),
        (false, &[6.0, 6.0], "hit"),
        (false, &[6.0], "hit"),
        (false, &[8.0, 9.0], "miss"),
    ] {
        let answer = ask(&proxy, &rows(values), binary).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let wanted: Vec<_> = values.iter().map(|value| value + 1.0).collect();
        assert_eq!(sums(&answer), wanted, "{values:?}");
        assert_eq!(read(&answer).outputs[0].shape, [values.len(), 4]);
        assert_eq!(proxy.next_line()["cache"], expected, "{values:?}");
    }
    let message = wire::write_request("arith", None, &rows(&[9.0, 10.0, 9.0]));
    let ended = call(proxy.address, MODEL_INFER, &message).await;
    assert_eq!(ended.code(), Code::Ok, "{}", ended.words());
    let found = wire::read_response(&ended.messages[0]).unwrap();
    let Data::Fp32(found) = &found.outputs[0].data else { panic!("expected FP32") };
    assert_eq!([found[0], found[4], found[8]], [10.0, 11.0, 10.0]);
    assert_eq!(proxy.next_line()["cache"], "rows:2/3");
    // Of a batch whose rows depend on each other, nothing is taken apart.
    let send = async |values: Vec<f32>| {
        let x = Tensor::new("x", vec![values.len() / 2, 2], Data::Fp32(values.into())).unwrap();
        let request = InferRequest { inputs: vec![x], ..InferRequest::default() };
        let body = request.encode(|_| false).unwrap().body;
        let answer = post(proxy.address, "/v2/models/centred/infer", body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(proxy.next_line()["cache"], "miss");
        let Data::Fp32(data) = read(&answer).outputs.remove(0).data else { panic!("not FP32") };
        data
    };
    assert_eq!(send(vec![1.0, 1.0, 3.0, 3.0]).await, [-1.0, -1.0, 1.0, 1.0]);
    assert_eq!(send(vec![1.0, 1.0, 5.0, 5.0]).await, [-2.0, -2.0, 2.0, 2.0]);
}

#[tokio::test]
async fn rows_of_two_contents_never_meet_in_one_answer() {
    let repository = Repository::new();
    let worker = Worker::start_serving(&repository.0.0, anywhere()).await;
    let proxy = in_front_of(worker.address, "rows = true").await;
    let kept = ask(&proxy, &rows(&[1.0, 2.0]), false).await;
    assert_eq!(sums(&kept), [2.0, 3.0]);
    repository.put("1", true);
    load(&worker).await;
    // The proxy may not know yet: what it asks for is answered by the new content, and then it asks for all.
    let mixed = ask(&proxy, &rows(&[1.0, 5.0, 2.0]), false).await;
    assert_eq!(mixed.status, 200, "{}", mixed.text());
    assert_eq!(sums(&mixed), [0.0, 4.0, 1.0], "{:?}", mixed.headers);
}
