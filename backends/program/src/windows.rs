//! The windows of a convolution or a pool, before the size of the images is known and after.

/// Sizes of a convolution over two axes; one over one axis has 1 for the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Height and width of the input.
    pub input: [usize; 2],
    /// Height and width of the kernel.
    pub kernel: [usize; 2],
    /// Distance of windows.
    pub stride: [usize; 2],
    /// Distance of values within a window.
    pub dilation: [usize; 2],
    /// Zeros above and to the left.
    pub before: [usize; 2],
    /// Zeros below and to the right.
    pub after: [usize; 2],
    /// Channels of the input.
    pub channels_in: usize,
    /// Channels of the output.
    pub channels_out: usize,
    /// Groups of channels that do not see each other.
    pub groups: usize,
}

impl Geometry {
    /// Height and width of the output; `None` if no window fits.
    #[must_use]
    pub fn output(&self) -> Option<[usize; 2]> {
        let size = |axis: usize| {
            let padded = self.input[axis] + self.before[axis] + self.after[axis];
            let window = self.kernel[axis].checked_sub(1)? * self.dilation[axis] + 1;
            Some(padded.checked_sub(window)?.checked_div(self.stride[axis])? + 1)
        };
        Some([size(0)?, size(1)?])
    }

    /// Whether it differs from the other only in the size of the images and their padding.
    #[must_use]
    pub fn resizes(&self, other: &Self) -> bool {
        let sized = Self { input: self.input, before: self.before, after: self.after, ..*other };
        *self == sized
    }

    /// Height and width with the frames of zeros.
    #[must_use]
    pub fn padded(&self) -> [usize; 2] {
        [0, 1].map(|axis| self.input[axis] + self.before[axis] + self.after[axis])
    }

    /// Whether there is padding.
    #[must_use]
    pub fn is_padded(&self) -> bool {
        self.padded() != self.input
    }
}

/// The windows of a convolution or a pool, over images of any size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows {
    /// Height and width, or the width alone.
    pub axes: Vec<Window>,
    /// Channels of the input.
    pub channels_in: usize,
    /// Channels of the output.
    pub channels_out: usize,
    /// Groups of channels that do not see each other.
    pub groups: usize,
}

/// Windows along one axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Values in a window.
    pub kernel: usize,
    /// Distance of windows.
    pub stride: usize,
    /// Distance of values within a window.
    pub dilation: usize,
    /// Zeros around the image.
    pub padding: Padding,
}

/// Zeros around an image, along one axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// Numbers of padding elements before and after.
    Explicit(usize, usize),
    /// Padding so that there is a window for each stride; an odd number puts one more after.
    SameUpper,
    /// The same; of an odd number one more before.
    SameLower,
}

impl Window {
    /// Zeros before and after an image of this size.
    #[must_use]
    pub fn frame(&self, size: usize) -> [usize; 2] {
        let same = || {
            let windows = size.div_ceil(self.stride.max(1));
            let field = self.kernel.saturating_sub(1) * self.dilation + 1;
            let reached = windows.saturating_sub(1) * self.stride + field;
            let zeros = reached.saturating_sub(size);
            [zeros / 2, zeros - zeros / 2]
        };
        match self.padding {
            Padding::Explicit(before, after) => [before, after],
            Padding::SameUpper => same(),
            Padding::SameLower => {
                let [less, more] = same();
                [more, less]
            }
        }
    }
}

impl Windows {
    /// Weights that a convolution over them has; `None` if it has none: channels do not make whole
    /// groups, or a window is empty.
    #[must_use]
    pub fn weights(&self) -> Option<usize> {
        let taps: usize = self.axes.iter().map(|axis| axis.kernel).product();
        let inner = self.channels_in.checked_div(self.groups)?;
        let divides = inner * self.groups == self.channels_in
            && self.channels_out.is_multiple_of(self.groups);
        let count = self.channels_out * inner * taps;
        (divides && count > 0).then_some(count)
    }

    /// Over images of this shape, channels last; `None` if it is none of images.
    #[must_use]
    pub fn geometry(&self, shape: &[usize]) -> Option<Geometry> {
        let (&channels, sizes) = shape.split_last()?;
        let sizes = &sizes[sizes.len().checked_sub(self.axes.len())?..];
        (channels == self.channels_in).then(|| self.over(sizes))
    }

    /// Over images of one window.
    #[must_use]
    pub fn least(&self) -> Geometry {
        let sizes: Vec<_> = self.axes.iter().map(|axis| axis.kernel * axis.dilation).collect();
        self.over(&sizes)
    }

    /// Over images of this size along each axis.
    #[must_use]
    pub fn over(&self, sizes: &[usize]) -> Geometry {
        // A convolution over one axis is one over the width of an image that is 1 high.
        let two = |of: &dyn Fn(&Window, usize) -> usize, none: usize| {
            let mut each = self.axes.iter().zip(sizes).rev().map(|(axis, &size)| of(axis, size));
            let width = each.next().unwrap_or(none);
            [each.next().unwrap_or(none), width]
        };
        Geometry {
            input: two(&|_, size| size, 1),
            kernel: two(&|axis, _| axis.kernel, 1),
            stride: two(&|axis, _| axis.stride, 1),
            dilation: two(&|axis, _| axis.dilation, 1),
            before: two(&|axis, size| axis.frame(size)[0], 0),
            after: two(&|axis, size| axis.frame(size)[1], 0),
            channels_in: self.channels_in,
            channels_out: self.channels_out,
            groups: self.groups,
        }
    }
}
