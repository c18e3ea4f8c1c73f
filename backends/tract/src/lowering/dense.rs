//! Products with constant weights.
//!
//! tract writes every product as a sum over named axes, also those that were convolutions with a
//! kernel of one value. Axes of size 1 change nothing and are not looked at. Of the others, those
//! that both sides share and the output has not are summed over; those of the weights alone become
//! the channels of the output.

use super::Rewrite;
use super::constant::Held;
use forebay_program::constant::{Matrix, Stride};
use forebay_program::{Op, Product};
use std::sync::Arc;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::axes::Axis;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::einsum::EinSum;

/// A product of a tensor and constant weights.
struct Form {
    /// Number of the input that is the tensor; the other one holds the weights.
    slot: usize,
    /// Axes of the weights that are summed over, in the order in which the tensor has them.
    summed: TVec<usize>,
    /// Axes of the weights that the output has, in its order.
    kept: TVec<usize>,
    /// The tensor's axis that is summed over.
    values: usize,
    /// The output's axis that is kept.
    channels: usize,
}

impl Rewrite<'_> {
    /// Makes a product one of ours, if it is one that we have.
    pub(super) fn product(&mut self, node: &TypedNode) -> TractResult<bool> {
        let Some(op) = node.op_as::<EinSum>() else { return Ok(false) };
        let Some(form) = self.form(node, op)? else { return Ok(false) };
        let weights = self.source.outlet_fact(node.inputs[1 - form.slot])?.konst.clone();
        let weights = weights.context("expected constant weights")?;
        let along = |axes: &[usize]| {
            let stride = |&axis: &usize| Stride {
                size: weights.shape()[axis],
                step: weights.strides()[axis].unsigned_abs(),
            };
            axes.iter().map(stride).collect()
        };
        let (lines, channels) = (along(&form.summed), along(&form.kept));
        let matrix = Matrix { constant: Arc::new(Held(weights)), lines, channels };

        let axis = form.channels;
        let followed = self.follow(node, axis)?;
        let op = Op::Product(Product { matrix, steps: followed.steps.clone() });
        self.wire(op, (node.inputs[form.slot], form.values), &followed, axis)?;
        Ok(true)
    }

    fn form(&self, node: &TypedNode, op: &EinSum) -> TractResult<Option<Form>> {
        let facts = self.source.node_input_facts(node.id)?;
        let [a, b] = facts.as_slice() else { return Ok(None) };
        let slot = match (&a.konst, &b.konst) {
            (None, Some(_)) => 0,
            (Some(_), None) => 1,
            _ => return Ok(None),
        };
        let (tensor, weights, output) = (facts[slot], facts[1 - slot], &node.outputs[0].fact);
        let float = f32::datum_type();
        let is_ours = op.q_params.is_none()
            && [tensor, weights, output].iter().all(|fact| fact.datum_type == float)
            && weights.konst.as_ref().is_some_and(|weights| weights.try_as_plain_ram().is_ok());
        let sizes = [&tensor.shape, &weights.shape, &output.shape].map(|shape| self.sizes(shape));
        let (true, [Some(x), Some(w), Some(y)]) = (is_ours, sizes) else { return Ok(None) };
        Ok(form(op, slot, &x, &w, &y))
    }
}

/// Reads which axes are summed over; `None` if it is no product in our sense.
fn form(op: &EinSum, slot: usize, x: &[usize], w: &[usize], y: &[usize]) -> Option<Form> {
    // Place of each axis in the tensor, the weights and the output, in that order.
    let mut summed = Vec::new();
    let mut kept = Vec::new();
    let mut rows = Vec::new();
    for axis in op.axes.iter_all_axes() {
        match places(axis, slot)? {
            (Some(a), Some(b), None) if x[a] == w[b] => summed.push((a, b)),
            (None, Some(b), Some(c)) if w[b] == y[c] => kept.push((c, b)),
            (Some(a), None, Some(c)) if x[a] == y[c] => rows.push((a, c)),
            (a, b, c) => {
                let is_one = |shape: &[usize], place: Option<usize>| {
                    place.is_none_or(|place| shape[place] == 1)
                };
                if !is_one(x, a) || !is_one(w, b) || !is_one(y, c) {
                    return None;
                }
            }
        }
    }
    summed.retain(|&(_, b)| w[b] > 1);
    kept.retain(|&(_, b)| w[b] > 1);
    rows.retain(|&(a, _)| x[a] > 1);
    summed.sort_unstable();
    kept.sort_unstable();
    rows.sort_unstable();
    // One row follows the other in the output as in the tensor, wherever the channels are.
    let is_ordered = rows.windows(2).all(|pair| pair[0].1 < pair[1].1);
    let ((first, _), &[(channels, _)]) = (*summed.first()?, kept.as_slice()) else { return None };
    // Several axes are summed over as one if nothing comes between or behind them.
    let is_last = rows.iter().all(|&(row, _)| row < first);
    let values = match summed.len() {
        1 => first,
        _ if is_last => x.len() - 1,
        _ => return None,
    };
    is_ordered.then(|| Form {
        slot,
        summed: summed.iter().map(|&(_, b)| b).collect(),
        kept: kept.iter().map(|&(_, b)| b).collect(),
        values,
        channels,
    })
}

/// The position of an axis; `None` if it occurs twice in one of them.
pub(super) fn places(
    axis: &Axis,
    slot: usize,
) -> Option<(Option<usize>, Option<usize>, Option<usize>)> {
    let one = |places: &[usize]| match places {
        [] => Some(None),
        [place] => Some(Some(*place)),
        _ => None,
    };
    Some((one(&axis.inputs[slot])?, one(&axis.inputs[1 - slot])?, one(&axis.outputs[0])?))
}
