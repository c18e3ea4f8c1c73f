//! Texts to embeddings, as OpenAI's clients ask for them.
//!
//! The model `embed` gives each token's vector plus the mean of all, so the mean of its output is twice
//! the mean of the tokens' vectors, however much they are padded.

use crate::harness::*;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use forebay_protocol::openai::{Embedding, EmbeddingsResponse, ErrorBody, ModelList, Numbers};
use forebay_worker::Worker;
use serde_json::json;

const CLS: u32 = 2;
const SEP: u32 = 3;

/// The expected answer of the model for these tokens.
fn expected(tokens: &[u32]) -> Vec<f32> {
    let count = f64::from(u32::try_from(tokens.len()).unwrap());
    let mean = |value: fn(u32) -> u32| {
        let sum: u32 = tokens.iter().map(|&token| value(token)).sum();
        #[allow(clippy::cast_possible_truncation, reason = "small numbers")]
        let mean = (2.0 * f64::from(sum) / count) as f32;
        mean
    };
    vec![mean(|i| i), mean(|i| i * i), mean(|i| i % 2)]
}

async fn embed(worker: &Worker, body: serde_json::Value) -> EmbeddingsResponse {
    let answer = post(worker, "/v1/embeddings", body.to_string()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    serde_json::from_slice(&answer.body).unwrap()
}

fn floats(embedding: &Embedding) -> Vec<f32> {
    match &embedding.embedding {
        Numbers::Float(numbers) => numbers.clone(),
        Numbers::Base64(text) => {
            let bytes = STANDARD.decode(text).unwrap();
            bytes.as_chunks().0.iter().map(|chunk| f32::from_le_bytes(*chunk)).collect()
        }
    }
}

#[track_caller]
fn assert_close(found: &[f32], expected: &[f32]) {
    let close = found.iter().zip(expected).all(|(a, b)| (a - b).abs() <= 1e-5 * b.abs().max(1.0));
    assert!(found.len() == expected.len() && close, "expected {expected:?}, found {found:?}");
}

#[track_caller]
fn refused(answer: &Answer, status: u16, kind: &str, code: &str, part: &str) {
    let error = serde_json::from_slice::<ErrorBody>(&answer.body).unwrap().error;
    let found = (answer.status.as_u16(), error.kind.as_str(), error.code.as_deref());
    assert_eq!(found, (status, kind, Some(code)), "{}", error.message);
    assert_eq!(answer.reason(), code);
    assert!(error.message.contains(part), "expected \"{part}\", found \"{}\"", error.message);
}

#[tokio::test]
async fn texts_and_tokens_become_the_means_of_their_vectors() {
    let worker = start_fixtures().await;
    let hello_worlds = [CLS, 4, 5, 6, SEP];
    let found = embed(&worker, json!({"model": "embed", "input": "Hello, worlds"})).await;
    assert_eq!((found.object.as_str(), found.model.as_str()), ("list", "embed"));
    assert_close(&floats(&found.data[0]), &expected(&[CLS, 4, 1, 5, 6, SEP]));
    assert_eq!((found.usage.prompt_tokens, found.usage.total_tokens), (6, 6));
    // Many at once, some of other lengths, in their order, in both forms.
    let long = ["river"; 30].join(" ");
    let long_tokens = [&[CLS][..], &[7; 30], &[SEP]].concat();
    let texts = json!(["hello worlds", long, "the bank", "hello worlds"]);
    for form in [json!("float"), json!("base64"), json!(null)] {
        let body = json!({"model": "embed", "input": texts, "encoding_format": form});
        let found = embed(&worker, body).await;
        let is_text = matches!(found.data[0].embedding, Numbers::Base64(_));
        assert_eq!(is_text, form == "base64");
        let all = [&hello_worlds[..], &long_tokens, &[CLS, 9, 8, SEP], &hello_worlds];
        for (index, (entry, tokens)) in found.data.iter().zip(all).enumerate() {
            assert_eq!((entry.index, entry.object.as_str()), (index, "embedding"));
            assert_close(&floats(entry), &expected(tokens));
        }
        assert_eq!((found.data.len(), found.usage.prompt_tokens), (4, 5 + 32 + 4 + 5));
    }
    // Tokens are taken as they are.
    let found = embed(&worker, json!({"model": "embed", "input": [4, 5]})).await;
    assert_close(&floats(&found.data[0]), &expected(&[4, 5]));
    let found = embed(&worker, json!({"model": "embed", "input": [[4], [5, 5, 7]]})).await;
    assert_close(&floats(&found.data[0]), &expected(&[4]));
    assert_close(&floats(&found.data[1]), &expected(&[5, 5, 7]));
    let tokens = get(&worker, "/metrics").await.text();
    let line = "forebay_worker_embedding_tokens_total{model=\"embed\"} 150";
    assert!(tokens.contains(line), "{tokens}");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_inputs_than_may_wait_in_line_are_answered_all_the_same() {
    let worker = start_fixtures().await;
    let texts: Vec<_> = (0..600).map(|i| ["hello", "the bank", "river"][i % 3]).collect();
    let found = embed(&worker, json!({"model": "embed", "input": texts})).await;
    let each = [vec![CLS, 4, SEP], vec![CLS, 9, 8, SEP], vec![CLS, 7, SEP]];
    for (index, entry) in found.data.iter().enumerate() {
        assert_close(&floats(entry), &expected(&each[index % 3]));
    }
    assert_eq!(found.data.len(), 600);
    until_busy(&worker, 0, 0).await;
}

#[tokio::test]
async fn what_can_not_be_embedded_is_refused_in_openais_form() {
    let worker = start_fixtures().await;
    let long = ["river"; 39].join(" ");
    let huge = "x".repeat(40 * 256 + 1);
    let client = "invalid_request_error";
    for (body, status, code, part) in [
        (json!({"model": "embed"}), 400, "invalid_request", "input"),
        (json!({"input": "a"}), 400, "invalid_request", "model"),
        (json!({"model": "embed", "input": 5}), 400, "invalid_request", "a list of texts"),
        (json!({"model": "embed", "input": []}), 400, "invalid_input", "at least one input"),
        (json!({"model": "embed", "input": [""]}), 400, "invalid_input", "no empty input"),
        (json!({"model": "embed", "input": [[]]}), 400, "invalid_input", "at least one token"),
        (json!({"model": "embed", "input": [10]}), 400, "invalid_input", "tokens below 10"),
        (
            json!({"model": "embed", "input": long}),
            400,
            "invalid_input",
            "at most 40 tokens, found 41",
        ),
        (
            json!({"model": "embed", "input": huge}),
            400,
            "invalid_input",
            "found a text of 10241 bytes",
        ),
        (
            json!({"model": "embed", "input": "a", "dimensions": 2}),
            400,
            "invalid_input",
            "expected dimensions of 3, which the model has, found 2: its model.toml does not say",
        ),
        (
            json!({"model": "embed", "input": "a", "encoding_format": "hex"}),
            400,
            "invalid_request",
            "base64",
        ),
        (json!({"model": "arith", "input": "a"}), 400, "invalid_input", "gives no embeddings"),
        (json!({"model": "nonesuch", "input": "a"}), 404, "model_not_found", "nonesuch"),
    ] {
        let answer = post(&worker, "/v1/embeddings", body.to_string()).await;
        refused(&answer, status, client, code, part);
    }
    let answer = get(&worker, "/v1/models/nonesuch").await;
    refused(&answer, 404, client, "model_not_found", "nonesuch");
    let mut late = request(
        http::Method::POST,
        "/v1/embeddings",
        json!({"model": "embed", "input": "a"}).to_string(),
    );
    late.headers_mut().insert("x-request-deadline", "0".parse().unwrap());
    let answer = send(worker.address(), late).await;
    refused(&answer, 504, "server_error", "deadline_exceeded", "deadline");
    assert_eq!(embed(&worker, json!({"model": "embed", "input": "a"})).await.data.len(), 1);
}

#[tokio::test]
async fn models_that_embed_are_listed() {
    let worker = start_fixtures().await;
    let list: ModelList = serde_json::from_slice(&get(&worker, "/v1/models").await.body).unwrap();
    let ids: Vec<_> = list.data.iter().map(|model| model.id.as_str()).collect();
    assert_eq!(ids, ["embed"]);
    assert_eq!(get(&worker, "/v1/models/embed").await.json()["object"], "model");
}

/// A worker whose model `embed` is configured like this.
async fn start_with(scratch: &Scratch, config: &str) -> Worker {
    scratch.write("embed/1/model.onnx", Scratch::model("embed"));
    let tokenizer = std::fs::read(fixtures().join("embed/tokenizer.json")).unwrap();
    scratch.write("embed/tokenizer.json", tokenizer);
    scratch.write("embed/model.toml", config);
    start(options(scratch.path().to_owned())).await
}

#[tokio::test]
async fn pooling_length_and_normalisation_are_as_configured() {
    // Vectors of the tokens 4 and 7 with their mean added.
    let (first, last) = ([9.5_f32, 48.5, 0.5], [12.5_f32, 81.5, 1.5]);
    let length = first.iter().map(|v| v * v).sum::<f32>().sqrt();
    let unit: Vec<_> = first.iter().map(|v| v / length).collect();
    for (config, tokens, expected) in [
        ("pooling = \"cls\"\nnormalize = false", json!([4, 7]), &first[..]),
        ("pooling = \"last\"\nnormalize = false", json!([4, 7]), &last),
        ("pooling = \"max\"\nnormalize = false", json!([4, 7]), &last),
        ("pooling = \"cls\"", json!([4, 7]), &unit),
        (
            "truncate = true\nmax_tokens = 2\npooling = \"cls\"\nnormalize = false",
            json!([4, 7, 5]),
            &first,
        ),
    ] {
        let scratch = Scratch::new("pooling");
        let worker = start_with(&scratch, &format!("[embedding]\n{config}\n")).await;
        let found = embed(&worker, json!({"model": "embed", "input": tokens})).await;
        assert_close(&floats(&found.data[0]), expected);
    }
    // A text that is cut keeps what the tokenizer puts around it.
    let scratch = Scratch::new("truncated");
    let worker =
        start_with(&scratch, "[embedding]\nmax_tokens = 4\ntruncate = true\nnormalize = false\n")
            .await;
    let text = "hello ".repeat(2000);
    let found = embed(&worker, json!({"model": "embed", "input": text})).await;
    assert_close(&floats(&found.data[0]), &expected(&[CLS, 4, 4, SEP]));
}

#[tokio::test]
async fn the_first_numbers_alone_are_given_where_they_are_said_to_serve() {
    // Of the vectors of the tokens 4 and 7 with their mean added, the first one.
    let whole = [9.5_f32, 48.5, 0.5];
    let length = whole[..2].iter().map(|v| v * v).sum::<f32>().sqrt();
    let unit: Vec<_> = whole[..2].iter().map(|v| v / length).collect();
    for (normalize, expected) in [("true", &unit[..]), ("false", &whole[..2])] {
        let scratch = Scratch::new("dimensions");
        let config = format!(
            "[embedding]\npooling = \"cls\"\nmin_dimensions = 2\nnormalize = {normalize}\n"
        );
        let worker = start_with(&scratch, &config).await;
        let body = |dimensions, form| {
            json!({"model": "embed", "input": [4, 7], "dimensions": dimensions,
                   "encoding_format": form})
        };
        for form in ["float", "base64"] {
            let found = embed(&worker, body(2, form)).await;
            assert_close(&floats(&found.data[0]), expected);
            assert_eq!(floats(&embed(&worker, body(3, form)).await.data[0]).len(), 3);
        }
        for dimensions in [0, 1, 4] {
            let sent = body(dimensions, "float").to_string();
            let answer = post(&worker, "/v1/embeddings", sent).await;
            let part = format!("expected dimensions of 2 to 3, found {dimensions}");
            refused(&answer, 400, "invalid_request_error", "invalid_input", &part);
        }
    }
}

#[tokio::test]
async fn a_version_or_label_can_be_named_behind_the_model() {
    let scratch = Scratch::new("versions");
    scratch.write("embed/2/model.onnx", Scratch::model("embed"));
    let config = "versions = \"all\"\nlabels = { stable = 1 }\n[embedding]\n";
    let worker = start_with(&scratch, config).await;
    let mut counts = [0; 2];
    for (name, version) in [("embed", 2), ("embed:2", 2), ("embed:1", 1), ("embed:stable", 1)] {
        let found = embed(&worker, json!({"model": name, "input": "hello"})).await;
        assert_eq!(found.model, name);
        assert_eq!(get(&worker, &format!("/v1/models/{name}")).await.json()["id"], name);
        counts[version - 1] += 1;
        let metrics = get(&worker, "/metrics").await.text();
        for (version, count) in (1..).zip(counts) {
            let labels = format!("model=\"embed\",version=\"{version}\",reason=\"ok\"");
            let line = format!("forebay_worker_inferences_total{{{labels}}} {count}\n");
            assert!(metrics.contains(&line), "{name}: expected {line}, found {metrics}");
        }
    }
    for name in ["embed:3", "embed:canary", "embed:", "embed:1:1", "none:1", ":1"] {
        let sent = json!({"model": name, "input": "hello"}).to_string();
        let answer = post(&worker, "/v1/embeddings", sent).await;
        refused(&answer, 404, "invalid_request_error", "model_not_found", "");
        assert_eq!(get(&worker, &format!("/v1/models/{name}")).await.status, 404);
    }
}

#[tokio::test]
async fn a_tokenizer_or_pooling_that_does_not_fit_keeps_a_model_from_being_served() {
    for (config, tokenizer, part) in [
        ("[embedding]\ntokenizer = \"none.json\"", None, "none.json"),
        ("[embedding]\ntokenizer = \"../t.json\"", None, "the name of a file"),
        ("[embedding]\npooling = \"none\"", None, "in 2 dimensions for this pooling"),
        ("[embedding]\npooling = \"average\"", None, "expected \"mean\" or \"cls\""),
        ("[embedding]\noutput = \"y\"", None, "an output \"y\""),
        ("[embedding]\nmin_dimensions = 4", None, "min_dimensions of at most 3, found 4"),
        ("[embedding]", Some("{}"), "tokenizer tokenizer.json"),
        ("[embedding]", Some("\0\u{1}"), "tokenizer tokenizer.json"),
    ] {
        let scratch = Scratch::new("unfit");
        scratch.write("embed/tokenizer.json", tokenizer.unwrap_or("{}"));
        scratch.write("embed/1/model.onnx", Scratch::model("embed"));
        scratch.write("embed/model.toml", config);
        if tokenizer.is_none() {
            let whole = std::fs::read(fixtures().join("embed/tokenizer.json")).unwrap();
            scratch.write("embed/tokenizer.json", whole);
        }
        let worker = start(options(scratch.path().to_owned())).await;
        let answer = post(&worker, "/v1/embeddings", r#"{"model":"embed","input":"a"}"#).await;
        refused(&answer, 501, "server_error", "model_failed", part);
    }
    let scratch = Scratch::new("no-encoder");
    scratch.write("arith/1/model.onnx", Scratch::model("arith"));
    scratch.write("arith/model.toml", "[embedding]\n");
    scratch.write(
        "arith/tokenizer.json",
        std::fs::read(fixtures().join("embed/tokenizer.json")).unwrap(),
    );
    let worker = start(options(scratch.path().to_owned())).await;
    let answer = post(&worker, "/v1/embeddings", r#"{"model":"arith","input":"a"}"#).await;
    refused(&answer, 501, "server_error", "model_failed", "expected inputs of input_ids");
}
