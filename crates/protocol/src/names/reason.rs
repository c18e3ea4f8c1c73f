//! Why a request was refused or failed: one enum, one table.
//!
//! Clients branch on codes, operators alert on them, and dashboards group by them. If the status,
//! the blame and the permission to retry were decided where each error arises, they would drift
//! apart; here each reason states all of them, and every header, log field and metric label that
//! names a reason takes its text from [`Reason::code`].

use crate::grpc::Code;
use http::StatusCode;

/// The side that has to change something so that the request succeeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The client: the same request will fail again.
    Client,
    /// The proxy or its configuration.
    Proxy,
    /// The endpoint, or the network between.
    Endpoint,
}

impl Blame {
    /// The word in logs and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Proxy => "proxy",
            Self::Endpoint => "endpoint",
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $status:ident, $grpc:ident, $blame:ident, $retry:literal;)*) => {
        /// A stable reason code. Adding one is compatible; renaming one is not.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// Every reason, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The text of the header `x-forebay-reason`, of the log field and of the metric label.
            pub const fn code(self) -> &'static str { match self { $(Self::$name => $code,)* } }

            /// HTTP status that goes with the reason.
            pub const fn status(self) -> StatusCode {
                match self { $(Self::$name => StatusCode::$status,)* }
            }

            /// gRPC status code that goes with the reason.
            pub const fn grpc(self) -> Code { match self { $(Self::$name => Code::$grpc,)* } }

            /// The side that has to change something.
            pub const fn blame(self) -> Blame { match self { $(Self::$name => Blame::$blame,)* } }

            /// Whether the same request may be sent once more, to another endpoint or later.
            pub const fn retryable(self) -> bool { match self { $(Self::$name => $retry,)* } }

            /// The reason nearest to another server's gRPC status; `None` for success.
            pub const fn from_grpc(code: Code) -> Option<Self> {
                Some(match code {
                    Code::Ok => return None,
                    Code::Cancelled => Self::ClientClosed,
                    Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => {
                        Self::InvalidRequest
                    }
                    Code::DeadlineExceeded => Self::DeadlineExceeded,
                    Code::NotFound => Self::ModelNotFound,
                    Code::Unimplemented => Self::NotFound,
                    Code::Unavailable | Code::ResourceExhausted => Self::QueueFull,
                    _ => Self::InferenceFailed,
                })
            }

            /// The reason with this code, if there is one.
            pub fn from_code(code: &str) -> Option<Self> {
                match code { $($code => Some(Self::$name),)* _ => None }
            }
        }
    };
}

reasons! {
    // --- the client's
    /// The request is not valid HTTP or JSON.
    InvalidRequest = "invalid_request", BAD_REQUEST, InvalidArgument, Client, false;
    /// The request is well formed, but its tensors do not fit the model: name, datatype, shape or count.
    InvalidInput = "invalid_input", BAD_REQUEST, InvalidArgument, Client, false;
    /// No route matches this path and model.
    NoRoute = "no_route", NOT_FOUND, NotFound, Client, false;
    /// Nothing is served at this path.
    NotFound = "not_found", NOT_FOUND, Unimplemented, Client, false;
    /// The model, or this version of it, is not in the repository.
    ModelNotFound = "model_not_found", NOT_FOUND, NotFound, Client, false;
    /// The path exists, but not with this method.
    MethodNotAllowed = "method_not_allowed", METHOD_NOT_ALLOWED, Unimplemented, Client, false;
    /// The configuration does not allow clients to do this.
    Forbidden = "forbidden", FORBIDDEN, PermissionDenied, Client, false;
    /// The body is longer than the limit, or inflates beyond it.
    BodyTooLarge = "body_too_large", PAYLOAD_TOO_LARGE, ResourceExhausted, Client, false;
    /// The header has more bytes or fields than the limit.
    HeadersTooLarge = "headers_too_large", REQUEST_HEADER_FIELDS_TOO_LARGE, ResourceExhausted, Client, false;
    /// The client sent too many HTTP/2 frames other than requests, or cancelled too many requests at once;
    /// its connection ends with GOAWAY.
    ClientFlood = "client_flood", TOO_MANY_REQUESTS, ResourceExhausted, Client, false;
    /// The `Content-Encoding` is not supported.
    UnsupportedEncoding = "unsupported_encoding", UNSUPPORTED_MEDIA_TYPE, Unimplemented, Client, false;
    /// The request did not arrive completely within the time limit.
    RequestTimeout = "request_timeout", REQUEST_TIMEOUT, DeadlineExceeded, Client, true;
    /// The client read its answer more slowly than `limits.min_rate`, or not at all. Only the log shows
    /// this status.
    ClientTooSlow = "client_too_slow", REQUEST_TIMEOUT, DeadlineExceeded, Client, true;
    /// The client closed the connection or cancelled before the answer. Only the log shows this status.
    ClientClosed = "client_closed", BAD_REQUEST, Cancelled, Client, false;
    /// The listener requires a PROXY header, and the connection began without one.
    InvalidProxyHeader = "invalid_proxy_header", BAD_REQUEST, InvalidArgument, Client, false;
    /// The TLS handshake failed.
    TlsHandshakeFailed = "tls_handshake_failed", BAD_REQUEST, InvalidArgument, Client, false;
    /// The connection was idle in both directions for longer than `idle_timeout`.
    IdleTimeout = "idle_timeout", REQUEST_TIMEOUT, DeadlineExceeded, Client, true;

    // --- load and time
    /// The listener has reached its maximum number of connections, or a client or all clients have reached theirs of
    /// requests or gRPC streams.
    ConnectionLimit = "connection_limit", SERVICE_UNAVAILABLE, Unavailable, Proxy, true;
    /// The connection was idle and was closed to make room for a new one.
    Evicted = "evicted", SERVICE_UNAVAILABLE, Unavailable, Proxy, true;
    /// Buffered bodies and answers have reached their memory limit, in total or for this client.
    MemoryLimit = "memory_limit", SERVICE_UNAVAILABLE, Unavailable, Proxy, true;
    /// The queue is full.
    QueueFull = "queue_full", SERVICE_UNAVAILABLE, Unavailable, Endpoint, true;
    /// A more urgent request took its place in the full queue.
    Displaced = "displaced", SERVICE_UNAVAILABLE, Unavailable, Proxy, true;
    /// The work queued ahead would push it past its deadline; it was rejected without being tried.
    DeadlineUnreachable = "deadline_unreachable", SERVICE_UNAVAILABLE, Unavailable, Proxy, true;
    /// The deadline passed before the answer arrived.
    DeadlineExceeded = "deadline_exceeded", GATEWAY_TIMEOUT, DeadlineExceeded, Endpoint, false;

    /// One attempt took longer than `attempt_timeout`; another endpoint may be faster.
    AttemptTimeout = "attempt_timeout", GATEWAY_TIMEOUT, DeadlineExceeded, Endpoint, true;

    /// The client takes only a kept answer (`Cache-Control: only-if-cached`), and there is none.
    NotCached = "not_cached", GATEWAY_TIMEOUT, NotFound, Proxy, false;

    // --- the endpoint's
    /// The model is in the repository, but not loaded and warmed yet.
    ModelNotReady = "model_not_ready", SERVICE_UNAVAILABLE, Unavailable, Endpoint, true;
    /// The model is in the repository, but can't be loaded until its files or the worker's configuration change.
    ModelFailed = "model_failed", NOT_IMPLEMENTED, Unimplemented, Endpoint, false;
    /// The model could not be loaded; versions that were served before are still served.
    LoadFailed = "load_failed", INTERNAL_SERVER_ERROR, Internal, Endpoint, false;
    /// The server is shutting down and accepts no new requests.
    Draining = "draining", SERVICE_UNAVAILABLE, Unavailable, Endpoint, true;
    /// The engine failed on this request.
    InferenceFailed = "inference_failed", INTERNAL_SERVER_ERROR, Internal, Endpoint, false;
    /// No endpoint of the pool is in rotation.
    NoEndpoint = "no_endpoint", SERVICE_UNAVAILABLE, Unavailable, Endpoint, true;
    /// No connection could be opened to any endpoint that was tried.
    ConnectFailed = "connect_failed", SERVICE_UNAVAILABLE, Unavailable, Endpoint, true;
    /// The connection broke before the answer was complete.
    EndpointReset = "endpoint_reset", BAD_GATEWAY, Unavailable, Endpoint, true;
    /// The endpoint answers neither the request nor probes.
    EndpointSilent = "endpoint_silent", SERVICE_UNAVAILABLE, Unavailable, Endpoint, true;
    /// The endpoint's answer is not valid HTTP.
    InvalidResponse = "invalid_response", BAD_GATEWAY, Unavailable, Endpoint, true;

    // --- the proxy's
    /// The proxy ran out of file descriptors, local ports or memory for a connection.
    ProxyExhausted = "proxy_exhausted", SERVICE_UNAVAILABLE, Unavailable, Proxy, true;
    /// A fault of Forebay itself.
    Internal = "internal", INTERNAL_SERVER_ERROR, Internal, Proxy, false;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_found_again() {
        for &reason in Reason::ALL {
            assert_eq!(Reason::from_code(reason.code()), Some(reason));
        }
        assert_eq!(Reason::from_code("nonsense"), None);
    }

    #[test]
    fn both_protocols_say_alike_whether_another_endpoint_may_be_asked() {
        for &reason in Reason::ALL {
            let unavailable = reason.grpc() == Code::Unavailable;
            let status = reason.status().as_u16();
            assert_eq!(unavailable, status == 503 || status == 502, "{}", reason.code());
        }
    }

    #[test]
    fn a_clients_mistake_is_never_a_5xx_and_an_endpoints_fault_never_a_4xx() {
        for &reason in Reason::ALL {
            match reason.blame() {
                Blame::Client => assert!(reason.status().is_client_error(), "{}", reason.code()),
                _ => assert!(reason.status().is_server_error(), "{}", reason.code()),
            }
        }
    }
}
