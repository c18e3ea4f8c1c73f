//! The engine on real and on treacherous models.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use forebay_protocol::oip::{Data, InferRequest, InferResponse, Tensor};
use forebay_tract::{Build, LoadError, LoadOptions, Model, RunError};
use std::path::{Path, PathBuf};

/// ONNX Runtime's results and ours differ in the order of sums; the models end in probabilities
/// and in states of the size of 1.
const TOLERANCE: f64 = 1e-4;

fn backends() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn onnx(name: &str) -> Vec<u8> {
    let bundled = backends().join("models").join(name).join("1/model.onnx");
    let fixture = backends().join("worker/tests/models").join(name).join("1/model.onnx");
    std::fs::read(bundled).or_else(|_| std::fs::read(fixture)).unwrap()
}

fn load(name: &str, options: &LoadOptions) -> Model {
    Model::load(&onnx(name), options).unwrap()
}

fn batched() -> LoadOptions {
    LoadOptions { max_batch: 32, ..LoadOptions::default() }
}

fn options_of(name: &str) -> LoadOptions {
    let mut options = batched();
    if name == "ppocr-cls" {
        options.shapes.insert("x".into(), vec![-1, 3, 48, 192]);
    }
    options
}

fn run(model: &Model, inputs: &[Tensor]) -> Vec<Tensor> {
    model.run(&[inputs], 32, &|| false).unwrap().remove(0)
}

fn examples(name: &str) -> Vec<(InferRequest, InferResponse)> {
    let folder = backends().join("models").join(name).join("examples");
    let mut pairs = Vec::new();
    for file in std::fs::read_dir(&folder).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let Some(stem) = name.strip_suffix(".expected.json") else { continue };
        let request = std::fs::read(folder.join(format!("{stem}.json"))).unwrap();
        let response = std::fs::read(&path).unwrap();
        pairs.push((
            InferRequest::parse(&request, None).unwrap(),
            InferResponse::parse(&response, None).unwrap(),
        ));
    }
    assert!(!pairs.is_empty(), "expected examples in {}", folder.display());
    pairs
}

fn assert_close(found: &[Tensor], expected: &[Tensor], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!((&found.name, &found.shape), (&expected.name, &expected.shape), "{what}");
        let difference = found.data.max_difference(&expected.data).unwrap();
        assert!(difference < TOLERANCE, "{what} {}: differs by {difference}", found.name);
    }
}

#[test]
fn bundled_models_give_what_onnx_runtime_gives() {
    for name in ["magika", "silero-vad", "ppocr-cls"] {
        let model = load(name, &options_of(name));
        for (request, response) in examples(name) {
            let what = format!("{name} {:?}", request.id);
            assert_close(&run(&model, &request.inputs), &response.outputs, &what);
        }
    }
}

#[test]
fn rows_of_a_batch_come_out_as_they_do_alone() {
    for name in ["magika", "ppocr-cls"] {
        let model = load(name, &options_of(name));
        assert_eq!(model.max_batch(), Some(32), "{name}");
        let pairs = examples(name);
        // 3 rows: a bucket of two and one of one.
        let rows = [&pairs[0], &pairs[1], &pairs[0]];
        let mut batch = rows[0].0.inputs.clone();
        let mut expected = rows[0].1.outputs.clone();
        for (request, response) in &rows[1..] {
            append(&mut batch, &request.inputs);
            append(&mut expected, &response.outputs);
        }
        assert_close(&run(&model, &batch), &expected, name);
    }
}

fn append(whole: &mut [Tensor], rows: &[Tensor]) {
    for (whole, rows) in whole.iter_mut().zip(rows) {
        assert!(whole.data.append(rows.data.clone()));
        whole.shape[0] += rows.shape[0];
    }
}

#[test]
fn memory_of_a_recurrent_model_does_not_cross_requests() {
    let model = load("lstm", &LoadOptions::default());
    let wave = (0_i16..15).map(|i| f32::from(i).sin()).collect();
    let input = Tensor::new("x", vec![5, 1, 3], Data::Fp32(wave)).unwrap();
    let first = run(&model, std::slice::from_ref(&input));
    for _ in 0..3 {
        assert_eq!(run(&model, std::slice::from_ref(&input)), first);
    }
}

#[test]
fn a_first_dimension_whose_rows_see_each_other_is_no_batch() {
    let model = load("centred", &batched());
    assert_eq!(model.max_batch(), None);
    let input =
        Tensor::new("x", vec![3, 2], Data::Fp32(vec![1., 2., 3., 4., 5., 9.].into())).unwrap();
    let expected = Data::Fp32(vec![-2., -3., 0., -1., 2., 4.].into());
    assert_eq!(run(&model, &[input])[0].data, expected);
}

#[test]
fn inputs_are_found_by_name_and_outputs_keep_the_models_order() {
    let model = load("arith", &batched());
    let tensor = |name: &str, value| {
        Tensor::new(name, vec![7, 4], Data::Fp32(vec![value; 28].into())).unwrap()
    };
    let outputs = run(&model, &[tensor("b", 1.0), tensor("a", 3.0)]);
    assert_eq!(outputs, [tensor("sum", 4.0), tensor("difference", 2.0)]);
    let missing = model.run(&[&[tensor("a", 1.0)]], 1, &|| false).unwrap_err();
    assert!(matches!(missing, RunError::Input(_)), "{missing}");
}

#[test]
fn a_run_stops_between_nodes_when_its_caller_is_gone() {
    let model = load("arith", &batched());
    let tensor =
        |name: &str| Tensor::new(name, vec![1, 4], Data::Fp32(vec![0.0; 4].into())).unwrap();
    let stopped = model.run(&[&[tensor("a"), tensor("b")]], 1, &|| true);
    assert_eq!(stopped, Err(RunError::Cancelled));
}

#[test]
fn files_that_are_no_model_are_refused_in_words() {
    let whole = onnx("magika");
    for (what, bytes) in [
        ("empty", &[][..]),
        ("text", b"this is no model, whatever its name says"),
        ("half", &whole[..whole.len() / 2]),
        ("all but the last byte", &whole[..whole.len() - 1]),
        ("zeros", &[0; 4096]),
    ] {
        let error = Model::load(bytes, &batched()).unwrap_err();
        assert!(matches!(error, LoadError::NotOnnx(_)), "{what}: {error}");
    }
}

#[test]
fn overrides_that_contradict_the_model_are_refused() {
    let refused = |options: &LoadOptions| Model::load(&onnx("arith"), options).unwrap_err();
    for (name, shape) in [("a", vec![-1, 5]), ("a", vec![4]), ("x", vec![-1, 4])] {
        let mut options = batched();
        options.shapes.insert(name.into(), shape);
        assert!(matches!(refused(&options), LoadError::Override { .. }));
    }
    let mut options = batched();
    options.warm_up.insert("a".into(), vec![1, 5]);
    assert!(matches!(refused(&options), LoadError::Override { .. }));
}

#[test]
fn the_longest_node_is_known_even_if_it_is_the_last() {
    let mut options = LoadOptions::default();
    options.warm_up.insert("x".into(), vec![5_000, 1, 3]);
    let model = load("endless", &options);
    let whole = model.curve().seconds(1).unwrap();
    let grain = model.grain().as_secs_f64();
    assert!(grain > 0.5 * whole, "one node of {grain} s in a run of {whole} s");
}

#[test]
fn what_the_engine_would_compute_wrongly_is_refused_with_its_attribute() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/refused");
    for (file, by) in [
        ("space_to_depth_crd", "SpaceToDepth \"s\" with mode"),
        ("conv_transpose_output_shape", "ConvTranspose \"\" with output_shape"),
    ] {
        let onnx = std::fs::read(folder.join(format!("{file}.onnx")));
        let Ok(onnx) = onnx else { panic!("expected {file}") };
        let refused = Model::load(&onnx, &batched()).err().map(|error| error.to_string());
        assert!(refused.as_ref().is_some_and(|text| text.contains(by)), "{file}: {refused:?}");
    }
}

/// Lines of text of so many pixels, each with values of its own.
fn lines(rows: usize, width: usize) -> Vec<Tensor> {
    let count = rows * 3 * 48 * width;
    #[allow(clippy::cast_precision_loss, reason = "any numbers do")]
    let value = |i: usize| ((i + width) as f32 * 0.37).sin();
    let data = Data::Fp32((0..count).map(value).collect());
    vec![Tensor::new("x", vec![rows, 3, 48, width], data).unwrap()]
}

#[test]
fn one_plan_runs_all_sizes_that_a_model_leaves_open() {
    let warm_up = [("x".to_owned(), vec![1, 3, 48, 192])].into();
    let shapes = [("x".to_owned(), vec![-1, 3, 48, -1])].into();
    let model = load("ppocr-cls", &LoadOptions { shapes, warm_up, ..batched() });
    assert_eq!((model.build(), model.closed()), (Build::Own, None));
    let compiled = model.compilations();
    for (rows, width) in [(1, 64), (3, 100), (1, 191), (2, 320), (5, 33)] {
        let shapes = [("x".to_owned(), vec![-1, 3, 48, i64::try_from(width).unwrap()])].into();
        let build = Some(Build::Plain);
        let alone = load("ppocr-cls", &LoadOptions { shapes, build, ..LoadOptions::default() });
        let what = format!("{rows} x {width}");
        assert_close(&run(&model, &lines(rows, width)), &run(&alone, &lines(rows, width)), &what);
    }
    assert_eq!(model.compilations(), compiled, "nothing is compiled for a request");
    let changes = model.memory_changes();
    let small = model.memory();
    run(&model, &lines(2, 1024));
    assert!(model.memory() > small && model.memory_changes() > changes, "larger runs are counted");
}

#[test]
fn a_size_that_no_window_fits_in_takes_the_plan_from_no_other() {
    // Lines of one value are compared at load, too; a pool of two has no window there.
    let warm_up = [("x".to_owned(), vec![1, 2, 8])].into();
    let model = load("pools", &LoadOptions { warm_up, ..batched() });
    assert_eq!((model.build(), model.closed()), (Build::Own, None));
    let compiled = model.compilations();
    for width in [2, 3, 8, 33] {
        let image = |rows| {
            #[allow(clippy::cast_precision_loss, reason = "any numbers do")]
            let data = Data::Fp32((0..rows * 2 * width).map(|i| (i as f32).sin()).collect());
            vec![Tensor::new("x", vec![rows, 2, width], data).unwrap()]
        };
        let found = &run(&model, &image(1))[0];
        assert_eq!(found.shape, [1, 2, width / 2], "{width}");
    }
    assert_eq!(model.compilations(), compiled);
}

/// Token ids of a text of so many tokens, and a mask that hides none.
fn text(length: usize) -> Vec<Tensor> {
    let tokens = (0..length).map(|i| i64::from(i % 3 == 0)).collect();
    let of = |name: &str, data: Vec<i64>| {
        Tensor::new(name, vec![1, length], Data::Int64(data.into())).unwrap()
    };
    vec![of("input_ids", tokens), of("attention_mask", vec![1; length])]
}

fn padded(names: &[&str]) -> LoadOptions {
    let pad = names.iter().map(|name| ((*name).to_owned(), 0)).collect();
    LoadOptions { pad, ..batched() }
}

#[test]
fn requests_of_near_lengths_run_together_and_each_gets_its_own_length() {
    let model = load("embed", &padded(&["input_ids", "attention_mask"]));
    let form = |length| model.form(&text(length)).unwrap().1;
    assert_eq!(form(17), form(20));
    assert_ne!(form(20), form(21), "too far apart to be filled up");
    let texts = [17, 20, 18].map(text);
    let requests: Vec<&[Tensor]> = texts.iter().map(Vec::as_slice).collect();
    let together = model.run(&requests, 32, &|| false).unwrap();
    for (text, found) in texts.iter().zip(&together) {
        assert_close(found, &run(&model, text), "filled up");
    }
    // Without the operator's word requests of other lengths are not joined.
    let model = load("embed", &batched());
    assert_ne!(model.form(&text(17)).unwrap().1, model.form(&text(20)).unwrap().1);
}

#[test]
fn filling_up_that_changes_answers_is_refused() {
    let refused = |name: &str, pad: &[&str]| {
        let refused = Model::load(&onnx(name), &padded(pad));
        refused.err().map(|error| error.to_string()).unwrap_or_default()
    };
    let found = refused("embed", &["input_ids"]);
    assert!(found.contains("pad for all inputs of that size: \"attention_mask\""), "{found}");
    let found = refused("embed", &["tokens"]);
    assert!(found.contains("expected the name of an input: \"tokens\""), "{found}");
    let mut options = padded(&["input_ids", "attention_mask"]);
    // A mask of ones says that what stands behind the text is part of it.
    options.pad.insert("attention_mask".to_owned(), 1);
    let found = Model::load(&onnx("embed"), &options).err().map(|error| error.to_string());
    assert!(
        found.as_ref().is_some_and(|text| text.contains("without changing answers")),
        "{found:?}"
    );
}

#[test]
fn the_same_file_is_always_served_in_the_same_build() {
    for name in ["spread", "arith", "log", "lstm", "silero-vad"] {
        let builds: Vec<Build> = (0..5).map(|_| load(name, &options_of(name)).build()).collect();
        assert!(builds.iter().all(|build| *build == builds[0]), "{name}: {builds:?}");
    }
}
