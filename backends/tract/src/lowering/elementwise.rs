//! Formulas of one value: what is made of it in several places and comes together again.
//!
//! GELU by its approximation, for one, is written as nine operations that read the same value four
//! times. tract keeps a tensor for each; here the value stays in a register.

use super::Rewrite;
use super::steps::{alone, pair, with_number};
use forebay_program::steps::{Formula, Line, Pair, REGISTERS};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::ops::binary::TypedBinOp;

/// Most operations of one formula.
const MAX_NODES: usize = 20;

pub(super) struct Formulas<'a> {
    pub(super) rewrite: &'a Rewrite<'a>,
    /// Of what the formula is.
    pub(super) value: OutletId,
    /// Of the whole model.
    pub(super) outputs: &'a [OutletId],
}

/// Something made of the value, until its last reader is found.
struct Made {
    outlet: OutletId,
    open: Vec<InletId>,
    register: usize,
}

impl Formulas<'_> {
    /// Finds operations that combine the value with itself and that no other node reads; returns the
    /// formula, the operations, and their output.
    pub(super) fn find(&self) -> TractResult<Option<(Formula, Vec<usize>, OutletId)>> {
        let open = self.rewrite.readers(self.value).to_vec();
        if open.len() < 2 || self.outputs.contains(&self.value) {
            return Ok(None);
        }
        let mut made = vec![Made { outlet: self.value, open, register: 0 }];
        let (mut formula, mut nodes) = (Formula::default(), Vec::new());
        while nodes.len() < MAX_NODES {
            let Some((node, lines)) = self.next(&made)? else { return Ok(None) };
            for made in &mut made {
                made.open.retain(|reader| reader.node != node);
            }
            made.retain(|made| !made.open.is_empty());
            let is_free = |register: &usize| made.iter().all(|made| made.register != *register);
            let Some(register) = (0..REGISTERS).find(is_free) else { return Ok(None) };
            for line in lines {
                formula.lines.push(line.into_register(register));
            }
            nodes.push(node);
            let outlet = OutletId::from(node);
            if made.is_empty() {
                return Ok(Some((formula, nodes, outlet)));
            }
            if self.outputs.contains(&outlet) {
                return Ok(None);
            }
            let open = self.rewrite.readers(outlet).to_vec();
            made.push(Made { outlet, open, register });
        }
        Ok(None)
    }

    /// An operation of which all inputs are made by now.
    fn next(&self, made: &[Made]) -> TractResult<Option<(usize, Vec<Open>)>> {
        for reader in made.iter().rev().flat_map(|made| &made.open) {
            let lines = self.lines(self.rewrite.source.node(reader.node), made)?;
            if !lines.is_empty() {
                return Ok(Some((reader.node, lines)));
            }
        }
        Ok(None)
    }

    fn lines(&self, node: &TypedNode, made: &[Made]) -> TractResult<Vec<Open>> {
        let source = self.rewrite.source;
        let fact = source.outlet_fact(self.value)?;
        let same = node.outputs.len() == 1
            && node.outputs[0].fact.shape == fact.shape
            && node.outputs[0].fact.datum_type == fact.datum_type
            && fact.datum_type == f32::datum_type();
        let register = |outlet: OutletId| {
            made.iter().find(|made| made.outlet == outlet).map(|made| made.register)
        };
        if !same {
            return Ok(Vec::new());
        }
        if let (Some(step), Some(a)) = (alone(node), register(node.inputs[0])) {
            return Ok(vec![Open::One { step, a: Some(a) }]);
        }
        let Some(op) = node.op_as::<TypedBinOp>().filter(|op| op.1.is_none()) else {
            return Ok(Vec::new());
        };
        let &[left, right] = node.inputs.as_slice() else { return Ok(Vec::new()) };
        let numbers = (self.rewrite.number(left)?, self.rewrite.number(right)?);
        let (a, steps) = match (register(left), register(right), numbers) {
            (Some(a), Some(b), _) => {
                let pair = pair(&*op.0, true);
                return Ok(pair.map(|pair| Open::Two { pair, a, b }).into_iter().collect());
            }
            (Some(a), None, (_, Some(number))) => (a, with_number(&*op.0, number, true)),
            (None, Some(a), (Some(number), _)) => (a, with_number(&*op.0, number, false)),
            _ => return Ok(Vec::new()),
        };
        let line = |(index, step)| Open::One { step, a: (index == 0).then_some(a) };
        Ok(steps.into_iter().enumerate().map(line).collect())
    }
}

/// A line whose register to write is not known yet.
enum Open {
    One {
        step: forebay_program::steps::Step,
        /// `None`: what the line before has written.
        a: Option<usize>,
    },
    Two {
        pair: Pair,
        a: usize,
        b: usize,
    },
}

impl Open {
    fn into_register(self, to: usize) -> Line {
        match self {
            Self::One { step, a } => Line::One { step, a: a.unwrap_or(to), to },
            Self::Two { pair, a, b } => Line::Two { pair, a, b, to },
        }
    }
}
