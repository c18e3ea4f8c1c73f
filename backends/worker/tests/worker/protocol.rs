//! Headers of every answer, and the worker's metadata.

use crate::harness::*;
use forebay_protocol::header;
use forebay_protocol::oip::{Datatype, ModelMetadata};
use forebay_tract::VectorUnit;
use http::{Method, Version};

#[tokio::test]
async fn every_answer_carries_a_load_report_refusals_too() {
    let worker = start_fixtures().await;
    let mut last = 0;
    for (method, path) in [
        (Method::GET, "/v2/health/live"),
        (Method::GET, "/v2/health/ready"),
        (Method::GET, "/v2"),
        (Method::GET, "/metrics"),
        (Method::GET, "/nothing"),
        (Method::POST, "/v2/models/nobody/infer"),
        (Method::POST, "/v2/models/arith/infer"),
        (Method::GET, "/v2/models/arith/infer"),
    ] {
        let answer = send(worker.address(), request(method, path, "")).await;
        let report = answer.report();
        assert!(answer.header(header::LOAD_REPORT).starts_with("TEXT "), "{path}");
        assert_eq!((report.rif, report.queue), (Some(0), Some(0)), "{path}");
        assert!(report.slots >= Some(1) && report.seq > Some(last), "{path}: {report:?}");
        last = report.seq.unwrap();
    }
    let mut asked = request(Method::GET, "/v2/health/live", "");
    asked.headers_mut().insert(header::LOAD_REPORT_FORMAT, "json".parse().unwrap());
    let answer = send(worker.address(), asked).await;
    assert!(answer.header(header::LOAD_REPORT).starts_with("JSON {"));
    assert!(answer.report().seq > Some(last));
}

#[tokio::test]
async fn a_request_keeps_its_identity() {
    let worker = start_fixtures().await;
    for path in ["/v2/health/live", "/nothing"] {
        let mut sent = request(Method::GET, path, "");
        sent.headers_mut().insert(header::REQUEST_ID, "abc-123".parse().unwrap());
        assert_eq!(send(worker.address(), sent).await.header(header::REQUEST_ID), "abc-123");
    }
    let body = String::from_utf8(arith_body(1.0, 1.0)).unwrap().replacen("\"\"", "\"mine\"", 1);
    let answer = infer(&worker, "arith", body).await.json();
    assert_eq!(
        (answer["id"].as_str(), answer["model_version"].as_str()),
        (Some("mine"), Some("1"))
    );
}

#[tokio::test]
async fn outputs_come_as_asked_for() {
    let worker = start_fixtures().await;
    let body = String::from_utf8(arith_body(3.0, 1.0)).unwrap();
    let body = body.replacen(
        '{',
        r#"{"outputs":[{"name":"difference","parameters":{"binary_data":true}},{"name":"sum"}],"#,
        1,
    );
    let answer = infer(&worker, "arith", body).await;
    assert_eq!(answer.header("content-type"), "application/octet-stream");
    let expected =
        [tensor("difference", &[1, 4], vec![2.0; 4]), tensor("sum", &[1, 4], vec![4.0; 4])];
    assert_eq!(answer.outputs(), expected);
}

#[tokio::test]
async fn http1_and_http2_are_spoken_on_one_port() {
    let worker = start_fixtures().await;
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let uri = format!("http://{}/v2/models/arith/infer", worker.address());
        let mut sent =
            http::Request::post(uri).version(version).body(arith_body(1.0, 1.0).into()).unwrap();
        if version == Version::HTTP_11 {
            let host = worker.address().to_string().parse().unwrap();
            sent.headers_mut().insert(http::header::HOST, host);
        }
        let answer = send(worker.address(), sent).await;
        assert_eq!(answer.outputs()[0], tensor("sum", &[1, 4], vec![2.0; 4]), "{version:?}");
    }
}

#[tokio::test]
async fn metadata_tells_names_datatypes_and_shapes() {
    let worker = start(options(bundled())).await;
    let server = get(&worker, "/v2").await.json();
    assert_eq!(server["name"], "forebay-worker");
    let model: ModelMetadata =
        serde_json::from_slice(&get(&worker, "/v2/models/ppocr-cls/versions/1").await.body)
            .unwrap();
    assert_eq!(
        (model.platform.as_str(), model.versions.as_slice()),
        ("onnx", &["1".to_owned()][..])
    );
    assert_eq!(model.inputs[0].datatype, Datatype::Fp32);
    assert_eq!(model.inputs[0].shape, [-1, 3, 48, 192], "narrowed by model.toml");
    assert_eq!(model.outputs[0].shape, [-1, 2]);
    let config = get(&worker, "/v2/models/magika/config").await.json();
    assert_eq!(config["max_batch_size"], 32);
    assert_eq!(config["input"][0]["data_type"], "TYPE_INT32");
    assert_eq!(config["input"][0]["dims"], serde_json::json!([2048]));
    let config = get(&worker, "/v2/models/silero-vad/config").await.json();
    assert_eq!(config["max_batch_size"], 0);
    assert_eq!(config["input"][1]["dims"], serde_json::json!([2, 1, 128]));
    let welcome = get(&worker, "/").await.text();
    assert!(welcome.contains("READY") && welcome.contains("magika"), "{welcome}");
}

#[tokio::test]
async fn metrics_count_what_happened() {
    let worker = start_fixtures().await;
    for _ in 0..3 {
        infer(&worker, "arith", arith_body(1.0, 1.0)).await.outputs();
    }
    infer(&worker, "arith", "{}").await.refused(400, "invalid_request", "");
    infer(&worker, "nobody", "{}").await.refused(404, "model_not_found", "");
    let metrics = get(&worker, "/metrics").await.text();
    let unit = VectorUnit::in_use();
    let (name, version) = ("forebay_worker_info", env!("CARGO_PKG_VERSION"));
    let info = format!("{name}{{version=\"{version}\",vector_unit=\"{unit}\"}} 1");
    for line in [
        r#"forebay_worker_inferences_total{model="arith",version="1",reason="ok"} 3"#,
        r#"forebay_worker_inferences_total{model="arith",version="1",reason="invalid_request"} 1"#,
        r#"forebay_worker_inferences_total{model="",version="",reason="model_not_found"} 1"#,
        r#"forebay_worker_model_ready{model="arith",version="1"} 1"#,
        r#"forebay_worker_execute_duration_seconds_count{model="arith"} 3"#,
        r#"forebay_worker_queue_duration_seconds_bucket{model="arith",le="+Inf"} 3"#,
        r#"forebay_worker_queue_depth{model="arith"} 0"#,
        "forebay_worker_requests_in_flight 0",
        &info,
    ] {
        assert!(metrics.contains(line), "expected {line}, found\n{metrics}");
    }
}
