//! The child that loads a model for the first time: how it is found.

use crate::harness::*;
use crate::process::{command_of, signal, spawned};
use http::Method;

const PROGRAM: &str = env!("CARGO_BIN_EXE_forebay-worker");

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
