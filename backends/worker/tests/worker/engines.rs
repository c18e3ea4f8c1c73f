//! Another engine beside the worker's own: all that it takes is in this file.

use crate::harness::{Scratch, eventually, get, infer, json_body, options, post, start, tensor};
use forebay_engine::{
    Curve, Device, Engine, Engines, Form, LoadError, LoadOptions, Model, ModelFile, Profile,
    RunError, Watch,
};
use forebay_protocol::oip::{Datatype, Tensor, TensorMetadata};
use forebay_worker::{Options, Worker};
use std::sync::Arc;
use std::time::Duration;

/// Reads a file with the number of columns; its models give back what they are given.
#[derive(Debug)]
struct Identity;

impl Engine for Identity {
    fn name(&self) -> &'static str {
        "identity"
    }

    fn platform(&self) -> &'static str {
        "columns"
    }

    fn files(&self) -> &'static [&'static str] {
        &["model.columns"]
    }

    fn device(&self) -> Device {
        Device::Gpu
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        vec![("adapter", "none".to_owned())]
    }

    fn load(
        &self,
        file: ModelFile<'_>,
        options: &LoadOptions,
        watch: &dyn Watch,
    ) -> Result<Arc<dyn Model>, LoadError> {
        let text = String::from_utf8_lossy(file.bytes);
        if text == "for ever" {
            while !watch.stop() {
                std::thread::yield_now();
            }
            return Err(LoadError::Cancelled);
        }
        let columns: i64 = text.trim().parse().map_err(|_| {
            LoadError::Refused(format!("expected a number of columns, found \"{}\"", text.trim()))
        })?;
        let (shape, curve) = (vec![-1, columns], Curve::default());
        curve.learn(1, 1e-6);
        curve.learn(2, 1.1e-6);
        curve.settle();
        let max_batch = options.max_batch;
        let tensor = TensorMetadata { name: "x".to_owned(), datatype: Datatype::Fp32, shape };
        Ok(Arc::new(Columns { tensor: [tensor], max_batch, curve }))
    }
}

#[derive(Debug)]
struct Columns {
    tensor: [TensorMetadata; 1],
    max_batch: usize,
    curve: Curve,
}

impl Model for Columns {
    fn inputs(&self) -> &[TensorMetadata] {
        &self.tensor
    }

    fn outputs(&self) -> &[TensorMetadata] {
        &self.tensor
    }

    fn max_batch(&self) -> Option<usize> {
        Some(self.max_batch)
    }

    fn form(&self, inputs: &[Tensor]) -> Result<(usize, Form), RunError> {
        match inputs {
            [x] => Ok((x.shape[0], Form::new(vec![x.shape[1..].to_vec()], true))),
            _ => Err(RunError::Input("expected one input".to_owned())),
        }
    }

    fn run(
        &self,
        requests: &[&[Tensor]],
        _: usize,
        watch: &dyn Watch,
    ) -> Result<Vec<Vec<Tensor>>, RunError> {
        if watch.stop() {
            return Err(RunError::Cancelled);
        }
        Ok(requests.iter().map(|inputs| inputs.to_vec()).collect())
    }

    fn curve(&self) -> &Curve {
        &self.curve
    }

    fn grain(&self) -> Duration {
        Duration::ZERO
    }

    fn memory(&self) -> usize {
        1234
    }

    fn build(&self) -> &'static str {
        "as it is"
    }

    fn profile(&self) -> Profile {
        Profile(String::new())
    }
}

/// A worker with both engines.
async fn serve(scratch: &Scratch) -> Worker {
    start(both(scratch)).await
}

fn both(scratch: &Scratch) -> Options {
    let engines: [Arc<dyn Engine>; 2] = [Arc::new(forebay_tract::Tract), Arc::new(Identity)];
    let engines = Engines::new(engines);
    let options = options(scratch.path().into());
    Options { engines, models_control: true, ..options }
}

#[tokio::test]
async fn a_second_engine_is_chosen_by_its_file_and_served_like_the_first() {
    let scratch = Scratch::new("engines");
    scratch.write("echo/1/model.columns", "3");
    scratch.write("arith/1/model.onnx", Scratch::model("arith"));
    let worker = serve(&scratch).await;
    let input = tensor("x", &[2, 3], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let answer = infer(&worker, "echo", json_body(vec![input.clone()])).await;
    assert_eq!(answer.outputs(), [input]);
    let wrong = tensor("x", &[1, 2], vec![1.0, 2.0]);
    let refused = infer(&worker, "echo", json_body(vec![wrong])).await;
    refused.refused(400, "invalid_input", "expected shape [-1, 3], found [1, 2]");
    for (model, platform, engine, kind, memory) in [
        ("echo", "columns", "identity", "KIND_GPU", "GPU"),
        ("arith", "onnx", "tract", "KIND_CPU", "CPU"),
    ] {
        let metadata = get(&worker, &format!("/v2/models/{model}")).await.json();
        assert_eq!(
            (&metadata["platform"], &metadata["properties"]["engine"]),
            (&platform.into(), &engine.into())
        );
        let config = get(&worker, &format!("/v2/models/{model}/config")).await.json();
        assert_eq!((&config["platform"], &config["backend"]), (&platform.into(), &engine.into()));
        assert_eq!(config["instance_group"][0]["kind"], kind);
        let stats = get(&worker, &format!("/v2/models/{model}/stats")).await.json();
        assert_eq!(stats["model_stats"][0]["memory_usage"][0]["type"], memory);
    }
    let stats = get(&worker, "/v2/models/echo/stats").await.json();
    assert_eq!(stats["model_stats"][0]["inference_count"], 2);
    let metrics = get(&worker, "/metrics").await.text();
    for line in [
        r#"forebay_worker_model_memory_bytes{model="echo",version="1"} 1234"#,
        r#"forebay_worker_inferences_total{model="echo",version="1",reason="ok"} 1"#,
        r#",adapter="none"} 1"#,
    ] {
        assert!(metrics.contains(line), "expected {line} in {metrics}");
    }
}

#[tokio::test]
async fn model_toml_names_the_engine_where_files_of_several_lie() {
    let scratch = Scratch::new("engine-named");
    for model in ["both", "named", "lacking", "unknown", "empty", "build"] {
        scratch.write(&format!("{model}/1/model.onnx"), Scratch::model("arith"));
    }
    scratch.write("both/1/model.columns", "3");
    scratch.write("named/1/model.columns", "3");
    for model in ["named", "lacking"] {
        scratch.write(&format!("{model}/model.toml"), "engine = \"identity\"");
    }
    scratch.write("unknown/model.toml", "engine = \"cuda\"");
    scratch.write("build/model.toml", "engine = \"identity\"\nbuild = \"own\"");
    std::fs::remove_file(scratch.path().join("empty/1/model.onnx")).unwrap();
    let worker = serve(&scratch).await;
    let engine = async |model| {
        let metadata = get(&worker, &format!("/v2/models/{model}")).await.json();
        metadata["properties"]["engine"].as_str().map(str::to_owned)
    };
    assert_eq!(engine("both").await.as_deref(), Some("tract"), "the first of the worker's list");
    assert_eq!(engine("named").await.as_deref(), Some("identity"));
    for (model, part) in [
        ("lacking", "lacking/1/model.columns: No such file"),
        ("empty", "empty/1/model.onnx or model.columns: No such file"),
        ("unknown", "expected \"tract\" or \"identity\" or \"auto\", found \"cuda\""),
        ("build", "expected no build: there is no choice, found \"own\""),
    ] {
        infer(&worker, model, "{}").await.refused(501, "model_failed", part);
    }
    // The same files in another engine's hands.
    scratch.write("named/model.toml", "engine = \"tract\"");
    let load = async |model| {
        let answer = post(&worker, &format!("/v2/repository/models/{model}/load"), "").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    };
    load("named").await;
    assert_eq!(engine("named").await.as_deref(), Some("tract"));
    std::fs::remove_file(scratch.path().join("both/1/model.onnx")).unwrap();
    load("both").await;
    assert_eq!(engine("both").await.as_deref(), Some("identity"), "what is left of its files");
}

#[tokio::test]
async fn loads_that_are_given_up_end_and_leave_their_threads_to_others() {
    let scratch = Scratch::new("engine-given-up");
    // More than may be given up and still run.
    for model in ["a", "b", "c", "d"] {
        scratch.write(&format!("{model}/1/model.columns"), "for ever");
    }
    let options = Options { load_timeout: Duration::from_millis(50), ..both(&scratch) };
    let worker = start(options).await;
    for model in ["a", "b", "c", "d"] {
        // One that came before others had ended is tried again.
        eventually("it is given up", || async {
            let error = infer(&worker, model, "{}").await.error();
            error.contains("loading it did not end within 50ms and was given up")
        })
        .await;
    }
}
