//! Sending a request on and bringing the answer back.

mod attempt;
mod attempts;
pub mod buffered;
mod exchange;
pub mod grpc;
pub(in crate::http) mod headers;
pub(in crate::http) mod hurry;
pub(in crate::http) mod read_ahead;
pub(in crate::http) mod send;
pub mod streamed;
pub(in crate::http) mod upload;
pub mod wire;

use crate::http::request::Request;
use crate::http::variant::Target;
use crate::pool::EndpointState;
use crate::pool::report::{self, history::Origin};
use crate::refusal::Refusal;
use forebay_protocol::oip::Call;
use forebay_protocol::{Reason, header, metric};
use forebay_routing::attempt::event::{Answer, End};
use http::{HeaderMap, Method};
use metrics::Counter;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::{Error, ErrorType};

/// Takes in the load report of an answer, whichever attempt gets the answer. It must still be counted as in
/// flight; `complete`: the endpoint has done its work and does not count it any more.
fn take_in_report(headers: &HeaderMap, target: &Target, endpoint: &EndpointState, complete: bool) {
    let pool = &target.pool.config.name;
    report::take_in(headers, pool, endpoint, Origin::InBand, u32::from(complete));
}

/// Inferences of OpenAI's interface, which have no effect but their answer either.
const OPENAI: [&str; 3] = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"];

/// Whether the request has no effect but its answer, as far as is known.
fn is_repeatable(request: &Request, head: &RequestHeader) -> bool {
    let infers = matches!(request.identity.call, Some(Call::Infer | Call::ModelOther))
        || OPENAI.contains(&head.uri.path());
    head.method.is_idempotent() || (head.method == Method::POST && infers)
}

/// The end of an attempt whose answer has begun, and is passed on as it arrives.
fn begun_answer(head: &ResponseHeader) -> End<Refusal> {
    let reason = head.headers.get(header::REASON).map(|value| value.to_str().ok());
    let is_retryable =
        reason.flatten().and_then(Reason::from_code).is_some_and(|reason| reason.retryable());
    let found = Answer {
        status: head.status.as_u16(),
        is_success: head.status.is_success(),
        is_busy: is_retryable || head.headers.contains_key(http::header::RETRY_AFTER),
        states_reason: reason.is_some(),
        is_whole: false,
    };
    End::Answered(found, None)
}

/// An error that stands for a refusal: the text is in the request.
pub(in crate::http) fn refused(request: &mut Request, refusal: Refusal) -> Box<Error> {
    let status = refusal.reason.status().as_u16();
    request.refusal = Some(refusal);
    Error::new(ErrorType::HTTPStatus(status))
}

/// Counts an attempt that was answered; resolved once an endpoint, since it is every request.
pub fn count_answer(target: &Target, endpoint: &EndpointState) {
    endpoint.answers.get_or_init(|| attempts(target, endpoint, "answered")).increment(1);
}

/// Counts how any other attempt ended.
pub fn count_attempt(target: &Target, endpoint: &EndpointState, outcome: &'static str) {
    attempts(target, endpoint, outcome).increment(1);
}

/// Counts a connection that is closed since the endpoint sent bytes on it that answer no request.
fn count_unsolicited(pool: &str, endpoint: &EndpointState) {
    metric::proxy::UNSOLICITED.with([pool, &endpoint.name]).increment(1);
}

fn attempts(target: &Target, endpoint: &EndpointState, outcome: &'static str) -> Counter {
    metric::proxy::ATTEMPTS.with([target.pool.config.name.as_str(), &endpoint.name, outcome])
}
