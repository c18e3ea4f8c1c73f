//! The share of its vectors that an operation fills.
//!
//! Our kernels compute as many channels at once as a vector has numbers. An image of one channel leaves the
//! rest of each vector empty, and tract's kernels, which go along the pixels, take a fraction of the time.
//! Where most of the work is of that kind, a model is better off without ours: by 2 to 10 times for
//! convolutions to one channel or three and for depthwise ones of up to eight, which is what the shares below
//! are taken from. They are those of vectors of 16 numbers on every machine, so that the same file runs in
//! the same build everywhere.

use super::cpu::Lowered;
use super::lower;
use forebay_program::{Fact, Op};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;

/// Numbers in a vector.
const LANES: usize = 16;

/// Whether at least half of the multiplications of a decluttered graph that our kernels would do fill so
/// much of their vectors that it pays; also where there are none.
///
/// # Errors
/// The graph can't be lowered, or has sizes that are not known.
pub(crate) fn fills_vectors(graph: &TypedModel) -> TractResult<bool> {
    let (program, _) = lower(graph)?;
    let (mut filled, mut all) = (0_u128, 0_u128);
    for (is_filled, count) in work(&program)? {
        all += count;
        filled += if is_filled { count } else { 0 };
    }
    Ok(2 * filled >= all)
}

/// Of each convolution and each product with weights: whether it pays, and its multiplications.
fn work(program: &Lowered) -> TractResult<Vec<(bool, u128)>> {
    let mut work = Vec::new();
    for node in &program.nodes {
        let (pays, of_value) = match &node.op {
            Op::Convolution(convolution) => {
                let windows = &convolution.windows;
                let weights = windows.weights().unwrap_or(0);
                let pays = pays(windows.channels_in, windows.channels_out, windows.groups);
                (pays, weights / windows.channels_out.max(1))
            }
            Op::Product(product) => {
                let size = |axes: &[forebay_program::constant::Stride]| {
                    axes.iter().map(|axis| axis.size).product::<usize>()
                };
                let (lines, channels) =
                    (size(&product.matrix.lines), size(&product.matrix.channels));
                (pays(lines, channels, 1), lines)
            }
            _ => continue,
        };
        let values = node.outputs.iter().map(count).sum::<TractResult<u128>>()?;
        work.push((pays, values * of_value as u128));
    }
    Ok(work)
}

/// Values of a tensor.
fn count(fact: &Fact<TDim>) -> TractResult<u128> {
    fact.shape.iter().map(|dim| Ok(dim.to_usize()? as u128)).product()
}

fn pays(channels_in: usize, channels_out: usize, groups: usize) -> bool {
    let is_depthwise = groups > 1 && groups == channels_in;
    let channels = if is_depthwise { channels_out } else { channels_out / groups.max(1) };
    let taken = channels.next_multiple_of(LANES);
    // A fifth; of kernels that do little with each value, more than a half.
    if is_depthwise { 2 * channels > taken } else { 5 * channels >= taken }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_filled_by_channels() {
        let dense = |channels| pays(64, channels, 1);
        assert_eq!(
            [1, 3, 4, 16, 17, 33, 512].map(dense),
            [false, false, true, true, true, true, true]
        );
        let depthwise = |channels| pays(channels, channels, channels);
        assert_eq!([3, 8, 9, 16, 17, 64].map(depthwise), [false, false, true, true, true, true]);
        assert!(!pays(1, 1, 1) && pays(64, 128, 4) && !pays(64, 64, 32));
    }
}
