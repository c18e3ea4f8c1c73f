//! Replaces operators that hide NaN by ones that do not, and operators that use values as positions
//! unchecked by ones that check them.

use super::bounds::{Bound, Power, Quotient, Shift};
use super::nan::{Cell, Extreme, NotHiding};
use super::order::Where;
use super::places::{self, Asked};
use super::values::Function;
use crate::lowering;
use std::collections::HashMap;
use tract_onnx::prelude::DatumType::{F32, I8, I16, I32, I64, U8, U16, U32, U64};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::cnn::{MaxPool, OptMaxPool};
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_core::ops::logic::IfThenElse;
use tract_onnx::tract_core::ops::lstm_cell::LstmEpilogue;
use tract_onnx::tract_core::ops::math::{
    Div, Erf, Max, Min, Pow, Rem, ShiftLeft, ShiftRight, Tanh,
};
use tract_onnx::tract_core::ops::nn::silu::Silu;
use tract_onnx::tract_core::ops::nn::{Reduce, Reducer, Sigmoid};
use tract_onnx::tract_core::ops::scan::{OptScan, Scan};

/// Before tract puts operators together: those of two inputs.
pub(crate) fn prepare(model: &mut TypedModel) -> TractResult<()> {
    let divided: HashMap<usize, Asked> = model
        .nodes()
        .iter()
        .filter(|node| is_division(node))
        .map(|node| (node.id, Asked::new(model, node, &[1])))
        .collect();
    for node in model.nodes_mut() {
        if let Some(scan) = node.op_as_mut::<Scan>() {
            prepare(&mut scan.body)?;
            // It is planned together with what is around it, and can't be changed behind that.
            finish(&mut scan.body)?;
            continue;
        }
        if let Some(branch) = node.op_as_mut::<IfThenElse>() {
            prepare(&mut branch.then_body)?;
            prepare(&mut branch.else_body)?;
            continue;
        }
        let is_float = node.outputs.iter().all(|output| output.fact.datum_type.is_float());
        let asked = divided.get(&node.id);
        let Some(op) = node.op_as_mut::<TypedBinOp>() else { continue };
        if op.0.is::<Max>() && is_float {
            op.0 = Box::new(Bound::Greater);
        } else if op.0.is::<Min>() && is_float {
            op.0 = Box::new(Bound::Lesser);
        } else if op.0.is::<ShiftLeft>() {
            op.0 = Box::new(Shift::Left);
        } else if op.0.is::<ShiftRight>() {
            op.0 = Box::new(Shift::Right);
        } else if op.0.is::<Pow>() && !is_float {
            op.0 = Box::new(Power);
        } else if let Some(asked) = asked {
            let is_rest = op.0.is::<Rem>();
            op.0 = Box::new(Quotient { is_rest, asked: asked.clone() });
        }
    }
    Ok(())
}

/// A division of integers, or its rest.
fn is_division(node: &TypedNode) -> bool {
    let kinds = [I8, I16, I32, I64, U8, U16, U32, U64];
    node.outputs.iter().all(|output| kinds.contains(&output.fact.datum_type))
        && node.op_as::<TypedBinOp>().is_some_and(|op| op.0.is::<Div>() || op.0.is::<Rem>())
}

/// Behind all rewrites: those of one input.
pub(crate) fn finish(model: &mut TypedModel) -> TractResult<()> {
    let checked = model.nodes().iter();
    let checked = checked.filter_map(|node| Some((node.id, places::checked(model, node)?)));
    for (node, op) in checked.collect::<Vec<_>>() {
        model.node_mut(node).op = op;
    }
    for node in model.nodes_mut() {
        if let Some(scan) = node.op_as_mut::<Scan>() {
            finish(&mut scan.body)?;
            continue;
        }
        if let Some(branch) = node.op_as_mut::<IfThenElse>() {
            finish(&mut branch.then_body)?;
            finish(&mut branch.else_body)?;
            continue;
        }
        // Its graph is shared and planned already; cells of recurrent nets stand in it.
        if node.op_is::<OptScan>() {
            continue;
        }
        let is_float = node.outputs.iter().all(|output| output.fact.datum_type.is_float());
        let is_single = node.outputs.iter().all(|output| output.fact.datum_type == F32);
        if let Some(op) = node.op_as_mut::<ElementWiseOp>() {
            if is_single && op.0.is::<Erf>() {
                op.0 = Box::new(Function::Erf);
            } else if op.1.is_none()
                && is_float
                && let Some(function) = function(op)
            {
                op.0 = Box::new(function);
            }
            continue;
        }
        if let Some(op) = node.op_as::<Reduce>().and_then(Where::of) {
            node.op = Box::new(op);
            continue;
        }
        if let Some(inner) = node.op_as::<LstmEpilogue>().cloned() {
            node.op = Box::new(Cell { inner });
            continue;
        }
        if node.op_is::<MaxPool>() || node.op_is::<OptMaxPool>() {
            node.op = Box::new(NotHiding { inner: node.op.clone() });
            continue;
        }
        if !is_float || node.outputs.len() != 1 {
            continue;
        }
        if let Some(op) = node.op_as::<Reduce>() {
            let bound = match op.reducer {
                Reducer::Max => Bound::Greater,
                Reducer::Min => Bound::Lesser,
                _ => continue,
            };
            // tract's begins with the least finite number, which is more than minus infinity.
            node.op = Box::new(Extreme { bound, axes: op.axes.clone() });
        } else if lowering::op::finds_greatest(&*node.op) {
            node.op = Box::new(NotHiding { inner: node.op.clone() });
        }
    }
    Ok(())
}

fn function(op: &ElementWiseOp) -> Option<Function> {
    if op.0.is::<Sigmoid>() {
        Some(Function::Sigmoid)
    } else if op.0.is::<Tanh>() {
        Some(Function::Tanh)
    } else if op.0.is::<Silu>() {
        Some(Function::Silu)
    } else {
        None
    }
}
