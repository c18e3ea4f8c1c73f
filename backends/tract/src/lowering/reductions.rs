//! Reductions, softmax and pools.

use super::Rewrite;
use forebay_program::{Op, Reduction};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::ops::cnn::MaxPool;
use tract_onnx::tract_core::ops::nn::{NearestUpsample, Reduce, Reducer, Softmax, SoftmaxKind};

impl Rewrite<'_> {
    /// Makes an operation on whole axes one of ours, if it is one that we have.
    pub(super) fn whole(&mut self, node: &TypedNode) -> TractResult<bool> {
        let float = f32::datum_type();
        let is_ours = node.inputs.len() == 1
            && node.outputs.len() == 1
            && node.outputs[0].fact.datum_type == float
            && self.sizes(&node.outputs[0].fact.shape).is_some()
            && self.source.outlet_fact(node.inputs[0])?.datum_type == float;
        if !is_ours {
            return Ok(false);
        }
        if let Some(op) = node.op_as::<Reduce>() {
            self.reduce(node, op)
        } else if let Some(op) = node.op_as::<Softmax>() {
            self.softmax(node, op)
        } else if let Some(op) = node.op_as::<MaxPool>() {
            self.max_pool(node, op)
        } else if let Some(op) = node.op_as::<NearestUpsample>() {
            self.upsample(node, op)
        } else {
            Ok(false)
        }
    }

    fn upsample(&mut self, node: &TypedNode, op: &NearestUpsample) -> TractResult<bool> {
        let &[1, 1, high, wide] = op.scales.as_slice() else { return Ok(false) };
        let inputs = vec![self.in_last(node.inputs[0], 1)?];
        self.put(node.id.into(), Op::Repeat([high, wide]), inputs, 1)?;
        Ok(true)
    }

    fn reduce(&mut self, node: &TypedNode, op: &Reduce) -> TractResult<bool> {
        let reduction = match op.reducer {
            Reducer::Sum => Reduction::Sum,
            Reducer::Max => Reduction::Max,
            Reducer::MeanOfSquares => Reduction::MeanOfSquares,
            _ => return Ok(false),
        };
        let input = node.inputs[0];
        let rank = self.rank(input)?;
        let axis = self.last.get(&input).map_or(rank - 1, |turned| turned.axis);
        // Sizes in the order in which the values lie, and which of them go.
        let order: TVec<usize> = (0..rank).filter(|&place| place != axis).chain([axis]).collect();
        let from = self.outlet_sizes(input)?;
        let gone: TVec<usize> = (0..rank)
            .filter(|&place| op.axes.contains(&order[place]) && from[order[place]] > 1)
            .collect();
        let (Some(&start), Some(&end)) = (gone.first(), gone.last()) else { return Ok(false) };
        let size = |places: &[usize]| places.iter().map(|&place| from[place]).product::<usize>();
        let reduced = size(&gone.iter().map(|&place| order[place]).collect::<TVec<_>>());
        if reduced != size(&order[start..=end]) {
            return Ok(false);
        }
        let inputs = vec![self.in_last(input, axis)?];
        let op = Op::Reduce { reduction, axes: start..end + 1 };
        self.put(node.id.into(), op, inputs, axis)?;
        Ok(true)
    }

    fn softmax(&mut self, node: &TypedNode, op: &Softmax) -> TractResult<bool> {
        let &[axis] = op.axes.as_slice() else { return Ok(false) };
        if op.quant_output_dt.is_some() || op.kind != SoftmaxKind::Softmax {
            return Ok(false);
        }
        let inputs = vec![self.in_last(node.inputs[0], axis)?];
        self.put(node.id.into(), Op::Softmax, inputs, axis)?;
        Ok(true)
    }

    fn max_pool(&mut self, node: &TypedNode, op: &MaxPool) -> TractResult<bool> {
        let channels = op.pool_spec.input_channels;
        let Some((windows, axis)) = self.windows(node, &op.pool_spec, channels)? else {
            return Ok(false);
        };
        let inputs = vec![self.in_last(node.inputs[0], axis)?];
        self.put(node.id.into(), Op::MaxPool(windows), inputs, axis)?;
        Ok(true)
    }
}
