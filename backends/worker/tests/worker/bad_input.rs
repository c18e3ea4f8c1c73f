//! A client's mistakes in the protocol: each is refused with 400 or 404, with the expected and the found
//! value, and without harm to the next request.

use crate::harness::*;
use forebay_protocol::header;
use forebay_protocol::oip::{InferRequest, Parameter};
use forebay_worker::Worker;
use http::Method;

async fn still_serves(worker: &Worker) {
    let outputs = infer(worker, "arith", arith_body(3.0, 1.0)).await.outputs();
    assert_eq!(outputs[0], tensor("sum", &[1, 4], vec![4.0; 4]));
}

fn input(name: &str, datatype: &str, shape: &str, data: &str) -> String {
    format!(r#"{{"name":"{name}","datatype":"{datatype}","shape":{shape},"data":{data}}}"#)
}

fn body(inputs: &[String]) -> String {
    format!(r#"{{"inputs":[{}]}}"#, inputs.join(","))
}

#[tokio::test]
async fn bodies_that_are_no_request_are_refused() {
    let worker = start_fixtures().await;
    for (sent, part) in [
        ("", "invalid JSON"),
        ("not json", "invalid JSON"),
        ("{", "invalid JSON"),
        ("{}", "missing field `inputs`"),
        ("[]", "invalid JSON"),
        (r#"{"inputs": 5}"#, "invalid type"),
        (r#"{"inputs": [], "inputs": []}"#, "duplicate field"),
        (r#"{"inputs":[{"name":"a","shape":[1,4],"data":[1,2,3,4]}]}"#, "missing field `datatype`"),
        (r#"{"inputs":[{"name":"a","datatype":"FLOAT","shape":[1],"data":[1]}]}"#, "FP32"),
        (r#"{"inputs":[],"parameters":{"a":[1]}}"#, "a string, a number, true or false"),
    ] {
        infer(&worker, "arith", sent).await.refused(400, "invalid_request", part);
    }
    infer(&worker, "arith", vec![0xff, 0xfe]).await.refused(400, "invalid_request", "invalid JSON");
    let deep = format!(r#"{{"inputs":[], "x": {}{}}}"#, "[".repeat(50_000), "]".repeat(50_000));
    infer(&worker, "arith", deep).await.refused(400, "invalid_input", "found no \"a\"");
    still_serves(&worker).await;
}

#[tokio::test]
async fn models_and_versions_that_are_not_there_are_404() {
    let worker = start_fixtures().await;
    for path in ["", "/ready", "/config"] {
        let answer = get(&worker, &format!("/v2/models/nobody{path}")).await;
        answer.refused(404, "model_not_found", "no model \"nobody\"");
    }
    infer(&worker, "nobody", "{}").await.refused(404, "model_not_found", "\"nobody\"");
    for version in ["2", "01", "x", "-1"] {
        let answer = infer(&worker, &format!("arith/versions/{version}"), "{}").await;
        answer.refused(404, "model_not_found", "only 1");
    }
    let traversal = get(&worker, "/v2/models/..%2f..%2fetc").await;
    traversal.refused(404, "model_not_found", "../../etc");
    let outputs = infer(&worker, "arith/versions/1", arith_body(1.0, 1.0)).await.outputs();
    assert_eq!(outputs.len(), 2);
}

#[tokio::test]
async fn inputs_that_are_missing_unknown_or_twice_are_refused() {
    let worker = start_fixtures().await;
    let (a, b) =
        (input("a", "FP32", "[1,4]", "[1,2,3,4]"), input("b", "FP32", "[1,4]", "[1,2,3,4]"));
    let c = input("c", "FP32", "[1,4]", "[1,2,3,4]");
    for (inputs, part) in [
        (vec![], "expected inputs \"a\", \"b\", found no \"a\""),
        (vec![a.clone()], "expected inputs \"a\", \"b\", found no \"b\""),
        (vec![a.clone(), b.clone(), c], "expected inputs \"a\", \"b\", found \"c\""),
        (vec![a.clone(), b.clone(), a.clone()], "expected input \"a\" once, found twice"),
    ] {
        infer(&worker, "arith", body(&inputs)).await.refused(400, "invalid_input", part);
    }
    let outputs = |outputs: &str| format!(r#"{{"inputs":[{a},{b}],"outputs":[{outputs}]}}"#);
    for (wanted, part) in [
        (r#"{"name":"product"}"#, "expected outputs \"sum\", \"difference\", found \"product\""),
        (r#"{"name":"sum"},{"name":"sum"}"#, "expected output \"sum\" once, found twice"),
        (r#"{"name":"sum","parameters":{"classification":"many"}}"#, "a whole number"),
        (r#"{"name":"sum","parameters":{"binary_data":"yes"}}"#, "true or false"),
    ] {
        infer(&worker, "arith", outputs(wanted)).await.refused(400, "invalid_input", part);
    }
    still_serves(&worker).await;
}

#[tokio::test]
async fn datatypes_shapes_and_counts_that_do_not_fit_are_refused() {
    let worker = start_fixtures().await;
    let b = input("b", "FP32", "[1,4]", "[1,2,3,4]");
    for (a, part) in [
        (input("a", "INT32", "[1,4]", "[1,2,3,4]"), "expected datatype FP32, found INT32"),
        (input("a", "FP32", "[1,5]", "[1,2,3,4,5]"), "expected shape [-1, 4], found [1, 5]"),
        (input("a", "FP32", "[4]", "[1,2,3,4]"), "expected shape [-1, 4], found [4]"),
        (input("a", "FP32", "[1,1,4]", "[1,2,3,4]"), "expected shape [-1, 4], found [1, 1, 4]"),
        (input("a", "FP32", "[0,4]", "[]"), "expected shape [-1, 4], found [0, 4]"),
        (input("a", "FP32", "[2,4]", "[1,2,3,4,5,6,7,8]"), "the same first dimension"),
        (input("a", "FP32", "[-1,4]", "[1,2,3,4]"), "expected dimensions of 0 or more, found -1"),
        (input("a", "FP32", "[1,4]", "[1,2,3]"), "expected 4 elements for its shape, found 3"),
        (
            input("a", "FP32", "[1,4]", "[1,2,3,4,5]"),
            "expected 4 elements for its shape, found more",
        ),
        (input("a", "FP32", "[4611686018427387904,4]", "[1]"), "fits the address space"),
        (input("a", "FP32", "[4294967296,4294967296]", "[1]"), "fits the address space"),
        (input("a", "FP32", "[1099511627776,4]", "[1,2,3]"), "expected 4398046511104 elements"),
        (
            input("a", "FP32", "[1,4]", "[[1,2],[3,4]]"),
            "expected 4 entries in dimension 1 of the nested data, found 2",
        ),
        (input("a", "FP32", "[1,4]", r#"[1,2,"3",4]"#), "found a string at element 2"),
        (input("a", "FP32", "[1,4]", "[1,2,1e39,4]"), "at element 2"),
    ] {
        infer(&worker, "arith", body(&[a, b.clone()])).await.refused(400, "invalid_input", part);
    }
    let rows = |name: &str| tensor(name, &[33, 4], vec![0.0; 132]);
    let answer = infer(&worker, "arith", json_body(vec![rows("a"), rows("b")])).await;
    answer.refused(400, "invalid_input", "expected at most 32 rows, found 33");
    still_serves(&worker).await;
}

#[tokio::test]
async fn nan_and_infinities_are_refused_alike_in_json_and_binary() {
    let worker = start_fixtures().await;
    let path = "/v2/models/arith/infer";
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let inputs = vec![
            tensor("a", &[1, 4], vec![0.0, value, 0.0, 0.0]),
            tensor("b", &[1, 4], vec![0.0; 4]),
        ];
        let sent = InferRequest { inputs, ..InferRequest::default() };
        let answer = send(worker.address(), binary_request(path, &sent)).await;
        answer.refused(400, "invalid_input", "NaN or an infinity at element 1");
    }
    // JSON has no word for them; those that some clients use are no JSON.
    for word in ["NaN", "Infinity", "-Infinity", "1e999"] {
        let a = input("a", "FP32", "[1,4]", &format!("[1,{word},3,4]"));
        let answer = infer(&worker, "arith", body(&[a])).await;
        assert_eq!(answer.status, 400, "{word}: {}", answer.error());
    }
    still_serves(&worker).await;
}

#[tokio::test]
async fn outputs_that_are_not_finite_are_a_failure_unless_the_model_allows_them() {
    let worker = start_fixtures().await;
    let x = tensor("x", &[1, 2], vec![1.0, -1.0]);
    let answer = infer(&worker, "log", json_body(vec![x.clone()])).await;
    answer.refused(500, "inference_failed", "output \"y\" at element 1");

    let scratch = Scratch::new("non-finite");
    scratch.write("log/1/model.onnx", Scratch::model("log"));
    scratch.write("log/model.toml", "allow_non_finite = true\n");
    let lenient = start(options(scratch.path().to_owned())).await;
    let answer = infer(&lenient, "log", json_body(vec![x.clone()])).await;
    answer.refused(400, "invalid_input", "ask for binary_data");
    let mut sent = InferRequest { inputs: vec![x], ..InferRequest::default() };
    sent.parameters.insert("binary_data_output", Parameter::Bool(true));
    let answer = send(lenient.address(), binary_request("/v2/models/log/infer", &sent)).await;
    assert_eq!(answer.outputs()[0].data.first_non_finite(), Some(1));
    let mut sent = binary_request(
        "/v2/models/log/infer",
        &InferRequest {
            inputs: vec![tensor("x", &[1, 2], vec![f32::INFINITY, 1.0])],
            ..sent_parameters()
        },
    );
    sent.headers_mut().insert(header::REQUEST_ID, "inf".parse().unwrap());
    assert_eq!(send(lenient.address(), sent).await.outputs()[0].data.first_non_finite(), Some(0));
}

fn sent_parameters() -> InferRequest {
    let mut request = InferRequest::default();
    request.parameters.insert("binary_data_output", Parameter::Bool(true));
    request
}

#[tokio::test]
async fn binary_lengths_that_lie_are_refused() {
    let worker = start_fixtures().await;
    let head = |a: i64, b: i64| {
        let input = |name: &str, size: i64| {
            format!(
                r#"{{"name":"{name}","datatype":"FP32","shape":[1,4],"parameters":{{"binary_data_size":{size}}}}}"#
            )
        };
        body(&[input("a", a), input("b", b)])
    };
    let sent = |a, b, bytes: usize, announced: Option<String>| {
        let head = head(a, b);
        let announced = announced.unwrap_or(head.len().to_string());
        let body = [head.as_bytes(), &vec![0; bytes]].concat();
        let mut request = request(Method::POST, "/v2/models/arith/infer", body);
        request
            .headers_mut()
            .insert(header::INFERENCE_HEADER_CONTENT_LENGTH, announced.parse().unwrap());
        request
    };
    let most = i64::MAX;
    for (a, b, bytes, part) in [
        (16, 16, 31, "expected 16 bytes of binary data, found 15"),
        (16, 16, 33, "expected 32 bytes of binary data after the JSON, found 33"),
        (16, 16, 0, "expected 16 bytes of binary data, found 0"),
        (12, 16, 28, "expected 16 bytes of binary data, found 12"),
        (20, 12, 32, "expected 16 bytes of binary data, found 20"),
        (-16, 16, 32, "found -16"),
        (most, most, 32, "found 32"),
    ] {
        let answer = send(worker.address(), sent(a, b, bytes, None)).await;
        answer.refused(400, "invalid_input", part);
    }
    for (announced, part) in [
        ("100000", "expected 100000 bytes of JSON"),
        ("18446744073709551615", "bytes of JSON"),
        ("18446744073709551616", "in whole bytes"),
        ("-1", "in whole bytes"),
        ("ten", "in whole bytes"),
        ("7", "invalid JSON"),
    ] {
        let answer = send(worker.address(), sent(16, 16, 32, Some(announced.to_owned()))).await;
        answer.refused(400, "invalid_request", part);
    }
    assert_eq!(send(worker.address(), sent(16, 16, 32, None)).await.status, 200);
}

#[tokio::test]
async fn paths_and_methods_that_are_not_there_are_told_so() {
    let worker = start_fixtures().await;
    get(&worker, "/v3").await.refused(404, "not_found", "/v3");
    get(&worker, "/v2/models/arith/generate").await.refused(404, "not_found", "generate");
    get(&worker, "/v2/models/arith/infer").await.refused(405, "method_not_allowed", "GET");
    post(&worker, "/v2/health/live", "").await.refused(405, "method_not_allowed", "POST");
    get(&worker, "/v2/models/%ff").await.refused(400, "invalid_request", "UTF-8");
}

#[tokio::test]
async fn deadlines_that_are_no_number_are_refused() {
    let worker = start_fixtures().await;
    for value in ["soon", "-5", "1.5", ""] {
        let mut sent = request(Method::POST, "/v2/models/arith/infer", arith_body(1.0, 1.0));
        sent.headers_mut().insert(header::REQUEST_DEADLINE, value.parse().unwrap());
        send(worker.address(), sent).await.refused(400, "invalid_request", "whole milliseconds");
    }
}
