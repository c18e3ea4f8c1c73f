//! Products of two tensors that are both computed, as in attention.

use super::Rewrite;
use super::dense::places;
use forebay_program::Op;
use forebay_program::products::Pairing;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::ops::einsum::EinSum;

/// Most products in one operation: images times heads.
const MAX_PRODUCTS: usize = 4096;

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
        if !is_ours {
            return Ok(false);
        }
        let sizes = [&a.shape, &b.shape, &output.shape].map(|shape| self.sizes(shape));
        let [Some(a), Some(b), Some(y)] = sizes else { return Ok(false) };
        let found = [0, 1].into_iter().find_map(|slot| {
            let (x, w) = if slot == 0 { (&a, &b) } else { (&b, &a) };
            let axes = op.axes.iter_all_axes().map(|axis| places(axis, slot));
            let pairing = Pairing { slot, axes: axes.collect::<Option<_>>()? };
            let products = pairing.products(x, w, &y)?;
            Some((pairing, products))
        });
        let Some((pairing, products)) = found else { return Ok(false) };
        if output.shape.is_concrete() && products.places.len() > MAX_PRODUCTS {
            return Ok(false);
        }
        let inputs = vec![self.in_first(node.inputs[0])?, self.in_first(node.inputs[1])?];
        let axis = output.rank().saturating_sub(1);
        self.put(node.id.into(), Op::Paired(pairing), inputs, axis)?;
        Ok(true)
    }
}
