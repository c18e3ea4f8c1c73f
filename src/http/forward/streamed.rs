//! The pipe: what Pingora's own proxying needs to know to carry what is neither one request nor one
//! answer: streams of gRPC, and connections that switch to another protocol.
//!
//! They pass through without being held, so only a connection that failed before anything was sent is
//! tried again.

use super::exchange::{classify, closed_while_idle, message_of};
use super::headers::stamp;
use super::headers::{prepare_answer, prepare_request};
use super::read_ahead::too_slow_reader;
use super::wire::{self, Before, UNSOLICITED, Wire};
use super::{begun_answer, count_attempt, is_repeatable, refused, take_in_report};
use crate::body_memory::NoMemory;
use crate::config::Limits;
use crate::downstream::http1_reader::is_malformed;
use crate::exhausted;
use crate::http::admit::body_too_large;
use crate::http::attempts::{self, Handling, NO_SIGN};
use crate::http::receive::client_left;
use crate::http::request::Request;
use crate::http::variant;
use crate::pool::Endpoint;
use crate::pool::awaited::SilenceTimeout;
use crate::pool::connector::{PipeSocket, guard_pipe, is_http2};
use crate::pool::liveness::{CutAt, Watched};
use crate::pool::queue::Bound;
use crate::refusal::Refusal;
use bytes::Bytes;
use forebay_protocol::grpc;
use forebay_protocol::{Reason, metric};
use forebay_routing::attempt::event::{End, Ending, Event, Next, SilencePolicy};
use forebay_routing::{Blame, Outcome, RetryOn};
use http::StatusCode;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType};
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of a body that Pingora keeps, to send them again.
const SENT_AGAIN: u64 = 64 * 1024;

/// Bounds the time that the client of a stream may take for a read or a write.
pub fn begin(session: &mut Session, request: &Request, limits: &Limits) {
    session.downstream_session.set_read_timeout(Some(limits.body_timeout));
    if request.identity.upgrade {
        session.downstream_session.set_write_timeout(Some(limits.stall_timeout));
    }
}

/// Picks the endpoint that Pingora connects to next.
///
/// # Errors
/// No endpoint, no time left, or the client left while it waited.
pub async fn peer(
    session: &mut Session,
    request: &mut Request,
    limits: &Limits,
) -> pingora::Result<Box<HttpPeer>> {
    // A kept connection had closed: the endpoint itself is not at fault, and gets another one.
    if let Some(endpoint) = again(request) {
        let left = request.time_left().unwrap_or(limits.stream_idle);
        return Ok(with_its_own_connection(endpoint_peer(request, &endpoint, left)));
    }
    let is_repeatable = may_be_sent_again(session, request);
    let next = match request.outstanding.take() {
        Some(next) => next,
        None => attempts::begin(request, Handling::AtTheClientsPace, is_repeatable),
    };
    let downstream = &mut session.downstream_session;
    // A read of HTTP/1 would take bytes of a body; but only requests without one queue here.
    let watches = downstream.is_http2() || downstream.is_body_done();
    let bound = tokio::select! {
        biased;
        bound = attempts::bind(request, next, is_repeatable) => bound,
        left = downstream.read_body_or_idle(true), if watches => Err(match left {
            Err(error) => client_left(&error),
            Ok(_) => Refusal::new(Reason::InvalidRequest, "the request is longer than it says"),
        }),
    };
    let sending = bound.map_err(|refusal| refused(request, refusal))?;
    request.on_silence = sending.on_silence;
    let endpoint = Arc::clone(&request.attempts[sending.attempt].endpoint);
    // The wait for an endpoint took of the time.
    let left = request.time_left().unwrap_or(limits.stream_idle);
    let peer = endpoint_peer(request, &endpoint, left);
    // Nothing but the end of its connection ends a stream in which nothing moves, and a connection that is
    // guarded can't be shared there.
    Ok(if is_http2(&peer) { with_its_own_connection(peer) } else { peer })
}

/// The same endpoint by a connection that no other request is on.
fn with_its_own_connection(mut peer: Box<HttpPeer>) -> Box<HttpPeer> {
    // A key of its own: no kept connection has it, and this one is not kept.
    peer.group_key = fastrand::u64(1..);
    peer.options.idle_timeout = Some(Duration::ZERO);
    peer
}

fn endpoint_peer(request: &mut Request, endpoint: &Endpoint, left: Duration) -> Box<HttpPeer> {
    let mut peer = Box::new(endpoint.peer(request.identity.grpc.is_some()).clone());
    request.pipe_socket = is_http2(&peer).then(|| guard_pipe(endpoint, &mut peer));
    // Per read: a stream may last longer than the deadline as long as it moves.
    peer.options.read_timeout = Some(left);
    peer.options.write_timeout = Some(left);
    peer
}

/// The endpoint that was tried last, if the attempt did not fail there.
fn again(request: &mut Request) -> Option<Arc<Endpoint>> {
    let last = request.attempts.last_mut().filter(|last| last.guard.is_some())?;
    Some(Arc::clone(&last.endpoint))
}

/// Looks at a connection before the request is written to it.
///
/// # Errors
/// It can't be used; the error says whether another attempt may follow.
pub fn connected(
    request: &mut Request,
    reused: bool,
    peer: &HttpPeer,
    socket: RawFd,
) -> pingora::Result<()> {
    request.wire = None;
    let own = request.pipe_socket.as_ref().map_or(Some(socket), PipeSocket::get);
    request.cut = request.deadline.zip(own).map(|(at, own)| CutAt::new(own, at));
    // In HTTP/2 an endpoint may speak first, and each answer names its request.
    if is_http2(peer) {
        return Ok(());
    }
    let before = wire::look(socket);
    if before == Before::Unsolicited
        && let (Some(target), Some(picked)) = (&request.target, request.attempts.last())
    {
        super::count_unsolicited(&target.pool.config.name, &picked.endpoint.state);
    }
    if before == Before::Quiet || (before == Before::Closed && !reused) {
        request.wire = watch(request, socket).map(|it| Wire::new(socket, it));
        return Ok(());
    }
    let mut error = Error::explain(UNSOLICITED, "the connection can't be used");
    error.as_up();
    if reused {
        error.set_retry(true);
        return Err(error);
    }
    // Bytes that arrive before any request make the connection useless: as if there were none.
    Err(connect_failed(request, error))
}

/// Decides whether the request may be sent again after an exchange that failed.
pub fn broke_off(
    session: &Session,
    request: &mut Request,
    mut error: Box<Error>,
    reused: bool,
) -> Box<Error> {
    let was_cut = request.wire.take().is_some_and(|wire| wire.was_cut());
    if *error.etype() == UNSOLICITED {
        request.cut = None;
        return error;
    }
    if is_too_late(request) {
        error.set_retry(false);
        return error;
    }
    request.cut = None;
    if was_cut {
        let is_repeatable = may_be_sent_again(session, request);
        let silent = End::Silent(Refusal::new(Reason::EndpointSilent, NO_SIGN));
        let again = goes_on(request, silent, is_repeatable);
        error.set_retry(again);
        return error;
    }
    let again = error.esource() == &ErrorSource::Upstream
        && !has_answered(session)
        && reused
        && closed_while_idle(&error)
        && may_be_sent_again(session, request);
    error.set_retry(again);
    error
}

/// Whether the exchange was ended because its deadline had passed.
fn is_too_late(request: &Request) -> bool {
    request.cut.as_ref().is_some_and(CutAt::was_cut)
}

/// Watches the exchange, to end it if the endpoint goes silent and it can be sent elsewhere.
fn watch(request: &Request, socket: RawFd) -> Option<Watched> {
    let picked = request.attempts.last()?;
    let silence_timeout = match request.on_silence {
        decided @ SilencePolicy::WhenOverdue => SilenceTimeout::of(decided, picked.expected()),
        _ => SilenceTimeout::never(),
    };
    Some(Watched::new(&picked.endpoint.state, socket, silence_timeout))
}

/// Takes in how the present attempt ended. May Pingora ask where the next one goes?
fn goes_on(request: &mut Request, end: End<Refusal>, is_repeatable: bool) -> bool {
    let present = request.attempts.len().saturating_sub(1);
    match attempts::on(request, Event::Ended(present, end), is_repeatable) {
        next @ (Next::Bind | Next::FallBack(_)) => {
            request.outstanding = Some(next);
            true
        }
        Next::Finish(Ending::Refuse(refusal)) => {
            request.refusal = Some(refusal);
            false
        }
        _ => false,
    }
}

/// Whether the final answer has begun on its way to the client.
pub fn has_answered(session: &Session) -> bool {
    session.response_written().is_some_and(|head| !head.status.is_informational())
}

/// Whether the request has no effect but its answer, and its body is at hand.
fn may_be_sent_again(session: &Session, request: &Request) -> bool {
    is_repeatable(request, session.req_header())
        && !request.identity.upgrade
        && !session.as_ref().retry_buffer_truncated()
}

/// Notes that an endpoint could not be reached, and lets Pingora try another if that is allowed.
pub fn connect_failed(request: &mut Request, mut error: Box<Error>) -> Box<Error> {
    let end = if let Some(resource) = exhausted::behind(&error) {
        exhausted::count(resource, "connect");
        End::Unsent(exhausted::refusal(resource))
    } else {
        let reason = Reason::ConnectFailed;
        End::Broke(RetryOn::Connect, Refusal::new(reason, message_of(reason)))
    };
    let again = goes_on(request, end, false);
    error.set_retry(again);
    error
}

/// Prepares the header that is sent to the endpoint.
///
/// # Errors
/// A header that can't be written.
pub fn request_header(request: &Request, head: &mut RequestHeader) -> pingora::Result<()> {
    prepare_request(head, request)?;
    if let Some(target) = &request.target {
        variant::rename_path(head, &target.variant)?;
    }
    match request.deadline {
        Some(deadline) => stamp(head, deadline, request.identity.grpc.is_some()),
        None => Ok(()),
    }
}

/// Counts the bytes of the body that passes, and the time that it takes.
///
/// # Errors
/// More bytes than the limit, or more time.
pub fn request_body(
    request: &mut Request,
    bytes: usize,
    end: bool,
    limits: &Limits,
) -> pingora::Result<()> {
    request.bytes_in += bytes as u64;
    if let Some(wire) = &mut request.wire {
        if end {
            wire.request_sent();
        }
        if request.bytes_in > SENT_AGAIN {
            wire.stays();
        }
    }
    // Messages of a stream are bounded one by one, by the endpoint, and it may last.
    if request.identity.grpc.is_some_and(grpc::Method::is_stream) {
        return in_time(request);
    }
    if request.bytes_in > limits.body {
        return Err(refused(request, body_too_large(limits.body, None)));
    }
    if !end && request.arrived.elapsed() > limits.body_timeout {
        let message = format!("expected the body within {:?}", limits.body_timeout);
        return Err(refused(request, Refusal::new(Reason::RequestTimeout, message)));
    }
    Ok(())
}

/// Takes in that a piece of an answer has come from the endpoint, which may be the last one.
///
/// # Errors
/// It came after the deadline, or finds no memory because the client does not read.
pub fn response_body(
    request: &mut Request,
    body: &mut Option<Bytes>,
    end: bool,
) -> pingora::Result<()> {
    if let (Some(memory), Some(bytes)) = (&request.stream_memory, &mut *body)
        && !bytes.is_empty()
    {
        match memory.charge(std::mem::take(bytes)) {
            Ok(charged) => *bytes = charged,
            Err(NoMemory) => return Err(refused(request, too_slow_reader())),
        }
    }
    if let Some(picked) = request.attempts.last() {
        picked.endpoint.state.heard();
    }
    if end {
        // Its connection may be kept for others.
        request.cut = None;
        if let Some(wire) = &request.wire {
            wire.answer_ended();
        }
    }
    if request.identity.grpc.is_some_and(grpc::Method::is_stream) {
        return in_time(request);
    }
    if end && let Some(picked) = request.attempts.last_mut() {
        // How fast the client reads it is nothing to the endpoint's slot.
        picked.answered(false);
    }
    Ok(())
}

/// The deadline of a stream is one for all of it, however often something moves.
fn in_time(request: &mut Request) -> pingora::Result<()> {
    if request.time_left().is_some_and(|left| left.is_zero()) {
        let refusal = Refusal::new(Reason::DeadlineExceeded, "the stream did not end in time");
        return Err(refused(request, refusal));
    }
    Ok(())
}

/// Notes that an answer has begun and prepares its header for the client.
///
/// # Errors
/// A header that can't be written.
pub fn response_header(
    request: &mut Request,
    head: &mut ResponseHeader,
    is_head: bool,
) -> pingora::Result<()> {
    if let Some(picked) = request.attempts.last() {
        picked.endpoint.state.heard();
    }
    if let Some(wire) = &mut request.wire {
        wire::check(head)?;
        wire.answer_began(head, is_head)?;
    }
    if head.status.is_informational() && head.status != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(());
    }
    let Some(target) = request.target.clone() else { return Ok(()) };
    let Some(picked) = request.attempts.last() else { return Ok(()) };
    if head.status == StatusCode::SWITCHING_PROTOCOLS && !request.identity.upgrade {
        return Error::e_explain(
            ErrorType::InvalidHTTPHeader,
            "a switch of protocols that was not requested",
        );
    }
    request.times.forward = picked.at.elapsed();
    if request.identity.grpc.is_some() {
        super::grpc::note(request, &head.headers);
    }
    let Some(picked) = request.attempts.last_mut() else { return Ok(()) };
    if head.status == StatusCode::SWITCHING_PROTOCOLS || is_head || wire::has_no_body(head) {
        request.cut = None;
    }
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        // From here on it is a connection, which takes no slot.
        picked.guard = Some(Bound::long_lived(&picked.endpoint));
    }
    // One whose length is known when it begins has been made; any other is still being made.
    let complete = head.headers.contains_key(http::header::CONTENT_LENGTH);
    take_in_report(&head.headers, &target, &picked.endpoint.state, complete);
    let present = request.attempts.len().saturating_sub(1);
    attempts::on(request, Event::Ended(present, begun_answer(head)), false);
    prepare_answer(head, request)
}

/// Takes in that the endpoint ended the exchange, or did not go on with it in time.
fn endpoint_failed(request: &mut Request, error: &Error, timed_out: bool) {
    if request.decisions.as_ref().is_some_and(|decisions| !decisions.are_over()) {
        let (trouble, reason) = classify(error);
        // The request was begun, so any break counts as a reset.
        let trouble = if trouble == RetryOn::Connect { RetryOn::Reset } else { trouble };
        let end = if timed_out {
            End::TimedOut { unheard: false }
        } else {
            End::Broke(trouble, Refusal::new(reason, message_of(reason)))
        };
        goes_on(request, end, false);
        return;
    }
    // Its answer had begun.
    let Some(picked) = request.attempts.last_mut() else { return };
    if timed_out {
        // A stream that its client's deadline ends says nothing about the endpoint.
        picked.settle(Blame::Late { cut_short: false });
    } else {
        picked.settle(Blame::Failed);
        picked.endpoint.state.note(Outcome::Failed);
    }
    if let Some(target) = &request.target {
        count_attempt(target, &picked.endpoint.state, classify(error).1.code());
    }
}

/// The refusal that an error of the pipe means to the client; `None` if the client is gone.
pub fn refusal(request: &mut Request, error: &Error) -> Option<Refusal> {
    if let Some(refusal) = request.refusal.take() {
        return Some(refusal);
    }
    let is_upstream = !is_malformed(error) && error.esource() == &ErrorSource::Upstream;
    let timed_out = matches!(error.etype(), ErrorType::ReadTimedout | ErrorType::WriteTimedout)
        || (is_upstream && is_too_late(request));
    if is_upstream {
        endpoint_failed(request, error, timed_out);
        if let Some(refusal) = request.refusal.take() {
            return Some(refusal);
        }
    } else {
        attempts::abandon(request);
    }
    if is_malformed(error) {
        return Some(Refusal::new(Reason::InvalidRequest, "the body's chunks are malformed"));
    }
    Some(match error.esource() {
        ErrorSource::Upstream if timed_out => {
            Refusal::new(Reason::DeadlineExceeded, "no answer before the deadline")
        }
        ErrorSource::Upstream => {
            let reason = classify(error).1;
            Refusal::new(reason, message_of(reason))
        }
        ErrorSource::Downstream if *error.etype() == ErrorType::WriteTimedout => {
            metric::proxy::SLOW_CLIENTS.with(["answer"]).increment(1);
            Refusal::new(Reason::ClientTooSlow, "the client did not read its answer")
        }
        ErrorSource::Downstream if timed_out => {
            Refusal::new(Reason::RequestTimeout, "the request did not arrive in time")
        }
        ErrorSource::Downstream => match error.etype() {
            ErrorType::ReadError | ErrorType::WriteError | ErrorType::ConnectionClosed => {
                request.refusal = Some(Refusal::new(Reason::ClientClosed, "the client left"));
                return None;
            }
            _ => Refusal::new(Reason::InvalidRequest, "the request is malformed"),
        },
        // Pingora does not say whose fault a body is that breaks off; without an attempt it can
        // only be the client's.
        ErrorSource::Unset if request.attempts.is_empty() => {
            Refusal::new(Reason::InvalidRequest, "the request is not complete")
        }
        ErrorSource::Internal | ErrorSource::Unset => {
            Refusal::new(Reason::Internal, "an internal fault of the proxy")
        }
    })
}
