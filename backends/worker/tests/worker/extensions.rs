//! Extensions of the protocol: statistics, classification, compressed answers.

use crate::grpc_client::{SERVICE, call, call_with, framed};
use crate::harness::*;
use flate2::read::{GzDecoder, ZlibDecoder};
use forebay_protocol::grpc::{infer as wire, pb};
use forebay_protocol::header;
use forebay_protocol::oip::{
    Data, InferRequest, InferResponse, Parameter, RequestedOutput, Statistics, Tensor,
};
use forebay_worker::{Options, Worker};
use http::Method;
use std::io::Read;

async fn statistics(worker: &Worker, path: &str) -> Statistics {
    let answer = get(worker, path).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    serde_json::from_slice(&answer.body).unwrap()
}

/// `a` and `b` of this many rows.
fn rows(count: usize) -> Vec<Tensor> {
    ["a", "b"].map(|name| tensor(name, &[count, 4], vec![1.0; 4 * count])).to_vec()
}

#[tokio::test]
async fn statistics_count_requests_rows_and_runs_and_where_their_time_went() {
    let worker = start_fixtures().await;
    for count in [1, 3, 3] {
        assert_eq!(infer(&worker, "arith", json_body(rows(count))).await.status, 200);
    }
    infer(&worker, "arith", "{").await.refused(400, "invalid_request", "JSON");
    let found = statistics(&worker, "/v2/models/arith/stats").await;
    let [arith] = &found.model_stats[..] else { panic!("{found:?}") };
    assert_eq!((arith.name.as_str(), arith.version.as_str()), ("arith", "1"));
    let runs: u64 = arith.batch_stats.iter().map(|batch| batch.compute_infer.count).sum();
    let in_batches: u64 =
        arith.batch_stats.iter().map(|b| b.batch_size * b.compute_infer.count).sum();
    assert_eq!((arith.inference_count, in_batches), (7, 7));
    assert_eq!((arith.execution_count, runs), (3, 3));
    let times = &arith.inference_stats;
    assert_eq!((times.success.count, times.fail.count), (3, 1));
    for part in [times.queue, times.compute_input, times.compute_infer, times.compute_output] {
        assert_eq!(part.count, 3);
        assert!(part.ns > 0, "{times:?}");
    }
    let parts = times.queue.ns + times.compute_input.ns + times.compute_infer.ns;
    assert!(parts + times.compute_output.ns <= times.success.ns, "{times:?}");
    assert!(arith.last_inference > 1_700_000_000_000, "{arith:?}");
    assert!(arith.memory_usage[0].byte_size > 0);
    // The same by version, over gRPC, and among all.
    assert_eq!(statistics(&worker, "/v2/models/arith/versions/1/stats").await, found);
    let asked = pb::ModelStatisticsRequest { name: "arith".into(), version: "1".into() };
    let method = format!("{SERVICE}/ModelStatistics");
    let message: pb::ModelStatisticsResponse =
        call(worker.address(), &method, &asked).await.message();
    let [same] = &message.model_stats[..] else { panic!("{message:?}") };
    assert_eq!((same.inference_count, same.execution_count), (7, 3));
    let success = same.inference_stats.unwrap().success.unwrap();
    assert_eq!((success.count, success.ns), (times.success.count, times.success.ns));
    let all = statistics(&worker, "/v2/models/stats").await.model_stats;
    assert!(all.contains(arith) && all.len() > 3, "{all:?}");
    let everything = pb::ModelStatisticsRequest::default();
    let message: pb::ModelStatisticsResponse =
        call(worker.address(), &method, &everything).await.message();
    assert_eq!(message.model_stats.len(), all.len());
}

#[tokio::test]
async fn statistics_of_what_is_not_there_are_refused() {
    let worker = start_fixtures().await;
    let answer = get(&worker, "/v2/models/nonesuch/stats").await;
    answer.refused(404, "model_not_found", "nonesuch");
    let answer = get(&worker, "/v2/models/arith/versions/9/stats").await;
    answer.refused(404, "model_not_found", "9");
}

#[tokio::test(flavor = "multi_thread")]
async fn statistics_outlive_a_model_that_makes_room_and_is_loaded_again() {
    let scratch = Scratch::new("lasting");
    for name in ["a", "b"] {
        scratch.write(&format!("{name}/1/model.onnx"), Scratch::model("arith"));
        scratch.write(&format!("{name}/model.toml"), "memory = \"60MiB\"\n");
    }
    let options = options(scratch.path().to_owned());
    let worker = start(Options { models_memory: Some(100 << 20), ..options }).await;
    for model in ["a", "b", "a"] {
        assert_eq!(infer(&worker, model, arith_body(1.0, 1.0)).await.status, 200);
    }
    let found = statistics(&worker, "/v2/models/a/stats").await.model_stats;
    assert_eq!(found[0].inference_stats.success.count, 2);
    let away = statistics(&worker, "/v2/models/b/stats").await.model_stats;
    assert_eq!((away[0].inference_count, away[0].memory_usage.len()), (1, 0), "not in memory");
}

/// A worker whose model `arith` has names for three of the four elements of `sum`.
async fn start_labelled(name: &str) -> (Scratch, Worker) {
    let scratch = Scratch::new(name);
    scratch.write("arith/1/model.onnx", Scratch::model("arith"));
    scratch.write("arith/labels.txt", "north\neast\n south \r\n");
    scratch.write("arith/model.toml", "[[output]]\nname = \"sum\"\nlabel_file = \"labels.txt\"\n");
    let worker = start(options(scratch.path().to_owned())).await;
    (scratch, worker)
}

/// Two rows; of `sum` the `most` largest.
fn classified(most: i64, is_binary: bool) -> InferRequest {
    let a = tensor("a", &[2, 4], vec![0.5, 3.0, 1.0, 2.0, 9.0, 7.0, 7.0, 8.5]);
    let mut sum = RequestedOutput { name: "sum".into(), ..RequestedOutput::default() };
    sum.parameters.insert("classification", Parameter::Int(most));
    sum.parameters.insert("binary_data", Parameter::Bool(is_binary));
    let inputs = vec![a, tensor("b", &[2, 4], vec![0.0; 8])];
    InferRequest { inputs, outputs: vec![sum], ..InferRequest::default() }
}

fn texts(texts: &[&str]) -> Data {
    Data::Bytes(texts.iter().collect())
}

#[tokio::test]
async fn the_largest_of_each_row_are_given_with_their_names() {
    let (_scratch, worker) = start_labelled("labelled").await;
    let expected = texts(&["3:1:east", "2:3", "9:0:north", "8.5:3"]);
    for is_binary in [false, true] {
        let body = classified(2, is_binary).encode(|_| false).unwrap().body;
        let answer = infer(&worker, "arith", body).await;
        let [output] = &answer.outputs()[..] else { panic!() };
        assert_eq!((&output.shape[..], &output.data), (&[2, 2][..], &expected), "{is_binary}");
    }
    let asked = wire::write_request("arith", None, &classified(2, true));
    let ended = call(worker.address(), &format!("{SERVICE}/ModelInfer"), &asked).await;
    assert_eq!(wire::read_response(&ended.messages[0]).unwrap().outputs[0].data, expected);
    // More than there are is all of them, none is the numbers themselves.
    let all = infer(&worker, "arith", classified(i64::MAX, false).encode(|_| false).unwrap().body);
    assert_eq!(all.await.outputs()[0].shape, [2, 4]);
    let none = infer(&worker, "arith", classified(0, false).encode(|_| false).unwrap().body);
    assert!(matches!(none.await.outputs()[0].data, Data::Fp32(_)));
    let config = get(&worker, "/v2/models/arith/config").await.json();
    assert_eq!(config["output"][0]["label_filename"], "labels.txt");
    let wrong = classified(-1, false).encode(|_| false).unwrap().body;
    infer(&worker, "arith", wrong).await.refused(400, "invalid_input", "classification");
}

#[tokio::test]
async fn labels_that_are_not_there_or_lead_out_keep_a_model_from_being_served() {
    let scratch = Scratch::new("unlabelled");
    for (name, file) in [("missing", "labels.txt"), ("outside", "link.txt"), ("path", "../x.txt")] {
        scratch.write(&format!("{name}/1/model.onnx"), Scratch::model("arith"));
        let config = format!("[[output]]\nname = \"sum\"\nlabel_file = \"{file}\"\n");
        scratch.write(&format!("{name}/model.toml"), config);
    }
    let secret = Scratch::new("secret");
    secret.write("secret.txt", "secret");
    let link = scratch.path().join("outside/link.txt");
    std::os::unix::fs::symlink(secret.path().join("secret.txt"), link).unwrap();
    let worker = start(options(scratch.path().to_owned())).await;
    for (name, part) in [
        ("missing", "labels.txt"),
        ("outside", "leads out of the repository"),
        ("path", "the name of a file in the model's directory"),
    ] {
        let answer = infer(&worker, name, arith_body(1.0, 1.0)).await;
        answer.refused(501, "model_failed", part);
    }
}

/// Sends an inference of many equal rows as JSON, and asks for an answer in this encoding.
async fn infer_accepting(worker: &Worker, encoding: &str, is_binary: bool) -> Answer {
    let binary = [("binary_data_output".to_owned(), Parameter::Bool(is_binary))];
    let body = InferRequest {
        inputs: rows(32),
        parameters: binary.into_iter().collect(),
        ..InferRequest::default()
    };
    let body = body.encode(|_| false).unwrap().body;
    let mut sent = request(Method::POST, "/v2/models/arith/infer", body);
    sent.headers_mut().insert("accept-encoding", encoding.parse().unwrap());
    send(worker.address(), sent).await
}

#[tokio::test]
async fn answers_are_compressed_for_who_asks_for_it() {
    let worker = start_fixtures().await;
    let expected = vec![
        tensor("sum", &[32, 4], vec![2.0; 128]),
        tensor("difference", &[32, 4], vec![0.0; 128]),
    ];
    for is_binary in [false, true] {
        for encoding in ["gzip", "deflate"] {
            let answer = infer_accepting(&worker, encoding, is_binary).await;
            assert_eq!(answer.header("content-encoding"), encoding);
            assert_eq!(answer.header("vary"), "accept-encoding");
            let mut inflated = Vec::new();
            match encoding {
                "gzip" => GzDecoder::new(&answer.body[..]).read_to_end(&mut inflated).unwrap(),
                _ => ZlibDecoder::new(&answer.body[..]).read_to_end(&mut inflated).unwrap(),
            };
            // The length is that of the JSON as it was before.
            let json_len = answer.headers.get(header::INFERENCE_HEADER_CONTENT_LENGTH);
            let json_len = json_len.map(|length| length.to_str().unwrap().parse().unwrap());
            assert_eq!(json_len.is_some(), is_binary);
            let response = InferResponse::parse(&inflated, json_len).unwrap();
            assert_eq!(response.outputs, expected, "{encoding}");
        }
        for encoding in ["identity", "br", "gzip;q=0"] {
            let answer = infer_accepting(&worker, encoding, is_binary).await;
            assert_eq!(answer.header("content-encoding"), "");
            assert_eq!(answer.outputs(), expected, "{encoding}");
        }
    }
    // Too short to be worth it.
    let mut sent = request(Method::GET, "/v2", "");
    sent.headers_mut().insert("accept-encoding", "gzip".parse().unwrap());
    assert_eq!(send(worker.address(), sent).await.header("content-encoding"), "");
}

#[tokio::test]
async fn grpc_answers_are_compressed_as_the_requests_are() {
    let worker = start_fixtures().await;
    let asked = InferRequest { inputs: rows(32), ..InferRequest::default() };
    let body = framed(&wire::write_request("arith", None, &asked));
    let method = format!("{SERVICE}/ModelInfer");
    for (encoding, accepted, expected) in [
        // The message itself need not be compressed, whatever the header says.
        ("gzip", "identity, deflate, gzip", "gzip"),
        ("deflate", "identity, deflate", "deflate"),
        ("gzip", "identity", ""),
        ("identity", "identity, gzip", ""),
    ] {
        let headers = [("grpc-encoding", encoding), ("grpc-accept-encoding", accepted)];
        let ended = call_with(worker.address(), &method, &headers, body.clone()).await;
        let found = ended.headers.get(header::GRPC_ENCODING).map_or("", |v| v.to_str().unwrap());
        assert_eq!(found, expected);
        let mut message = Vec::new();
        match expected {
            "gzip" => GzDecoder::new(&ended.messages[0][..]).read_to_end(&mut message).unwrap(),
            "deflate" => {
                ZlibDecoder::new(&ended.messages[0][..]).read_to_end(&mut message).unwrap()
            }
            _ => (&ended.messages[0][..]).read_to_end(&mut message).unwrap(),
        };
        let response = wire::read_response(&message).unwrap();
        assert_eq!(response.outputs[0], tensor("sum", &[32, 4], vec![2.0; 128]));
    }
}
