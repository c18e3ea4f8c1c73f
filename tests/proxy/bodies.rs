//! Every body arrives completely or is refused with a message.

use crate::client::{self, post, raw};
use crate::endpoint::{Behaviour, Endpoint, echo};
use crate::harness::{MAX_WAIT, Proxy, eventually, pool_of};
use bytes::Bytes;
use http_body_util::StreamBody;
use hyper::Request;
use hyper::body::Frame;
use std::convert::Infallible;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const INFER: &str = "/v2/models/m/infer";
const KIB: usize = 1024;

async fn echoing(limits: &str) -> (Proxy, Endpoint) {
    let endpoint = Endpoint::start(Behaviour::Echo).await;
    let config = format!("{limits}\n{}", pool_of(&[endpoint.address], ""));
    let proxy = Proxy::start(&config).await;
    proxy.wait_ready(1).await;
    (proxy, endpoint)
}

fn body(length: usize) -> Bytes {
    (0..length).map(|i| u8::try_from(i * 31 % 251).unwrap()).collect()
}

// Two threads: while the endpoint adds up megabytes, it still answers probes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_of_any_length_up_to_the_cap_arrive_whole() {
    // The buffer lies below the cap, so that both ways through the proxy are taken.
    let (proxy, _endpoint) = echoing("[limits]\nbody = \"4MiB\"\nbuffer = \"3500KiB\"").await;
    let lengths =
        [0, 1, 63 * KIB, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 65 * KIB, 3_000_000, 4 * KIB * KIB];
    for length in lengths {
        let sent = body(length);
        let answer = post(proxy.address, INFER, sent.clone()).await;
        assert_eq!(answer.status, 200, "{length}: {}", answer.text());
        assert_eq!(answer.text(), echo(&sent), "{length} bytes");
    }
    let bodies: Vec<_> = lengths.into_iter().map(body).collect();
    let answers = client::post_h2(proxy.address, INFER, bodies.clone()).await;
    for (sent, answer) in bodies.iter().zip(answers) {
        assert_eq!(answer.text(), echo(sent), "{} bytes over h2c", sent.len());
    }
}

#[tokio::test]
async fn a_body_that_finds_the_memory_full_is_streamed() {
    let (proxy, _endpoint) = echoing("[limits]\nmemory = \"1KiB\"").await;
    for length in [1, KIB, KIB + 1, 3_000_000] {
        let sent = body(length);
        assert_eq!(post(proxy.address, INFER, sent.clone()).await.text(), echo(&sent));
        let way = if length <= KIB { "buffered" } else { "streamed" };
        assert_eq!(proxy.next_line()["mode"], way, "{length} bytes");
    }
}

#[tokio::test]
async fn a_client_that_holds_its_share_of_the_memory_is_refused_and_others_are_not() {
    let endpoint = Endpoint::start(Behaviour::Gated).await;
    let limits = "[limits]\nbody = \"1MiB\"\nbuffer = \"1MiB\"\nmemory = \"8MiB\"\n\
                  client_memory = \"12%\"\nclient_header = \"x-client\"\n";
    let proxy = Proxy::start(&format!("{limits}{}", pool_of(&[endpoint.address], ""))).await;
    proxy.wait_ready(1).await;
    let address = proxy.address;
    let ask = |client: &'static str, length: usize| {
        let sent = body(length);
        tokio::spawn(async move {
            client::post_with(address, INFER, &[("x-client", client)], sent).await
        })
    };
    // A share is one body at least.
    let holds = ask("greedy", KIB * KIB);
    eventually("the first body", async || (endpoint.came().len() == 1).then_some(())).await;
    for length in [1, 70 * KIB] {
        let answer = ask("greedy", length).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.reason()), (503, "memory_limit"), "{length}");
        assert!(answer.text().contains("limits.client_memory"), "{}", answer.text());
        assert_eq!(proxy.next_line()["reason"], "memory_limit");
    }
    let other = ask("modest", 70 * KIB);
    eventually("the other's body", async || (endpoint.came().len() == 2).then_some(())).await;
    endpoint.let_go(3);
    assert_eq!(holds.await.unwrap().status, 200);
    assert_eq!(other.await.unwrap().status, 200);
    // All of it is given back, if perhaps a moment after the answer.
    eventually("room for the greedy one", async || {
        let answer = ask("greedy", 1).await.unwrap();
        (answer.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn chunked_bodies_arrive_whole_and_are_cut_at_the_cap() {
    let (proxy, endpoint) = echoing("[limits]\nbody = \"1MiB\"").await;
    let chunked = |length: usize| {
        let sent = body(length);
        let chunks: Vec<_> = sent.chunks(10_000).map(Bytes::copy_from_slice).collect();
        let stream = chunks.into_iter().map(|chunk| Ok::<_, Infallible>(Frame::data(chunk)));
        Request::post(INFER).body(StreamBody::new(Iter(stream))).unwrap()
    };
    for length in [1, 64 * KIB, 64 * KIB + 1, KIB * KIB] {
        let answer = client::send(proxy.address, chunked(length)).await.unwrap();
        assert_eq!(answer.text(), echo(&body(length)), "{length} bytes");
    }
    let served = endpoint.served();
    let answer = client::send(proxy.address, chunked(KIB * KIB + 1)).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.reason()), (413, "body_too_large"));
    assert_eq!(endpoint.served(), served, "the endpoint never got it whole");
}

#[tokio::test]
async fn a_chunk_whose_content_comes_after_its_header_does_not_end_the_body() {
    let (proxy, endpoint) = echoing("[limits]\nbuffer = \"1KiB\"").await;
    let mut client = tokio::net::TcpStream::connect(proxy.address).await.unwrap();
    client.set_nodelay(true).unwrap();
    let (start, piece) = (body(4 * KIB), body(100));
    let head = format!("POST {INFER} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n");
    client.write_all(head.as_bytes()).await.unwrap();
    client.write_all(&[b"1000\r\n", &start[..], b"\r\n"].concat()).await.unwrap();
    for _ in 0..200 {
        client.write_all(b"64\r\n").await.unwrap();
        // The proxy is a process of its own: it may read the header of the chunk meanwhile.
        tokio::task::yield_now().await;
        client.write_all(&[&piece[..], b"\r\n"].concat()).await.unwrap();
    }
    client.write_all(b"0\r\n\r\n").await.unwrap();
    client.shutdown().await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    let sent = [start, Bytes::from(piece.repeat(200))].concat();
    assert!(answer.ends_with(&echo(&sent)), "{answer}");
    assert_eq!(endpoint.served(), 1);
}

/// An iterator as a stream that is always ready.
struct Iter<I>(I);
impl<I: Iterator + Unpin> futures_core::Stream for Iter<I> {
    type Item = I::Item;
    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<I::Item>> {
        std::task::Poll::Ready(self.0.next())
    }
}

#[tokio::test]
async fn a_body_that_says_it_is_too_long_is_refused_before_it_comes() {
    let (proxy, endpoint) = echoing("[limits]\nbody = \"1MiB\"").await;
    for length in ["1048577", "1073741824", "18446744073709551615"] {
        let head = format!("POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n");
        let (answer, _) = raw(proxy.address, head.as_bytes(), Duration::from_secs(1)).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{length}: {answer}");
        assert!(answer.contains("x-forebay-reason: body_too_large"), "{answer}");
        assert!(answer.contains("expected a body of at most 1MiB, found"), "{answer}");
        // The second in which the rest of the body could still come is not the request's.
        let line = proxy.next_line();
        assert!(line["total_us"].as_u64().unwrap() < 900_000, "{line}");
    }
    for length in ["-1", "1e3", "99999999999999999999999", "4, 5"] {
        let head = format!("POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n");
        let (answer, closed) = raw(proxy.address, head.as_bytes(), MAX_WAIT).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && closed, "{length}: {answer}");
    }
    assert_eq!(endpoint.served(), 0);
}

#[tokio::test]
async fn a_client_that_sends_all_of_a_refused_body_still_reads_why() {
    let (proxy, _endpoint) = echoing("[limits]\nbody = \"64KiB\"").await;
    let answer = post(proxy.address, INFER, body(3_000_000)).await;
    assert_eq!((answer.status.as_u16(), answer.reason()), (413, "body_too_large"));
}

#[tokio::test]
async fn chunked_and_content_length_together_smuggle_nothing() {
    let (proxy, endpoint) = echoing("").await;
    let smuggled = format!(
        "POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n\
         0\r\n\r\nPOST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"
    );
    let (answer, closed) = raw(proxy.address, smuggled.as_bytes(), MAX_WAIT).await;
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "one request at most: {answer}");
    assert!(closed, "the connection is not used again");
    assert!(endpoint.served() <= 1);
}

#[tokio::test]
async fn expect_continue_is_answered_before_the_body_is_sent() {
    let (proxy, _endpoint) = echoing("").await;
    let mut stream = tokio::net::TcpStream::connect(proxy.address).await.unwrap();
    let head = format!(
        "POST {INFER} HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut interim = [0; 25];
    stream.read_exact(&mut interim).await.unwrap();
    assert_eq!(&interim[..21], b"HTTP/1.1 100 Continue");
    stream.write_all(b"hello").await.unwrap();
    let mut answer = vec![0; 17];
    stream.read_exact(&mut answer).await.unwrap();
    assert!(String::from_utf8_lossy(&answer).contains("HTTP/1.1 200 OK"), "{answer:?}");
}

#[tokio::test]
async fn a_body_that_does_not_come_is_refused_in_time() {
    for head in ["content-length: 100", "transfer-encoding: chunked"] {
        let (proxy, _endpoint) = echoing("[limits]\nbody_timeout = \"200ms\"").await;
        let request = format!("POST {INFER} HTTP/1.1\r\nhost: x\r\n{head}\r\n\r\n");
        let started = Instant::now();
        let (answer, closed) = raw(proxy.address, request.as_bytes(), MAX_WAIT).await;
        assert!(answer.starts_with("HTTP/1.1 408 "), "{head}: {answer}");
        assert!(answer.contains("x-forebay-reason: request_timeout"), "{answer}");
        assert!(closed && started.elapsed() < MAX_WAIT);
    }
}

#[tokio::test]
async fn answers_longer_than_what_is_held_are_streamed_whole() {
    let endpoint = Endpoint::start(Behaviour::Huge).await;
    let proxy = Proxy::in_front_of(&[endpoint.address], 1, "").await;
    let answer = post(proxy.address, INFER, "x").await;
    assert_eq!((answer.status.as_u16(), answer.body.len()), (200, 40_000_000));
}

#[tokio::test]
async fn malformed_requests_are_refused_and_closed() {
    let (proxy, endpoint) = echoing("").await;
    for request in [
        "nonsense\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "GET /v2 HTTP/1.1\r\nconnection: close\r\n\r\n",
        "GET /v2 HTTP/1.1\r\nhost: a\r\nhost: b\r\nconnection: close\r\n\r\n",
        "POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\nbad header\r\n\r\n",
    ] {
        let (answer, closed) = raw(proxy.address, request.as_bytes(), MAX_WAIT).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && closed, "{request:?}: {answer}");
    }
    for request in [
        "POST /v2/models/%zz/infer HTTP/1.1\r\nconnection: close\r\nhost: x\r\ncontent-length: 0\r\n\r\n",
        "POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-request-deadline: soon\r\ncontent-length: 0\r\n\r\n",
    ] {
        let (answer, closed) = raw(proxy.address, request.as_bytes(), MAX_WAIT).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && closed, "{request:?}: {answer}");
    }
    assert_eq!(endpoint.served(), 0);
    assert_eq!(post(proxy.address, INFER, "x").await.status, 200, "and it goes on serving");
}

#[tokio::test]
async fn a_body_that_breaks_off_is_the_clients_mistake() {
    let (proxy, endpoint) = echoing("").await;
    let mut stream = tokio::net::TcpStream::connect(proxy.address).await.unwrap();
    let request = format!("POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nhe");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
    let line = proxy.next_line();
    assert!(line["reason"] == "invalid_request" || line["reason"] == "client_closed", "{line}");
    assert_eq!(endpoint.served(), 0);
}

#[tokio::test]
async fn a_header_that_is_too_long_is_refused() {
    let (proxy, _endpoint) = echoing("").await;
    let long = "y".repeat(1000);
    let fields: String = (0..100).map(|n| format!("x-{n}: {long}\r\n")).collect();
    let request = format!("GET /v2 HTTP/1.1\r\nhost: x\r\n{fields}\r\n");
    let (answer, closed) = raw(proxy.address, request.as_bytes(), MAX_WAIT).await;
    assert!(answer.starts_with("HTTP/1.1 431 ") && closed, "{answer}");
    assert!(answer.contains("x-forebay-reason: headers_too_large"), "{answer}");
}

#[tokio::test]
async fn requests_that_come_at_once_are_answered_one_after_the_other() {
    let (proxy, endpoint) = echoing("").await;
    let one = |body: &str, more: &str| {
        let length = body.len();
        format!("POST {INFER} HTTP/1.1\r\nhost: x\r\n{more}content-length: {length}\r\n\r\n{body}")
    };
    let both = one("first", "") + &one("second", "connection: close\r\n");
    let (answer, _) = raw(proxy.address, both.as_bytes(), MAX_WAIT).await;
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 2, "{answer}");
    let (first, second) = (answer.find(&echo(b"first")), answer.find(&echo(b"second")));
    assert!(first.is_some() && first < second, "{answer}");
    assert_eq!(endpoint.served(), 2);
}

#[tokio::test]
async fn headers_of_one_connection_stay_on_it() {
    let (proxy, _endpoint) = echoing("").await;
    for path in [INFER, "/v2/models/m/generate"] {
        let headers = [("connection", "x-secret"), ("x-secret", "1"), ("te", "trailers")];
        let answer = client::post_with(proxy.address, path, &headers, "x").await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("x-seen-secret"), "", "{path}");
        if path == INFER {
            assert_eq!(answer.header("x-inner"), "", "{path}");
        }
    }
}

#[tokio::test]
async fn an_endpoint_may_refuse_before_it_has_read_all() {
    let endpoint = Endpoint::start(Behaviour::Early413).await;
    let proxy = Proxy::in_front_of(&[endpoint.address], 1, "").await;
    let answer = post(proxy.address, INFER, body(100)).await;
    assert_eq!(answer.status, 413, "{}", answer.text());
}

#[tokio::test]
async fn a_request_shorter_than_the_preface_of_http2_is_answered() {
    let (proxy, _endpoint) = echoing("").await;
    for request in ["GET /v2/health/live HTTP/1.0\r\n\r\n", "OPTIONS / HTTP/1.0\r\n\r\n"] {
        let (answer, closed) = raw(proxy.address, request.as_bytes(), MAX_WAIT).await;
        assert!(answer.starts_with("HTTP/1.") && closed, "{request:?}: {answer}");
    }
    // Begins like HTTP/2 and then differs.
    let request = b"PRI /x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let (answer, closed) = raw(proxy.address, request, MAX_WAIT).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && closed, "{answer}");
}
