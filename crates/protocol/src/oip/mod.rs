//! The Open Inference Protocol v2 (KServe, Triton) over REST.
//!
//! Source: <https://github.com/kserve/open-inference-protocol>, binary tensors:
//! <https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md>.

mod path;

pub use path::{Call, Path};
