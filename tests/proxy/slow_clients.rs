//! Clients that do not read, do not send or leave keep no endpoint and no memory from others.

use crate::client::{get, post, raw, send_on};
use crate::grpc_client::{call, call_with, framed};
use crate::harness::{MAX_WAIT, Proxy, Worker, anywhere, eventually, pool_of};
use crate::path_endpoint::{GATED, LENGTH, PathEndpoint, SMALL};
use crate::path_endpoint::{LARGE, LARGE_BYTES, LARGE_CHUNKS};
use crate::path_endpoint::{MEDIUM, MEDIUM_BYTES, MEDIUM_CHUNKS};
use bytes::Bytes;
use forebay_protocol::grpc::{Code, pb};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::Request;
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// The endpoint runs one request at once, as it would say itself.
const ONE_SLOT: &str = "slots = 1\nqueue = { size = 4, handoff_delay = \"1us\" }";
/// Nothing that a slow client does ends within a test.
const PATIENT: &str = "[limits]\nstall_timeout = \"10m\"\nbody_timeout = \"10m\"";

async fn start(limits: &str, pool: &str) -> (Proxy, PathEndpoint) {
    let endpoint = PathEndpoint::start().await;
    let proxy = Proxy::start(&format!("{limits}\n{}", endpoint.pool(pool))).await;
    proxy.wait_ready(1).await;
    (proxy, endpoint)
}

/// An HTTP/2 connection whose streams have this window.
async fn h2<B>(address: SocketAddr, window: u32) -> http2::SendRequest<B>
where
    B: hyper::body::Body<Data = Bytes, Error = Infallible> + Send + Unpin + 'static,
{
    let stream = TcpStream::connect(address).await.unwrap();
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(window);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// A body that comes as it is sent through the channel.
type Channel = mpsc::UnboundedSender<Bytes>;
type Coming = StreamBody<Receiving>;

struct Receiving(mpsc::UnboundedReceiver<Bytes>);
impl futures_core::Stream for Receiving {
    type Item = Result<Frame<Bytes>, Infallible>;
    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.poll_recv(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

fn coming() -> (Channel, Coming) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (sender, StreamBody::new(Receiving(receiver)))
}

/// The next line of the access log that has this reason.
fn line_of(proxy: &Proxy, reason: &str) -> Value {
    loop {
        let line = proxy.next_line();
        if line["reason"] == reason {
            return line;
        }
    }
}

/// Waits until so many clients were cut off, while they sent their request or read their answer.
async fn cut_off(proxy: &Proxy, side: &str, count: u32) {
    let label = format!("side=\"{side}\"");
    eventually(&format!("{count} slow clients"), async || {
        let found = proxy.metric("forebay_slow_clients_total", &[&label]).await;
        (found == f64::from(count)).then_some(())
    })
    .await;
}

/// Requests that the endpoint has, as the proxy counts them.
async fn in_flight(proxy: &Proxy, count: u64) {
    eventually(&format!("{count} in flight"), async || {
        (proxy.endpoints().await[0]["in_flight"] == count).then_some(())
    })
    .await;
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

#[tokio::test]
async fn streams_without_a_window_hold_no_slot() {
    let (proxy, endpoint) = start(PATIENT, "slots = 1\nqueue = { size = 200 }").await;
    let sender = h2::<Empty<Bytes>>(proxy.address, 0).await;
    let mut answers = Vec::new();
    for _ in 0..100 {
        let request = Request::get(format!("http://x{SMALL}")).body(Empty::new()).unwrap();
        answers.push(tokio::spawn(sender.clone().send_request(request)));
    }
    let mut bodies: Vec<Incoming> = Vec::new();
    for answer in answers {
        let answer = timeout(MAX_WAIT, answer).await.unwrap().unwrap().unwrap();
        assert_eq!(answer.status(), 200);
        bodies.push(answer.into_body());
    }
    assert_eq!(get(proxy.address, SMALL).await.status, 200);
    in_flight(&proxy, 0).await;
    assert_eq!(endpoint.begun().len(), 101);
    // Unread answers are held, and freed when their clients are gone.
    assert!(proxy.metric("forebay_memory_held_bytes", &[]).await > 200_000.0);
    drop((bodies, sender));
    eventually("their memory", async || {
        (proxy.metric("forebay_memory_held_bytes", &[]).await < 1.0).then_some(())
    })
    .await;
}

/// Memory held for clients that have not read their answers.
async fn held(proxy: &Proxy) -> f64 {
    proxy.metric("forebay_memory_held_bytes", &[]).await
}

/// Requests as many answers of this path, none of which is read.
async fn unread(
    sender: &http2::SendRequest<Empty<Bytes>>,
    path: &str,
    count: usize,
) -> Vec<Incoming> {
    let mut bodies = Vec::new();
    for _ in 0..count {
        let request = Request::get(format!("http://x{path}")).body(Empty::new()).unwrap();
        let answer = timeout(MAX_WAIT, sender.clone().send_request(request)).await.unwrap();
        bodies.push(answer.unwrap().into_body());
    }
    bodies
}

#[tokio::test]
async fn answers_up_to_the_bound_are_read_to_their_end_for_clients_that_do_not_read() {
    let (proxy, _endpoint) = start(PATIENT, ONE_SLOT).await;
    let sender = h2::<Empty<Bytes>>(proxy.address, 0).await;
    let stated = unread(&sender, MEDIUM, 5).await;
    let chunked = unread(&sender, MEDIUM_CHUNKS, 5).await;
    in_flight(&proxy, 0).await;
    assert_eq!(get(proxy.address, SMALL).await.status, 200);
    assert!(held(&proxy).await > 10.0 * MEDIUM_BYTES as f64);
    drop((stated, chunked, sender));
    eventually("their memory", async || (held(&proxy).await < 1.0).then_some(())).await;
}

#[tokio::test]
async fn little_is_held_of_an_answer_that_is_too_long_to_be_read_ahead() {
    let (proxy, _endpoint) = start(PATIENT, "").await;
    for (path, most) in [(LARGE, 192 << 10), (LARGE_CHUNKS, (1 << 20) + (192 << 10))] {
        let sender = h2::<Empty<Bytes>>(proxy.address, 0).await;
        let bodies = unread(&sender, path, 8).await;
        in_flight(&proxy, 8).await;
        let mut before = -1.0;
        eventually("clients that are stuck", async || {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let now = held(&proxy).await;
            (std::mem::replace(&mut before, now) == now).then_some(())
        })
        .await;
        let each = held(&proxy).await / 8.0;
        assert!(each <= f64::from(most), "{path}: {each} bytes each");
        drop((bodies, sender));
        in_flight(&proxy, 0).await;
    }
}

#[tokio::test]
async fn answers_that_are_not_read_leave_half_of_the_memory_to_requests() {
    let limits = "[limits]\nstall_timeout = \"10m\"\nmemory = \"8MiB\"\nclient_memory = \"100%\"";
    let (proxy, _endpoint) = start(&format!("{limits}\nbody = \"1MiB\""), "").await;
    let sender = h2::<Empty<Bytes>>(proxy.address, 0).await;
    let bodies = unread(&sender, MEDIUM, 20).await;
    eventually("memory that is taken", async || {
        (held(&proxy).await > f64::from(3 << 20)).then_some(())
    })
    .await;
    assert!(held(&proxy).await <= f64::from(4 << 20));
    let answer = post(proxy.address, "/v2/models/m/infer", "x".repeat(900_000)).await;
    assert_eq!(answer.status, 200);
    drop((bodies, sender));
}

#[tokio::test]
async fn clients_that_send_request_after_request_and_do_not_read_hold_no_slot() {
    let (proxy, endpoint) = start(PATIENT, ONE_SLOT).await;
    let mut held = Vec::new();
    // Far more than the buffers of a connection take.
    let requests = format!("GET {MEDIUM} HTTP/1.1\r\nhost: x\r\n\r\n").repeat(200);
    for _ in 0..4 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(proxy.address).await.unwrap();
        stream.write_all(requests.as_bytes()).await.unwrap();
        held.push(stream);
    }
    let mut before = 0;
    eventually("clients that are stuck", async || {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = endpoint.begun().len();
        let stuck = now == before && now > 0;
        before = now;
        stuck.then_some(())
    })
    .await;
    in_flight(&proxy, 0).await;
    assert_eq!(get(proxy.address, SMALL).await.status, 200);
}

#[tokio::test]
async fn a_client_that_does_not_read_a_long_answer_is_cut_off() {
    let (proxy, _endpoint) = start("[limits]\nstall_timeout = \"300ms\"", ONE_SLOT).await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    let request = format!("GET {LARGE} HTTP/1.1\r\nhost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    cut_off(&proxy, "answer", 1).await;
    let line = line_of(&proxy, "client_too_slow");
    assert_eq!((&line["path"], &line["status"]), (&LARGE.into(), &200.into()));
    assert!(line["error"].as_str().unwrap().contains("did not read"), "{line}");
    let mut answer = Vec::new();
    let _ = timeout(MAX_WAIT, stream.read_to_end(&mut answer)).await.unwrap();
    assert!(answer.len() < LARGE_BYTES, "it is told by the end of its connection");

    let sender = h2::<Empty<Bytes>>(proxy.address, 1000).await;
    let request = Request::get(format!("http://x{LARGE}")).body(Empty::new()).unwrap();
    let answer = sender.clone().send_request(request).await.unwrap();
    cut_off(&proxy, "answer", 2).await;
    line_of(&proxy, "client_too_slow");
    let read = timeout(MAX_WAIT, answer.into_body().collect()).await.unwrap();
    assert!(read.is_err(), "its stream is reset");

    in_flight(&proxy, 0).await;
    let endpoint = &proxy.endpoints().await[0];
    assert_eq!((&endpoint["health"], &endpoint["strikes"]), (&"ready".into(), &0.into()));
}

#[tokio::test]
async fn a_client_that_reads_steadily_gets_a_long_answer_whole() {
    let (proxy, _endpoint) = start("[limits]\nstall_timeout = \"2s\"", "").await;
    for path in [LARGE, LARGE_CHUNKS] {
        let answer = get(proxy.address, path).await;
        assert_eq!((answer.status.as_u16(), answer.body.len()), (200, LARGE_BYTES));
        let sender = h2::<Empty<Bytes>>(proxy.address, 65_535).await;
        let request = Request::get(format!("http://x{path}")).body(Empty::new()).unwrap();
        let answer = sender.clone().send_request(request).await.unwrap();
        let body = timeout(MAX_WAIT, answer.into_body().collect()).await.unwrap().unwrap();
        assert_eq!(body.to_bytes().len(), LARGE_BYTES);
    }
}

#[tokio::test]
async fn bodies_that_do_not_come_hold_no_slot() {
    let (proxy, endpoint) = start(PATIENT, ONE_SLOT).await;
    let mut held = Vec::new();
    for (path, framing) in [
        ("/v2/models/m/infer", "transfer-encoding: chunked\r\n\r\n1\r\nx\r\n"),
        (LENGTH, "transfer-encoding: chunked\r\n\r\n1\r\nx\r\n"),
        (LENGTH, "content-length: 50000000\r\n\r\nx"),
        (LENGTH, "content-length: 1000\r\nupgrade: h2c\r\n\r\nx"),
    ] {
        for _ in 0..5 {
            let mut stream = TcpStream::connect(proxy.address).await.unwrap();
            let request = format!("POST {path} HTTP/1.1\r\nhost: x\r\n{framing}");
            stream.write_all(request.as_bytes()).await.unwrap();
            held.push(stream);
        }
    }
    let sender = h2::<Coming>(proxy.address, 65_535).await;
    let mut bodies = Vec::new();
    for _ in 0..20 {
        let (channel, body) = coming();
        channel.send(Bytes::from_static(b"x")).unwrap();
        let request = Request::post(format!("http://x{LENGTH}")).body(body).unwrap();
        bodies.push((channel, tokio::spawn(sender.clone().send_request(request))));
    }
    let metadata = "/inference.GRPCInferenceService/ModelMetadata";
    let (unary, body) = coming();
    let request = Request::post(format!("http://x{metadata}"))
        .header("content-type", "application/grpc")
        .body(body)
        .unwrap();
    let unfinished = tokio::spawn(sender.clone().send_request(request));
    eventually("all requests in the proxy", async || {
        (proxy.metric("forebay_requests_in_flight", &[]).await == 41.0).then_some(())
    })
    .await;
    assert_eq!(get(proxy.address, SMALL).await.status, 200);
    assert_eq!(endpoint.begun(), [SMALL]);
    // Those that go on are answered.
    let (channel, answer) = bodies.pop().unwrap();
    channel.send(Bytes::from_static(b"yz")).unwrap();
    drop((channel, unary));
    let answer = timeout(MAX_WAIT, answer).await.unwrap().unwrap().unwrap();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "3");
    unfinished.abort();
}

#[tokio::test]
async fn the_rest_of_a_body_that_is_too_long_to_hold_has_to_keep_a_pace() {
    let limits = "[limits]\nbuffer = \"64KiB\"\nstall_timeout = \"300ms\"";
    let (proxy, endpoint) = start(limits, ONE_SLOT).await;
    for framing in ["content-length: 200000", "transfer-encoding: chunked"] {
        let head = format!("POST {LENGTH} HTTP/1.1\r\nhost: x\r\n{framing}\r\n\r\n");
        let chunk = if framing.contains("chunked") { "186a0\r\n" } else { "" };
        let request = format!("{head}{chunk}{}", "x".repeat(100_000));
        let (answer, closed) = raw(proxy.address, request.as_bytes(), MAX_WAIT).await;
        assert!(answer.starts_with("HTTP/1.1 408 ") && closed, "{answer}");
        assert!(answer.contains("x-forebay-reason: request_timeout"), "{answer}");
        let line = line_of(&proxy, "request_timeout");
        assert_eq!((&line["mode"], &line["attempts"]), (&"streamed".into(), &1.into()));
    }
    in_flight(&proxy, 0).await;
    cut_off(&proxy, "request", 2).await;
    let state = &proxy.endpoints().await[0];
    assert_eq!((&state["health"], &state["strikes"]), (&"ready".into(), &0.into()));
    assert_eq!(endpoint.begun(), [LENGTH, LENGTH]);
    let failed = proxy.metric("forebay_attempts_total", &["outcome=\"endpoint_reset\""]).await;
    assert_eq!(failed, 0.0);
}

#[tokio::test]
async fn clients_that_leave_the_queue_take_no_place_in_it_and_are_not_sent() {
    let (proxy, endpoint) = start("[limits]\nbuffer = \"64KiB\"", ONE_SLOT).await;
    // One has the slot, and one more goes to an endpoint of which nothing is known yet.
    let running: Vec<_> = (0..2)
        .map(|_| {
            let address = proxy.address;
            tokio::spawn(async move { post(address, GATED, "x").await })
        })
        .collect();
    eventually("both at the endpoint", async || (endpoint.begun().len() == 2).then_some(())).await;

    let mut ghosts = Vec::new();
    let long = "x".repeat(100_000);
    for request in [
        format!("POST {LENGTH} HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nx"),
        format!("GET {SMALL} HTTP/1.1\r\nhost: x\r\n\r\n"),
        format!("GET {SMALL} HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\n\r\n"),
        format!("POST {LENGTH} HTTP/1.1\r\nhost: x\r\ncontent-length: 200000\r\n\r\n{long}"),
    ] {
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        ghosts.push(stream);
    }
    queued(&proxy, 4).await;
    assert_eq!(get(proxy.address, SMALL).await.reason(), "queue_full");
    drop(ghosts);
    queued(&proxy, 0).await;

    // Streams that are reset, over a connection that stays.
    let sender = h2::<Coming>(proxy.address, 65_535).await;
    let mut asked = Vec::new();
    for length in [1, 100_000] {
        let (channel, body) = coming();
        channel.send(Bytes::from(vec![b'x'; length])).unwrap();
        let request = Request::post(format!("http://x{LENGTH}")).body(body).unwrap();
        // The short one is complete, the long one is not.
        let channel = (length > 1).then_some(channel);
        asked.push((channel, tokio::spawn(sender.clone().send_request(request))));
    }
    queued(&proxy, 2).await;
    for (_, asked) in &asked {
        asked.abort();
    }
    queued(&proxy, 0).await;

    endpoint.let_go(2);
    for answer in running {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    assert_eq!(get(proxy.address, SMALL).await.status, 200);
    assert_eq!(endpoint.begun(), [GATED, GATED, SMALL]);
}

/// Opens a connection from this address.
async fn from(source: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((source, 0).into()).unwrap();
    socket.connect(to).await.unwrap()
}

#[tokio::test]
async fn a_length_that_is_only_stated_takes_no_memory() {
    let worker = Worker::start(anywhere()).await;
    let limits = "[limits]\nmemory = \"64MiB\"";
    let proxy = Proxy::start(&format!("{limits}\n{}", pool_of(&[worker.address], ""))).await;
    proxy.wait_ready(1).await;
    let mut held = Vec::new();
    for path in ["/v2/models/arith/infer", "/v1/x"] {
        for _ in 0..32 {
            let mut stream = TcpStream::connect(proxy.address).await.unwrap();
            let head =
                format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 16777216\r\n\r\nx");
            stream.write_all(head.as_bytes()).await.unwrap();
            held.push(stream);
        }
    }
    eventually("all in the proxy", async || {
        (proxy.metric("forebay_memory_held_bytes", &[]).await == 64.0).then_some(())
    })
    .await;
    let ended = call(proxy.address, "/inference.GRPCInferenceService/ServerLive", &live()).await;
    assert_eq!(ended.code(), Code::Ok);
    let asked = pb::ModelMetadataRequest { name: "arith".to_owned(), ..Default::default() };
    let path = "/inference.GRPCInferenceService/ModelMetadata";
    assert_eq!(call(proxy.address, path, &asked).await.code(), Code::Ok);
}

fn live() -> pb::ServerLiveRequest {
    pb::ServerLiveRequest::default()
}

#[tokio::test]
async fn one_client_gets_no_more_than_its_share_of_the_memory() {
    let worker = Worker::start(anywhere()).await;
    let limits = "[limits]\nbody = \"1MiB\"\nmemory = \"4MiB\"\nclient_memory = \"50%\"\n\
                  body_timeout = \"10m\"";
    let proxy = Proxy::start(&format!("{limits}\n{}", pool_of(&[worker.address], ""))).await;
    proxy.wait_ready(1).await;
    let mut held = Vec::new();
    for _ in 0..4 {
        let mut stream = from([127, 0, 0, 2], proxy.address).await;
        let head =
            "POST /v2/models/arith/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        // Three of them would be more than the share.
        let bytes = if held.len() < 2 { 999_000 } else { 20_000 };
        stream.write_all(&vec![b'x'; bytes]).await.unwrap();
        held.push(stream);
    }
    eventually("a full share", async || {
        (proxy.metric("forebay_memory_held_bytes", &[]).await > 2_000_000.0).then_some(())
    })
    .await;
    // Others have theirs, and health is answered even when memory is full.
    let message = framed(&pb::ModelInferRequest { id: "x".repeat(900_000), ..Default::default() });
    let infer = "/inference.GRPCInferenceService/ModelInfer";
    let ended = call_with(proxy.address, infer, &[], message.clone()).await;
    assert_ne!(ended.code(), Code::Unavailable, "{}", ended.words());

    let stream = from([127, 0, 0, 2], proxy.address).await;
    let request = Request::post("/v2/models/arith/infer").header("host", "x");
    let request = request.body(Full::new(Bytes::from(vec![b'x'; 200_000])));
    let answer = send_on(stream, request.unwrap()).await.unwrap();
    // It is streamed: the worker finds that it is no JSON.
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert!(proxy.metric("forebay_memory_full_total", &["bound=\"client\""]).await > 0.0);
    drop(held);
    eventually("their memory", async || {
        (proxy.metric("forebay_memory_held_bytes", &[]).await < 1.0).then_some(())
    })
    .await;
}
