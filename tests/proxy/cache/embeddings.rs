//! Embeddings in OpenAI's form, whose inputs are kept one by one.

use super::*;
use crate::scripted::{Answers, Scripted, Send};
use serde_json::{Value, json};

const PATH: &str = "/v1/embeddings";

async fn embed(proxy: &Proxy, body: Value) -> Response {
    let answer = post(proxy.address, PATH, body.to_string()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer
}

#[tokio::test]
async fn of_a_list_only_the_unknown_texts_are_embedded() {
    let worker = Worker::start(anywhere()).await;
    let proxy = in_front_of(worker.address, "").await;
    let direct = async |body: &Value| post(worker.address, PATH, body.to_string()).await;
    let ask = |input: Value| json!({ "model": "embed", "input": input });
    for (input, expected) in [
        (json!(["one", "two", "three words here"]), "miss"),
        (json!(["two", "four", "one", "four"]), "rows:2/4"),
        (json!("four"), "hit"),
        (json!(["three words here", "two", "two"]), "hit"),
        (json!([[1, 2], [3]]), "miss"),
        (json!([[3], "one"]), "hit"),
    ] {
        let body = ask(input);
        let (answer, right) =
            (post(proxy.address, PATH, body.to_string()).await, direct(&body).await);
        if right.status != 200 {
            // A list of texts and tokens together is refused, however it was kept.
            assert_eq!(answer.status, right.status, "{body}");
            proxy.next_line();
            continue;
        }
        assert_eq!(answer.json(), right.json(), "{body}");
        assert_eq!(answer.header("x-forebay-row-tokens"), "", "it is for the proxy alone");
        assert_eq!(proxy.next_line()["cache"], expected, "{body}");
    }
    for (more, expected) in [
        (json!({ "user": "u" }), "hit"),
        (json!({ "encoding_format": "base64" }), "miss"),
        (json!({ "encoding_format": "base64" }), "hit"),
        (json!({ "dimensions": 3 }), "miss"),
    ] {
        let mut body = ask(json!(["one"]));
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        assert_eq!(embed(&proxy, body.clone()).await.json(), direct(&body).await.json(), "{body}");
        assert_eq!(proxy.next_line()["cache"], expected, "{body}");
    }
    let saved = proxy.metric("forebay_cache_rows_saved_total", &["route=\"r\""]).await;
    assert!(saved > 7.5, "{saved}");
    let twice = r#"{"model":"embed","input":"one","input":"two"}"#;
    let answer = post(proxy.address, PATH, twice).await;
    assert_eq!(answer.header("cache-status"), "forebay; fwd=bypass; detail=unread");
}

#[tokio::test]
async fn the_tokens_of_a_server_that_states_only_their_sum_are_shared_out() {
    let body = r#"{"object":"list","data":[
        {"object":"embedding","index":0,"embedding":[1.50, -0.0]},
        {"object":"embedding","index":1,"embedding":[0.25, 1e-9]}],
        "model":"m","usage":{"prompt_tokens":8,"total_tokens":8}}"#;
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let endpoint = Scripted::start(Answers::Requests, vec![Send(answer)]).await;
    let proxy = in_front_of(endpoint.address, "").await;
    let first = embed(&proxy, json!({ "model": "m", "input": ["abc", "d"] })).await;
    assert_eq!((first.text().as_str(), status(&first)), (body, "stored"));
    let one = embed(&proxy, json!({ "model": "m", "input": ["d"] })).await;
    assert!(is_hit(&one));
    assert_eq!(
        one.text(),
        "{\"object\":\"list\",\"data\":[{\"object\":\"embedding\",\"index\":0,\
         \"embedding\":[0.25, 1e-9]}],\"model\":\"m\",\
         \"usage\":{\"prompt_tokens\":2,\"total_tokens\":2}}"
    );
    // Two embeddings are no answer to one question.
    let wrong = embed(&proxy, json!({ "model": "m", "input": ["new"] })).await;
    assert_eq!(wrong.header("cache-status"), "forebay; fwd=miss");
}

#[tokio::test]
async fn an_old_embedding_is_not_given() {
    let worker = Worker::start(anywhere()).await;
    let settings = "ttl = \"1ms\"\nstale_if_error = \"1h\"\nstale_while_revalidate = \"1h\"";
    let proxy = in_front_of(worker.address, settings).await;
    let body = json!({ "model": "embed", "input": ["one"] });
    assert_eq!(status(&embed(&proxy, body.clone()).await), "stored");
    eventually("it to be embedded again", async || {
        (status(&embed(&proxy, body.clone()).await) == "stored").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_client_states_how_old_an_embedding_may_be() {
    let worker = Worker::start(anywhere()).await;
    let proxy = in_front_of(worker.address, "").await;
    let body = json!({ "model": "embed", "input": ["one"] });
    assert_eq!(status(&embed(&proxy, body.clone()).await), "stored");
    let with = |value: &'static str| {
        post_with_owned(proxy.address, PATH, "cache-control", value, body.to_string().into_bytes())
    };
    assert!(is_hit(&with("max-age=600").await));
    assert!(is_hit(&with("only-if-cached, max-age=600").await));
    assert_eq!(status(&with("max-age=0").await), "stored");
}
