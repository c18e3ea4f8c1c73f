//! Convolutions with constant weights.

use super::Rewrite;
use super::op::Kernel;
use super::sizes::Windows;
use forebay_kernels::dense::Convolution;
use forebay_kernels::depthwise::Depthwise;
use forebay_kernels::steps::Step;
use std::sync::Arc;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::cnn::{Conv, PoolSpec};

impl Rewrite<'_> {
    /// Makes a convolution one of ours, if it is one that we have.
    pub(super) fn convolution(&mut self, node: &TypedNode) -> TractResult<bool> {
        let Some(op) = node.op_as::<Conv>() else { return Ok(false) };
        if op.q_params.is_some() || node.inputs.len() != 3 {
            return Ok(false);
        }
        let Some((windows, axis)) = self.windows(node, &op.pool_spec, op.group)? else {
            return Ok(false);
        };
        let (Some(mut weights), Some(mut bias)) = (self.weights(node, op)?, self.bias(node, op)?)
        else {
            return Ok(false);
        };
        let mut followed = self.follow(node, axis)?;
        let folded = fold(&mut weights, &mut bias, &followed.steps);
        followed.steps.drain(..folded);
        let shape = self.last_shape(node.inputs[0], axis)?;
        let geometry = match shape.as_concrete() {
            Some(shape) => windows.geometry(shape).context("expected images")?,
            None => windows.least(),
        };
        let windows = (!shape.is_concrete()).then_some(windows);
        let kernel = match Depthwise::new(geometry, &weights, &bias) {
            Some(depthwise) => Kernel::Depthwise(Arc::new(depthwise), windows),
            None => match Convolution::new(geometry, &weights, &bias) {
                Some(dense) => Kernel::Dense(Arc::new(dense), windows),
                None => return Ok(false),
            },
        };
        self.wire(kernel, (node.inputs[0], axis), &followed, axis)?;
        Ok(true)
    }

    /// Windows over the input of a node, and where that has its channels, if there are kernels for
    /// them.
    pub(super) fn windows(
        &self,
        node: &TypedNode,
        spec: &PoolSpec,
        groups: usize,
    ) -> TractResult<Option<(Windows, usize)>> {
        let fact = self.source.outlet_fact(node.inputs[0])?;
        let sizes = (self.sizes(&fact.shape), self.sizes(&node.outputs[0].fact.shape));
        let ((Some(input), Some(output)), Some(windows)) = (sizes, Windows::new(spec, groups))
        else {
            return Ok(None);
        };
        let (from, to) = (spec.data_format.shape(input)?, spec.data_format.shape(output)?);
        let geometry = windows.over(from.hw_dims());
        // One axis is one over the width, as above.
        let expected = match *to.hw_dims() {
            [width] => [1, width],
            [height, width] => [height, width],
            _ => return Ok(None),
        };
        let fits = fact.datum_type == f32::datum_type()
            && *from.c() == spec.input_channels
            && geometry.output() == Some(expected);
        Ok(fits.then(|| (windows, from.c_axis())))
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
