//! The call that a path means, as far as routing needs it.

use super::{HEALTH_SERVICE, INFERENCE_SERVICE};

/// A gRPC call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// `ModelInfer`: one message there, which names the model, and one back.
    Infer,
    /// `ModelStreamInfer`: many messages there and back.
    StreamInfer,
    /// `ServerLive`
    ServerLive,
    /// `ServerReady`
    ServerReady,
    /// `Check` of the standard health service.
    HealthCheck,
    /// `Watch` of the standard health service: one message there, many back.
    HealthWatch,
    /// Any other method of the inference service, all with one message there and one back.
    OtherUnary,
    /// An unknown method, which may have any number of messages.
    Unknown,
}

impl Method {
    /// The call at `path`.
    pub fn of(path: &str) -> Self {
        let split = path.strip_prefix('/').and_then(|path| path.split_once('/'));
        match split {
            Some((INFERENCE_SERVICE, method)) => match method {
                "ModelInfer" => Self::Infer,
                "ModelStreamInfer" => Self::StreamInfer,
                "ServerLive" => Self::ServerLive,
                "ServerReady" => Self::ServerReady,
                _ => Self::OtherUnary,
            },
            Some((HEALTH_SERVICE, "Check")) => Self::HealthCheck,
            Some((HEALTH_SERVICE, "Watch")) => Self::HealthWatch,
            _ => Self::Unknown,
        }
    }

    /// Whether it is one inference.
    pub const fn is_infer(self) -> bool {
        matches!(self, Self::Infer)
    }

    /// Whether it asks for the health of a server rather than of a model.
    pub const fn is_health(self) -> bool {
        matches!(self, Self::ServerLive | Self::ServerReady | Self::HealthCheck | Self::HealthWatch)
    }

    /// Whether it may last for as long as the client likes.
    pub const fn is_stream(self) -> bool {
        matches!(self, Self::StreamInfer | Self::HealthWatch | Self::Unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::{MODEL_INFER, MODEL_STREAM_INFER};

    #[test]
    fn calls_are_told_by_their_paths() {
        for (path, expected, is_stream) in [
            (MODEL_INFER, Method::Infer, false),
            (MODEL_STREAM_INFER, Method::StreamInfer, true),
            ("/inference.GRPCInferenceService/ModelMetadata", Method::OtherUnary, false),
            ("/grpc.health.v1.Health/Check", Method::HealthCheck, false),
            ("/grpc.health.v1.Health/Watch", Method::HealthWatch, true),
            ("/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics", Method::Unknown, true),
            ("/some.Other/ModelInfer", Method::Unknown, true),
            ("/v2/health/live", Method::Unknown, true),
            ("", Method::Unknown, true),
        ] {
            assert_eq!((Method::of(path), Method::of(path).is_stream()), (expected, is_stream));
        }
    }
}
