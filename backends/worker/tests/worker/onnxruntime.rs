//! ONNX Runtime beside tract. Tests with its library pass without one: `tests/onnx/run.sh` installs it.

use crate::harness::*;
use forebay_engine::{Engine, Engines};
use forebay_onnxruntime::{Library, OnnxRuntime};
use forebay_worker::{Options, Worker};
use http::header::RETRY_AFTER;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn library() -> Option<Library> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from);
    let packages = std::fs::read_dir(target.join("onnx/lib")).into_iter().flatten().flatten();
    let folders = packages.map(|p| p.path().join("site-packages/onnxruntime/capi"));
    let named = std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from);
    named.into_iter().chain(folders).find_map(|path| Library::find(&path).ok())
}

fn with(library: Library, scratch: &Scratch) -> Options {
    let engines: [Arc<dyn Engine>; 2] =
        [Arc::new(forebay_tract::Tract), Arc::new(OnnxRuntime::new(library))];
    let engines = Engines::new(engines);
    Options { engines, models_control: true, ..options(scratch.path().to_owned()) }
}

/// A quantised model, which tract does not take, and one that both run; each for two values of `engine`.
fn repository(name: &str) -> Scratch {
    let quantized = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/quantized/1/model.onnx");
    let scratch = Scratch::new(name);
    let quantized = std::fs::read(quantized).unwrap();
    for (model, toml) in
        [("auto", "engine = \"auto\""), ("none", ""), ("tract", "engine = \"tract\"")]
    {
        scratch.write(&format!("{model}/1/model.onnx"), quantized.clone());
        scratch.write(&format!("{model}/model.toml"), toml);
    }
    for (model, toml) in [("arith", ""), ("named", "engine = \"onnxruntime\"")] {
        scratch.write(&format!("{model}/1/model.onnx"), Scratch::model("arith"));
        scratch.write(&format!("{model}/model.toml"), toml);
    }
    scratch
}

async fn engine(worker: &Worker, model: &str) -> Option<String> {
    let metadata = get(worker, &format!("/v2/models/{model}")).await.json();
    metadata["properties"]["engine"].as_str().map(str::to_owned)
}

#[tokio::test]
async fn a_model_that_no_engine_here_runs_names_the_one_that_would_and_is_not_to_be_tried_again() {
    let scratch = repository("onnxruntime-off");
    let worker = start(with(Library::Off, &scratch)).await;
    for model in ["auto", "none"] {
        let answer = infer(&worker, model, "{}").await;
        answer.refused(501, "model_failed", "another engine may run it: --onnxruntime auto");
        answer.refused(501, "model_failed", "may give wrong results here");
        assert!(answer.headers.get(RETRY_AFTER).is_none(), "it will fail again");
    }
    let answer = infer(&worker, "tract", "{}").await;
    assert!(!answer.error().contains("--onnxruntime"), "another engine is not wanted");
    let answer = infer(&worker, "named", "{}").await;
    answer.refused(501, "model_failed", "--onnxruntime auto");
    assert_eq!(engine(&worker, "arith").await.as_deref(), Some("tract"));
}

#[tokio::test]
async fn a_model_runs_in_the_first_engine_that_runs_it_right() {
    let Some(library) = library() else { return eprintln!("skipped: no library of ONNX Runtime") };
    let scratch = repository("onnxruntime-on");
    // Recorded answers that tract does not give, as it folds this graph.
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/quantized/examples");
    let read = |file: &str| std::fs::read(folder.join(file)).unwrap();
    scratch.write("recorded/1/model.onnx", read("../1/model.onnx"));
    scratch.write("recorded/model.toml", "allow_quantized = true\ntolerance = 0.005\n");
    for file in ["softmax.json", "softmax.expected.json"] {
        scratch.write(&format!("recorded/examples/{file}"), read(file));
    }
    let worker = start(with(library, &scratch)).await;
    let expected: serde_json::Value =
        serde_json::from_slice(&read("softmax.expected.json")).unwrap();
    for model in ["auto", "none"] {
        assert_eq!(engine(&worker, model).await.as_deref(), Some("onnxruntime"), "{model}");
        let found = infer(&worker, model, read("softmax.json")).await.json();
        let pairs = |json: &serde_json::Value| -> Vec<f64> {
            let data = json["outputs"][0]["data"].as_array().unwrap();
            data.iter().map(|value| value.as_f64().unwrap()).collect()
        };
        let off = pairs(&found).into_iter().zip(pairs(&expected)).map(|(a, b)| (a - b).abs());
        assert!(off.fold(0.0, f64::max) < 0.005, "{found}");
    }
    infer(&worker, "tract", "{}").await.refused(501, "model_failed", "may give wrong results here");
    assert_eq!(engine(&worker, "arith").await.as_deref(), Some("tract"));
    assert_eq!(engine(&worker, "named").await.as_deref(), Some("onnxruntime"));
    assert!(engine(&worker, "recorded").await.is_some(), "one of them gives the answers");
    let arith = infer(&worker, "arith", arith_body(1.0, 2.0)).await.outputs();
    assert_eq!(infer(&worker, "named", arith_body(1.0, 2.0)).await.outputs(), arith);
    // The file is the served one: nothing is loaded again.
    let load = post(&worker, "/v2/repository/models/none/load", "").await;
    assert_eq!(load.status, 200, "{}", load.text());
    assert_eq!(engine(&worker, "none").await.as_deref(), Some("onnxruntime"));
}
