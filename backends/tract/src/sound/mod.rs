//! Rewrites of tract's that keep what a graph computes.
//!
//! tract rewrites a graph before it runs it, and some of its rewrites are wrong for some graphs: a step is
//! pulled through a softmax that mixes the axis, a broadcast along a contracted axis is dropped, a table of
//! 256 values stands for a softmax. Here tract's own passes run, but each operator is asked for a rewrite
//! only where that rewrite is known to be right. Nothing is lost elsewhere, so that plans are as fast as
//! before. `backends/tract/README.md` lists the rewrites that do not run, with the reasons.
//!
//! Some kernels of tract's give a number where the answer is NaN: `exact` replaces them. Modules: `exact`,
//! `values` (functions of single values), `bounds` (maximum and minimum of two values, and other functions
//! of two), `nan` (around kernels that look for an extreme), `order` (the position of an extreme), `places`
//! (operators that use values as positions).

mod bounds;
mod exact;
mod nan;
mod order;
mod places;
mod values;

pub(crate) use exact::{finish, prepare};
pub(crate) use places::BadValue;
pub(crate) use values::Function;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::Downsample;
use tract_onnx::tract_core::ops::array::MultiBroadcastTo;
use tract_onnx::tract_core::ops::binary::{BinMiniOp, TypedBinOp};
use tract_onnx::tract_core::ops::cast::Cast;
use tract_onnx::tract_core::ops::cnn::Conv;
use tract_onnx::tract_core::ops::dummy::Dummy;
use tract_onnx::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_core::ops::element_wise::{ElementWiseMiniOp, ElementWiseOp};
use tract_onnx::tract_core::ops::math::{Div, Mul, Pow, Rem, Sqrt, Square, Sub};
use tract_onnx::tract_core::ops::quant::DequantizeLinearF32;
use tract_onnx::tract_core::optim::{Optimizer, OptimizerSession, TypedPass};

/// Name of tract's pass that asks each operator for a rewrite.
const DECLUTTER: &str = "declutter";
/// Name of tract's pass that moves axes so that fewer transpositions are left.
const CHANGE_AXES: &str = "ChangeAxes";
/// Rewrites of a graph after which no more come to an end, ...
const REWRITES: usize = 500;
/// ... and for each of its nodes; real models need less than ten.
const REWRITES_OF_NODE: usize = 50;
/// Nodes of a graph that grows by rewrites, for each that it had, and so many more.
const GROWTH: usize = 20;
const GROWTH_AT_LEAST: usize = 1000;
/// Operators behind a division that are looked at.
const MAX_FOLLOWED: usize = 16;

/// Like `TypedModel::into_decluttered`.
pub(crate) fn declutter(mut model: TypedModel) -> TractResult<TypedModel> {
    bounded(guarded(Optimizer::declutter()), &model).optimize(&mut model)?;
    Ok(model)
}

/// Like `TypedModel::optimize`, for a decluttered graph.
pub(crate) fn optimize(mut model: TypedModel) -> TractResult<TypedModel> {
    prepare(&mut model)?;
    bounded(guarded(Optimizer::codegen()), &model).optimize(&mut model)?;
    finish(&mut model)?;
    Ok(model)
}

/// The same operators as in the file, made fast one by one, without any rewrite of the graph.
pub(crate) fn lower(mut model: TypedModel) -> TractResult<TypedModel> {
    prepare(&mut model)?;
    let mut optimizer = Optimizer::codegen();
    optimizer.passes.retain(|pass| format!("{pass:?}") == "codegen");
    bounded(optimizer, &model).optimize(&mut model)?;
    finish(&mut model)?;
    Ok(model)
}

fn guarded(mut optimizer: Optimizer) -> Optimizer {
    for pass in &mut optimizer.passes {
        if format!("{pass:?}") == DECLUTTER {
            *pass = Box::new(Guarded { next: 0 });
        }
    }
    optimizer
}

/// The same passes, which fail where they would rewrite the graph without an end: tract does so over
/// sizes that contradict each other.
fn bounded(mut optimizer: Optimizer, model: &TypedModel) -> Optimizer {
    let most = REWRITES + REWRITES_OF_NODE * model.nodes().len();
    let left = Arc::new(AtomicUsize::new(most));
    let most_nodes = GROWTH_AT_LEAST + GROWTH * model.nodes().len();
    let bound = |pass: Box<dyn TypedPass>| -> Box<dyn TypedPass> {
        let may_fail = format!("{pass:?}").starts_with(CHANGE_AXES);
        Box::new(Bounded { pass, left: Arc::clone(&left), most_nodes, may_fail })
    };
    optimizer.passes = optimizer.passes.into_iter().map(bound).collect();
    optimizer
}

/// A pass that makes no more than so many rewrites, together with others.
#[derive(Debug, Clone)]
struct Bounded {
    pass: Box<dyn TypedPass>,
    left: Arc<AtomicUsize>,
    most_nodes: usize,
    /// Whether the graph is as good without a rewrite that fails: it was not made.
    may_fail: bool,
}

impl TypedPass for Bounded {
    fn reset(&mut self) -> TractResult<()> {
        self.pass.reset()
    }

    fn next(
        &mut self,
        session: &mut OptimizerSession,
        model: &TypedModel,
    ) -> TractResult<Option<TypedModelPatch>> {
        let patch = match self.pass.next(session, model) {
            // It tries to move an axis past a convolution whose bias does not allow it, for one.
            Err(_) if self.may_fail => return Ok(None),
            patch => patch?,
        };
        if patch.is_some()
            && (model.nodes().len() > self.most_nodes
                || self.left.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1)).is_err())
        {
            bail!("rewriting the graph does not end: its sizes may contradict each other");
        }
        Ok(patch)
    }

    fn run_direct(&mut self, model: &mut TypedModel) -> TractResult<bool> {
        self.pass.run_direct(model)
    }
}

/// tract's pass of that name, less the rewrites that are not sound.
#[derive(Debug, Clone)]
struct Guarded {
    /// Nodes before this one have nothing to rewrite.
    next: usize,
}

impl TypedPass for Guarded {
    fn reset(&mut self) -> TractResult<()> {
        self.next = 0;
        Ok(())
    }

    fn next(
        &mut self,
        session: &mut OptimizerSession,
        model: &TypedModel,
    ) -> TractResult<Option<TypedModelPatch>> {
        for node in &model.nodes[self.next..] {
            if node.op_is::<Dummy>() || !is_sound(model, node)? {
                continue;
            }
            let patch = node.op.declutter_with_session(session, model, node);
            if let Some(mut patch) = patch.with_context(|| format!("decluttering {node}"))? {
                patch.push_context(format!("{DECLUTTER} {node}"));
                self.next = node.id + usize::from(patch.dont_apply_twice.is_some());
                return Ok(Some(patch));
            }
        }
        Ok(None)
    }
}

/// Whether the rewrite that a node asks for is right in this graph.
fn is_sound(model: &TypedModel, node: &TypedNode) -> TractResult<bool> {
    if let Some(op) = node.op_as::<Downsample>() {
        // Otherwise pulled through any node before it: through operators that mix the axis, and through
        // convolutions whose padding depends on the stride.
        return Ok(op.stride == 1);
    }
    if node.op_is::<DequantizeLinearF32>() {
        // Makes a table of all nodes before the next quantisation.
        return Ok(false);
    }
    if let Some(op) = node.op_as::<EinSum>() {
        return broadcasts_are_sound(model, node, op);
    }
    if node.op_is::<Conv>() {
        // c / conv(x) becomes a convolution with c / weights, and c - conv(x) one with the weights as
        // they are.
        let is_turned = |inlet: &InletId| {
            let next = model.node(inlet.node);
            inlet.slot == 1 && (is_binary::<Div>(next) || is_binary::<Sub>(next))
        };
        return Ok(!node.outputs[0].successors.iter().any(is_turned));
    }
    if is_unary::<Square>(node) {
        // The square of the root of a negative number is no number.
        return Ok(!is_unary::<Sqrt>(model.node(node.inputs[0].node)));
    }
    let is_float = node.outputs.iter().all(|output| output.fact.datum_type.is_float());
    if is_binary::<Mul>(node) && is_float {
        // Zero times infinity, or times NaN, is NaN.
        return Ok(!node.inputs.iter().any(|input| is_uniform(model, *input, 0.0)));
    }
    if is_binary::<Rem>(node) {
        // tract takes it to be commutative.
        return Ok(false);
    }
    if is_binary::<Mul>(node) && !is_float && node.inputs[0] == node.inputs[1] {
        // Becomes a square, which is computed in 32 bits of floating point, or not at all.
        return Ok(false);
    }
    if is_binary::<Pow>(node) {
        return Ok(is_float && !is_uniform(model, node.inputs[1], 0.5));
    }
    if is_binary::<Div>(node) && is_float {
        // x * (1 / y) is below x / y by a unit in the last place, which matters to a step. In halves,
        // 1 / y overflows where x / y does not.
        let is_half = node.outputs[0].fact.datum_type == f16::datum_type();
        return Ok(!is_half && !meets_step(model, node));
    }
    Ok(true)
}

/// A broadcast before a product may only be dropped along an axis that the output has, and that
/// another input has in full.
fn broadcasts_are_sound(model: &TypedModel, node: &TypedNode, op: &EinSum) -> TractResult<bool> {
    for (slot, outlet) in node.inputs.iter().enumerate() {
        let before = model.node(outlet.node);
        if !before.op_is::<MultiBroadcastTo>() {
            continue;
        }
        let from = &model.outlet_fact(before.inputs[0])?.shape;
        let to = &model.outlet_fact(*outlet)?.shape;
        if from.rank() != to.rank() {
            return Ok(false);
        }
        for axis in (0..to.rank()).filter(|&axis| from[axis] != to[axis]) {
            let label = op.axes.iter_all_axes().find(|label| label.inputs[slot].contains(&axis));
            let Some(label) = label else { return Ok(false) };
            let has_all = |(other, outlet): (usize, &OutletId)| {
                other != slot
                    && label.inputs[other].iter().any(|&place| {
                        let fact = model.outlet_fact(*outlet);
                        fact.is_ok_and(|fact| fact.shape.get(place) == Some(&to[axis]))
                    })
            };
            let is_full = node.inputs.iter().enumerate().any(has_all);
            if label.outputs[0].is_empty() || !is_full {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// Whether a function with steps reads the output of a node, directly or after it was moved about.
fn meets_step(model: &TypedModel, node: &TypedNode) -> bool {
    let mut open: Vec<InletId> = node.outputs[0].successors.to_vec();
    let mut followed = 0;
    while let Some(inlet) = open.pop() {
        let node = model.node(inlet.node);
        let name = node.op.name();
        let is_step = ["Floor", "Ceil", "Round", "Rem", "Mod", "Sign", "Arg"]
            .iter()
            .any(|step| name.contains(step))
            || ["Equals", "NotEquals", "Less", "LessEqual", "Greater", "GreaterEqual"]
                .contains(&&*name)
            || name.starts_with("Comp")
            || node.op_as::<Cast>().is_some_and(|op| !op.to.is_float());
        followed += 1;
        if is_step || followed > MAX_FOLLOWED {
            return true;
        }
        let moves = node.op_is::<AxisOp>() || node.op_is::<MultiBroadcastTo>();
        if moves || node.op_is::<ElementWiseOp>() || node.op_is::<TypedBinOp>() {
            open.extend(node.outputs.iter().flat_map(|output| output.successors.iter().copied()));
        }
    }
    false
}

fn is_unary<T: ElementWiseMiniOp>(node: &TypedNode) -> bool {
    node.op_as::<ElementWiseOp>().is_some_and(|op| op.0.is::<T>())
}

fn is_binary<T: BinMiniOp>(node: &TypedNode) -> bool {
    node.op_as::<TypedBinOp>().is_some_and(|op| op.0.is::<T>())
}

fn is_uniform(model: &TypedModel, outlet: OutletId, value: f64) -> bool {
    let fact = model.outlet_fact(outlet).ok();
    let uniform = fact.and_then(|fact| fact.uniform.clone().or_else(|| fact.konst.clone()));
    uniform.is_some_and(|uniform| {
        let all_same = uniform.len() == 1 || uniform.as_uniform().is_some();
        let first = uniform.as_uniform().unwrap_or_else(|| Tensor::clone(&uniform));
        all_same && first.cast_to_scalar::<f64>().is_ok_and(|first| first == value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pass of this name that fails.
    #[derive(Clone)]
    struct Failing(&'static str);

    impl std::fmt::Debug for Failing {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.0)
        }
    }

    impl TypedPass for Failing {
        fn reset(&mut self) -> TractResult<()> {
            Ok(())
        }

        fn next(
            &mut self,
            _: &mut OptimizerSession,
            _: &TypedModel,
        ) -> TractResult<Option<TypedModelPatch>> {
            bail!("it fails")
        }
    }

    #[test]
    fn a_graph_whose_axes_can_not_be_moved_is_left_as_it_is() {
        for (name, is_fine) in [(CHANGE_AXES, true), (DECLUTTER, false)] {
            let mut model = TypedModel::default();
            let mut optimizer = Optimizer::declutter();
            optimizer.passes = vec![Box::new(Failing(name))];
            let optimized = bounded(optimizer, &model).optimize(&mut model);
            assert_eq!(optimized.is_ok(), is_fine, "{name}");
        }
    }
}
