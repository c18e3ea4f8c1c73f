//! From a program to a graph of tract's, with our kernels in it: how the processor computes what the
//! program says. Weights are packed here, each node's when it is its turn.

use super::constant::Held;
use super::op::{Fused, Kernel, MaxPooled, Paired, Reduced, Repeated, Softmaxed};
use forebay_kernels::dense::{self, Product};
use forebay_kernels::depthwise::Depthwise;
use forebay_program::constant::Matrix;
use forebay_program::{Convolution, Fact, Op, Program};
use std::sync::Arc;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;

/// A program with tract's own operations where there are none of ours, and sizes that may be known at a
/// run only.
pub(crate) type Lowered = Program<TDim, Box<dyn TypedOp>>;

/// The graph that computes a program, which was lowered from `source`.
pub(super) fn build(program: Lowered, source: &TypedModel) -> TractResult<TypedModel> {
    let mut target = TypedModel { symbols: source.symbols.clone(), ..TypedModel::default() };
    let (mut made, mut facts) = (Vec::<TVec<OutletId>>::new(), Vec::<Vec<Fact<TDim>>>::new());
    let mut sources = source.input_outlets()?.iter();
    for node in program.nodes {
        let inputs: TVec<OutletId> =
            node.inputs.iter().map(|value| made[value.node][value.slot]).collect();
        let outlets = match node.op {
            Op::Input => {
                let input = sources.next().context("expected as many inputs as the source has")?;
                tvec!(target.add_source(node.name, source.outlet_fact(*input)?.clone())?)
            }
            Op::Constant(constant) => {
                tvec!(target.add_const(node.name, Held::tensor(&constant)?)?)
            }
            op => {
                let known = node.inputs.iter().map(|value| &facts[value.node][value.slot]);
                let op = operation(op, &known.collect::<TVec<_>>(), &node.outputs)?;
                target.wire_node(node.name, op, &inputs)?
            }
        };
        made.push(outlets);
        facts.push(node.outputs);
    }
    let outputs: Vec<OutletId> =
        program.outputs.iter().map(|value| made[value.node][value.slot]).collect();
    for (&old, &new) in source.output_outlets()?.iter().zip(&outputs) {
        if let Some(label) = source.outlet_label(old) {
            target.set_outlet_label(new, label.to_owned())?;
        }
    }
    target.select_output_outlets(&outputs)?;
    target.properties.clone_from(&source.properties);
    Ok(target)
}

/// An operation of the program as one of tract's graph.
fn operation(
    op: Op<Box<dyn TypedOp>>,
    inputs: &[&Fact<TDim>],
    outputs: &[Fact<TDim>],
) -> TractResult<Box<dyn TypedOp>> {
    let shape = outputs.first().context("expected an output")?;
    let shape = ShapeFact::from_dims(shape.shape.iter().cloned());
    Ok(match op {
        Op::Input | Op::Constant(_) => bail!("expected an operation"),
        Op::Convolution(convolution) => {
            let kernel = convolved(&convolution, inputs)?;
            Box::new(Fused { kernel, steps: convolution.steps, shape })
        }
        Op::Product(product) => {
            let kernel = Kernel::Product(Arc::new(multiplied(&product.matrix)?));
            Box::new(Fused { kernel, steps: product.steps, shape })
        }
        Op::Steps(steps) => Box::new(Fused { kernel: Kernel::Input, steps, shape }),
        Op::Reduce { reduction, axes } => Box::new(Reduced { reduction, axes, shape }),
        Op::Softmax => Box::new(Softmaxed),
        Op::MaxPool(windows) => Box::new(MaxPooled { windows, shape }),
        Op::Repeat(scales) => Box::new(Repeated { scales, shape }),
        Op::Paired(pairing) => {
            let &[a, b] = inputs else { bail!("expected two inputs") };
            let (x, w) = if pairing.slot == 0 { (a, b) } else { (b, a) };
            let products = match (sizes(x), sizes(w), shape.as_concrete()) {
                (Some(x), Some(w), Some(y)) => {
                    Some(pairing.products(&x, &w, y).context("expected sizes of products")?)
                }
                _ => None,
            };
            Box::new(Paired { pairing, products, shape })
        }
        Op::Move { from, to } => Box::new(AxisOp::Move(from, to)),
        Op::Foreign(op) => op,
        // For other devices only: tract's own operations stay in a program for this one.
        Op::Reshape
        | Op::Cast
        | Op::Broadcast
        | Op::Concat { .. }
        | Op::Slice { .. }
        | Op::Pad { .. }
        | Op::Gather { .. }
        | Op::Binary(_) => bail!("expected an operation of tract's or of ours"),
    })
}

/// The kernel of a convolution; with windows if the size of the images is known at a run only.
fn convolved(convolution: &Convolution, inputs: &[&Fact<TDim>]) -> TractResult<Kernel> {
    let Convolution { windows, weights, bias, .. } = convolution;
    let weights = weights.values().context("expected weights that are numbers")?;
    let known = sizes(inputs.first().context("expected an input")?);
    let (geometry, windows) = match known {
        Some(shape) => (windows.geometry(&shape).context("expected images")?, None),
        None => (windows.least(), Some(windows.clone())),
    };
    if let Some(depthwise) = Depthwise::new(geometry, &weights, bias) {
        return Ok(Kernel::Depthwise(Arc::new(depthwise), windows));
    }
    let dense = dense::Convolution::new(geometry, &weights, bias);
    let dense = dense.context("expected a convolution whose sizes go together")?;
    Ok(Kernel::Dense(Arc::new(dense), windows))
}

fn multiplied(matrix: &Matrix) -> TractResult<Product> {
    let values = matrix.constant.numbers().context("expected weights that are numbers")?;
    let [lines, channels] = matrix.places();
    let weight = |line: usize, channel: usize| values[lines[line] + channels[channel]];
    Ok(Product::new(lines.len(), channels.len(), weight, &[]))
}

/// Sizes that are known before a run.
fn sizes(fact: &Fact<TDim>) -> Option<Vec<usize>> {
    fact.shape.iter().map(|dim| dim.to_usize().ok()).collect()
}
