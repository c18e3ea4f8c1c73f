//! The admin listener answers operators and their programs, not pages in their browsers, and not
//! clients that hold it.

use crate::client::{Response, raw, send};
use crate::harness::{MAX_WAIT, Proxy, eventually, pool_of};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

async fn proxy() -> Proxy {
    let nowhere = "127.0.0.1:9".parse().unwrap();
    Proxy::start_with("admin_hosts = [\"proxy.example\"]", &pool_of(&[nowhere], "")).await
}

async fn ask(proxy: &Proxy, method: Method, path: &str, fields: &str) -> Response {
    let mut request = Request::builder().method(method).uri(path);
    for field in fields.lines() {
        let (name, value) = field.split_once(": ").unwrap();
        request = request.header(name, value);
    }
    send(proxy.admin, request.body(Full::<Bytes>::default()).unwrap()).await.unwrap()
}

#[tokio::test]
async fn pages_of_other_sites_neither_reload_nor_drain_nor_read() {
    let proxy = proxy().await;
    let own = format!("origin: http://{}\nsec-fetch-site: same-origin", proxy.admin);
    let drain = "/pools/test/endpoints/127.0.0.1:9/drain";
    for fields in [
        "origin: http://evil.example",
        "origin: null",
        "origin: http://127.0.0.1:1",
        "sec-fetch-site: cross-site",
        "sec-fetch-site: same-site",
    ] {
        for (method, path) in [
            (Method::POST, "/reload"),
            (Method::POST, drain),
            (Method::GET, "/status"),
            (Method::GET, "/metrics"),
        ] {
            let answer = ask(&proxy, method, path, fields).await;
            assert_eq!(answer.status, 403, "{path} with {fields}");
            assert!(answer.json()["error"].is_string());
        }
    }
    let status = proxy.status().await;
    assert_eq!(status["generation"], 1, "nothing was reloaded");
    assert_ne!(proxy.endpoints().await[0]["health"], "draining");
    let refused = proxy.metric("forebay_admin_refused_total", &["cause=\"cross_site\""]).await;
    assert_eq!(refused, 20.0);
    // The operator's own page and programs go on.
    assert_eq!(ask(&proxy, Method::POST, "/reload", &own).await.status, 200);
    assert_eq!(ask(&proxy, Method::POST, "/reload", "").await.status, 200);
    for path in ["/reload", drain] {
        assert_eq!(ask(&proxy, Method::GET, path, "").await.status, 405, "{path}");
    }
}

#[tokio::test]
async fn other_hosts_are_refused_and_known_ones_are_not() {
    let proxy = proxy().await;
    for (host, status) in [
        ("evil.example", 421),
        ("evil.example:9090", 421),
        ("127.0.0.1.evil.example", 421),
        ("192.0.2.1", 421),
        ("proxy.example:9090", 200),
        ("PROXY.example", 200),
        ("localhost:9090", 200),
        ("[::1]:9090", 200),
        ("127.0.0.1", 200),
    ] {
        let request = format!("GET /status HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        let (answer, _) = raw(proxy.admin, request.as_bytes(), MAX_WAIT).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{host}: {answer}");
    }
    let refused = proxy.metric("forebay_admin_refused_total", &["cause=\"unknown_host\""]).await;
    assert_eq!(refused, 4.0);
}

#[tokio::test]
async fn silent_connections_do_not_keep_operators_out_and_requests_are_read_by_the_letter() {
    let proxy = proxy().await;
    let mut held = Vec::new();
    for _ in 0..200 {
        held.push(TcpStream::connect(proxy.admin).await.unwrap());
    }
    eventually("an answer", async || {
        let answer =
            send(proxy.admin, Request::get("/livez").body(Full::<Bytes>::default()).unwrap());
        answer.await.is_ok_and(|answer| answer.status == 200).then_some(())
    })
    .await;
    // Those that came first made room.
    let mut byte = [0];
    let read = timeout(MAX_WAIT, held[0].read(&mut byte)).await.expect("still open");
    assert!(matches!(read, Ok(0) | Err(_)));
    for bad in [
        "GET /livez HTTP/1.1\r\n\r\n",
        "GET /livez HTTP/1.1\nhost: localhost\n\n",
        "POST /reload HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
    ] {
        let (answer, closed) = raw(proxy.admin, bad.as_bytes(), MAX_WAIT).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && closed, "{bad:?}: {answer}");
    }
    assert_eq!(proxy.status().await["generation"], 1);
}
