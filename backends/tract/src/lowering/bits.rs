//! Checks that answers are the same to the last bit as when they were recorded.
//!
//! Kernels may be rearranged, but not so that a sum comes out in another order: answers that
//! were compared with other engines', cached, or given by a replica of the last release would differ.
//! Each check folds the outputs of many graphs into one digest beside a recorded one. Digests depend
//! on the machine: its vector unit, and what tract and the C library choose for its processor. So the
//! same graphs run without our kernels too, and only where those answers are as recorded do ours have
//! to be. Other graphs than the recorded ones are a mistake on any machine: `BITS=print cargo test`
//! shows the lines that are to be written into `bits.txt` then.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests")]

use crate::VectorUnit;
use crate::build::{Build, Shapes};
use crate::model::{Model, values};
use crate::options::LoadOptions;
use crate::plan::Plans;
use forebay_protocol::oip::{Data, Datatype, Tensor, TensorMetadata};
use std::fmt::Display;
use std::path::Path;
use tract_onnx::prelude::TValue;

/// `name unit graphs plain ours`, a line each.
const RECORDED: &str = include_str!("bits.txt");

/// Graphs and their answers so far.
#[derive(Default)]
pub(super) struct Bits {
    graphs: blake3::Hasher,
    plain: blake3::Hasher,
    ours: blake3::Hasher,
    /// Graphs whose programs were computed by the reference too.
    pub(super) programs: usize,
}

impl Bits {
    /// A graph, as words and inputs have it, with the outputs without our kernels and with them.
    pub(super) fn add(
        &mut self,
        graph: &dyn Display,
        inputs: &[TValue],
        plain: &[TValue],
        ours: &[TValue],
    ) {
        let bytes = |tensors: &[TValue]| {
            let each = tensors.iter().map(|tensor| (tensor.shape().to_vec(), tensor.as_bytes()));
            each.map(|(shape, bytes)| (shape, bytes.to_vec())).collect::<Vec<_>>()
        };
        self.add_bytes(graph, &[bytes(inputs), bytes(plain), bytes(ours)]);
    }

    /// The same of shapes and bytes.
    fn add_bytes(&mut self, graph: &dyn Display, tensors: &[Vec<(Vec<usize>, Vec<u8>)>; 3]) {
        self.graphs.update(graph.to_string().as_bytes());
        let hashers = [&mut self.graphs, &mut self.plain, &mut self.ours];
        for (hasher, tensors) in hashers.into_iter().zip(tensors) {
            for (shape, bytes) in tensors {
                hasher.update(format!("{shape:?}").as_bytes()).update(bytes);
            }
        }
    }

    /// Compares all of them with the recorded line of this name.
    pub(super) fn check(&self, name: &str) {
        let short = |hasher: &blake3::Hasher| hasher.finalize().to_hex()[..16].to_owned();
        let [graphs, plain, ours] = [&self.graphs, &self.plain, &self.ours].map(short);
        let unit = VectorUnit::in_use().to_string();
        let found = [name, &unit, &graphs, &plain, &ours];
        if std::env::var_os("BITS").is_some() {
            println!("{}", found.join(" "));
            return;
        }
        let lines = RECORDED.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let lines: Vec<_> = lines.filter(|line| line.first() == Some(&name)).collect();
        let is_known = lines.iter().all(|line| line[2] == graphs);
        assert!(is_known && !lines.is_empty(), "expected the recorded graphs: {found:?}");
        for line in lines {
            let is_here = line[1] == unit && line[3] == plain;
            assert!(!is_here || line[4] == ours, "expected the bits of {line:?}, found {found:?}");
        }
    }
}

/// Values that go with a datatype, and are the same on every machine.
fn made(input: &TensorMetadata, shape: &[usize]) -> Tensor {
    let count = shape.iter().product::<usize>();
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "small numbers"
    )]
    let data = match input.datatype {
        Datatype::Fp32 => {
            Data::Fp32((0..count).map(|i| (i * 37 % 401) as f32 / 200.0 - 1.0).collect())
        }
        Datatype::Int32 => Data::Int32((0..count).map(|i| (i % 3) as i32).collect()),
        Datatype::Int64 => Data::Int64((0..count).map(|i| (i % 2) as i64).collect()),
        other => panic!("expected a datatype of the bundled models, found {other}"),
    };
    Tensor { name: input.name.clone(), shape: shape.to_vec(), data }
}

fn bytes(tensors: &[Tensor]) -> Vec<(Vec<usize>, Vec<u8>)> {
    let bytes = |tensor: &Tensor| {
        let mut bytes = Vec::new();
        tensor.data.write_binary(&mut bytes);
        (tensor.shape.clone(), bytes)
    };
    tensors.iter().map(bytes).collect()
}

/// Runs a model with our kernels and without, in shapes for all inputs; in the plan for all sizes where
/// there is none of theirs.
fn add_model(bits: &mut Bits, name: &str, options: &LoadOptions, shapes: &[Shapes]) {
    let backends = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let files = ["models", "worker/tests/models"].map(|folder| backends.join(folder));
    let onnx =
        files.iter().find_map(|folder| std::fs::read(folder.join(name).join("1/model.onnx")).ok());
    let options = LoadOptions { build: Some(Build::Own), ..options.clone() };
    let model = Model::load(&onnx.unwrap(), &options).unwrap();
    let plain = model.plans.built(Build::Plain).unwrap();
    for shapes in shapes {
        let inputs: Vec<_> =
            model.inputs().iter().zip(shapes).map(|(i, shape)| made(i, shape)).collect();
        let run = |plans: &Plans| {
            let chosen = plans.get(shapes).unwrap();
            assert_eq!(chosen.build, plans.build(), "{name} {shapes:?}");
            let inputs: Vec<_> = inputs.iter().collect();
            let values = || values(&inputs);
            bytes(&model.run_in(plans, shapes, &values, &|| false).unwrap().0)
        };
        let tensors = [bytes(&inputs), run(&plain), run(&model.plans)];
        bits.add_bytes(&format!("{name} {}", shapes.len()), &tensors);
    }
}

#[test]
fn models_answer_with_the_recorded_bits() {
    let mut bits = Bits::default();
    let options = LoadOptions { max_batch: 4, ..LoadOptions::default() };
    let rows = |row: &[usize]| [1, 3].map(|rows| vec![[&[rows], row].concat()]);
    add_model(&mut bits, "magika", &options, &rows(&[2048]));
    let warm_up = [("x".to_owned(), vec![1, 3, 48, 192])].into();
    let shapes = [("x".to_owned(), vec![-1, 3, 48, -1])].into();
    let lines = LoadOptions { warm_up, shapes, ..options.clone() };
    let sizes = [(1, 192), (3, 192), (2, 100)].map(|(rows, width)| vec![vec![rows, 3, 48, width]]);
    add_model(&mut bits, "ppocr-cls", &lines, &sizes);
    let silero = [vec![vec![1, 576], vec![2, 1, 128]]];
    add_model(&mut bits, "silero-vad", &options, &silero);
    let texts = [(1, 8), (2, 5)].map(|(rows, length)| vec![vec![rows, length]; 2]);
    add_model(&mut bits, "embed", &options, &texts);
    bits.check("models");
}
