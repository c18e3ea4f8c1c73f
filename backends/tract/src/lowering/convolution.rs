//! Convolutions with constant weights.

use super::Rewrite;
use super::constant::Held;
use forebay_program::constant::{Constant, Factor, Owned, Values, Weights};
use forebay_program::steps::Step;
use forebay_program::windows::{Padding, Window, Windows};
use forebay_program::{Convolution, Op};
use std::sync::Arc;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::ops::cnn::{Conv, KernelFormat, PaddingSpec, PoolSpec};

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
        let (Some(constant), Some(mut bias)) = (self.weights(node, op)?, self.bias(node, op)?)
        else {
            return Ok(false);
        };
        if constant.numbers().map(<[f32]>::len) != windows.weights() {
            return Ok(false);
        }
        let mut followed = self.follow(node, axis)?;
        let factors = fold(&mut bias, &mut followed.steps);
        let (weights, steps) = (Weights { constant, factors }, followed.steps.clone());
        let op = Op::Convolution(Convolution { windows, weights, bias, steps });
        self.wire(op, (node.inputs[0], axis), &followed, axis)?;
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
        let ((Some(input), Some(output)), Some(windows)) = (sizes, windows_of(spec, groups)) else {
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
    fn weights(&self, node: &TypedNode, op: &Conv) -> TractResult<Option<Constant>> {
        let Some(constant) = &self.source.outlet_fact(node.inputs[1])?.konst else {
            return Ok(None);
        };
        let held = Held(Arc::clone(constant));
        if held.numbers().is_none() {
            return Ok(None);
        }
        if op.kernel_fmt == KernelFormat::OIHW {
            return Ok(Some(Arc::new(held)));
        }
        let ordered = op.kernel_fmt.kernel_as_group_o_ihw(constant, op.group)?;
        let numbers = ordered.try_as_plain_ram()?.as_slice::<f32>()?.to_vec();
        Ok(Some(Arc::new(Owned { shape: ordered.shape().to_vec(), numbers })))
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

/// Windows of a specification; `None` if there are no kernels for them.
fn windows_of(spec: &PoolSpec, groups: usize) -> Option<Windows> {
    let axis = |axis: usize| Window {
        kernel: spec.kernel_shape[axis],
        stride: spec.stride(axis),
        dilation: spec.dilation(axis),
        padding: match &spec.padding {
            PaddingSpec::Valid => Padding::Explicit(0, 0),
            PaddingSpec::Explicit(before, after)
            | PaddingSpec::ExplicitOnnxPool(before, after, _) => {
                Padding::Explicit(before[axis], after[axis])
            }
            PaddingSpec::SameUpper => Padding::SameUpper,
            PaddingSpec::SameLower => Padding::SameLower,
        },
    };
    let (channels_in, channels_out) = (spec.input_channels, spec.output_channels);
    matches!(spec.rank(), 1 | 2).then(|| Windows {
        axes: (0..spec.rank()).map(axis).collect(),
        channels_in,
        channels_out,
        groups,
    })
}

/// Takes the first steps into the bias and into factors of the weights, where they are of a kind that
/// can be.
fn fold(bias: &mut [f32], steps: &mut Vec<Step>) -> Vec<Factor> {
    let mut factors = Vec::new();
    let mut folded = 0;
    for step in steps.iter() {
        match step {
            Step::Add(number) => bias.iter_mut().for_each(|bias| *bias += number),
            Step::AddChannel(numbers) => {
                bias.iter_mut().zip(numbers).for_each(|(bias, number)| *bias += number);
            }
            Step::Mul(number) => {
                bias.iter_mut().for_each(|bias| *bias *= number);
                factors.push(Factor::One(*number));
            }
            Step::MulChannel(numbers) => {
                bias.iter_mut().zip(numbers).for_each(|(bias, number)| *bias *= number);
                factors.push(Factor::Channel(numbers.clone()));
            }
            _ => break,
        }
        folded += 1;
    }
    steps.drain(..folded);
    factors
}

#[cfg(test)]
mod tests {
    use super::*;
    use tract_onnx::tract_core::ops::nn::DataFormat;

    #[test]
    fn windows_lie_where_tract_has_them_over_images_of_every_size() {
        let frames: TVec<usize> = tvec!(2, 1);
        for padding in [
            PaddingSpec::Valid,
            PaddingSpec::Explicit(frames.clone(), tvec!(0, 3)),
            PaddingSpec::ExplicitOnnxPool(frames, tvec!(1, 1), false),
            PaddingSpec::SameUpper,
            PaddingSpec::SameLower,
        ] {
            for (kernel, stride, dilation) in
                [(1, 1, 1), (3, 1, 1), (3, 2, 1), (2, 3, 1), (4, 2, 2)]
            {
                let spec = PoolSpec::new(
                    DataFormat::NCHW,
                    tvec!(kernel, 3),
                    padding.clone(),
                    Some(tvec!(dilation, 1)),
                    Some(tvec!(stride, 2)),
                    4,
                    6,
                );
                let windows = windows_of(&spec, 2).map(|windows| {
                    (1..20).map(|size| windows.over(&[size, 20 - size])).collect::<Vec<_>>()
                });
                for geometry in windows.into_iter().flatten() {
                    let expected = spec.computed_padding(&geometry.input);
                    let found = [0, 1].map(|axis| (geometry.before[axis], geometry.after[axis]));
                    let expected = [0, 1].map(|i| (expected[i].pad_before, expected[i].pad_after));
                    assert_eq!(found, expected, "{spec:?} over {:?}", geometry.input);
                    assert_eq!((geometry.kernel, geometry.stride), ([kernel, 3], [stride, 2]));
                }
            }
        }
    }
}
