//! The position of a batch's rows in a tensor, and an operator with the facts about its inputs.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use tract_onnx::prelude::*;

/// The position of the request's rows in a tensor.
#[derive(Debug, Clone)]
pub(super) enum Rows {
    /// It depends on no input. Its value, if it is known.
    Fixed(Option<Arc<Tensor>>),
    /// Along this axis, in blocks of so many elements of the axis for each row.
    Along { axis: usize, block: usize },
    /// More than one row may have gone into an element, or its place does not tell which.
    Mixed(Arc<Mixing>),
}

/// Why the rows of a model are not taken to be independent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mixing {
    /// The first operator after which the rows can't be told apart.
    pub(crate) node: String,
    pub(crate) op: String,
    pub(crate) why: String,
}

impl std::fmt::Display for Mixing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { node, op, why } = self;
        write!(f, "{op} \"{}\" {why}", node.escape_debug())
    }
}

/// A node with what is known of its inputs.
pub(super) struct Visit<'a> {
    pub(super) node: &'a TypedNode,
    pub(super) inputs: Vec<Rows>,
    /// Shapes of inputs and outputs.
    pub(super) from: Vec<TVec<usize>>,
    pub(super) to: Vec<TVec<usize>>,
    pub(super) rows: usize,
    /// Blocks of constants that stand beside rows.
    pub(super) blocks: Vec<u64>,
    /// Inputs that are among those blocks, or that say no more than the shapes do.
    pub(super) told: Vec<usize>,
}

/// Of the elements of a tensor.
pub(super) fn digest(tensor: &Tensor) -> u64 {
    let mut hasher = DefaultHasher::new();
    match tensor.try_as_plain_ram() {
        Ok(plain) if tensor.datum_type().is_copy() => plain.as_bytes().hash(&mut hasher),
        _ => format!("{tensor:?}").hash(&mut hasher),
    }
    hasher.finish()
}
