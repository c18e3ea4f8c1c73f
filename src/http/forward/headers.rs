//! The headers of a request to an endpoint, and those of its answer to the client.

use crate::http::request::Request;
use forebay_protocol::grpc::format_timeout;
use forebay_protocol::{Priority, header};
use http::{HeaderMap, HeaderName};
use pingora::http::{RequestHeader, ResponseHeader};
use std::time::Instant;

/// Headers that belong to one connection, not to the message (RFC 9110, 7.6.1), and those that
/// state how the body is framed there.
pub(in crate::http) const HOP_BY_HOP: [HeaderName; 9] = [
    http::header::CONNECTION,
    http::header::TE,
    http::header::TRAILER,
    http::header::TRANSFER_ENCODING,
    http::header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("http2-settings"),
    http::header::PROXY_AUTHENTICATE,
    HeaderName::from_static("proxy-connection"),
];

/// Headers beyond [`HOP_BY_HOP`] that a message itself says belong to its connection.
pub(in crate::http) fn nominated(headers: &HeaderMap) -> Vec<HeaderName> {
    let values = headers.get_all(http::header::CONNECTION).iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .filter(|name| name != "close" && name != "keep-alive")
        .collect()
}

/// Adds what an endpoint needs to know of the request, however often it is sent.
pub(super) fn prepare_request(head: &mut RequestHeader, request: &Request) -> pingora::Result<()> {
    let identity = &request.identity;
    head.insert_header(header::REQUEST_ID, identity.request_id.as_str())?;
    head.insert_header(header::TRACEPARENT, identity.traceparent.as_str())?;
    if identity.begins_trace {
        head.remove_header(&header::TRACESTATE);
    }
    if identity.priority.is_none() && request.priority != Priority::default() {
        head.insert_header(header::REQUEST_PRIORITY, request.priority.as_str())?;
    }
    Ok(())
}

/// States the time that is left until the deadline.
pub(super) fn stamp(
    head: &mut RequestHeader,
    deadline: Instant,
    is_grpc: bool,
) -> pingora::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    // Rounded up: a worker must not give up before the proxy does.
    let millis = left.as_millis().saturating_add(1).to_string();
    head.insert_header(header::REQUEST_DEADLINE, millis)?;
    if is_grpc {
        // In gRPC's own header too.
        head.insert_header(header::GRPC_TIMEOUT, format_timeout(left))?;
    }
    Ok(())
}

/// Takes out of an answer what is for the proxy alone and adds what the client may know.
pub(in crate::http) fn prepare_answer(
    head: &mut ResponseHeader,
    request: &Request,
) -> pingora::Result<()> {
    // The report is for this proxy; a load balancer in front would misread it.
    head.remove_header(&header::LOAD_REPORT);
    head.remove_header(&header::LOAD_REPORT_BIN);
    head.remove_header(&header::MODEL_CONTENT);
    head.remove_header(&header::ROW_TOKENS);
    head.insert_header(header::REQUEST_ID, request.identity.request_id.as_str())?;
    if let Some(outcome) = request.cache {
        head.append_header(header::CACHE_STATUS, &*outcome.cache_status())?;
    }
    if let Some(degraded) = request.degraded {
        head.insert_header(header::DEGRADED, degraded.code())?;
    }
    if let Some(cookie) = &request.set_cookie {
        head.append_header(http::header::SET_COOKIE, cookie)?;
    }
    let Some(target) = &request.target else { return Ok(()) };
    head.insert_header(header::VARIANT, target.variant.name.as_str())?;
    if target.route.expose_endpoint
        && let Some(attempt) = request.answering()
    {
        head.insert_header(header::ENDPOINT, &*attempt.endpoint.state.name)?;
    }
    Ok(())
}
