//! Sending a request on and bringing the answer back.

pub mod stream;
pub mod unary;

use crate::flow::route::Target;
use crate::pool::{EndpointState, report};
use crate::request::Request;
use forebay_protocol::{header, metric};
use http::HeaderName;
use pingora::http::{RequestHeader, ResponseHeader};

/// Headers that belong to one connection, not to the message (RFC 9110, 7.6.1), and those that
/// state how the body is framed there.
const HOP_BY_HOP: [HeaderName; 7] = [
    http::header::CONNECTION,
    http::header::TE,
    http::header::TRAILER,
    http::header::TRANSFER_ENCODING,
    http::header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Adds what an endpoint needs to know: identities, and the time that is left.
fn prepare_request(head: &mut RequestHeader, request: &Request) -> pingora::Result<()> {
    let identity = &request.identity;
    head.insert_header(header::REQUEST_ID, identity.request_id.as_str())?;
    head.insert_header(header::TRACEPARENT, identity.traceparent.as_str())?;
    if let Some(left) = request.time_left() {
        // Rounded up: a worker must not give up before the proxy does.
        let millis = left.as_millis().saturating_add(1).to_string();
        head.insert_header(header::REQUEST_DEADLINE, millis)?;
    }
    Ok(())
}

/// Takes the load report out of an answer and adds what the caller may know.
fn prepare_answer(
    head: &mut ResponseHeader,
    request: &Request,
    target: &Target,
    endpoint: &EndpointState,
) -> pingora::Result<()> {
    if report::take_in(&head.headers, &endpoint.load).is_err() {
        let pool = target.pool.config.name.clone();
        metrics::counter!(metric::proxy::REPORTS_DROPPED, "pool" => pool).increment(1);
    }
    // The report speaks to this proxy; whoever balances over several proxies would misread it.
    head.remove_header(&header::LOAD_REPORT);
    head.insert_header(header::REQUEST_ID, request.identity.request_id.as_str())?;
    head.insert_header(header::VARIANT, target.variant())?;
    if target.route.expose_endpoint {
        head.insert_header(header::ENDPOINT, &*endpoint.name)?;
    }
    Ok(())
}

/// Counts how an attempt ended.
fn count_attempt(target: &Target, endpoint: &EndpointState, outcome: &'static str) {
    metrics::counter!(
        metric::proxy::ATTEMPTS,
        "pool" => target.pool.config.name.clone(),
        "endpoint" => endpoint.name.to_string(),
        "outcome" => outcome,
    )
    .increment(1);
}
