//! The ways in which a model is compiled.

use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tract_onnx::tract_core::internal::TypedSimplePlan;

/// Shapes of all inputs, in the model's order.
pub(crate) type Shapes = Vec<Vec<usize>>;
pub(crate) type Plan = Arc<TypedSimplePlan>;

/// A form that a model is compiled to. Each is faster for some models and slower for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Build {
    /// tract's kernels, images as ONNX has them: NCHW.
    Plain,
    /// tract's kernels, images transposed around each convolution: NHWC.
    ChannelsLast,
    /// Our kernels wherever they can stand in for tract's.
    Own,
}

impl Build {
    /// Every build.
    pub const ALL: [Self; 3] = [Self::Plain, Self::ChannelsLast, Self::Own];

    /// The word in configurations and metadata.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::ChannelsLast => "channels-last",
            Self::Own => "own",
        }
    }
}
