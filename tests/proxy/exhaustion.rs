//! A proxy whose file descriptors run out: its own fault, not that of its endpoints.

use crate::client::{Failed, Response, get, post};
use crate::endpoint::{Behaviour, Endpoint};
use crate::harness::{Proxy, eventually, pool_of};
use bytes::Bytes;
use http_body_util::Full;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

const INFER: &str = "/v2/models/m/infer";
/// Descriptors that the proxy gets: 84 for clients, 112 for requests.
const LIMIT: &str = "ulimit -n 128;";

async fn start(endpoints: &[SocketAddr], listener: &str) -> Proxy {
    let text = Proxy::text("", &format!("{listener}\n{}", pool_of(endpoints, "")));
    let proxy = Proxy::start_under(LIMIT, &[], &text).await;
    proxy.wait_ready(endpoints.len()).await;
    proxy
}

/// A request whose connection may be refused.
async fn send(address: SocketAddr, path: &str) -> Result<Response, Failed> {
    let request = http::Request::post(path).body(Full::<Bytes>::from("x"));
    crate::client::send(address, request.unwrap()).await
}

/// Whether the connection is still open.
async fn is_open(stream: &mut TcpStream) -> bool {
    let read = tokio::time::timeout(Duration::from_millis(1), stream.read(&mut [0])).await;
    read.is_err()
}

/// Probes go on, the admin listener answers, and nothing was held against an endpoint.
async fn is_well(proxy: &Proxy, endpoints: usize) {
    let ready = proxy.metric("forebay_probes_total", &["ready"]).await;
    eventually("further probes", async || {
        let now = proxy.metric("forebay_probes_total", &["ready"]).await;
        (now >= ready + 2.0 * endpoints as f64).then_some(())
    })
    .await;
    let states = proxy.endpoints().await;
    assert!(states.iter().all(|endpoint| endpoint["health"] == "ready"), "{states:?}");
    assert_eq!(proxy.metric("forebay_ejections_total", &[]).await, 0.0);
}

#[tokio::test]
async fn a_flood_of_connections_leaves_descriptors_for_probes_and_the_operator() {
    let endpoints =
        [Endpoint::start(Behaviour::Echo).await, Endpoint::start(Behaviour::Echo).await];
    let addresses = endpoints.each_ref().map(|endpoint| endpoint.address);
    let proxy = start(&addresses, "").await;
    assert_eq!(post(proxy.address, INFER, "x").await.status, 200);
    let mut held = Vec::new();
    for _ in 0..400 {
        // One that is refused may be reset before it is seen.
        held.extend(TcpStream::connect(proxy.address).await);
    }
    let refused =
        async || proxy.metric("forebay_connections_total", &["reason=\"proxy_exhausted\""]).await;
    eventually("refused connections", async || (refused().await >= 300.0).then_some(())).await;
    let counted = ["resource=\"descriptors\"", "operation=\"accept\""];
    assert!(proxy.metric("forebay_resource_exhausted_total", &counted).await >= 300.0);
    let mut open = 0;
    for stream in &mut held {
        open += usize::from(is_open(stream).await);
    }
    assert!((20..100).contains(&open), "{open} are held");
    is_well(&proxy, 2).await;
    // A loop that spins takes a core.
    let (ticks, started) = (proxy.cpu_ticks(), Instant::now());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let used = (proxy.cpu_ticks() - ticks) as f64 / 100.0 / started.elapsed().as_secs_f64();
    assert!(used < 0.25, "{used} of a core");
    drop(held);
    let freed = Instant::now();
    eventually("an answer", async || {
        let answer = send(proxy.address, INFER).await;
        answer.is_ok_and(|answer| answer.status == 200).then_some(())
    })
    .await;
    assert!(freed.elapsed() < Duration::from_secs(10), "{:?}", freed.elapsed());
}

#[tokio::test]
async fn a_client_that_is_one_too_many_is_told_so() {
    let endpoint = Endpoint::start(Behaviour::Echo).await;
    let proxy = start(&[endpoint.address], "").await;
    let mut held = Vec::new();
    for _ in 0..80 {
        held.extend(TcpStream::connect(proxy.address).await);
    }
    // A probe or a file may have had the number that is free now, and while some are told, one more may be
    // reset.
    let answer = eventually("words", async || {
        held.extend(TcpStream::connect(proxy.address).await);
        send(proxy.address, INFER).await.ok().filter(|answer| answer.status != 200)
    })
    .await;
    assert_eq!((answer.status.as_u16(), answer.reason()), (503, "proxy_exhausted"));
    assert!(!answer.header("retry-after").is_empty());
    assert_eq!(answer.header("connection"), "close");
    let counted = ["status=\"503\"", "reason=\"proxy_exhausted\""];
    assert!(proxy.metric("forebay_requests_total", &counted).await >= 1.0);
    is_well(&proxy, 1).await;
    drop(held);
    eventually("an answer", async || {
        let answer = send(proxy.address, INFER).await;
        answer.is_ok_and(|answer| answer.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn requests_that_find_no_descriptor_are_the_proxys_fault() {
    let endpoints =
        [Endpoint::start(Behaviour::Silent).await, Endpoint::start(Behaviour::Silent).await];
    let addresses = endpoints.each_ref().map(|endpoint| endpoint.address);
    for path in [INFER, "/v2/models/m/generate"] {
        let proxy = start(&addresses, "").await;
        let requests = (0..100).map(|_| send(proxy.address, path));
        let requests = tokio::spawn(futures_util::future::join_all(requests));
        let attempts =
            async || proxy.metric("forebay_attempts_total", &["outcome=\"proxy_exhausted\""]).await;
        eventually("attempts without a descriptor", async || {
            (attempts().await >= 3.0).then_some(())
        })
        .await;
        is_well(&proxy, 2).await;
        assert_eq!(proxy.metric("forebay_retries_total", &[]).await, 0.0, "{path}");
        let counted = ["resource=\"descriptors\"", "operation=\"connect\""];
        assert!(proxy.metric("forebay_resource_exhausted_total", &counted).await >= 3.0);
        requests.abort();
    }
}

#[tokio::test]
async fn layer_4_holds_no_lack_against_endpoints_either() {
    let endpoint = Endpoint::start(Behaviour::Echo).await;
    let proxy = start(&[endpoint.address], "protocol = \"tcp\"\npool = \"test\"").await;
    let mut held = Vec::new();
    for _ in 0..200 {
        // One that is refused may be reset before it is seen.
        held.extend(TcpStream::connect(proxy.address).await);
    }
    eventually("a lack", async || {
        let lacking = proxy.metric("forebay_resource_exhausted_total", &[]).await;
        (lacking >= 1.0).then_some(())
    })
    .await;
    is_well(&proxy, 1).await;
    assert_eq!(get(proxy.admin, "/livez").await.status, 200);
}

#[test]
fn check_warns_of_connections_that_do_not_fit() {
    let folder = crate::harness::Folder::new();
    let file = folder.0.join("forebay.toml");
    let text = Proxy::text("", &pool_of(&[([127, 0, 0, 1], 9).into()], ""));
    for (most, warned) in [(80, false), (90, true)] {
        let limited = text.replacen("[pool", &format!("max_connections = {most}\n[pool"), 1);
        std::fs::write(&file, limited).unwrap();
        let script = format!("{LIMIT} exec \"$0\" check \"$1\"");
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_forebay")]).arg(&file);
        let output = command.output().unwrap();
        let words = String::from_utf8(output.stderr).unwrap();
        let expected = "may hold 90 connections (max_connections), but of the 128 file descriptors";
        assert!(output.status.success(), "{words}");
        assert_eq!(words.contains(expected), warned, "{most}: {words}");
    }
}
