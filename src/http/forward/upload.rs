//! A body that is too long to be held whole: its beginning is there, the rest is streamed.
//!
//! An endpoint that reads such a body waits for the client, so the client has to keep a pace
//! ([`Pace`]). A client that does not is at fault, not the endpoint. While the request queues, the
//! body is collected further, as far as there is memory: so a client that leaves is noticed, and does
//! not stay in the queue. The request is sent once: only if no connection was made, another endpoint
//! is tried.

use super::attempt::acknowledges_nothing;
use super::attempts::AttemptAnswer;
use super::exchange::{
    Answer, MAX_EARLY_ANSWER_WAIT, Rest, classify, final_header, has_begun, message_of, send_piece,
    socket_of,
};
use super::headers::{prepare_request, stamp};
use super::{begun_answer, take_in_report};
use crate::body_memory::Account;
use crate::config::Limits;
use crate::exhausted;
use crate::http::admit::body_too_large;
use crate::http::attempts::{self, Handling, NO_SIGN};
use crate::http::pace::{Pace, TooSlow};
use crate::http::receive::{self, broken_off, client_left, too_late};
use crate::http::request::Request;
use crate::http::variant::{self, Target};
use crate::pool::awaited::SilenceTimeout;
use crate::pool::connector::{Connector, NO_SOCKET};
use crate::pool::liveness::{Lost, until_lost};
use crate::refusal::Refusal;
use bytes::Bytes;
use forebay_protocol::{Reason, metric};
use forebay_routing::RetryOn;
use forebay_routing::attempt::event::{End, Ending, Event, Next, RefusalCause, Sending};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::client::HttpSession as EndpointSession;
use pingora::proxy::Session;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::{timeout, timeout_at};

/// A body that is sent while it comes is not at hand to be sent again.
const REPEATABLE: bool = false;

/// Why an upload ended without an answer.
enum Stopped {
    /// The client is at fault.
    Client(Refusal),
    Endpoint(Box<pingora::Error>),
    /// The same, where an answer can't be read any more.
    Unanswered(Box<pingora::Error>),
    /// The endpoint answers neither it nor probes.
    Silent,
    Late,
}

/// Sends the request, as its body comes; returns the answer when it begins.
///
/// # Errors
/// The refusal for the client.
pub(super) async fn upload(
    session: &mut Session,
    request: &mut Request,
    target: &Target,
    (mut head, begun): (RequestHeader, receive::PartialBody),
    (connector, account): (&Connector, &Account),
) -> Result<AttemptAnswer, Refusal> {
    let snapshot = Arc::clone(&request.snapshot);
    let limits = &snapshot.config.limits;
    let mut body = Collecting { begun, is_done: session.downstream_session.is_body_done() };
    let deadline = request.deadline.unwrap_or_else(|| request.arrived + target.route.deadline);
    let mut next = attempts::begin(request, Handling::AtTheClientsPace, REPEATABLE);
    let (sending, endpoint, mut connection) = loop {
        let sending = bind(session, request, (next, &mut body), limits).await?;
        let endpoint = match request.attempts.get(sending.attempt) {
            Some(picked) => Arc::clone(&picked.endpoint),
            None => return Err(broken()),
        };
        // A kept connection may have been closed meanwhile, and this body can't be sent twice.
        let connected = timeout_at(deadline.into(), connector.connect(&endpoint, false)).await;
        next = match connected {
            Ok(Ok(connection)) => break (sending, endpoint, connection),
            Ok(Err(error)) => not_connected(request, sending.attempt, &error),
            Err(_) => return Err(failed(request, sending.attempt, Stopped::Late)),
        };
    };
    let index = sending.attempt;
    prepare(&mut head, request, deadline, &connection).map_err(|_| broken())?;
    let pool = Arc::clone(&request.target.as_ref().unwrap_or(target).pool);
    let expected = request.attempts[index].expected();
    let silence_timeout = SilenceTimeout::of(sending.on_silence, expected);
    let its_socket = socket_of(&connection);
    let socket = || Some(its_socket).filter(|socket| *socket != NO_SOCKET);
    let started = Instant::now();
    let upload = Upload { session, limits, pace: Pace::new(limits) };
    let sent = upload.run(request, (head, body), &mut connection);
    let sent = tokio::select! {
        sent = timeout_at(deadline.into(), sent) => sent.unwrap_or(Err(Stopped::Late)),
        why = until_lost((&endpoint.state, &pool), socket, silence_timeout) => Err(match why {
            Lost::Silent { .. } => Stopped::Silent,
            Lost::Unreachable => Stopped::Endpoint(acknowledges_nothing()),
        }),
    };
    request.times.forward += started.elapsed();
    let UploadAnswer { head, keep, unsent } = match sent {
        Ok(begun) => begun,
        Err(stopped) => return Err(failed(request, index, stopped)),
    };
    if let Some(target) = &request.target {
        let is_made = head.headers.contains_key(http::header::CONTENT_LENGTH);
        take_in_report(&head.headers, target, &endpoint.state, is_made);
    }
    attempts::on(request, Event::Ended(index, begun_answer(&head)), REPEATABLE);
    let rest = Some(Rest { session: Box::new(connection), keep, unsent });
    let held = account.for_answers().hold();
    let answer = Answer { head, body: Vec::new(), trailers: None, rest, held };
    Ok(AttemptAnswer { answer, endpoint, index })
}

/// Waits for an endpoint, and collects the body further meanwhile.
async fn bind(
    session: &mut Session,
    request: &mut Request,
    (next, body): (Next<Refusal>, &mut Collecting),
    limits: &Limits,
) -> Result<Sending, Refusal> {
    let bound = {
        let mut bound = pin!(attempts::bind(request, next, REPEATABLE));
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
    Refusal::new(Reason::InvalidRequest, "the request is malformed")
}

/// The body as far as it was collected.
struct Collecting {
    begun: receive::PartialBody,
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

/// No connection was made; another endpoint may be tried.
fn not_connected(request: &mut Request, attempt: usize, error: &pingora::Error) -> Next<Refusal> {
    tracing::debug!(%error, "no connection");
    let end = if let Some(resource) = exhausted::behind(error) {
        exhausted::count(resource, "connect");
        End::Unsent(exhausted::refusal(resource))
    } else {
        let reason = Reason::ConnectFailed;
        End::Broke(RetryOn::Connect, Refusal::new(reason, message_of(reason)))
    };
    attempts::on(request, Event::Ended(attempt, end), REPEATABLE)
}

/// Takes in why there is no answer; only the endpoint's own failure is held against it.
fn failed(request: &mut Request, attempt: usize, stopped: Stopped) -> Refusal {
    let end = match stopped {
        Stopped::Client(refusal) => {
            attempts::on(request, Event::ClientLeft, REPEATABLE);
            return refusal;
        }
        Stopped::Endpoint(error) | Stopped::Unanswered(error) => {
            tracing::debug!(%error, "upload failed");
            let (trouble, reason) = classify(&error);
            // It was begun, so any break counts as a reset.
            let trouble = if trouble == RetryOn::Connect { RetryOn::Reset } else { trouble };
            End::Broke(trouble, Refusal::new(reason, message_of(reason)))
        }
        Stopped::Silent => End::Silent(Refusal::new(Reason::EndpointSilent, NO_SIGN)),
        Stopped::Late => End::TimedOut { unheard: false },
    };
    match attempts::on(request, Event::Ended(attempt, end), REPEATABLE) {
        Next::Finish(Ending::Refuse(refusal)) => refusal,
        _ => Refusal::deadline_passed(),
    }
}

/// The refusal of a body whose rest does not come.
pub(in crate::http) fn too_slow() -> Refusal {
    metric::proxy::SLOW_CLIENTS.with(["request"]).increment(1);
    let message = "the rest of the body came too slowly, or not at all";
    Refusal::new(Reason::RequestTimeout, message)
}

/// An answer that has begun.
struct UploadAnswer {
    head: Box<ResponseHeader>,
    /// Whether the whole request was sent before that.
    keep: bool,
    /// The client's pace, if the rest of the request is still to be sent.
    unsent: Option<Pace>,
}

/// An upload to an endpoint that is connected.
struct Upload<'a> {
    session: &'a mut Session,
    limits: &'a Limits,
    pace: Pace,
}

impl Upload<'_> {
    /// Sends the request until its answer begins, which may be before all of it was sent.
    async fn run(
        mut self,
        request: &mut Request,
        message: (RequestHeader, Collecting),
        connection: &mut EndpointSession,
    ) -> Result<UploadAnswer, Stopped> {
        match self.send(request, message, connection).await {
            Ok(Some(head)) => Ok(UploadAnswer { head, keep: false, unsent: Some(self.pace) }),
            Ok(None) => {
                let head = final_header(connection).await.map_err(Stopped::Endpoint)?;
                Ok(UploadAnswer { head, keep: true, unsent: None })
            }
            Err(Stopped::Endpoint(error)) if has_begun(connection) => {
                // It may have answered without reading all of the request.
                match timeout(MAX_EARLY_ANSWER_WAIT, final_header(connection)).await {
                    Ok(Ok(head)) => Ok(UploadAnswer { head, keep: false, unsent: None }),
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
                head = final_header(connection) => return head.map(Some).map_err(Stopped::Unanswered),
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
