//! Header names, lower case, as they stand on the wire.

use http::HeaderName;

/// Identity of one request; kept if the client sent one, made otherwise, returned and logged.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Milliseconds that the client is still willing to wait. The time that is left is passed to the worker.
pub const REQUEST_DEADLINE: HeaderName = HeaderName::from_static("x-request-deadline");
/// Priority of a request: `high`, `normal` or `batch`, see [`Priority`](crate::Priority).
pub const REQUEST_PRIORITY: HeaderName = HeaderName::from_static("x-request-priority");
/// W3C trace context: <https://www.w3.org/TR/trace-context/>.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// W3C trace context, vendor part; passed on untouched with the trace that it belongs to.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Length in bytes of the JSON that stands before the tensors (OIP binary tensor extension).
pub const INFERENCE_HEADER_CONTENT_LENGTH: HeaderName =
    HeaderName::from_static("inference-header-content-length");

/// ORCA load report of an endpoint.
pub const LOAD_REPORT: HeaderName = HeaderName::from_static("endpoint-load-metrics");
/// Asks an endpoint for a load report: `text` or `json`.
pub const LOAD_REPORT_FORMAT: HeaderName = HeaderName::from_static("endpoint-load-metrics-format");

/// The same in binary form, as gRPC servers send it: in trailers, base64 of the message.
pub const LOAD_REPORT_BIN: HeaderName = HeaderName::from_static("endpoint-load-metrics-bin");

/// Asks a synthetic backend for a service time in microseconds.
pub const SERVICE_DEMAND: HeaderName = HeaderName::from_static("x-service-demand");

/// Status of a gRPC call: a number, see [`Code`](crate::grpc::Code).
pub const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// The same in words, percent-encoded.
pub const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// Time that a gRPC client will wait.
pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// Compression of gRPC messages whose prefix says that they are compressed.
pub const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
/// Compressions that a gRPC peer can read.
pub const GRPC_ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");

/// Stable code of any refusal, see [`Reason`](crate::Reason).
pub const REASON: HeaderName = HeaderName::from_static("x-forebay-reason");
/// The variant that answered.
pub const VARIANT: HeaderName = HeaderName::from_static("x-forebay-variant");
/// Says that a request is a copy whose answer no client gets: `1`.
pub const SHADOW: HeaderName = HeaderName::from_static("x-forebay-shadow");
/// Why another variant answered than the one that was asked for: the code of a
/// [`Reason`](crate::Reason).
pub const DEGRADED: HeaderName = HeaderName::from_static("x-forebay-degraded");
/// The content of the model that answered, for the proxy's cache, see
/// [`ModelContent`](crate::ModelContent).
pub const MODEL_CONTENT: HeaderName = HeaderName::from_static("x-forebay-model-content");
/// Tokens of each input of an answer with embeddings, in their order, for the proxy's cache.
pub const ROW_TOKENS: HeaderName = HeaderName::from_static("x-forebay-row-tokens");
/// The part of a cache in a request: <https://www.rfc-editor.org/rfc/rfc9211>.
pub const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
/// The endpoint that answered; sent only where the route allows clients to see it.
pub const ENDPOINT: HeaderName = HeaderName::from_static("x-forebay-endpoint");
