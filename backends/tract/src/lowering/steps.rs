//! The steps of a kernel that operations of tract's graph become.

use forebay_program::steps::{Pair, Step};
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::binary::BinMiniOp;
use tract_onnx::tract_core::ops::element_wise::{ElementWiseMiniOp, ElementWiseOp};
use tract_onnx::tract_core::ops::math::{
    Abs, Add, Div, Erf, Exp, Max, Min, Mul, Neg, Recip, Rsqrt, Sqrt, Square, Sub, SubF, Tanh,
};
use tract_onnx::tract_core::ops::nn::gelu_exact::GeluExact;
use tract_onnx::tract_core::ops::nn::silu::Silu;
use tract_onnx::tract_core::ops::nn::{HardSwish, LeakyRelu, Sigmoid};

/// A constant beside a tensor of which one axis holds channels.
pub(super) enum Constant {
    Number(f32),
    Channels(Vec<f32>),
}

/// The step of an operation that reads nothing else.
pub(super) fn alone(node: &TypedNode) -> Option<Step> {
    let op = node.op_as::<ElementWiseOp>().filter(|op| op.1.is_none())?;
    unary(&*op.0)
}

fn unary(op: &dyn ElementWiseMiniOp) -> Option<Step> {
    Some(if op.is::<Sigmoid>() {
        Step::Sigmoid
    } else if op.is::<Tanh>() {
        Step::Tanh
    } else if op.is::<Erf>() {
        Step::Erf
    } else if op.is::<Silu>() {
        Step::Silu
    } else if op.is::<GeluExact>() {
        Step::Gelu
    } else if op.is::<HardSwish>() {
        Step::Gate { scale: 1.0 / 6.0, offset: 0.5, low: 0.0, high: 1.0 }
    } else if op.is::<Abs>() {
        Step::Abs
    } else if op.is::<Square>() {
        Step::Square
    } else if op.is::<Sqrt>() {
        Step::Sqrt
    } else if op.is::<Rsqrt>() {
        Step::Rsqrt
    } else if op.is::<Recip>() {
        Step::Recip
    } else if op.is::<Exp>() {
        Step::Exp
    } else if op.is::<Neg>() {
        Step::Mul(-1.0)
    } else if let Some(op) = op.downcast_ref::<LeakyRelu>() {
        Step::Leaky(op.alpha)
    } else {
        return None;
    })
}

/// The step for an operation on our value and another; ours may be its second operand.
pub(super) fn pair(op: &dyn BinMiniOp, is_first: bool) -> Option<Pair> {
    Some(if op.is::<Add>() {
        Pair::Add
    } else if op.is::<Mul>() {
        Pair::Mul
    } else if op.is::<Sub>() && is_first || op.is::<SubF>() && !is_first {
        Pair::Sub
    } else if op.is::<Sub>() || op.is::<SubF>() {
        Pair::From
    } else if op.is::<Div>() && is_first {
        Pair::Div
    } else if op.is::<Div>() {
        Pair::Into
    } else {
        return None;
    })
}

/// The steps of an operation whose other input is a number.
pub(super) fn with_number(op: &dyn BinMiniOp, number: f32, is_first: bool) -> Vec<Step> {
    with_constant(op, Constant::Number(number), is_first)
}

pub(super) fn with_constant(op: &dyn BinMiniOp, constant: Constant, is_first: bool) -> Vec<Step> {
    let all = |constant, f: fn(f32) -> f32| match constant {
        Constant::Number(number) => Constant::Number(f(number)),
        Constant::Channels(numbers) => Constant::Channels(numbers.into_iter().map(f).collect()),
    };
    let plus = |constant| match constant {
        Constant::Number(number) => Step::Add(number),
        Constant::Channels(numbers) => Step::AddChannel(numbers),
    };
    let times = |constant| match constant {
        Constant::Number(number) => Step::Mul(number),
        Constant::Channels(numbers) => Step::MulChannel(numbers),
    };
    match (pair(op, is_first), constant) {
        (Some(Pair::Add), constant) => vec![plus(constant)],
        (Some(Pair::Sub), constant) => vec![plus(all(constant, |number| -number))],
        (Some(Pair::From), constant) => vec![Step::Mul(-1.0), plus(constant)],
        (Some(Pair::Mul), constant) => vec![times(constant)],
        // Other divisions would have become products where rounding does not matter.
        (Some(Pair::Div), Constant::Number(number)) if is_exact(number) => {
            vec![Step::Mul(1.0 / number)]
        }
        (Some(Pair::Div), _) => Vec::new(),
        (Some(Pair::Into), constant) => vec![Step::Recip, times(constant)],
        (None, Constant::Number(0.0)) if op.is::<Max>() => vec![Step::Relu],
        (None, Constant::Number(low)) if op.is::<Max>() => vec![Step::Clip(low, f32::INFINITY)],
        (None, Constant::Number(high)) if op.is::<Min>() => {
            vec![Step::Clip(f32::NEG_INFINITY, high)]
        }
        _ => Vec::new(),
    }
}

/// Whether 1 / number is exact, so that a product with it is the same as the division.
pub(super) fn is_exact(number: f32) -> bool {
    number.is_normal() && number.to_bits() << 9 == 0 && (1.0 / number).is_normal()
}
