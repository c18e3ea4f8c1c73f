//! Convolutions with constant weights.

use super::Rewrite;
use super::op::Kernel;
use forebay_kernels::dense::{Convolution, Geometry};
use forebay_kernels::depthwise::Depthwise;
use forebay_kernels::steps::Step;
use std::sync::Arc;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::ops::cnn::{Conv, PoolSpec};

impl Rewrite<'_> {
    /// Makes a convolution one of ours, if it is one that we have.
    pub(super) fn convolution(&mut self, node: &TypedNode) -> TractResult<bool> {
        let Some(op) = node.op_as::<Conv>() else { return Ok(false) };
        let Some(geometry) = self.geometry(node, op)? else { return Ok(false) };
        let (Some(mut weights), Some(mut bias)) = (self.weights(node, op)?, self.bias(node, op)?)
        else {
            return Ok(false);
        };
        let axis = op.pool_spec.data_format.shape(self.shape(node.inputs[0])?)?.c_axis();
        let mut followed = self.follow(node, axis)?;
        let folded = fold(&mut weights, &mut bias, &followed.steps);
        followed.steps.drain(..folded);
        let kernel = match Depthwise::new(geometry, &weights, &bias) {
            Some(depthwise) => Kernel::Depthwise(Arc::new(depthwise)),
            None => match Convolution::new(geometry, &weights, &bias) {
                Some(dense) => Kernel::Dense(Arc::new(dense)),
                None => return Ok(false),
            },
        };
        self.wire(kernel, (node.inputs[0], axis), &followed, axis)?;
        Ok(true)
    }

    /// Sizes, if they are constant and kernels for them are here.
    fn geometry(&self, node: &TypedNode, op: &Conv) -> TractResult<Option<Geometry>> {
        if op.q_params.is_some() || node.inputs.len() != 3 {
            return Ok(None);
        }
        self.pool_geometry(node, &op.pool_spec, op.group)
    }

    /// The same of anything that goes by windows.
    pub(super) fn pool_geometry(
        &self,
        node: &TypedNode,
        spec: &PoolSpec,
        groups: usize,
    ) -> TractResult<Option<Geometry>> {
        let fact = self.source.outlet_fact(node.inputs[0])?;
        let Some(shape) = fact.shape.as_concrete() else { return Ok(None) };
        if fact.datum_type != f32::datum_type() || !matches!(spec.rank(), 1 | 2) {
            return Ok(None);
        }
        let data = spec.data_format.shape(shape)?;
        let (sizes, channels) = (data.hw_dims(), *data.c());
        let padding = spec.computed_padding(sizes);
        // A convolution over one axis is one over the width of an image that is 1 high.
        let two = |of: &dyn Fn(usize) -> usize, none: usize| match spec.rank() {
            1 => [none, of(0)],
            _ => [of(0), of(1)],
        };
        let geometry = Geometry {
            input: two(&|axis| sizes[axis], 1),
            kernel: two(&|axis| spec.kernel_shape[axis], 1),
            stride: two(&|axis| spec.stride(axis), 1),
            dilation: two(&|axis| spec.dilation(axis), 1),
            before: two(&|axis| padding[axis].pad_before, 0),
            after: two(&|axis| padding[axis].pad_after, 0),
            channels_in: spec.input_channels,
            channels_out: spec.output_channels,
            groups,
        };
        let expected = two(&|axis| padding[axis].convoluted, 1);
        let fits = channels == geometry.channels_in && geometry.output() == Some(expected);
        Ok(fits.then_some(geometry))
    }

    /// In the order output channel, input channel of the group, row, column.
    fn weights(&self, node: &TypedNode, op: &Conv) -> TractResult<Option<Vec<f32>>> {
        let Some(constant) = &self.source.outlet_fact(node.inputs[1])?.konst else {
            return Ok(None);
        };
        if constant.datum_type() != f32::datum_type() || constant.try_as_plain_ram().is_err() {
            return Ok(None);
        }
        let ordered = op.kernel_fmt.kernel_as_group_o_ihw(constant, op.group)?;
        Ok(Some(ordered.try_as_plain_ram()?.as_slice::<f32>()?.to_vec()))
    }

    /// One for each output channel.
    fn bias(&self, node: &TypedNode, op: &Conv) -> TractResult<Option<Vec<f32>>> {
        let Some(constant) = &self.source.outlet_fact(node.inputs[2])?.konst else {
            return Ok(None);
        };
        if constant.datum_type() != f32::datum_type() {
            return Ok(None);
        }
        let plain = constant.try_as_plain_ram()?;
        let channels = op.pool_spec.output_channels;
        Ok(match plain.as_slice::<f32>()? {
            [number] => Some(vec![*number; channels]),
            numbers if numbers.len() == channels => Some(numbers.to_vec()),
            _ => None,
        })
    }
}

/// Takes the first steps into the weights, where they are of a kind that can be; says how many.
fn fold(weights: &mut [f32], bias: &mut [f32], steps: &[Step]) -> usize {
    let size = weights.len() / bias.len().max(1);
    let mut times = |bias: &mut [f32], factor: &dyn Fn(usize) -> f32| {
        for (channel, weights) in weights.chunks_exact_mut(size.max(1)).enumerate() {
            weights.iter_mut().for_each(|weight| *weight *= factor(channel));
            bias[channel] *= factor(channel);
        }
    };
    for (index, step) in steps.iter().enumerate() {
        match step {
            Step::Add(number) => bias.iter_mut().for_each(|bias| *bias += number),
            Step::AddChannel(numbers) => {
                bias.iter_mut().zip(numbers).for_each(|(bias, number)| *bias += number);
            }
            Step::Mul(number) => times(bias, &|_| *number),
            Step::MulChannel(numbers) => times(bias, &|channel| numbers[channel]),
            _ => return index,
        }
    }
    steps.len()
}
