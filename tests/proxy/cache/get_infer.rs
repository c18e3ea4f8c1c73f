//! Inferences by GET, which caches between clients and the proxy may keep.

use super::*;
use crate::client::{get_with, raw};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

fn path(model: &str, json: &[u8]) -> String {
    format!("/v2/models/{model}/infer?inputs={}", URL_SAFE_NO_PAD.encode(json))
}

#[tokio::test]
async fn an_inference_by_get_is_the_same_as_by_post() {
    let worker = Worker::start(anywhere()).await;
    let proxy = in_front_of(worker.address, "public = true\nvary = [\"x-tenant\"]").await;
    let asked = path("arith", ARITH.as_bytes());
    let posted = post(proxy.address, INFER, ARITH).await;
    assert_eq!(status(&posted), "stored");
    assert_eq!((posted.header("etag"), posted.header("cache-control")), ("", ""));
    let got = get(proxy.address, &asked).await;
    assert!(is_hit(&got), "{:?}", got.headers);
    assert_eq!(read(&got), read(&posted));
    assert_eq!((got.header("age"), got.header("vary")), ("0", "x-tenant"));
    assert!(got.header("cache-control").starts_with("public, max-age="), "{:?}", got.headers);
    proxy.next_line();
    let line = proxy.next_line();
    assert_eq!((&line["method"], &line["cache"]), (&"GET".into(), &"hit".into()));

    let tag = got.header("etag");
    assert_eq!(tag.len(), 34);
    let same = get_with(proxy.address, &asked, &[("if-none-match", tag)]).await;
    assert_eq!((same.status.as_u16(), same.body.len()), (304, 0));
    assert_eq!((same.header("etag"), same.header("content-length")), (tag, ""));
    assert!(same.header("cache-control").starts_with("public, max-age="));
    let other = get_with(proxy.address, &asked, &[("if-none-match", "\"x\"")]).await;
    assert_eq!((other.status.as_u16(), other.header("etag")), (200, tag));

    // An answer to one client alone is not for others, however it came.
    let own = get_with(proxy.address, &asked, &[("authorization", "Bearer x")]).await;
    assert_eq!((own.status.as_u16(), own.header("cache-control")), (200, "no-store"));
    // The array of the inputs is enough.
    let whole: serde_json::Value = serde_json::from_str(ARITH).unwrap();
    let inputs = path("arith", whole["inputs"].to_string().as_bytes());
    assert!(is_hit(&get(proxy.address, &inputs).await));
}

#[tokio::test]
async fn head_is_answered_as_get_is_without_the_body() {
    let worker = Worker::start(anywhere()).await;
    let proxy = in_front_of(worker.address, "public = true").await;
    for (model, status) in [("arith", "200"), ("arith", "200"), ("none", "404")] {
        let asked = path(model, ARITH.as_bytes());
        let got = get(proxy.address, &asked).await;
        let head = format!("HEAD {asked} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        let (text, _) = raw(proxy.address, head.as_bytes(), MAX_WAIT).await;
        let text = text.to_lowercase();
        assert!(text.starts_with(&format!("http/1.1 {status}")), "{text}");
        assert!(text.ends_with("\r\n\r\n") && text.matches("\r\n\r\n").count() == 1, "{text}");
        let length = format!("\r\ncontent-length: {}\r\n", got.body.len());
        assert!(text.contains(&length) || status == "404", "{text}");
        for name in ["etag", "content-type"] {
            assert!(
                text.contains(&format!("\r\n{name}: {}", got.header(name)).to_lowercase())
                    || status == "404",
                "{text}"
            );
        }
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_get_is_said_and_not_for_keeping() {
    let worker = Worker::start(anywhere()).await;
    let proxy = in_front_of(worker.address, "public = true").await;
    for (asked, code) in [
        ("/v2/models/arith/infer?inputs=%20".to_owned(), 400),
        ("/v2/models/arith/infer?x=1".to_owned(), 400),
        (path("arith", b"{"), 400),
        (path("arith", b"[]"), 400),
        (path("none", ARITH.as_bytes()), 404),
    ] {
        let answer = get(proxy.address, &asked).await;
        assert_eq!(answer.status, code, "{asked}: {}", answer.text());
        assert_eq!(answer.header("cache-control"), "no-store", "{asked}");
        assert_eq!(answer.header("etag"), "", "{asked}");
    }
    assert_eq!(get(proxy.address, "/v2/models/arith/infer").await.status, 405);
}

#[tokio::test]
async fn only_routes_that_are_public_let_shared_caches_keep_answers() {
    let worker = Worker::start(anywhere()).await;
    let asked = path("arith", ARITH.as_bytes());
    let proxy = in_front_of(worker.address, "stale_while_revalidate = \"1m\"").await;
    for _ in 0..2 {
        let control = get(proxy.address, &asked).await.header("cache-control").to_owned();
        assert!(control.starts_with("private, max-age="), "{control}");
        assert!(control.ends_with(", stale-while-revalidate=60"), "{control}");
    }
    let proxy = Proxy::in_front_of(&[worker.address], 1, "").await;
    let answer = get(proxy.address, &asked).await;
    assert_eq!((answer.status.as_u16(), answer.header("cache-control")), (200, "no-store"));
    assert_eq!(first(&answer), 11.0);
}
