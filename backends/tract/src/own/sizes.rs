//! Layouts that a kernel derives from the sizes of its tensors, before a run or during it.

use forebay_kernels::dense::{Geometry, Matrices};
use forebay_kernels::steps::Spread;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::ops::cnn::PoolSpec;

/// The windows of a convolution or a pool, over images of any size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Windows {
    spec: PoolSpec,
    groups: usize,
}

impl Windows {
    /// Those of a specification; `None` if there are no kernels for them.
    pub(super) fn new(spec: &PoolSpec, groups: usize) -> Option<Self> {
        matches!(spec.rank(), 1 | 2).then(|| Self { spec: spec.clone(), groups })
    }

    /// Over images of this shape, channels last; `None` if it is none of images.
    pub(super) fn geometry(&self, shape: &[usize]) -> Option<Geometry> {
        let (&channels, sizes) = shape.split_last()?;
        let sizes = &sizes[sizes.len().checked_sub(self.spec.rank())?..];
        (channels == self.spec.input_channels).then(|| self.over(sizes))
    }

    /// Over images of one window.
    pub(super) fn least(&self) -> Geometry {
        let size = |axis: usize| self.spec.kernel_shape[axis] * self.spec.dilation(axis);
        self.over(&(0..self.spec.rank()).map(size).collect::<TVec<_>>())
    }

    pub(super) fn over(&self, sizes: &[usize]) -> Geometry {
        let spec = &self.spec;
        let padding = spec.computed_padding(sizes);
        // A convolution over one axis is one over the width of an image that is 1 high.
        let two = |of: &dyn Fn(usize) -> usize, none: usize| match spec.rank() {
            1 => [none, of(0)],
            _ => [of(0), of(1)],
        };
        Geometry {
            input: two(&|axis| sizes[axis], 1),
            kernel: two(&|axis| spec.kernel_shape[axis], 1),
            stride: two(&|axis| spec.stride(axis), 1),
            dilation: two(&|axis| spec.dilation(axis), 1),
            before: two(&|axis| padding[axis].pad_before, 0),
            after: two(&|axis| padding[axis].pad_after, 0),
            channels_in: spec.input_channels,
            channels_out: spec.output_channels,
            groups: self.groups,
        }
    }
}

/// How the axes of two tensors go together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pairing {
    /// Which input is the left side.
    pub(super) slot: usize,
    /// Where each axis stands in the left side, the right side and the output.
    pub(super) axes: Vec<Places>,
}

pub(super) type Places = (Option<usize>, Option<usize>, Option<usize>);

/// Products of equal sizes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Products {
    pub(super) matrices: Matrices,
    /// Where the left side, the right side and the output of each begin.
    pub(super) places: Vec<[usize; 3]>,
}

impl Pairing {
    /// The products for these shapes of the left side, the right side and the output; `None` if they
    /// are none in our sense.
    pub(super) fn products(&self, x: &[usize], w: &[usize], y: &[usize]) -> Option<Products> {
        let stride = |shape: &[usize], place: usize| shape[place + 1..].iter().product::<usize>();
        let mut matrices = Matrices {
            rows: 1,
            lines: 1,
            channels: 1,
            x_row: 0,
            w_line: 0,
            w_channel: 0,
            y_row: 0,
        };
        let mut begin = vec![[0; 3]];
        for &(a, b, c) in &self.axes {
            let is_one =
                |shape: &[usize], place: Option<usize>| place.is_none_or(|place| shape[place] == 1);
            match (a, b, c) {
                _ if is_one(x, a) && is_one(w, b) && is_one(y, c) => (),
                // Each side of its own axis, so a second one of a kind is not ours.
                (Some(a), Some(b), None) if x[a] == w[b] && matrices.lines == 1 => {
                    (matrices.lines, matrices.w_line) = (x[a], stride(w, b));
                    if stride(x, a) != 1 {
                        return None;
                    }
                }
                (Some(a), None, Some(c)) if x[a] == y[c] && matrices.rows == 1 => {
                    (matrices.rows, matrices.x_row, matrices.y_row) =
                        (x[a], stride(x, a), stride(y, c));
                }
                (None, Some(b), Some(c)) if w[b] == y[c] && matrices.channels == 1 => {
                    (matrices.channels, matrices.w_channel) = (w[b], stride(w, b));
                    if stride(y, c) != 1 {
                        return None;
                    }
                }
                (Some(a), Some(b), Some(c)) if x[a] == w[b] && x[a] == y[c] => {
                    let steps = [stride(x, a), stride(w, b), stride(y, c)];
                    let along = |from: &[usize; 3]| {
                        let from = *from;
                        (0..x[a]).map(move |index| [0, 1, 2].map(|i| from[i] + index * steps[i]))
                    };
                    begin = begin.iter().flat_map(along).collect();
                }
                _ => return None,
            }
        }
        Some(Products { matrices, places: begin })
    }
}

/// How the rows of a tensor go with those of a larger one; channels are at `axis` of both.
pub(super) fn spread(other: &[usize], shape: &[usize], axis: usize) -> Option<Spread> {
    let has_channels = other[axis] == shape[axis];
    if !has_channels && other[axis] != 1 {
        return None;
    }
    // Rows that repeat a row, rows of the tensor, and rows after which it begins again.
    let (mut repeat, mut rows, mut again) = (1, 1, 1);
    for place in (0..shape.len()).rev().filter(|&place| place != axis && shape[place] > 1) {
        if other[place] == shape[place] && again == 1 {
            rows *= shape[place];
        } else if other[place] != 1 {
            return None;
        } else if rows == 1 {
            repeat *= shape[place];
        } else {
            again *= shape[place];
        }
    }
    Some(Spread { repeat, rows, has_channels })
}
