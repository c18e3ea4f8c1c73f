//! gRPC through the proxy: balanced by request, retried, bounded, and refused in its own words.

use crate::client;
use crate::grpc_client::{Call, Connection, SERVICE, call, call_with, framed};
use crate::harness::{ARITH, Proxy, Worker, addresses, anywhere, eventually, pool_of};
use bytes::Bytes;
use forebay_protocol::grpc::pb::health::HealthCheckRequest;
use forebay_protocol::grpc::{Code, infer as wire, pb};
use forebay_protocol::oip::{Data, InferRequest, Tensor};
use forebay_protocol::{LoadReport, header};
use futures_util::StreamExt;
use http_body_util::{BodyExt, Full};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use rustix::process::Signal;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";
const STREAM: &str = "/inference.GRPCInferenceService/ModelStreamInfer";

fn request(model: &str, inputs: Vec<(&str, Vec<usize>, Vec<f32>)>) -> pb::ModelInferRequest {
    let tensor = |(name, shape, data): (&str, _, Vec<f32>)| {
        Tensor::new(name, shape, Data::Fp32(data.into())).unwrap()
    };
    let inputs = inputs.into_iter().map(tensor).collect();
    wire::write_request(model, None, &InferRequest { inputs, ..InferRequest::default() })
}

fn arith(a: f32) -> pb::ModelInferRequest {
    request("arith", vec![("a", vec![1, 4], vec![a; 4]), ("b", vec![1, 4], vec![1.0; 4])])
}

fn slow() -> pb::ModelInferRequest {
    request("slow", vec![("x", vec![1024], vec![0.03; 1024])])
}

/// The first sum of an answer.
fn sum(message: &[u8]) -> f32 {
    match &wire::read_response(message).unwrap().outputs[0].data {
        Data::Fp32(data) => data[0],
        other => panic!("expected FP32, found {other:?}"),
    }
}

#[tokio::test]
async fn one_connection_is_balanced_by_request() {
    let workers = Worker::start_many(2).await;
    let proxy = Proxy::in_front_of(&addresses(&workers), 2, "policy = \"round_robin\"").await;
    let connection = Connection::open(proxy.address).await;
    for number in 0..20_u8 {
        let ended = connection.call(INFER, &[], framed(&arith(number.into()))).await;
        assert_eq!(ended.code(), Code::Ok, "{}", ended.words());
        assert!((sum(&ended.messages[0]) - f32::from(number) - 1.0).abs() < 1e-6);
        assert_eq!(ended.headers["x-forebay-variant"], "test");
        // It speaks to the proxy alone.
        assert!(!ended.trailers.contains_key(header::LOAD_REPORT_BIN));
    }
    for worker in &workers {
        let label = format!("endpoint=\"{}\"", worker.address);
        let answered = proxy.metric("forebay_attempts_total", &[&label, "answered"]).await;
        assert!((answered - 10.0).abs() < 1e-6, "{answered}");
    }
    let line = proxy.next_line();
    assert_eq!((&line["model"], &line["grpc_status"]), (&"arith".into(), &0.into()));
    assert_eq!((&line["mode"], &line["reason"]), (&"buffered".into(), &"ok".into()));
}

#[tokio::test]
async fn the_model_in_the_message_chooses_the_route() {
    let workers = Worker::start_many(2).await;
    let pool = |name: &str, worker: &Worker| {
        format!("[pool.{name}]\nendpoints = [\"{}\"]\n", worker.address)
    };
    let proxy = Proxy::start(&format!(
        "{}{}[[route]]\nname = \"a\"\nmodels = [\"ari*\"]\npool = \"first\"\n\
         [[route]]\nname = \"b\"\nmodels = [\"slow\", \"centred\"]\npool = \"second\"\n",
        pool("first", &workers[0]),
        pool("second", &workers[1]),
    ))
    .await;
    proxy.wait_ready(2).await;
    let ended = call(proxy.address, INFER, &arith(1.0)).await;
    assert_eq!(ended.headers["x-forebay-variant"], "first");
    let centred = request("centred", vec![]);
    let ended = call(proxy.address, INFER, &centred).await;
    // The worker's own refusal: in its words.
    assert_eq!(ended.headers["x-forebay-variant"], "second");
    ended.refused(Code::InvalidArgument, "invalid_input", "expected inputs");
    let ended = call(proxy.address, INFER, &request("nobody", vec![])).await;
    ended.refused(Code::NotFound, "no_route", "nobody");
    assert!(ended.headers.contains_key("x-request-id"));
}

#[tokio::test]
async fn refusals_are_spoken_in_grpc() {
    let gone = TcpListener::bind(anywhere()).await.unwrap().local_addr().unwrap();
    let proxy = Proxy::in_front_of(&[gone], 0, "").await;
    let ended = call(proxy.address, INFER, &arith(1.0)).await;
    ended.refused(Code::Unavailable, "no_endpoint", "no endpoint of pool test is ready");
    assert_eq!(ended.headers["content-type"], "application/grpc");
    let line = proxy.next_line();
    assert_eq!((&line["status"], &line["grpc_status"]), (&200.into(), &14.into()));
    assert_eq!(line["reason"], "no_endpoint");
    // Streamed calls are refused alike.
    let path = format!("{SERVICE}/ModelMetadata");
    let ended = call(proxy.address, &path, &pb::ModelMetadataRequest::default()).await;
    ended.refused(Code::Unavailable, "no_endpoint", "no endpoint");
    for (headers, body, reason) in [
        (&[][..], &b"{\"inputs\":[]}"[..], "invalid_request"),
        (&[], b"\0\0\0\0\x03\x0a\x09x", "invalid_request"),
        (&[], b"", "invalid_request"),
        (&[("grpc-timeout", "soon")], b"\0\0\0\0\0", "invalid_request"),
    ] {
        let ended = call_with(proxy.address, INFER, headers, Bytes::from_static(body)).await;
        ended.refused(Code::InvalidArgument, reason, "");
    }
    let long = pb::ModelInferRequest { model_name: "x".repeat(300), ..Default::default() };
    call(proxy.address, INFER, &long).await.refused(
        Code::InvalidArgument,
        "invalid_request",
        "255",
    );
}

#[tokio::test]
async fn messages_are_bounded_by_the_bodys_limit_and_by_memory() {
    let workers = Worker::start_many(1).await;
    let start = async |memory: &str| {
        let limits = format!("[limits]\nbody = \"1MiB\"\nmemory = \"{memory}\"\n");
        let proxy = Proxy::start(&format!("{limits}{}", pool_of(&addresses(&workers), ""))).await;
        proxy.wait_ready(1).await;
        proxy
    };
    let of = |bytes: usize| pb::ModelInferRequest { id: "x".repeat(bytes), ..arith(1.0) };
    let proxy = start("2MiB").await;
    let ended = call(proxy.address, INFER, &of(2 << 20)).await;
    ended.refused(Code::ResourceExhausted, "body_too_large", "1MiB");
    let proxy = start("512KiB").await;
    let ended = call(proxy.address, INFER, &of(700 << 10)).await;
    ended.refused(Code::Unavailable, "memory_limit", "memory");
    // All of it is given back, if perhaps a moment after the answer.
    for _ in 0..5 {
        let answered = async || {
            let ended = call(proxy.address, INFER, &of(400 << 10)).await;
            (ended.code() == Code::Ok).then_some(())
        };
        eventually("room for a body", answered).await;
    }
}

#[tokio::test]
async fn a_timeout_of_the_clients_ends_the_call_and_is_passed_on() {
    let workers = Worker::start_many(1).await;
    let proxy = Proxy::in_front_of(&addresses(&workers), 1, "").await;
    let headers = [("grpc-timeout", "80m")];
    let ended = call_with(proxy.address, INFER, &headers, framed(&slow())).await;
    ended.refused(Code::DeadlineExceeded, "deadline_exceeded", "deadline");
    let endpoint = Endpoint::start(Behaviour::Answer).await;
    let proxy = Proxy::in_front_of(&[endpoint.address], 1, "").await;
    let headers = [("grpc-timeout", "5S"), ("x-request-deadline", "2000")];
    let ended = call_with(proxy.address, INFER, &headers, framed(&arith(1.0))).await;
    assert_eq!(ended.code(), Code::Ok, "{}", ended.words());
    let seen = endpoint.seen.lock().unwrap().pop().unwrap();
    let left = seen["grpc-timeout"].to_str().unwrap();
    let left = forebay_protocol::grpc::parse_timeout(left).unwrap().as_secs_f64();
    assert!(left > 0.5 && left <= 2.0, "{left}");
    assert_eq!(
        (&seen["te"], &seen["content-type"]),
        (&"trailers".parse().unwrap(), &"application/grpc".parse().unwrap())
    );
    // Its report came in the trailers.
    let slots = async || (proxy.endpoints().await[0]["slots"] == 7).then_some(());
    eventually("the endpoint's slots", slots).await;
}

#[tokio::test]
async fn a_call_that_is_cancelled_while_it_waits_is_never_sent() {
    let gate: &'static Semaphore = Box::leak(Box::new(Semaphore::new(0)));
    let endpoint = Endpoint::start(Behaviour::Held(gate)).await;
    let pool = "slots = 1\nqueue = { handoff_delay = \"1us\" }";
    let proxy = Proxy::in_front_of(&[endpoint.address], 1, pool).await;
    let connection = Connection::open(proxy.address).await;
    let called = || endpoint.seen.lock().unwrap().len();
    let waiting = async |count: u64| {
        let status = proxy.status().await;
        let queued = status["pools"]["test"]["queued"].as_object().unwrap();
        (queued.values().map(|count| count.as_u64().unwrap()).sum::<u64>() == count).then_some(())
    };
    let running = async {
        let message = arith(1.0);
        tokio::join!(
            connection.call(INFER, &[], framed(&message)),
            connection.call(INFER, &[], framed(&message)),
        )
    };
    let cancelled = async {
        eventually("two calls at the endpoint", async || (called() == 2).then_some(())).await;
        let message = arith(2.0);
        tokio::select! {
            ended = connection.call(INFER, &[], framed(&message)) => {
                panic!("an answer: {}", ended.words());
            }
            () = eventually("one that waits", async || waiting(1).await) => {}
        }
        eventually("none that waits", async || waiting(0).await).await;
        gate.add_permits(3);
    };
    let ((first, second), ()) = tokio::join!(running, cancelled);
    assert_eq!((first.code(), second.code()), (Code::Ok, Code::Ok));
    // Its stream was reset, the connection goes on.
    assert_eq!(connection.call(INFER, &[], framed(&arith(3.0))).await.code(), Code::Ok);
    assert_eq!(called(), 3, "the cancelled one was sent");
    let lines: Vec<_> = (0..4).map(|_| proxy.next_line()).collect();
    let gone = lines.iter().find(|line| line["reason"] == "client_closed").unwrap();
    assert_eq!((&gone["attempts"], &gone["endpoint"]), (&0.into(), &serde_json::Value::Null));
}

#[tokio::test]
async fn an_endpoint_that_says_unavailable_is_not_asked_again() {
    let busy = Endpoint::start(Behaviour::Unavailable).await;
    let late = Endpoint::start(Behaviour::UnavailableInTrailers).await;
    let worker = Worker::start(anywhere()).await;
    let all = [busy.address, late.address, worker.address];
    let more = "policy = \"round_robin\"\nretry = { attempts = 3, budget = \"100%\", min_per_second = 1000 }";
    let proxy = Proxy::in_front_of(&all, 3, more).await;
    for _ in 0..6 {
        let ended = call(proxy.address, INFER, &arith(1.0)).await;
        assert_eq!(ended.code(), Code::Ok, "{}", ended.words());
    }
    assert!(busy.seen.lock().unwrap().len() + late.seen.lock().unwrap().len() > 2);
    // If all say so, the client gets the answer of the last.
    let proxy = Proxy::in_front_of(&all[..2], 2, more).await;
    let ended = call(proxy.address, INFER, &arith(1.0)).await;
    assert_eq!((ended.code(), ended.words()), (Code::Unavailable, "come back later".to_owned()));
    assert_eq!(proxy.next_line()["reason"], "queue_full");
}

#[tokio::test]
async fn no_call_fails_when_a_worker_is_killed() {
    let mut workers = Worker::start_many(3).await;
    let more = "retry = { attempts = 3, min_per_second = 100 }";
    let proxy = Proxy::in_front_of(&addresses(&workers), 3, more).await;
    let mut clients = tokio::task::JoinSet::new();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    for _ in 0..4 {
        let (address, stopped) = (proxy.address, stopped.clone());
        clients.spawn(async move {
            let connection = Connection::open(address).await;
            let mut outcomes = std::collections::BTreeMap::<_, usize>::new();
            while !*stopped.borrow() {
                let ended = connection.call(INFER, &[], framed(&arith(2.0))).await;
                *outcomes.entry((ended.code().number(), ended.words())).or_default() += 1;
            }
            outcomes
        });
    }
    let answered = async |more: f64| {
        let count = async || proxy.metric("forebay_attempts_total", &["answered"]).await;
        let target = count().await + more;
        eventually("answers", async || (count().await >= target).then_some(())).await;
    };
    answered(100.0).await;
    workers[0].signal(Signal::KILL);
    answered(200.0).await;
    stop.send(true).unwrap();
    for outcomes in clients.join_all().await {
        let good = outcomes.keys().all(|(code, _)| *code == 0);
        assert!(good, "{outcomes:?}");
    }
    workers[0].ended().await;
}

#[tokio::test]
async fn a_stream_passes_in_order_and_ends_in_words_if_its_endpoint_dies() {
    let workers = Worker::start_many(1).await;
    let proxy = Proxy::in_front_of(&addresses(&workers), 1, "").await;
    let (sender, mut stream) = Call::stream(proxy.address, STREAM, &[]).await;
    for number in 0..5_u8 {
        sender.send(framed(&arith(number.into()))).await.unwrap();
    }
    for number in 0..5_u8 {
        let answer: pb::ModelStreamInferResponse = stream.expect().await;
        let answer = answer.infer_response.unwrap().encode_to_vec();
        assert!((sum(&answer) - f32::from(number) - 1.0).abs() < 1e-6);
    }
    drop(sender);
    let ended = stream.end().await;
    assert_eq!(ended.code(), Code::Ok);
    assert!(!ended.trailers.contains_key(header::LOAD_REPORT_BIN));
    let line = proxy.next_line();
    assert_eq!((&line["mode"], &line["grpc_status"]), (&"streamed".into(), &0.into()));

    let (sender, mut stream) = Call::stream(proxy.address, STREAM, &[]).await;
    sender.send(framed(&arith(1.0))).await.unwrap();
    stream.expect::<pb::ModelStreamInferResponse>().await;
    workers[0].signal(Signal::KILL);
    stream.end().await.refused(Code::Unavailable, "endpoint_reset", "the connection");
    assert_eq!(proxy.next_line()["reason"], "endpoint_reset");
}

#[tokio::test]
async fn the_deadline_of_a_stream_is_one_for_all_of_it_whatever_moves() {
    const DEADLINE: Duration = Duration::from_secs(2);
    let endpoint = Endpoint::start(Behaviour::FallsSilent(DEADLINE * 3 / 4)).await;
    let proxy = Proxy::in_front_of(&[endpoint.address], 1, "").await;
    let headers = [("grpc-timeout", "2S")];
    // One whose client has said everything, and one whose client could say more.
    for says_more in [false, true] {
        let (sender, mut stream) = Call::stream(proxy.address, STREAM, &headers).await;
        sender.send(framed(&arith(1.0))).await.unwrap();
        let kept = says_more.then_some(sender);
        assert!(stream.next().await.is_some() && stream.next().await.is_some());
        stream.end().await.refused(Code::DeadlineExceeded, "deadline_exceeded", "deadline");
        drop(kept);
        let line = proxy.next_line();
        assert_eq!(line["reason"], "deadline_exceeded");
        let took = Duration::from_micros(line["total_us"].as_u64().unwrap());
        assert!((DEADLINE..DEADLINE * 3 / 2).contains(&took), "{took:?}");
    }
    let late = proxy.metric("forebay_requests_total", &["reason=\"deadline_exceeded\""]).await;
    assert_eq!(late, 2.0);
}

#[tokio::test]
async fn health_is_the_proxys_own_and_can_be_watched() {
    let workers = Worker::start_many(1).await;
    let mut proxy = Proxy::start(&pool_of(&addresses(&workers), "")).await;
    proxy.wait_ready(1).await;
    let check = |service: &str| HealthCheckRequest { service: service.to_owned() };
    for (path, expected) in [
        (format!("{SERVICE}/ServerLive"), &[8, 1][..]),
        (format!("{SERVICE}/ServerReady"), &[8, 1]),
        ("/grpc.health.v1.Health/Check".to_owned(), &[8, 1]),
    ] {
        let ended = call(proxy.address, &path, &check("")).await;
        assert_eq!((ended.code(), &ended.messages[0][..]), (Code::Ok, expected), "{path}");
    }
    let ended = call(proxy.address, "/grpc.health.v1.Health/Check", &check("nobody")).await;
    ended.refused(Code::NotFound, "model_not_found", "unknown service");
    let watch = framed(&check(""));
    let path = "/grpc.health.v1.Health/Watch";
    let mut watched = Call::start(proxy.address, path, &[], watch.clone()).await;
    assert_eq!(watched.next().await.as_deref(), Some(&[8, 1][..]));
    let short = Call::start(proxy.address, path, &[("grpc-timeout", "50m")], watch).await;
    short.end().await.refused(Code::DeadlineExceeded, "deadline_exceeded", "deadline");
    workers[0].signal(Signal::KILL);
    assert_eq!(watched.next().await.as_deref(), Some(&[8, 2][..]));
    proxy.signal(Signal::TERM);
    watched.end().await.refused(Code::Unavailable, "draining", "shutting down");
    assert!(proxy.ended().await.success());
}

#[tokio::test]
async fn every_other_call_passes_through() {
    let workers = Worker::start_many(1).await;
    let proxy = Proxy::in_front_of(&addresses(&workers), 1, "").await;
    let path = |method: &str| format!("{SERVICE}/{method}");
    let asked = pb::ModelMetadataRequest { name: "arith".to_owned(), ..Default::default() };
    let metadata: pb::ModelMetadataResponse =
        call(proxy.address, &path("ModelMetadata"), &asked).await.message();
    assert_eq!(metadata.inputs.len(), 2);
    let index = pb::RepositoryIndexRequest::default();
    let ended = call(proxy.address, &path("RepositoryIndex"), &index).await;
    assert!(!ended.message::<pb::RepositoryIndexResponse>().models.is_empty());
    let ended = call(proxy.address, &path("Nonsense"), &index).await;
    ended.refused(Code::Unimplemented, "not_found", "unknown method");
    let reports = "/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics";
    let mut reports = Call::start(proxy.address, reports, &[], Bytes::from_static(&[0; 5])).await;
    let report = LoadReport::parse_binary(&reports.next().await.unwrap()).unwrap();
    assert_eq!(report.slots, Some(1));
}

#[tokio::test]
async fn a_pool_may_be_asked_in_http2() {
    let workers = Worker::start_many(1).await;
    let proxy = Proxy::in_front_of(&addresses(&workers), 1, "protocol = \"h2\"").await;
    for _ in 0..3 {
        let answer = client::post(proxy.address, "/v2/models/arith/infer", ARITH).await;
        assert_eq!(answer.json()["outputs"][0]["data"][0], 11.0);
        let answer = client::get(proxy.address, "/v2/models/arith").await;
        assert_eq!(answer.json()["name"], "arith");
    }
    assert_eq!(call(proxy.address, INFER, &arith(1.0)).await.code(), Code::Ok);
}

/// The behaviour of a fake endpoint towards calls. Probes are always answered well.
#[derive(Clone, Copy)]
enum Behaviour {
    /// An empty message, and a load report in the trailers.
    Answer,
    /// The same, each time that it is let.
    Held(&'static Semaphore),
    /// A message at once and one after this time, and nothing more.
    FallsSilent(Duration),
    /// Says so in the header.
    Unavailable,
    /// Says so behind a message.
    UnavailableInTrailers,
}

struct Endpoint {
    address: SocketAddr,
    /// Headers of the calls.
    seen: Arc<Mutex<Vec<http::HeaderMap>>>,
    task: AbortHandle,
}

impl Endpoint {
    async fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind(anywhere()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let kept = Arc::clone(&kept);
                let service =
                    service_fn(move |request| answer(request, behaviour, Arc::clone(&kept)));
                tokio::spawn(async move {
                    let builder =
                        hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { address, seen, task: task.abort_handle() }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, std::convert::Infallible>;

async fn answer(
    request: http::Request<Incoming>,
    behaviour: Behaviour,
    seen: Arc<Mutex<Vec<http::HeaderMap>>>,
) -> Result<http::Response<Body>, hyper::Error> {
    let (parts, body) = request.into_parts();
    let unread = match behaviour {
        Behaviour::FallsSilent(_) if parts.method == http::Method::POST => Some(body),
        _ => body.collect().await.map(|_| None)?,
    };
    let response = http::Response::builder().header("content-type", "application/grpc");
    if parts.method == http::Method::GET {
        return Ok(response.body(Full::default().boxed_unsync()).unwrap());
    }
    seen.lock().unwrap().push(parts.headers);
    if let Behaviour::Held(gate) = behaviour {
        gate.acquire().await.unwrap().forget();
    }
    let mut end = http::HeaderMap::new();
    let code = match behaviour {
        Behaviour::Answer | Behaviour::Held(_) | Behaviour::FallsSilent(_) => Code::Ok,
        Behaviour::Unavailable | Behaviour::UnavailableInTrailers => Code::Unavailable,
    };
    end.insert(header::GRPC_STATUS, code.value());
    end.insert(header::GRPC_MESSAGE, "come back later".parse().unwrap());
    let report = LoadReport { rif: Some(1), slots: Some(7), ..LoadReport::default() };
    end.insert(header::LOAD_REPORT_BIN, report.to_base64().parse().unwrap());
    if let Behaviour::Unavailable = behaviour {
        let mut response = response.body(Full::default().boxed_unsync()).unwrap();
        response.headers_mut().extend(end);
        return Ok(response);
    }
    let message = Bytes::from_static(&[0; 5]);
    if let Behaviour::FallsSilent(after) = behaviour {
        let first = message.clone();
        let frames = futures_util::stream::iter([Ok(Frame::data(first))])
            .chain(futures_util::stream::once(async move {
                tokio::time::sleep(after).await;
                drop(unread);
                Ok(Frame::data(message))
            }))
            .chain(futures_util::stream::pending());
        return Ok(response.body(http_body_util::StreamBody::new(frames).boxed_unsync()).unwrap());
    }
    let frames = [Ok(Frame::data(message)), Ok(Frame::trailers(end))];
    let body = http_body_util::StreamBody::new(futures_util::stream::iter(frames));
    Ok(response.body(body.boxed_unsync()).unwrap())
}
