//! A compiled graph's computation, as plain data that any device can be programmed from.
//!
//! Reducing a model to a few fused operations is one thing, and packing weights for a vector unit or writing
//! a shader is another. If the first ends in the second's types, each device needs its own way down from the
//! graph. So the way down ends in a [`Program`]: operations, shapes, the steps applied to each value
//! afterwards, and constants by reference. Nothing here is packed, allocated or run.
//!
//! An operation that only one device can do stays a [`Op::Foreign`] operation, of a type of that device;
//! another device refuses a program that has one, and [`Program::foreign`] names them. Likewise dimensions
//! may be expressions until the sizes of a run are known.
//!
//! Modules: [`steps`] (operations on a value before it is stored), [`windows`] (convolutions and pools),
//! [`products`] (of two computed tensors), [`constant`] (weights, by reference),
//! [`reference`](mod@reference) (the result of a program in double precision, computed slowly: devices are
//! compared with it).

pub mod constant;
pub mod products;
pub mod reference;
pub mod steps;
pub mod windows;

use constant::{Constant, Matrix, Weights};
use forebay_protocol::oip::Datatype;
use products::Pairing;
use std::ops::Range;
use steps::Step;
use windows::Windows;

/// Operations in an order in which they can be done.
#[derive(Debug, Clone)]
pub struct Program<Dim = usize, Foreign = String> {
    /// Each reads only nodes before it.
    pub nodes: Vec<Node<Dim, Foreign>>,
    /// In the model's order.
    pub inputs: Vec<Value>,
    /// In the model's order.
    pub outputs: Vec<Value>,
}

/// A value that a node produces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Value {
    /// Its place among the nodes.
    pub node: usize,
    /// Its place among the node's outputs.
    pub slot: usize,
}

/// One operation.
#[derive(Debug, Clone)]
pub struct Node<Dim, Foreign> {
    /// After the node of the file that it was made of.
    pub name: String,
    /// Its operation.
    pub op: Op<Foreign>,
    /// Tensors that steps read come behind the operation's own.
    pub inputs: Vec<Value>,
    /// Its outputs.
    pub outputs: Vec<Fact<Dim>>,
}

/// The known facts about a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact<Dim> {
    /// `None` for one that is known inside of the engine that made the program alone.
    pub datatype: Option<Datatype>,
    /// Its sizes.
    pub shape: Vec<Dim>,
}

/// The operation of a node. Operations that fuse steps or name channels are on FP32, with channels as the
/// last axis.
#[derive(Debug, Clone)]
pub enum Op<Foreign> {
    /// Gives an input of the model.
    Input,
    /// Gives a constant.
    Constant(Constant),
    /// A convolution of images with constant weights.
    Convolution(Convolution),
    /// A product with a constant matrix.
    Product(Product),
    /// Steps, of a tensor as it is.
    Steps(Vec<Step>),
    /// Reduces neighbouring axes.
    Reduce {
        /// The kind of reduction.
        reduction: Reduction,
        /// Those of the input.
        axes: Range<usize>,
    },
    /// Softmax along the last axis.
    Softmax,
    /// The greatest of each window of images.
    MaxPool(Windows),
    /// Each pixel of images so often in height and in width.
    Repeat([usize; 2]),
    /// Products of two tensors that are both computed.
    Paired(Pairing),
    /// Takes an axis to another place; those between move up.
    Move {
        /// Its place in the input.
        from: usize,
        /// Its place in the output.
        to: usize,
    },
    /// The same values in other sizes.
    Reshape,
    /// The same values as another datatype's: fractions go, and what is not zero is true.
    Cast,
    /// Repeats axes of size 1.
    Broadcast,
    /// Tensors one behind the other.
    Concat {
        /// Along this axis.
        axis: usize,
    },
    /// A part of each tensor along an axis, as long as the output is.
    Slice {
        /// The axis.
        axis: usize,
        /// Start of the slice.
        start: usize,
        /// From each place that is taken to the next.
        step: usize,
    },
    /// Pads with one value.
    Pad {
        /// Padding before each axis; the padding after it fills up the size of the output.
        before: Vec<usize>,
        /// A single one.
        value: Constant,
    },
    /// Parts of the first tensor, at the places along an axis that the second one has, whose axes stand
    /// for that one. A place may be counted from the end, as -1.
    Gather {
        /// The axis.
        axis: usize,
    },
    /// Of two tensors of the same rank, in which axes of size 1 are repeated.
    Binary(Binary),
    /// An operation that only the engine that made the program can do.
    Foreign(Foreign),
}

/// An operation on two values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binary {
    /// a + b
    Add,
    /// a - b
    Sub,
    /// a * b
    Mul,
    /// a / b, of numbers with fractions.
    Div,
    /// The greater.
    Max,
    /// The lesser.
    Min,
    /// a to the power of b
    Pow,
    /// a equals b.
    Equal,
    /// a differs from b.
    NotEqual,
    /// a is less than b.
    Less,
    /// a is at most b.
    LessEqual,
    /// a is greater than b.
    Greater,
    /// a is at least b.
    GreaterEqual,
}

/// A convolution of images with constant weights, and the steps after it.
#[derive(Debug, Clone)]
pub struct Convolution {
    /// Over which windows it goes.
    pub windows: Windows,
    /// In the order output channel, input channel of the group, row, column.
    pub weights: Weights,
    /// One for each output channel.
    pub bias: Vec<f32>,
    /// Taken with each value of the output.
    pub steps: Vec<Step>,
}

/// A product with a constant matrix, and the steps after it. The input's last axes are the matrix's lines.
#[derive(Debug, Clone)]
pub struct Product {
    /// The right side.
    pub matrix: Matrix,
    /// Taken with each value of the output.
    pub steps: Vec<Step>,
}

/// A reduction of the values along an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduction {
    /// Their sum.
    Sum,
    /// The greatest.
    Max,
    /// The mean of their squares.
    MeanOfSquares,
}

impl<Dim, Foreign> Default for Program<Dim, Foreign> {
    fn default() -> Self {
        Self { nodes: Vec::new(), inputs: Vec::new(), outputs: Vec::new() }
    }
}

impl<Dim, Foreign> Program<Dim, Foreign> {
    /// Adds a node; gives its first output.
    pub fn push(&mut self, node: Node<Dim, Foreign>) -> Value {
        self.nodes.push(node);
        Value { node: self.nodes.len() - 1, slot: 0 }
    }

    /// The facts about a value; `None` if there is no such value.
    #[must_use]
    pub fn fact(&self, value: Value) -> Option<&Fact<Dim>> {
        self.nodes.get(value.node)?.outputs.get(value.slot)
    }

    /// The nodes that another device can't do, each with its name.
    pub fn foreign(&self) -> impl Iterator<Item = (&str, &Foreign)> {
        self.nodes.iter().filter_map(|node| match &node.op {
            Op::Foreign(op) => Some((node.name.as_str(), op)),
            _ => None,
        })
    }

    /// The same program in other types. `foreign` is asked for what to put in the place of a foreign
    /// operation, whose inputs and outputs it gets as well.
    ///
    /// # Errors
    /// Those of `dim` and `foreign`.
    pub fn map<D, F, E>(
        self,
        mut dim: impl FnMut(Dim) -> Result<D, E>,
        mut foreign: impl FnMut(Foreign, &[&Fact<D>], &[Fact<D>]) -> Result<Op<F>, E>,
    ) -> Result<Program<D, F>, E> {
        let mut made = Program { nodes: Vec::new(), inputs: self.inputs, outputs: self.outputs };
        for node in self.nodes {
            let fact = |fact: Fact<Dim>| {
                let shape = fact.shape.into_iter().map(&mut dim).collect::<Result<_, E>>()?;
                Ok(Fact { datatype: fact.datatype, shape })
            };
            let outputs = node.outputs.into_iter().map(fact).collect::<Result<Vec<_>, E>>()?;
            let inputs: Vec<_> = node.inputs.iter().filter_map(|&value| made.fact(value)).collect();
            let op = node.op.map(|op| foreign(op, &inputs, &outputs))?;
            made.push(Node { name: node.name, op, inputs: node.inputs, outputs });
        }
        Ok(made)
    }
}

impl<Foreign> Op<Foreign> {
    /// The steps that are taken with each value of the output.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        match self {
            Self::Convolution(Convolution { steps, .. })
            | Self::Product(Product { steps, .. })
            | Self::Steps(steps) => steps,
            _ => &[],
        }
    }

    fn map<F, E>(self, foreign: impl FnOnce(Foreign) -> Result<Op<F>, E>) -> Result<Op<F>, E> {
        Ok(match self {
            Self::Input => Op::Input,
            Self::Constant(constant) => Op::Constant(constant),
            Self::Convolution(convolution) => Op::Convolution(convolution),
            Self::Product(product) => Op::Product(product),
            Self::Steps(steps) => Op::Steps(steps),
            Self::Reduce { reduction, axes } => Op::Reduce { reduction, axes },
            Self::Softmax => Op::Softmax,
            Self::MaxPool(windows) => Op::MaxPool(windows),
            Self::Repeat(scales) => Op::Repeat(scales),
            Self::Paired(pairing) => Op::Paired(pairing),
            Self::Move { from, to } => Op::Move { from, to },
            Self::Reshape => Op::Reshape,
            Self::Cast => Op::Cast,
            Self::Broadcast => Op::Broadcast,
            Self::Concat { axis } => Op::Concat { axis },
            Self::Slice { axis, start, step } => Op::Slice { axis, start, step },
            Self::Pad { before, value } => Op::Pad { before, value },
            Self::Gather { axis } => Op::Gather { axis },
            Self::Binary(binary) => Op::Binary(binary),
            Self::Foreign(op) => foreign(op)?,
        })
    }
}
