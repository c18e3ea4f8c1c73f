//! The traces of a request: headers, counts, and one line.

use crate::client::{get, post, post_h2, post_with};
use crate::endpoint::{Behaviour, Endpoint};
use crate::harness::{ARITH, Folder, Proxy, Worker, addresses, eventually, pool_of};

const INFER: &str = "/v2/models/m/infer";

#[tokio::test]
async fn a_line_says_all_of_a_request() {
    let endpoint = Endpoint::start(Behaviour::Echo).await;
    let proxy = Proxy::in_front_of(&[endpoint.address], 1, "").await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let headers = [("x-request-id", "id-1"), ("traceparent", trace)];
    let path = "/v2/models/m/versions/7/infer?secret=1";
    let answer = post_with(proxy.address, path, &headers, "hello").await;
    assert_eq!(answer.header("x-request-id"), "id-1");
    assert_eq!(answer.header("x-seen-trace"), trace, "the endpoint continues the trace");
    assert_eq!(answer.header("x-forebay-variant"), "test");
    assert_eq!(answer.header("x-forebay-endpoint"), endpoint.address.to_string());
    let line = proxy.next_line();
    for (field, expected) in [
        ("request_id", "id-1"),
        ("trace_id", "4bf92f3577b34da6a3ce929d0e0e4736"),
        ("method", "POST"),
        ("path", "/v2/models/m/versions/7/infer"),
        ("reason", "ok"),
        ("route", "test"),
        ("variant", "test"),
        ("pool", "test"),
        ("model", "m"),
        ("version", "7"),
        ("endpoint", &endpoint.address.to_string()),
    ] {
        assert_eq!(line[field], expected, "{field}");
    }
    for (field, expected) in
        [("status", 200), ("attempts", 1), ("bytes_in", 5), ("bytes_out", answer.body.len())]
    {
        assert_eq!(line[field], expected, "{field}");
    }
    for field in ["deadline_us", "total_us", "receive_us", "balance_us", "forward_us"] {
        assert!(line[field].is_u64(), "{field}: {line}");
    }
    assert!(line["total_us"].as_u64() >= line["forward_us"].as_u64());
}

#[tokio::test]
async fn the_state_of_a_trace_goes_on_with_its_trace_only() {
    let endpoint = Endpoint::start(Behaviour::Echo).await;
    let proxy = Proxy::in_front_of(&[endpoint.address], 1, "").await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    for path in [INFER, "/v2/models/m/generate"] {
        for (parent, state) in [(trace, "vendor=1"), ("junk", "")] {
            let headers = [("traceparent", parent), ("tracestate", "vendor=1")];
            let answer = post_with(proxy.address, path, &headers, "x").await;
            assert_eq!(answer.header("x-seen-state"), state, "{path} with {parent}");
            assert_eq!(answer.header("x-seen-trace").len(), 55);
        }
    }
}

#[tokio::test]
async fn what_a_client_sends_can_not_break_the_log() {
    let endpoint = Endpoint::start(Behaviour::Echo).await;
    let proxy = Proxy::in_front_of(&[endpoint.address], 1, "").await;
    let odd = "/v2/models/a%0d%0a%1b%5b31m%22%7d/infer";
    let headers = [("x-request-id", "a\"} {\"b"), ("traceparent", "junk")];
    post_with(proxy.address, odd, &headers, "x").await;
    let line = proxy.next_line();
    assert_eq!(line["model"], "a\r\n\u{1b}[31m\"}");
    assert_eq!(line["request_id"].as_str().unwrap().len(), 32, "replaced: {line}");
    assert_eq!(line["trace_id"].as_str().unwrap().len(), 32);
    let long = format!("/v2/{}", "x".repeat(5000));
    post(proxy.address, &long, "x").await;
    assert_eq!(proxy.next_line()["path"].as_str().unwrap().len(), 256);
}

#[tokio::test]
async fn both_ways_through_leave_the_same_traces() {
    let endpoint = Endpoint::start(Behaviour::Echo).await;
    let proxy = Proxy::in_front_of(&[endpoint.address], 1, "").await;
    for path in [INFER, "/v2/models/m/generate"] {
        let asked = [("x-request-deadline", "5000")];
        let answer = post_with(proxy.address, path, &asked, "hello").await;
        assert_eq!(answer.status, 200, "{path}");
        assert_eq!(answer.header("endpoint-load-metrics"), "", "the report is for the proxy");
        let left: u64 = answer.header("x-seen-deadline").parse().unwrap();
        assert!((1..=5001).contains(&left), "what is left is passed on: {left}");
        let line = proxy.next_line();
        assert_eq!((&line["bytes_in"], &line["attempts"]), (&5.into(), &1.into()), "{path}");
        assert_eq!(line["endpoint"], endpoint.address.to_string());
    }
    let endpoints = proxy.endpoints().await;
    assert_eq!((&endpoints[0]["in_flight"], &endpoints[0]["slots"]), (&0.into(), &4.into()));
    let count = proxy.metric(
        "forebay_requests_total",
        &["route=\"test\"", "variant=\"test\"", "status=\"200\"", "reason=\"ok\""],
    );
    assert_eq!(count.await, 2.0);
    let seen = "forebay_request_duration_seconds_count";
    assert_eq!(proxy.metric(seen, &["route=\"test\""]).await, 2.0);
}

#[tokio::test]
async fn refusals_are_counted_and_logged_by_their_reason() {
    let endpoint = Endpoint::start(Behaviour::Echo).await;
    let config = pool_of(&[endpoint.address], "") + "models = [\"known\"]\n";
    let proxy = Proxy::start(&config).await;
    proxy.wait_ready(1).await;
    let answer = post(proxy.address, "/v2/models/unknown/infer", "{}").await;
    assert_eq!((answer.status.as_u16(), answer.reason()), (404, "no_route"));
    let words = "no route for model \"unknown\" at \"/v2/models/unknown/infer\"";
    assert_eq!(answer.json()["error"], words);
    let line = proxy.next_line();
    assert_eq!((&line["reason"], &line["error"]), (&"no_route".into(), &words.into()));
    assert_eq!(proxy.metric("forebay_requests_total", &["reason=\"no_route\""]).await, 1.0);
    for number in 0..50 {
        post(proxy.address, &format!("/v2/models/invented-{number}/infer"), "{}").await;
    }
    let text = proxy.metrics().await;
    assert!(!text.contains("invented"), "labels come from the configuration alone");
}

#[tokio::test]
async fn a_workers_refusal_keeps_its_words_and_its_reason() {
    let workers = Worker::start_many(1).await;
    let proxy = Proxy::in_front_of(&addresses(&workers), 1, "").await;
    for (path, body, status, reason) in [
        ("/v2/models/nope/infer", ARITH, 404, "model_not_found"),
        ("/v2/models/arith/versions/9/infer", ARITH, 404, "model_not_found"),
        ("/v2/models/arith/infer", "{", 400, "invalid_request"),
        ("/v2/models/arith/infer", "", 400, "invalid_request"),
        ("/v2/models/arith/infer", "{\"inputs\":[]}", 400, "invalid_input"),
    ] {
        let answer = post(proxy.address, path, body).await;
        let text = answer.text();
        assert_eq!((answer.status.as_u16(), answer.reason()), (status, reason), "{path} {text}");
        assert!(answer.json()["error"].is_string());
        assert_eq!(proxy.next_line()["reason"], reason);
    }
    let answer = get(proxy.address, "/v2/models/arith").await;
    assert_eq!(answer.json()["name"], "arith", "{}", answer.text());
}

#[tokio::test]
async fn inferences_over_h2c_are_answered_side_by_side() {
    let workers = Worker::start_many(2).await;
    let proxy = Proxy::in_front_of(&addresses(&workers), 2, "").await;
    let answers = post_h2(proxy.address, "/v2/models/arith/infer", vec![ARITH.into(); 64]).await;
    for answer in answers {
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()["outputs"][0]["data"][0], 11.0);
    }
}

#[tokio::test]
async fn a_log_file_survives_rotation_and_a_full_disk() {
    let endpoint = Endpoint::start(Behaviour::Echo).await;
    let folder = Folder::new();
    let log = folder.0.join("access.log");
    let server = format!("access_log = {log:?}");
    let proxy = Proxy::start_with(&server, &pool_of(&[endpoint.address], "")).await;
    proxy.wait_ready(1).await;
    let lines = |path: &std::path::Path| {
        std::fs::read_to_string(path).map_or(0, |text| text.lines().count())
    };
    post(proxy.address, INFER, "x").await;
    eventually("a line", async || (lines(&log) == 1).then_some(())).await;
    let rotated = folder.0.join("access.log.1");
    std::fs::rename(&log, &rotated).unwrap();
    assert_eq!(post(proxy.admin, "/reload", "").await.status, 200);
    post(proxy.address, INFER, "x").await;
    eventually("a line in the new file", async || (lines(&log) == 1).then_some(())).await;
    assert_eq!(lines(&rotated), 1);

    // A device that is always full takes the place of the file.
    std::fs::rename(&log, folder.0.join("access.log.2")).unwrap();
    std::os::unix::fs::symlink("/dev/full", &log).unwrap();
    post(proxy.admin, "/reload", "").await;
    for _ in 0..10 {
        assert_eq!(post(proxy.address, INFER, "x").await.status, 200);
    }
    eventually("dropped lines", async || {
        (proxy.metric("forebay_access_log_dropped_total", &[]).await >= 10.0).then_some(())
    })
    .await;
    assert!(!proxy.messages().contains("written again"), "it can't be");
    std::fs::remove_file(&log).unwrap();
    post(proxy.admin, "/reload", "").await;
    post(proxy.address, INFER, "x").await;
    eventually("a line after the disk has room", async || (lines(&log) >= 1).then_some(())).await;
}
