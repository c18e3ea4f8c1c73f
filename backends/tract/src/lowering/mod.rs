//! tract's graph with our kernels in it.
//!
//! The graph is lowered node by node to a [`Program`], which says what is computed and not how. A
//! convolution or a product with constant weights becomes one operation together with all that is done
//! to its output alone. Images stay in channels-last order for as long as what follows can take them so;
//! only where something can't they are turned back. An operation that is not known here stays tract's: a
//! pattern that is missed costs time and nothing else. For the processor the program becomes a graph of
//! tract's again, with our kernels in it. Whether the whole is faster is measured when the model is
//! loaded, and whether it answers the same is checked there too.
//!
//! Modules: `epilogue` (what is done to an output alone), `elementwise` (the same where it is read several
//! times), `convolution`, `dense`, `matmul` and `reductions` (what can become an operation of ours), `conditional`
//! (conditions), `filling` (the share of vectors that an operation fills), `constant` (tract's constants in a program); `cpu` (from the program to tract's graph),
//! `op` (our kernels as operations of that graph), `share` (of their weights); `plain` (tract's own
//! operations in words for another device).

#[cfg(test)]
mod bits;
mod conditional;
mod constant;
mod convolution;
mod cpu;
mod dense;
mod elementwise;
mod epilogue;
mod filling;
mod matmul;
pub(crate) mod op;
pub(crate) mod plain;
mod reductions;
pub(crate) mod share;
mod steps;
#[cfg(test)]
mod tests;

pub(crate) use filling::fills_vectors;
pub(crate) use op::Source;

use crate::tensor::datatype;
use constant::Held;
use cpu::Lowered;
use forebay_program::steps::Step;
use forebay_program::{Fact, Node, Op, Program, Value};
use std::collections::{HashMap, HashSet};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::array::{Pad, Slice, TypedConcat};
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::cnn::{MaxPool, PoolSpec, SumPool};
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_core::ops::konst::Const;
use tract_onnx::tract_core::ops::nn::{DataFormat, Reduce};

/// Puts our kernels into a decluttered graph; `None` if there is no place for them.
pub(crate) fn rewrite(source: &TypedModel) -> TractResult<Option<TypedModel>> {
    match lower(source)? {
        (_, 0) => Ok(None),
        (program, _) => cpu::build(program, source).map(Some),
    }
}

/// Lowers a decluttered graph; gives the number of operations that became ours as well.
pub(crate) fn lower(source: &TypedModel) -> TractResult<(Lowered, usize)> {
    let mut rewrite = Rewrite {
        source,
        program: Program::default(),
        first: HashMap::new(),
        last: HashMap::new(),
        taken: HashSet::new(),
        kernels: 0,
        open: examples(source),
    };
    // In the model's order, and also those that nothing reads.
    for &input in source.input_outlets()? {
        let name = source.node(input.node).name.clone();
        let fact = fact_of(source.outlet_fact(input)?);
        let made = rewrite.push(name, Op::Input, Vec::new(), fact);
        rewrite.program.inputs.push(made);
        rewrite.first.insert(input, made);
        rewrite.taken.insert(input.node);
    }
    for node in source.eval_order()? {
        if !rewrite.taken.contains(&node) {
            rewrite.node(source.node(node))?;
        }
    }
    let outputs = source.output_outlets()?;
    let outputs: TractResult<Vec<_>> =
        outputs.iter().map(|&outlet| rewrite.in_first(outlet)).collect();
    rewrite.program.outputs = outputs?;
    Ok((rewrite.program, rewrite.kernels))
}

/// The weights that one of our kernels was made of.
pub(crate) fn source(node: &TypedNode) -> Option<Source> {
    node.op_as::<op::Fused>().and_then(Source::of)
}

/// An image in channels-last order.
#[derive(Clone, Copy)]
struct Turned {
    value: Value,
    /// The channels' axis in the source.
    axis: usize,
}

/// The operations after an operation of ours that it takes in.
struct Followed {
    steps: Vec<Step>,
    /// Outlets of the source that the steps read, in the order of the steps.
    tensors: Vec<OutletId>,
    /// The outlet of the source that the operation then stands for.
    outlet: OutletId,
    /// Nodes of the source that it stands for beside its own.
    taken: Vec<usize>,
}

struct Rewrite<'a> {
    source: &'a TypedModel,
    program: Lowered,
    /// The value for an outlet of the source, in the same layout.
    first: HashMap<OutletId, Value>,
    /// The value for it with its channels moved to the end.
    last: HashMap<OutletId, Turned>,
    /// Nodes of the source that a kernel before them has taken in.
    taken: HashSet<usize>,
    kernels: usize,
    /// Examples of the sizes that are known only at a run, see [`examples`].
    open: SymbolValues,
}

/// An example of each size that is known at a run only.
///
/// Whether a kernel fits goes by the sizes of tensors, and by which of them are equal. With primes of
/// their own for open sizes, sizes come out equal where they always are. The kernels look at the true
/// sizes again when they run.
fn examples(source: &TypedModel) -> SymbolValues {
    let mut symbols: Vec<Symbol> = Vec::new();
    for fact in source.nodes().iter().flat_map(|node| &node.outputs).map(|output| &output.fact) {
        if !fact.shape.is_concrete() {
            symbols.extend(fact.shape.iter().flat_map(TDim::symbols));
        }
    }
    symbols.sort();
    symbols.dedup();
    let is_prime = |number: &i64| (2..*number).all(|divisor| number % divisor != 0);
    let mut examples = SymbolValues::default();
    for (symbol, prime) in symbols.iter().zip((101..).filter(is_prime)) {
        examples.set(symbol, prime);
    }
    examples
}

impl Rewrite<'_> {
    fn node(&mut self, node: &TypedNode) -> TractResult<()> {
        if node.op_as::<Const>().is_some_and(|constant| constant.exotic_fact().is_none()) {
            // It is added by the first that reads it, if any does as it is.
            return Ok(());
        }
        if self.convolution(node)?
            || self.product(node)?
            || self.paired(node)?
            || self.steps(node)?
            || self.whole(node)?
            || self.branch(node)?
            || self.turned(node)?
        {
            return Ok(());
        }
        let inputs = node.inputs.iter().map(|&input| self.in_first(input));
        let inputs = inputs.collect::<TractResult<Vec<_>>>()?;
        self.keep(node, node.op.clone(), inputs);
        Ok(())
    }

    /// Adds a node with one output.
    fn push(
        &mut self,
        name: String,
        op: Op<Box<dyn TypedOp>>,
        inputs: Vec<Value>,
        fact: Fact<TDim>,
    ) -> Value {
        self.program.push(Node { name, op, inputs, outputs: vec![fact] })
    }

    /// Adds an operation of tract's in the place of a node of the source, with outputs as it has them.
    fn keep(&mut self, node: &TypedNode, op: Box<dyn TypedOp>, inputs: Vec<Value>) {
        let outputs = node.outputs.iter().map(|output| fact_of(&output.fact)).collect();
        let (name, op) = (node.name.clone(), Op::Foreign(op));
        let made = self.program.push(Node { name, op, inputs, outputs });
        for slot in 0..node.outputs.len() {
            self.first.insert(OutletId::new(node.id, slot), Value { slot, ..made });
        }
    }

    /// The value for an outlet of the source, in the same layout.
    fn in_first(&mut self, outlet: OutletId) -> TractResult<Value> {
        if let Some(&known) = self.first.get(&outlet) {
            return Ok(known);
        }
        let (name, fact) = (self.name(outlet, "first"), self.source.outlet_fact(outlet)?);
        let made = if let Some(constant) = &fact.konst {
            self.constant_node(name, Arc::clone(constant))
        } else {
            let turned = self.last.get(&outlet);
            let turned = *turned.context("expected a node before those that read it")?;
            let back = Op::Move { from: fact.rank() - 1, to: turned.axis };
            self.push(name, back, vec![turned.value], fact_of(fact))
        };
        self.first.insert(outlet, made);
        Ok(made)
    }

    fn constant_node(&mut self, name: String, constant: Arc<Tensor>) -> Value {
        let shape = constant.shape().iter().map(ToDim::to_dim).collect();
        let fact = Fact { datatype: datatype(constant.datum_type()), shape };
        self.push(name, Op::Constant(Arc::new(Held(constant))), Vec::new(), fact)
    }

    /// The value for an outlet of the source, with its channels moved from `axis` to the end.
    fn in_last(&mut self, outlet: OutletId, axis: usize) -> TractResult<Value> {
        match self.last.get(&outlet) {
            Some(turned) if turned.axis == axis => return Ok(turned.value),
            _ => (),
        }
        let end = self.rank(outlet)? - 1;
        if axis >= end {
            return self.in_first(outlet);
        }
        let name = self.name(outlet, "last");
        let made = if let Some(constant) = &self.source.outlet_fact(outlet)?.konst {
            let turned = constant.clone().into_tensor().move_axis(axis, end)?;
            self.constant_node(name, Arc::new(turned))
        } else {
            let input = self.in_first(outlet)?;
            let fact = self.last_fact(outlet, axis)?;
            self.push(name, Op::Move { from: axis, to: end }, vec![input], fact)
        };
        self.last.insert(outlet, Turned { value: made, axis });
        Ok(made)
    }

    /// Puts an operation of ours in, which takes the steps that follow it; channels are at `axis` of
    /// the output, and in the input where it says, and come last in the operation.
    fn wire(
        &mut self,
        op: Op<Box<dyn TypedOp>>,
        input: (OutletId, usize),
        followed: &Followed,
        axis: usize,
    ) -> TractResult<()> {
        let mut inputs = vec![self.in_last(input.0, input.1)?];
        for &tensor in &followed.tensors {
            inputs.push(self.in_last(tensor, axis)?);
        }
        self.put(followed.outlet, op, inputs, axis)?;
        self.taken.extend(&followed.taken);
        Ok(())
    }

    /// Puts an operation of ours in the place of an outlet of the source, with its channels, which are
    /// at `axis` there, at the end.
    fn put(
        &mut self,
        outlet: OutletId,
        op: Op<Box<dyn TypedOp>>,
        inputs: Vec<Value>,
        axis: usize,
    ) -> TractResult<()> {
        let name = self.source.node(outlet.node).name.clone();
        if axis + 1 >= self.rank(outlet)? {
            let made = self.push(name, op, inputs, fact_of(self.source.outlet_fact(outlet)?));
            self.first.insert(outlet, made);
        } else {
            let fact = self.last_fact(outlet, axis)?;
            let made = self.push(name, op, inputs, fact);
            self.last.insert(outlet, Turned { value: made, axis });
        }
        self.kernels += 1;
        Ok(())
    }

    /// Sizes of a tensor, with examples of those that are open; `None` if they are no sizes.
    fn sizes(&self, shape: &ShapeFact) -> Option<TVec<usize>> {
        let size = |dim: &TDim| usize::try_from(dim.eval_to_i64(&self.open).ok()?).ok();
        match shape.as_concrete() {
            Some(shape) => Some(shape.into()),
            None => shape.iter().map(size).collect(),
        }
    }

    /// Sizes of what comes from an outlet, as [`Rewrite::sizes`].
    fn outlet_sizes(&self, outlet: OutletId) -> TractResult<TVec<usize>> {
        self.sizes(&self.source.outlet_fact(outlet)?.shape).context("expected sizes")
    }

    /// The facts about an outlet, with its channels moved from `axis` to the end.
    fn last_fact(&self, outlet: OutletId, axis: usize) -> TractResult<Fact<TDim>> {
        let mut fact = fact_of(self.source.outlet_fact(outlet)?);
        let channels = fact.shape.remove(axis);
        fact.shape.push(channels);
        Ok(fact)
    }

    fn rank(&self, outlet: OutletId) -> TractResult<usize> {
        Ok(self.source.outlet_fact(outlet)?.rank())
    }

    fn name(&self, outlet: OutletId, suffix: &str) -> String {
        let slot = outlet.slot;
        format!("{}.{slot}.forebay-{suffix}", self.source.node(outlet.node).name)
    }

    /// Copies a node whose input is in channels-last order so that its output is too; says whether
    /// it could.
    fn turned(&mut self, node: &TypedNode) -> TractResult<bool> {
        if node.outputs.len() != 1 || node.op_is::<Const>() {
            return Ok(false);
        }
        let Some(axis) = node.inputs.iter().find_map(|input| self.last.get(input)).map(|t| t.axis)
        else {
            return Ok(false);
        };
        let rank = self.rank(node.id.into())?;
        let same_rank = |input: &OutletId| self.source.outlet_fact(*input).map(TypedFact::rank);
        for input in &node.inputs {
            if same_rank(input)? != rank {
                return Ok(false);
            }
        }
        let place = |place: usize| match place {
            place if place == axis => rank - 1,
            place if place > axis => place - 1,
            place => place,
        };
        let op: Box<dyn TypedOp> = if node.op_is::<ElementWiseOp>() || node.op_is::<TypedBinOp>() {
            node.op.clone()
        } else if let Some(op) = node.op_as::<Reduce>() {
            let mut axes: TVec<usize> = op.axes.iter().map(|&axis| place(axis)).collect();
            axes.sort_unstable();
            Box::new(Reduce { axes, reducer: op.reducer })
        } else if let Some(op) = node.op_as::<TypedConcat>() {
            Box::new(TypedConcat { axis: place(op.axis) })
        } else if let Some(op) = node.op_as::<Slice>() {
            Box::new(Slice { axis: place(op.axis), ..op.clone() })
        } else if let Some(op) = node.op_as::<Pad>() {
            let mut pads = op.pads.clone();
            let channels = pads.remove(axis);
            pads.push(channels);
            Box::new(Pad { pads, mode: op.mode.clone() })
        } else if let Some(op) = node.op_as::<MaxPool>() {
            let Some(pool_spec) = channels_last(&op.pool_spec) else { return Ok(false) };
            Box::new(MaxPool { pool_spec, ..op.clone() })
        } else if let Some(op) = node.op_as::<SumPool>() {
            let Some(pool_spec) = channels_last(&op.pool_spec) else { return Ok(false) };
            Box::new(SumPool { pool_spec, ..op.clone() })
        } else {
            return Ok(false);
        };
        let inputs = node.inputs.iter().map(|&input| self.in_last(input, axis));
        let inputs = inputs.collect::<TractResult<Vec<_>>>()?;
        let fact = self.last_fact(node.id.into(), axis)?;
        let value = self.push(node.name.clone(), Op::Foreign(op), inputs, fact);
        self.last.insert(node.id.into(), Turned { value, axis });
        Ok(true)
    }
}

fn fact_of(fact: &TypedFact) -> Fact<TDim> {
    Fact { datatype: datatype(fact.datum_type), shape: fact.shape.iter().cloned().collect() }
}

fn channels_last(spec: &PoolSpec) -> Option<PoolSpec> {
    let data_format = match spec.data_format {
        DataFormat::NCHW => DataFormat::NHWC,
        DataFormat::CHW => DataFormat::HWC,
        DataFormat::NHWC | DataFormat::HWC => return None,
    };
    Some(PoolSpec { data_format, ..spec.clone() })
}
