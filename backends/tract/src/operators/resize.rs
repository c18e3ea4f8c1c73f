//! `Resize` as ONNX Runtime has it.
//!
//! tract rounds places to other pixels where they fall between two, takes other places with
//! `pytorch_half_pixel`, and does not know the rounding of version 10 of the operator set. Here places are
//! worked out in the same order and precision as there; pixels that are only repeated are left to tract's
//! own way. `antialias`, regions, `axes` and aspect ratios stay tract's.

use super::branch::{Wrapped, tracts};
use super::built::Built;
use tract_onnx::model::{ParsingContext, optional_inputs};
use tract_onnx::pb::NodeProto;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;

/// Size of an axis that stands for all, where it is open.
const PROBED: usize = 7;

pub(super) fn build(context: &ParsingContext, node: &NodeProto) -> Built {
    let (inner, closures) = tracts("Resize", context, node)?;
    let Some(resized) = parsed(context.onnx_operator_set_version, node)? else {
        return Ok((inner, closures));
    };
    let replace =
        move |inner| -> Box<dyn TypedOp> { Box::new(Resized { inner, ..resized.clone() }) };
    Ok((Box::new(Wrapped { inner, replace: Some(Arc::new(replace)), matrices: &[] }), closures))
}

/// `None` where it stays tract's.
fn parsed(opset: i64, node: &NodeProto) -> TractResult<Option<Resized>> {
    let text = |name: &str, usual: &str| -> TractResult<String> {
        Ok(node.get_attr_opt::<String>(name)?.unwrap_or_else(|| usual.to_owned()))
    };
    let is_set =
        |name: &str| -> TractResult<bool> { Ok(node.get_attr_opt::<i64>(name)?.unwrap_or(0) != 0) };
    let has = |name: &str| node.attribute.iter().any(|attribute| attribute.name == name);
    let is_old = opset < 11;
    let places = match text("coordinate_transformation_mode", "half_pixel")?.as_str() {
        _ if is_old => Places::Asymmetric,
        "half_pixel" => Places::HalfPixel,
        "half_pixel_symmetric" => Places::HalfPixelSymmetric,
        "pytorch_half_pixel" => Places::PytorchHalfPixel,
        "tf_half_pixel_for_nn" => Places::TfHalfPixel,
        "align_corners" => Places::AlignCorners,
        "asymmetric" => Places::Asymmetric,
        _ => return Ok(None),
    };
    let policy = text("keep_aspect_ratio_policy", "stretch")?;
    if is_set("antialias")? || has("axes") || policy != "stretch" {
        return Ok(None);
    }
    let rounding = match text("nearest_mode", "round_prefer_floor")?.as_str() {
        _ if is_old => Rounding::Simple,
        "floor" => Rounding::Floor,
        "ceil" => Rounding::Ceil,
        "round_prefer_ceil" => Rounding::PreferCeil,
        _ => Rounding::PreferFloor,
    };
    let mode = match text("mode", "nearest")?.as_str() {
        "nearest" => Mode::Nearest(rounding),
        "linear" => Mode::Linear,
        "cubic" => Mode::Cubic {
            factor: node.get_attr_opt("cubic_coeff_a")?.unwrap_or(-0.75_f32).to_bits(),
            excludes_outside: is_set("exclude_outside")?,
        },
        _ => return Ok(None),
    };
    let mut given = optional_inputs(node).skip(if is_old { 1 } else { 2 });
    let (scales, sizes) = (given.next().flatten(), given.next().flatten());
    let inner: Box<dyn TypedOp> = Box::new(tract_onnx::tract_core::ops::identity::Identity);
    Ok(Some(Resized { inner, places, mode, scales, sizes }))
}

/// Where a pixel of the output stands in the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Places {
    Asymmetric,
    HalfPixel,
    HalfPixelSymmetric,
    PytorchHalfPixel,
    TfHalfPixel,
    AlignCorners,
}

/// The choice of the nearest pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rounding {
    Floor,
    Ceil,
    PreferFloor,
    PreferCeil,
    /// Of version 10: up where an axis shrinks, else down.
    Simple,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Nearest(Rounding),
    Linear,
    /// The factor as bits.
    Cubic {
        factor: u32,
        excludes_outside: bool,
    },
}

#[derive(Debug, Clone)]
struct Resized {
    /// tract's own, for shapes and for pixels that are repeated.
    inner: Box<dyn TypedOp>,
    places: Places,
    mode: Mode,
    /// Places of inputs.
    scales: Option<usize>,
    sizes: Option<usize>,
}

impl PartialEq for Resized {
    fn eq(&self, other: &Self) -> bool {
        (self.places, self.mode, self.scales, self.sizes)
            == (other.places, other.mode, other.scales, other.sizes)
    }
}

impl Eq for Resized {}

/// An axis that is resized.
#[derive(Clone, Copy)]
struct Axis {
    from: usize,
    to: usize,
    scale: f32,
}

/// Pixels of the input that a pixel of the output is made of, and how much of each.
type Taps = Vec<(usize, f32)>;

#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "as ONNX Runtime works places out"
)]
impl Resized {
    fn place(&self, axis: Axis, to: usize) -> f32 {
        let (x, from, size) = (to as f32, axis.from as f32, axis.to as f32);
        let half = || (x + 0.5) / axis.scale - 0.5;
        match self.places {
            Places::Asymmetric => x / axis.scale,
            Places::HalfPixel => half(),
            Places::PytorchHalfPixel if axis.to > 1 => half(),
            Places::AlignCorners if axis.to > 1 => x * (from - 1.0) / (size - 1.0),
            Places::PytorchHalfPixel | Places::AlignCorners => 0.0,
            Places::TfHalfPixel => (x + 0.5) / axis.scale,
            Places::HalfPixelSymmetric => {
                let adjustment = size / (axis.scale * from);
                from / 2.0 * (1.0 - adjustment) + (x + 0.5) / axis.scale - 0.5
            }
        }
    }

    fn taps(&self, axis: Axis, to: usize) -> Taps {
        let x = self.place(axis, to);
        let last = axis.from as i64 - 1;
        let within = |place: i64| place.clamp(0, last) as usize;
        match self.mode {
            Mode::Nearest(rounding) => {
                let place = match rounding {
                    Rounding::Simple if axis.scale < 1.0 => x.ceil(),
                    Rounding::Simple => x.trunc(),
                    Rounding::Floor => x.floor(),
                    Rounding::Ceil => x.ceil(),
                    Rounding::PreferFloor if x == x.trunc() + 0.5 => x.floor(),
                    Rounding::PreferFloor | Rounding::PreferCeil => x.round(),
                };
                vec![(within(place as i64), 1.0)]
            }
            Mode::Linear => {
                let x = x.clamp(0.0, last as f32);
                let low = within(x as i64);
                let high = within(low as i64 + 1);
                let above = x - low as f32;
                vec![(low, 1.0 - above), (high, above)]
            }
            Mode::Cubic { factor, excludes_outside } => {
                let low = x.floor();
                let weights = cubic(x - low, f32::from_bits(factor));
                let places = (-1..3).map(|off| low as i64 + off);
                let mut taps: Vec<(i64, f32)> = places.zip(weights).collect();
                if excludes_outside {
                    taps.retain(|(place, _)| (0..=last).contains(place));
                    let sum: f32 = taps.iter().map(|(_, weight)| weight).sum();
                    taps.iter_mut().for_each(|(_, weight)| *weight /= sum);
                }
                taps.into_iter().map(|(place, weight)| (within(place), weight)).collect()
            }
        }
    }

    /// How each axis is resized.
    fn axes(&self, shape: &[usize], inputs: &[TValue]) -> TractResult<Vec<Axis>> {
        let given = |slot: Option<usize>| {
            slot.and_then(|slot| inputs.get(slot)).filter(|input| input.len() > 0)
        };
        if let Some(scales) = given(self.scales) {
            let scales = scales.try_as_plain_ram()?;
            let scales = scales.as_slice::<f32>()?;
            ensure!(scales.len() == shape.len(), "expected a scale for each axis");
            let axis = |(&from, &scale): (&usize, &f32)| {
                let to = (scale * from as f32).max(0.0) as usize;
                Axis { from, to, scale }
            };
            return Ok(shape.iter().zip(scales).map(axis).collect());
        }
        let sizes = given(self.sizes).context("expected scales or sizes")?.cast_to::<i64>()?;
        let sizes = sizes.try_as_plain_ram()?;
        let sizes = sizes.as_slice::<i64>()?;
        ensure!(sizes.len() == shape.len(), "expected a size for each axis");
        let axis = |(&from, &to): (&usize, &i64)| {
            let to = usize::try_from(to)?;
            Ok(Axis { from, to, scale: to as f32 / from as f32 })
        };
        shape.iter().zip(sizes).map(axis).collect()
    }

    /// Are pixels only repeated, along all axes?
    fn repeats(&self, model: &TypedModel, node: &TypedNode) -> TractResult<bool> {
        let fact = model.outlet_fact(node.inputs[0])?;
        let Some(slot) = self.scales.filter(|_| matches!(self.mode, Mode::Nearest(_))) else {
            return Ok(false);
        };
        let Some(scales) = &model.outlet_fact(node.inputs[slot])?.konst else { return Ok(false) };
        let scales = scales.try_as_plain_ram()?;
        let pairs = fact.shape.iter().zip(scales.as_slice::<f32>()?);
        Ok(pairs.into_iter().all(|(size, &scale)| {
            let from = size.to_usize().unwrap_or(PROBED);
            let times = scale as usize;
            let axis = Axis { from, to: from * times, scale };
            scale >= 1.0
                && scale == times as f32
                && (0..axis.to).all(|to| self.taps(axis, to)[0].0 == to / times)
        }))
    }
}

/// Weights of four pixels around a place that is so far behind the second.
fn cubic(s: f32, a: f32) -> [f32; 4] {
    let outer = |x: f32| ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a;
    let inner = |x: f32| ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
    [outer(s + 1.0), inner(s), inner(1.0 - s), outer(2.0 - s)]
}

/// Values of one axis after another: how many lie before it, and how many behind.
fn around(shape: &[usize], axis: usize) -> (usize, usize) {
    (shape[..axis].iter().product(), shape[axis + 1..].iter().product())
}

fn mixed(data: &[f32], (outer, inner): (usize, usize), axis: Axis, taps: &[Taps]) -> Vec<f32> {
    let mut made = vec![0.0; outer * axis.to * inner];
    for (place, to) in made.chunks_exact_mut(inner.max(1)).enumerate() {
        let first = place / axis.to * axis.from;
        for &(from, weight) in &taps[place % axis.to] {
            let line = &data[(first + from) * inner..(first + from + 1) * inner];
            to.iter_mut().zip(line).for_each(|(to, x)| *to += weight * x);
        }
    }
    made
}

fn picked(data: &[u8], (outer, inner): (usize, usize), axis: Axis, taps: &[Taps]) -> Vec<u8> {
    let mut made = Vec::with_capacity(outer * axis.to * inner);
    for place in 0..outer * axis.to {
        let from = place / axis.to * axis.from + taps[place % axis.to][0].0;
        made.extend_from_slice(&data[from * inner..(from + 1) * inner]);
    }
    made
}

impl Op for Resized {
    fn name(&self) -> StaticName {
        "ForebayResize".into()
    }

    fn validation(&self) -> Validation {
        Validation::Rounding
    }

    op_as_typed_op!();
}

impl EvalOp for Resized {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let input = &inputs[0];
        let axes = self.axes(input.shape(), &inputs)?;
        let mut shape: TVec<usize> = input.shape().into();
        let changed: Vec<usize> = (0..axes.len())
            .filter(|&place| axes[place].to != axes[place].from || axes[place].scale != 1.0)
            .collect();
        ensure!(input.len() > 0 || changed.is_empty(), "expected values to resize, found none");
        let taps =
            |axis: Axis| -> Vec<Taps> { (0..axis.to).map(|to| self.taps(axis, to)).collect() };
        let output = if let Mode::Nearest(_) = self.mode {
            let size = input.datum_type().size_of();
            let mut data = input.try_as_plain_ram()?.as_bytes().to_vec();
            for place in changed {
                let (outer, inner) = around(&shape, place);
                data = picked(&data, (outer, inner * size), axes[place], &taps(axes[place]));
                shape[place] = axes[place].to;
            }
            of_bytes(input.datum_type(), &shape, &data)?
        } else {
            let single = input.cast_to::<f32>()?;
            let mut data = single.try_as_plain_ram()?.as_slice::<f32>()?.to_vec();
            for place in changed {
                data = mixed(&data, around(&shape, place), axes[place], &taps(axes[place]));
                shape[place] = axes[place].to;
            }
            Tensor::from_shape(&shape, &data)?.cast_to_dt(input.datum_type())?.into_owned()
        };
        Ok(tvec!(output.into_tvalue()))
    }
}

/// A tensor of the bytes of its values.
fn of_bytes(datum_type: DatumType, shape: &[usize], data: &[u8]) -> TractResult<Tensor> {
    let mut tensor = Tensor::zero_dt(datum_type, shape)?;
    tensor.try_as_plain_ram_mut()?.as_bytes_mut().copy_from_slice(data);
    Ok(tensor)
}

impl TypedOp for Resized {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        self.inner.output_facts(inputs)
    }

    fn declutter(
        &self,
        model: &TypedModel,
        node: &TypedNode,
    ) -> TractResult<Option<TypedModelPatch>> {
        if self.repeats(model, node)? { self.inner.declutter(model, node) } else { Ok(None) }
    }

    as_op!();
}
