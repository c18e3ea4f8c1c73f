//! tract's constants in a program: held, not copied.

use crate::tensor::datatype;
use forebay_program::constant::{Constant, Values};
use forebay_protocol::oip::Datatype;
use std::any::Any;
use std::sync::Arc;
use tract_onnx::prelude::*;

/// A constant of a graph.
#[derive(Debug)]
pub(super) struct Held(pub(super) Arc<Tensor>);

impl Held {
    /// The tensor behind a constant; a new one for numbers that are no graph's.
    pub(super) fn tensor(constant: &Constant) -> TractResult<Arc<Tensor>> {
        let any: &dyn Any = &**constant;
        match (any.downcast_ref::<Self>(), constant.numbers()) {
            (Some(held), _) => Ok(Arc::clone(&held.0)),
            (None, Some(numbers)) => Ok(Arc::new(Tensor::from_shape(constant.shape(), numbers)?)),
            (None, None) => Err(TractError::msg("expected a constant of the graph or of numbers")),
        }
    }
}

impl Values for Held {
    fn shape(&self) -> &[usize] {
        self.0.shape()
    }

    fn datatype(&self) -> Option<Datatype> {
        datatype(self.0.datum_type())
    }

    fn bytes(&self) -> Option<&[u8]> {
        let is_plain = self.0.is_plain_ram() && self.0.datum_type().is_copy();
        is_plain.then(|| self.0.as_bytes())
    }

    fn numbers(&self) -> Option<&[f32]> {
        self.0.try_as_plain_ram().ok()?.as_slice::<f32>().ok()
    }
}
