//! Alternatives of which one is run.
//!
//! tract copies the graph of the alternative, unoptimised, and plans it again each time: a model that is
//! wrapped in one condition runs ten times as long as without. Here each alternative is compiled once, with
//! the worker's kernels in it.

use super::{Rewrite, rewrite};
use crate::sound;
use std::sync::Arc;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::logic::IfThenElse;

/// Shares the plan that it is given; gives the bytes that it takes beside what is shared.
pub(crate) type SharePlan<'a> = &'a mut dyn FnMut(&mut Arc<TypedSimplePlan>) -> TractResult<usize>;

/// Two compiled graphs, and which of the inputs each takes.
#[derive(Debug, Clone)]
pub(super) struct Branch {
    when_true: (Arc<TypedSimplePlan>, Vec<usize>),
    when_false: (Arc<TypedSimplePlan>, Vec<usize>),
    /// Of the outputs.
    facts: TVec<TypedFact>,
}

impl Rewrite<'_> {
    /// Compiles the alternatives of a condition.
    pub(super) fn branch(&mut self, node: &TypedNode) -> TractResult<bool> {
        let Some(op) = node.op_as::<IfThenElse>() else { return Ok(false) };
        let facts = node.outputs.iter().map(|output| output.fact.clone()).collect();
        let branch = Branch {
            when_true: (compile(&op.then_body)?, op.then_input_mapping.clone()),
            when_false: (compile(&op.else_body)?, op.else_input_mapping.clone()),
            facts,
        };
        let inputs = node.inputs.iter().map(|&input| self.in_first(input));
        let inputs = inputs.collect::<TractResult<Vec<_>>>()?;
        self.keep(node, Box::new(branch), inputs);
        self.kernels += 1;
        Ok(true)
    }
}

fn compile(body: &TypedModel) -> TractResult<Arc<TypedSimplePlan>> {
    let body = sound::declutter(body.clone())?;
    let body = match rewrite(&body)? {
        Some(rewritten) => rewritten,
        None => body,
    };
    TypedSimplePlan::new(sound::optimize(body)?)
}

impl Branch {
    /// Shares both graphs; gives the bytes that they take beside what is shared.
    pub(super) fn share(&mut self, plan: SharePlan<'_>) -> TractResult<usize> {
        Ok(plan(&mut self.when_true.0)? + plan(&mut self.when_false.0)?)
    }
}

impl PartialEq for Branch {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.when_true.0, &other.when_true.0)
            && Arc::ptr_eq(&self.when_false.0, &other.when_false.0)
    }
}

impl Eq for Branch {}

impl Op for Branch {
    fn name(&self) -> StaticName {
        "ForebayBranch".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Branch {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let condition = inputs.first().context("expected a condition")?.cast_to_scalar::<bool>()?;
        let (plan, mapping) = if condition { &self.when_true } else { &self.when_false };
        // A state of its own for each run: memory of recurrent nodes ends with it.
        plan.run(mapping.iter().map(|&input| inputs[input].clone()).collect())
    }
}

impl TypedOp for Branch {
    fn output_facts(&self, _: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(self.facts.clone())
    }

    as_op!();
}
