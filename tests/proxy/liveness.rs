//! Tells an endpoint that is gone from a busy one, by answers, by probes and by the kernel.

use crate::client::{self, get, post_with};
use crate::harness::{MAX_WAIT, Proxy, eventually, pool_of};
use crate::scripted::{Answers, Pause, Probes, Scripted, Send, Step};
use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use serde_json::Value;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

const INFER: &str = "/v2/models/m/infer";
const GENERATE: &str = "/v2/models/m/generate";
const OWN: &str = "HTTP/1.1 200 OK\r\nx-answer: TAG\r\ncontent-length: 2\r\n\r\nok";

fn send(text: &str) -> Step {
    Send(text.to_owned())
}

async fn in_front_of(endpoints: &[&Scripted], more: &str) -> Proxy {
    let addresses: Vec<_> = endpoints.iter().map(|endpoint| endpoint.address).collect();
    let proxy = Proxy::start(&pool_of(&addresses, more)).await;
    proxy.wait_ready(endpoints.len()).await;
    proxy
}

async fn pool(proxy: &Proxy) -> Value {
    proxy.status().await["pools"]["test"].clone()
}

async fn health(proxy: &Proxy, endpoint: &Scripted) -> String {
    let pool = pool(proxy).await;
    let endpoints = pool["endpoints"].as_array().unwrap();
    let found = endpoints.iter().find(|it| it["address"] == endpoint.address.to_string());
    found.unwrap()["health"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn an_endpoint_that_streams_stays_in_rotation_while_its_probes_are_silent() {
    let chunk = send("1\r\nx\r\n");
    let mut script =
        vec![send("HTTP/1.1 200 OK\r\nx-answer: TAG\r\ntransfer-encoding: chunked\r\n\r\n")];
    for _ in 0..100 {
        script.extend([chunk.clone(), Pause(Duration::from_millis(25))]);
    }
    script.push(send("0\r\n\r\n"));
    let endpoint = Scripted::start_many(Answers::Requests, vec![script, vec![send(OWN)]]).await;
    let proxy = in_front_of(&[&endpoint], "").await;
    let address = proxy.address;
    let stream = tokio::spawn(async move { post_with(address, GENERATE, &[], "x").await });
    eventually("the stream", async || (endpoint.connections() == 1).then_some(())).await;
    endpoint.answers_probes(Probes::Silent);
    eventually("probes", async || {
        let working = proxy.metric("forebay_probes_total", &["outcome=\"working\""]).await;
        (working >= 3.0).then_some(())
    })
    .await;
    assert_eq!(health(&proxy, &endpoint).await, "ready");
    assert_eq!(get(proxy.admin, "/readyz").await.status, 200);
    for path in [INFER, GENERATE] {
        let answer = post_with(proxy.address, path, &[("x-script", "1")], "x").await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    }
    assert_eq!(stream.await.unwrap().text().len(), 100);
}

#[tokio::test]
async fn a_silent_endpoint_is_the_last_resort_and_one_that_says_no_is_not() {
    let endpoint = Scripted::start(Answers::Requests, vec![send(OWN)]).await;
    let proxy = in_front_of(&[&endpoint], "").await;
    let gauge = async || proxy.metric("forebay_pool_last_resort", &[]).await;
    assert!(gauge().await < 0.5);
    endpoint.answers_probes(Probes::Silent);
    let pool = eventually("the last resort", async || {
        Some(pool(&proxy).await).filter(|pool| pool["last_resort"] == true)
    })
    .await;
    assert_eq!((&pool["ready"], &pool["endpoints"][0]["health"]), (&0.into(), &"down".into()));
    let ready = get(proxy.admin, "/readyz").await;
    assert_eq!(ready.status, 503);
    assert!(ready.text().contains("pool test: no endpoint answers probes"), "{}", ready.text());
    assert!(get(proxy.admin, "/status").await.text().contains("last_resort"));
    assert!(gauge().await > 0.5);
    for path in [INFER, GENERATE, "/v1/x"] {
        let answer = post_with(proxy.address, path, &[("x-tag", "own")], "x").await;
        assert_eq!((answer.status.as_u16(), answer.header("x-answer")), (200, "own"), "{path}");
    }

    let drain = format!("/pools/test/endpoints/{}", endpoint.address);
    client::post(proxy.admin, &format!("{drain}/drain"), "").await;
    let refused = async |why: &str| {
        let played = endpoint.played();
        for path in [INFER, GENERATE] {
            let started = Instant::now();
            let answer = post_with(proxy.address, path, &[], "x").await;
            let took = started.elapsed();
            assert_eq!((answer.status.as_u16(), answer.reason()), (503, "no_endpoint"), "{why}");
            assert!(!answer.header("retry-after").is_empty(), "{why}");
            assert!(took < Duration::from_secs(1), "{why}: {took:?}");
        }
        assert_eq!(endpoint.played(), played, "{why}");
    };
    refused("drained").await;
    client::post(proxy.admin, &format!("{drain}/undrain"), "").await;
    endpoint.answers_probes(Probes::NotReady);
    eventually("no last resort", async || (gauge().await < 0.5).then_some(())).await;
    refused("not ready").await;
    endpoint.answers_probes(Probes::Ready);
    proxy.wait_ready(1).await;
}

#[tokio::test]
async fn requests_at_an_endpoint_that_goes_silent_are_sent_to_another_one() {
    let stuck = Scripted::start(Answers::Requests, vec![Pause(MAX_WAIT * 2)]).await;
    let well = Scripted::start(Answers::Requests, vec![send(OWN)]).await;
    let proxy = in_front_of(&[&stuck, &well], "policy = \"round_robin\"").await;
    let address = proxy.address;
    let started = Instant::now();
    let mut requests = JoinSet::new();
    for number in 0..12 {
        let path = [INFER, GENERATE, "/v1/chat/completions"][number % 3];
        requests.spawn(async move {
            let tag = number.to_string();
            let answer = post_with(address, path, &[("x-tag", &tag)], "body").await;
            (answer.status.as_u16(), answer.header("x-answer").to_owned(), path, tag)
        });
    }
    eventually("requests at the stuck one", async || (stuck.connections() > 3).then_some(())).await;
    stuck.answers_probes(Probes::Silent);
    while let Some(answer) = requests.join_next().await {
        let (status, answer, path, tag) = answer.unwrap();
        assert_eq!((status, answer), (200, tag), "{path}");
    }
    let took = started.elapsed();
    assert!(took < Duration::from_secs(20), "the deadline is 30 s, and it took {took:?}");
    let labels = [format!("endpoint=\"{}\"", stuck.address), "outcome=\"endpoint_silent\"".into()];
    let moved =
        proxy.metric("forebay_attempts_total", &labels.each_ref().map(String::as_str)).await;
    assert!(moved > 3.0, "{moved}");
}

/// Sends requests to a pool of which one endpoint goes silent while they wait there; says how many were
/// answered, and how many had to be given up.
async fn given_up(path: &str, body: &str) -> (usize, usize) {
    let stuck = Scripted::start(Answers::Requests, vec![Pause(MAX_WAIT * 2)]).await;
    let well = Scripted::start(Answers::Requests, vec![send(OWN)]).await;
    let pool = pool_of(&[stuck.address, well.address], "policy = \"round_robin\"");
    let proxy = Proxy::start(&format!("[limits]\nbuffer = \"4KiB\"\n{pool}")).await;
    proxy.wait_ready(2).await;
    let started = Instant::now();
    let mut requests = JoinSet::new();
    for _ in 0..6 {
        let (address, path, body) = (proxy.address, path.to_owned(), body.to_owned());
        requests.spawn(async move {
            let answer = post_with(address, &path, &[], body).await;
            (answer.status.as_u16(), answer.reason().to_owned())
        });
    }
    eventually("requests at the stuck one", async || (stuck.connections() == 3).then_some(()))
        .await;
    stuck.answers_probes(Probes::Silent);
    let (mut good, mut bad) = (0, 0);
    while let Some(answer) = requests.join_next().await {
        match answer.unwrap() {
            (200, _) => good += 1,
            (503, reason) if reason == "endpoint_silent" => bad += 1,
            other => panic!("{path}: {other:?}"),
        }
    }
    let took = started.elapsed();
    assert!(took < Duration::from_secs(20), "the deadline is 30 s, and it took {took:?}");
    assert_eq!((stuck.connections(), well.played()), (3, 3), "{path}: sent twice");
    (good, bad)
}

#[tokio::test]
async fn what_can_not_be_sent_twice_is_given_up_where_its_endpoint_alone_is_silent() {
    let long = "x".repeat(64 * 1024);
    let (held, streamed) = tokio::join!(given_up("/v1/x", "x"), given_up(INFER, &long));
    assert_eq!((held, streamed), ((3, 3), (3, 3)));
}

/// Both endpoints give no sign while they work; asks once and says how often that was sent.
async fn attempts_of_long_work(path: &str) -> Value {
    let script = vec![Pause(Duration::from_secs(4)), send(OWN)];
    let first = Scripted::start(Answers::Requests, script.clone()).await;
    let second = Scripted::start(Answers::Requests, script).await;
    let proxy = in_front_of(&[&first, &second], "").await;
    let answer = post_with(proxy.address, path, &[("x-tag", "own")], "x");
    tokio::pin!(answer);
    tokio::select! {
        _ = &mut answer => panic!("{path}: an answer before its time"),
        () = eventually("the request", async || {
            (first.connections() + second.connections() > 0).then_some(())
        }) => {}
    }
    first.answers_probes(Probes::Silent);
    second.answers_probes(Probes::Silent);
    let answer = answer.await;
    assert_eq!((answer.status.as_u16(), answer.header("x-answer")), (200, "own"), "{path}");
    proxy.next_line()["attempts"].clone()
}

#[tokio::test]
async fn work_that_keeps_every_endpoint_silent_is_moved_once_and_done() {
    let attempts = tokio::join!(
        attempts_of_long_work(INFER),
        attempts_of_long_work(GENERATE),
        attempts_of_long_work("/v1/x"),
    );
    assert_eq!(attempts, (2.into(), 2.into(), 1.into()), "the last must not be sent twice");
}

#[tokio::test]
async fn work_at_silent_endpoints_waits_where_there_is_no_retry_left() {
    let script = vec![Pause(Duration::from_secs(4)), send(OWN)];
    let first = Scripted::start(Answers::Requests, script.clone()).await;
    let second = Scripted::start(Answers::Requests, script).await;
    let more = "retry = { budget = \"0%\", min_per_second = 0 }";
    let proxy = in_front_of(&[&first, &second], more).await;
    let mut requests = JoinSet::new();
    for _ in 0..6 {
        let address = proxy.address;
        requests.spawn(async move {
            let answer = post_with(address, INFER, &[("x-tag", "own")], "x").await;
            (answer.status.as_u16(), answer.reason().to_owned())
        });
    }
    eventually("the requests", async || {
        (first.connections() + second.connections() == 6).then_some(())
    })
    .await;
    first.answers_probes(Probes::Silent);
    second.answers_probes(Probes::Silent);
    while let Some(answer) = requests.join_next().await {
        assert_eq!(answer.unwrap(), (200, String::new()));
    }
    assert_eq!(first.connections() + second.connections(), 6, "none was sent twice");
}

/// Timers of connections to this address, as the kernel shows them: 02 is keepalive's.
fn timers(to: SocketAddr) -> Vec<String> {
    let SocketAddr::V4(to) = to else { panic!("{to}") };
    let address = u32::from_le_bytes(to.ip().octets());
    let remote = format!("{address:08X}:{:04X}", to.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let rows = table.lines().map(|row| row.split_whitespace().collect::<Vec<_>>());
    // 01: established.
    let ours = rows.filter(|row| row.get(2) == Some(&&*remote) && row.get(3) == Some(&"01"));
    ours.map(|row| row[5].chars().take(2).collect()).collect()
}

#[tokio::test]
async fn the_kernel_watches_over_connections_to_endpoints() {
    let endpoint = Scripted::start(Answers::Requests, vec![send(OWN)]).await;
    let proxy = in_front_of(&[&endpoint], "").await;
    let is_watched = |address| timers(address).iter().any(|timer| timer == "02").then_some(());
    for path in [INFER, GENERATE] {
        // A new one each time: a kept connection may have ended by the time that it is looked for.
        eventually("a kept connection", async || {
            assert_eq!(client::post(proxy.address, path, "x").await.status, 200);
            is_watched(endpoint.address)
        })
        .await;
    }

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let config = format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\nprotocol = \"tcp\"\npool = \"raw\"\n\
         [pool.raw]\nendpoints = [\"{address}\"]\nprobe = {{ kind = \"tcp\" }}\n{}",
        pool_of(&[endpoint.address], "")
    );
    let proxy = Proxy::start(&config).await;
    proxy.wait_ready(2).await;
    let _client = TcpStream::connect(proxy.listeners[1]).await.unwrap();
    eventually("a connection at Layer 4", async || is_watched(address)).await;
}

/// An HTTP/2 endpoint that answers no request; counts PINGs of its client's own.
async fn pings_within(more: &str, time: Duration) -> usize {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = pool_of(&[listener.local_addr().unwrap()], &format!("protocol = \"h2\"\n{more}"));
    let proxy = Proxy::start(&config.replace("probe = {", "probe = { kind = \"tcp\",")).await;
    let ready = proxy.wait_ready(1);
    tokio::pin!(ready);
    let mut request = None;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted.unwrap().0,
            () = &mut ready, if request.is_none() => {
                let address = proxy.address;
                request = Some(tokio::spawn(async move {
                    let request = Request::get("/v1/x").body(Full::<Bytes>::default()).unwrap();
                    client::send(address, request).await
                }));
                continue;
            }
        };
        let mut stream = accepted;
        let mut preface = [0; 24];
        // A probe closes its connection.
        if stream.read_exact(&mut preface).await.is_err() {
            continue;
        }
        stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
        let mut pings = 0;
        let counting = async {
            loop {
                let mut head = [0; 9];
                stream.read_exact(&mut head).await.unwrap();
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
                let mut payload = vec![0; usize::try_from(length).unwrap()];
                stream.read_exact(&mut payload).await.unwrap();
                match (head[3], head[4]) {
                    (4, 0) => stream.write_all(&[0, 0, 0, 4, 1, 0, 0, 0, 0]).await.unwrap(),
                    (6, 0) => {
                        pings += 1;
                        stream.write_all(&[0, 0, 8, 6, 1, 0, 0, 0, 0]).await.unwrap();
                        stream.write_all(&payload).await.unwrap();
                        if pings == 2 {
                            return;
                        }
                    }
                    _ => {}
                }
            }
        };
        let _ = timeout(time, counting).await;
        return pings;
    }
}

#[tokio::test]
async fn http2_endpoints_get_no_pings_unless_the_pool_says_so() {
    let (by_default, wanted) = tokio::join!(
        pings_within("", Duration::from_secs(3)),
        pings_within("http2_ping_interval = \"1s\"", MAX_WAIT),
    );
    assert_eq!((by_default, wanted), (0, 2));
}
