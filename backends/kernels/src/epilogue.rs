//! The epilogue: operations on a value between its sum and the memory.

use crate::arch;
use crate::math;
use pulp::{Simd, WithSimd};

pub use forebay_program::steps::{Formula, Line, Pair, REGISTERS, Spread, Step};

/// A tensor that a step reads. It need not be of the output's shape: of its rows each may go with
/// several rows of the output, and each of its rows may hold one value for all channels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Beside<'a> {
    /// Its values.
    pub data: &'a [f32],
    /// The mapping of its rows to those of the output.
    pub spread: Spread,
}

/// Each vector in turn. A macro and no function that takes a closure: what is not inlined is not
/// compiled for the vector unit at hand, and would be slower than no vectors at all.
macro_rules! all {
    ($values:expr, $x:ident => $result:expr) => {
        for value in $values.iter_mut() {
            let $x = *value;
            *value = $result;
        }
    };
}

/// Each vector with the one beside it in memory.
macro_rules! beside {
    ($simd:expr, $values:expr, $others:expr, $x:ident, $other:ident => $result:expr) => {
        let (whole, rest) = S::as_simd_f32s($others);
        for (value, &$other) in $values.iter_mut().zip(whole) {
            let $x = *value;
            *value = $result;
        }
        if let (false, Some(value)) = (rest.is_empty(), $values.get_mut(whole.len())) {
            let ($x, $other) = (*value, $simd.partial_load_f32s(rest));
            *value = $result;
        }
    };
}

/// The results of `Pair`, for each vector, by one of the macros above; asked once for all.
macro_rules! pairs {
    ($simd:expr, $pair:expr, $each:ident!($($with:tt)*)) => {
        match $pair {
            Pair::Add => { $each!($($with)*, a, b => $simd.add_f32s(a, b)); }
            Pair::Sub => { $each!($($with)*, a, b => $simd.sub_f32s(a, b)); }
            Pair::From => { $each!($($with)*, a, b => $simd.sub_f32s(b, a)); }
            Pair::Mul => { $each!($($with)*, a, b => $simd.mul_f32s(a, b)); }
            Pair::Div => { $each!($($with)*, a, b => $simd.div_f32s(a, b)); }
            Pair::Into => { $each!($($with)*, a, b => $simd.div_f32s(b, a)); }
        }
    };
}

/// Each vector with the same one.
macro_rules! with {
    ($values:expr, $same:expr, $x:ident, $other:ident => $result:expr) => {
        let $other = $same;
        all!($values, $x => $result);
    };
}

/// Two lists of vectors into a third.
macro_rules! both {
    ($to:expr, $left:expr, $right:expr, $x:ident, $other:ident => $result:expr) => {
        for ((to, $x), $other) in $to.iter_mut().zip($left).zip($right) {
            *to = $result;
        }
    };
}

/// Steps, with the tensors that they take.
#[derive(Clone, Copy)]
pub(crate) struct Steps<'a> {
    pub(crate) steps: &'a [Step],
    pub(crate) tensors: &'a [Beside<'a>],
    /// Channels of the output.
    pub(crate) channels: usize,
}

impl Steps<'_> {
    /// Takes the steps with a block of values: `V` vectors of channels from `channel` on, `width`
    /// channels in all, for each of `R` rows of the output from `row` on.
    #[inline(always)]
    pub(crate) fn apply<S: Simd, const R: usize, const V: usize>(
        &self,
        simd: S,
        values: &mut [[S::f32s; V]; R],
        row: usize,
        channel: usize,
        width: usize,
    ) {
        if !self.steps.is_empty() {
            let values = values.as_flattened_mut();
            // Once for each vector unit, not once for each size of block: it is much code.
            simd.vectorize(Apply { steps: *self, simd, values, vectors: V, row, channel, width });
        }
    }
}

struct Apply<'a, S: Simd> {
    steps: Steps<'a>,
    simd: S,
    values: &'a mut [S::f32s],
    vectors: usize,
    row: usize,
    channel: usize,
    width: usize,
}

impl<S: Simd> pulp::NullaryFnOnce for Apply<'_, S> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { steps, simd, values, vectors, row, channel, width } = self;
        let mut tensors = steps.tensors.iter();
        for step in steps.steps {
            match step {
                Step::AddChannel(numbers) => {
                    let numbers = &numbers[channel..channel + width];
                    for values in values.chunks_exact_mut(vectors) {
                        beside!(simd, values, numbers, x, number => simd.add_f32s(x, number));
                    }
                }
                Step::MulChannel(numbers) => {
                    let numbers = &numbers[channel..channel + width];
                    for values in values.chunks_exact_mut(vectors) {
                        beside!(simd, values, numbers, x, number => simd.mul_f32s(x, number));
                    }
                }
                Step::Tensor(pair) => {
                    let Some(tensor) = tensors.next() else { continue };
                    for (index, values) in values.chunks_exact_mut(vectors).enumerate() {
                        let at = tensor.spread.row(row + index);
                        if tensor.spread.has_channels {
                            let first = at * steps.channels + channel;
                            let others = &tensor.data[first..first + width];
                            pairs!(simd, pair, beside!(simd, values, others));
                        } else {
                            let other = simd.splat_f32s(tensor.data[at]);
                            pairs!(simd, pair, with!(values, other));
                        }
                    }
                }
                Step::Formula(formula) => {
                    for values in values.chunks_mut(FORMULA) {
                        apply(formula, simd, values);
                    }
                }
                step => each(simd, values, step),
            }
        }
    }
}

/// Vectors that go through a formula together.
const FORMULA: usize = 8;

/// Runs a formula of each of some values.
#[inline(always)]
fn apply<S: Simd>(formula: &Formula, simd: S, values: &mut [S::f32s]) {
    let mut registers = [[simd.splat_f32s(0.0); FORMULA]; REGISTERS];
    let count = values.len().min(FORMULA);
    registers[0][..count].copy_from_slice(&values[..count]);
    let mut last = 0;
    for line in &formula.lines {
        match line {
            Line::One { step, a, to } => {
                registers[to % REGISTERS] = registers[a % REGISTERS];
                each(simd, &mut registers[to % REGISTERS], step);
                last = to % REGISTERS;
            }
            Line::Two { pair, a, b, to } => {
                let (a, b) = (registers[a % REGISTERS], registers[b % REGISTERS]);
                last = to % REGISTERS;
                pairs!(simd, pair, both!(registers[last], a, b));
            }
        }
    }
    values[..count].copy_from_slice(&registers[last][..count]);
}

/// A step of the value alone for all values; which step it is is asked once. The others change
/// nothing here.
#[inline(always)]
fn each<S: Simd>(simd: S, values: &mut [S::f32s], step: &Step) {
    let splat = |number: f32| simd.splat_f32s(number);
    let (zero, one) = (splat(0.0), splat(1.0));
    match *step {
        Step::Relu => all!(values, x => math::max(simd, zero, x)),
        Step::Clip(low, high) => {
            let (low, high) = (splat(low), splat(high));
            all!(values, x => math::clip(simd, x, low, high));
        }
        Step::Leaky(slope) => {
            let slope = splat(slope);
            all!(values, x => {
                simd.select_f32s(simd.less_than_f32s(x, zero), simd.mul_f32s(x, slope), x)
            });
        }
        Step::Gate { scale, offset, low, high } => {
            let (scale, offset, low, high) = (splat(scale), splat(offset), splat(low), splat(high));
            all!(values, x => {
                let gate = simd.mul_add_e_f32s(x, scale, offset);
                simd.mul_f32s(x, math::clip(simd, gate, low, high))
            });
        }
        Step::Sigmoid => all!(values, x => math::sigmoid(simd, x)),
        Step::Silu => all!(values, x => simd.mul_f32s(x, math::sigmoid(simd, x))),
        Step::Tanh => all!(values, x => math::tanh(simd, x)),
        Step::Erf => all!(values, x => math::erf(simd, x)),
        Step::Gelu => {
            let (half, root) = (splat(0.5), splat(std::f32::consts::FRAC_1_SQRT_2));
            all!(values, x => {
                let erf = math::erf(simd, simd.mul_f32s(x, root));
                let x = simd.mul_f32s(x, half);
                simd.mul_add_e_f32s(x, erf, x)
            });
        }
        Step::Abs => all!(values, x => simd.abs_f32s(x)),
        Step::Square => all!(values, x => simd.mul_f32s(x, x)),
        Step::Sqrt => all!(values, x => simd.sqrt_f32s(x)),
        Step::Rsqrt => all!(values, x => simd.div_f32s(one, simd.sqrt_f32s(x))),
        Step::Recip => all!(values, x => simd.div_f32s(one, x)),
        Step::Exp => all!(values, x => math::whole_exp(simd, x)),
        Step::Add(number) => {
            let number = splat(number);
            all!(values, x => simd.add_f32s(x, number));
        }
        Step::Mul(number) => {
            let number = splat(number);
            all!(values, x => simd.mul_f32s(x, number));
        }
        Step::AddChannel(_) | Step::MulChannel(_) | Step::Tensor(_) | Step::Formula(_) => (),
    }
}

/// Takes the steps with values as they are, in rows of `channels`.
pub fn run(values: &mut [f32], channels: usize, steps: &[Step], tensors: &[Beside<'_>]) {
    if channels > 0 {
        arch().dispatch(Run { values, steps: Steps { steps, tensors, channels } });
    }
}

struct Run<'a> {
    values: &'a mut [f32],
    steps: Steps<'a>,
}

impl WithSimd for Run<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        const VECTORS: usize = 8;
        for (row, values) in self.values.chunks_exact_mut(self.steps.channels).enumerate() {
            for (index, part) in values.chunks_mut(VECTORS * S::F32_LANES).enumerate() {
                let (channel, width) = (index * VECTORS * S::F32_LANES, part.len());
                let mut block = [load::<S, VECTORS>(simd, part)];
                self.steps.apply::<S, 1, VECTORS>(simd, &mut block, row, channel, width);
                store::<S, VECTORS>(simd, &block[0], part);
            }
        }
    }
}

/// Up to `V` vectors from memory; zeros behind its end.
#[inline(always)]
pub(crate) fn load<S: Simd, const V: usize>(simd: S, from: &[f32]) -> [S::f32s; V] {
    let mut values = [simd.splat_f32s(0.0); V];
    let (whole, rest) = S::as_simd_f32s(from);
    for (value, from) in values.iter_mut().zip(whole) {
        *value = *from;
    }
    if let (false, Some(value)) = (rest.is_empty(), values.get_mut(whole.len())) {
        *value = simd.partial_load_f32s(rest);
    }
    values
}

/// The part of `V` vectors that fits into `to`.
#[inline(always)]
pub(crate) fn store<S: Simd, const V: usize>(simd: S, values: &[S::f32s; V], to: &mut [f32]) {
    let (whole, rest) = S::as_mut_simd_f32s(to);
    for (to, value) in whole.iter_mut().zip(values) {
        *to = *value;
    }
    if let (false, Some(value)) = (rest.is_empty(), values.get(whole.len())) {
        simd.partial_store_f32s(rest, *value);
    }
}
