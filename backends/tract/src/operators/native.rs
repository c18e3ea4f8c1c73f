//! Operators that are functions of whole tensors, as one operation of the engine.
//!
//! An operator that tract lacks, and that has no form in operators which it has, is computed here: it says
//! what its outputs are of given inputs, how it treats rows, and computes. The rest that the engine wants,
//! inference and typed operations, is the same for all of them.

use super::built::Built;
use crate::sound::BadValue;
use std::fmt::Debug;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_hir::internal::*;

/// Type and shape of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) datum_type: DatumType,
    pub(super) shape: TVec<TDim>,
}

impl Kind {
    pub(super) fn new(datum_type: DatumType, shape: impl IntoIterator<Item = TDim>) -> Self {
        Self { datum_type, shape: shape.into_iter().collect() }
    }
}

/// The place of a request's rows behind an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RowRule {
    /// The first axis holds rows, each of which is computed alone.
    First,
    /// Each element is computed alone, or with others along the last axis.
    BeforeLast,
    /// Each element is computed alone.
    Any,
}

/// A function of whole tensors.
pub(super) trait Function: Debug + Send + Sync + 'static {
    /// The operator's name in files.
    fn name(&self) -> &'static str;

    /// The outputs for such inputs.
    ///
    /// # Errors
    /// The operator takes no such inputs.
    fn outputs(&self, inputs: &[Kind]) -> TractResult<TVec<Kind>>;

    /// Computes.
    ///
    /// # Errors
    /// A value that the operator can't take.
    fn run(&self, inputs: &[&Tensor]) -> TractResult<TVec<Tensor>>;

    /// How rows come through.
    fn rows(&self) -> RowRule;

    /// Bytes of memory that its parameters take.
    fn bytes(&self) -> usize {
        0
    }
}

/// An operator of a file that is computed by a function.
pub(super) fn native(function: impl Function, outputs: usize) -> Built {
    Ok((expand(Native { op: NativeOp(Arc::new(function)), outputs }), vec![]))
}

/// The mistake of a caller.
pub(super) fn bad(
    operator: &str,
    expected: impl Into<String>,
    found: &dyn std::fmt::Display,
) -> TractError {
    BadValue::new(operator, expected.into(), &found).into()
}

#[derive(Debug, Clone)]
struct Native {
    op: NativeOp,
    outputs: usize,
}

impl Expansion for Native {
    fn name(&self) -> StaticName {
        self.op.0.name().into()
    }

    fn nboutputs(&self) -> TractResult<usize> {
        Ok(self.outputs)
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_output_arity(outputs, self.outputs)?;
        let types = inputs.iter().map(|input| &input.datum_type);
        solver.given_all(types, move |solver, types: Vec<DatumType>| {
            let shapes = inputs.iter().map(|input| &input.shape);
            solver.given_all(shapes, move |solver, shapes: Vec<TVec<TDim>>| {
                let kinds = types.iter().zip(shapes);
                let kinds = kinds.map(|(&datum_type, shape)| Kind { datum_type, shape });
                let made = self.op.0.outputs(&kinds.collect::<Vec<_>>())?;
                for (output, kind) in outputs.iter().zip(made) {
                    solver.equals(&output.datum_type, kind.datum_type)?;
                    solver.equals(&output.shape, ShapeFactoid::from(kind.shape))?;
                }
                Ok(())
            })
        })
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let outlets = model.wire_node(prefix, self.op.clone(), inputs)?;
        Ok(outlets.into_iter().take(self.outputs).collect())
    }
}

/// The operation of such a function.
#[derive(Clone)]
pub(crate) struct NativeOp(Arc<dyn Function>);

impl NativeOp {
    pub(crate) fn rows(&self) -> RowRule {
        self.0.rows()
    }

    /// Bytes of its parameters, which all copies of it share, and a name for them.
    pub(crate) fn memory(&self) -> (usize, usize) {
        (Arc::as_ptr(&self.0).addr(), self.0.bytes())
    }
}

impl Debug for NativeOp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Parameters may be megabytes, and copies are the same.
        f.write_str(self.0.name())
    }
}

impl PartialEq for NativeOp {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for NativeOp {}

impl Op for NativeOp {
    fn name(&self) -> StaticName {
        self.0.name().into()
    }

    fn validation(&self) -> Validation {
        Validation::Rounding
    }

    op_as_typed_op!();
}

impl EvalOp for NativeOp {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let inputs: TVec<&Tensor> = inputs.iter().map(|input| &**input).collect();
        Ok(self.0.run(&inputs)?.into_iter().map(IntoTValue::into_tvalue).collect())
    }
}

impl TypedOp for NativeOp {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let kind = |fact: &&TypedFact| Kind::new(fact.datum_type, fact.shape.iter().cloned());
        let kinds: Vec<Kind> = inputs.iter().map(kind).collect();
        let made = self.0.outputs(&kinds)?;
        Ok(made.into_iter().map(|kind| kind.datum_type.fact(kind.shape)).collect())
    }

    as_op!();
}

thread_local! {
    static IS_TRIAL: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// While a model is loaded, on this thread: inputs are made up, and a category that is none is no mistake.
pub(crate) struct Trial(bool);

impl Trial {
    pub(crate) fn begin() -> Self {
        Self(IS_TRIAL.replace(true))
    }

    pub(super) fn is_on() -> bool {
        IS_TRIAL.get()
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        IS_TRIAL.set(self.0);
    }
}

/// Attributes of a node.
pub(super) struct Attributes<'a>(pub(super) &'a tract_onnx::pb::NodeProto);

impl<'a> Attributes<'a> {
    fn find(&self, name: &str) -> Option<&'a tract_onnx::pb::AttributeProto> {
        self.0.attribute.iter().find(|attribute| attribute.name == name)
    }

    pub(super) fn int(&self, name: &str) -> Option<i64> {
        self.find(name).map(|found| found.i)
    }

    pub(super) fn float(&self, name: &str) -> Option<f32> {
        self.find(name).map(|found| found.f)
    }

    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.find(name).map(|found| String::from_utf8_lossy(&found.s).into_owned())
    }

    pub(super) fn ints(&self, name: &str) -> &'a [i64] {
        self.find(name).map_or(&[], |found| &found.ints)
    }

    pub(super) fn floats(&self, name: &str) -> &'a [f32] {
        self.find(name).map_or(&[], |found| &found.floats)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    pub(super) fn texts(&self, name: &str) -> TractResult<Vec<String>> {
        let texts = self.find(name).map_or(&[][..], |found| &found.strings);
        let text = |text: &Vec<u8>| {
            String::from_utf8(text.clone()).with_context(|| format!("expected text in {name}"))
        };
        texts.iter().map(text).collect()
    }

    /// A tensor, if it is there.
    pub(super) fn tensor(
        &self,
        context: &tract_onnx::model::ParsingContext,
        name: &str,
    ) -> TractResult<Option<Tensor>> {
        let tensor = self.find(name).and_then(|found| found.t.as_ref());
        tensor.map(|tensor| context.load_tensor(tensor)).transpose()
    }
}

/// Rows and columns of a matrix; one axis is one row.
pub(super) fn matrix(operator: &str, shape: &[usize]) -> TractResult<(usize, usize)> {
    match *shape {
        [columns] => Ok((1, columns)),
        [rows, columns] => Ok((rows, columns)),
        _ => Err(bad(operator, "one axis or two", &format!("{} axes", shape.len()))),
    }
}

/// The number of rows of a matrix; one axis is one row.
pub(super) fn rows_of(operator: &str, shape: &[TDim]) -> TractResult<TDim> {
    match shape {
        [_] => Ok(1.to_dim()),
        [rows, _] => Ok(rows.clone()),
        _ => bail!("{operator}: expected one axis or two, found {}", shape.len()),
    }
}

/// A tensor of texts.
pub(super) fn texts(shape: &[usize], texts: Vec<String>) -> TractResult<Tensor> {
    Ok(tract_ndarray::ArrayD::from_shape_vec(shape, texts)?.into_tensor())
}

/// The elements, as numbers of this type.
pub(super) fn numbers<T: Datum + Copy>(tensor: &Tensor) -> TractResult<Vec<T>> {
    let cast = tensor.cast_to::<T>()?;
    Ok(cast.try_as_plain_ram()?.as_slice::<T>()?.to_vec())
}

/// The elements, which are texts.
pub(super) fn strings(tensor: &Tensor) -> TractResult<&[String]> {
    tensor.try_as_plain_ram()?.as_slice::<String>()
}
