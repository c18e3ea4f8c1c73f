//! Answers whose time is up, models that are not there, and answers that are long.

use super::*;
use crate::scripted::{Answers, Scripted, Send};

/// Until the kept answer to ARITH is stale.
async fn stale(proxy: &Proxy) -> Response {
    eventually("a stale answer", async || {
        let answer = post(proxy.address, INFER, ARITH).await;
        answer.header("cache-status").starts_with("forebay; hit; ttl=-").then_some(answer)
    })
    .await
}

#[tokio::test]
async fn an_old_answer_is_given_while_a_new_one_is_fetched() {
    let repository = Repository::new();
    let worker = Worker::start_serving(&repository.0.0, anywhere()).await;
    let settings = "ttl = \"1ms\"\nstale_while_revalidate = \"1h\"";
    let proxy = in_front_of(worker.address, settings).await;
    assert_eq!(status(&post(proxy.address, INFER, ARITH).await), "stored");
    let answer = stale(&proxy).await;
    assert_eq!((answer.status.as_u16(), first(&answer)), (200, 11.0));
    eventually("a line of a stale answer", async || {
        (proxy.next_line()["cache"] == "stale").then_some(())
    })
    .await;
    eventually("it to be renewed", async || {
        let renewed = ["route=\"r\"", "outcome=\"renewed\""];
        (proxy.metric("forebay_cache_renewals_total", &renewed).await > 0.5).then_some(())
    })
    .await;
    let body = ARITH.as_bytes().to_vec();
    let young = post_with_owned(proxy.address, INFER, "cache-control", "max-age=60", body).await;
    assert!(!is_hit(&young), "a client that states an age gets no old answer");
    // An old answer of another content is not given.
    repository.put("1", true);
    load(&worker).await;
    eventually("the new content", async || {
        (first(&post(proxy.address, INFER, ARITH).await) == -9.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_old_answer_is_better_than_none_and_than_a_fallback() {
    let worker = Worker::start(anywhere()).await;
    let other = Endpoint::start(Behaviour::Echo).await;
    let proxy = Proxy::start(&format!(
        "[pool.test]\nendpoints = [\"{}\"]\n\
         probe = {{ interval = \"300ms\", fast_interval = \"30ms\" }}\n\
         [pool.other]\nendpoints = [\"{}\"]\n\
         [[route]]\nname = \"r\"\npool = \"test\"\nfallback = [\"other\"]\n\
         [route.cache]\nttl = \"1ms\"\nstale_if_error = \"1h\"\n",
        worker.address, other.address
    ))
    .await;
    proxy.wait_ready(2).await;
    assert_eq!(status(&post(proxy.address, INFER, ARITH).await), "stored");
    eventually("it to be too old", async || {
        (status(&post(proxy.address, INFER, ARITH).await) == "stored").then_some(())
    })
    .await;
    drop(worker);
    let answer = stale(&proxy).await;
    assert_eq!((answer.status.as_u16(), first(&answer)), (200, 11.0));
    assert!(answer.header("cache-status").ends_with("detail=error"), "{:?}", answer.headers);
    assert_eq!(answer.header("x-forebay-degraded"), "");
    assert!(answer.headers.contains_key("age"));
    let other = ask(&proxy, &request(9.0), false).await;
    assert_eq!(other.status, 200);
    assert_ne!(other.header("x-forebay-degraded"), "", "{:?}", other.headers);
    let message = wire::write_request("arith", None, &request(9.0));
    let ended = call(proxy.address, MODEL_INFER, &message).await;
    assert_ne!(ended.code(), Code::Ok, "there is no kept answer");
}

#[tokio::test]
async fn a_model_that_is_not_there_is_not_asked_for_again_until_something_is_loaded() {
    const LATE: &str = "/v2/models/late/infer";
    let repository = Repository::new();
    let worker = Worker::start_serving(&repository.0.0, anywhere()).await;
    let proxy = in_front_of(worker.address, "negative_ttl = \"1h\"").await;
    let answer = post(proxy.address, LATE, ARITH).await;
    assert_eq!((answer.status.as_u16(), answer.reason()), (404, "model_not_found"));
    assert_eq!(proxy.next_line()["attempts"], 1);
    let again = post(proxy.address, LATE, ARITH).await;
    assert_eq!((again.status.as_u16(), again.reason()), (404, "model_not_found"));
    assert!(again.header("cache-status").starts_with("forebay; hit; ttl="), "{:?}", again.headers);
    let line = proxy.next_line();
    assert_eq!((&line["attempts"], &line["cache"]), (&0.into(), &"absent".into()));
    let message = wire::write_request("late", None, &request(1.0));
    let ended = call(proxy.address, MODEL_INFER, &message).await;
    assert_eq!(ended.code(), Code::NotFound, "{}", ended.words());
    assert_eq!(status(&post(proxy.address, INFER, ARITH).await), "stored", "others are asked");

    let (from, to) = (repository.0.0.join("arith/1"), repository.0.0.join("late/1"));
    std::fs::create_dir_all(&to).unwrap();
    std::fs::copy(from.join("model.onnx"), to.join("model.onnx")).unwrap();
    let loaded = post(worker.address, "/v2/repository/models/late/load", "").await;
    assert_eq!(loaded.status, 200, "{}", loaded.text());
    eventually("the model that was loaded", async || {
        (post(proxy.address, LATE, ARITH).await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_long_answer_is_kept_up_to_the_bound_of_the_route() {
    let numbers = vec!["1.5"; 150_000].join(",");
    let body = format!(
        "{{\"model_name\":\"m\",\"outputs\":[{{\"name\":\"y\",\"datatype\":\"FP32\",\
         \"shape\":[150000],\"data\":[{numbers}]}}]}}"
    );
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let endpoint = Scripted::start(Answers::Requests, vec![Send(answer)]).await;
    for (settings, is_kept) in [("", true), ("max_entry = \"500KiB\"", false)] {
        let proxy = in_front_of(endpoint.address, settings).await;
        let first = post(proxy.address, INFER, ARITH).await;
        assert_eq!((first.status.as_u16(), first.body.len()), (200, body.len()));
        let second = post(proxy.address, INFER, ARITH).await;
        assert_eq!(is_hit(&second), is_kept, "{settings}");
        assert_eq!(read(&second).outputs, read(&first).outputs);
    }
}

#[tokio::test]
async fn a_server_that_states_no_reason_is_asked_again() {
    let endpoint = Endpoint::start(Behaviour::Missing).await;
    let proxy = in_front_of(endpoint.address, "negative_ttl = \"1h\"").await;
    for _ in 0..2 {
        assert_eq!(post(proxy.address, INFER, ARITH).await.status, 404);
        let line = proxy.next_line();
        assert_eq!((&line["attempts"], &line["cache"]), (&1.into(), &"miss".into()));
    }
}

#[tokio::test]
async fn clients_that_accept_compression_share_answers_with_those_that_do_not() {
    let worker = Worker::start(anywhere()).await;
    let proxy = in_front_of(worker.address, "").await;
    let body = rows(&[1.25; 32]).encode(|_| false).unwrap().body;
    let zipped =
        post_with(proxy.address, INFER, &[("accept-encoding", "gzip")], body.clone()).await;
    assert_eq!((status(&zipped), zipped.header("content-encoding")), ("stored", ""));
    assert!(zipped.body.len() > 1024);
    let plain = post(proxy.address, INFER, body).await;
    assert!(is_hit(&plain));
    assert_eq!(read(&plain), read(&zipped));
}
