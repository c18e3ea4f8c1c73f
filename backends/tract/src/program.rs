//! A model as a program for another device than the processor: this crate is the way down from a file
//! for any engine that takes no ONNX by itself.

use crate::build::Shapes;
use crate::error::{panic_text, text};
use crate::load::parsed;
use crate::options::LoadOptions;
use crate::{LoadError, lowering, sound};
use forebay_program::Program;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tract_onnx::prelude::*;

/// The computation of a model for inputs of these shapes, which are in the model's order. Operations that a
/// program can't express are foreign, each by its kind.
///
/// # Errors
/// The bytes are not a model, this engine would run it wrongly, or it can't be lowered for these shapes.
pub fn program(
    onnx: &[u8],
    options: &LoadOptions,
    shapes: &[Vec<usize>],
) -> Result<Program, LoadError> {
    let (_, plans) = parsed(onnx, options)?;
    let shapes: Shapes = shapes.to_vec();
    let lower = || -> TractResult<Program> {
        let (program, _) = lowering::lower(&sound::declutter(plans.typed(&shapes)?)?)?;
        lowering::plain::worded(program)
    };
    match catch_unwind(AssertUnwindSafe(lower)) {
        Ok(program) => program.map_err(|error| LoadError::Compile(text(&error))),
        Err(payload) => Err(LoadError::Panic(panic_text(&*payload))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
    use super::*;
    use crate::model::Model;
    use forebay_program::reference::{self, Array};
    use forebay_protocol::oip::{Data, Tensor};
    use std::path::Path;

    fn onnx(name: &str) -> Vec<u8> {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("models");
        std::fs::read(models.join(name).join("1/model.onnx")).unwrap()
    }

    fn array(tensor: &Tensor) -> Array {
        let values = match &tensor.data {
            Data::Fp32(data) => data.iter().map(|&x| f64::from(x)).collect(),
            Data::Int32(data) => data.iter().map(|&x| f64::from(x)).collect(),
            other => panic!("expected FP32 or INT32, found {}", other.datatype()),
        };
        Array { shape: tensor.shape.clone(), values }
    }

    #[test]
    fn a_program_says_all_that_its_model_computes() {
        let numbers = (0..401_u16).cycle().map(|i| (f32::from(i) - 200.0) / 150.0);
        let lines = numbers.take(3 * 48 * 192);
        let bytes = (0..2048).map(|i| i * 31 % 257);
        for (name, data, shape) in [
            ("ppocr-cls", Data::Fp32(lines.collect()), vec![1, 3, 48, 192]),
            ("magika", Data::Int32(bytes.collect()), vec![1, 2048]),
        ] {
            let options = LoadOptions::default();
            let program = program(&onnx(name), &options, std::slice::from_ref(&shape)).unwrap();
            let foreign: Vec<_> = program.foreign().collect();
            assert!(foreign.is_empty(), "{name}: {foreign:?}");
            let shapes = [("x".to_owned(), vec![1, 3, 48, 192])].into();
            let warm_up = if name == "ppocr-cls" { shapes } else { Default::default() };
            let model = Model::load(&onnx(name), &LoadOptions { warm_up, ..options }).unwrap();
            let input = Tensor::new(&model.inputs()[0].name, shape, data).unwrap();
            let found = reference::run(&program, &[array(&input)]).unwrap();
            let expected = model.run(&[&[input]], 1, &|| false).unwrap().remove(0);
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(expected.iter().map(array)) {
                assert_eq!(found.shape, expected.shape);
                let pairs = found.values.iter().zip(&expected.values);
                let off = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                assert!(off < 1e-5, "{name}: off by {off}");
            }
        }
    }

    #[test]
    fn operations_that_a_program_has_no_words_for_are_named() {
        let shapes = [vec![1, 576], vec![2, 1, 128]];
        let program = program(&onnx("silero-vad"), &LoadOptions::default(), &shapes).unwrap();
        let mut foreign: Vec<_> = program.foreign().map(|(_, kind)| kind.as_str()).collect();
        foreign.sort_unstable();
        // A pad by reflection.
        assert_eq!(foreign, ["EinSum", "LstmEpilogue", "Pad"]);
        let inputs = shapes.map(|shape| {
            let values = vec![0.0; shape.iter().product()];
            Array { shape, values }
        });
        let error = reference::run(&program, &inputs).unwrap_err().to_string();
        assert!(error.contains("expected an operation that goes with its inputs"), "{error}");
    }
}
