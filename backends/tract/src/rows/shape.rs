//! Operators that move elements and compute nothing.

use super::visit::{Rows, Visit, digest};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::array::{MultiBroadcastTo, Slice};
use tract_onnx::tract_core::ops::logic::IfThenElse;
use tract_onnx::tract_core::ops::scan::Scan;

/// Whether its description holds sizes of tensors, or other graphs. Those are compared by themselves.
pub(super) fn has_sizes(node: &TypedNode, inputs: &[Rows]) -> bool {
    let is_along_rows =
        |op: &Slice| matches!(inputs.first(), Some(Rows::Along { axis, .. }) if *axis == op.axis);
    matches!(node.op_as::<AxisOp>(), Some(AxisOp::Reshape(..)))
        || node.op_is::<MultiBroadcastTo>()
        || node.op_is::<Scan>()
        || node.op_is::<IfThenElse>()
        || node.op_as::<Slice>().is_some_and(is_along_rows)
}

/// The block of a constant that stands beside rows, if it is the same for each of them.
pub(super) fn block(value: &Tensor, axis: usize, block: usize, rows: usize) -> Option<Tensor> {
    let dim = *value.shape().get(axis)?;
    if dim == 1 {
        return Some(value.clone());
    }
    if dim != rows * block {
        return None;
    }
    let first = value.slice(axis, 0, block).ok()?;
    let is_same = |row: usize| {
        let other = value.slice(axis, row * block, (row + 1) * block).ok()?;
        (digest(&other) == digest(&first)).then_some(())
    };
    (1..rows).try_for_each(is_same)?;
    Some(first)
}

/// A digest of the block, for the comparison between numbers of rows.
pub(super) fn told(value: &Tensor, axis: usize, size: usize, rows: usize) -> Option<u64> {
    block(value, axis, size, rows).map(|block| digest(&block))
}

impl Visit<'_> {
    pub(super) fn axis_op(&self, op: &AxisOp) -> Result<Rows, &'static str> {
        let (axis, block) = self.single()?;
        let moved = |axis: usize| Ok(Rows::Along { axis, block });
        match op {
            AxisOp::Add(at) => moved(axis + usize::from(*at <= axis)),
            AxisOp::Rm(at) if *at == axis => Err("takes the axis of the rows away"),
            AxisOp::Rm(at) => moved(axis - usize::from(*at < axis)),
            AxisOp::Move(from, to) => moved(match axis {
                axis if axis == *from => *to,
                axis if *from < axis && axis <= *to => axis - 1,
                axis if *to <= axis && axis < *from => axis + 1,
                axis => axis,
            }),
            AxisOp::Reshape(at, from, to) => {
                let end = at + from.len();
                if axis < *at {
                    return moved(axis);
                }
                if axis >= end {
                    return moved(axis - from.len() + to.len());
                }
                let (axis, block) = self.reshaped(axis - at, *at..end, *at..at + to.len())?;
                Ok(Rows::Along { axis: axis + at, block })
            }
        }
    }

    /// The position of rows along the axis `axis` of the dimensions `from` of the input among `to` of the
    /// output, if both have the same order of elements.
    fn reshaped(
        &self,
        axis: usize,
        from: std::ops::Range<usize>,
        to: std::ops::Range<usize>,
    ) -> Result<(usize, usize), &'static str> {
        let (from, to) = (&self.from[0][from], &self.to[0][to]);
        let before: usize = from[..axis].iter().product();
        let found = (0..to.len()).find(|&place| {
            to[..place].iter().product::<usize>() == before
                && to[place] >= self.rows
                && to[place].is_multiple_of(self.rows)
        });
        let place = found.ok_or("reshapes the rows so that they can't be told apart")?;
        let rest: usize = to[place..].iter().product();
        if rest != from[axis..].iter().product::<usize>() {
            return Err("reshapes the rows so that they can't be told apart");
        }
        Ok((place, to[place] / self.rows))
    }

    /// An axis where input and output must not differ, or rows were taken or added.
    pub(super) fn kept(&self, slot: usize) -> Result<Rows, &'static str> {
        let (axis, block) = self.single()?;
        let (from, to) = (&self.from[slot], &self.to[0]);
        if from.len() != to.len() || from[axis] != to[axis] {
            return Err("gives another number of rows than it takes");
        }
        Ok(Rows::Along { axis, block })
    }

    pub(super) fn broadcast(&self) -> Result<Rows, &'static str> {
        let (axis, block) = self.single()?;
        let (from, to) = (&self.from[0], &self.to[0]);
        let axis = axis + to.len().checked_sub(from.len()).ok_or("takes dimensions away")?;
        if to[axis] != self.rows * block {
            return Err("repeats rows");
        }
        Ok(Rows::Along { axis, block })
    }
}
