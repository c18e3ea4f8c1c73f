//! Products of one row with a matrix that is computed, as a decoder makes one for each token.
//!
//! A matrix that is read once is not worth packing: the row goes along it where it lies. Sums come out in the
//! order that packed products have, so that a row has the same bits alone as among others.

use crate::arch;
use crate::dense::Matrices;
use crate::epilogue::{load, store};
use pulp::{Simd, WithSimd};

/// Vectors of channels that are summed at once.
const VECTORS: usize = 4;
/// Channels that are summed at once where each has its values one after the other.
const CHANNELS: usize = 8;

/// Computes `y = x * w`; `false` if the matrix lies otherwise than along its lines or its channels.
pub(crate) fn multiply(matrices: &Matrices, x: &[f32], w: &[f32], y: &mut [f32]) -> bool {
    let x = &x[..matrices.lines];
    let y = &mut y[..matrices.channels];
    if matrices.w_channel == 1 {
        arch().dispatch(ByLine { x, w, step: matrices.w_line, y });
    } else if matrices.w_line == 1 {
        arch().dispatch(ByChannel { x, w, step: matrices.w_channel, y });
    } else {
        return false;
    }
    true
}

/// Channels of a line follow one another.
struct ByLine<'a> {
    x: &'a [f32],
    w: &'a [f32],
    step: usize,
    y: &'a mut [f32],
}

impl WithSimd for ByLine<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let width = VECTORS * S::F32_LANES;
        for (index, y) in self.y.chunks_mut(width).enumerate() {
            let mut sums = [simd.splat_f32s(0.0); VECTORS];
            for (line, &x) in self.x.iter().enumerate() {
                let x = simd.splat_f32s(x);
                let weights = &self.w[line * self.step + index * width..][..y.len()];
                for (sum, weight) in sums.iter_mut().zip(load::<S, VECTORS>(simd, weights)) {
                    *sum = simd.mul_add_e_f32s(x, weight, *sum);
                }
            }
            store::<S, VECTORS>(simd, &sums, y);
        }
    }
}

/// Values of a channel follow one another.
struct ByChannel<'a> {
    x: &'a [f32],
    w: &'a [f32],
    step: usize,
    y: &'a mut [f32],
}

impl WithSimd for ByChannel<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { x, w, step, y } = self;
        for (index, y) in y.chunks_mut(CHANNELS).enumerate() {
            let mut channels = [&w[..0]; CHANNELS];
            for (channel, values) in channels.iter_mut().enumerate() {
                // Beyond the last one, that again.
                let place = index * CHANNELS + channel.min(y.len() - 1);
                *values = &w[place * step..][..x.len()];
            }
            let mut sums = [0.0_f32; CHANNELS];
            for (line, &x) in x.iter().enumerate() {
                for (sum, values) in sums.iter_mut().zip(&channels) {
                    *sum = x.mul_add(values[line], *sum);
                }
            }
            y.copy_from_slice(&sums[..y.len()]);
        }
    }
}
