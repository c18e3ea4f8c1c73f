//! The maximum and minimum of an axis, in ONNX Runtime's order of NaN.
//!
//! tract sorts by a comparison that is no order where a value is NaN, and takes the lowest finite number for
//! the minimum of all. Here NaN is greater than all others in `TopK`, and is passed over by `ArgMax` and
//! `ArgMin` unless it comes first.

use std::cmp::Ordering;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::array::Topk;
use tract_onnx::tract_core::ops::nn::{Reduce, Reducer};

/// Values along an axis: of each line the place of its first one, and how far its values are apart.
struct Lines {
    outer: usize,
    size: usize,
    inner: usize,
}

impl Lines {
    fn new(shape: &[usize], axis: usize) -> Self {
        let outer = shape[..axis].iter().product();
        Self { outer, size: shape[axis], inner: shape[axis + 1..].iter().product() }
    }

    fn firsts(&self) -> impl Iterator<Item = usize> {
        let (size, inner) = (self.size, self.inner);
        (0..self.outer).flat_map(move |outer| (0..inner).map(move |i| outer * size * inner + i))
    }
}

/// The values of `TopK` and where they stand, `count` of each line.
pub(super) fn greatest(input: &Tensor, op: &Topk, count: usize) -> TractResult<TVec<TValue>> {
    dispatch_numbers!(top(input.datum_type())(input, op, count))
}

fn top<T: Datum + Copy + PartialOrd>(
    input: &Tensor,
    op: &Topk,
    count: usize,
) -> TractResult<TVec<TValue>> {
    let plain = input.try_as_plain_ram()?;
    let values = plain.as_slice::<T>()?;
    let lines = Lines::new(input.shape(), op.axis);
    let mut shape: TVec<usize> = input.shape().into();
    shape[op.axis] = count;
    let Some(&any) = values.first().filter(|_| count > 0) else {
        let none = Tensor::zero_dt(input.datum_type(), &shape)?;
        return Ok(tvec!(none.into_tvalue(), Tensor::zero::<i64>(&shape)?.into_tvalue()));
    };
    let mut found = vec![any; shape.iter().product()];
    let mut places = vec![0_i64; found.len()];
    let mut order: Vec<usize> = Vec::with_capacity(lines.size);
    for (line, first) in lines.firsts().enumerate() {
        let value = |place: usize| values[first + place * lines.inner];
        // The first of those that are equal comes first.
        let compare = |&a: &usize, &b: &usize| {
            let order = with_nan(value(a), value(b));
            (if op.largest { order.reverse() } else { order }).then(a.cmp(&b))
        };
        order.clear();
        order.extend(0..lines.size);
        if count < lines.size {
            order.select_nth_unstable_by(count, compare);
        }
        order.truncate(count);
        order.sort_unstable_by(compare);
        let to = line / lines.inner * count * lines.inner + line % lines.inner;
        for (rank, &place) in order.iter().enumerate() {
            found[to + rank * lines.inner] = value(place);
            places[to + rank * lines.inner] = i64::try_from(place)?;
        }
    }
    let found = Tensor::from_shape(&shape, &found)?.cast_to_dt(input.datum_type())?.into_owned();
    Ok(tvec!(found.into_tvalue(), Tensor::from_shape(&shape, &places)?.into_tvalue()))
}

/// By value; NaN is greater than all.
#[allow(clippy::eq_op, reason = "what is no number differs from itself")]
fn with_nan<T: PartialOrd + Copy>(a: T, b: T) -> Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| (a != a).cmp(&(b != b)))
}

/// The position of the maximum or the minimum of an axis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Where {
    axis: usize,
    is_greatest: bool,
    /// Of those that are equal.
    is_last: bool,
}

impl Where {
    /// The replacement of a reduction, if it is one of these.
    pub(super) fn of(reduce: &Reduce) -> Option<Self> {
        let (is_greatest, is_last) = match reduce.reducer {
            Reducer::ArgMax(is_last) => (true, is_last),
            Reducer::ArgMin(is_last) => (false, is_last),
            _ => return None,
        };
        let [axis] = *reduce.axes.as_slice() else { return None };
        Some(Self { axis, is_greatest, is_last })
    }

    fn places<T: Datum + Copy + PartialOrd>(&self, input: &Tensor) -> TractResult<Tensor> {
        let plain = input.try_as_plain_ram()?;
        let values = plain.as_slice::<T>()?;
        let lines = Lines::new(input.shape(), self.axis);
        ensure!(lines.size > 0, "expected an axis with values, found none");
        let mut shape: TVec<usize> = input.shape().into();
        shape[self.axis] = 1;
        let place = |first: usize| {
            let value = |place: usize| values[first + place * lines.inner];
            let wins = |a: T, b: T| {
                (if self.is_greatest { a > b } else { a < b }) || self.is_last && a == b
            };
            let best = (1..lines.size)
                .fold(0, |best, place| if wins(value(place), value(best)) { place } else { best });
            Ok(i64::try_from(best)?)
        };
        let places = lines.firsts().map(place).collect::<TractResult<Vec<i64>>>()?;
        Tensor::from_shape(&shape, &places)
    }
}

impl Op for Where {
    fn name(&self) -> StaticName {
        if self.is_greatest { "ForebayArgMax".into() } else { "ForebayArgMin".into() }
    }

    op_as_typed_op!();
}

impl EvalOp for Where {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let input = args_1!(inputs);
        let places = dispatch_numbers!(Self::places(input.datum_type())(self, &input))?;
        Ok(tvec!(places.into_tvalue()))
    }
}

impl TypedOp for Where {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let mut shape = inputs[0].shape.to_tvec();
        shape[self.axis] = 1.to_dim();
        Ok(tvec!(i64::datum_type().fact(shape)))
    }

    as_op!();
}
