//! Comparison of sizes for equality.
//!
//! tract takes a size that is not known yet, and a number, to be unequal: a graph that asks whether there
//! are five rows has `false` in its plan for all sizes, whatever comes. Here such a question is
//! answered when the graph runs.

use tract_onnx::prelude::*;
use tract_onnx::tract_core::broadcast::multi_broadcast;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::binary::BinMiniOp;
use tract_onnx::tract_core::ops::logic::CompEq;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::ops::binary::{InferenceBinOp, rules};

/// `Equal` of any values.
#[derive(Debug, Clone)]
pub(super) struct Equal;

impl Expansion for Equal {
    fn name(&self) -> StaticName {
        "ForebayEqual".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        rules(solver, inputs, outputs, |_, _| Ok(bool::datum_type()))
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let mut has_sizes = false;
        for &input in inputs {
            has_sizes |= model.outlet_fact(input)?.datum_type == TDim::datum_type();
        }
        let op: Box<dyn BinMiniOp> = if has_sizes { Box::new(SameSize) } else { Box::new(CompEq) };
        InferenceBinOp(op).wire(prefix, model, inputs)
    }
}

/// The same of sizes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct SameSize;

impl BinMiniOp for SameSize {
    fn name(&self) -> &'static str {
        "ForebaySameSize"
    }

    fn result_datum_type(&self, a: DatumType, b: DatumType) -> TractResult<DatumType> {
        CompEq.result_datum_type(a, b)
    }

    fn is_commutative(&self) -> bool {
        CompEq.is_commutative()
    }

    fn eval_in_a(&self, a: &mut Tensor, b: &Tensor) -> TractResult<()> {
        CompEq.eval_in_a(a, b)
    }

    fn eval_out_of_place(&self, c: &mut Tensor, a: &Tensor, b: &Tensor) -> TractResult<()> {
        CompEq.eval_out_of_place(c, a, b)
    }

    fn eval(&self, a: TValue, b: TValue, c: DatumType) -> TractResult<Tensor> {
        CompEq.eval(a, b, c)
    }

    fn eval_symbolic(
        &self,
        context: &EvalContext,
        inputs: TVec<TValue>,
    ) -> TractResult<Option<TVec<TValue>>> {
        if let [a, b] = inputs.as_slice() {
            let (a, b) = (sizes(a, context)?, sizes(b, context)?);
            let (a, b) = (a.to_plain_array_view::<TDim>()?, b.to_plain_array_view::<TDim>()?);
            let shape = multi_broadcast(&[a.shape(), b.shape()])?;
            let all = "expected shapes that go together";
            let (a, b) = (a.broadcast(&*shape).context(all)?, b.broadcast(&*shape).context(all)?);
            for (a, b) in a.iter().zip(b.iter()) {
                let off = a.clone() - b;
                let is_known = a == b || off.prove_strict_positive() || off.prove_strict_negative();
                if !is_known {
                    // Fails, and says that it is too early to ask.
                    off.to_i64()?;
                }
            }
        }
        CompEq.eval_symbolic(context, inputs)
    }

    fn uniform_tdim_comparison(&self, a: &TDim, b: &TDim) -> Option<TDim> {
        CompEq.uniform_tdim_comparison(a, b)
    }
}

/// As far as they are known.
fn sizes(value: &TValue, context: &EvalContext) -> TractResult<Tensor> {
    let mut value = value.clone().into_tensor().cast_to_dt(TDim::datum_type())?.into_owned();
    for size in value.try_as_plain_ram_mut()?.as_slice_mut::<TDim>()? {
        *size = size.eval(context.symbols);
    }
    Ok(value)
}
