//! `If`, more than once in a graph.
//!
//! tract names each node of this operator by the operator, so that a graph may have one. Here it keeps the
//! name that it has in the file.

use super::Built;
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_hir::internal::*;

pub(super) fn build(context: &ParsingContext, node: &NodeProto) -> Built {
    let framework = onnx();
    let builder = framework.op_register.0.get("If").context("expected an operator If")?;
    let (inner, closures) = builder(context, node)?;
    Ok((Box::new(Named(inner)), closures))
}

/// An operator whose node keeps its name.
#[derive(Debug, Clone)]
struct Named(Box<dyn InferenceOp>);

impl PartialEq for Named {
    fn eq(&self, _: &Self) -> bool {
        false
    }
}

impl Eq for Named {}

impl Op for Named {
    fn name(&self) -> StaticName {
        self.0.name()
    }

    not_a_typed_op!();
}

impl EvalOp for Named {
    op_out_of_plan!();

    fn eval(&self, context: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        self.0.eval(context, inputs)
    }
}

impl InferenceOp for Named {
    fn infer_facts(
        &mut self,
        inputs: TVec<&InferenceFact>,
        outputs: TVec<&InferenceFact>,
        observed: TVec<&InferenceFact>,
    ) -> TractResult<(TVec<InferenceFact>, TVec<InferenceFact>, TVec<InferenceFact>)> {
        self.0.infer_facts(inputs, outputs, observed)
    }

    fn nboutputs(&self) -> TractResult<usize> {
        self.0.nboutputs()
    }

    fn to_typed(
        &self,
        source: &InferenceModel,
        node: &InferenceNode,
        target: &mut TypedModel,
        mapping: &HashMap<OutletId, OutletId>,
    ) -> TractResult<TVec<OutletId>> {
        let outlets = self.0.to_typed(source, node, target, mapping)?;
        if let Some(outlet) = outlets.first() {
            target.rename_node(outlet.node, &node.name)?;
        }
        Ok(outlets)
    }

    as_op!();
}
