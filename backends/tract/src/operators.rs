//! Operators that the engine builds wrongly, built here.

mod activation;
mod attention;
mod branch;
mod built;
mod einsum;
mod equal;
mod ml;
mod native;
mod pad;
mod recurrent;
mod resize;
mod sequence;

pub(crate) use branch::bodies;
pub(crate) use ml::TOKENIZER;
pub(crate) use native::{NativeOp, RowRule, Trial};
pub(crate) use recurrent::is_unusual;
pub(crate) use sequence::Sequence;

use crate::sound::Function;
use built::Built;
use tract_onnx::Onnx;
use tract_onnx::model::ParsingContext;
use tract_onnx::ops::rec::common::{CommonRec, WireBody};
use tract_onnx::ops::rec::gru::GRU;
use tract_onnx::ops::rec::rnn::RNN;
use tract_onnx::pb::NodeProto;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::array::StridedSlice;
use tract_onnx::tract_core::ops::cast::cast;
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_core::ops::math;
use tract_onnx::tract_core::ops::nn::{self, Reduce, Reducer};
use tract_onnx::tract_hir::internal::*;

/// Name of an operator that changes nothing, and that no rewrite looks through.
pub(crate) const KEPT: &str = "ForebayKept";

/// Name of `Slice` with inputs for its places, in any version of the operator set.
pub(crate) const SLICE: &str = "ForebaySlice";

/// Name of the operator of the domain `ai.onnx`, of which another domain has one of the same name.
pub(crate) const ATTENTION: &str = "ForebayAttention";

/// tract's reader of ONNX files with our operators in it.
pub(crate) fn framework() -> Onnx {
    let mut framework = onnx().with_ignore_value_info(true);
    let operators = &mut framework.op_register;
    operators.insert("Softplus", |_, _| Ok((values(Function::Softplus), vec![])));
    operators.insert("Celu", |_, node| {
        let alpha = node.attribute.iter().find(|attribute| attribute.name == "alpha");
        Ok((values(Function::Celu(alpha.map_or(1.0, |alpha| alpha.f))), vec![]))
    });
    operators.insert("LogSoftmax", log_softmax);
    operators.insert("Cast", build_cast);
    operators.insert(KEPT, |_, _| Ok((values(Function::Kept), vec![])));
    operators.insert(SLICE, |_, _| Ok((Box::new(slice()), vec![])));
    operators.insert("Equal", |_, _| Ok((expand(equal::Equal), vec![])));
    operators.insert("Einsum", einsum::build);
    operators.insert("If", branch::build);
    operators.insert("MatMulInteger", branch::matrices_only);
    operators.insert("QLinearMatMul", branch::matrices_only);
    operators.insert("Pad", pad::build);
    operators.insert("Resize", resize::build);
    operators.insert("RNN", rnn);
    operators.insert("GRU", gru);
    operators.insert("LSTM", lstm);
    framework.op_register.insert(ATTENTION, attention::build);
    ml::register(&mut framework);
    framework
}

fn values(function: Function) -> Box<dyn InferenceOp> {
    ElementWiseOp(Box::new(function), None).into_hir()
}

/// Of the inputs data, starts, ends and axes.
fn slice() -> StridedSlice {
    StridedSlice {
        begin_mask: 0,
        end_mask: 0,
        shrink_axis_mask: 0,
        optional_axes_input: Some(3),
        optional_steps_input: None,
    }
}

fn lstm(context: &ParsingContext, node: &NodeProto) -> Built {
    if is_unusual(node, context.onnx_operator_set_version) {
        return recurrent::build(context, node);
    }
    tract_onnx::ops::rec::lstm::lstm(context, node)
}

fn rnn(context: &ParsingContext, node: &NodeProto) -> Built {
    if is_unusual(node, context.onnx_operator_set_version) {
        return recurrent::build(context, node);
    }
    let attribute = node.attribute.iter().find(|attribute| attribute.name == "activations");
    let function = attribute.and_then(|attribute| attribute.strings.first());
    let function = function.map(|function| function.to_ascii_lowercase());
    let op = || -> Box<dyn TypedOp> {
        match function.as_deref() {
            Some(b"relu") => Box::new(nn::leaky_relu(0.0)),
            Some(b"sigmoid") => Box::new(nn::sigmoid()),
            _ => Box::new(math::tanh()),
        }
    };
    let body = RNN { fore: op(), back: op() };
    let net = CommonRec::from_node_and_options(node, 3, 0, Box::new(body))?;
    Ok((expand(net), vec![]))
}

/// Hidden values up to which tract's operation for a whole sequence multiplies its input itself, and
/// fails where the product comes out with its axes the other way around. Steps one by one do not.
const UNPROJECTED: usize = 64;

fn gru(context: &ParsingContext, node: &NodeProto) -> Built {
    if is_unusual(node, context.onnx_operator_set_version) {
        return recurrent::build(context, node);
    }
    let linear_before_reset = node.get_attr_opt("linear_before_reset")?.unwrap_or(false);
    let (f, g) = (Box::new(nn::sigmoid()), Box::new(math::tanh()));
    let body = Gru(GRU { f, g, linear_before_reset });
    Ok((expand(CommonRec::from_node_and_options(node, 3, 0, Box::new(body))?), vec![]))
}

/// tract's, but for sequences of which it fails to compute some.
#[derive(Debug, Clone)]
struct Gru(GRU);

impl WireBody for Gru {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn wire_body(&self, prefix: &str, body: &mut TypedModel) -> TractResult<()> {
        self.0.wire_body(prefix, body)
    }

    fn w_b_multipliers(&self) -> (usize, usize) {
        self.0.w_b_multipliers()
    }

    fn have_extra_c_state(&self) -> bool {
        self.0.have_extra_c_state()
    }

    fn fused_sequence_op(
        &self,
        hidden: usize,
        has_bias: bool,
        chunk: isize,
        steps: usize,
        emits_all: bool,
    ) -> Option<Box<dyn TypedOp>> {
        let op = || self.0.fused_sequence_op(hidden, has_bias, chunk, steps, emits_all);
        (hidden > UNPROJECTED).then(op).flatten()
    }
}

fn log_softmax(context: &ParsingContext, node: &NodeProto) -> Built {
    let axis = node.attribute.iter().find(|attribute| attribute.name == "axis");
    let is_flat = context.onnx_operator_set_version < 13;
    let axis = axis.map_or(if is_flat { 1 } else { -1 }, |axis| axis.i);
    Ok((expand(LogSoftmax { axis, is_flat }), vec![]))
}

/// x - m - ln(sum(e^(x - m))), with the greatest value m.
#[derive(Debug, Clone)]
struct LogSoftmax {
    axis: i64,
    /// Over this axis and all behind it, as in the earlier versions.
    is_flat: bool,
}

impl Expansion for LogSoftmax {
    fn name(&self) -> StaticName {
        "ForebayLogSoftmax".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 1)?;
        check_output_arity(outputs, 1)?;
        solver.equals(&inputs[0].datum_type, &outputs[0].datum_type)?;
        solver.equals(&inputs[0].shape, &outputs[0].shape)?;
        Ok(())
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let rank = model.outlet_fact(inputs[0])?.rank();
        let axis = if self.axis < 0 { self.axis + i64::try_from(rank)? } else { self.axis };
        let axis = usize::try_from(axis)?;
        let axes: TVec<usize> = (axis..if self.is_flat { rank } else { axis + 1 }).collect();
        let mut wire = |name: &str, op: Box<dyn TypedOp>, inputs: &[OutletId]| {
            Ok::<_, TractError>(model.wire_node(format!("{prefix}.{name}"), op, inputs)?[0])
        };
        let x = inputs[0];
        let greatest = Box::new(Reduce::new(axes.clone(), Reducer::Max));
        let greatest = wire("greatest", greatest, &[x])?;
        let off = wire("off", Box::new(math::sub()), &[x, greatest])?;
        let exp = wire("exp", Box::new(math::exp()), &[off])?;
        let sum = wire("sum", Box::new(Reduce::new(axes, Reducer::Sum)), &[exp])?;
        let log = wire("log", Box::new(math::ln()), &[sum])?;
        let y = wire("result", Box::new(math::sub()), &[off, log])?;
        Ok(tvec!(y))
    }
}

fn build_cast(_: &ParsingContext, node: &NodeProto) -> Built {
    let to: DatumType = node.get_attr("to")?;
    Ok((expand(ToDatumType { to }), vec![]))
}

/// A cast. tract's goes to its own type of dimensions where INT64 is meant, through 32 bits.
#[derive(Debug, Clone)]
struct ToDatumType {
    to: DatumType,
}

impl ToDatumType {
    /// Dimensions stay dimensions, and small integers may become such; nothing that is larger.
    fn of(&self, from: DatumType) -> DatumType {
        let is_small = [DatumType::I32, DatumType::I16, DatumType::I8, DatumType::U16]
            .contains(&from)
            || [DatumType::U8, DatumType::Bool, DatumType::TDim].contains(&from);
        if self.to == DatumType::I64 && is_small { DatumType::TDim } else { self.to }
    }
}

impl Expansion for ToDatumType {
    fn name(&self) -> StaticName {
        "ForebayCast".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 1)?;
        check_output_arity(outputs, 1)?;
        solver.given(&inputs[0].datum_type, move |solver, from| {
            solver.equals(&outputs[0].datum_type, self.of(from).bex())
        })?;
        solver.equals(&inputs[0].shape, &outputs[0].shape)?;
        Ok(())
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let from = model.outlet_fact(inputs[0])?.datum_type;
        ensure!(from != String::datum_type(), "expected a number to cast, found a string");
        model.wire_node(prefix, cast(self.of(from)), &[inputs[0]])
    }
}
