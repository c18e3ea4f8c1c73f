//! Products of two tensors that are both computed, as in attention.

use super::Rewrite;
use super::op::Paired;
use super::product::places;
use forebay_kernels::dense::Matrices;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::ops::einsum::EinSum;

/// Most products in one operation: images times heads.
const MOST: usize = 4096;

impl Rewrite<'_> {
    /// Makes a product of two computed tensors one of ours, if it is one that we have.
    pub(super) fn paired(&mut self, node: &TypedNode) -> TractResult<bool> {
        let Some(op) = node.op_as::<EinSum>() else { return Ok(false) };
        let facts = self.source.node_input_facts(node.id)?;
        let [a, b] = facts.as_slice() else { return Ok(false) };
        let output = &node.outputs[0].fact;
        let float = f32::datum_type();
        let is_ours = op.q_params.is_none()
            && [*a, *b, output].iter().all(|fact| fact.datum_type == float && fact.konst.is_none());
        let shapes = (a.shape.as_concrete(), b.shape.as_concrete(), output.shape.as_concrete());
        let (true, (Some(a), Some(b), Some(y))) = (is_ours, shapes) else { return Ok(false) };
        let found = [0, 1].into_iter().find_map(|slot| {
            let (x, w) = if slot == 0 { (a, b) } else { (b, a) };
            paired(op, slot, x, w, y)
        });
        let Some(paired) = found else { return Ok(false) };
        let inputs = [self.in_first(node.inputs[0])?, self.in_first(node.inputs[1])?];
        let made = self.target.wire_node(&node.name, paired, &inputs)?[0];
        self.first.insert(node.id.into(), made);
        self.kernels += 1;
        Ok(true)
    }
}

/// Reads the axes with the input `slot` as the left side; `None` if it is no product in our sense.
fn paired(op: &EinSum, slot: usize, x: &[usize], w: &[usize], y: &[usize]) -> Option<Paired> {
    let stride = |shape: &[usize], place: usize| shape[place + 1..].iter().product::<usize>();
    let mut matrices =
        Matrices { rows: 1, lines: 1, channels: 1, x_row: 0, w_line: 0, w_channel: 0, y_row: 0 };
    let mut begin = vec![[0; 3]];
    for axis in op.axes.iter_all_axes() {
        let (a, b, c) = places(axis, slot)?;
        let is_one =
            |shape: &[usize], place: Option<usize>| place.is_none_or(|place| shape[place] == 1);
        match (a, b, c) {
            _ if is_one(x, a) && is_one(w, b) && is_one(y, c) => (),
            // Each side of its own axis, so a second one of a kind is not ours.
            (Some(a), Some(b), None) if x[a] == w[b] && matrices.lines == 1 => {
                (matrices.lines, matrices.w_line) = (x[a], stride(w, b));
                if stride(x, a) != 1 {
                    return None;
                }
            }
            (Some(a), None, Some(c)) if x[a] == y[c] && matrices.rows == 1 => {
                (matrices.rows, matrices.x_row, matrices.y_row) =
                    (x[a], stride(x, a), stride(y, c));
            }
            (None, Some(b), Some(c)) if w[b] == y[c] && matrices.channels == 1 => {
                (matrices.channels, matrices.w_channel) = (w[b], stride(w, b));
                if stride(y, c) != 1 {
                    return None;
                }
            }
            (Some(a), Some(b), Some(c)) if x[a] == w[b] && x[a] == y[c] => {
                let steps = [stride(x, a), stride(w, b), stride(y, c)];
                let along = |from: &[usize; 3]| {
                    let from = *from;
                    (0..x[a]).map(move |index| [0, 1, 2].map(|i| from[i] + index * steps[i]))
                };
                if begin.len() * x[a] > MOST {
                    return None;
                }
                begin = begin.iter().flat_map(along).collect();
            }
            _ => return None,
        }
    }
    Some(Paired { matrices, slot, places: begin, shape: y.into() })
}
