//! Convolutions in which each channel sees only itself.
//!
//! There is next to nothing to compute for each value read, so all depends on reading whole vectors
//! of channels and on using each for several windows at once.

use crate::arch;
use crate::dense::Geometry;
use crate::epilogue::{Beside, Step, Steps, load, store};
use crate::packed::{Packed, Share};
use pulp::{Simd, WithSimd};
use std::ops::Range;
use std::sync::Arc;

/// Windows side by side that are computed at once: as many sums as hide the latency of adding.
const WINDOWS: usize = 8;
const HALF: usize = WINDOWS / 2;

/// A depthwise convolution of images in channels-last order with constant weights.
#[derive(Debug, Clone)]
pub struct Depthwise {
    geometry: Geometry,
    output: [usize; 2],
    /// Channels last.
    weights: Arc<Packed>,
    bias: Arc<[f32]>,
}

impl Depthwise {
    /// Weights in the order channel, row, column; a bias for each channel, or none. `None` if sizes
    /// contradict each other.
    #[must_use]
    pub fn new(geometry: Geometry, weights: &[f32], bias: &[f32]) -> Option<Self> {
        let Geometry { kernel, channels_in: channels, channels_out, groups, .. } = geometry;
        let output = geometry.output()?;
        let taps = kernel[0] * kernel[1];
        if channels != channels_out || channels != groups || weights.len() != channels * taps {
            return None;
        }
        let by_tap = |tap: usize| (0..channels).map(move |channel| weights[channel * taps + tap]);
        Some(Self {
            geometry,
            output,
            weights: Arc::new((0..taps).flat_map(by_tap).collect()),
            bias: if bias.len() == channels { bias.into() } else { vec![0.0; channels].into() },
        })
    }

    /// The same convolution of images of another size, with other frames of zeros. It shares the
    /// weights. `None` if more than that differs, or if no window fits.
    #[must_use]
    pub fn resized(&self, geometry: Geometry) -> Option<Self> {
        let output = geometry.resizes(&self.geometry).then(|| geometry.output())??;
        let (weights, bias) = (Arc::clone(&self.weights), Arc::clone(&self.bias));
        Some(Self { geometry, output, weights, bias })
    }

    /// Lets the weights be shared.
    pub fn share(&mut self, share: Share<'_>) {
        share(&mut self.weights);
    }

    /// Bytes of memory that it takes beside its weights.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.bias)
    }

    /// Convolves as many images as `x` holds; the steps go by the rows of `y`.
    pub fn run(&self, x: &[f32], y: &mut [f32], steps: &[Step], tensors: &[Beside<'_>]) {
        let steps = Steps { steps, tensors, channels: self.geometry.channels_out };
        arch().dispatch(Run { depthwise: self, x, y, steps });
    }

    /// Height and width of the output.
    #[must_use]
    pub fn output(&self) -> [usize; 2] {
        self.output
    }

    /// Values of the kernel on `axis` that lie inside of the input for the window at `position`.
    fn taps(&self, axis: usize, position: usize) -> Range<usize> {
        let Geometry { stride, dilation, before, input, kernel, .. } = self.geometry;
        let start = position * stride[axis];
        let first = before[axis].saturating_sub(start).div_ceil(dilation[axis]);
        let end = (input[axis] + before[axis]).saturating_sub(start).div_ceil(dilation[axis]);
        let end = end.min(kernel[axis]);
        first.min(end)..end
    }
}

struct Run<'a> {
    depthwise: &'a Depthwise,
    x: &'a [f32],
    y: &'a mut [f32],
    steps: Steps<'a>,
}

impl WithSimd for Run<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let depthwise = self.depthwise;
        let Geometry { input, kernel, channels_out: channels, .. } = depthwise.geometry;
        let [height, width] = depthwise.output;
        let images = self.y.len() / (height * width * channels).max(1);
        let is_inner = |column: usize| depthwise.taps(1, column).len() == kernel[1];
        let inner = (0..width).find(|&column| is_inner(column)).unwrap_or(width);
        let outer = (inner..width).find(|&column| !is_inner(column)).unwrap_or(width);
        let mut taps = Vec::new();
        for image in 0..images {
            let from = image * input[0] * input[1] * channels;
            for row in 0..height {
                let to = (image * height + row) * width;
                for column in (0..inner).chain(outer..width) {
                    let start = depthwise.list(row, column, &mut taps);
                    self.windows::<S, 1>(simd, from + start, to + column, &taps);
                }
                let mut column = inner;
                while column < outer {
                    let start = from + depthwise.list(row, column, &mut taps);
                    let to = to + column;
                    match outer - column {
                        WINDOWS.. => {
                            self.windows::<S, WINDOWS>(simd, start, to, &taps);
                            column += WINDOWS;
                        }
                        HALF.. => {
                            self.windows::<S, HALF>(simd, start, to, &taps);
                            column += HALF;
                        }
                        _ => {
                            self.windows::<S, 1>(simd, start, to, &taps);
                            column += 1;
                        }
                    }
                }
            }
        }
    }
}

/// One value of the kernel: its distance from the first that lies inside of the image, in values of
/// the input, and the first of its weights.
#[derive(Clone, Copy)]
struct Tap {
    value: usize,
    weight: usize,
}

impl Depthwise {
    /// Lists the values of the kernel that lie inside of the image for one window, and says where
    /// the first of them is.
    fn list(&self, row: usize, column: usize, taps: &mut Vec<Tap>) -> usize {
        let Geometry { input, kernel, stride, dilation, before, channels_in: channels, .. } =
            self.geometry;
        let at = |position: [usize; 2], tap: [usize; 2]| {
            let place = |axis: usize| {
                position[axis] * stride[axis] + tap[axis] * dilation[axis] - before[axis]
            };
            (place(0) * input[1] + place(1)) * channels
        };
        let (rows, columns) = (self.taps(0, row), self.taps(1, column));
        taps.clear();
        if rows.is_empty() || columns.is_empty() {
            return 0;
        }
        let start = at([row, column], [rows.start, columns.start]);
        for y in rows {
            for x in columns.clone() {
                let value = at([row, column], [y, x]) - start;
                taps.push(Tap { value, weight: (y * kernel[1] + x) * channels });
            }
        }
        start
    }
}

impl Run<'_> {
    /// `R` windows side by side with the same taps; `start` is where the first begins.
    #[inline(always)]
    fn windows<S: Simd, const R: usize>(&mut self, simd: S, start: usize, to: usize, taps: &[Tap]) {
        let channels = self.depthwise.geometry.channels_out;
        let whole = channels / S::F32_LANES * S::F32_LANES;
        let mut channel = 0;
        // Single windows have but one sum for each vector: more vectors hide the latency.
        if R == 1 {
            while channel + 4 * S::F32_LANES <= whole {
                self.block::<S, R, 4, true>(simd, start, to, taps, channel);
                channel += 4 * S::F32_LANES;
            }
        }
        while channel < whole {
            self.block::<S, R, 1, true>(simd, start, to, taps, channel);
            channel += S::F32_LANES;
        }
        if channel < channels && whole > 0 {
            // The last vector again, with those that are missing: cheaper than a part of a vector.
            self.block::<S, R, 1, true>(simd, start, to, taps, channels - S::F32_LANES);
        } else if channel < channels {
            self.block::<S, R, 1, false>(simd, start, to, taps, channel);
        }
    }

    #[inline(always)]
    fn block<S: Simd, const R: usize, const V: usize, const WHOLE: bool>(
        &mut self,
        simd: S,
        start: usize,
        to: usize,
        taps: &[Tap],
        channel: usize,
    ) {
        let Geometry { stride, channels_in: channels, .. } = self.depthwise.geometry;
        let width = if WHOLE { V * S::F32_LANES } else { channels - channel };
        let bias = &self.depthwise.bias[channel..channel + width];
        let sums = [load::<S, V>(simd, bias); R];
        let (step, weights) = (stride[1] * channels, &self.depthwise.weights.as_slice()[channel..]);
        let values = self.x.get(start + channel..).unwrap_or_default();
        let mut sums =
            add_products::<S, R, V, WHOLE>(simd, sums, values, step, weights, taps, width);
        self.steps.apply::<S, R, V>(simd, &mut sums, to, channel, width);
        for (index, values) in sums.iter().enumerate() {
            let at = (to + index) * channels + channel;
            store::<S, V>(simd, values, &mut self.y[at..at + width]);
        }
    }
}

/// The innermost loop, over the values of the kernel; `width` channels, `V` vectors if they are whole.
#[inline(always)]
fn add_products<S: Simd, const R: usize, const V: usize, const WHOLE: bool>(
    simd: S,
    mut sums: [[S::f32s; V]; R],
    values: &[f32],
    step: usize,
    weights: &[f32],
    taps: &[Tap],
    width: usize,
) -> [[S::f32s; V]; R] {
    for tap in taps {
        let weights = vectors::<S, V, WHOLE>(simd, &weights[tap.weight..][..width]);
        let values = &values[tap.value..][..(R - 1) * step + width];
        for r in 0..R {
            let values = vectors::<S, V, WHOLE>(simd, &values[r * step..][..width]);
            for v in 0..V {
                sums[r][v] = simd.mul_add_e_f32s(values[v], weights[v], sums[r][v]);
            }
        }
    }
    sums
}

/// `V` vectors from memory; only those that are whole need no question for each.
#[inline(always)]
fn vectors<S: Simd, const V: usize, const WHOLE: bool>(simd: S, from: &[f32]) -> [S::f32s; V] {
    if !WHOLE {
        return load::<S, V>(simd, from);
    }
    let mut values = [simd.splat_f32s(0.0); V];
    values.copy_from_slice(&S::as_simd_f32s(from).0[..V]);
    values
}
