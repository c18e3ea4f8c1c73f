//! The epilogue of a fused operation: operations on a value between its sum and the memory.
//!
//! A tensor that is written only to be read once costs more than the arithmetic on it. So operations
//! on single values become steps of the operation before them, which each device takes while a value is
//! in a register.

/// One step. Channels are the last axis of the output.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Nothing below 0.
    Relu,
    /// Nothing outside of these.
    Clip(f32, f32),
    /// Values below 0 times this.
    Leaky(f32),
    /// The value times `clip(scale * value + offset, low, high)`; with 1/6, 1/2, 0, 1: hard swish.
    Gate {
        /// Factor of the value.
        scale: f32,
        /// The offset added to the product.
        offset: f32,
        /// Least of the gate.
        low: f32,
        /// Most of the gate.
        high: f32,
    },
    /// 1 / (1 + e^-x).
    Sigmoid,
    /// x times its sigmoid.
    Silu,
    /// Hyperbolic tangent.
    Tanh,
    /// Error function.
    Erf,
    /// x / 2 * (1 + erf(x / sqrt(2))).
    Gelu,
    /// Without its sign.
    Abs,
    /// Times itself.
    Square,
    /// Square root.
    Sqrt,
    /// 1 / square root.
    Rsqrt,
    /// 1 / value.
    Recip,
    /// e^x.
    Exp,
    /// Plus a number.
    Add(f32),
    /// Times a number.
    Mul(f32),
    /// Plus a number for each channel.
    AddChannel(Vec<f32>),
    /// Times a number for each channel.
    MulChannel(Vec<f32>),
    /// Together with the operation's next tensor.
    Tensor(Pair),
    /// A formula of the value alone.
    Formula(Formula),
}

/// An operation on two values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pair {
    /// a + b
    Add,
    /// a - b
    Sub,
    /// b - a
    From,
    /// a * b
    Mul,
    /// a / b
    Div,
    /// b / a
    Into,
}

/// A formula in which the value, or something made of it, occurs more than once.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Formula {
    /// One after the other; the result of the last is the new value.
    pub lines: Vec<Line>,
}

/// One line of a formula. Registers are counted from 0; the first holds the value.
#[derive(Debug, Clone, PartialEq)]
pub enum Line {
    /// A step that reads neither tensor nor channel.
    One {
        /// The step.
        step: Step,
        /// Register that is read.
        a: usize,
        /// Register that is written.
        to: usize,
    },
    /// Two registers.
    Two {
        /// The operation on the two.
        pair: Pair,
        /// First register.
        a: usize,
        /// Second register.
        b: usize,
        /// Register that is written.
        to: usize,
    },
}

/// Registers of a formula.
pub const REGISTERS: usize = 4;

/// The mapping of a tensor's rows to the rows of an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spread {
    /// Rows of the output one after the other that read the same row.
    pub repeat: usize,
    /// Rows that the tensor has, after which it begins again.
    pub rows: usize,
    /// Whether each row has one value for each channel, or one for all.
    pub has_channels: bool,
}

impl Spread {
    /// A tensor of the output's shape.
    pub const SAME: Self = Self { repeat: 1, rows: usize::MAX, has_channels: true };

    /// The row of the tensor that goes with a row of the output.
    #[inline(always)]
    #[must_use]
    pub fn row(&self, row: usize) -> usize {
        if self.repeat == 1 && row < self.rows { row } else { row / self.repeat % self.rows }
    }

    /// The mapping of a tensor's rows to those of a larger one; channels are at `axis` of both.
    #[must_use]
    pub fn of(other: &[usize], shape: &[usize], axis: usize) -> Option<Self> {
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
        Some(Self { repeat, rows, has_channels })
    }
}
