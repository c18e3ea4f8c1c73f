//! Hostile models: each is refused with a message, and no other model suffers.

use crate::harness::*;
use forebay_worker::Options;
use std::path::Path;
use std::time::Duration;

/// A repository of all models in `tests/hostile`, and one that is as it should be.
fn hostile(name: &str) -> Scratch {
    let scratch = Scratch::new(name);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hostile");
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            let model = std::fs::read(path.join("1/model.onnx")).unwrap();
            let name = path.file_name().unwrap().to_str().unwrap();
            scratch.write(&format!("{name}/1/model.onnx"), model);
        }
    }
    scratch.write("good/1/model.onnx", Scratch::model("arith"));
    scratch
}

#[tokio::test]
async fn hostile_models_are_refused_in_words_and_the_others_are_served() {
    let scratch = hostile("hostile");
    let worker = start(options(scratch.path().to_owned())).await;
    let index = post(&worker, "/v2/repository/index", "").await.json();
    let index = index.as_array().unwrap();
    assert_eq!(index.len(), 20, "{index:?}");
    for (name, part) in [
        ("cycle", "Loop detected"),
        ("cycle-of-one", "Loop detected"),
        ("dimension-2-63", "expected at most 268435456 elements, found the shape"),
        ("dimension-2-33", "expected at most 268435456 elements, found the shape"),
        ("dimensions-2-80", "expected at most 268435456 elements, found the shape"),
        ("weight-2-62", "the engine can't compile the graph"),
        ("weight-2-96", "overflows"),
        ("weight-negative", "Negative dimension"),
        ("weight-short", "does not match shape"),
        ("weight-outside", "expected the name of a file beside the model"),
        ("operator-unknown", "Evil"),
        ("input-missing", "Could not resolve inputs"),
        ("output-missing", "the engine panicked"),
        ("constantofshape-huge", ""),
        ("tile-huge", "failed to allocate"),
        ("range-huge", "failed to allocate"),
        ("pad-huge", "capacity overflow"),
        ("loop-endless", ""),
        ("nested-3000", "expected an ONNX model"),
    ] {
        let entry = index.iter().find(|entry| entry["name"] == name).unwrap();
        let reason = entry["reason"].as_str().unwrap();
        assert_eq!(entry["state"], "UNAVAILABLE", "{entry}");
        assert!(reason.contains(part), "{name}: expected \"{part}\", found \"{reason}\"");
        let answer = infer(&worker, name, arith_body(1.0, 1.0)).await;
        answer.refused(501, "model_failed", part);
    }
    assert_eq!(get(&worker, "/v2/health/ready").await.status, 200);
    let outputs = infer(&worker, "good", arith_body(1.0, 2.0)).await.outputs();
    assert_eq!(outputs[0], tensor("sum", &[1, 4], vec![3.0; 4]));
    let metrics = get(&worker, "/metrics").await.text();
    let failed = metrics.lines().filter(|line| {
        line.starts_with("forebay_worker_model_loads_total") && line.contains("\"failed\"")
    });
    assert_eq!(failed.count(), 19, "each is counted");
}

#[tokio::test]
async fn a_load_that_does_not_end_is_given_up_and_the_others_are_served() {
    let scratch = Scratch::new("endless-load");
    scratch.write("a/1/model.onnx", Scratch::model("slow"));
    // Its warm-up takes seconds.
    scratch.write("a/model.toml", "[[input]]\nname = \"x\"\nwarm_up = [1024]\n");
    scratch.write("good/1/model.onnx", Scratch::model("arith"));
    let load_timeout = Duration::from_millis(300);
    let worker = start(Options { load_timeout, ..options(scratch.path().to_owned()) }).await;
    let answer = get(&worker, "/v2/models/a/ready").await;
    answer.refused(501, "model_failed", "did not end within 300ms and was given up");
    assert_eq!(infer(&worker, "good", arith_body(1.0, 1.0)).await.status, 200);
}

#[tokio::test]
async fn a_file_with_a_second_name_or_beyond_the_limit_is_refused() {
    let outside = Scratch::new("second-name");
    outside.write("model.onnx", Scratch::model("arith"));
    let scratch = Scratch::new("hard-links");
    for folder in ["hard/1", "pipe/1"] {
        std::fs::create_dir_all(scratch.path().join(folder)).unwrap();
    }
    let hard = scratch.path().join("hard/1/model.onnx");
    std::fs::hard_link(outside.path().join("model.onnx"), hard).unwrap();
    let pipe = scratch.path().join("pipe/1/model.onnx");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    scratch.write("large/1/model.onnx", vec![0; 4096]);
    scratch.write("good/1/model.onnx", Scratch::model("arith"));
    let worker = start(Options { max_model: 2048, ..options(scratch.path().to_owned()) }).await;
    for (name, part) in [
        ("hard", "expected a file with one name, found 2 hard links"),
        ("pipe", "expected a plain file, found something else"),
        ("large", "expected at most 2048 bytes, found 4096"),
    ] {
        let answer = infer(&worker, name, arith_body(1.0, 1.0)).await;
        answer.refused(501, "model_failed", part);
    }
    assert_eq!(infer(&worker, "good", arith_body(1.0, 1.0)).await.status, 200);
}

#[tokio::test]
async fn names_that_lead_elsewhere_load_nothing() {
    let scratch = Scratch::new("traversal");
    scratch.write("inside/good/1/model.onnx", Scratch::model("arith"));
    scratch.write("outside/1/model.onnx", Scratch::model("arith"));
    let models = scratch.path().join("inside");
    let worker = start(Options { models_control: true, ..options(models) }).await;
    for name in [
        "..%2Foutside",
        "%2E%2E%2Foutside",
        "..%252Foutside",
        "good%2F..%2F..%2Foutside",
        "%2Fetc",
        "good%00",
        ".",
    ] {
        let answer = post(&worker, &format!("/v2/repository/models/{name}/load"), "").await;
        assert!(answer.status == 404 || answer.status == 400, "{name}: {}", answer.text());
        let answer = infer(&worker, name, arith_body(1.0, 1.0)).await;
        assert!(answer.status == 404 || answer.status == 400, "{name}: {}", answer.text());
    }
    for version in ["..", "%2E%2E", "1%2F..", "01", "+1", "1%00"] {
        let path = format!("/v2/models/good/versions/{version}/infer");
        let answer = post(&worker, &path, arith_body(1.0, 1.0)).await;
        assert!(answer.status == 404 || answer.status == 400, "{version}: {}", answer.text());
    }
    let index = post(&worker, "/v2/repository/index", "").await.json();
    assert_eq!(index.as_array().unwrap().len(), 1, "{index}");
}
