//! The attempt engine: a request that is held in memory is sent until an endpoint answers.
//!
//! Pingora's own pipe can send a body again only up to 64 KiB, and only if the connection failed
//! before anything was sent. An inference has no effect but its answer, so it may be sent again as
//! long as the caller has not seen a byte of one: a worker that is killed half way costs a retry,
//! not an error. The answer is held too, up to the same bound, so that one that breaks off half way
//! can still be replaced. What an attempt may cost is bounded by the deadline and by the pool's
//! retry budget, and it is dropped at once when the caller leaves.

use super::exchange::{Answer, exchange};
use super::{
    HOP_BY_HOP, count_answer, count_attempt, grpc, nominated, prepare_answer, prepare_request,
    take_in_report,
};
use crate::config::Limits;
use crate::error::Refusal;
use crate::flow::admit::body_too_large;
use crate::flow::balance::{balance, may_retry};
use crate::flow::route::Target;
use crate::pool::Endpoint;
use crate::request::Request;
use bytes::{Bytes, BytesMut};
use forebay_protocol::Reason;
use http::{StatusCode, Version};
use pingora::connectors::http::Connector;
use pingora::http::RequestHeader;
use pingora::protocols::http::client::HttpSession as EndpointSession;
use pingora::proxy::Session;
use pingora::{ErrorType, OrErr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::{timeout, timeout_at};

/// An endpoint that did not answer for this long is worth a probe.
const FAIR: Duration = Duration::from_millis(50);
/// How one attempt failed.
struct Failure {
    refusal: Refusal,
    /// The answer that said so, to be passed on if there is no other.
    answer: Option<Box<Answer>>,
}

/// Receives the body, unless that was done for its routing, sends the request until an endpoint answers, and answers the caller.
///
/// # Errors
/// The connection to the caller broke. All else becomes a refusal in `request`, for the caller to
/// answer with.
pub async fn forward(
    session: &mut Session,
    request: &mut Request,
    target: &Target,
    limits: &Limits,
    connector: &Connector,
    received: Option<Bytes>,
) -> pingora::Result<()> {
    let started = Instant::now();
    let body = match received {
        Some(body) => Ok(body),
        None => receive(session, request, limits).await.inspect(|_| {
            request.times.receive = started.elapsed();
        }),
    };
    let body = match body {
        Ok(body) => body,
        Err(refusal) => {
            request.refusal = Some(refusal);
            return Ok(());
        }
    };
    let mut head = match request.identity.grpc {
        Some(_) => grpc::request_head(session.req_header())?,
        None => request_head(session.req_header(), body.len())?,
    };
    let outcome = tokio::select! {
        outcome = attempts(request, target, &mut head, &body, connector) => outcome,
        // With the body complete this resolves only if the caller leaves.
        left = session.downstream_session.read_body_or_idle(true) => Err(caller_left(left)),
    };
    match outcome {
        Ok((answer, endpoint)) if request.identity.grpc.is_some() => {
            grpc::respond(session, request, target, answer, &endpoint.state).await
        }
        Ok((answer, endpoint)) => respond(session, request, target, answer, &endpoint).await,
        Err(refusal) => {
            // Attempts that were under way are over, and nobody is to blame for that.
            request.attempts.iter_mut().for_each(|attempt| attempt.answered(false));
            request.refusal = Some(refusal);
            Ok(())
        }
    }
}

fn caller_left(read: pingora::Result<Option<Bytes>>) -> Refusal {
    let message = match read {
        Err(error) => format!("the caller left: {}", error.etype().as_str()),
        Ok(_) => "the caller sent more than one request at once".to_owned(),
    };
    Refusal::new(Reason::ClientClosed, message)
}

/// The body in one piece. Its stated length was checked, so memory is bounded; its time is too.
async fn receive(
    session: &mut Session,
    request: &mut Request,
    limits: &Limits,
) -> Result<Bytes, Refusal> {
    let expected = request.identity.content_length.unwrap_or(0);
    let continues = session.get_header(http::header::EXPECT).is_some();
    if continues && expected > 0 {
        session.downstream_session.write_continue_response().await.map_err(broken_off)?;
    }
    let downstream = &mut session.downstream_session;
    let read = async {
        let Some(first) = downstream.read_request_body().await? else { return Ok(Bytes::new()) };
        if first.len() as u64 >= expected {
            return Ok(first);
        }
        // Grown as bytes arrive: a stated length alone must not pin memory.
        let mut body = BytesMut::from(first);
        while let Some(chunk) = downstream.read_request_body().await? {
            body.extend_from_slice(&chunk);
            if body.len() as u64 > expected {
                break;
            }
        }
        Ok::<_, Box<pingora::Error>>(body.freeze())
    };
    let Ok(body) = timeout(limits.body_timeout, read).await else {
        let message = format!("expected the body within {:?}", limits.body_timeout);
        return Err(Refusal::new(Reason::RequestTimeout, message));
    };
    let body = body.map_err(broken_off)?;
    request.bytes_in = body.len() as u64;
    if body.len() as u64 > expected {
        return Err(body_too_large(expected, None));
    }
    Ok(body)
}

/// A body that ends too early, or a caller that is gone: the caller's doing either way.
#[allow(clippy::needless_pass_by_value, reason = "the form that map_err takes")]
fn broken_off(error: Box<pingora::Error>) -> Refusal {
    match error.etype() {
        ErrorType::ReadError | ErrorType::WriteError => caller_left(Err(error)),
        _ => Refusal::new(Reason::InvalidRequest, "the body ended before its stated length"),
    }
}

/// The request as it is sent, whatever version and framing it came with.
fn request_head(received: &RequestHeader, length: usize) -> pingora::Result<RequestHeader> {
    let mut head = received.clone();
    if received.version == Version::HTTP_2 {
        if let Some(authority) = received.uri.authority() {
            head.insert_header(http::header::HOST, authority.as_str())?;
        }
        let path = received.uri.path_and_query().map_or("/", |path| path.as_str());
        head.set_raw_path(path.as_bytes())?;
    }
    head.set_version(Version::HTTP_11);
    for name in nominated(&received.headers) {
        head.remove_header(&name);
    }
    for name in HOP_BY_HOP.iter().chain([&http::header::EXPECT]) {
        head.remove_header(name);
    }
    head.insert_header(http::header::CONTENT_LENGTH, length)?;
    Ok(head)
}

/// Attempts until one answers, the deadline passes, or no more are allowed.
async fn attempts(
    request: &mut Request,
    target: &Target,
    head: &mut RequestHeader,
    body: &Bytes,
    connector: &Connector,
) -> Result<(Answer, Arc<Endpoint>), Refusal> {
    target.pool.state.budget.request();
    let mut last: Option<Failure> = None;
    loop {
        if request.time_left().is_some_and(|left| left.is_zero()) {
            let late = Refusal::new(Reason::DeadlineExceeded, "no answer before the deadline");
            return last.map_or(Err(late), give_up(request));
        }
        let endpoint = match balance(request, target).await {
            Ok(endpoint) => endpoint,
            // All that are ready were tried: the last failure says more than that.
            Err(none) => return last.map_or(Err(none), give_up(request)),
        };
        let failure = match attempt(request, target, &endpoint, head, body, connector).await {
            Ok(answer) => {
                count_answer(target, &endpoint.state);
                return Ok((answer, endpoint));
            }
            Err(failure) => failure,
        };
        count_attempt(target, &endpoint.state, failure.refusal.reason.code());
        let retry = failure.refusal.reason.retryable() && may_retry(request, target);
        if !retry {
            return give_up(request)(failure);
        }
        last = Some(failure);
    }
}

/// What the caller gets when nothing is left to try: the endpoint's own answer if it gave one.
fn give_up(request: &Request) -> impl FnOnce(Failure) -> Result<(Answer, Arc<Endpoint>), Refusal> {
    let endpoint = request.attempts.last().map(|picked| Arc::clone(&picked.endpoint));
    |failure| match (failure.answer, endpoint) {
        (Some(answer), Some(endpoint)) => Ok((*answer, endpoint)),
        _ => Err(failure.refusal),
    }
}

/// One attempt, bounded by the deadline and by the attempt's own time.
async fn attempt(
    request: &mut Request,
    target: &Target,
    endpoint: &Endpoint,
    head: &mut RequestHeader,
    body: &Bytes,
    connector: &Connector,
) -> Result<Answer, Failure> {
    let started = Instant::now();
    let deadline = request.deadline.unwrap_or(started + Duration::from_secs(3600));
    let own = target.pool.config.retry.attempt_timeout.map(|own| started + own);
    let until = own.map_or(deadline, |own| own.min(deadline));
    let exchange = async {
        prepare_request(head, request)?;
        exchange(endpoint.peer(request.identity.grpc.is_some()), head, body.clone(), connector)
            .await
    };
    let outcome = timeout_at(until.into(), exchange).await;
    request.times.forward += started.elapsed();
    let Some(picked) = request.attempts.last_mut() else {
        return Err(failed(Reason::Internal, "no attempt is under way"));
    };
    match outcome {
        Ok(Ok(answer)) => {
            if let Some(trailers) = &answer.trailers {
                take_in_report(trailers, target, &endpoint.state, true);
            }
            take_in_report(&answer.head.headers, target, &endpoint.state, true);
            if answer.is_unavailable() {
                picked.refused();
            } else {
                picked.answered(answer.is_success());
            }
            asks_for_another(answer)
        }
        Ok(Err(error)) => {
            picked.failed();
            tracing::debug!(endpoint = &*endpoint.state.name, %error, "attempt failed");
            Err(failed(reason_of(&error), message_of(&error)))
        }
        Err(_) => {
            // A caller that gives no time says nothing about the endpoint.
            if started.elapsed() >= FAIR {
                picked.failed();
            } else {
                picked.answered(false);
            }
            if until < deadline {
                return Err(failed(Reason::AttemptTimeout, "the endpoint did not answer in time"));
            }
            Err(failed(Reason::DeadlineExceeded, "no answer before the deadline"))
        }
    }
}

/// An endpoint that says 503 has not done the work; another may.
fn asks_for_another(answer: Answer) -> Result<Answer, Failure> {
    if !answer.is_unavailable() {
        return Ok(answer);
    }
    let reason = answer.reason().unwrap_or(Reason::QueueFull);
    let refusal = Refusal::new(reason, "the endpoint refused the request");
    Err(Failure { refusal, answer: Some(Box::new(answer)) })
}

/// Gives the caller the answer; from here on it can't be taken back.
async fn respond(
    session: &mut Session,
    request: &Request,
    target: &Target,
    answer: Answer,
    endpoint: &Endpoint,
) -> pingora::Result<()> {
    let Answer { mut head, body, rest, .. } = answer;
    prepare_answer(&mut head, request, target, &endpoint.state)?;
    // What the endpoint speaks is between it and us.
    head.set_version(Version::HTTP_11);
    for name in nominated(&head.headers) {
        head.remove_header(&name);
    }
    for name in &HOP_BY_HOP {
        head.remove_header(name);
    }
    if head.status == StatusCode::NO_CONTENT {
        head.remove_header(&http::header::CONTENT_LENGTH);
    }
    let bodyless = head.status == StatusCode::NO_CONTENT || head.status == StatusCode::NOT_MODIFIED;
    match &rest {
        None if !bodyless => {
            let length: usize = body.iter().map(Bytes::len).sum();
            head.insert_header(http::header::CONTENT_LENGTH, length)?;
        }
        _ if head.headers.contains_key(http::header::CONTENT_LENGTH) || bodyless => {}
        // Longer than is held and of unknown length.
        _ => head.insert_header(http::header::TRANSFER_ENCODING, "chunked")?,
    }
    let empty = body.is_empty() && rest.is_none();
    session.write_response_header(head, empty).await?;
    let last = if rest.is_none() { body.len() } else { usize::MAX };
    for (number, chunk) in body.into_iter().enumerate() {
        session.write_response_body(Some(chunk), number + 1 == last).await?;
    }
    if let Some(rest) = rest {
        stream_rest(session, request, rest).await?;
    }
    Ok(())
}

/// Passes on what is longer than is held, as it comes.
async fn stream_rest(
    session: &mut Session,
    request: &Request,
    mut rest: Box<EndpointSession>,
) -> pingora::Result<()> {
    let deadline = request.deadline.unwrap_or(Instant::now() + Duration::from_secs(3600));
    loop {
        let read = timeout_at(deadline.into(), rest.read_response_body()).await;
        let Some(chunk) = read.or_err(ErrorType::ReadTimedout, "the rest of a long answer")??
        else {
            break;
        };
        session.write_response_body(Some(chunk), false).await?;
    }
    // Its connection is not kept: long answers are rare.
    session.write_response_body(None, true).await
}

fn failed(reason: Reason, message: impl Into<std::borrow::Cow<'static, str>>) -> Failure {
    Failure { refusal: Refusal::new(reason, message), answer: None }
}

/// Why an exchange with an endpoint failed.
pub(super) fn reason_of(error: &pingora::Error) -> Reason {
    use ErrorType::{
        BindError, ConnectError, ConnectNoRoute, ConnectRefused, ConnectTimedout,
        InvalidHTTPHeader, SocketError,
    };
    match error.etype() {
        ConnectError | ConnectRefused | ConnectTimedout | ConnectNoRoute | BindError
        | SocketError => Reason::ConnectFailed,
        InvalidHTTPHeader => Reason::InvalidResponse,
        _ => Reason::EndpointReset,
    }
}

/// Words for the caller: what happened, without addresses or causes from inside.
pub(super) fn message_of(error: &pingora::Error) -> &'static str {
    match reason_of(error) {
        Reason::ConnectFailed => "no connection to an endpoint",
        Reason::InvalidResponse => "the endpoint's answer is not HTTP",
        _ => "the connection to the endpoint broke before the answer was complete",
    }
}
