//! Whether each operator mixes rows.

use super::shape::told;
use super::visit::{Rows, Visit};
use crate::operators::{NativeOp, RowRule, Sequence};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::Downsample;
use tract_onnx::tract_core::ops::array::{
    CumSum, DynSlice, Gather, GatherElements, GatherNd, MultiBroadcastTo, OneHot, Pad,
    ScatterElements, Slice, StridedSlice, Tile, Topk, Trilu, TypedConcat,
};
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::cast::Cast;
use tract_onnx::tract_core::ops::cnn::{Conv, Deconv, MaxPool, PoolSpec, SumPool};
use tract_onnx::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_core::ops::gru_cell::GruEpilogue;
use tract_onnx::tract_core::ops::gru_seq::GruSeq;
use tract_onnx::tract_core::ops::identity::Identity;
use tract_onnx::tract_core::ops::logic::Iff;
use tract_onnx::tract_core::ops::lstm_cell::LstmEpilogue;
use tract_onnx::tract_core::ops::nn::{Reduce, RmsNorm, Softmax};
use tract_onnx::tract_core::ops::quant::DequantizeLinearF32;

/// Operators whose output is another one on each run.
pub(super) fn is_random(node: &TypedNode) -> bool {
    let name = node.op.name();
    name.contains("Random") || name.contains("Multinomial")
}

type Rule = Result<Rows, &'static str>;

impl Visit<'_> {
    /// Rows of the outputs, or why they can't be told.
    pub(super) fn rule(&mut self) -> Result<Vec<Rows>, &'static str> {
        let node = self.node;
        let count = node.outputs.len();
        let all = |rule: Rule| rule.map(|rows| vec![rows; count]);
        if node.op_is::<ElementWiseOp>()
            || node.op_is::<Cast>()
            || node.op_is::<Identity>()
            || node.op_is::<DequantizeLinearF32>()
            || node.op_is::<TypedBinOp>()
            || node.op_is::<Iff>()
        {
            all(self.beside(None))
        } else if let Some(op) = node.op_as::<AxisOp>() {
            all(self.axis_op(op))
        } else if let Some(op) = node.op_as::<EinSum>() {
            all(self.einsum(op))
        } else if let Some(op) = node.op_as::<Reduce>() {
            all(self.not_along(&op.axes, "reduces over rows"))
        } else if let Some(op) = node.op_as::<Softmax>() {
            all(self.not_along(&op.axes, "normalises over rows"))
        } else if let Some(op) = node.op_as::<RmsNorm>() {
            all(self.not_along(&[op.axis], "normalises over rows"))
        } else if let Some(op) = node.op_as::<CumSum>() {
            all(self.not_along(&[op.axis], "sums up along rows"))
        } else if let Some(op) = node.op_as::<Topk>() {
            all(self.not_along(&[op.axis], "sorts rows"))
        } else if node.op_is::<MultiBroadcastTo>() {
            all(self.broadcast())
        } else if let Some(op) = node.op_as::<Conv>() {
            all(self.convolution(&op.pool_spec))
        } else if let Some(op) = node.op_as::<Deconv>() {
            all(self.convolution(&op.pool_spec))
        } else if let Some(op) = node.op_as::<MaxPool>() {
            // The second output counts elements across rows.
            if count > 1 {
                return Err("counts elements across rows");
            }
            all(self.convolution(&op.pool_spec))
        } else if let Some(op) = node.op_as::<SumPool>() {
            all(self.convolution(&op.pool_spec))
        } else {
            all(self.placed())
        }
    }

    /// Operators that choose among elements.
    fn placed(&mut self) -> Rule {
        let node = self.node;
        if let Some(op) = node.op_as::<TypedConcat>() {
            self.beside(Some(op.axis))
        } else if let Some(op) = node.op_as::<GatherElements>() {
            self.beside(Some(op.axis))
        } else if let Some(op) = node.op_as::<ScatterElements>() {
            self.beside(Some(op.axis))
        } else if let Some(op) = node.op_as::<Gather>() {
            self.gather(op.axis)
        } else if let Some(op) = node.op_as::<GatherNd>() {
            self.gather_nd(op.batch_dims)
        } else if let Some(op) = node.op_as::<OneHot>() {
            let (axis, block) = self.single()?;
            Ok(Rows::Along { axis: axis + usize::from(op.axis <= axis), block })
        } else if let Some(op) = node.op_as::<Pad>() {
            let (axis, _) = self.single()?;
            match op.pads.get(axis) {
                Some((0, 0)) => self.kept(0),
                _ => Err("pads the rows"),
            }
        } else if let Some(op) = node.op_as::<Downsample>() {
            self.not_along(&[op.axis], "takes some of the rows")
        } else if let Some(op) = node.op_as::<DynSlice>() {
            self.not_along(&[op.axis], "takes some of the rows")
        } else if node.op_is::<Slice>() || node.op_is::<Tile>() {
            self.kept(0)
        } else if let Some(op) = node.op_as::<StridedSlice>() {
            self.strided(op)
        } else if node.op_is::<Trilu>() {
            let rank = self.from[0].len();
            self.not_along(&[rank.saturating_sub(2), rank - 1], "cuts a triangle out of rows")
        } else if node.op.name().ends_with("Resize") || node.op.name() == "NearestUpsample" {
            let is_sizes = |slot: &usize| match &self.inputs[*slot] {
                Rows::Fixed(Some(value)) => value.datum_type() == i64::datum_type(),
                _ => false,
            };
            self.told.extend((1..self.inputs.len()).filter(is_sizes).collect::<Vec<_>>());
            self.kept(0)
        } else if let Some(op) = node.op_as::<NativeOp>() {
            self.native(op.rows())
        } else if node.op.name() == "Lrn" {
            match self.single()? {
                (0, 1) => Ok(Rows::Along { axis: 0, block: 1 }),
                _ => Err("takes rows along the first axis only"),
            }
        } else if node.op_is::<LstmEpilogue>()
            || node.op_is::<GruEpilogue>()
            || node.op_is::<GruSeq>()
            || node.op_is::<Sequence>()
        {
            self.cell()
        } else {
            Err("is not known to keep rows apart")
        }
    }

    /// Operators that are functions of whole tensors: each says how rows come through.
    fn native(&mut self, rule: RowRule) -> Rule {
        if self.inputs.len() > 1 && rule == RowRule::First {
            return match self.beside(None)? {
                rows @ Rows::Along { axis: 0, block: 1 } => Ok(rows),
                _ => Err("takes rows along the first axis only"),
            };
        }
        let (axis, block) = self.single()?;
        let is_last = axis + 1 == self.from[0].len();
        match rule {
            RowRule::First if (axis, block) == (0, 1) => Ok(Rows::Along { axis, block }),
            RowRule::Any => Ok(Rows::Along { axis, block }),
            RowRule::BeforeLast if !is_last => Ok(Rows::Along { axis, block }),
            _ => Err("takes rows along the first axis only"),
        }
    }

    /// The place of the rows of the only input that has them, which must be the first.
    pub(super) fn single(&self) -> Result<(usize, usize), &'static str> {
        match self.inputs.as_slice() {
            [Rows::Along { axis, block }, others @ ..]
                if others.iter().all(|other| matches!(other, Rows::Fixed(_))) =>
            {
                Ok((*axis, *block))
            }
            _ => Err("is steered by values of rows"),
        }
    }

    fn not_along(&self, axes: &[usize], why: &'static str) -> Rule {
        let (axis, block) = self.single()?;
        if axes.contains(&axis) { Err(why) } else { Ok(Rows::Along { axis, block }) }
    }

    /// Inputs that stand beside each other, element by element or, along `except`, otherwise.
    fn beside(&mut self, except: Option<usize>) -> Rule {
        let found = self.inputs.iter().find_map(|input| match input {
            Rows::Along { axis, block } => Some((*axis, *block)),
            _ => None,
        });
        let (axis, block) = found.ok_or("has no rows")?;
        if except == Some(axis) {
            return Err("joins or picks along rows");
        }
        for slot in 0..self.inputs.len() {
            self.fits(slot, axis, axis, block)?;
        }
        Ok(Rows::Along { axis, block })
    }

    /// Whether an input fits beside rows that it has, if any, along this axis.
    fn fits(
        &mut self,
        slot: usize,
        own: usize,
        axis: usize,
        block: usize,
    ) -> Result<(), &'static str> {
        match &self.inputs[slot] {
            Rows::Along { axis: other, block: size } if *other == own && *size == block => Ok(()),
            Rows::Along { .. } => Err("brings different rows together"),
            Rows::Mixed(_) => Err("has mixed rows"),
            Rows::Fixed(value) => {
                let dim = self.from[slot].get(axis).copied().unwrap_or(1);
                if dim == 1 {
                    return Ok(());
                }
                let told = value.as_ref().and_then(|value| told(value, axis, block, self.rows));
                self.blocks.push(told.ok_or("has a constant that is another one for each row")?);
                self.told.push(slot);
                Ok(())
            }
        }
    }

    fn einsum(&mut self, op: &EinSum) -> Rule {
        let mut place = None;
        for (slot, input) in self.inputs.iter().enumerate() {
            let Rows::Along { axis, block } = input else { continue };
            let label = op.axes.iter_all_axes().find(|label| label.inputs[slot].contains(axis));
            let label = label.ok_or("has an axis without a name")?;
            match &place {
                None => place = Some((label.clone(), *block)),
                Some((first, size)) if first.repr == label.repr && size == block => (),
                Some(_) => return Err("brings different rows together"),
            }
        }
        let (label, block) = place.ok_or("has no rows")?;
        let [to] = label.outputs[0].as_slice() else { return Err("sums over rows") };
        for slot in 0..self.inputs.len() {
            match label.inputs[slot].as_slice() {
                [] => (),
                [own] => self.fits(slot, *own, *own, block)?,
                _ => return Err("takes a diagonal of rows"),
            }
        }
        Ok(Rows::Along { axis: *to, block })
    }

    fn convolution(&self, spec: &PoolSpec) -> Rule {
        let (axis, block) = self.single()?;
        if !spec.data_format.has_n() || axis != 0 {
            return Err("has a window over rows");
        }
        Ok(Rows::Along { axis, block })
    }

    fn gather(&mut self, axis: usize) -> Rule {
        let indices = self.from[1].len();
        match (&self.inputs[0], &self.inputs[1]) {
            (Rows::Fixed(_), Rows::Along { axis: place, block }) => {
                Ok(Rows::Along { axis: axis + place, block: *block })
            }
            (Rows::Along { axis: place, .. }, Rows::Fixed(_)) if *place == axis => {
                Err("picks among rows")
            }
            (Rows::Along { axis: place, block }, Rows::Fixed(_)) => {
                let moved = if *place > axis { place + indices - 1 } else { *place };
                Ok(Rows::Along { axis: moved, block: *block })
            }
            _ => Err("picks elements by values of rows"),
        }
    }

    fn gather_nd(&mut self, batch: usize) -> Rule {
        let rank = self.from[1].len();
        match (self.inputs[0].clone(), self.inputs[1].clone()) {
            (Rows::Along { axis: a, block }, Rows::Along { axis: b, block: size })
                if a == b && a < batch && block == size =>
            {
                Ok(Rows::Along { axis: a, block })
            }
            (Rows::Fixed(_), Rows::Along { axis, block }) if batch == 0 && axis + 1 < rank => {
                Ok(Rows::Along { axis, block })
            }
            (Rows::Along { axis, block }, Rows::Fixed(_)) => {
                let picked = self.from[1].last().copied().unwrap_or(0);
                if batch == 0 && axis >= picked {
                    Ok(Rows::Along { axis: axis - picked + rank - 1, block })
                } else if axis < batch {
                    self.fits(1, axis, axis, block)?;
                    Ok(Rows::Along { axis, block })
                } else {
                    Err("picks among rows")
                }
            }
            _ => Err("picks elements by values of rows"),
        }
    }

    fn strided(&self, op: &StridedSlice) -> Rule {
        let (axis, _) = self.single()?;
        let rank = i64::try_from(self.from[0].len()).map_err(|_| "has too many dimensions")?;
        let axes = match op.optional_axes_input {
            Some(slot) => Some(self.integers(slot)?),
            None => None,
        };
        let steps = match op.optional_steps_input {
            Some(slot) => self.integers(slot)?,
            None => Vec::new(),
        };
        // The step along the rows, if they are among the axes that are cut.
        let place = match &axes {
            Some(axes) => axes.iter().position(|&other| {
                usize::try_from(if other < 0 { other + rank } else { other }) == Ok(axis)
            }),
            None => Some(axis),
        };
        if place.and_then(|place| steps.get(place)).is_some_and(|&step| step < 1) {
            return Err("turns the rows round");
        }
        // Of the same length with a forward step: all of them, in order.
        self.kept(0)
    }

    /// The values of a constant input.
    fn integers(&self, slot: usize) -> Result<Vec<i64>, &'static str> {
        let Some(Rows::Fixed(Some(value))) = self.inputs.get(slot) else {
            return Err("is steered by values that are not known");
        };
        let value =
            value.cast_to::<i64>().map_err(|_| "is steered by a value that is not an integer")?;
        let plain =
            value.try_as_plain_ram().map_err(|_| "is steered by a value that can't be read")?;
        let values =
            plain.as_slice::<i64>().map_err(|_| "is steered by a value that can't be read")?;
        Ok(values.to_vec())
    }

    /// Cells of recurrent nets: rows first, in the input and in the state.
    fn cell(&mut self) -> Rule {
        for slot in 0..self.inputs.len() {
            match &self.inputs[slot] {
                Rows::Along { axis: 0, block: 1 } => (),
                Rows::Fixed(_) if self.from[slot].first() == Some(&self.rows) => {
                    self.fits(slot, 0, 0, 1)?;
                }
                Rows::Fixed(_) => (),
                _ => return Err("takes rows along the first axis only"),
            }
        }
        Ok(Rows::Along { axis: 0, block: 1 })
    }
}
