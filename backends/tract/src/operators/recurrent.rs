//! Recurrent nets as the definition has them, in full: bounds on gates, coupled gates, other functions,
//! sequences of several lengths, both directions with the batch first.
//!
//! tract's own run where the net is a usual one; they are made of operators that it knows, and are faster.
//! Here the product of the input with its weights stays one of tract's, and what remains of each step is
//! done by an operator of ours, see `sequence`.

use super::activation::{self, Activation};
use super::built::Built;
use super::sequence::{Kind, Sequence};
use tract_onnx::model::ParsingContext;
use tract_onnx::ops::rec::common::{CommonRec, WireBody};
use tract_onnx::pb::NodeProto;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::array::{Slice, TypedConcat};
use tract_onnx::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_core::ops::math;
use tract_onnx::tract_hir::internal::*;

/// Attributes and inputs of a net that tract's own builders do not take.
pub(crate) fn is_unusual(node: &NodeProto, opset: i64) -> bool {
    let has = |name: &str| node.attribute.iter().find(|attribute| attribute.name == name);
    let functions: Vec<String> = has("activations").map_or_else(Vec::new, |functions| {
        let text = |text: &Vec<u8>| String::from_utf8_lossy(text).to_ascii_lowercase();
        functions.strings.iter().map(text).collect()
    });
    let usual: &[&str] = match node.op_type.as_str() {
        "LSTM" => &["sigmoid", "tanh", "tanh"],
        "GRU" => &["sigmoid", "tanh"],
        _ => &["tanh"],
    };
    // A plain net of one function each way has a builder of its own.
    let is_simple = node.op_type == "RNN"
        && functions.iter().all(|function| is_simple(function))
        && functions.windows(2).all(|pair| pair[0] == pair[1]);
    let is_usual = functions.chunks(usual.len()).all(|side| side.iter().eq(usual.iter()));
    let is_both_ways = has("direction").is_some_and(|direction| direction.s == b"bidirectional");
    // Backwards, they run forwards over their input turned round, for which there was no operator once.
    (opset < 10 && has("direction").is_some_and(|direction| direction.s == b"reverse"))
        || has("clip").is_some_and(|clip| clip.f != 0.0)
        || has("input_forget").is_some_and(|coupled| coupled.i != 0)
        || !(is_usual || is_simple)
        || node.input.get(4).is_some_and(|lengths| !lengths.is_empty())
        || has("layout").is_some_and(|layout| layout.i == 1) && is_both_ways
}

/// Is it a function that a plain recurrent net may have here?
fn is_simple(function: &str) -> bool {
    ["relu", "tanh", "sigmoid"].contains(&function.to_ascii_lowercase().as_str())
}

/// The net of a node.
pub(super) fn build(_: &ParsingContext, node: &NodeProto) -> Built {
    let kind = match node.op_type.as_str() {
        "LSTM" => Kind::Lstm,
        "GRU" => {
            Kind::Gru { resets_product: node.get_attr_opt("linear_before_reset")? == Some(1_i64) }
        }
        _ => Kind::Rnn,
    };
    let body = Sizes { gates: kind.gates(), has_cell: kind == Kind::Lstm };
    let common = CommonRec::from_node_and_options(node, 3, 0, Box::new(body))?;
    let functions = activation::of(node, kind.functions())?;
    let is_reverse = node.get_attr_opt::<String>("direction")?.as_deref() == Some("reverse");
    let clip: Option<f32> = node.get_attr_opt("clip")?;
    let is_coupled = node.get_attr_opt("input_forget")?.unwrap_or(0_i64) != 0;
    let clip = clip.filter(|&clip| clip > 0.0);
    Ok((expand(Recurrent { kind, common, functions, is_reverse, clip, is_coupled }), vec![]))
}

/// The properties of a net that tract's rules for shapes ask for.
#[derive(Debug, Clone)]
struct Sizes {
    gates: usize,
    has_cell: bool,
}

impl WireBody for Sizes {
    fn name(&self) -> &'static str {
        "ForebayRecurrent"
    }

    fn wire_body(&self, _: &str, _: &mut TypedModel) -> TractResult<()> {
        bail!("expected a net that is built as one operator")
    }

    fn w_b_multipliers(&self) -> (usize, usize) {
        (self.gates, 2 * self.gates)
    }

    fn have_extra_c_state(&self) -> bool {
        self.has_cell
    }
}

#[derive(Debug, Clone)]
struct Recurrent {
    kind: Kind,
    common: CommonRec,
    /// For one direction after the other.
    functions: Vec<Activation>,
    is_reverse: bool,
    clip: Option<f32>,
    is_coupled: bool,
}

/// Wires nodes under one prefix.
struct Wires<'a> {
    model: &'a mut TypedModel,
    prefix: String,
}

impl Wires<'_> {
    fn add(
        &mut self,
        name: &str,
        op: impl Into<Box<dyn TypedOp>>,
        from: &[OutletId],
    ) -> TractResult<OutletId> {
        Ok(self.model.wire_node(format!("{}.{name}", self.prefix), op, from)?[0])
    }

    /// One direction of an input that has an axis of them, which is dropped.
    fn side(
        &mut self,
        name: &str,
        from: OutletId,
        axis: usize,
        side: usize,
    ) -> TractResult<OutletId> {
        let part = self.add(&format!("{name}_of"), Slice::new(axis, side, side + 1), &[from])?;
        self.add(name, AxisOp::Rm(axis), &[part])
    }
}

impl Recurrent {
    /// Outputs with the batch first: [batch, time, hidden], [batch, hidden] and, if there is one, the cell.
    fn wire_side(
        &self,
        wires: &mut Wires<'_>,
        x: OutletId,
        inputs: &[OutletId],
        side: usize,
    ) -> TractResult<TVec<OutletId>> {
        let fact = wires.model.outlet_fact(x)?;
        let datum_type = fact.datum_type;
        ensure!(
            datum_type == f32::datum_type(),
            "expected FP32 in such a net, found {datum_type:?}"
        );
        let common = &self.common;
        let of_state = usize::from(common.batch_first);
        let gates = self.kind.gates().to_dim() * &wires.model.outlet_fact(inputs[2])?.shape[2];
        let w = wires.side("w", inputs[1], 0, side)?;
        let r = wires.side("r", inputs[2], 0, side)?;
        let mut product =
            wires.add("product", EinSum::new("bti,gi->btg".parse()?, datum_type), &[x, w])?;
        let mut from = tvec!();
        if let Some(slot) = common.optional_bias_input {
            let biases = wires.side("biases", inputs[slot], 0, side)?;
            let own = wires.add("bias", Slice::new(0, 0, gates.clone()), &[biases])?;
            let state =
                wires.add("state_bias", Slice::new(0, gates.clone(), gates * 2), &[biases])?;
            let row = wires.add("bias_row", AxisOp::Add(0), &[own])?;
            let all = wires.add("bias_all", AxisOp::Add(0), &[row])?;
            product = wires.add("biased", math::add(), &[product, all])?;
            from.push(state);
        }
        from.insert(0, product);
        from.insert(1, r);
        if let Some(slot) = common.optional_initial_h_input {
            from.push(wires.side("h", inputs[slot], of_state, side)?);
        }
        if let Some(slot) = common.optional_initial_c_input.filter(|_| self.kind == Kind::Lstm) {
            from.push(wires.side("c", inputs[slot], of_state, side)?);
        }
        if let Some(slot) = common.optional_p_input.filter(|_| self.kind == Kind::Lstm) {
            from.push(wires.side("peepholes", inputs[slot], 0, side)?);
        }
        from.extend(common.optional_sequence_lens_input.map(|slot| inputs[slot]));
        let count = self.kind.functions();
        let op = Sequence {
            kind: self.kind,
            functions: self.functions[side * count..(side + 1) * count].to_vec(),
            clip: self.clip.map(f32::to_bits),
            is_coupled: self.is_coupled,
            is_backward: side == 1 || self.is_reverse,
            has_bias: common.optional_bias_input.is_some(),
            has_state: common.optional_initial_h_input.is_some(),
            has_cell: common.optional_initial_c_input.is_some() && self.kind == Kind::Lstm,
            has_peepholes: common.optional_p_input.is_some() && self.kind == Kind::Lstm,
            has_lengths: common.optional_sequence_lens_input.is_some(),
        };
        wires.model.wire_node(format!("{}.sequence", wires.prefix), op, &from)
    }

    /// One output of all directions, in the layout that the node asks for.
    fn merged(
        &self,
        wires: &mut Wires<'_>,
        name: &str,
        sides: &[OutletId],
    ) -> TractResult<OutletId> {
        let is_sequence = name == "y";
        let is_batch_first = self.common.batch_first;
        let mut made = tvec!();
        // Where the axis of directions comes to stand.
        let axis = match (is_sequence, is_batch_first) {
            (true, true) => 2,
            (true, false) | (false, true) => 1,
            (false, false) => 0,
        };
        for (side, &outlet) in sides.iter().enumerate() {
            let mut outlet = outlet;
            if is_sequence && !is_batch_first {
                outlet =
                    wires.add(&format!("{name}_time_{side}"), AxisOp::Move(1, 0), &[outlet])?;
            }
            made.push(wires.add(&format!("{name}_{side}"), AxisOp::Add(axis), &[outlet])?);
        }
        match made.as_slice() {
            [one] => Ok(*one),
            both => wires.add(name, TypedConcat::new(axis), both),
        }
    }
}

impl Expansion for Recurrent {
    fn name(&self) -> StaticName {
        "ForebayRecurrent".into()
    }

    fn nboutputs(&self) -> TractResult<usize> {
        self.common.nboutputs()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        self.common.rules(solver, inputs, outputs)
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let sides = model.outlet_fact(inputs[1])?.shape[0].to_usize()?;
        let count = self.kind.functions();
        ensure!(
            self.functions.len() == count * sides,
            "expected {count} functions for each of {sides} directions, found {}",
            self.functions.len()
        );
        let mut wires = Wires { model, prefix: prefix.to_owned() };
        let x = match self.common.batch_first {
            true => inputs[0],
            false => wires.add("batch_first", AxisOp::Move(1, 0), &[inputs[0]])?,
        };
        let mut made = Vec::new();
        for side in 0..sides {
            wires.prefix = format!("{prefix}.{side}");
            made.push(self.wire_side(&mut wires, x, inputs, side)?);
        }
        wires.prefix = prefix.to_owned();
        let common = &self.common;
        let slots = [
            (common.optional_y_output, "y", 0),
            (common.optional_y_h_output, "y_h", 1),
            (common.optional_y_c_output.filter(|_| self.kind == Kind::Lstm), "y_c", 2),
        ];
        let mut outputs: Vec<(usize, OutletId)> = Vec::new();
        for (slot, name, place) in slots {
            let Some(slot) = slot else { continue };
            let sides: Vec<OutletId> = made.iter().map(|side| side[place]).collect();
            outputs.push((slot, self.merged(&mut wires, name, &sides)?));
        }
        outputs.sort_by_key(|(slot, _)| *slot);
        Ok(outputs.into_iter().map(|(_, outlet)| outlet).collect())
    }
}
