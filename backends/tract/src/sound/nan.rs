//! Wraps a kernel that looks for the maximum of several values, and replaces tract's.
//!
//! Such a kernel skips NaN, or forgets it again. Where the input has one, the kernel is run a second time
//! over marks, ones where there is NaN and zeros elsewhere, which shows the outputs that have seen one.
//! Otherwise this costs one pass over the input.

use super::bounds::Bound;
use forebay_kernels::reduce;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::lstm_cell::LstmEpilogue;

#[derive(Debug, Clone)]
pub(super) struct NotHiding {
    pub(super) inner: Box<dyn TypedOp>,
}

impl PartialEq for NotHiding {
    fn eq(&self, other: &Self) -> bool {
        self.inner == other.inner
    }
}

impl Eq for NotHiding {}

impl Op for NotHiding {
    fn name(&self) -> StaticName {
        self.inner.name()
    }

    fn validation(&self) -> Validation {
        self.inner.validation()
    }

    op_as_typed_op!();
}

impl EvalOp for NotHiding {
    op_out_of_plan!();

    fn eval(&self, context: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let marks = inputs.first().map(|input| marks(input)).transpose()?.flatten();
        let outputs = self.inner.eval(context, inputs)?;
        let Some(marks) = marks else { return Ok(outputs) };
        let marked = self.inner.eval(context, tvec!(marks.into_tvalue()))?;
        // A second output says where the values of the first stood.
        let mut outputs: TVec<TValue> = outputs;
        let first = outputs.remove(0).into_tensor();
        let merged = match first.datum_type() {
            DatumType::F32 => merged(first, &marked[0], f32::NAN, 0.0)?,
            DatumType::F16 => merged(first, &marked[0], f16::NAN, f16::ZERO)?,
            DatumType::F64 => merged(first, &marked[0], f64::NAN, 0.0)?,
            other => bail!("expected floating-point numbers, found {other:?}"),
        };
        outputs.insert(0, merged);
        Ok(outputs)
    }
}

/// Puts `none` where a mark is not `unmarked`.
fn merged<T: Datum + Copy + PartialEq>(
    mut output: Tensor,
    marks: &Tensor,
    none: T,
    unmarked: T,
) -> TractResult<TValue> {
    let marks = marks.try_as_plain_ram()?;
    let mut plain = output.try_as_plain_ram_mut()?;
    let pairs = plain.as_slice_mut::<T>()?.iter_mut().zip(marks.as_slice::<T>()?);
    pairs.filter(|(_, mark)| **mark != unmarked).for_each(|(value, _)| *value = none);
    Ok(output.into_tvalue())
}

impl TypedOp for NotHiding {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        self.inner.output_facts(inputs)
    }

    as_op!();
}

/// Marks where an input is no number; `None` if it is nowhere so.
fn marks(input: &Tensor) -> TractResult<Option<Tensor>> {
    match input.datum_type() {
        DatumType::F32 => {
            let plain = input.try_as_plain_ram()?;
            let is_any = reduce::any_nan(plain.as_slice::<f32>()?);
            if is_any { marks_of::<f32>(input, 1.0, 0.0) } else { Ok(None) }
        }
        DatumType::F16 => marks_of(input, f16::ONE, f16::ZERO),
        DatumType::F64 => marks_of(input, 1.0_f64, 0.0),
        // All integers are numbers.
        _ => Ok(None),
    }
}

#[allow(clippy::eq_op, reason = "what is no number differs from itself")]
fn marks_of<T: Datum + Copy + PartialEq>(
    input: &Tensor,
    marked: T,
    unmarked: T,
) -> TractResult<Option<Tensor>> {
    let plain = input.try_as_plain_ram()?;
    let values = plain.as_slice::<T>()?;
    if values.iter().all(|value| value == value) {
        return Ok(None);
    }
    let mark = |value: &T| if value == value { unmarked } else { marked };
    let marks: Vec<T> = values.iter().map(mark).collect();
    Ok(Some(Tensor::from_shape(input.shape(), &marks)?))
}

/// The cell of a recurrent net, whose functions are tract's, which give a number where there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cell {
    pub(super) inner: LstmEpilogue,
}

impl Cell {
    /// Sets what depends on a gate that is no number, or on a state that is none, to none.
    fn mark<T: Datum + Copy + PartialEq>(
        &self,
        inputs: &[TValue],
        outputs: TVec<TValue>,
        none: T,
    ) -> TractResult<TVec<TValue>> {
        let (gates, state) = (inputs[0].try_as_plain_ram()?, inputs[1].try_as_plain_ram()?);
        let (gates, state) = (gates.as_slice::<T>()?, state.as_slice::<T>()?);
        #[allow(clippy::eq_op, reason = "what is no number differs from itself")]
        let is_none = |value: T| value != value;
        if !gates.iter().chain(state).any(|&value| is_none(value)) {
            return Ok(outputs);
        }
        let size = self.inner.hidden;
        let mut outputs: TVec<Tensor> = outputs.into_iter().map(TValue::into_tensor).collect();
        for (place, &state) in state.iter().enumerate() {
            let gate = |gate: usize| gates[place / size * 4 * size + gate * size + place % size];
            // Gates stand in the order input, output, forget, cell.
            let is_state_none = is_none(state) || [0, 2, 3].map(gate).into_iter().any(is_none);
            let nones = [is_state_none || is_none(gate(1)), is_state_none];
            for (output, _) in outputs.iter_mut().zip(nones).filter(|(_, is_none)| *is_none) {
                output.try_as_plain_ram_mut()?.as_slice_mut::<T>()?[place] = none;
            }
        }
        Ok(outputs.into_iter().map(IntoTValue::into_tvalue).collect())
    }
}

impl Op for Cell {
    fn name(&self) -> StaticName {
        self.inner.name()
    }

    fn validation(&self) -> Validation {
        self.inner.validation()
    }

    op_as_typed_op!();
}

impl EvalOp for Cell {
    op_out_of_plan!();

    fn eval(&self, context: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let outputs = self.inner.eval(context, inputs.clone())?;
        match inputs[0].datum_type() {
            DatumType::F32 => self.mark(&inputs, outputs, f32::NAN),
            DatumType::F16 => self.mark(&inputs, outputs, f16::NAN),
            other => bail!("expected floating-point numbers, found {other:?}"),
        }
    }
}

impl TypedOp for Cell {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        self.inner.output_facts(inputs)
    }

    as_op!();
}

/// The greatest or the least of the values along some axes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Extreme {
    pub(super) bound: Bound,
    pub(super) axes: TVec<usize>,
}

impl Extreme {
    fn of<T: Datum + PartialOrd + Copy>(&self, input: &Tensor, first: T) -> TractResult<Tensor> {
        let mut values = input.to_plain_array_view::<T>()?.to_owned();
        for &axis in &self.axes {
            let axis = tract_ndarray::Axis(axis);
            let folded = values.fold_axis(axis, first, |a, b| self.bound.pick(*a, *b));
            values = folded.insert_axis(axis);
        }
        Ok(values.into_tensor())
    }
}

impl Op for Extreme {
    fn name(&self) -> StaticName {
        match self.bound {
            Bound::Greater => "ForebayGreatest".into(),
            Bound::Lesser => "ForebayLeast".into(),
        }
    }

    op_as_typed_op!();
}

impl EvalOp for Extreme {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let input = args_1!(inputs);
        let first = match self.bound {
            Bound::Greater => f32::NEG_INFINITY,
            Bound::Lesser => f32::INFINITY,
        };
        let output = match input.datum_type() {
            DatumType::F32 => self.of::<f32>(&input, first)?,
            DatumType::F16 => self.of::<f16>(&input, f16::from_f32(first))?,
            DatumType::F64 => self.of::<f64>(&input, f64::from(first))?,
            other => bail!("expected floating-point numbers, found {other:?}"),
        };
        Ok(tvec!(output.into_tvalue()))
    }
}

impl TypedOp for Extreme {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let mut shape = inputs[0].shape.to_tvec();
        for &axis in &self.axes {
            shape[axis] = 1.to_dim();
        }
        Ok(tvec!(inputs[0].datum_type.fact(shape)))
    }

    as_op!();
}
