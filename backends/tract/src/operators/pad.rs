//! `Pad`, where less than nothing may be put on.
//!
//! tract takes a negative number of values to put on for billions. Such values are cut off first here, as in
//! the definition.

use super::built::Built;
use tract_onnx::model::{ParsingContext, optional_inputs};
use tract_onnx::pb::NodeProto;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::array::{Pad, PadMode, Slice};
use tract_onnx::tract_hir::internal::*;

pub(super) fn build(context: &ParsingContext, node: &NodeProto) -> Built {
    let mode = match node.get_attr_opt::<String>("mode")?.as_deref() {
        None | Some("constant") => {
            let value: f32 = node.get_attr_opt("value")?.unwrap_or(0.0);
            PadMode::Constant(rctensor0(value))
        }
        Some("reflect") => PadMode::Reflect,
        Some("edge") => PadMode::Edge,
        Some(other) => bail!("expected the mode constant, reflect or edge, found {other}"),
    };
    let is_input = context.onnx_operator_set_version >= 11;
    let given = if is_input { None } else { Some(node.get_attr_vec("pads")?) };
    let mut inputs = optional_inputs(node).skip(2);
    let mut optional = || inputs.next().flatten().filter(|_| is_input);
    let (value, axes) = (optional(), optional());
    Ok((expand(Padded { mode, given, value, axes }), vec![]))
}

/// Values put on at both ends of axes, or cut off.
#[derive(Debug, Clone)]
struct Padded {
    mode: PadMode,
    /// How many, first at all beginnings, then at all ends, where no input says so.
    given: Option<Vec<i64>>,
    /// Places of inputs.
    value: Option<usize>,
    axes: Option<usize>,
}

/// The padding at the beginning and at the end of each axis, in elements.
fn by_axis(pads: &[i64], axes: Option<&[i64]>, rank: usize) -> TractResult<Vec<(i64, i64)>> {
    let count = axes.map_or(rank, <[i64]>::len);
    ensure!(
        pads.len() == 2 * count,
        "expected {} numbers to pad by, found {}",
        2 * count,
        pads.len()
    );
    let mut found = vec![(0, 0); rank];
    for place in 0..count {
        let axis = match axes {
            Some(axes) if axes[place] < 0 => usize::try_from(axes[place] + i64::try_from(rank)?),
            Some(axes) => usize::try_from(axes[place]),
            None => Ok(place),
        };
        let axis = axis.ok().filter(|&axis| axis < rank);
        let axis = axis.context("expected an axis of the input to pad")?;
        found[axis] = (pads[place], pads[place + count]);
    }
    Ok(found)
}

fn integers(tensor: &Tensor) -> TractResult<Vec<i64>> {
    let tensor = tensor.cast_to::<i64>()?;
    Ok(tensor.try_as_plain_ram()?.as_slice::<i64>()?.to_vec())
}

impl Expansion for Padded {
    fn name(&self) -> StaticName {
        "ForebayPad".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        let own = 1 + usize::from(self.given.is_none());
        let optional = usize::from(self.value.is_some()) + usize::from(self.axes.is_some());
        check_input_arity(inputs, own + optional)?;
        check_output_arity(outputs, 1)?;
        solver.equals(&inputs[0].datum_type, &outputs[0].datum_type)?;
        solver.equals(&inputs[0].rank, &outputs[0].rank)?;
        let sizes = move |solver: &mut Solver<'r>, pads: &[i64], axes: Option<&[i64]>, rank| {
            for (axis, (first, last)) in by_axis(pads, axes, rank)?.into_iter().enumerate() {
                let size = inputs[0].shape[axis].bex() + first.to_dim() + last.to_dim();
                solver.equals(&outputs[0].shape[axis], size)?;
            }
            Ok(())
        };
        solver.given(&inputs[0].rank, move |solver, rank| {
            let rank = usize::try_from(rank)?;
            if let Some(pads) = &self.given {
                return sizes(solver, pads, None, rank);
            }
            match self.axes {
                Some(axes) => solver.given_2(
                    &inputs[1].value,
                    &inputs[axes].value,
                    move |solver, pads, axes| {
                        sizes(solver, &integers(&pads)?, Some(&integers(&axes)?), rank)
                    },
                ),
                None => solver.given(&inputs[1].value, move |solver, pads| {
                    sizes(solver, &integers(&pads)?, None, rank)
                }),
            }
        })
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let known = |slot: usize| -> TractResult<Arc<Tensor>> {
            let known = model.outlet_fact(inputs[slot])?.konst.clone();
            known.context("expected a constant beside what is padded")
        };
        let mode = match (self.value, &self.mode) {
            (Some(value), PadMode::Constant(_)) => PadMode::Constant(known(value)?),
            _ => self.mode.clone(),
        };
        let pads = match &self.given {
            Some(pads) => pads.clone(),
            None => integers(&*known(1)?)?,
        };
        let axes = self.axes.map(|axes| integers(&*known(axes)?)).transpose()?;
        let shape = model.outlet_fact(inputs[0])?.shape.to_tvec();
        let pads = by_axis(&pads, axes.as_deref(), shape.len())?;
        let mut wire = inputs[0];
        for (axis, &(first, last)) in pads.iter().enumerate() {
            if first < 0 || last < 0 {
                let start = (-first).max(0);
                let end = shape[axis].clone() - (-last).max(0);
                if let Ok(size) = end.to_i64() {
                    ensure!(start <= size, "expected to cut off no more than there is");
                }
                let op = Slice::new(axis, start, end);
                wire = model.wire_node(format!("{prefix}.cut-{axis}"), op, &[wire])?[0];
            }
        }
        let on = |size: i64| usize::try_from(size.max(0));
        let pads = pads.iter().map(|&(first, last)| Ok((on(first)?, on(last)?)));
        let op = Pad { mode, pads: pads.collect::<TractResult<Vec<_>>>()? };
        model.wire_node(prefix, op, &[wire])
    }
}
