//! Models in ONNX Runtime. The tests need its library, and pass without one: `tests/onnx/run.sh` installs it, and
//! `ORT_DYLIB_PATH` names another.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use forebay_engine::{
    Batching, Engine, LoadError, LoadOptions, Model, ModelFile, Remote, RunError, Watch,
};
use forebay_onnxruntime::{Library, OnnxRuntime};
use forebay_protocol::oip::{Data, Tensor};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_owned()
}

/// The engine, where there is a library.
fn engine() -> Option<OnnxRuntime> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root().join("target"), PathBuf::from);
    let packages = std::fs::read_dir(target.join("onnx/lib")).into_iter().flatten().flatten();
    let folders = packages.map(|p| p.path().join("site-packages/onnxruntime/capi"));
    let named = std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from);
    let library = named.into_iter().chain(folders).find_map(|path| Library::find(&path).ok());
    if library.is_none() {
        eprintln!("skipped: no library of ONNX Runtime");
    }
    library.map(OnnxRuntime::new)
}

fn load(
    engine: &OnnxRuntime,
    model: &str,
    options: &LoadOptions,
) -> Result<Arc<dyn Model>, LoadError> {
    let path = root().join("backends/worker/tests/models").join(model).join("1/model.onnx");
    let bytes = std::fs::read(path).unwrap();
    engine.load(ModelFile { name: "model.onnx", bytes: &bytes }, options, &|| false)
}

fn floats(name: &str, shape: &[usize], values: Vec<f32>) -> Tensor {
    Tensor::new(name, shape.to_vec(), Data::Fp32(values.into())).unwrap()
}

fn batched() -> LoadOptions {
    LoadOptions { max_batch: 8, ..LoadOptions::default() }
}

#[test]
fn requests_are_joined_and_each_gets_its_own_rows() {
    let Some(engine) = engine() else { return };
    let model = load(&engine, "arith", &batched()).unwrap();
    assert_eq!(model.max_batch(), Some(8), "{:?}", model.unbatched());
    let names: Vec<_> = model.inputs().iter().map(|input| input.name.clone()).collect();
    let request = |rows: usize, value: f32| -> Vec<Tensor> {
        names.iter().map(|name| floats(name, &[rows, 4], vec![value; rows * 4])).collect()
    };
    let (a, b) = (request(2, 1.0), request(3, 5.0));
    for most in [1, 2, 8] {
        let outputs = model.run(&[&a, &b], most, &|| false).unwrap();
        let sum = |request: usize| outputs[request].iter().find(|o| o.name == "sum").unwrap();
        assert_eq!(sum(0), &floats("sum", &[2, 4], vec![2.0; 8]));
        assert_eq!(sum(1), &floats("sum", &[3, 4], vec![10.0; 12]));
    }
    let wrong = model.run(&[&a[..1]], 1, &|| false).unwrap_err();
    assert!(matches!(wrong, RunError::Input(_)), "{wrong:?}");
}

/// Addresses of a tensor's elements.
fn place(tensor: &Tensor) -> std::ops::Range<usize> {
    let Data::Fp32(data) = &tensor.data else { panic!("{:?}", tensor.data.datatype()) };
    let range = data.as_ptr_range();
    range.start.addr()..range.end.addr()
}

#[test]
fn outputs_that_are_the_input_outlive_it() {
    let Some(engine) = engine() else { return };
    for batching in [Batching::Off, Batching::Trusted] {
        let model = load(&engine, "same", &LoadOptions { batching, ..batched() }).unwrap();
        assert_eq!(model.max_batch().is_some(), batching == Batching::Trusted);
        for requests in [1, 3] {
            let inputs: Vec<_> =
                [1.0, 2.0, 3.0].map(|value| [floats("x", &[1, 2048], vec![value; 2048])]).into();
            let lent: Vec<_> = inputs.iter().map(|input| place(&input[0])).collect();
            let all: Vec<&[Tensor]> = inputs.iter().take(requests).map(|i| &i[..]).collect();
            let answers = model.run(&all, 8, &|| false).unwrap();
            drop(inputs);
            // Whatever was lent is now the memory of others.
            let others: Vec<_> = (0..64).map(|of| vec![-1.0_f32; 1024 << (of % 4)]).collect();
            assert_eq!(answers.len(), requests);
            for (outputs, value) in answers.iter().zip([1.0, 2.0, 3.0]) {
                assert_eq!(outputs.len(), 6);
                for output in outputs {
                    let (own, name) = (place(output), &output.name);
                    let overlaps =
                        |of: &&std::ops::Range<usize>| own.start < of.end && of.start < own.end;
                    assert_eq!(lent.iter().find(overlaps), None, "{name}");
                    let value = if name == "y" { 2.0 * value } else { value };
                    let expected = floats(name, &output.shape, vec![value; own.len() / 4]);
                    assert_eq!(output, &expected);
                }
            }
            drop(others);
        }
    }
}

#[test]
fn what_one_load_found_out_is_not_found_out_again() {
    let Some(engine) = engine() else { return };
    let first = load(&engine, "lstm", &batched()).unwrap();
    let again = LoadOptions { profile: Some(first.profile()), ..batched() };
    let second = load(&engine, "lstm", &again).unwrap();
    assert_eq!(second.profile(), first.profile());
    assert_eq!(second.max_batch(), first.max_batch());
    assert!(second.memory() > 0);
}

/// Wanted for a number of questions, from whichever thread they come.
struct Until(Arc<AtomicUsize>, usize);

impl Watch for Until {
    fn stop(&self) -> bool {
        false
    }

    fn remote(&self) -> Option<Remote> {
        let (asked, most) = (Arc::clone(&self.0), self.1);
        Some(Arc::new(move || asked.fetch_add(1, SeqCst) >= most))
    }
}

#[test]
fn a_run_that_is_not_wanted_any_more_ends() {
    let Some(engine) = engine() else { return };
    let model = load(&engine, "slow", &LoadOptions::default()).unwrap();
    let input = &model.inputs()[0];
    let inputs = [floats(&input.name, &[4096], vec![0.5; 4096])];
    let asked = Arc::new(AtomicUsize::new(0));
    let stopped = model.run(&[&inputs], 1, &Until(Arc::clone(&asked), 3)).unwrap_err();
    assert_eq!(stopped, RunError::Cancelled);
    assert!(asked.load(SeqCst) >= 4);
    let stopped = model.run(&[&inputs], 1, &|| true).unwrap_err();
    assert_eq!(stopped, RunError::Cancelled, "before it begins");
}

#[test]
fn all_threads_run_a_model_at_once() {
    let Some(engine) = engine() else { return };
    let model = load(&engine, "arith", &batched()).unwrap();
    let names: Vec<_> = model.inputs().iter().map(|input| input.name.clone()).collect();
    std::thread::scope(|scope| {
        for thread in 0..4_u8 {
            let (model, names) = (&model, &names);
            scope.spawn(move || {
                let value = f32::from(thread);
                let inputs: Vec<_> =
                    names.iter().map(|name| floats(name, &[1, 4], vec![value; 4])).collect();
                for _ in 0..500 {
                    let outputs = model.run(&[&inputs], 8, &|| false).unwrap();
                    let sum = outputs[0].iter().find(|output| output.name == "sum").unwrap();
                    assert_eq!(sum, &floats("sum", &[1, 4], vec![value * 2.0; 4]));
                }
            });
        }
    });
}

#[test]
fn files_that_it_can_not_run_are_refused_in_its_words() {
    let Some(engine) = engine() else { return };
    let load = |bytes: &[u8]| {
        let file = ModelFile { name: "model.onnx", bytes };
        engine.load(file, &LoadOptions::default(), &|| false).unwrap_err()
    };
    assert!(matches!(load(b"no model"), LoadError::Refused(_)));
    // A model without a graph.
    assert!(matches!(load(&[8, 8]), LoadError::Unsupported(_)));
}
