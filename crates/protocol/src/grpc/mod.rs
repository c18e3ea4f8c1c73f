//! gRPC: what the worker, the proxy and the load generator must say alike.
//!
//! The framing is five bytes and a status is two trailers, so both are here, over whatever HTTP/2
//! a program speaks. A gRPC library would do it too, but takes an announced length for memory to be
//! set aside, decodes on the thread that reads, and decodes lists of any length; all three would
//! let one small message cost a worker gigabytes. The same reason is behind the module `infer`: the
//! messages that carry tensors are read with the bounds of [`oip`](crate::oip), into its types.
//!
//! With the feature `grpc` come the messages themselves (`pb`), generated from the files in `proto/` by the
//! program in `generate/`. The generated code is part of the sources: a build then needs neither `protoc`
//! nor a compiler for its language, which take a minute of CPU time to build.

mod code;
mod frame;
#[cfg(feature = "grpc")]
pub mod infer;
mod method;
mod parameters;
#[cfg(feature = "grpc")]
pub mod pb;
pub(crate) mod protobuf;
mod timeout;

pub use code::{Code, decode_message, encode_message};
pub use frame::{FrameError, PREFIX_BYTES, Prefix, frame, frame_compressed, only_message};
pub use method::Method;
pub use parameters::scheduling_parameters;
pub use protobuf::{ProtobufError, text_field, with_model};
pub use timeout::{format_timeout, parse_timeout};

use http::{HeaderMap, header};

/// Inferences, metadata and the repository.
pub const INFERENCE_SERVICE: &str = "inference.GRPCInferenceService";
/// The standard health service.
pub const HEALTH_SERVICE: &str = "grpc.health.v1.Health";
/// Load reports out of band.
pub const LOAD_SERVICE: &str = "xds.service.orca.v3.OpenRcaService";
/// One inference.
pub const MODEL_INFER: &str = "/inference.GRPCInferenceService/ModelInfer";
/// Inferences one after the other.
pub const MODEL_STREAM_INFER: &str = "/inference.GRPCInferenceService/ModelStreamInfer";

/// `content-type` of requests and answers.
pub const CONTENT_TYPE: &str = "application/grpc";

/// Whether these headers begin a gRPC message. (gRPC-Web is another protocol.)
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).map(|value| value.as_bytes());
    let rest = value.and_then(|value| value.strip_prefix(CONTENT_TYPE.as_bytes()));
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';' | b' ')))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn grpc_is_told_by_its_content_type() {
        for (value, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/grpc-web+proto", false),
            ("application/json", false),
        ] {
            let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, value.parse().unwrap())]);
            assert_eq!(is_grpc(&headers), expected, "{value}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }
}
