//! Operations on the output of a kernel that no other node reads become steps of the kernel.

use super::elementwise::Formulas;
use super::steps::{Constant, alone, is_exact, pair, with_constant};
use super::{Followed, Rewrite};
use forebay_program::Op;
use forebay_program::steps::{Spread, Step};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::binary::{BinMiniOp, TypedBinOp};
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_core::ops::math::{Add, Div, Max, Min, Mul, Sub};

/// Longest chain of steps of one kernel.
const MAX_STEPS: usize = 24;

/// A value `v` made into `clip(scale * v + offset, low, high)`.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Line {
    scale: f32,
    offset: f32,
    low: f32,
    high: f32,
}

impl Line {
    const SAME: Self =
        Self { scale: 1.0, offset: 0.0, low: f32::NEG_INFINITY, high: f32::INFINITY };

    fn then(self, op: &dyn BinMiniOp, number: f32, is_right: bool) -> Option<Self> {
        let Self { scale, offset, low, high } = self;
        let times = |factor: f32| {
            (factor > 0.0 && factor.is_finite()).then_some(Self {
                scale: scale * factor,
                offset: offset * factor,
                low: low * factor,
                high: high * factor,
            })
        };
        let plus = |term: f32| {
            term.is_finite().then_some(Self {
                scale,
                offset: offset + term,
                low: low + term,
                high: high + term,
            })
        };
        if op.is::<Add>() {
            plus(number)
        } else if op.is::<Sub>() && is_right {
            plus(-number)
        } else if op.is::<Mul>() {
            times(number)
        } else if op.is::<Div>() && is_right && is_exact(number) {
            times(1.0 / number)
        } else if op.is::<Max>() {
            Some(Self { low: low.max(number), high: high.max(number), ..self })
        } else if op.is::<Min>() {
            Some(Self { low: low.min(number), high: high.min(number), ..self })
        } else {
            None
        }
    }
}

impl Rewrite<'_> {
    /// Follows the output of `node`, of which `axis` holds the channels, for as long as no other node reads
    /// the results.
    pub(super) fn follow(&self, node: &TypedNode, axis: usize) -> TractResult<Followed> {
        let outlet = OutletId::new(node.id, 0);
        let mut followed =
            Followed { steps: Vec::new(), tensors: Vec::new(), outlet, taken: Vec::new() };
        self.go_on(&mut followed, axis)?;
        Ok(followed)
    }

    /// Takes an operation on single values that no kernel before it has taken, and what follows.
    pub(super) fn steps(&mut self, node: &TypedNode) -> TractResult<bool> {
        let output = &node.outputs[0].fact;
        let is_ours = (node.op_is::<ElementWiseOp>() || node.op_is::<TypedBinOp>())
            && node.outputs.len() == 1
            && output.datum_type == f32::datum_type()
            && self.sizes(&output.shape).is_some()
            && output.rank() > 0;
        if !is_ours {
            return Ok(false);
        }
        for slot in 0..node.inputs.len() {
            let outlet = node.inputs[slot];
            let fact = self.source.outlet_fact(outlet)?;
            let same = fact.shape == output.shape && fact.datum_type == output.datum_type;
            if !same || fact.konst.is_some() {
                continue;
            }
            let axis = self.last.get(&outlet).map_or(output.rank() - 1, |turned| turned.axis);
            let mut followed =
                Followed { steps: Vec::new(), tensors: Vec::new(), outlet, taken: Vec::new() };
            if self.take_formula(&mut followed)?
                || self.take(&mut followed, InletId::new(node.id, slot), axis)?
            {
                self.go_on(&mut followed, axis)?;
                let op = Op::Steps(followed.steps.clone());
                self.wire(op, (outlet, axis), &followed, axis)?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn go_on(&self, followed: &mut Followed, axis: usize) -> TractResult<()> {
        while followed.steps.len() < MAX_STEPS
            && !self.source.output_outlets()?.contains(&followed.outlet)
            && (self.take_gate(followed)?
                || self.take_one(followed, axis)?
                || self.take_formula(followed)?)
        {}
        Ok(())
    }

    pub(super) fn readers(&self, outlet: OutletId) -> &[InletId] {
        &self.source.node(outlet.node).outputs[outlet.slot].successors
    }

    /// Takes the only reader, if it is known.
    fn take_one(&self, followed: &mut Followed, axis: usize) -> TractResult<bool> {
        let &[reader] = self.readers(followed.outlet) else { return Ok(false) };
        self.take(followed, reader, axis)
    }

    /// Takes one reader of several or of one, if it is known.
    fn take(&self, followed: &mut Followed, reader: InletId, axis: usize) -> TractResult<bool> {
        let node = self.source.node(reader.node);
        let beside = self.source.outlet_fact(followed.outlet)?;
        let same = node.outputs.len() == 1
            && node.outputs[0].fact.shape == beside.shape
            && node.outputs[0].fact.datum_type == f32::datum_type();
        if !same {
            return Ok(false);
        }
        let mut tensor = None;
        let steps = if let Some(step) = alone(node) {
            vec![step]
        } else if let Some(op) = node.op_as::<TypedBinOp>().filter(|op| op.1.is_none()) {
            let other = node.inputs[1 - reader.slot];
            let is_first = reader.slot == 0;
            if let Some(constant) = self.constant(other, followed.outlet, axis)? {
                with_constant(&*op.0, constant, is_first)
            } else if let Some(pair) = pair(&*op.0, is_first)
                && self.spreads(other, beside, axis)?
            {
                tensor = Some(other);
                vec![Step::Tensor(pair)]
            } else {
                Vec::new()
            }
        } else {
            Vec::new()
        };
        if steps.is_empty() {
            return Ok(false);
        }
        steps.into_iter().for_each(|step| push(&mut followed.steps, step));
        followed.tensors.extend(tensor);
        followed.taken.push(node.id);
        followed.outlet = node.id.into();
        Ok(true)
    }

    /// Whether the rows of `other` go with those of a tensor.
    fn spreads(&self, other: OutletId, beside: &TypedFact, axis: usize) -> TractResult<bool> {
        // A value that is computed later might depend on this node.
        let fact = self.source.outlet_fact(other)?;
        let is_known = self.first.contains_key(&other)
            || self.last.contains_key(&other)
            || fact.konst.is_some();
        let sizes = (self.sizes(&fact.shape), self.sizes(&beside.shape));
        let (Some(other), Some(shape)) = sizes else { return Ok(false) };
        let is_ours =
            is_known && fact.datum_type == f32::datum_type() && other.len() == shape.len();
        Ok(is_ours && Spread::of(&other, &shape, axis).is_some())
    }

    fn take_formula(&self, followed: &mut Followed) -> TractResult<bool> {
        let outputs = self.source.output_outlets()?;
        let found = Formulas { rewrite: self, value: followed.outlet, outputs }.find()?;
        let Some((formula, nodes, outlet)) = found else { return Ok(false) };
        followed.steps.push(Step::Formula(formula));
        followed.taken.extend(nodes);
        followed.outlet = outlet;
        Ok(true)
    }

    /// Takes `v * clip(scale * v + offset, low, high)`, in any order of its factors.
    fn take_gate(&self, followed: &mut Followed) -> TractResult<bool> {
        let &[a, b] = self.readers(followed.outlet) else { return Ok(false) };
        let gate = match (self.gate(followed, a, b)?, self.gate(followed, b, a)?) {
            (Some(gate), _) | (None, Some(gate)) => gate,
            (None, None) => return Ok(false),
        };
        let (line, nodes, root) = gate;
        let Line { scale, offset, low, high } = line;
        followed.steps.push(Step::Gate { scale, offset, low, high });
        followed.taken.extend(nodes);
        followed.taken.push(root);
        followed.outlet = root.into();
        Ok(true)
    }

    /// The line that begins at `begin` and ends in the product that `product` reads, the nodes
    /// between, and the product.
    fn gate(
        &self,
        followed: &Followed,
        begin: InletId,
        product: InletId,
    ) -> TractResult<Option<(Line, Vec<usize>, usize)>> {
        let root = self.source.node(product.node);
        let is_product = root.op_as::<TypedBinOp>().is_some_and(|op| op.0.is::<Mul>());
        if !is_product {
            return Ok(None);
        }
        let (mut line, mut nodes, mut inlet) = (Line::SAME, Vec::new(), begin);
        let shape = &self.source.outlet_fact(followed.outlet)?.shape;
        while inlet.node != root.id {
            let node = self.source.node(inlet.node);
            if node.outputs.len() != 1 || node.outputs[0].fact.shape != *shape {
                return Ok(None);
            }
            let next = if let Some(op) = node.op_as::<TypedBinOp>() {
                let other = node.inputs[1 - inlet.slot];
                match self.constant(other, followed.outlet, 0)? {
                    Some(Constant::Number(number)) => line.then(&*op.0, number, inlet.slot == 0),
                    _ => None,
                }
            } else {
                None
            };
            let is_output = self.source.output_outlets()?.contains(&node.id.into());
            let (Some(next), &[reader], false) = (next, self.readers(node.id.into()), is_output)
            else {
                return Ok(None);
            };
            (line, inlet) = (next, reader);
            nodes.push(node.id);
            if nodes.len() > MAX_STEPS {
                return Ok(None);
            }
        }
        // The product must be of the line and the value itself, not of the value with itself.
        Ok((!nodes.is_empty()).then_some((line, nodes, root.id)))
    }

    /// A constant that goes with each value or each channel of `beside`.
    fn constant(
        &self,
        outlet: OutletId,
        beside: OutletId,
        axis: usize,
    ) -> TractResult<Option<Constant>> {
        let Some(constant) = &self.source.outlet_fact(outlet)?.konst else { return Ok(None) };
        if constant.datum_type() != f32::datum_type() {
            return Ok(None);
        }
        let plain = constant.try_as_plain_ram()?;
        let values = plain.as_slice::<f32>()?;
        if let [number] = values {
            return Ok(Some(Constant::Number(*number)));
        }
        let beside = self.source.outlet_fact(beside)?;
        let is_channels = constant.rank() == beside.rank()
            && constant.shape()[axis] == values.len()
            && beside.shape[axis].to_usize().ok() == Some(values.len());
        Ok(is_channels.then(|| Constant::Channels(values.to_vec())))
    }

    /// The number, if it is a constant of one.
    pub(super) fn number(&self, outlet: OutletId) -> TractResult<Option<f32>> {
        Ok(match self.constant(outlet, outlet, 0)? {
            Some(Constant::Number(number)) => Some(number),
            _ => None,
        })
    }
}

/// Adds a step; two bounds that follow each other become one.
fn push(steps: &mut Vec<Step>, step: Step) {
    let joined = match (steps.last(), &step) {
        (Some(Step::Relu), Step::Clip(low, high)) if *low == f32::NEG_INFINITY && *high >= 0.0 => {
            Some(Step::Clip(0.0, *high))
        }
        (Some(Step::Clip(low, above)), Step::Clip(below, high))
            if *above == f32::INFINITY && *below == f32::NEG_INFINITY && low <= high =>
        {
            Some(Step::Clip(*low, *high))
        }
        _ => None,
    };
    match (joined, steps.last_mut()) {
        (Some(joined), Some(last)) => *last = joined,
        _ => steps.push(step),
    }
}
