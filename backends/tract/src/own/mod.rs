//! tract's graph with our kernels in it.
//!
//! The graph is copied node by node. A convolution or a product with constant weights becomes one of
//! our kernels, together with all that is done to its output alone. Images stay in channels-last
//! order for as long as what follows can take them so; only where something can't they are turned
//! back. What is not known here is copied as it is: a pattern that is missed costs time and nothing
//! else. Whether the whole is faster is measured when the model is loaded, and whether it answers
//! the same is checked there too.
//!
//! Modules: `op` (our kernels as operations of tract's graph), `follow` (what is done to an output
//! alone), `formula` (the same where it is read several times), `convolution`, `product`, `paired` and `whole`
//! (what can become a kernel), `branch` (conditions).

#[cfg(test)]
mod bits;
mod branch;
mod convolution;
mod follow;
mod formula;
pub(crate) mod op;
mod paired;
mod product;
pub(crate) mod share;
mod sizes;
mod steps;
#[cfg(test)]
mod tests;
mod whole;

pub(crate) use op::Source;

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
    let mut rewrite = Rewrite {
        source,
        target: TypedModel { symbols: source.symbols.clone(), ..TypedModel::default() },
        first: HashMap::new(),
        last: HashMap::new(),
        taken: HashSet::new(),
        kernels: 0,
        open: examples(source),
    };
    // In the model's order, and also those that nothing reads.
    for &input in source.input_outlets()? {
        let name = source.node(input.node).name.clone();
        let made = rewrite.target.add_source(name, source.outlet_fact(input)?.clone())?;
        rewrite.first.insert(input, made);
        rewrite.taken.insert(input.node);
    }
    for node in source.eval_order()? {
        if !rewrite.taken.contains(&node) {
            rewrite.node(source.node(node))?;
        }
    }
    if rewrite.kernels == 0 {
        return Ok(None);
    }
    let outputs = source.output_outlets()?;
    let outputs =
        outputs.iter().map(|&outlet| rewrite.in_first(outlet)).collect::<TractResult<Vec<_>>>()?;
    for (&old, &new) in source.output_outlets()?.iter().zip(&outputs) {
        if let Some(label) = source.outlet_label(old) {
            rewrite.target.set_outlet_label(new, label.to_owned())?;
        }
    }
    rewrite.target.select_output_outlets(&outputs)?;
    rewrite.target.properties.clone_from(&source.properties);
    Ok(Some(rewrite.target))
}

/// The weights that one of our kernels was made of.
pub(crate) fn source(node: &TypedNode) -> Option<Source> {
    node.op_as::<op::Fused>().and_then(Source::of)
}

/// An image in channels-last order.
#[derive(Clone, Copy)]
struct Turned {
    outlet: OutletId,
    /// Where the source has the channels.
    axis: usize,
}

struct Rewrite<'a> {
    source: &'a TypedModel,
    target: TypedModel,
    /// What stands for an outlet of the source, as it is there.
    first: HashMap<OutletId, OutletId>,
    /// What stands for it with its channels moved to the end.
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
        let inputs = inputs.collect::<TractResult<TVec<_>>>()?;
        let outlets = self.target.wire_node(&node.name, node.op.clone(), &inputs)?;
        for (slot, &outlet) in outlets.iter().enumerate() {
            self.first.insert(OutletId::new(node.id, slot), outlet);
        }
        Ok(())
    }

    /// What stands for an outlet of the source, as it is there.
    fn in_first(&mut self, outlet: OutletId) -> TractResult<OutletId> {
        if let Some(&known) = self.first.get(&outlet) {
            return Ok(known);
        }
        if let Some(constant) = self.source.outlet_fact(outlet)?.konst.clone() {
            let made = self.target.add_const(self.name(outlet, "first"), constant)?;
            self.first.insert(outlet, made);
            return Ok(made);
        }
        let turned = self.last.get(&outlet).context("expected a node before those that read it")?;
        let back = AxisOp::Move(self.rank(outlet)? - 1, turned.axis);
        let name = self.name(outlet, "first");
        let made = self.target.wire_node(name, back, &[turned.outlet])?[0];
        self.first.insert(outlet, made);
        Ok(made)
    }

    /// What stands for an outlet of the source, with its channels moved from `axis` to the end.
    fn in_last(&mut self, outlet: OutletId, axis: usize) -> TractResult<OutletId> {
        match self.last.get(&outlet) {
            Some(turned) if turned.axis == axis => return Ok(turned.outlet),
            _ => (),
        }
        let end = self.rank(outlet)? - 1;
        if axis >= end {
            return self.in_first(outlet);
        }
        let name = self.name(outlet, "last");
        let made = if let Some(constant) = &self.source.outlet_fact(outlet)?.konst {
            let turned = constant.clone().into_tensor().move_axis(axis, end)?;
            self.target.add_const(name, turned)?
        } else {
            let from = self.in_first(outlet)?;
            self.target.wire_node(name, AxisOp::Move(axis, end), &[from])?[0]
        };
        self.last.insert(outlet, Turned { outlet: made, axis });
        Ok(made)
    }

    /// Puts one of our kernels in, with what follows it; channels are at `axis` of the output, and
    /// in the input where it says, and come last in the kernel.
    fn wire(
        &mut self,
        kernel: op::Kernel,
        input: (OutletId, usize),
        followed: &op::Followed,
        axis: usize,
    ) -> TractResult<()> {
        let outlet = followed.outlet;
        let mut inputs = tvec!(self.in_last(input.0, input.1)?);
        for &tensor in &followed.tensors {
            inputs.push(self.in_last(tensor, axis)?);
        }
        let shape = self.last_shape(outlet, axis)?;
        let fused = op::Fused { kernel, steps: followed.steps.clone(), shape };
        let name = &self.source.node(outlet.node).name;
        let made = self.target.wire_node(name, fused, &inputs)?[0];
        self.put(outlet, made, axis)?;
        self.taken.extend(&followed.taken);
        self.kernels += 1;
        Ok(())
    }

    fn put(&mut self, outlet: OutletId, made: OutletId, axis: usize) -> TractResult<()> {
        if axis + 1 == self.rank(outlet)? {
            self.first.insert(outlet, made);
        } else {
            self.last.insert(outlet, Turned { outlet: made, axis });
        }
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

    /// Shape of what comes from an outlet, with its channels moved from `axis` to the end.
    fn last_shape(&self, outlet: OutletId, axis: usize) -> TractResult<ShapeFact> {
        let mut dims: TVec<TDim> = self.source.outlet_fact(outlet)?.shape.iter().cloned().collect();
        let channels = dims.remove(axis);
        dims.push(channels);
        Ok(ShapeFact::from_dims(dims))
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
        let inputs = inputs.collect::<TractResult<TVec<_>>>()?;
        let outlet = self.target.wire_node(&node.name, op, &inputs)?[0];
        self.last.insert(node.id.into(), Turned { outlet, axis });
        Ok(true)
    }
}

fn channels_last(spec: &PoolSpec) -> Option<PoolSpec> {
    let data_format = match spec.data_format {
        DataFormat::NCHW => DataFormat::NHWC,
        DataFormat::CHW => DataFormat::HWC,
        DataFormat::NHWC | DataFormat::HWC => return None,
    };
    Some(PoolSpec { data_format, ..spec.clone() })
}
