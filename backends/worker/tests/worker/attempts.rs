//! The child that loads a model for the first time: how it is found, bounded, and tried again.

use crate::harness::*;
use crate::live::{controlled, load, metric, serving, state};
use crate::process::{command_of, signal, spawned};
use forebay_engine::LoadOptions;
use forebay_worker::{Options, Phase, Worker};
use http::Method;
use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

const PROGRAM: &str = env!("CARGO_BIN_EXE_forebay-worker");

/// A program for the children that is there or not.
struct Program(std::path::PathBuf);

impl Program {
    fn in_folder(folder: &Path) -> Self {
        let program = Self(folder.join("program"));
        program.appear();
        program
    }

    fn appear(&self) {
        std::os::unix::fs::symlink(PROGRAM, &self.0).unwrap();
    }

    fn go(&self) {
        std::fs::remove_file(&self.0).unwrap();
    }

    fn options(&self, models: &Path) -> Options {
        Options { program: vec![self.0.clone().into_os_string()], ..controlled(models) }
    }
}

#[tokio::test]
async fn what_failed_for_a_reason_that_passes_is_tried_again_by_itself() {
    let (scratch, outside) = (Scratch::new("again"), Scratch::new("again-program"));
    let program = Program::in_folder(outside.path());
    scratch.write("m/1/model.onnx", Scratch::model("arith"));
    let worker = start(program.options(scratch.path())).await;
    assert_eq!(serving(&worker, "m").await, "1");
    program.go();
    scratch.write("m/2/model.onnx", Scratch::model("lookup"));
    let answer = load(&worker, "m").await;
    answer.refused(
        500,
        "load_failed",
        "can't start a process for its first load: No such file or directory",
    );
    assert_eq!(serving(&worker, "m").await, "1", "what served goes on");
    let (second, reason) = state(&worker, "m", "2").await;
    assert_eq!(second, "UNAVAILABLE");
    assert!(reason.contains("it will be tried again"), "{reason}");
    program.appear();
    eventually("it has loaded", || async { state(&worker, "m", "2").await.0 == "READY" }).await;
    assert_eq!(state(&worker, "m", "2").await.1, "");
    eventually("the one before has gone", || async {
        state(&worker, "m", "1").await.0 == "absent"
    })
    .await;
    let loads = |outcome: &str| {
        format!("forebay_worker_model_loads_total{{model=\"m\",outcome=\"{outcome}\"}}")
    };
    assert_eq!(metric(&worker, &loads("ok")).await, 2);
    assert!(metric(&worker, &loads("failed")).await >= 1);
}

#[tokio::test]
async fn a_look_tries_at_once_what_may_have_passed_and_nothing_else() {
    let (scratch, outside) = (Scratch::new("at-once"), Scratch::new("at-once-program"));
    let program = Program::in_folder(outside.path());
    scratch.write("bad/1/model.onnx", "this is no model");
    scratch.write("m/1/model.onnx", Scratch::model("arith"));
    let worker = start(program.options(scratch.path())).await;
    scratch.write("late/1/model.onnx", Scratch::model("arith"));
    program.go();
    // By itself it would wait longer than this test does.
    for _ in 0..7 {
        load(&worker, "late").await.refused(
            500,
            "load_failed",
            "can't start a process for its first load",
        );
    }
    program.appear();
    worker.rescan()();
    eventually("it serves", || async { state(&worker, "late", "1").await.0 == "READY" }).await;
    // The loader does one thing after the other: when this has ended, the look has.
    assert_eq!(load(&worker, "m").await.status, 200);
    let line = r#"forebay_worker_model_loads_total{model="bad",outcome="failed"}"#;
    assert_eq!(metric(&worker, line).await, 1, "its files are the same");
}

#[tokio::test]
async fn models_load_though_the_programs_file_was_replaced() {
    let (scratch, outside) = (Scratch::new("replaced"), Scratch::new("replaced-program"));
    scratch.write("m/1/model.onnx", Scratch::model("arith"));
    let program = outside.path().join("worker");
    std::fs::hard_link(PROGRAM, &program).unwrap();
    let mut worker = command_of(&program);
    worker.arg("--models").arg(scratch.path());
    let (child, address) = spawned(worker).await;
    std::fs::remove_file(&program).unwrap();
    std::fs::write(&program, "another release").unwrap();
    scratch.write("n/1/model.onnx", Scratch::model("arith"));
    signal(&child, "-HUP").await;
    eventually("the new model is ready", || async {
        let answer = send(address, request(Method::GET, "/v2/models/n/ready", "")).await;
        answer.status == 200
    })
    .await;
}

/// The child alone, told what a worker tells it. The warm-up takes minutes.
#[tokio::test]
async fn processor_time_ends_with_a_signal_of_its_own() {
    let warm_up = BTreeMap::from([("x".to_owned(), vec![4096])]);
    let options: LoadOptions = LoadOptions { warm_up, ..LoadOptions::default() };
    let order = serde_json::json!({
        "memory": 4_u64 << 30,
        "seconds": 1,
        "engine": "tract",
        "onnxruntime": "off",
        "file": "model.onnx",
        "options": options,
    });
    let mut child = command_of(Path::new(PROGRAM));
    let mut child = child.arg("--try-model").stdin(std::process::Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(format!("{order}\n").as_bytes()).await.unwrap();
    input.write_all(&Scratch::model("slow")).await.unwrap();
    drop(input);
    let status = tokio::time::timeout(MAX_WAIT, child.wait()).await.expect("it should end");
    let signal = status.unwrap().signal();
    assert_eq!(signal, Some(rustix::process::Signal::XCPU.as_raw()));
}

/// Loads models as the worker does, but never ends on one whose file is this word.
const HANG: &str = "HANG";

fn hanging(scratch: &Scratch, folder: &Scratch) -> Options {
    let file = folder.path().join("input").display().to_string();
    let script = format!(
        "cat > {file}.$$; grep -aq {HANG} {file}.$$ && exec sleep 1000; exec {PROGRAM} \"$@\" < {file}.$$"
    );
    let program = ["/bin/sh", "-c", &script, "sh"].map(Into::into).to_vec();
    Options { program, ready_timeout: Duration::from_secs(1), ..controlled(scratch.path()) }
}

async fn unload(worker: &Worker, model: &str) -> Answer {
    post(worker, &format!("/v2/repository/models/{model}/unload"), "{}").await
}

#[tokio::test]
async fn models_that_never_end_to_load_hold_up_neither_others_nor_the_worker() {
    let (scratch, folder) = (Scratch::new("hang"), Scratch::new("hang-input"));
    let hanging_models = ["a", "b", "c"];
    for name in hanging_models {
        scratch.write(&format!("{name}/1/model.onnx"), HANG);
    }
    // After those in the order in which models are loaded.
    scratch.write("m/1/model.onnx", Scratch::model("arith"));
    let worker = Worker::start(hanging(&scratch, &folder)).await.unwrap();
    eventually("the other one serves", || async { state(&worker, "m", "1").await.0 == "READY" })
        .await;
    eventually("the worker is ready", || async {
        get(&worker, "/v2/health/ready").await.status == 200
    })
    .await;
    assert_eq!(serving(&worker, "m").await, "1");
    for name in hanging_models {
        let (loading, reason) = state(&worker, name, "1").await;
        assert_eq!(loading, "LOADING", "{reason}");
        assert!(!reason.is_empty());
        let answer = infer(&worker, name, arith_body(1.0, 1.0)).await;
        answer.refused(503, "model_not_ready", "still loading");
    }
    // The worker reacts to requests at once.
    scratch.write("n/1/model.onnx", Scratch::model("arith"));
    assert_eq!(load(&worker, "n").await.status, 200);
    assert_eq!(serving(&worker, "n").await, "1");
    assert_eq!(unload(&worker, "m").await.status, 200);
    // A request that was answered may still be on its way out.
    eventually("it is unloaded", || async { state(&worker, "m", "1").await.1 == "unloaded" }).await;
    // A load that hangs is given up for one that may not.
    assert_eq!(unload(&worker, "a").await.status, 200);
    assert_eq!(state(&worker, "a", "1").await.1, "unloaded");
    scratch.write("a/1/model.onnx", Scratch::model("arith"));
    assert_eq!(load(&worker, "a").await.status, 200);
    assert_eq!(serving(&worker, "a").await, "1");
    // Neither does the end wait for them.
    let waiting = tokio::spawn({
        let (address, path) = (worker.address(), "/v2/repository/models/b/load");
        async move { try_send(address, request(Method::POST, path, "{}")).await }
    });
    // Until its request has come it can't be answered by an unload: another load would begin.
    eventually("the client is answered", || async {
        assert_eq!(unload(&worker, "b").await.status, 200);
        waiting.is_finished()
    })
    .await;
    assert_eq!(unload(&worker, "c").await.status, 200);
    scratch.write("late/1/model.onnx", HANG);
    worker.rescan()();
    eventually("it loads", || async { state(&worker, "late", "1").await.0 == "LOADING" }).await;
    assert_eq!(unload(&worker, "late").await.status, 200);
    worker.lifecycle().advance(Phase::Draining);
    let ended = tokio::time::timeout(MAX_WAIT, worker.finished()).await;
    assert!(ended.is_ok(), "it should end");
}
