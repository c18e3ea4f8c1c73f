//! The pipe: what Pingora's own proxying needs to know to carry a request as it comes.
//!
//! Bodies of any length and streams of any kind pass through without being held. For that they
//! give up what needs the whole request in hand: only a connection that failed before anything was
//! sent is tried again.

use super::{count_attempt, prepare_answer, prepare_request};
use crate::error::Refusal;
use crate::flow::admit::body_too_large;
use crate::flow::balance::{balance, may_retry};
use crate::request::Request;
use forebay_protocol::Reason;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType};
use std::time::Duration;

/// An error that stands for a refusal: the text is in the request.
fn refused(request: &mut Request, refusal: Refusal) -> Box<Error> {
    let status = refusal.reason.status().as_u16();
    request.refusal = Some(refusal);
    Error::new(ErrorType::HTTPStatus(status))
}

/// Picks the endpoint that Pingora connects to next.
///
/// # Errors
/// No endpoint, or no time left.
pub fn peer(request: &mut Request) -> pingora::Result<Box<HttpPeer>> {
    let Some(target) = request.target.clone() else {
        return Error::e_explain(ErrorType::InternalError, "a request without a route");
    };
    if request.attempts.is_empty() {
        target.pool.state.budget.request();
    }
    let left = request.time_left().unwrap_or(Duration::MAX);
    if left.is_zero() {
        let refusal = Refusal::new(Reason::DeadlineExceeded, "no answer before the deadline");
        return Err(refused(request, refusal));
    }
    let endpoint = balance(request, &target).map_err(|refusal| refused(request, refusal))?;
    let mut peer = Box::new(endpoint.peer.clone());
    // Per read: a stream may last longer than the deadline as long as it moves.
    peer.options.read_timeout = Some(left);
    peer.options.write_timeout = Some(left);
    Ok(peer)
}

/// Notes that an endpoint could not be reached, and lets Pingora try another if that is allowed.
pub fn connect_failed(request: &mut Request, mut error: Box<Error>) -> Box<Error> {
    let Some(target) = request.target.clone() else { return error };
    if let Some(picked) = request.attempts.last_mut() {
        picked.failed();
        count_attempt(&target, &picked.endpoint.state, Reason::ConnectFailed.code());
    }
    error.set_retry(may_retry(request, &target));
    error
}

/// Prepares the header that is sent to the endpoint.
///
/// # Errors
/// A header that can't be written.
pub fn request_header(request: &Request, head: &mut RequestHeader) -> pingora::Result<()> {
    prepare_request(head, request)
}

/// Counts the bytes of the body that passes.
///
/// # Errors
/// More than `limit` bytes.
pub fn request_body(request: &mut Request, bytes: usize, limit: u64) -> pingora::Result<()> {
    request.bytes_in += bytes as u64;
    if request.bytes_in > limit {
        return Err(refused(request, body_too_large(limit, None)));
    }
    Ok(())
}

/// Notes that an answer has begun and prepares its header for the caller.
///
/// # Errors
/// A header that can't be written.
pub fn response_header(request: &mut Request, head: &mut ResponseHeader) -> pingora::Result<()> {
    let Some(target) = request.target.clone() else { return Ok(()) };
    let Some(picked) = request.attempts.last() else { return Ok(()) };
    request.times.forward = picked.at.elapsed();
    count_attempt(&target, &picked.endpoint.state, "answered");
    prepare_answer(head, request, &target, &picked.endpoint.state)
}

/// The refusal that an error of the pipe means to the caller; `None` if the caller is gone.
pub fn refusal(request: &mut Request, error: &Error) -> Option<Refusal> {
    if let Some(refusal) = request.refusal.take() {
        return Some(refusal);
    }
    if let Some(picked) = request.attempts.last_mut() {
        match error.esource() {
            ErrorSource::Upstream => picked.failed(),
            _ => picked.answered(false),
        }
    }
    let timed_out = matches!(error.etype(), ErrorType::ReadTimedout | ErrorType::WriteTimedout);
    Some(match error.esource() {
        ErrorSource::Upstream if timed_out => {
            Refusal::new(Reason::DeadlineExceeded, "no answer before the deadline")
        }
        ErrorSource::Upstream => {
            Refusal::new(super::unary::reason_of(error), super::unary::message_of(error))
        }
        ErrorSource::Downstream if timed_out => {
            Refusal::new(Reason::RequestTimeout, "the request did not arrive in time")
        }
        ErrorSource::Downstream => match error.etype() {
            ErrorType::ReadError | ErrorType::WriteError | ErrorType::ConnectionClosed => {
                request.refusal = Some(Refusal::new(Reason::ClientClosed, "the caller left"));
                return None;
            }
            _ => Refusal::new(Reason::InvalidRequest, "the request can't be understood"),
        },
        ErrorSource::Internal | ErrorSource::Unset => {
            Refusal::new(Reason::Internal, "a fault of the proxy")
        }
    })
}
