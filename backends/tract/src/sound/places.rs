//! Operators that go where the values of an input say.
//!
//! tract's take such values as they come: one beyond the end stops the run with a panic, or, on an axis
//! that is not the first, reads the next row, which may be another caller's. One below zero is not
//! counted from the end everywhere. So each of these operators looks at its values first, and one that
//! leads nowhere is told with the name of the input that it came from.

use std::collections::HashSet;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::array::{
    Gather, GatherElements, GatherNd, OneHot, Range, ScatterElements, ScatterNd, Topk,
};
use tract_onnx::tract_core::tract_linalg::block_quant::BlockQuantStorage;
use tract_onnx::tract_core::tract_linalg::mmm::PackedMatrixStorage;

/// Values that a range may have: more than any model needs, and less than what takes all memory.
const MAX_STEPS: f64 = (1_u64 << 28) as f64;
/// Nodes that are gone through in search of the inputs that a value comes from.
const MAX_FOLLOWED: usize = 1000;

/// A value of an input that an operator can't take.
#[derive(Debug, thiserror::Error)]
#[error("{asked}: expected {expected}, found {found}")]
pub(crate) struct BadValue {
    /// The operator and the inputs that its value comes from.
    asked: String,
    expected: String,
    found: String,
}

impl BadValue {
    /// Of an operator that is not asked for its inputs.
    pub(crate) fn new(asked: &str, expected: String, found: &impl ToString) -> Self {
        Self { asked: asked.to_owned(), expected, found: found.to_string() }
    }
}

/// The inputs of the graph that a value is worked out from, and the operator that reads it, to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    inputs: Vec<String>,
    node: String,
    operator: String,
}

impl Asked {
    /// Some inputs of a node.
    pub(super) fn new(model: &TypedModel, node: &TypedNode, slots: &[usize]) -> Self {
        let mut inputs = Vec::new();
        let mut seen = HashSet::new();
        let slots = slots.iter().filter_map(|&slot| node.inputs.get(slot));
        let mut open: Vec<usize> = slots.map(|input| input.node).collect();
        while let Some(id) = open.pop() {
            if !seen.insert(id) || seen.len() > MAX_FOLLOWED {
                continue;
            }
            let node = model.node(id);
            if model.input_outlets().is_ok_and(|sources| sources.iter().any(|s| s.node == id)) {
                inputs.push(node.name.clone());
            }
            open.extend(node.inputs.iter().map(|input| input.node));
        }
        inputs.sort();
        Self { inputs, node: node.name.clone(), operator: node.op().name().into_owned() }
    }

    /// The error for a value that the operator can't take; the caller's mistake only if it comes from an
    /// input.
    pub(super) fn bad(&self, expected: &str, found: &impl ToString) -> TractError {
        let (expected, found) = (expected.to_owned(), found.to_string());
        let place = format!("{} \"{}\"", self.operator, self.node);
        match self.inputs.as_slice() {
            [] => TractError::msg(format!("{place}: expected {expected}, found {found}")),
            [input] => {
                let asked = format!("input \"{input}\" of {place}");
                BadValue { asked, expected, found }.into()
            }
            [first, rest @ ..] => {
                let rest: String = rest.iter().map(|input| format!(", \"{input}\"")).collect();
                let asked = format!("what {place} is given of the inputs \"{first}\"{rest}");
                BadValue { asked, expected, found }.into()
            }
        }
    }
}

/// The replacement of a node, if its operator uses values as positions.
pub(super) fn checked(model: &TypedModel, node: &TypedNode) -> Option<Box<dyn TypedOp>> {
    let (places, slots): (_, &[usize]) = if let Some(op) = node.op_as::<Gather>() {
        (Places::Entries { axis: op.axis }, &[1])
    } else if let Some(op) = node.op_as::<GatherElements>() {
        (Places::Elements { axis: op.axis }, &[1])
    } else if let Some(op) = node.op_as::<ScatterElements>() {
        (Places::Elements { axis: op.axis }, &[1])
    } else if let Some(op) = node.op_as::<GatherNd>() {
        (Places::Points { batch_dims: op.batch_dims }, &[1])
    } else if node.op_is::<ScatterNd>() {
        (Places::Points { batch_dims: 0 }, &[1])
    } else if let Some(op) = node.op_as::<Topk>() {
        (Places::Count { axis: op.axis }, &[1])
    } else if node.op_is::<OneHot>() {
        (Places::Marks, &[0])
    } else if node.op_is::<Range>() {
        (Places::Steps, &[0, 1, 2])
    } else if node.op().name() == "NonMaxSuppression" {
        (Places::Boxes, &[2])
    } else {
        return None;
    };
    let asked = Asked::new(model, node, slots);
    Some(Box::new(Checked { inner: node.op.clone(), places, asked }))
}

/// The meaning of the values that an operator looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Places {
    /// Entries of an axis.
    Entries { axis: usize },
    /// For each place an entry of an axis.
    Elements { axis: usize },
    /// The last axis holds a place along several axes.
    Points { batch_dims: usize },
    /// This many of the greatest or the least.
    Count { axis: usize },
    /// The positions of ones between zeros; positions outside mark nothing.
    Marks,
    /// The most boxes of a class.
    Boxes,
    /// The end of a range, from a start in steps.
    Steps,
}

/// An operator whose values are looked at first.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Checked {
    inner: Box<dyn TypedOp>,
    places: Places,
    asked: Asked,
}

impl Checked {
    fn entries(&self, data: &Tensor, axis: usize, indices: TValue) -> TractResult<TValue> {
        // Packed weights know their size, and take no position below zero.
        let (size, is_packed) = if let Some(packed) = data.storage_as::<PackedMatrixStorage>() {
            (packed.value().mn(), true)
        } else if data.storage_as::<BlockQuantStorage>().is_some() {
            (data.shape()[data.rank().saturating_sub(2)], true)
        } else {
            (data.shape()[axis], false)
        };
        self.within(indices, |_| size, is_packed)
    }

    fn elements(&self, inputs: &mut TVec<TValue>, axis: usize) -> TractResult<()> {
        let (data, indices) = (inputs[0].shape().to_vec(), inputs[1].shape().to_vec());
        let fits =
            |(place, (size, index)): (usize, (&usize, &usize))| place == axis || index <= size;
        let is_scatter = inputs.len() == 3;
        if data.len() != indices.len()
            || !data.iter().zip(&indices).enumerate().all(fits)
            || is_scatter && inputs[2].shape() != indices
        {
            let expected = format!("indices for data of shape {data:?}");
            return Err(self.asked.bad(&expected, &format!("shape {indices:?}")));
        }
        inputs[1] = self.within(inputs[1].clone(), |_| data[axis], false)?;
        Ok(())
    }

    fn points(&self, data: &Tensor, batch_dims: usize, indices: TValue) -> TractResult<TValue> {
        let coordinates = indices.shape().last().copied().unwrap_or(0);
        let sizes = data.shape().get(batch_dims..batch_dims + coordinates).map(<[usize]>::to_vec);
        let Some(sizes) = sizes.filter(|_| coordinates > 0) else {
            let expected = format!("places in data of shape {:?}", data.shape());
            return Err(self.asked.bad(&expected, &format!("shape {:?}", indices.shape())));
        };
        self.within(indices, |place| sizes[place % coordinates], true)
    }

    /// Indices that lie within the size of their place, counted from the end where they are below zero;
    /// from the beginning, if `from_zero`.
    fn within(
        &self,
        indices: TValue,
        size: impl Fn(usize) -> usize,
        from_zero: bool,
    ) -> TractResult<TValue> {
        let wide = indices.cast_to::<i64>()?;
        let plain = wide.try_as_plain_ram()?;
        let values = plain.as_slice::<i64>()?;
        let mut is_below = false;
        for (place, &value) in values.iter().enumerate() {
            let size = i64::try_from(size(place))?;
            if value < -size || value >= size {
                let expected = format!("indices from {} to {}", -size, size - 1);
                return Err(self.asked.bad(&expected, &value));
            }
            is_below |= value < 0;
        }
        if !(is_below && from_zero) {
            return Ok(indices);
        }
        let counted = values.iter().enumerate().map(|(place, &value)| {
            let size = i64::try_from(size(place))?;
            Ok(if value < 0 { value + size } else { value })
        });
        let counted = counted.collect::<TractResult<Vec<i64>>>()?;
        let counted = Tensor::from_shape(indices.shape(), &counted)?;
        Ok(counted.cast_to_dt(indices.datum_type())?.into_owned().into_tvalue())
    }

    /// tract takes a range of sizes that ends before it begins for one that runs backwards, and makes one
    /// of any length.
    fn is_empty_range(&self, context: &EvalContext, inputs: &[TValue]) -> TractResult<bool> {
        let number = |value: &TValue| -> TractResult<f64> {
            if value.datum_type() != TDim::datum_type() {
                return value.cast_to_scalar::<f64>();
            }
            let size = value.try_as_plain_ram()?.to_scalar::<TDim>()?.eval(context.symbols);
            tensor0(size.to_i64()?).cast_to_scalar::<f64>()
        };
        let [start, end, step] = [number(&inputs[0])?, number(&inputs[1])?, number(&inputs[2])?];
        let steps = ((end - start) / step).ceil();
        // NaN is not a count of steps.
        if step == 0.0 || steps.is_nan() || steps > MAX_STEPS {
            let expected = format!("a range of at most {MAX_STEPS} values");
            let found = format!("{start} to {end} in steps of {step}");
            return Err(self.asked.bad(&expected, &found));
        }
        Ok(steps <= 0.0)
    }

    fn count(&self, inputs: &TVec<TValue>, axis: usize) -> TractResult<TVec<TValue>> {
        let size = inputs[0].shape()[axis];
        let count = inputs[1].cast_to_scalar::<i64>()?;
        let is_right = usize::try_from(count).is_ok_and(|count| count <= size);
        if !is_right {
            return Err(self.asked.bad(&format!("0 to {size}"), &count));
        }
        let op = self.inner.downcast_ref::<Topk>().context("expected TopK")?;
        super::order::greatest(&inputs[0], op, usize::try_from(count)?)
    }
}

impl Op for Checked {
    fn name(&self) -> StaticName {
        self.inner.name()
    }

    fn validation(&self) -> Validation {
        self.inner.validation()
    }

    fn mints_runtime_symbols(&self) -> bool {
        self.inner.mints_runtime_symbols()
    }

    op_as_typed_op!();
}

impl EvalOp for Checked {
    op_out_of_plan!();

    fn eval(&self, context: &EvalContext, mut inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        match self.places {
            Places::Entries { axis } => {
                inputs[1] = self.entries(&inputs[0], axis, inputs[1].clone())?;
            }
            Places::Elements { axis } => self.elements(&mut inputs, axis)?,
            Places::Points { batch_dims } => {
                inputs[1] = self.points(&inputs[0], batch_dims, inputs[1].clone())?;
            }
            Places::Count { axis } => return self.count(&inputs, axis),
            Places::Marks => {
                let op = self.inner.downcast_ref::<OneHot>().context("expected OneHot")?;
                return marks(&inputs[0], op);
            }
            // tract takes none to mean all of them.
            Places::Boxes if inputs[2].cast_to_scalar::<i64>()? <= 0 => {
                return Ok(tvec!(Tensor::zero::<i64>(&[0, 3])?.into_tvalue()));
            }
            Places::Boxes => (),
            Places::Steps if self.is_empty_range(context, &inputs)? => {
                let datum_type = inputs[0].datum_type();
                let is_size = datum_type == TDim::datum_type();
                let datum_type = if is_size { i64::datum_type() } else { datum_type };
                return Ok(tvec!(Tensor::zero_dt(datum_type, &[0])?.into_tvalue()));
            }
            Places::Steps => (),
        }
        self.inner.eval(context, inputs)
    }
}

impl TypedOp for Checked {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        self.inner.output_facts(inputs)
    }

    as_op!();
}

/// Ones where the values say, along a new axis; a value that lies outside has none.
fn marks(values: &Tensor, op: &OneHot) -> TractResult<TVec<TValue>> {
    let wide = values.cast_to::<i64>()?;
    let plain = wide.try_as_plain_ram()?;
    let mut shape: TVec<usize> = values.shape().into();
    shape.insert(op.axis, op.dim);
    let behind: usize = shape[op.axis + 1..].iter().product();
    let size = i64::try_from(op.dim)?;
    let places = plain.as_slice::<i64>()?.iter().enumerate().filter_map(|(place, &value)| {
        let value = if value < 0 { value.checked_add(size)? } else { value };
        let value = usize::try_from(value).ok().filter(|&value| value < op.dim)?;
        Some((place / behind * op.dim + value) * behind + place % behind)
    });
    let places: Vec<usize> = places.collect();
    let mut output = op.off.broadcast_scalar_to_shape(&shape)?;
    let on = op.on.broadcast_scalar_to_shape(&[1])?;
    dispatch_datum!(put(on.datum_type())(&mut output, &on, &places))?;
    Ok(tvec!(output.into_tvalue()))
}

fn put<T: Datum>(output: &mut Tensor, value: &Tensor, places: &[usize]) -> TractResult<()> {
    let value = value.try_as_plain_ram()?;
    let [value] = value.as_slice::<T>()? else { bail!("expected one value") };
    let mut plain = output.try_as_plain_ram_mut()?;
    let values = plain.as_slice_mut::<T>()?;
    places.iter().for_each(|&place| values[place].clone_from(value));
    Ok(())
}
