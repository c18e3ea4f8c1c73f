//! The Open Inference Protocol v2 (KServe, Triton) over REST.
//!
//! The worker reads requests and writes responses, the load generator does the reverse, and the
//! proxy looks at paths. One set of types serves all three, so that what one writes the other
//! reads. Everything here may come from a stranger: depth, rank, counts and parameters are
//! bounded by the constants below, a shape is multiplied with checks, and no more memory is taken
//! than the bytes that arrived can fill.
//!
//! Source: <https://github.com/kserve/open-inference-protocol>, binary tensors:
//! <https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md>.

mod classification;
mod datatype;
mod elements;
mod error;
mod json;
mod message;
mod metadata;
mod parameters;
mod path;
mod request;
mod response;
mod scheduling_parameters;
mod statistics;
mod tensor;

pub use classification::{can_classify, classify};
pub use datatype::Datatype;
pub use elements::Elements;
pub use error::{EncodeError, Found, ParseError, TensorProblem};
pub use message::{Encoded, Pieces};
pub use metadata::{ErrorBody, ModelIndex, ModelMetadata, Ready, ServerMetadata, TensorMetadata};
pub use parameters::{Parameter, Parameters};
pub use path::{Call, Path, encoded, with_model};
pub use request::{InferRequest, RequestedOutput};
pub use response::InferResponse;
pub use scheduling_parameters::SchedulingParameters;
pub use statistics::{
    BatchStatistics, DurationStatistic, InferStatistics, MemoryUsage, ModelStatistics, Statistics,
};
pub use tensor::{BytesData, Data, Tensor, element_count};

#[cfg(feature = "grpc")]
pub(crate) use {datatype::unknown as unknown_datatype, message::dimensions, tensor::overflow};

/// Most dimensions of a tensor; models in the wild have up to 6.
pub const MAX_RANK: usize = 16;
/// Most tensors in one message.
pub const MAX_TENSORS: usize = 256;
/// Most entries of one `parameters` object.
pub const MAX_PARAMETERS: usize = 64;
