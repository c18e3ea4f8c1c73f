//! Clients that do less than they should, and what that costs others.

use crate::harness::*;
use crate::live::{controlled, metric};
use forebay_worker::{Options, Worker};
use http::{HeaderName, HeaderValue, Method, Version};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Sends bytes and leaves the connection open.
async fn open(worker: &Worker, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(worker.address()).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

/// Reads until the worker closes the connection.
async fn until_closed(mut stream: TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    let read = tokio::time::timeout(MAX_WAIT, stream.read_to_end(&mut answer)).await;
    drop(read.expect("the worker should close the connection"));
    answer
}

/// Reads one answer that is a small document.
async fn one_answer(stream: &mut TcpStream) {
    let mut answer = Vec::new();
    while !answer.ends_with(b"}") {
        let mut byte = [0];
        stream.read_exact(&mut byte).await.unwrap();
        answer.push(byte[0]);
    }
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
}

async fn closed(worker: &Worker, reason: &str) -> u64 {
    let line = format!("forebay_worker_connections_closed_total{{reason=\"{reason}\"}}");
    metric(worker, &line).await
}

#[tokio::test]
async fn a_header_that_does_not_come_in_time_ends_the_connection_the_first_and_any_other() {
    let header_timeout = Duration::from_millis(300);
    let worker = start(Options { header_timeout, ..options(fixtures()) }).await;
    for start in ["", "G", "GET /v2 HTTP/1.1\r\nhost: x\r\nx: ", "PRI * HTTP/2.0\r\n\r\n"] {
        until_closed(open(&worker, start.as_bytes()).await).await;
    }
    // Between requests a client may be silent for longer; within a header it may not.
    let mut kept = open(&worker, b"GET /v2 HTTP/1.1\r\nhost: x\r\n\r\n").await;
    one_answer(&mut kept).await;
    tokio::time::sleep(3 * header_timeout).await;
    kept.write_all(b"GET /v2 HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    one_answer(&mut kept).await;
    kept.write_all(b"GET /v2 HT").await.unwrap();
    until_closed(kept).await;
    assert_eq!(closed(&worker, "header_timeout").await, 5);
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_its_time_also_over_http_2() {
    let idle_timeout = Duration::from_millis(500);
    let worker = start(Options { idle_timeout, ..options(fixtures()) }).await;
    let io = hyper_util::rt::TokioIo::new(TcpStream::connect(worker.address()).await.unwrap());
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut sent = request(Method::GET, "http://worker/v2", "");
    *sent.version_mut() = Version::HTTP_2;
    sent.headers_mut().clear();
    let sent = sent.map(http_body_util::Full::new);
    assert_eq!(sender.send_request(sent).await.unwrap().status(), 200);
    let ended = tokio::time::timeout(MAX_WAIT, connection).await.expect("it should be closed");
    assert!(ended.unwrap().is_ok(), "with a word");
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_place_though_it_had_sent_more() {
    let worker = start(Options { executors: 1, queue: 1, ..options(fixtures()) }).await;
    let head = |body: &[u8]| {
        format!(
            "POST /v2/models/slow/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
            body.len()
        )
    };
    let body = slow_request().into_body();
    let mut bytes = head(&body).into_bytes();
    bytes.extend_from_slice(&body);
    let running = open(&worker, &bytes).await;
    until_busy(&worker, 1, 0).await;
    bytes.extend_from_slice(b"GET /v2 HTTP/1.1\r\nhost: x\r\n\r\nGET");
    let waiting = open(&worker, &bytes).await;
    until_busy(&worker, 1, 1).await;
    drop(waiting);
    until_busy(&worker, 1, 0).await;
    drop(running);
    until_busy(&worker, 0, 0).await;
    assert_eq!(closed(&worker, "client_left").await, 1);
}

#[tokio::test]
async fn an_idle_connection_makes_room_for_a_new_one() {
    let worker = start(Options { max_connections: 3, ..options(fixtures()) }).await;
    let mut idle = Vec::new();
    for _ in 0..3 {
        let mut stream = open(&worker, b"GET /v2 HTTP/1.1\r\nhost: x\r\n\r\n").await;
        one_answer(&mut stream).await;
        idle.push(stream);
    }
    // Each on a connection of its own, one after the other.
    for _ in 0..5 {
        assert_eq!(get(&worker, "/v2/health/live").await.status, 200);
    }
    assert!(closed(&worker, "room").await >= 1);
}

#[tokio::test]
async fn requests_beyond_their_bound_are_refused_but_not_those_of_others_or_for_health() {
    let worker = start(Options { max_requests: 4, ..options(fixtures()) }).await;
    let begun = b"POST /v2/models/arith/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n";
    // As many as one client may have, whose bodies do not come.
    let held = [open(&worker, begun).await, open(&worker, begun).await];
    let until = async |status: u16| {
        let asked = async {
            while get(&worker, "/v2").await.status != status {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(MAX_WAIT, asked).await.expect("another answer");
    };
    until(503).await;
    let refused = get(&worker, "/v2").await;
    assert!(refused.text().contains("this client has half of max_requests"), "{}", refused.text());
    assert_eq!(get(&worker, "/v2/health/live").await.status, 200);
    // Another client.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut other = socket.connect(worker.address()).await.unwrap();
    other.write_all(b"GET /v2 HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    one_answer(&mut other).await;
    drop(held);
    until(200).await;
}

#[tokio::test]
async fn pages_of_other_sites_can_not_load_or_unload_models() {
    let scratch = Scratch::new("cross-site");
    scratch.write("m/1/model.onnx", Scratch::model("arith"));
    let worker = start(controlled(scratch.path())).await;
    let host = worker.address().to_string();
    let asked = async |path: &str, fields: &[(&'static str, &str)]| {
        let mut sent = request(Method::POST, path, "{}");
        sent.headers_mut().insert("host", HeaderValue::from_str(&host).unwrap());
        for (name, value) in fields {
            let name = HeaderName::from_static(name);
            sent.headers_mut().insert(name, HeaderValue::from_str(value).unwrap());
        }
        send(worker.address(), sent).await
    };
    let own = format!("http://{host}");
    for path in ["/v2/repository/models/m/unload", "/v2/repository/models/m/load"] {
        for (name, value) in [
            ("origin", "http://evil.example"),
            ("origin", "null"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
        ] {
            let answer = asked(path, &[(name, value)]).await;
            answer.refused(403, "forbidden", "a page of another site may have sent it");
        }
        let rebound = [("host", "evil.example"), ("origin", "http://evil.example")];
        asked(path, &rebound).await.refused(
            403,
            "forbidden",
            "a page of another site may have sent it",
        );
    }
    assert_eq!(crate::live::serving(&worker, "m").await, "1");
    assert_eq!(asked("/v2/repository/models/m/unload", &[("origin", &own)]).await.status, 200);
}

#[tokio::test]
async fn more_header_fields_than_may_be_are_refused_over_both_protocols() {
    let worker = start_fixtures().await;
    let with = |fields: usize, version: Version| {
        let mut sent = request(Method::GET, "/v2", "");
        *sent.version_mut() = version;
        if version == Version::HTTP_2 {
            *sent.uri_mut() = "http://worker/v2".parse().unwrap();
            sent.headers_mut().clear();
        }
        for field in sent.headers().len()..fields {
            let name = HeaderName::try_from(format!("x-{field}")).unwrap();
            sent.headers_mut().insert(name, HeaderValue::from_static("1"));
        }
        sent
    };
    for version in [Version::HTTP_11, Version::HTTP_2] {
        assert_eq!(send(worker.address(), with(100, version)).await.status, 200, "{version:?}");
        assert_eq!(send(worker.address(), with(101, version)).await.status, 431, "{version:?}");
    }
    let answer = send(worker.address(), with(101, Version::HTTP_2)).await;
    answer.refused(431, "headers_too_large", "at most 100 header fields");
}

#[tokio::test]
async fn a_flood_of_http_2_control_frames_ends_the_connection() {
    let worker = start_fixtures().await;
    let ping = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    for (kind, frame) in [("ping", &ping[..]), ("settings", &settings[..])] {
        let mut stream = open(&worker, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        stream.write_all(&settings).await.unwrap();
        let flood = frame.repeat(10_000);
        // The worker may have closed before all was written.
        drop(stream.write_all(&flood).await);
        until_closed(stream).await;
        let line = format!("forebay_worker_http2_floods_total{{kind=\"{kind}\"}}");
        assert_eq!(metric(&worker, &line).await, 1, "{kind}");
    }
}
