//! tract's own operations in a program's words, for devices that have none of tract's.

use super::constant::Held;
use super::cpu::Lowered;
use crate::sound::Function;
use forebay_program::{Binary, Fact, Op, Program};
use forebay_protocol::oip::Datatype;
use std::sync::Arc;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::Downsample;
use tract_onnx::tract_core::ops::array::{
    Gather, MultiBroadcastTo, Pad, PadMode, Slice, TypedConcat,
};
use tract_onnx::tract_core::ops::binary::{BinMiniOp, TypedBinOp};
use tract_onnx::tract_core::ops::cast::Cast;
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_core::ops::logic::{CompEq, CompGT, CompGTE, CompLT, CompLTE, CompNE};
use tract_onnx::tract_core::ops::math::{Add, Div, Max, Min, Mul, Pow, Sub};
use tract_onnx::tract_core::ops::nn::{Reduce, Reducer};

/// A program in words alone: of sizes that are all known, with the kinds of operations that there are no
/// words for.
///
/// # Errors
/// A size is not known before a run.
pub(crate) fn worded(program: Lowered) -> TractResult<Program> {
    let plain = |op: Box<dyn TypedOp>, inputs: &[&Fact<usize>], outputs: &[Fact<usize>]| {
        Ok(plain(&*op, inputs, outputs))
    };
    Ok(program.map(|dim| dim.to_usize(), plain)?)
}

/// The operation in a program's words, or else its kind.
fn plain(op: &dyn TypedOp, inputs: &[&Fact<usize>], outputs: &[Fact<usize>]) -> Op<String> {
    known(op, inputs, outputs).unwrap_or_else(|| Op::Foreign(op.name().into_owned()))
}

/// Whether the operation is there for tract's sake alone.
fn changes_nothing(op: &dyn TypedOp) -> bool {
    let op = op.downcast_ref::<ElementWiseOp>();
    op.and_then(|op| op.0.downcast_ref::<Function>()) == Some(&Function::Kept)
}

fn known(op: &dyn TypedOp, inputs: &[&Fact<usize>], outputs: &[Fact<usize>]) -> Option<Op<String>> {
    let ([output], true) = (outputs, inputs.iter().all(|input| input.datatype.is_some())) else {
        return None;
    };
    output.datatype?;
    if let Some(op) = op.downcast_ref::<AxisOp>() {
        Some(match *op {
            AxisOp::Move(from, to) => Op::Move { from, to },
            AxisOp::Add(_) | AxisOp::Rm(_) | AxisOp::Reshape(..) => Op::Reshape,
        })
    } else if changes_nothing(op) {
        Some(Op::Reshape)
    } else if op.is::<Cast>() {
        Some(Op::Cast)
    } else if op.is::<MultiBroadcastTo>() {
        let is_same_rank = inputs.first()?.shape.len() == output.shape.len();
        is_same_rank.then_some(Op::Broadcast)
    } else if let Some(op) = op.downcast_ref::<TypedConcat>() {
        Some(Op::Concat { axis: op.axis })
    } else if let Some(op) = op.downcast_ref::<Slice>() {
        Some(Op::Slice { axis: op.axis, start: op.start.to_usize().ok()?, step: 1 })
    } else if let Some(op) = op.downcast_ref::<Downsample>() {
        let step = usize::try_from(op.stride).ok()?;
        Some(Op::Slice { axis: op.axis, start: op.modulo, step })
    } else if let Some(op) = op.downcast_ref::<Pad>() {
        let PadMode::Constant(value) = &op.mode else { return None };
        let before = op.pads.iter().map(|&(before, _)| before).collect();
        Some(Op::Pad { before, value: Arc::new(Held(Arc::clone(value))) })
    } else if let Some(op) = op.downcast_ref::<Gather>() {
        Some(Op::Gather { axis: op.axis })
    } else if let Some(op) = op.downcast_ref::<TypedBinOp>() {
        let is_same_rank = inputs.iter().all(|input| input.shape.len() == output.shape.len());
        let has_fractions =
            matches!(output.datatype, Some(Datatype::Fp16 | Datatype::Fp32 | Datatype::Fp64));
        let binary = binary(&*op.0).filter(|binary| has_fractions || *binary != Binary::Div)?;
        (op.1.is_none() && is_same_rank).then_some(Op::Binary(binary))
    } else if let Some(op) = op.downcast_ref::<Reduce>() {
        // Over axes of one value, of which it gives that value.
        let sizes = &inputs.first()?.shape;
        let is_same =
            matches!(op.reducer, Reducer::Sum | Reducer::Max | Reducer::Min | Reducer::Prod)
                && op.axes.iter().all(|&axis| sizes.get(axis) == Some(&1));
        is_same.then_some(Op::Reshape)
    } else {
        None
    }
}

fn binary(op: &dyn BinMiniOp) -> Option<Binary> {
    Some(if op.is::<Add>() {
        Binary::Add
    } else if op.is::<Sub>() {
        Binary::Sub
    } else if op.is::<Mul>() {
        Binary::Mul
    } else if op.is::<Div>() {
        Binary::Div
    } else if op.is::<Max>() {
        Binary::Max
    } else if op.is::<Min>() {
        Binary::Min
    } else if op.is::<Pow>() {
        Binary::Pow
    } else if op.is::<CompEq>() {
        Binary::Equal
    } else if op.is::<CompNE>() {
        Binary::NotEqual
    } else if op.is::<CompLT>() {
        Binary::Less
    } else if op.is::<CompLTE>() {
        Binary::LessEqual
    } else if op.is::<CompGT>() {
        Binary::Greater
    } else if op.is::<CompGTE>() {
        Binary::GreaterEqual
    } else {
        return None;
    })
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::lowering::lower;
    use forebay_program::reference::{self, Array};

    /// Computes the program of a graph in loops that share nothing with our kernels, and compares; `false` if
    /// there are no words for all of it.
    pub(in crate::lowering) fn check_program(
        model: &TypedModel,
        inputs: &[TValue],
        expected: &[TValue],
        what: &str,
    ) -> bool {
        let program = worded(lower(model).unwrap().0).unwrap();
        let array = |tensor: &TValue| {
            let plain = tensor.try_as_plain_ram().unwrap();
            let values = plain.as_slice::<f32>().unwrap().iter().map(|&x| f64::from(x)).collect();
            Array { shape: tensor.shape().to_vec(), values }
        };
        if program.foreign().count() > 0 {
            return false;
        }
        let inputs: Vec<_> = inputs.iter().map(array).collect();
        let found = reference::run(&program, &inputs).unwrap();
        for (found, expected) in found.iter().zip(expected.iter().map(array)) {
            assert_eq!(found.shape, expected.shape, "{what}");
            for (found, expected) in found.values.iter().zip(&expected.values) {
                let off = (found - expected).abs();
                assert!(off <= 1e-4 + 1e-4 * expected.abs(), "{what}: {found} beside {expected}");
            }
        }
        true
    }
}
