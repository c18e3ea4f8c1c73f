//! Products with constant weights, and convolutions as such products.
//!
//! A convolution over images in channels-last order is a product in which a row of the left side is
//! a window of the image. Instead of copying windows into a matrix first, the innermost loop reads
//! each window where it lies: it consists of a few contiguous segments, one for each row of the
//! kernel, at the same distances for each window.

use crate::epilogue::{Beside, Step, Steps, load, store};
use crate::packed::{Packed, Share};
use crate::{arch, cache, lanes, vector};
use pulp::{Simd, WithSimd};
use std::sync::Arc;

pub use forebay_program::products::Matrices;
pub use forebay_program::windows::Geometry;

/// Vectors side by side in one panel of weights.
const VECTORS: usize = 2;
/// Rows of the left side that are worked on before the next panel of weights is read, at least and at most.
const BLOCK: [usize; 2] = [24, 4096];

/// The right side of a product, in the order in which the innermost loop reads it: panels of a few
/// vectors of channels, and in each panel one line for each value of the left side.
#[derive(Debug, Clone)]
struct Weights {
    values: Arc<Packed>,
    lines: usize,
    channels: usize,
}

impl Weights {
    fn new(lines: usize, channels: usize, weight: impl Fn(usize, usize) -> f32) -> Self {
        let lanes = lanes();
        let vectors = channels.div_ceil(lanes);
        let mut values = Packed::zeros(vectors * lanes * lines);
        let data = values.as_mut_slice();
        for channel in 0..channels {
            let (panel, lane) = (channel / (VECTORS * lanes), channel % (VECTORS * lanes));
            let width = (vectors - panel * VECTORS).min(VECTORS) * lanes;
            let first = panel * VECTORS * lanes * lines + lane;
            for line in 0..lines {
                data[first + line * width] = weight(line, channel);
            }
        }
        Self { values: Arc::new(values), lines, channels }
    }

    /// The values as they were given, line by line.
    fn unpack(&self) -> Vec<f32> {
        let lanes = lanes();
        let mut made = Vec::with_capacity(self.lines * self.channels);
        for line in 0..self.lines {
            for panel in 0..self.panels(lanes) {
                let width = self.vectors(panel, lanes) * lanes;
                let count = width.min(self.channels - panel * VECTORS * lanes);
                made.extend_from_slice(&self.panel(panel, lanes)[line * width..][..count]);
            }
        }
        made
    }

    fn vectors(&self, panel: usize, lanes: usize) -> usize {
        (self.channels.div_ceil(lanes) - panel * VECTORS).min(VECTORS)
    }

    fn panels(&self, lanes: usize) -> usize {
        self.channels.div_ceil(VECTORS * lanes)
    }

    fn panel(&self, panel: usize, lanes: usize) -> &[f32] {
        let first = panel * VECTORS * lanes * self.lines;
        let length = self.vectors(panel, lanes) * lanes * self.lines;
        &self.values.as_slice()[first..first + length]
    }
}

/// `y = x * w + b` for rows of `x` that follow one another.
#[derive(Debug, Clone)]
pub struct Product {
    weights: Weights,
    bias: Vec<f32>,
}

impl Product {
    /// `weight(line, channel)` for as many lines as a row of `x` has values; a bias for each
    /// channel, or none.
    pub fn new(
        lines: usize,
        channels: usize,
        weight: impl Fn(usize, usize) -> f32,
        bias: &[f32],
    ) -> Self {
        let bias = if bias.len() == channels { bias.to_vec() } else { vec![0.0; channels] };
        Self { weights: Weights::new(lines, channels, weight), bias }
    }

    /// Lets the weights be shared.
    pub fn share(&mut self, share: Share<'_>) {
        share(&mut self.weights.values);
    }

    /// Lines and channels.
    #[must_use]
    pub fn sizes(&self) -> [usize; 2] {
        [self.weights.lines, self.weights.channels]
    }

    /// The weights that it was made of, line by line.
    #[must_use]
    pub fn unpack(&self) -> Vec<f32> {
        self.weights.unpack()
    }

    /// Bytes of memory that it takes beside its weights.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of_val(self.bias.as_slice())
    }

    /// Computes as many rows as `y` has; the steps go by the rows of `y`.
    pub fn run(&self, x: &[f32], y: &mut [f32], steps: &[Step], tensors: &[Beside<'_>]) {
        let channels = self.weights.channels;
        let rows = y.len() / channels.max(1);
        arch().dispatch(Run {
            x,
            windows: Windows { table: &[], stride: self.weights.lines, image: 0 },
            segments: &[0],
            length: self.weights.lines,
            fresh: self.weights.lines,
            weights: &self.weights,
            bias: &self.bias,
            steps: Steps { steps, tensors, channels },
            y,
            rows,
            stride: channels,
            channel: 0,
        });
    }
}

/// Computes `y = x * w` of two matrices that are both computed.
pub fn multiply(matrices: &Matrices, x: &[f32], w: &[f32], y: &mut [f32]) {
    if matrices.rows == 1 && lanes() > 1 && vector::multiply(matrices, x, w, y) {
        return;
    }
    let weight = |line, channel| w[line * matrices.w_line + channel * matrices.w_channel];
    let weights = Weights::new(matrices.lines, matrices.channels, weight);
    arch().dispatch(Run {
        x,
        windows: Windows { table: &[], stride: matrices.x_row, image: 0 },
        segments: &[0],
        length: matrices.lines,
        fresh: matrices.lines,
        weights: &weights,
        bias: &vec![0.0; matrices.channels],
        steps: Steps { steps: &[], tensors: &[], channels: matrices.channels },
        y,
        rows: matrices.rows,
        stride: matrices.y_row,
        channel: 0,
    });
}

/// A convolution of images in channels-last order with constant weights.
#[derive(Debug, Clone)]
pub struct Convolution {
    /// One for each group.
    weights: Vec<Weights>,
    bias: Arc<[f32]>,
    layout: Layout,
}

/// Positions of a convolution's windows in images of one size.
#[derive(Debug, Clone)]
struct Layout {
    geometry: Geometry,
    output: [usize; 2],
    segments: Vec<usize>,
    length: usize,
    /// Beginning of each window; empty if windows follow one another.
    table: Vec<usize>,
}

impl Layout {
    fn new(geometry: Geometry) -> Option<Self> {
        let Geometry { kernel, dilation, stride, channels_in, groups, .. } = geometry;
        let output = geometry.output()?;
        let inner = channels_in.checked_div(groups)?;
        let width = geometry.padded()[1];
        // Neighbours in a row of the kernel are neighbours in memory too.
        let joined = groups == 1 && (dilation[1] == 1 || kernel[1] == 1);
        let (columns, length) = if joined { (1, kernel[1] * inner) } else { (kernel[1], inner) };
        let segment = |row: usize, column: usize| {
            (row * dilation[0] * width + column * dilation[1]) * channels_in
        };
        let segments = (0..kernel[0])
            .flat_map(|row| (0..columns).map(move |column| segment(row, column)))
            .collect();
        let is_plain = kernel == [1, 1] && stride == [1, 1] && !geometry.is_padded();
        let base = |row: usize, column: usize| {
            (row * stride[0] * width + column * stride[1]) * channels_in
        };
        let windows =
            (0..output[0]).flat_map(|row| (0..output[1]).map(move |column| base(row, column)));
        let table = if is_plain { Vec::new() } else { windows.collect() };
        Some(Self { geometry, output, segments, length, table })
    }
}

impl Convolution {
    /// Weights in the order output channel, input channel of the group, row, column; a bias for
    /// each output channel, or none. `None` if sizes contradict each other.
    #[must_use]
    pub fn new(geometry: Geometry, weights: &[f32], bias: &[f32]) -> Option<Self> {
        let Geometry { kernel, channels_in, channels_out, groups, .. } = geometry;
        let taps = kernel[0] * kernel[1];
        let (inner, outer) = (channels_in.checked_div(groups)?, channels_out.checked_div(groups)?);
        let divides = inner * groups == channels_in && outer * groups == channels_out;
        if !divides || inner == 0 || outer == 0 || weights.len() != channels_out * inner * taps {
            return None;
        }
        let layout = Layout::new(geometry)?;
        let packed = (0..groups).map(|group| {
            Weights::new(taps * inner, outer, |line, channel| {
                let (tap, from) = (line / inner, line % inner);
                weights[((group * outer + channel) * inner + from) * taps + tap]
            })
        });
        let bias =
            if bias.len() == channels_out { bias.into() } else { vec![0.0; channels_out].into() };
        Some(Self { weights: packed.collect(), bias, layout })
    }

    /// The same convolution of images of another size, with other frames of zeros. It shares the
    /// weights. `None` if more than that differs, or if no window fits.
    #[must_use]
    pub fn resized(&self, geometry: Geometry) -> Option<Self> {
        let layout = geometry.resizes(&self.layout.geometry).then(|| Layout::new(geometry))??;
        Some(Self { weights: self.weights.clone(), bias: Arc::clone(&self.bias), layout })
    }

    /// Number of weights.
    #[must_use]
    pub fn count(&self) -> usize {
        self.weights.iter().map(|weights| weights.lines * weights.channels).sum()
    }

    /// The weights that it was made of, in their order.
    #[must_use]
    pub fn unpack(&self) -> Vec<f32> {
        let taps = self.layout.geometry.kernel.iter().product::<usize>();
        let mut made = Vec::with_capacity(self.count());
        for weights in &self.weights {
            let (lines, inner) = (weights.unpack(), weights.lines / taps.max(1));
            for channel in 0..weights.channels {
                for from in 0..inner {
                    let place = |tap| (tap * inner + from) * weights.channels + channel;
                    made.extend((0..taps).map(|tap| lines[place(tap)]));
                }
            }
        }
        made
    }

    /// Lets the weights be shared.
    pub fn share(&mut self, share: Share<'_>) {
        self.weights.iter_mut().for_each(|weights| share(&mut weights.values));
    }

    /// Bytes of memory that it takes beside its weights.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.bias)
            + size_of_val(self.layout.segments.as_slice())
            + size_of_val(self.layout.table.as_slice())
    }

    /// Convolves as many images as `x` holds; the steps go by the rows of `y`.
    pub fn run(&self, x: &[f32], y: &mut [f32], steps: &[Step], tensors: &[Beside<'_>]) {
        let Layout { geometry, segments, length, table, .. } = &self.layout;
        let Geometry { channels_in, channels_out, groups, .. } = *geometry;
        let padded;
        let x = if geometry.is_padded() {
            padded = pad(x, geometry);
            &padded[..]
        } else {
            x
        };
        let [height, width] = geometry.padded();
        let windows = Windows { table, stride: channels_in, image: height * width * channels_in };
        let rows = y.len() / channels_out;
        // A window has as many columns that the one before it has not as it is further on.
        let fresh = geometry.kernel[0] * geometry.stride[1].min(geometry.kernel[1]) * channels_in;
        for (group, weights) in self.weights.iter().enumerate() {
            arch().dispatch(Run {
                x: &x[group * (channels_in / groups)..],
                windows,
                segments,
                length: *length,
                fresh,
                weights,
                bias: &self.bias,
                steps: Steps { steps, tensors, channels: channels_out },
                y: &mut *y,
                rows,
                stride: channels_out,
                channel: group * (channels_out / groups),
            });
        }
    }

    /// Height and width of the output.
    #[must_use]
    pub fn output(&self) -> [usize; 2] {
        self.layout.output
    }
}

/// The images with their frames of zeros.
fn pad(x: &[f32], geometry: &Geometry) -> Vec<f32> {
    let channels = geometry.channels_in;
    let ([height, width], [_, wide]) = (geometry.input, geometry.padded());
    let (line, image) = (width * channels, height * width * channels);
    let mut padded = Vec::new();
    let grow = |padded: &mut Vec<f32>, pixels: usize| {
        padded.resize(padded.len() + pixels * channels, 0.0);
    };
    padded.reserve_exact(
        x.len() / image.max(1) * geometry.padded()[0] * geometry.padded()[1] * channels,
    );
    for image in x.chunks_exact(image.max(1)) {
        grow(&mut padded, geometry.before[0] * wide);
        for line in image.chunks_exact(line) {
            grow(&mut padded, geometry.before[1]);
            padded.extend_from_slice(line);
            grow(&mut padded, geometry.after[1]);
        }
        grow(&mut padded, geometry.after[0] * wide);
    }
    padded
}

/// The start of each window.
#[derive(Clone, Copy)]
struct Windows<'a> {
    /// Within an image; empty: at multiples of `stride` in all images.
    table: &'a [usize],
    stride: usize,
    /// Values of an image.
    image: usize,
}

impl Windows<'_> {
    #[inline(always)]
    fn bases<const R: usize>(&self, row: usize) -> [usize; R] {
        let mut bases = [0; R];
        if self.table.is_empty() {
            for (index, base) in bases.iter_mut().enumerate() {
                *base = (row + index) * self.stride;
            }
            return bases;
        }
        let (mut image, mut window) = (row / self.table.len(), row % self.table.len());
        for base in &mut bases {
            if window == self.table.len() {
                (image, window) = (image + 1, 0);
            }
            *base = image * self.image + self.table[window];
            window += 1;
        }
        bases
    }
}

struct Run<'a> {
    x: &'a [f32],
    windows: Windows<'a>,
    segments: &'a [usize],
    length: usize,
    /// Values that a row has and the one before it has not.
    fresh: usize,
    weights: &'a Weights,
    bias: &'a [f32],
    steps: Steps<'a>,
    y: &'a mut [f32],
    rows: usize,
    /// Values in a row of `y`.
    stride: usize,
    /// First channel of this group.
    channel: usize,
}

impl WithSimd for Run<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let lanes = S::F32_LANES;
        let [least, most] = BLOCK;
        let block = (cache::values() / self.fresh.max(1)).clamp(least, most) / least * least;
        let mut first = 0;
        while first < self.rows {
            let last = (first + block).min(self.rows);
            for panel in 0..self.weights.panels(lanes) {
                let weights = self.weights.panel(panel, lanes);
                let channel = panel * VECTORS * lanes;
                let width = (self.weights.channels - channel).min(VECTORS * lanes);
                let part = Part { weights, channel: self.channel + channel, width };
                if self.weights.vectors(panel, lanes) == 1 {
                    self.rows::<S, 1>(simd, &part, first, last);
                } else {
                    self.rows::<S, 2>(simd, &part, first, last);
                }
            }
            first = last;
        }
    }
}

/// One panel.
struct Part<'a> {
    weights: &'a [f32],
    channel: usize,
    width: usize,
}

impl Run<'_> {
    #[inline(always)]
    fn rows<S: Simd, const V: usize>(
        &mut self,
        simd: S,
        part: &Part<'_>,
        first: usize,
        last: usize,
    ) {
        let mut row = first;
        // As many sums as there are registers for.
        if S::REGISTER_COUNT >= 32 {
            while last - row >= 12 {
                self.tile::<S, 12, V>(simd, part, row);
                row += 12;
            }
            while last - row >= 8 {
                self.tile::<S, 8, V>(simd, part, row);
                row += 8;
            }
        }
        while last - row >= 6 {
            self.tile::<S, 6, V>(simd, part, row);
            row += 6;
        }
        if last - row >= 4 {
            self.tile::<S, 4, V>(simd, part, row);
            row += 4;
        }
        if last - row >= 2 {
            self.tile::<S, 2, V>(simd, part, row);
            row += 2;
        }
        if last - row >= 1 {
            self.tile::<S, 1, V>(simd, part, row);
        }
    }

    /// `R` rows by one panel.
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const V: usize>(
        &mut self,
        simd: S,
        part: &Part<'_>,
        row: usize,
    ) {
        let bases = self.windows.bases::<R>(row);
        let bias = &self.bias[part.channel..part.channel + part.width];
        let mut sums = [load::<S, V>(simd, bias); R];
        let mut weights = S::as_simd_f32s(part.weights).0.as_chunks::<V>().0;
        for &segment in self.segments {
            let (lines, rest) = weights.split_at(self.length);
            weights = rest;
            let mut windows = [self.x; R];
            for (window, &base) in windows.iter_mut().zip(&bases) {
                *window = &self.x[base + segment..][..self.length];
            }
            sums = add_products::<S, R, V>(simd, sums, &windows, lines);
        }
        self.steps.apply::<S, R, V>(simd, &mut sums, row, part.channel, part.width);
        for (index, values) in sums.iter().enumerate() {
            let at = (row + index) * self.stride + part.channel;
            store::<S, V>(simd, values, &mut self.y[at..at + part.width]);
        }
    }
}

/// The innermost loop: `R` windows by as many lines of weights as each has values.
#[inline(always)]
fn add_products<S: Simd, const R: usize, const V: usize>(
    simd: S,
    sums: [[S::f32s; V]; R],
    windows: &[&[f32]; R],
    lines: &[[S::f32s; V]],
) -> [[S::f32s; V]; R] {
    let mut sums = sums;
    let windows = *windows;
    for window in &windows {
        // Said once, so that it need not be asked for each value.
        assert!(window.len() == lines.len());
    }
    for (k, line) in lines.iter().enumerate() {
        for r in 0..R {
            let value = simd.splat_f32s(windows[r][k]);
            for v in 0..V {
                sums[r][v] = simd.mul_add_e_f32s(value, line[v], sums[r][v]);
            }
        }
    }
    sums
}
