//! Mistakes of an engine or a server that would go unnoticed.

use crate::harness::*;
use forebay_worker::Options;
use http::Method;
use std::path::Path;

/// Five steps for the recurrent model, other ones for each client.
fn steps(client: u8) -> Vec<u8> {
    let wave = (0..15_u8).map(|i| f32::from(i * (client + 1)).sin()).collect();
    json_body(vec![tensor("x", &[5, 1, 3], wave)])
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_recurrent_model_remembers_never_crosses_from_one_client_to_the_next() {
    let worker = start(Options { executors: 2, ..options(fixtures()) }).await;
    let address = worker.address();
    let mut alone = Vec::new();
    for client in 0..6 {
        // A worker that has served no request yet.
        let fresh = start(Options { executors: 1, ..options(fixtures()) }).await;
        alone.push(infer(&fresh, "lstm", steps(client)).await.outputs());
    }
    assert!(alone[0] != alone[1], "clients that differ");
    let clients = (0..6).zip(alone).map(|(client, alone)| {
        tokio::spawn(async move {
            for _ in 0..20 {
                let sent = request(Method::POST, "/v2/models/lstm/infer", steps(client));
                assert_eq!(send(address, sent).await.outputs(), alone, "client {client}");
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
}

#[tokio::test]
async fn a_quantised_graph_is_refused_and_one_that_answers_wrongly_even_if_it_is_allowed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/quantized");
    let read = |file: &str| std::fs::read(folder.join(file)).unwrap();
    let scratch = Scratch::new("quantised");
    for name in ["strict", "allowed", "unchecked"] {
        scratch.write(&format!("{name}/1/model.onnx"), read("1/model.onnx"));
    }
    for name in ["allowed", "unchecked"] {
        scratch.write(&format!("{name}/model.toml"), "allow_quantized = true\ntolerance = 0.005\n");
    }
    for file in ["examples/softmax.json", "examples/softmax.expected.json"] {
        scratch.write(&format!("allowed/{file}"), read(file));
    }
    let worker = start(options(scratch.path().to_owned())).await;
    let sent = || read("examples/softmax.json");
    let strict = infer(&worker, "strict", sent()).await;
    strict.refused(501, "model_failed", "may give wrong results here");
    let expected: serde_json::Value =
        serde_json::from_slice(&read("examples/softmax.expected.json")).unwrap();
    let expected = &expected["outputs"][0]["data"];
    let unchecked = infer(&worker, "unchecked", sent()).await;
    let is_right = unchecked.status == 200 && {
        let found = unchecked.json()["outputs"][0]["data"].clone();
        let pairs = found.as_array().unwrap().iter().zip(expected.as_array().unwrap());
        pairs.into_iter().all(|(a, b)| (a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < 5e-3)
    };
    // The recorded answer decides, whatever the engine computes.
    let allowed = infer(&worker, "allowed", sent()).await;
    if is_right {
        assert_eq!(allowed.status, 200, "{}", allowed.text());
    } else {
        allowed.refused(501, "model_failed", "example \"softmax\": output \"y\"");
    }
}
