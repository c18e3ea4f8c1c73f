//! Sums, maxima and softmax along an axis, and maxima of windows of images.

use crate::arch;
use crate::dense::Geometry;
use crate::epilogue::{load, store};
use crate::math;
use pulp::{Simd, WithSimd};

pub use forebay_program::Reduction;

/// One vector's step of a reduction.
trait Reduces {
    fn start(self) -> f32;
    fn add<S: Simd>(self, simd: S, sum: S::f32s, value: S::f32s) -> S::f32s;
    fn join(self, a: f32, b: f32) -> f32;
}

impl Reduces for Reduction {
    fn start(self) -> f32 {
        match self {
            Self::Max => f32::NEG_INFINITY,
            Self::Sum | Self::MeanOfSquares => 0.0,
        }
    }

    #[inline(always)]
    fn add<S: Simd>(self, simd: S, sum: S::f32s, value: S::f32s) -> S::f32s {
        match self {
            Self::Sum => simd.add_f32s(sum, value),
            Self::Max => math::max(simd, sum, value),
            Self::MeanOfSquares => simd.mul_add_e_f32s(value, value, sum),
        }
    }

    #[inline(always)]
    fn join(self, a: f32, b: f32) -> f32 {
        match self {
            // As the vectors do it: NaN stays NaN if it comes second.
            Self::Max => {
                if a > b {
                    a
                } else {
                    b
                }
            }
            Self::Sum | Self::MeanOfSquares => a + b,
        }
    }
}

/// Whether any of the values is NaN.
pub fn any_nan(values: &[f32]) -> bool {
    // Over all of it, so that it compiles to a few vector instructions.
    values.iter().fold(false, |any, value| any | value.is_nan())
}

/// Reduces the middle axis of `[outer, count, inner]`; `y` is `[outer, inner]`.
pub fn reduce(reduction: Reduction, x: &[f32], y: &mut [f32], count: usize, inner: usize) {
    if count > 0 && inner > 0 {
        arch().dispatch(Reduce { reduction, x, y, count, inner });
    }
}

struct Reduce<'a> {
    reduction: Reduction,
    x: &'a [f32],
    y: &'a mut [f32],
    count: usize,
    inner: usize,
}

impl WithSimd for Reduce<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { reduction, x, y, count, inner } = self;
        let images = x.chunks_exact(count * inner).zip(y.chunks_exact_mut(inner));
        for (x, y) in images {
            if inner == 1 {
                y[0] = along(simd, reduction, x);
            } else {
                across(simd, reduction, x, y);
            }
        }
        if reduction == Reduction::MeanOfSquares {
            #[allow(clippy::cast_precision_loss, reason = "a divisor")]
            let scale = 1.0 / count as f32;
            y.iter_mut().for_each(|y| *y *= scale);
        }
    }
}

/// Of values one after the other.
#[inline(always)]
fn along<S: Simd>(simd: S, reduction: Reduction, x: &[f32]) -> f32 {
    const SUMS: usize = 4;
    let mut sums = [simd.splat_f32s(reduction.start()); SUMS];
    let (whole, rest) = S::as_simd_f32s(x);
    let (blocks, singles) = whole.as_chunks::<SUMS>();
    for block in blocks {
        for (sum, value) in sums.iter_mut().zip(block) {
            *sum = reduction.add(simd, *sum, *value);
        }
    }
    for value in singles {
        sums[0] = reduction.add(simd, sums[0], *value);
    }
    let mut sum = sums[0];
    for &part in &sums[1..] {
        sum = match reduction {
            Reduction::Max => math::max(simd, sum, part),
            Reduction::Sum | Reduction::MeanOfSquares => simd.add_f32s(sum, part),
        };
    }
    let mut total = match reduction {
        Reduction::Max => simd.reduce_max_f32s(sum),
        Reduction::Sum | Reduction::MeanOfSquares => simd.reduce_sum_f32s(sum),
    };
    for &value in rest {
        let value = if reduction == Reduction::MeanOfSquares { value * value } else { value };
        total = reduction.join(total, value);
    }
    total
}

/// Of rows one below the other.
#[inline(always)]
fn across<S: Simd>(simd: S, reduction: Reduction, x: &[f32], y: &mut [f32]) {
    const VECTORS: usize = 4;
    let inner = y.len();
    let width = VECTORS * S::F32_LANES;
    for (index, y) in y.chunks_mut(width).enumerate() {
        let mut sums = [simd.splat_f32s(reduction.start()); VECTORS];
        for row in x.chunks_exact(inner) {
            let values = load::<S, VECTORS>(simd, &row[index * width..][..y.len()]);
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum = reduction.add(simd, *sum, value);
            }
        }
        store::<S, VECTORS>(simd, &sums, y);
    }
}

/// Softmax of each row of `count` values, in place.
pub fn softmax(values: &mut [f32], count: usize) {
    if count > 0 {
        arch().dispatch(Softmax { values, count });
    }
}

struct Softmax<'a> {
    values: &'a mut [f32],
    count: usize,
}

impl WithSimd for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for row in self.values.chunks_exact_mut(self.count) {
            let greatest = simd.splat_f32s(along(simd, Reduction::Max, row));
            let mut sum = simd.splat_f32s(0.0);
            let (whole, rest) = S::as_mut_simd_f32s(row);
            for value in whole {
                *value = math::exp(simd, simd.sub_f32s(*value, greatest));
                sum = simd.add_f32s(sum, *value);
            }
            let mut total = simd.reduce_sum_f32s(sum);
            if !rest.is_empty() {
                let part = math::exp(simd, simd.sub_f32s(simd.partial_load_f32s(rest), greatest));
                simd.partial_store_f32s(rest, part);
                total += rest.iter().sum::<f32>();
            }
            let scale = 1.0 / total;
            let (whole, rest) = S::as_mut_simd_f32s(row);
            let factor = simd.splat_f32s(scale);
            for value in whole {
                *value = simd.mul_f32s(*value, factor);
            }
            rest.iter_mut().for_each(|value| *value *= scale);
        }
    }
}

/// The greatest value of each channel in each window of images in channels-last order; what lies
/// outside of the image does not count. `None` if no window fits.
pub fn max_pool(geometry: &Geometry, x: &[f32], y: &mut [f32]) -> Option<()> {
    let output = geometry.output()?;
    let channels = geometry.channels_in;
    if output[0] * output[1] * channels > 0 {
        arch().dispatch(MaxPool { geometry, output, x, y });
    }
    Some(())
}

struct MaxPool<'a> {
    geometry: &'a Geometry,
    output: [usize; 2],
    x: &'a [f32],
    y: &'a mut [f32],
}

impl WithSimd for MaxPool<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Geometry { input, kernel, stride, dilation, before, channels_in, .. } = *self.geometry;
        let [height, width] = self.output;
        let image = input[0] * input[1] * channels_in;
        for (index, y) in self.y.chunks_exact_mut(channels_in).enumerate() {
            let (row, column) = (index / width % height, index % width);
            let x = &self.x[index / (width * height) * image..][..image];
            y.fill(f32::NEG_INFINITY);
            for tap in 0..kernel[0] * kernel[1] {
                let at = row * stride[0] + tap / kernel[1] * dilation[0];
                let left = column * stride[1] + tap % kernel[1] * dilation[1];
                let (Some(at), Some(left)) =
                    (at.checked_sub(before[0]), left.checked_sub(before[1]))
                else {
                    continue;
                };
                if at < input[0] && left < input[1] {
                    let values = &x[(at * input[1] + left) * channels_in..][..channels_in];
                    greater(simd, y, values);
                }
            }
        }
    }
}

#[inline(always)]
fn greater<S: Simd>(simd: S, y: &mut [f32], x: &[f32]) {
    let ((y, y_rest), (x, x_rest)) = (S::as_mut_simd_f32s(y), S::as_simd_f32s(x));
    for (y, x) in y.iter_mut().zip(x) {
        *y = math::max(simd, *y, *x);
    }
    for (y, x) in y_rest.iter_mut().zip(x_rest) {
        *y = Reduction::Max.join(*y, *x);
    }
}

/// Repeats each pixel of images in channels-last order so often in height and in width.
pub fn repeat(scales: [usize; 2], width: usize, channels: usize, x: &[f32], y: &mut [f32]) {
    let (line, wide) = (width * channels, width * channels * scales[1]);
    if line == 0 || scales.contains(&0) {
        return;
    }
    for (from, to) in x.chunks_exact(line).zip(y.chunks_exact_mut(wide * scales[0])) {
        let (first, others) = to.split_at_mut(wide);
        let pixels = first.chunks_exact_mut(channels * scales[1]);
        for (from, to) in from.chunks_exact(channels).zip(pixels) {
            to.chunks_exact_mut(channels).for_each(|to| to.copy_from_slice(from));
        }
        others.chunks_exact_mut(wide).for_each(|to| to.copy_from_slice(first));
    }
}
