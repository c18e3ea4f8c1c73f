//! Operators with graphs of their own: conditions and loops over time.

use super::Walk;
use super::shape::told;
use super::visit::{Rows, Visit};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::logic::IfThenElse;
use tract_onnx::tract_core::ops::scan::{InputMapping, Scan};

/// Deepest nesting that is followed.
const DEEPEST: usize = 8;

impl Walk {
    /// Rows of the outputs of an operator with a graph of its own; `None` if it has none.
    pub(super) fn nested(&mut self, visit: &mut Visit<'_>) -> TractResult<Option<Vec<Rows>>> {
        let node = visit.node;
        let Some(scan) = node.op_as::<Scan>() else { return self.condition(visit) };
        if self.depth == DEEPEST {
            return Ok(Some(self.mixed(visit.node, "is nested too deeply")));
        }
        self.depth += 1;
        let outputs = self.scan(visit, scan);
        self.depth -= 1;
        outputs.map(Some)
    }

    fn condition(&mut self, visit: &Visit<'_>) -> TractResult<Option<Vec<Rows>>> {
        let Some(op) = visit.node.op_as::<IfThenElse>() else { return Ok(None) };
        let Some(Rows::Fixed(Some(condition))) = visit.inputs.first() else {
            return Ok(Some(self.mixed(visit.node, "branches on values of rows")));
        };
        if self.depth == DEEPEST {
            return Ok(Some(self.mixed(visit.node, "is nested too deeply")));
        }
        let (body, mapping) = if condition.cast_to_scalar::<bool>()? {
            (&op.then_body, &op.then_input_mapping)
        } else {
            (&op.else_body, &op.else_input_mapping)
        };
        let inputs = mapping.iter().map(|&slot| visit.inputs[slot].clone()).collect();
        self.depth += 1;
        let outputs = self.graph(body, inputs);
        self.depth -= 1;
        outputs.map(Some)
    }

    /// A loop over slices of its inputs, with a state that goes from one turn to the next.
    fn scan(&mut self, visit: &mut Visit<'_>, scan: &Scan) -> TractResult<Vec<Rows>> {
        let (node, body) = (visit.node, &scan.body);
        for (slot, mapping) in scan.input_mapping.iter().enumerate() {
            if let (InputMapping::Scan(info), Rows::Along { axis, .. }) =
                (mapping, &visit.inputs[slot])
                && info.axis == *axis
            {
                return Ok(self.mixed(node, "goes through rows one after the other"));
            }
        }
        let states: Vec<usize> = scan
            .input_mapping
            .iter()
            .enumerate()
            .filter(|(_, mapping)| mapping.is_state())
            .map(|(slot, _)| slot)
            .collect();
        let mut inputs = visit.inputs.clone();
        for (slot, mapping) in scan.input_mapping.iter().enumerate() {
            // One slice of it, so the value is not that of the whole.
            if mapping.is_scan() && matches!(inputs[slot], Rows::Fixed(_)) {
                inputs[slot] = Rows::Fixed(None);
            }
        }
        // A state that begins as a constant has rows from the first turn on: each turn of this
        // loop settles at least one of them.
        for _ in 0..=states.len() {
            let told = self.told.len();
            let outputs = self.graph(body, inputs.clone())?;
            if let Some(mixed) = outputs.iter().find(|rows| matches!(rows, Rows::Mixed(_))) {
                return Ok(vec![mixed.clone(); node.outputs.len()]);
            }
            let next: Vec<_> = scan
                .output_mapping
                .iter()
                .zip(&outputs)
                .filter(|(mapping, _)| mapping.state)
                .map(|(_, rows)| rows.clone())
                .collect();
            ensure!(next.len() == states.len(), "expected an output for each state");
            let mut is_settled = true;
            for (&slot, next) in states.iter().zip(next) {
                match settled(&inputs[slot], &visit.inputs[slot], &next, self.rows) {
                    Ok(None) => (),
                    Ok(Some(block)) => {
                        (inputs[slot], is_settled) = (next, false);
                        visit.blocks.push(block);
                        visit.told.push(slot);
                    }
                    Err(why) => return Ok(self.mixed(node, why)),
                }
            }
            if is_settled {
                return Ok(self.loop_outputs(visit, scan, &outputs));
            }
            self.told.truncate(told);
        }
        Ok(self.mixed(node, "has a state that does not settle"))
    }

    fn loop_outputs(&self, visit: &Visit<'_>, scan: &Scan, outputs: &[Rows]) -> Vec<Rows> {
        let node = visit.node;
        let mut made = vec![Rows::Fixed(None); node.outputs.len()];
        for (mapping, rows) in scan.output_mapping.iter().zip(outputs) {
            if let Rows::Mixed(_) = rows {
                return vec![rows.clone(); node.outputs.len()];
            }
            if let Some(slot) = mapping.last_value_slot {
                made[slot] = rows.clone();
            }
            if let Some((slot, info)) = mapping.scan {
                made[slot] = match rows {
                    Rows::Along { axis, .. } if *axis == info.axis => {
                        return self.mixed(node, "puts rows one after the other");
                    }
                    Rows::Along { .. } => rows.clone(),
                    _ => Rows::Fixed(None),
                };
            }
        }
        made
    }
}

/// Compares what a turn leaves of a state with what the turn began with; `first` is the state before
/// all turns. Gives a digest of the first state if it turns out to be one of rows, and `None` if
/// nothing has changed.
fn settled(
    before: &Rows,
    first: &Rows,
    after: &Rows,
    rows: usize,
) -> Result<Option<u64>, &'static str> {
    match (before, after) {
        (Rows::Along { axis: a, block: b }, Rows::Along { axis, block }) => {
            if (a, b) == (axis, block) { Ok(None) } else { Err("has a state whose rows move") }
        }
        (Rows::Fixed(_), Rows::Fixed(_)) => Ok(None),
        (Rows::Fixed(_), Rows::Along { axis, block }) => match first {
            Rows::Fixed(Some(value)) => told(value, *axis, *block, rows)
                .map(Some)
                .ok_or("has a first state that is not the same for each row"),
            _ => Err("has a first state that is not known"),
        },
        (Rows::Along { .. }, Rows::Fixed(_)) => Err("has a state whose rows go away"),
        (Rows::Mixed(_), _) | (_, Rows::Mixed(_)) => Err("has a state with mixed rows"),
    }
}
