//! Whole connections over the pools: balanced, relayed, bounded, and told from one another.

use crate::client::{get, raw};
use crate::endpoint::{Behaviour, Endpoint};
use crate::harness::{MAX_WAIT, Proxy, anywhere, eventually};
use forebay::config::Config;
use rustix::process::Signal;
use std::net::SocketAddr;
use std::path::Path;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::timeout;

/// The behaviour of an endpoint at Layer 4.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Plain {
    /// Says its address and a line end at once, then gives back what it gets, and ends when the
    /// client does.
    Greet,
    /// Reads until the client is done, then answers with all of it.
    Collect,
    /// Says its address and a line end at once, then breaks.
    Break,
}

/// An endpoint that speaks no HTTP; dropping it closes it.
pub struct PlainEndpoint {
    pub address: SocketAddr,
    task: AbortHandle,
}

impl PlainEndpoint {
    pub async fn start(plain: Plain) -> Self {
        let listener = TcpListener::bind(anywhere()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                tokio::spawn(serve(stream, plain, address));
            }
        });
        Self { address, task: task.abort_handle() }
    }

    pub async fn start_many(count: usize, plain: Plain) -> Vec<Self> {
        let mut endpoints = Vec::new();
        for _ in 0..count {
            endpoints.push(Self::start(plain).await);
        }
        endpoints
    }
}

impl Drop for PlainEndpoint {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: TcpStream, plain: Plain, address: SocketAddr) -> std::io::Result<()> {
    if plain == Plain::Collect {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await?;
        return stream.write_all(&all).await;
    }
    stream.write_all(format!("{address}\n").as_bytes()).await?;
    if plain == Plain::Break {
        // Only when the client has heard it.
        stream.read_exact(&mut [0]).await?;
        return stream.set_zero_linger();
    }
    let (mut from, mut to) = stream.split();
    tokio::io::copy(&mut from, &mut to).await.map(|_| ())
}

/// A proxy with one listener at Layer 4; `listener` and `pool` are more keys of theirs.
pub async fn layer4(endpoints: &[SocketAddr], listener: &str, pool: &str) -> Proxy {
    let probe = "probe = { kind = \"tcp\", interval = \"300ms\", fast_interval = \"30ms\" }";
    let proxy = Proxy::start(&config(endpoints, listener, &format!("{probe}\n{pool}"))).await;
    proxy.wait_ready(endpoints.len()).await;
    proxy
}

fn config(endpoints: &[SocketAddr], listener: &str, pool: &str) -> String {
    let endpoints: Vec<_> = endpoints.iter().map(|e| format!("\"{e}\"")).collect();
    format!(
        "protocol = \"tcp\"\npool = \"plain\"\n{listener}\n\
         [pool.plain]\nendpoints = [{}]\n{pool}\n",
        endpoints.join(", ")
    )
}

fn addresses(endpoints: &[PlainEndpoint]) -> Vec<SocketAddr> {
    endpoints.iter().map(|endpoint| endpoint.address).collect()
}

/// A connection and the endpoint that greeted on it.
async fn greeted(proxy: &Proxy) -> (TcpStream, SocketAddr) {
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    let endpoint = timeout(MAX_WAIT, line(&mut stream)).await.unwrap();
    (stream, endpoint.parse().unwrap())
}

/// The next line, without its end.
pub async fn line(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut line = Vec::new();
    loop {
        match stream.read_u8().await.unwrap() {
            b'\n' => return String::from_utf8(line).unwrap(),
            byte => line.push(byte),
        }
    }
}

/// A connection is not taken, and that is said as clearly as TCP can say it.
async fn refused(address: SocketAddr) {
    // The reset may come before the client knows that it is connected.
    let Ok(mut stream) = TcpStream::connect(address).await else { return };
    assert!(rest(&mut stream).await.is_err(), "a failure must not look like an empty answer");
}

/// The end of a connection for its client: `Ok` with the last bytes, or an error.
async fn rest(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut text = String::new();
    timeout(MAX_WAIT, stream.read_to_string(&mut text)).await.unwrap().map(|_| text)
}

#[tokio::test]
async fn connections_are_spread_by_what_is_open_and_count_until_they_end() {
    let endpoints = PlainEndpoint::start_many(2, Plain::Greet).await;
    let proxy = layer4(&addresses(&endpoints), "", "policy = \"least_inflight\"").await;
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(greeted(&proxy).await);
    }
    for endpoint in &endpoints {
        let here = held.iter().filter(|(_, at)| *at == endpoint.address).count();
        assert_eq!(here, 4, "at {}", endpoint.address);
    }
    for endpoint in proxy.endpoints().await {
        assert_eq!(endpoint["in_flight"], 4);
    }
    assert_eq!(proxy.status().await["in_flight"], 8);
    assert_eq!(proxy.status().await["listeners"][0]["connections"], 8);
    assert_eq!(proxy.metric("forebay_connections_open", &[]).await, 8.0);
    assert_eq!(proxy.metric("forebay_connections_total", &[]).await, 0.0);
    drop(held);
    eventually("nothing open", async || (proxy.status().await["in_flight"] == 0).then_some(()))
        .await;
    assert_eq!(proxy.endpoints().await[0]["in_flight"], 0);
    assert_eq!(proxy.metric("forebay_connections_open", &[]).await, 0.0);
    assert_eq!(proxy.metric("forebay_connections_total", &["reason=\"ok\""]).await, 8.0);
}

#[tokio::test]
async fn a_client_that_is_done_speaking_still_hears_the_answer() {
    let endpoint = PlainEndpoint::start(Plain::Collect).await;
    let proxy = layer4(&[endpoint.address], "", "").await;
    let sent: Vec<u8> = (0..5_000_000_usize).map(|i| u8::try_from(i * 31 % 251).unwrap()).collect();
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    stream.write_all(&sent).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut heard = Vec::new();
    timeout(MAX_WAIT, stream.read_to_end(&mut heard)).await.unwrap().unwrap();
    assert!(heard == sent, "{} of {} bytes", heard.len(), sent.len());
    let line = proxy.next_line();
    assert_eq!(line["protocol"], "tcp");
    assert_eq!(line["reason"], "ok");
    assert_eq!(line["listener"], proxy.address.to_string());
    assert_eq!(line["client"], stream.local_addr().unwrap().to_string());
    assert_eq!((&line["pool"], &line["attempts"]), (&"plain".into(), &1.into()));
    assert_eq!(line["endpoint"], endpoint.address.to_string());
    assert_eq!((&line["bytes_in"], &line["bytes_out"]), (&5_000_000.into(), &5_000_000.into()));
    assert!(line["total_us"].as_u64() >= line["connect_us"].as_u64(), "{line}");
    for direction in ["direction=\"in\"", "direction=\"out\""] {
        let labels = [direction, "pool=\"plain\""];
        assert_eq!(proxy.metric("forebay_connection_bytes_total", &labels).await, 5e6);
    }
    assert_eq!(proxy.metric("forebay_connection_duration_seconds_count", &[]).await, 1.0);
}

#[tokio::test]
async fn an_endpoint_that_takes_no_connection_is_passed_over_and_never_asked_by_name() {
    let mut endpoints = PlainEndpoint::start_many(2, Plain::Greet).await;
    // Found ready once, and not asked again while the test lasts.
    let pool = "policy = \"round_robin\"\n\
                probe = { kind = \"tcp\", interval = \"1h\", fast_interval = \"1h\" }";
    let proxy = Proxy::start(&config(&addresses(&endpoints), "", pool)).await;
    proxy.wait_ready(2).await;
    let dead = endpoints.remove(0).address;
    eventually("nobody listening", async || TcpStream::connect(dead).await.err()).await;
    for _ in 0..6 {
        let (stream, endpoint) = greeted(&proxy).await;
        assert_eq!(endpoint, endpoints[0].address);
        drop(stream);
    }
    let failed = [&format!("endpoint=\"{dead}\"")[..], "outcome=\"connect_failed\""];
    let failures = proxy.metric("forebay_attempts_total", &failed).await;
    assert!(failures >= 2.0, "it had its turns: {failures}");
    assert_eq!(proxy.metric("forebay_retries_total", &["pool=\"plain\""]).await, failures);
    let connected = ["outcome=\"connected\""];
    assert_eq!(proxy.metric("forebay_attempts_total", &connected).await, 6.0);
}

#[tokio::test]
async fn what_no_endpoint_takes_is_reset_and_the_reason_is_logged() {
    let endpoint = PlainEndpoint::start(Plain::Greet).await;
    let pool = "probe = { kind = \"tcp\", interval = \"1h\", fast_interval = \"1h\" }";
    let proxy = Proxy::start(&config(&[endpoint.address], "", pool)).await;
    proxy.wait_ready(1).await;
    let dead = endpoint.address;
    drop(endpoint);
    eventually("nobody listening", async || TcpStream::connect(dead).await.err()).await;
    refused(proxy.address).await;
    let line = proxy.next_line();
    assert_eq!((&line["reason"], &line["attempts"]), (&"connect_failed".into(), &1.into()));

    let proxy = Proxy::start(&config(&[dead], "", "probe = { kind = \"tcp\" }")).await;
    refused(proxy.address).await;
    let line = proxy.next_line();
    assert_eq!((&line["reason"], &line["attempts"]), (&"no_endpoint".into(), &0.into()));
    assert_eq!(proxy.metric("forebay_connections_total", &["reason=\"no_endpoint\""]).await, 1.0);
}

#[tokio::test]
async fn a_break_on_one_side_is_a_break_on_the_other() {
    let endpoint = PlainEndpoint::start(Plain::Break).await;
    let proxy = layer4(&[endpoint.address], "", "").await;
    let (mut stream, _) = greeted(&proxy).await;
    stream.write_all(b"x").await.unwrap();
    assert!(rest(&mut stream).await.is_err(), "what was cut must not look complete");
    assert_eq!(proxy.next_line()["reason"], "endpoint_reset");

    let endpoint = PlainEndpoint::start(Plain::Greet).await;
    let proxy = layer4(&[endpoint.address], "", "").await;
    let (stream, _) = greeted(&proxy).await;
    stream.set_zero_linger().unwrap();
    drop(stream);
    assert_eq!(proxy.next_line()["reason"], "client_closed");
    assert_eq!(proxy.endpoints().await[0]["in_flight"], 0);
}

#[tokio::test]
async fn a_connection_that_nobody_uses_is_closed() {
    let endpoint = PlainEndpoint::start(Plain::Greet).await;
    let proxy = layer4(&[endpoint.address], "idle_timeout = \"200ms\"", "").await;
    let (mut stream, _) = greeted(&proxy).await;
    assert_eq!(rest(&mut stream).await.unwrap(), "");
    let line = proxy.next_line();
    assert_eq!(line["reason"], "idle_timeout");
    assert!(line["total_us"].as_u64().unwrap() >= 200_000, "{line}");
}

#[tokio::test]
async fn a_listener_holds_no_more_connections_than_it_may() {
    let endpoint = PlainEndpoint::start(Plain::Greet).await;
    let proxy = layer4(&[endpoint.address], "max_connections = 2", "").await;
    let (first, second) = (greeted(&proxy).await, greeted(&proxy).await);
    for _ in 0..3 {
        refused(proxy.address).await;
    }
    let refused = ["reason=\"connection_limit\""];
    assert_eq!(proxy.metric("forebay_connections_total", &refused).await, 3.0);
    drop(first);
    eventually("room", async || {
        (proxy.status().await["listeners"][0]["connections"] == 1).then_some(())
    })
    .await;
    let (mut third, _) = greeted(&proxy).await;
    third.write_all(b"x").await.unwrap();
    assert_eq!(third.read_u8().await.unwrap(), b'x');
    drop(second);
}

#[tokio::test]
async fn an_http_listener_holds_no_more_connections_than_it_may_and_says_so() {
    let endpoint = Endpoint::start(Behaviour::Gated).await;
    let config =
        format!("max_connections = 1\n{}", crate::harness::pool_of(&[endpoint.address], ""));
    let proxy = Proxy::start(&config).await;
    proxy.wait_ready(1).await;
    let mut held = TcpStream::connect(proxy.address).await.unwrap();
    let request = "POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nx";
    held.write_all(request.as_bytes()).await.unwrap();
    eventually("the request", async || (!endpoint.came().is_empty()).then_some(())).await;
    let (answer, closed) = raw(proxy.address, b"", MAX_WAIT).await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && closed, "{answer}");
    assert!(answer.contains("x-forebay-reason: connection_limit"), "{answer}");
    assert!(answer.contains("\r\nretry-after: 1\r\n"), "{answer}");
    let refused = ["reason=\"connection_limit\""];
    assert_eq!(proxy.metric("forebay_connections_total", &refused).await, 1.0);
    drop(held);
    eventually("room", async || {
        (proxy.status().await["listeners"][0]["connections"] == 0).then_some(())
    })
    .await;
    assert_eq!(get(proxy.address, "/v2/health/live").await.status, 200);
}

#[tokio::test]
async fn a_stop_lets_connections_finish_and_takes_no_new_ones() {
    let endpoint = PlainEndpoint::start(Plain::Greet).await;
    let mut proxy = layer4(&[endpoint.address], "", "").await;
    let (mut stream, _) = greeted(&proxy).await;
    proxy.signal(Signal::TERM);
    eventually("a closed listener", async || TcpStream::connect(proxy.address).await.err()).await;
    for _ in 0..100 {
        stream.write_all(b"x").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'x');
    }
    stream.shutdown().await.unwrap();
    assert_eq!(rest(&mut stream).await.unwrap(), "");
    assert!(proxy.ended().await.success(), "{}", proxy.messages());
    let (mut complete, mut line) = (0, proxy.next_line());
    // Those that were only opened to see whether they are taken ended before.
    while line["bytes_in"] != 100 {
        complete += 1;
        assert!(complete < 10_000, "{line}");
        line = proxy.next_line();
    }
    assert_eq!(line["reason"], "ok");
}

#[tokio::test]
async fn what_does_not_finish_in_time_is_cut_and_logged() {
    let endpoint = PlainEndpoint::start(Plain::Greet).await;
    let probe = "probe = { kind = \"tcp\", interval = \"300ms\" }";
    let text = config(&[endpoint.address], "", probe);
    let mut proxy = Proxy::start_with("drain_timeout = \"200ms\"", &text).await;
    proxy.wait_ready(1).await;
    let (mut stream, _) = greeted(&proxy).await;
    proxy.signal(Signal::TERM);
    assert!(rest(&mut stream).await.is_err(), "what was cut must not look complete");
    assert!(proxy.ended().await.success());
    assert_eq!(proxy.next_line()["reason"], "draining");
}

#[tokio::test]
async fn requests_and_connections_share_a_pool_and_its_counts() {
    let endpoint = Endpoint::start(Behaviour::Echo).await;
    let text = format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\nprotocol = \"tcp\"\npool = \"test\"\n{}",
        crate::harness::pool_of(&[endpoint.address], "")
    );
    let proxy = Proxy::start(&text).await;
    proxy.wait_ready(1).await;
    let held = TcpStream::connect(proxy.listeners[1]).await.unwrap();
    eventually("the connection's count", async || {
        (proxy.endpoints().await[0]["in_flight"] == 1).then_some(())
    })
    .await;
    // Through either, the same endpoint answers.
    for address in &proxy.listeners {
        let answer = crate::client::post(*address, "/v2/models/m/infer", "x").await;
        assert_eq!(answer.text(), crate::endpoint::echo(b"x"));
    }
    assert_eq!(proxy.endpoints().await[0]["health"], "ready");
    drop(held);
}

#[test]
fn keys_of_the_other_layer_are_refused_with_their_place() {
    let pool = "[pool.p]\nendpoints = [\"127.0.0.1:1\"]\nprobe = { kind = \"tcp\" }\n";
    for (listener, expected) in [
        ("protocol = \"tcp\"", "listener.*.pool: expected the name of a pool, found nothing"),
        ("protocol = \"tcp\"\npool = \"q\"", "pool: expected a pool (\"p\"), found \"q\""),
        ("protocol = \"udp\"", "protocol: expected \"http\" or \"tcp\", found \"udp\""),
        ("pool = \"p\"", "pool: expected protocol = \"tcp\" beside it"),
        ("idle_timeout = \"1s\"", "idle_timeout: expected protocol = \"tcp\" beside it"),
        ("send_proxy_protocol = \"v1\"", "expected protocol = \"tcp\" beside it"),
        (
            "protocol = \"tcp\"\npool = \"p\"\nprotocols = [\"h2c\"]",
            "protocols: expected protocol = \"http\" beside it",
        ),
        ("proxy_protocol = \"optional\"", "expected \"off\" or \"require\""),
        ("max_connections = 0", "max_connections: expected 1 to"),
    ] {
        let text = format!("[[listener]]\naddress = \"127.0.0.1:0\"\n{listener}\n{pool}");
        let error = Config::parse(&text, Path::new("")).unwrap_err().render("f");
        assert!(error.contains(expected), "{listener}: {error}");
    }
    let alone = format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\nprotocol = \"tcp\"\npool = \"p\"\n{pool}"
    );
    assert!(Config::parse(&alone, Path::new("")).is_ok(), "Layer 4 alone needs no route");
}
