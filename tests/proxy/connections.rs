//! A listener that is full: connections that wait for their client make room, busy ones do not, and no
//! client takes all places.

use crate::client::{get, raw};
use crate::endpoint::{Behaviour, Endpoint};
use crate::harness::{MAX_WAIT, Proxy, eventually, pool_of};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

const GET: &[u8] = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n";
const INFER: &[u8] = b"POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nx";
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// A proxy whose listener has these keys, in front of an endpoint that answers when it is let.
async fn proxy_with(listener: &str) -> (Proxy, Endpoint) {
    let endpoint = Endpoint::start(Behaviour::Gated).await;
    let config = format!("{listener}\n{}", pool_of(&[endpoint.address], "slots = 100"));
    let proxy = Proxy::start(&config).await;
    proxy.wait_ready(1).await;
    (proxy, endpoint)
}

/// A connection from 127.0.0.`host`.
async fn connect_from(host: u8, proxy: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::new(127, 0, 0, host), 0).into()).unwrap();
    socket.connect(proxy).await.unwrap()
}

/// Sends a request and reads what comes of its answer at first.
async fn ask(stream: &mut TcpStream, request: &[u8]) -> String {
    stream.write_all(request).await.unwrap();
    said(stream).await
}

/// The next bytes; empty at the end of the connection.
async fn said(stream: &mut TcpStream) -> String {
    let mut buffer = vec![0; 16 * 1024];
    let read = timeout(MAX_WAIT, stream.read(&mut buffer)).await.expect("nothing is said");
    String::from_utf8_lossy(&buffer[..read.unwrap_or(0)]).into_owned()
}

async fn idle(proxy: &Proxy) -> TcpStream {
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    assert!(ask(&mut stream, GET).await.starts_with("HTTP/1.1 200 "));
    stream
}

async fn open(proxy: &Proxy, count: f64) {
    let counted = async || {
        let open = proxy.metric("forebay_connections_open", &[]).await;
        (open == count).then_some(())
    };
    eventually(&format!("{count} open connections"), counted).await;
}

async fn ended(proxy: &Proxy, reason: &str) -> f64 {
    proxy.metric("forebay_connections_total", &[&format!("reason=\"{reason}\"")]).await
}

#[tokio::test]
async fn kept_connections_make_room_for_new_ones_and_busy_ones_stay() {
    let (proxy, endpoint) = proxy_with("max_connections = 3").await;
    let mut busy = TcpStream::connect(proxy.address).await.unwrap();
    busy.write_all(INFER).await.unwrap();
    eventually("the request at the endpoint", async || (!endpoint.came().is_empty()).then_some(()))
        .await;
    let (mut one, mut two) = (idle(&proxy).await, idle(&proxy).await);
    open(&proxy, 3.0).await;
    // They are asked to leave together; the new one is served at once.
    let mut new = idle(&proxy).await;
    assert_eq!((said(&mut one).await, said(&mut two).await), (String::new(), String::new()));
    eventually("two that made room", async || {
        (ended(&proxy, "evicted").await == 2.0).then_some(())
    })
    .await;
    assert!(ask(&mut new, GET).await.starts_with("HTTP/1.1 200 "));
    endpoint.let_go(1);
    assert!(said(&mut busy).await.starts_with("HTTP/1.1 200 "));
    assert_eq!(ended(&proxy, "connection_limit").await, 0.0);
}

#[tokio::test]
async fn silent_and_http2_connections_make_room_too() {
    let (proxy, _endpoint) = proxy_with("max_connections = 2").await;
    let mut silent = TcpStream::connect(proxy.address).await.unwrap();
    let mut h2 = TcpStream::connect(proxy.address).await.unwrap();
    assert!(!ask(&mut h2, PREFACE).await.is_empty(), "SETTINGS");
    open(&proxy, 2.0).await;
    let _new = idle(&proxy).await;
    assert_eq!(said(&mut silent).await, "");
    let mut rest = Vec::new();
    timeout(MAX_WAIT, h2.read_to_end(&mut rest)).await.unwrap().unwrap();
    let goaway = rest.windows(5).any(|bytes| bytes == [0, 0, 8, 7, 0]);
    assert!(goaway, "GOAWAY before the end: {rest:?}");
    open(&proxy, 1.0).await;
}

#[tokio::test]
async fn a_new_connection_is_refused_where_all_are_busy() {
    let (proxy, endpoint) = proxy_with("max_connections = 2").await;
    let mut busy = Vec::new();
    for count in 1..=2 {
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        stream.write_all(INFER).await.unwrap();
        eventually("the request at the endpoint", async || {
            (endpoint.came().len() == count).then_some(())
        })
        .await;
        busy.push(stream);
    }
    let (refused, closed) = raw(proxy.address, b"", MAX_WAIT).await;
    assert!(refused.starts_with("HTTP/1.1 503 ") && closed, "{refused}");
    assert!(refused.contains("x-forebay-reason: connection_limit"), "{refused}");
    endpoint.let_go(2);
    for stream in &mut busy {
        assert!(said(stream).await.starts_with("HTTP/1.1 200 "));
    }
    eventually("room", async || {
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        // One that is refused is closed before it reads.
        stream.write_all(GET).await.ok()?;
        said(&mut stream).await.starts_with("HTTP/1.1 200 ").then_some(())
    })
    .await;
}

#[tokio::test]
async fn no_client_has_more_connections_than_its_part() {
    let (proxy, endpoint) = proxy_with("max_connections_per_client = 2").await;
    let mut busy = Vec::new();
    for count in 1..=2 {
        let mut stream = connect_from(2, proxy.address).await;
        stream.write_all(INFER).await.unwrap();
        eventually("the request at the endpoint", async || {
            (endpoint.came().len() == count).then_some(())
        })
        .await;
        busy.push(stream);
    }
    let mut third = connect_from(2, proxy.address).await;
    let answer = said(&mut third).await;
    assert!(answer.contains("x-forebay-reason: connection_limit"), "{answer}");
    let mut other = connect_from(3, proxy.address).await;
    assert!(ask(&mut other, GET).await.starts_with("HTTP/1.1 200 "));
    endpoint.let_go(2);
    for stream in &mut busy {
        assert!(said(stream).await.starts_with("HTTP/1.1 200 "));
    }
    // Its own idle ones make room for it, those of others do not.
    let mut again = connect_from(2, proxy.address).await;
    assert!(ask(&mut again, GET).await.starts_with("HTTP/1.1 200 "));
    assert!(ask(&mut other, GET).await.starts_with("HTTP/1.1 200 "));
    eventually("one that made room", async || {
        (ended(&proxy, "evicted").await == 1.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn behind_a_balancer_the_client_counts_that_it_names() {
    let (proxy, endpoint) =
        proxy_with("max_connections_per_client = 1\nproxy_protocol = \"require\"").await;
    let as_client = async |client: &str, request: &[u8]| {
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        let header = format!("PROXY TCP4 {client} 10.0.0.9 1000 80\r\n");
        stream.write_all(&[header.as_bytes(), request].concat()).await.unwrap();
        stream
    };
    let _busy = as_client("10.0.0.1", INFER).await;
    eventually("the request at the endpoint", async || (endpoint.came().len() == 1).then_some(()))
        .await;
    let mut other = as_client("10.0.0.2", GET).await;
    assert!(said(&mut other).await.starts_with("HTTP/1.1 200 "));
    let mut second = as_client("10.0.0.1", GET).await;
    assert_eq!(said(&mut second).await, "");
    eventually("the refusal", async || {
        (ended(&proxy, "connection_limit").await == 1.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_http2_client_that_begins_nothing_or_never_ends_its_header_is_not_waited_for() {
    let (proxy, _endpoint) = proxy_with("[limits]\nheader_timeout = \"500ms\"").await;
    for (begun, reason) in [
        (PREFACE.to_vec(), None),
        (PREFACE[..24].to_vec(), None),
        (PREFACE[..10].to_vec(), Some("request_timeout")),
        ([PREFACE, &[0, 0, 9, 1, 5, 0, 0]].concat(), Some("request_timeout")),
        ([PREFACE, &[0, 0, 1, 1, 1, 0, 0, 0, 1, 0x82]].concat(), Some("request_timeout")),
    ] {
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        let started = Instant::now();
        stream.write_all(&begun).await.unwrap();
        let mut rest = Vec::new();
        let _ = timeout(MAX_WAIT, stream.read_to_end(&mut rest)).await.expect("still open");
        assert!(started.elapsed() >= Duration::from_millis(400), "{:?}", started.elapsed());
        if let Some(reason) = reason {
            assert_eq!(proxy.next_line()["reason"], reason, "{begun:?}");
        }
    }
    assert_eq!(get(proxy.address, "/v2/health/live").await.status, 200);
}
