//! The result of building an operator.

use tract_onnx::prelude::TractResult;
use tract_onnx::tract_hir::internal::InferenceOp;

/// An operator, and the names of values from outside that the graphs within it read.
pub(super) type Built = TractResult<(Box<dyn InferenceOp>, Vec<String>)>;
