//! The bundled models, over HTTP, alone and together: what ONNX Runtime gives is what comes back.

use crate::harness::*;
use forebay_protocol::header;
use forebay_protocol::oip::{InferRequest, InferResponse, Parameter, Tensor};
use forebay_worker::Worker;
use http::Method;
use std::net::SocketAddr;

/// See the same constant in `forebay-tract`'s tests: sums in another order.
const TOLERANCE: f64 = 1e-4;

/// Model, request body as it stands in the file, expected outputs.
type Example = (&'static str, Vec<u8>, Vec<Tensor>);

fn examples() -> Vec<Example> {
    let read = |model: &'static str, name: &str| {
        let folder = bundled().join(model).join("examples");
        let request = std::fs::read(folder.join(format!("{name}.json"))).unwrap();
        let expected = std::fs::read(folder.join(format!("{name}.expected.json"))).unwrap();
        (model, request, InferResponse::parse(&expected, None).unwrap().outputs)
    };
    vec![
        read("magika", "python"),
        read("magika", "shell"),
        read("silero-vad", "speech"),
        read("silero-vad", "silence"),
        read("ppocr-cls", "upright"),
        read("ppocr-cls", "upside-down"),
    ]
}

async fn start_bundled() -> Worker {
    start(options(bundled())).await
}

fn assert_close(found: &[Tensor], expected: &[Tensor], model: &str) {
    assert_eq!(found.len(), expected.len(), "{model}");
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!((&found.name, &found.shape), (&expected.name, &expected.shape), "{model}");
        let difference = found.data.max_difference(&expected.data).unwrap();
        assert!(difference < TOLERANCE, "{model} {}: differs by {difference}", found.name);
    }
}

async fn try_example(address: SocketAddr, (model, body, expected): &Example, binary: bool) {
    let path = format!("/v2/models/{model}/infer");
    let sent = if binary {
        let mut parsed = InferRequest::parse(body, None).unwrap();
        parsed.parameters.insert("binary_data_output", Parameter::Bool(true));
        binary_request(&path, &parsed)
    } else {
        request(Method::POST, &path, body.clone())
    };
    let answer = send(address, sent).await;
    assert_eq!(answer.headers.contains_key(header::INFERENCE_HEADER_CONTENT_LENGTH), binary);
    assert_close(&answer.outputs(), expected, model);
}

#[tokio::test]
async fn examples_give_what_onnx_runtime_gave_in_json_and_binary() {
    let worker = start_bundled().await;
    for example in examples() {
        for binary in [false, true] {
            try_example(worker.address(), &example, binary).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn examples_give_the_same_when_all_run_at_once() {
    let worker = start_bundled().await;
    let address = worker.address();
    let clients = (0..4).flat_map(|_| examples()).map(|example| {
        tokio::spawn(async move {
            for binary in [false, true] {
                try_example(address, &example, binary).await;
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
}

#[tokio::test]
async fn the_labels_say_what_the_examples_are() {
    let worker = start_bundled().await;
    for (model, body, _) in examples() {
        let Ok(labels) = std::fs::read_to_string(bundled().join(model).join("labels.txt")) else {
            continue;
        };
        let id = InferRequest::parse(&body, None).unwrap().id.unwrap();
        let outputs = infer(&worker, model, body).await.outputs();
        let forebay_protocol::oip::Data::Fp32(scores) = &outputs[0].data else {
            panic!("expected FP32 scores");
        };
        assert_eq!(scores.len(), labels.lines().count(), "{model}");
        let best = (0..scores.len()).max_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap();
        let expected = match id.as_str() {
            "upright" => "0",
            "upside-down" => "180",
            id => id,
        };
        assert_eq!(labels.lines().nth(best), Some(expected), "{model}");
    }
}

#[tokio::test]
async fn a_raw_body_is_the_one_input_of_a_model() {
    let worker = start_bundled().await;
    let (model, body, expected) = examples().swap_remove(0);
    let mut bytes = Vec::new();
    InferRequest::parse(&body, None).unwrap().inputs[0].data.write_binary(&mut bytes);
    let path = format!("/v2/models/{model}/infer");
    let raw = |bytes: &[u8]| {
        let mut sent = request(Method::POST, &path, bytes.to_vec());
        sent.headers_mut().insert(header::INFERENCE_HEADER_CONTENT_LENGTH, 0.into());
        sent
    };
    let answer = send(worker.address(), raw(&bytes)).await;
    assert_close(&answer.outputs(), &expected, model);
    let answer = send(worker.address(), raw(&bytes[1..])).await;
    answer.refused(400, "invalid_input", "expected 8192 bytes of binary data, found 8191");
    let mut two_inputs = request(Method::POST, "/v2/models/silero-vad/infer", bytes);
    two_inputs.headers_mut().insert(header::INFERENCE_HEADER_CONTENT_LENGTH, 0.into());
    send(worker.address(), two_inputs).await.refused(400, "invalid_input", "found 2 inputs");
}
