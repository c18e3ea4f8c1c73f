//! Sending a request on and bringing the answer back.

mod attempt;
mod attempts;
mod exchange;
pub mod grpc;
mod read_ahead;
mod respond;
pub mod stream;
pub mod unary;
mod upload;
pub mod wire;

use crate::error::Refusal;
use crate::flow::fallback;
use crate::flow::route::Target;
use crate::pool::EndpointState;
use crate::pool::report::{self, Origin};
use crate::request::Request;
use forebay_protocol::oip::Call;
use forebay_protocol::{Priority, header, metric};
use forebay_routing::Outcome;
use http::{HeaderMap, HeaderName, Method};
use metrics::Counter;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::{Error, ErrorType};
use std::time::Instant;

/// Headers that belong to one connection, not to the message (RFC 9110, 7.6.1), and those that
/// state how the body is framed there.
const HOP_BY_HOP: [HeaderName; 9] = [
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
fn nominated(headers: &HeaderMap) -> Vec<HeaderName> {
    let values = headers.get_all(http::header::CONNECTION).iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .filter(|name| name != "close" && name != "keep-alive")
        .collect()
}

/// Adds what an endpoint needs to know of the request, however often it is sent.
fn prepare_request(head: &mut RequestHeader, request: &Request) -> pingora::Result<()> {
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
fn stamp(head: &mut RequestHeader, deadline: Instant, is_grpc: bool) -> pingora::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    // Rounded up: a worker must not give up before the proxy does.
    let millis = left.as_millis().saturating_add(1).to_string();
    head.insert_header(header::REQUEST_DEADLINE, millis)?;
    if is_grpc {
        grpc::stamp(head, left)?;
    }
    Ok(())
}

/// Takes out of an answer what is for the proxy alone and adds what the caller may know.
fn prepare_answer(
    head: &mut ResponseHeader,
    request: &Request,
    target: &Target,
    endpoint: &EndpointState,
) -> pingora::Result<()> {
    // The report speaks to this proxy; whoever balances over several proxies would misread it.
    head.remove_header(&header::LOAD_REPORT);
    head.remove_header(&header::LOAD_REPORT_BIN);
    head.insert_header(header::REQUEST_ID, request.identity.request_id.as_str())?;
    head.insert_header(header::VARIANT, target.variant())?;
    if let Some(degraded) = request.degraded {
        head.insert_header(header::DEGRADED, degraded.reason.code())?;
    }
    if target.route.expose_endpoint {
        head.insert_header(header::ENDPOINT, &*endpoint.name)?;
    }
    Ok(())
}

/// Takes in the load report of an answer, whoever gets the answer. It must still be counted as in
/// flight; `complete`: the endpoint has done its work and does not count it any more.
fn take_in_report(headers: &HeaderMap, target: &Target, endpoint: &EndpointState, complete: bool) {
    let pool = &target.pool.config.name;
    report::take_in(headers, pool, endpoint, Origin::InBand, u32::from(complete));
}

/// Inferences of OpenAI's interface, which have no effect but their answer either.
const OPENAI: [&str; 3] = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"];

/// Has the request no effect but its answer, by all that is known of it?
fn is_repeatable(request: &Request, head: &RequestHeader) -> bool {
    let infers = matches!(request.identity.call, Some(Call::Infer | Call::ModelOther))
        || OPENAI.contains(&head.uri.path());
    head.method.is_idempotent() || (head.method == Method::POST && infers)
}

/// Takes in what the header of an answer says of the endpoint. When it comes says nothing: it may be
/// the beginning of a long answer, or the end of long work. An error that states its reason speaks of
/// this request, such as a model that can't be loaded; nobody else is asked what it says of it.
fn note_answer(endpoint: &EndpointState, head: &ResponseHeader) {
    endpoint.note(match head.status.as_u16() {
        500 | 502 if head.headers.contains_key(header::REASON) => Outcome::Understood,
        500 | 502 => Outcome::Failed,
        429 => Outcome::Busy,
        503 if head.headers.contains_key(http::header::RETRY_AFTER) => Outcome::Busy,
        503 => Outcome::Failed,
        _ => Outcome::Understood,
    });
}

/// An error that stands for a refusal: the text is in the request.
fn refused(request: &mut Request, refusal: Refusal) -> Box<Error> {
    let status = refusal.reason.status().as_u16();
    request.refusal = Some(refusal);
    Error::new(ErrorType::HTTPStatus(status))
}

/// Counts an attempt that was answered; resolved once an endpoint, since it is every request.
fn count_answer(target: &Target, endpoint: &EndpointState) {
    endpoint.answers.get_or_init(|| attempts(target, endpoint, "answered")).increment(1);
}

/// Counts how any other attempt ended.
fn count_attempt(target: &Target, endpoint: &EndpointState, outcome: &'static str) {
    attempts(target, endpoint, outcome).increment(1);
}

/// Counts a connection that is closed since the endpoint sent bytes on it that answer no request.
fn count_unsolicited(pool: &str, endpoint: &EndpointState) {
    metrics::counter!(
        metric::proxy::UNSOLICITED,
        "pool" => pool.to_owned(),
        "endpoint" => endpoint.name.to_string(),
    )
    .increment(1);
}

fn attempts(target: &Target, endpoint: &EndpointState, outcome: &'static str) -> Counter {
    metrics::counter!(
        metric::proxy::ATTEMPTS,
        "pool" => target.pool.config.name.clone(),
        "endpoint" => endpoint.name.to_string(),
        "outcome" => outcome,
    )
}
