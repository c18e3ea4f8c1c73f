//! Around a kernel of ours that looks for the greatest of several values, and in place of tract's.
//!
//! Such a kernel skips what is no number, or forgets it again. Where the input has one, the kernel is
//! run a second time over marks, ones where there is none and zeros elsewhere, which tells the outputs
//! that have seen one. Otherwise this costs one look at the input.

use super::bounds::Bound;
use forebay_kernels::rows;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;

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
        let merge = |(output, mark): (TValue, TValue)| -> TractResult<TValue> {
            let mut output = output.into_tensor();
            let mark = mark.try_as_plain_ram()?;
            let mut plain = output.try_as_plain_ram_mut()?;
            let pairs = plain.as_slice_mut::<f32>()?.iter_mut().zip(mark.as_slice::<f32>()?);
            pairs.filter(|(_, mark)| **mark != 0.0).for_each(|(value, _)| *value = f32::NAN);
            Ok(output.into_tvalue())
        };
        outputs.into_iter().zip(marked).map(merge).collect()
    }
}

impl TypedOp for NotHiding {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        self.inner.output_facts(inputs)
    }

    as_op!();
}

/// Marks where an input is no number; `None` if it is nowhere so.
fn marks(input: &Tensor) -> TractResult<Option<Tensor>> {
    let plain = input.try_as_plain_ram()?;
    let values = plain.as_slice::<f32>()?;
    if !rows::any_nan(values) {
        return Ok(None);
    }
    let mark = |value: &f32| if value.is_nan() { 1.0 } else { 0.0 };
    let marks: Vec<f32> = values.iter().map(mark).collect();
    Ok(Some(Tensor::from_shape(input.shape(), &marks)?))
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
