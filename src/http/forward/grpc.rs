//! gRPC on its way to an endpoint and back: HTTP/2 on both sides, and a status in the trailers.

use super::headers::{HOP_BY_HOP, nominated};
use super::take_in_report;
use crate::http::request::Request;
use forebay_protocol::grpc::{Code, Method};
use forebay_protocol::{Reason, header};
use http::{HeaderMap, StatusCode};
use pingora::http::RequestHeader;

/// The header of a held call as it is sent.
pub(super) fn request_head(received: &RequestHeader) -> pingora::Result<RequestHeader> {
    let mut head = received.clone();
    for name in nominated(&received.headers) {
        head.remove_header(&name);
    }
    for name in HOP_BY_HOP.iter().chain([&http::header::EXPECT]) {
        head.remove_header(name);
    }
    // Of this connection as well, and without it a server may keep its trailers to itself.
    head.insert_header(http::header::TE, "trailers")?;
    Ok(head)
}

/// The status of the call, if these headers state it.
pub(super) fn code(headers: &HeaderMap) -> Option<Code> {
    headers.get(header::GRPC_STATUS).and_then(Code::parse)
}

/// The status that stands for a code, for what is decided by statuses.
pub(super) fn status_of(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::Internal | Code::Unknown | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
        // All others find fault with the call.
        _ => StatusCode::BAD_REQUEST,
    }
}

/// Notes how the call ended, if these headers or trailers say it.
pub(in crate::http) fn note(request: &mut Request, headers: &HeaderMap) {
    let Some(code) = code(headers) else { return };
    request.grpc_status = Some(code.number());
    let stated = headers.get(header::REASON).and_then(|value| value.to_str().ok());
    let stated = stated.and_then(Reason::from_code);
    request.endpoint_reason = stated.or_else(|| Reason::from_grpc(code));
}

/// Takes in what trailers say to the proxy, and out of them what is for it alone. `complete`: the
/// endpoint has done its work and does not count it any more.
pub fn trailers(request: &mut Request, trailers: &mut HeaderMap, complete: bool) {
    note(request, trailers);
    // A stream is not counted among the requests that a report speaks of.
    let complete = complete && !request.identity.grpc.is_some_and(Method::is_stream);
    if let (Some(target), Some(picked)) = (&request.target, request.answering()) {
        take_in_report(trailers, target, &picked.endpoint.state, complete);
    }
    trailers.remove(header::LOAD_REPORT);
    trailers.remove(header::LOAD_REPORT_BIN);
}
