//! A body that is too long to be held whole: its beginning is there, the rest is streamed.
//!
//! An endpoint that reads such a body waits for the client, so the client has to keep a pace
//! ([`Pace`]). A client that does not is at fault, not the endpoint. While the request queues, the
//! body is collected further, as far as there is memory: so a client that leaves is noticed, and does
//! not stay in the queue. The request is sent once: only if no connection was made, another endpoint
//! is tried.

use super::attempt::acknowledges_nothing;
use super::attempts::{NO_SIGN, Won};
use super::exchange::{
    Answer, MAX_EARLY_ANSWER_WAIT, NO_SOCKET, Rest, classify, final_header, message_of, send_piece,
    socket_of,
};
use super::headers::{prepare_request, stamp};
use super::take_in_report;
use super::{count_answer, count_attempt, note_answer, streamed};
use crate::body_memory::Account;
use crate::clock;
use crate::config::Limits;
use crate::exhausted;
use crate::http::admit::body_too_large;
use crate::http::balance::may_retry;
use crate::http::pace::{Pace, TooSlow};
use crate::http::receive::{self, broken_off, client_left, too_late};
use crate::http::request::Request;
use crate::http::variant::{self, Target};
use crate::pool::Endpoint;
use crate::pool::awaited::Patience;
use crate::pool::liveness::{Vain, in_vain};
use crate::refusal::Refusal;
use bytes::Bytes;
use forebay_protocol::{Reason, metric};
use forebay_routing::Outcome;
use pingora::connectors::http::Connector;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::client::HttpSession as EndpointSession;
use pingora::proxy::Session;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::{timeout, timeout_at};

/// Why an upload ended without an answer.
enum Stopped {
    /// The client is at fault.
    Client(Refusal),
    Endpoint(Box<pingora::Error>),
    /// The endpoint answers neither it nor probes.
    Silent,
    Late,
}

/// Sends the request, as its body comes; returns the answer when it begins.
///
/// # Errors
/// What the client is told.
pub(super) async fn upload(
    session: &mut Session,
    request: &mut Request,
    target: &Target,
    (mut head, begun): (RequestHeader, receive::Begun),
    (connector, account): (&Connector, &Account),
) -> Result<Won, Refusal> {
    let snapshot = Arc::clone(&request.snapshot);
    let limits = &snapshot.config.limits;
    let mut body = Collecting { begun, is_done: session.downstream_session.is_body_done() };
    let deadline = request.deadline.unwrap_or_else(|| request.arrived + target.route.deadline);
    let (endpoint, mut connection) = loop {
        let endpoint = bind(session, request, &mut body, limits).await?;
        // A kept connection may have been closed meanwhile, and this body can't be sent twice.
        let mut peer = endpoint.peer(false).clone();
        peer.group_key = u64::MAX;
        match timeout_at(deadline.into(), connector.get_http_session(&peer)).await {
            Ok(Ok((connection, _))) => break (endpoint, connection),
            Ok(Err(error)) => not_connected(request, &endpoint, &error)?,
            Err(_) => return Err(failed(request, &endpoint, Stopped::Late)),
        }
    };
    let index = request.attempts.len() - 1;
    prepare(&mut head, request, deadline, &connection).map_err(|_| broken())?;
    let pool = Arc::clone(&request.target.as_ref().unwrap_or(target).pool);
    let expected = request.attempts[index].expected(&endpoint);
    // It was begun, so it can't be sent elsewhere.
    let patience = Patience::until_silent_alone(expected);
    let its_socket = socket_of(&connection);
    let socket = || Some(its_socket).filter(|socket| *socket != NO_SOCKET);
    let started = Instant::now();
    let sending = Sending { session, limits, pace: Pace::new(limits) };
    let sent = sending.run(request, (head, body), &mut connection);
    let sent = tokio::select! {
        sent = timeout_at(deadline.into(), sent) => sent.unwrap_or(Err(Stopped::Late)),
        why = in_vain((&endpoint.state, &pool), socket, patience) => Err(match why {
            Vain::Silent => Stopped::Silent,
            Vain::Unreachable => Stopped::Endpoint(acknowledges_nothing()),
        }),
    };
    request.times.forward += started.elapsed();
    let Begun { head, keep, unsent } = match sent {
        Ok(begun) => begun,
        Err(stopped) => return Err(failed(request, &endpoint, stopped)),
    };
    let target = request.target.as_ref().unwrap_or(target);
    count_answer(target, &endpoint.state);
    if !head.status.is_server_error() {
        target.pool.state.budget.earn(clock::now());
    }
    note_answer(&endpoint.state, &head);
    let is_made = head.headers.contains_key(http::header::CONTENT_LENGTH);
    take_in_report(&head.headers, target, &endpoint.state, is_made);
    let rest = Some(Rest { session: Box::new(connection), keep, unsent });
    let held = account.for_answers().hold();
    let answer = Answer { head, body: Vec::new(), trailers: None, rest, held };
    Ok(Won { answer, endpoint, index })
}

/// Waits for an endpoint, and collects the body further meanwhile.
async fn bind(
    session: &mut Session,
    request: &mut Request,
    body: &mut Collecting,
    limits: &Limits,
) -> Result<Arc<Endpoint>, Refusal> {
    let bound = {
        let mut bound = pin!(streamed::bind(request));
        let mut has_memory = true;
        loop {
            let downstream = &mut session.downstream_session;
            let reads = !body.is_done && has_memory;
            let watches = body.is_done || downstream.is_http2();
            let next = async {
                if reads {
                    return downstream.read_request_body().await.map_err(broken_off);
                }
                let left = downstream.read_body_or_idle(true).await;
                Err(left.map_or_else(|error| client_left(&error), |_| broken()))
            };
            tokio::select! {
                biased;
                bound = &mut bound => break bound,
                read = next, if reads || watches => has_memory = body.take_in(read?, limits)?,
            }
        }
    };
    request.bytes_in = body.begun.body.len() as u64;
    bound
}

fn broken() -> Refusal {
    Refusal::new(Reason::InvalidRequest, "the request can't be understood")
}

/// The body as far as it was collected.
struct Collecting {
    begun: receive::Begun,
    is_done: bool,
}

impl Collecting {
    /// Takes in what was read; `false`: no more can be held.
    fn take_in(&mut self, read: Option<Bytes>, limits: &Limits) -> Result<bool, Refusal> {
        let Some(chunk) = read else {
            self.is_done = true;
            return Ok(true);
        };
        self.begun.body.extend_from_slice(&chunk);
        if self.begun.body.len() as u64 > limits.body {
            return Err(body_too_large(limits.body, None));
        }
        Ok(self.begun.held.grow(chunk.len()).is_ok())
    }
}

/// Adds what the endpoint needs to know.
fn prepare(
    head: &mut RequestHeader,
    request: &Request,
    deadline: Instant,
    connection: &EndpointSession,
) -> pingora::Result<()> {
    prepare_request(head, request)?;
    if let Some(target) = &request.target {
        variant::rename_path(head, &target.variant)?;
    }
    if connection.as_http2().is_some() {
        head.remove_header(&http::header::TRANSFER_ENCODING);
    }
    stamp(head, deadline, false)
}

/// No connection was made. `Ok`: another endpoint may be tried.
fn not_connected(
    request: &mut Request,
    endpoint: &Endpoint,
    error: &pingora::Error,
) -> Result<(), Refusal> {
    tracing::debug!(endpoint = &*endpoint.state.name, %error, "no connection");
    let Some(target) = request.target.clone() else { return Err(broken()) };
    let Some(picked) = request.attempts.last_mut() else { return Err(broken()) };
    if let Some(resource) = exhausted::behind(error) {
        // The endpoint has done nothing wrong, and another would fare no better.
        picked.answered(false);
        exhausted::count(resource, "connect");
        count_attempt(&target, &endpoint.state, Reason::ProxyExhausted.code());
        return Err(exhausted::refusal(resource));
    }
    picked.failed();
    endpoint.state.note(Outcome::Failed);
    let reason = Reason::ConnectFailed;
    count_attempt(&target, &endpoint.state, reason.code());
    if request.attempts.len() > 1 {
        target.pool.state.budget.retry_failed();
    }
    if may_retry(request, &target) {
        return Ok(());
    }
    Err(Refusal::new(reason, message_of(reason)))
}

/// Takes in why there is no answer; only the endpoint's own failure is held against it.
fn failed(request: &mut Request, endpoint: &Endpoint, stopped: Stopped) -> Refusal {
    let Some(picked) = request.attempts.last_mut() else { return broken() };
    let refusal = match stopped {
        Stopped::Client(refusal) => {
            picked.abandoned();
            return refusal;
        }
        Stopped::Endpoint(error) => {
            tracing::debug!(endpoint = &*endpoint.state.name, %error, "an upload failed");
            picked.failed();
            endpoint.state.note(Outcome::Failed);
            let reason = classify(&error).1;
            Refusal::new(reason, message_of(reason))
        }
        Stopped::Silent => {
            picked.late();
            Refusal::new(Reason::EndpointSilent, NO_SIGN)
        }
        Stopped::Late => {
            picked.late();
            Refusal::new(Reason::DeadlineExceeded, "no answer before the deadline")
        }
    };
    if let Some(target) = &request.target {
        count_attempt(target, &endpoint.state, refusal.reason.code());
    }
    refusal
}

/// The refusal of a body whose rest does not come.
pub(in crate::http) fn too_slow() -> Refusal {
    metrics::counter!(metric::proxy::SLOW_CLIENTS, "side" => "request").increment(1);
    let message = "the rest of the body came too slowly, or not at all";
    Refusal::new(Reason::RequestTimeout, message)
}

/// An answer that has begun.
struct Begun {
    head: Box<ResponseHeader>,
    /// Whether the whole request was sent before that.
    keep: bool,
    /// How the client keeps pace, if the rest of the request is still to be sent.
    unsent: Option<Pace>,
}

/// An upload to an endpoint that is connected.
struct Sending<'a> {
    session: &'a mut Session,
    limits: &'a Limits,
    pace: Pace,
}

impl Sending<'_> {
    /// Sends the request until its answer begins, which may be before all of it was sent.
    async fn run(
        mut self,
        request: &mut Request,
        message: (RequestHeader, Collecting),
        connection: &mut EndpointSession,
    ) -> Result<Begun, Stopped> {
        match self.send(request, message, connection).await {
            Ok(Some(head)) => Ok(Begun { head, keep: false, unsent: Some(self.pace) }),
            Ok(None) => {
                let head = final_header(connection).await.map_err(Stopped::Endpoint)?;
                Ok(Begun { head, keep: true, unsent: None })
            }
            Err(Stopped::Endpoint(error)) => {
                // It may have answered without reading all of the request.
                match timeout(MAX_EARLY_ANSWER_WAIT, final_header(connection)).await {
                    Ok(Ok(head)) => Ok(Begun { head, keep: false, unsent: None }),
                    _ => Err(Stopped::Endpoint(error)),
                }
            }
            Err(stopped) => Err(stopped),
        }
    }

    /// Sends the request; returns the header of an answer that comes before the end of it.
    async fn send(
        &mut self,
        request: &mut Request,
        (head, body): (RequestHeader, Collecting),
        connection: &mut EndpointSession,
    ) -> Result<Option<Box<ResponseHeader>>, Stopped> {
        let write = connection.write_request_header(Box::new(head)).await;
        write.map_err(Stopped::Endpoint)?;
        let Collecting { begun, mut is_done } = body;
        let write = send_piece(connection, begun.body.freeze()).await;
        write.map_err(Stopped::Endpoint)?;
        drop(begun.held);
        while !is_done {
            let started = Instant::now();
            let read = tokio::select! {
                head = final_header(connection) => return head.map(Some).map_err(Stopped::Endpoint),
                read = self.pace.wait(self.session.downstream_session.read_request_body()) => read,
            };
            let Some(chunk) = self.took(request, read, started.elapsed())? else {
                is_done = true;
                continue;
            };
            let write = send_piece(connection, chunk).await;
            write.map_err(Stopped::Endpoint)?;
        }
        connection.finish_request_body().await.map_err(Stopped::Endpoint)?;
        Ok(None)
    }

    /// Takes in what was read of the client, and how long that took.
    fn took(
        &mut self,
        request: &mut Request,
        read: Result<pingora::Result<Option<Bytes>>, TooSlow>,
        took: Duration,
    ) -> Result<Option<Bytes>, Stopped> {
        request.times.receive += took;
        let read = read.map_err(|TooSlow| Stopped::Client(too_slow()))?;
        let chunk = read.map_err(|error| Stopped::Client(broken_off(error)))?;
        let length = chunk.as_ref().map_or(0, Bytes::len);
        self.pace.moved(length);
        request.bytes_in += length as u64;
        if request.bytes_in > self.limits.body {
            return Err(Stopped::Client(body_too_large(self.limits.body, None)));
        }
        if chunk.is_some() && request.times.receive > self.limits.body_timeout {
            return Err(Stopped::Client(too_late(self.limits)));
        }
        Ok(chunk)
    }
}
