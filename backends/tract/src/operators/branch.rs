//! tract's own operators with something of ours around them; and `If`, more than once in a graph.
//!
//! tract names each node of `If` by the operator, so that a graph may have one. Here it keeps the name that
//! it has in the file.

use super::built::Built;
use tract_onnx::model::ParsingContext;
use tract_onnx::ops::logic::If;
use tract_onnx::pb::NodeProto;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::ops::scan::InferenceScan;

/// Builds the operator as tract does.
pub(super) fn tracts(op: &str, context: &ParsingContext, node: &NodeProto) -> Built {
    let framework = onnx();
    let builder = framework.op_register.0.get(op);
    builder.with_context(|| format!("expected an operator {op}"))?(context, node)
}

pub(super) fn build(context: &ParsingContext, node: &NodeProto) -> Built {
    let (inner, closures) = tracts("If", context, node)?;
    Ok((Box::new(Wrapped { inner, replace: None, matrices: &[] }), closures))
}

/// Products of integers, of which tract gives those of vectors with an axis too many.
pub(super) fn matrices_only(context: &ParsingContext, node: &NodeProto) -> Built {
    let (inner, closures) = tracts(&node.op_type, context, node)?;
    let matrices: &[usize] = if node.op_type == "QLinearMatMul" { &[0, 3] } else { &[0, 1] };
    Ok((Box::new(Wrapped { inner, replace: None, matrices }), closures))
}

/// Graphs within an operator.
pub(crate) fn bodies(op: &dyn Op) -> Vec<&InferenceModel> {
    if let Some(wrapped) = op.downcast_ref::<Wrapped>() {
        bodies(wrapped.inner.as_op())
    } else if let Some(op) = op.downcast_ref::<If>() {
        vec![&op.then_body, &op.else_body]
    } else if let Some(op) = op.downcast_ref::<InferenceScan>() {
        vec![&op.body]
    } else {
        Vec::new()
    }
}

/// Puts an operator in the place of another.
pub(super) type Replace = Arc<dyn Fn(Box<dyn TypedOp>) -> Box<dyn TypedOp> + Send + Sync>;

/// An operator whose node keeps its name, and may become one of ours once its type is known.
#[derive(Clone)]
pub(super) struct Wrapped {
    pub(super) inner: Box<dyn InferenceOp>,
    pub(super) replace: Option<Replace>,
    /// Inputs that must have two axes at least.
    pub(super) matrices: &'static [usize],
}

impl std::fmt::Debug for Wrapped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

impl PartialEq for Wrapped {
    fn eq(&self, _: &Self) -> bool {
        false
    }
}

impl Eq for Wrapped {}

impl Op for Wrapped {
    fn name(&self) -> StaticName {
        self.inner.name()
    }

    not_a_typed_op!();
}

impl EvalOp for Wrapped {
    fn eval_out_of_plan(&self, inputs: TVec<TValue>) -> TractResult<Option<TVec<TValue>>> {
        // An operation that is about to be replaced must not run before that.
        if self.replace.is_some() { Ok(None) } else { self.inner.eval_out_of_plan(inputs) }
    }

    fn eval(&self, context: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        self.inner.eval(context, inputs)
    }
}

impl InferenceOp for Wrapped {
    fn infer_facts(
        &mut self,
        inputs: TVec<&InferenceFact>,
        outputs: TVec<&InferenceFact>,
        observed: TVec<&InferenceFact>,
    ) -> TractResult<(TVec<InferenceFact>, TVec<InferenceFact>, TVec<InferenceFact>)> {
        self.inner.infer_facts(inputs, outputs, observed)
    }

    fn nboutputs(&self) -> TractResult<usize> {
        self.inner.nboutputs()
    }

    fn to_typed(
        &self,
        source: &InferenceModel,
        node: &InferenceNode,
        target: &mut TypedModel,
        mapping: &HashMap<OutletId, OutletId>,
    ) -> TractResult<TVec<OutletId>> {
        for &slot in self.matrices {
            let rank = node.inputs.get(slot).and_then(|input| mapping.get(input));
            let rank = rank.map(|input| target.outlet_fact(*input).map(TypedFact::rank));
            let rank = rank.transpose()?.unwrap_or(0);
            ensure!(rank >= 2, "expected a matrix as input {slot}, found {rank} axes");
        }
        let outlets = self.inner.to_typed(source, node, target, mapping)?;
        let Some(outlet) = outlets.first() else { return Ok(outlets) };
        target.rename_node(outlet.node, &node.name)?;
        if let Some(replace) = &self.replace {
            let made = target.node_mut(outlet.node);
            made.op = replace(made.op.clone());
        }
        Ok(outlets)
    }

    as_op!();
}
