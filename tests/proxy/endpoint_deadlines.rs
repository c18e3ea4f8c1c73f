//! An answer has one deadline in all, and is passed on as it comes.

use crate::client::{get, post, raw};
use crate::harness::{MAX_WAIT, Proxy};
use crate::path_endpoint::{
    DRIP_BODY, DRIP_CHUNKS, DRIP_HEADER, DUPLEX, EVENTS, EVENTS_COUNT, HALVES, ONE_EVENT,
    PathEndpoint,
};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Far less than the answers would take, and far more than a busy machine needs to begin one.
const DEADLINE: Duration = Duration::from_millis(600);

async fn start(route: &str) -> (Proxy, PathEndpoint) {
    let endpoint = PathEndpoint::start().await;
    let proxy = Proxy::start(&format!("{}{route}\n", endpoint.pool(""))).await;
    proxy.wait_ready(1).await;
    (proxy, endpoint)
}

async fn short() -> (Proxy, PathEndpoint) {
    start(&format!("deadline = \"{}ms\"", DEADLINE.as_millis())).await
}

#[tokio::test]
async fn a_header_that_drips_is_bounded_by_the_deadline() {
    let (proxy, _endpoint) = short().await;
    for answer in
        [get(proxy.address, DRIP_HEADER).await, post(proxy.address, DRIP_HEADER, "x").await]
    {
        assert_eq!((answer.status.as_u16(), answer.reason()), (504, "deadline_exceeded"));
        let took = proxy.next_line()["total_us"].as_u64().unwrap();
        assert!(u128::from(took) >= DEADLINE.as_micros(), "{took}");
    }
}

#[tokio::test]
async fn an_answer_to_a_wish_for_another_protocol_is_bounded_too() {
    let (proxy, _endpoint) = short().await;
    for path in [DRIP_HEADER, DRIP_BODY, DRIP_CHUNKS] {
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
        );
        let (answer, closed) = raw(proxy.address, request.as_bytes(), MAX_WAIT).await;
        let expected = if path == DRIP_HEADER { "HTTP/1.1 504 " } else { "HTTP/1.1 200 " };
        assert!(answer.starts_with(expected) && closed, "{answer}");
        let line = proxy.next_line();
        assert_eq!(
            (&line["reason"], &line["mode"]),
            (&"deadline_exceeded".into(), &"streamed".into())
        );
        let took = u128::from(line["total_us"].as_u64().unwrap());
        assert!((DEADLINE.as_micros()..2 * DEADLINE.as_micros()).contains(&took), "{path}: {took}");
    }
}

#[tokio::test]
async fn a_body_that_drips_is_bounded_by_the_deadline_and_passed_on_until_then() {
    let (proxy, _endpoint) = short().await;
    for path in [DRIP_BODY, DRIP_CHUNKS] {
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
        let started = Instant::now();
        let (answer, closed) = raw(proxy.address, request.as_bytes(), MAX_WAIT).await;
        assert!(started.elapsed() >= DEADLINE && closed);
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.matches('y').count() > 1, "{answer}");
        assert!(!answer.ends_with("0\r\n\r\n"), "an end must not look like one in order");
        let line = proxy.next_line();
        assert_eq!((&line["reason"], &line["path"]), (&"deadline_exceeded".into(), &path.into()));
    }
}

#[tokio::test]
async fn a_client_sees_what_there_is_of_an_answer() {
    let (proxy, endpoint) = start("").await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    let request = format!("GET {HALVES} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    while !answer.ends_with("first") {
        let mut buffer = [0; 1024];
        let read = timeout(MAX_WAIT, stream.read(&mut buffer)).await.unwrap().unwrap();
        assert!(read > 0, "{answer}");
        answer += std::str::from_utf8(&buffer[..read]).unwrap();
    }
    endpoint.let_go(1);
    timeout(MAX_WAIT, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.ends_with("firstother"), "{answer}");
}

#[tokio::test]
async fn an_answer_may_begin_before_the_end_of_a_long_request() {
    let endpoint = PathEndpoint::start().await;
    let limits = "[limits]\nbuffer = \"1KiB\"\n";
    let proxy = Proxy::start(&format!("{limits}{}", endpoint.pool(""))).await;
    proxy.wait_ready(1).await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    let head = format!("POST {DUPLEX} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    // The first is what is collected before an endpoint is asked.
    for (number, mark) in ["first", "second", "third"].iter().enumerate() {
        let filler = if number == 0 { "x".repeat(2000) } else { String::new() };
        let chunk = format!("{filler}{mark}");
        let chunk = format!("{:x}\r\n{chunk}\r\n", chunk.len());
        stream.write_all(chunk.as_bytes()).await.unwrap();
        while !answer.contains(mark) {
            let mut buffer = [0; 4096];
            let read = timeout(MAX_WAIT, stream.read(&mut buffer)).await.unwrap().unwrap();
            assert!(read > 0, "{answer}");
            answer += std::str::from_utf8(&buffer[..read]).unwrap();
        }
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    while !answer.ends_with("0\r\n\r\n") {
        let mut buffer = [0; 64];
        let read = timeout(MAX_WAIT, stream.read(&mut buffer)).await.unwrap().unwrap();
        assert!(read > 0, "{answer}");
        answer += std::str::from_utf8(&buffer[..read]).unwrap();
    }
    assert_eq!(proxy.next_line()["reason"], "ok");
}

#[tokio::test]
async fn a_stream_of_events_may_last_as_long_as_it_moves() {
    let (proxy, _endpoint) = short().await;
    let started = Instant::now();
    let answer = get(proxy.address, EVENTS).await;
    assert!(started.elapsed() > DEADLINE, "longer than any other answer may take");
    assert_eq!(answer.text().matches("data: ").count(), EVENTS_COUNT);
    assert_eq!(proxy.next_line()["reason"], "ok");

    // One that is silent does not move.
    let request = format!("GET {ONE_EVENT} HTTP/1.1\r\nhost: x\r\n\r\n");
    let (answer, closed) = raw(proxy.address, request.as_bytes(), MAX_WAIT).await;
    assert!(answer.contains("data: 00") && closed, "{answer}");
    assert_eq!(proxy.next_line()["reason"], "deadline_exceeded");

    // The client's deadline is for the whole answer.
    let request = format!("GET {EVENTS} HTTP/1.1\r\nhost: x\r\nx-request-deadline: 200\r\n\r\n");
    let (answer, closed) = raw(proxy.address, request.as_bytes(), MAX_WAIT).await;
    assert!(closed && answer.matches("data: ").count() < EVENTS_COUNT, "{answer}");
    assert_eq!(proxy.next_line()["reason"], "deadline_exceeded");
}

#[tokio::test]
async fn a_client_that_leaves_a_stream_of_events_ends_it() {
    let (proxy, _endpoint) = start("").await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    let request = format!("GET {ONE_EVENT} HTTP/1.1\r\nhost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = [0; 64];
    timeout(MAX_WAIT, stream.read(&mut answer)).await.unwrap().unwrap();
    drop(stream);
    assert_eq!(proxy.next_line()["reason"], "client_closed");
}
