//! Requests that are held in memory: received whole, sent until an endpoint answers, answered whole.
//!
//! The body is held, so that it can be sent again ([`attempts`](super::attempts)), and the answer too,
//! up to a bound, so that one that breaks off half way can still be replaced.

use super::attempts::{Attempts, Won};
use super::exchange::{Answer, Message};
use super::{HOP_BY_HOP, grpc, nominated, prepare_answer, prepare_request};
use crate::config::Limits;
use crate::error::Refusal;
use crate::flow::admit::{body_too_large, within};
use crate::flow::balance::Picked;
use crate::flow::route::Target;
use crate::pool::Endpoint;
use crate::request::Request;
use bytes::{Bytes, BytesMut};
use forebay_protocol::oip::Wishes;
use forebay_protocol::{Reason, header};
use http::{StatusCode, Version};
use pingora::connectors::http::Connector;
use pingora::http::RequestHeader;
use pingora::protocols::http::client::HttpSession as EndpointSession;
use pingora::proxy::Session;
use pingora::{ErrorType, OrErr};
use std::time::{Duration, Instant};
use tokio::time::{timeout, timeout_at};

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
    let is_grpc = request.identity.grpc.is_some();
    if !is_grpc {
        take_in_wishes(session.req_header(), request, target, &body);
    }
    let mut head = if is_grpc {
        grpc::request_head(session.req_header())?
    } else {
        request_head(session.req_header(), body.len())?
    };
    prepare_request(&mut head, request)?;
    let message = Message { head, body, is_grpc, deadline: request.deadline };
    let outcome = tokio::select! {
        outcome = Attempts::new(request, target.clone(), message, connector).run() => outcome,
        // With the body complete this resolves only if the caller leaves.
        left = session.downstream_session.read_body_or_idle(true) => Err(caller_left(left)),
    };
    // A cheaper variant may have stood in.
    let target = request.target.clone().unwrap_or_else(|| target.clone());
    let target = &target;
    match outcome {
        Ok(Won { answer, endpoint }) if is_grpc => {
            grpc::respond(session, request, target, answer, &endpoint.state).await
        }
        Ok(Won { answer, endpoint }) => respond(session, request, target, answer, &endpoint).await,
        Err(refusal) => {
            // Attempts that were under way are over, and nobody is to blame for that.
            request.attempts.iter_mut().for_each(Picked::abandoned);
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

/// What the body says of its urgency, where the header says nothing: that of gRPC was read for its
/// routing.
fn take_in_wishes(head: &RequestHeader, request: &mut Request, target: &Target, body: &[u8]) {
    let length = head.headers.get(header::INFERENCE_HEADER_CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
    let json = length.and_then(|length| body.get(..length)).unwrap_or(body);
    request.wishes(Wishes::in_json(json));
    request.priority = request.identity.priority.unwrap_or(target.route.priority);
    within(request, target.route.deadline);
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
