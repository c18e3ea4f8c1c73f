//! Model repositories with something wrong in them: the rest is served, and the wrong is named.

use crate::harness::*;
use crate::process::{command_of, spawned, status_bytes};
use http::Method;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

#[tokio::test]
async fn broken_models_are_named_and_the_others_are_served() {
    let scratch = Scratch::new("broken");
    let whole = Scratch::model("arith");
    scratch.write("good/1/model.onnx", &whole);
    scratch.write("truncated/1/model.onnx", &whole[..whole.len() - 20]);
    scratch.write("text/1/model.onnx", "this is no model");
    scratch.write("empty/1/model.onnx", "");
    scratch.write("hollow/1/readme.txt", "no model here");
    scratch.write("versionless/notes.txt", "no version here");
    scratch.write("badtoml/1/model.onnx", &whole);
    scratch.write("badtoml/model.toml", "max_batches = 5\n");
    scratch.write("badshape/1/model.onnx", &whole);
    scratch.write("badshape/model.toml", "[[input]]\nname = \"a\"\nshape = [-1, 5]\n");
    scratch.write("stray.txt", "not a directory");
    scratch.write("bad name/1/model.onnx", &whole);
    let worker = start(options(scratch.path().to_owned())).await;

    assert_eq!(get(&worker, "/v2/health/ready").await.status, 200, "one model is ready");
    let outputs = infer(&worker, "good", arith_body(1.0, 2.0)).await.outputs();
    assert_eq!(outputs[0], tensor("sum", &[1, 4], vec![3.0; 4]));
    let index = post(&worker, "/v2/repository/index", "").await.json();
    let index = index.as_array().unwrap();
    assert_eq!(index.len(), 8, "{index:?}");
    for (name, part) in [
        ("truncated", "cut short"),
        ("text", "expected an ONNX model"),
        ("empty", "expected an ONNX model"),
        ("hollow", "hollow/1/model.onnx"),
        ("versionless", "expected a directory such as 1/"),
        ("badtoml", "max_batches: unknown key, did you mean"),
        ("badshape", "expected a shape within [-1, 4], found [-1, 5]"),
    ] {
        let entry = index.iter().find(|entry| entry["name"] == name).unwrap();
        assert_eq!(entry["state"], "UNAVAILABLE", "{entry}");
        let reason = entry["reason"].as_str().unwrap();
        assert!(reason.contains(part), "{name}: expected \"{part}\", found \"{reason}\"");
        for path in ["", "/ready", "/config"] {
            let answer = get(&worker, &format!("/v2/models/{name}{path}")).await;
            answer.refused(501, "model_failed", part);
        }
        infer(&worker, name, "{}").await.refused(501, "model_failed", part);
    }
    let metrics = get(&worker, "/metrics").await.text();
    assert!(metrics.contains(r#"forebay_worker_model_ready{model="truncated",version="1"} 0"#));
}

#[tokio::test]
async fn links_that_lead_out_of_the_repository_are_refused() {
    let outside = Scratch::new("outside");
    outside.write("secret/1/model.onnx", Scratch::model("arith"));
    outside.write("model.toml", "description = \"secret\"\n");
    let scratch = Scratch::new("links");
    scratch.write("inner/1/model.onnx", Scratch::model("arith"));
    symlink(scratch.path().join("inner"), scratch.path().join("alias")).unwrap();
    symlink(outside.path().join("secret"), scratch.path().join("model-link")).unwrap();
    std::fs::create_dir(scratch.path().join("version-link")).unwrap();
    symlink(outside.path().join("secret/1"), scratch.path().join("version-link/1")).unwrap();
    scratch.write("file-link/1/readme.txt", "");
    let target = outside.path().join("secret/1/model.onnx");
    symlink(target, scratch.path().join("file-link/1/model.onnx")).unwrap();
    scratch.write("toml-link/1/model.onnx", Scratch::model("arith"));
    symlink(outside.path().join("model.toml"), scratch.path().join("toml-link/model.toml"))
        .unwrap();
    let worker = start(options(scratch.path().to_owned())).await;
    for name in ["model-link", "version-link", "file-link", "toml-link"] {
        let answer = infer(&worker, name, arith_body(1.0, 1.0)).await;
        answer.refused(501, "model_failed", "leads out of the repository");
    }
    for name in ["inner", "alias"] {
        assert_eq!(infer(&worker, name, arith_body(1.0, 1.0)).await.status, 200, "{name}");
    }
}

#[tokio::test]
async fn versions_are_served_by_policy() {
    let scratch = Scratch::new("versions");
    for model in ["latest", "all", "only", "gone"] {
        for version in ["1", "2", "10", "03", "x"] {
            scratch.write(&format!("{model}/{version}/model.onnx"), Scratch::model("arith"));
        }
    }
    scratch.write("all/model.toml", "versions = \"all\"\n");
    scratch.write("only/model.toml", "versions = [1, 2]\n");
    scratch.write("gone/model.toml", "versions = [1, 7]\n");
    let worker = start(options(scratch.path().to_owned())).await;
    for (model, expected) in
        [("latest", &["10"][..]), ("all", &["1", "2", "10"]), ("only", &["1", "2"])]
    {
        let metadata = get(&worker, &format!("/v2/models/{model}")).await.json();
        assert_eq!(metadata["versions"], serde_json::json!(expected), "{model}");
        let answer = infer(&worker, model, arith_body(1.0, 1.0)).await.json();
        assert_eq!(answer["model_version"], *expected.last().unwrap(), "the newest by default");
    }
    let gone = get(&worker, "/v2/models/gone/ready").await;
    gone.refused(501, "model_failed", "expected version 7, found only [1, 2, 10]");
}

#[tokio::test]
async fn a_worker_without_a_usable_model_is_live_and_not_ready() {
    let scratch = Scratch::new("none");
    let worker = start(options(scratch.path().to_owned())).await;
    assert_eq!(get(&worker, "/v2/health/live").await.status, 200);
    get(&worker, "/v2/health/ready").await.refused(503, "model_not_ready", "no model");
    scratch.write("text/1/model.onnx", "this is no model");
    let worker = start(options(scratch.path().to_owned())).await;
    get(&worker, "/v2/health/ready").await.refused(503, "model_not_ready", "could be loaded");
}

/// A file of 8 GiB that takes no room on the disk.
fn endless(scratch: &Scratch, path: &str) {
    scratch.write(path, "");
    let file = std::fs::File::options().write(true).open(scratch.path().join(path)).unwrap();
    file.set_len(8 << 30).unwrap();
}

#[tokio::test]
async fn what_is_too_long_or_no_file_is_refused_before_it_is_read() {
    let scratch = Scratch::new("oversized");
    let model = Scratch::model("arith");
    for name in ["good", "toml", "labels", "tokenizer", "request", "expected"] {
        scratch.write(&format!("{name}/1/model.onnx"), &model);
    }
    endless(&scratch, "model/1/model.onnx");
    endless(&scratch, "toml/model.toml");
    endless(&scratch, "labels/labels.txt");
    let labels = "[[output]]\nname = \"sum\"\nlabel_file = \"labels.txt\"\n";
    scratch.write("labels/model.toml", labels);
    endless(&scratch, "tokenizer/tokenizer.json");
    scratch.write("tokenizer/model.toml", "[embedding]\n");
    endless(&scratch, "request/examples/one.json");
    scratch.write("request/examples/one.expected.json", "{}");
    scratch.write("expected/examples/one.json", "{}");
    endless(&scratch, "expected/examples/one.expected.json");
    for (name, file) in [("pipe", "pipe/1/model.onnx"), ("pipe-toml", "pipe-toml/model.toml")] {
        scratch.write(&format!("{name}/1/readme.txt"), "");
        let made = Command::new("mkfifo").arg(scratch.path().join(file)).status().unwrap();
        assert!(made.success());
    }
    scratch.write("folder/1/model.onnx/readme.txt", "");
    scratch.write("device/1/readme.txt", "");
    symlink("/dev/zero", scratch.path().join("device/1/model.onnx")).unwrap();
    let mut command = command_of(Path::new(env!("CARGO_BIN_EXE_forebay-worker")));
    command.arg("--models").arg(scratch.path());
    let (child, address) = spawned(command).await;
    let index = send(address, request(Method::POST, "/v2/repository/index", "")).await.json();
    let no_file = "expected a plain file, found something else";
    for (name, part) in [
        ("model", "expected at most 2147483648 bytes, found 8589934592"),
        ("toml", "model.toml: expected at most 1048576 bytes, found 8589934592"),
        ("labels", "labels.txt: expected at most 16777216 bytes, found 8589934592"),
        ("tokenizer", "tokenizer.json: expected at most 67108864 bytes, found 8589934592"),
        ("request", "one.json: expected at most 16777216 bytes, found 8589934592"),
        ("expected", "one.expected.json: expected at most 16777216 bytes, found 8589934592"),
        ("pipe", no_file),
        ("pipe-toml", no_file),
        ("folder", no_file),
        ("device", "leads out of the repository"),
    ] {
        let entry = index.as_array().unwrap().iter().find(|entry| entry["name"] == name).unwrap();
        assert_eq!(entry["state"], "UNAVAILABLE", "{entry}");
        let reason = entry["reason"].as_str().unwrap();
        assert!(reason.contains(part), "{name}: expected \"{part}\", found \"{reason}\"");
    }
    let sent = request(Method::POST, "/v2/models/good/infer", arith_body(1.0, 2.0));
    assert_eq!(send(address, sent).await.status, 200);
    let most = status_bytes(&child, "VmHWM:");
    assert!(most < 300 << 20, "{most}");
}

#[tokio::test]
async fn a_configuration_of_triton_is_read_where_there_is_no_model_toml() {
    let scratch = Scratch::new("triton");
    for name in ["read", "own", "ensemble"] {
        for version in [1, 2] {
            scratch.write(&format!("{name}/{version}/model.onnx"), Scratch::model("arith"));
        }
        let scheduling = if name == "ensemble" { "ensemble_scheduling { }" } else { "" };
        let text = format!(
            "max_batch_size: 4 version_policy {{ all {{ }} }} instance_group [ {{ count: 2 }} ] \
             input [ {{ name: \"a\" data_type: TYPE_FP32 dims: [ 4 ] }} ] {scheduling}"
        );
        scratch.write(&format!("{name}/config.pbtxt"), text);
    }
    scratch.write("own/model.toml", "max_batch = 2");
    let worker = start(options(scratch.path().to_owned())).await;
    let metadata = async |name| get(&worker, &format!("/v2/models/{name}")).await.json();
    assert_eq!(metadata("read").await["versions"], serde_json::json!(["1", "2"]));
    assert_eq!(metadata("own").await["versions"], serde_json::json!(["2"]));
    let config = get(&worker, "/v2/models/read/config").await.json();
    assert_eq!(config["max_batch_size"], 4, "{config}");
    let answer = infer(&worker, "ensemble", arith_body(1.0, 1.0)).await;
    answer.refused(501, "model_failed", "config.pbtxt: ensemble_scheduling: ensembles are not");
}
