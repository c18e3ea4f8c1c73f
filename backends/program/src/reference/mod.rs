//! The result of a program, in double precision, one value after the other.
//!
//! A device's answers are compared with a computation that shares none of its code, and that gives the
//! expected result of each node. It is slow, allocates a tensor for each node, and is for tests.

mod array;
mod layout;
mod steps;

pub use array::Array;

use crate::constant::Constant;
use crate::products::Pairing;
use crate::windows::Windows;
use crate::{Binary, Convolution, Fact, Node, Op, Product, Program, Reduction};
use forebay_protocol::oip::{Data, Datatype};

/// Why a program was not computed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Other inputs than the program has.
    #[error("expected {expected} inputs, found {found}")]
    Inputs {
        /// Of the program.
        expected: usize,
        /// Given.
        found: usize,
    },
    /// An operation that is foreign, or whose shapes or constants contradict each other.
    #[error("expected an operation that goes with its inputs, found \"{0}\"")]
    Node(String),
}

/// The outputs of a program.
///
/// # Errors
/// It has a foreign operation, or shapes or constants that contradict each other.
pub fn run<Foreign>(
    program: &Program<usize, Foreign>,
    inputs: &[Array],
) -> Result<Vec<Array>, Error> {
    let (expected, found) = (program.inputs.len(), inputs.len());
    if expected != found {
        return Err(Error::Inputs { expected, found });
    }
    let mut made: Vec<Array> = Vec::with_capacity(program.nodes.len());
    for (place, node) in program.nodes.iter().enumerate() {
        let misfit = || Error::Node(node.name.clone());
        let given = program.inputs.iter().position(|input| input.node == place);
        let array = match given {
            Some(index) => inputs[index].clone(),
            None => {
                let from = node.inputs.iter().map(|value| made.get(value.node));
                let from: Vec<&Array> = from.collect::<Option<_>>().ok_or_else(misfit)?;
                compute(node, &from).ok_or_else(misfit)?
            }
        };
        let is_whole = array.shape.iter().product::<usize>() == array.values.len();
        let fits = node.outputs.len() == 1 && array.shape == node.outputs[0].shape;
        if !is_whole || !fits {
            return Err(misfit());
        }
        made.push(array);
    }
    let outputs = program.outputs.iter().map(|value| made.get(value.node).cloned());
    outputs.collect::<Option<_>>().ok_or_else(|| Error::Node("the outputs".to_owned()))
}

/// `None`: it is foreign, or something does not go together.
fn compute<Foreign>(node: &Node<usize, Foreign>, inputs: &[&Array]) -> Option<Array> {
    let fact = node.outputs.first()?;
    let shape = fact.shape.clone();
    if let Op::Constant(constant) = &node.op {
        return Some(Array { shape: constant.shape().to_vec(), values: numbers(constant)? });
    }
    let (&x, rest) = inputs.split_first()?;
    let values = match &node.op {
        Op::Convolution(op) => convolution(op, x)?,
        Op::Product(op) => product(op, x)?,
        Op::Steps(_) | Op::Reshape => x.values.clone(),
        Op::Reduce { reduction, axes } => {
            let size = |axes: &[usize]| axes.iter().product::<usize>();
            reduce(*reduction, x, size(x.shape.get(axes.clone())?), size(&x.shape[axes.end..]))
        }
        Op::Softmax => softmax(x)?,
        Op::MaxPool(windows) => max_pool(windows, x)?,
        Op::Repeat(scales) => layout::repeat(*scales, x, &shape)?,
        Op::Paired(pairing) => paired(pairing, x, rest.first()?, &shape)?,
        Op::Move { from, to } => layout::moved(*from, *to, x, &shape)?,
        Op::Cast => cast(x, fact),
        Op::Broadcast => layout::broadcast(x, &shape)?,
        Op::Concat { axis } => layout::concat(*axis, inputs, &shape)?,
        Op::Slice { axis, start, step } => layout::slice(*axis, [*start, *step], x, &shape)?,
        Op::Pad { before, value } => layout::pad(before, *numbers(value)?.first()?, x, &shape)?,
        Op::Gather { axis } => layout::gather(*axis, x, rest.first()?, &shape)?,
        Op::Binary(op) => {
            let (a, b) = (layout::broadcast(x, &shape)?, layout::broadcast(rest.first()?, &shape)?);
            a.iter().zip(b).map(|(&a, b)| binary(*op, a, b)).collect()
        }
        Op::Input | Op::Constant(_) | Op::Foreign(_) => return None,
    };
    let mut made = Array { shape, values };
    steps::apply(node.op.steps(), &mut made, rest)?;
    Some(made)
}

fn numbers(constant: &Constant) -> Option<Vec<f64>> {
    if let Some(numbers) = constant.numbers() {
        return Some(numbers.iter().map(|&number| f64::from(number)).collect());
    }
    let count = constant.shape().iter().product();
    let data = Data::from_binary(constant.datatype()?, count, constant.bytes()?).ok()?;
    #[allow(clippy::cast_precision_loss, reason = "places and sizes are far below 2^52")]
    Some(match data {
        Data::Int64(data) => data.iter().map(|&number| number as f64).collect(),
        Data::Int32(data) => data.iter().copied().map(f64::from).collect(),
        Data::Uint8(data) => data.iter().copied().map(f64::from).collect(),
        Data::Bool(data) => data.into_iter().map(f64::from).collect(),
        Data::Fp64(data) => data.into_vec(),
        _ => return None,
    })
}

fn convolution(op: &Convolution, x: &Array) -> Option<Vec<f64>> {
    let g = op.windows.geometry(&x.shape)?;
    let ([height, width], taps) = (g.output()?, g.kernel[0] * g.kernel[1]);
    let (inner, outer) = (g.channels_in.checked_div(g.groups)?, g.channels_out / g.groups);
    let weights = op.weights.values()?;
    let image = g.input[0] * g.input[1] * g.channels_in;
    let mut values = Vec::new();
    for x in x.values.chunks_exact(image) {
        for place in 0..height * width * g.channels_out {
            let (window, channel) = (place / g.channels_out, place % g.channels_out);
            let mut sum = f64::from(*op.bias.get(channel)?);
            for tap in 0..taps {
                let at = (window / width * g.stride[0] + tap / g.kernel[1] * g.dilation[0])
                    .checked_sub(g.before[0]);
                let left = (window % width * g.stride[1] + tap % g.kernel[1] * g.dilation[1])
                    .checked_sub(g.before[1]);
                let (Some(at), Some(left)) = (at, left) else { continue };
                if at >= g.input[0] || left >= g.input[1] {
                    continue;
                }
                let first = (at * g.input[1] + left) * g.channels_in + channel / outer * inner;
                for from in 0..inner {
                    let weight = weights[(channel * inner + from) * taps + tap];
                    sum += x[first + from] * f64::from(weight);
                }
            }
            values.push(sum);
        }
    }
    Some(values)
}

fn product(op: &Product, x: &Array) -> Option<Vec<f64>> {
    let weights = op.matrix.constant.numbers()?;
    let [lines, channels] = op.matrix.places();
    let mut values = Vec::new();
    for row in x.values.chunks_exact(lines.len().max(1)) {
        for channel in &channels {
            let weight = |line: &usize| weights.get(line + channel).copied().map(f64::from);
            let terms = row.iter().zip(&lines).map(|(x, line)| Some(x * weight(line)?));
            values.push(terms.sum::<Option<f64>>()?);
        }
    }
    Some(values)
}

fn paired(pairing: &Pairing, a: &Array, b: &Array, shape: &[usize]) -> Option<Vec<f64>> {
    let (x, w) = if pairing.slot == 0 { (a, b) } else { (b, a) };
    let products = pairing.products(&x.shape, &w.shape, shape)?;
    let m = products.matrices;
    let mut values = vec![0.0; shape.iter().product()];
    for [from_x, from_w, to] in products.places {
        for (row, channel) in (0..m.rows).flat_map(|row| (0..m.channels).map(move |c| (row, c))) {
            let term = |line: usize| {
                let x = x.values.get(from_x + row * m.x_row + line)?;
                Some(x * w.values.get(from_w + line * m.w_line + channel * m.w_channel)?)
            };
            *values.get_mut(to + row * m.y_row + channel)? =
                (0..m.lines).map(term).sum::<Option<f64>>()?;
        }
    }
    Some(values)
}

#[allow(clippy::cast_precision_loss, reason = "a divisor")]
fn reduce(reduction: Reduction, x: &Array, count: usize, inner: usize) -> Vec<f64> {
    let mut values = Vec::new();
    for block in x.values.chunks_exact((count * inner).max(1)) {
        for column in 0..inner {
            let line = block[column..].iter().step_by(inner).copied();
            values.push(match reduction {
                Reduction::Sum => line.sum(),
                Reduction::Max => line.fold(f64::NEG_INFINITY, f64::max),
                Reduction::MeanOfSquares => line.map(|x| x * x).sum::<f64>() / count as f64,
            });
        }
    }
    values
}

fn softmax(x: &Array) -> Option<Vec<f64>> {
    let mut values = x.values.clone();
    for row in values.chunks_exact_mut(*x.shape.last()?) {
        let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        row.iter_mut().for_each(|x| *x = (*x - most).exp());
        let sum: f64 = row.iter().sum();
        row.iter_mut().for_each(|x| *x /= sum);
    }
    Some(values)
}

fn max_pool(windows: &Windows, x: &Array) -> Option<Vec<f64>> {
    let g = windows.geometry(&x.shape)?;
    let ([height, width], channels) = (g.output()?, g.channels_in);
    let mut values = Vec::new();
    for x in x.values.chunks_exact(g.input[0] * g.input[1] * channels) {
        for place in 0..height * width * channels {
            let (window, channel) = (place / channels, place % channels);
            let taps = (0..g.kernel[0] * g.kernel[1]).filter_map(|tap| {
                let at = window / width * g.stride[0] + tap / g.kernel[1] * g.dilation[0];
                let left = window % width * g.stride[1] + tap % g.kernel[1] * g.dilation[1];
                let (at, left) = (at.checked_sub(g.before[0])?, left.checked_sub(g.before[1])?);
                let is_inside = at < g.input[0] && left < g.input[1];
                is_inside.then(|| x[(at * g.input[1] + left) * channels + channel])
            });
            values.push(taps.fold(f64::NEG_INFINITY, f64::max));
        }
    }
    Some(values)
}

fn cast(x: &Array, fact: &Fact<usize>) -> Vec<f64> {
    let one = |x: f64| match fact.datatype {
        Some(Datatype::Bool) => f64::from(x != 0.0),
        Some(Datatype::Fp16 | Datatype::Fp32 | Datatype::Fp64) | None => x,
        Some(_) => x.trunc(),
    };
    x.values.iter().map(|&x| one(x)).collect()
}

fn binary(op: Binary, a: f64, b: f64) -> f64 {
    match op {
        Binary::Add => a + b,
        Binary::Sub => a - b,
        Binary::Mul => a * b,
        Binary::Div => a / b,
        Binary::Max => a.max(b),
        Binary::Min => a.min(b),
        Binary::Pow => a.powf(b),
        #[allow(clippy::float_cmp, reason = "that is the operation")]
        Binary::Equal => f64::from(a == b),
        #[allow(clippy::float_cmp, reason = "that is the operation")]
        Binary::NotEqual => f64::from(a != b),
        Binary::Less => f64::from(a < b),
        Binary::LessEqual => f64::from(a <= b),
        Binary::Greater => f64::from(a > b),
        Binary::GreaterEqual => f64::from(a >= b),
    }
}
