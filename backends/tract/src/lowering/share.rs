//! Lets plans share what our operations hold.

use super::conditional::{Branch, SharePlan};
use super::op::Fused;
use forebay_kernels::packed::Share;
use tract_onnx::prelude::*;

/// Shares the weights and plans of a node, if it holds one of our operations; gives the bytes that
/// this takes beside them.
pub(crate) fn share(
    node: &mut TypedNode,
    packed: Share<'_>,
    plan: SharePlan<'_>,
) -> TractResult<usize> {
    if let Some(op) = node.op_as_mut::<Fused>() {
        Ok(op.share(packed))
    } else if let Some(op) = node.op_as_mut::<Branch>() {
        op.share(plan)
    } else {
        Ok(0)
    }
}
