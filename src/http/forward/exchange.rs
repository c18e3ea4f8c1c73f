//! One request to one endpoint, and its answer.

use super::grpc;
use super::headers::stamp;
use super::wire::{self, Before, CLOSED_BEFORE, UNSOLICITED};
use crate::body_memory::{Account, Held, cost};
use crate::config::{RetryOn, Variant};
use crate::http::pace::Pace;
use crate::http::variant;
use crate::pool::Endpoint;
use crate::pool::connector::Connector;
use crate::pool::connector::NO_SOCKET;
use bytes::Bytes;
use forebay_protocol::grpc::Code;
use forebay_protocol::{Reason, header};
use http::{HeaderMap, StatusCode};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::UniqueID;
use pingora::protocols::http::client::HttpSession as EndpointSession;
use pingora::{Error, ErrorType};
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// Most bytes of an answer that are held before any of it is passed on, so that one that breaks off
/// can be replaced. One that a cache may keep is held up to the bound of that.
pub(super) const MAX_HELD_ANSWER: usize = 256 * 1024;

/// Time that an endpoint gets to say why it stopped reading a request.
pub(super) const MAX_EARLY_ANSWER_WAIT: Duration = Duration::from_millis(200);

/// The message, for any endpoint.
pub(super) struct Message {
    /// Its header, as far as it is the same for all attempts.
    pub head: RequestHeader,
    /// Its body.
    pub body: Bytes,
    /// Whether it is a call of gRPC.
    pub is_grpc: bool,
    /// Time after which its client no longer waits.
    pub deadline: Option<Instant>,
    /// Whether it is an inference: its answer is held, and is replaced by another endpoint's where that may
    /// be better.
    pub is_replayable: bool,
    /// Whether it has no effect but its answer, so that it may be sent again although an endpoint may
    /// have received it.
    pub is_repeatable: bool,
    /// Most bytes of an answer that are held.
    pub most_held: usize,
    /// The memory account of its answers.
    pub account: Account,
}

impl Message {
    /// Whether an answer with this header is held until it is complete or too long for that. Any other
    /// is passed on as it comes.
    fn holds(&self, head: &ResponseHeader) -> bool {
        self.is_replayable && !is_event_stream(head)
    }

    /// The same as a variant is asked; `None` if its model can't be said there.
    pub(super) fn asking_for(self: &Arc<Self>, variant: &Variant) -> Option<Arc<Self>> {
        if !variant.renames() {
            return Some(Arc::clone(self));
        }
        let (mut head, mut body) = (self.head.clone(), self.body.clone());
        if self.is_grpc {
            body = variant::rename_message(&body, variant)?;
            if head.headers.contains_key(http::header::CONTENT_LENGTH) {
                head.insert_header(http::header::CONTENT_LENGTH, body.len()).ok()?;
            }
        } else {
            variant::rename_path(&mut head, variant).ok()?;
        }
        Some(Arc::new(Self { head, body, account: self.account.clone(), ..**self }))
    }
}

/// An answer that is ready to be given to the client.
pub(super) struct Answer {
    /// Its header.
    pub head: Box<ResponseHeader>,
    /// The part of its body that has been read.
    pub body: Vec<Bytes>,
    /// The trailers behind the body, if that was read to its end.
    pub trailers: Option<Box<HeaderMap>>,
    /// The unread rest, if the answer is longer than is held, or is passed on as it comes.
    pub rest: Option<Rest>,
    /// The memory that its body takes.
    pub held: Held,
}

/// The part of an answer that has not been read yet.
pub(in crate::http) struct Rest {
    /// Its source.
    pub session: Box<EndpointSession>,
    /// Whether the connection can be used again: the whole request was sent before its answer came.
    pub keep: bool,
    /// The client's pace, if the endpoint answered while the request is still being sent.
    pub unsent: Option<Pace>,
}

/// Whether an answer consists of events that come as they happen, for as long as they happen.
pub(super) fn is_event_stream(head: &ResponseHeader) -> bool {
    const STREAMS: [&str; 4] = [
        "text/event-stream",
        "application/x-ndjson",
        "application/jsonl",
        "application/stream+json",
    ];
    let kind = head.headers.get(http::header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next()).unwrap_or_default().trim();
    STREAMS.iter().any(|stream| kind.eq_ignore_ascii_case(stream))
}

impl Answer {
    /// Its status; of gRPC the one that stands for its code.
    pub(super) fn status(&self) -> u16 {
        let status = match self.code() {
            Some(code) => grpc::status_of(code),
            None => self.head.status,
        };
        status.as_u16()
    }

    /// Whether it refuses because of load, or because it is not ready yet or no longer.
    pub(super) fn is_busy(&self) -> bool {
        let says_when = self.head.headers.contains_key(http::header::RETRY_AFTER);
        says_when || self.reason().is_some_and(|reason| reason.retryable())
    }

    /// Whether it is a success.
    pub(super) fn is_success(&self) -> bool {
        self.head.status.is_success() && matches!(self.code(), None | Some(Code::Ok))
    }

    /// The reason that it states.
    pub(super) fn reason(&self) -> Option<Reason> {
        let value = self.last_headers().get(header::REASON)?;
        value.to_str().ok().and_then(Reason::from_code)
    }

    fn code(&self) -> Option<Code> {
        grpc::code(self.last_headers())
    }

    fn last_headers(&self) -> &HeaderMap {
        self.trailers.as_deref().unwrap_or(&self.head.headers)
    }
}

/// The trailers behind a body that was read to its end; only HTTP/2 has them here.
pub(super) async fn trailers(
    session: &mut EndpointSession,
) -> pingora::Result<Option<Box<HeaderMap>>> {
    match session {
        EndpointSession::H2(session) => Ok(session.read_trailers().await?.map(Box::new)),
        _ => Ok(None),
    }
}

/// Sends the request and reads the answer, up to the bound that is held. If the connection was a
/// kept one that closed before it answered, the endpoint gets the request once more on a new one:
/// it had done nothing wrong but to be idle for longer than it keeps connections. But a request that may
/// have an effect is repeated only if nothing of it was sent. The `socket` is noted while it is in use.
/// `unsolicited` is told if the endpoint had sent bytes on the connection before that. `held`: the answer's
/// memory.
pub(super) async fn exchange(
    (message, held): (&Message, Held),
    connector: &Connector,
    (endpoint, socket): (&Endpoint, &AtomicI32),
    unsolicited: impl Fn(),
) -> pingora::Result<Answer> {
    let state = &endpoint.state;
    let floods = state.floods();
    let (session, reused) = connector.get(endpoint, message.is_grpc).await?;
    let mut begun = begin(session, message, socket).await;
    if begun.as_ref().is_err_and(|error| *error.etype() == UNSOLICITED) {
        unsolicited();
    }
    if let Err(error) = &begun
        && reused
        // Connections that it floods are closed here.
        && state.floods() == floods
        && (is_unsent(error) || (message.is_repeatable && closed_while_idle(error)))
    {
        let session = connector.connect(endpoint, message.is_grpc).await?;
        begun = begin(session, message, socket).await;
    }
    let BegunExchange { mut session, head, keep } = begun?;
    state.heard();
    let (mut body, mut length) = (Vec::with_capacity(1), 0);
    let mut holds = message.holds(&head);
    loop {
        // A piece that is read without memory would have to wait for it in hand.
        holds &= held.has_room();
        if !holds && !session.response_done() {
            let rest = Some(Rest { session: Box::new(session), keep, unsent: None });
            return Ok(Answer { head, body, trailers: None, rest, held });
        }
        let Some(chunk) = session.read_response_body().await? else { break };
        state.heard();
        length += chunk.len();
        holds = held.grow(cost(chunk.len())).is_ok() && length <= message.most_held;
        body.push(chunk);
    }
    let trailers = trailers(&mut session).await?;
    socket.store(NO_SOCKET, Relaxed);
    if keep {
        connector.release(session, endpoint, message.is_grpc).await;
    }
    Ok(Answer { head, body, trailers, rest: None, held })
}

/// Whether it is certain that nothing of the request was sent.
fn is_unsent(error: &Error) -> bool {
    *error.etype() == UNSOLICITED || *error.etype() == CLOSED_BEFORE
}

/// Whether a kept connection that breaks so may have been closed by the endpoint before the request came.
pub(super) fn closed_while_idle(error: &Error) -> bool {
    use ErrorType::{ConnectionClosed, ReadError, WriteError};
    matches!(error.etype(), ConnectionClosed | ReadError | WriteError)
}

/// An exchange whose answer has begun.
struct BegunExchange {
    session: EndpointSession,
    head: Box<ResponseHeader>,
    /// Whether the connection can be used again: the whole request was sent before its answer came.
    keep: bool,
}

/// The socket of a connection.
pub(super) fn socket_of(session: &EndpointSession) -> RawFd {
    match session {
        EndpointSession::H2(session) => session.fd(),
        _ => session.as_http1().map_or(NO_SOCKET, UniqueID::id),
    }
}

async fn begin(
    mut session: EndpointSession,
    message: &Message,
    present: &AtomicI32,
) -> pingora::Result<BegunExchange> {
    let socket = session.as_http1().map(UniqueID::id);
    present.store(socket_of(&session), Relaxed);
    match socket.map_or(Before::Quiet, wire::look) {
        Before::Quiet => {}
        Before::Closed => {
            return Error::e_explain(CLOSED_BEFORE, "closed while idle");
        }
        Before::Unsolicited => {
            return Error::e_explain(UNSOLICITED, "an answer that belongs to no request");
        }
    }
    let Err(error) = send(&mut session, message).await else {
        // An endpoint that answers before it has the whole body may read the rest as another request.
        let early = !message.body.is_empty()
            && socket.is_some_and(|socket| wire::look(socket) == Before::Unsolicited);
        let head = final_header(&mut session).await?;
        return Ok(BegunExchange { session, head, keep: !early });
    };
    if !has_begun(&session) {
        return Err(error);
    }
    // It may have answered without reading all of the request.
    match timeout(MAX_EARLY_ANSWER_WAIT, final_header(&mut session)).await {
        Ok(Ok(head)) => Ok(BegunExchange { session, head, keep: false }),
        _ => Err(error),
    }
}

/// Whether the request's header was written. Before that there is no answer to wait for over HTTP/2, and Pingora
/// panics where one is read.
pub(super) fn has_begun(session: &EndpointSession) -> bool {
    session.as_http2().is_none_or(|session| session.request_header().is_some())
}

/// Sends a piece of a body. An empty one says nothing, and would end a body in chunks: Pingora reads one
/// where a chunk's header has come and its content has not.
pub(super) async fn send_piece(session: &mut EndpointSession, piece: Bytes) -> pingora::Result<()> {
    if piece.is_empty() { Ok(()) } else { session.write_request_body(piece, false).await }
}

async fn send(session: &mut EndpointSession, message: &Message) -> pingora::Result<()> {
    let mut head = Box::new(message.head.clone());
    // Now, not before a connection was there: waiting for one took of the time.
    if let Some(deadline) = message.deadline {
        stamp(&mut head, deadline, message.is_grpc)?;
    }
    session.write_request_header(head).await?;
    if !message.body.is_empty() {
        session.write_request_body(message.body.clone(), true).await?;
    }
    session.finish_request_body().await
}

/// The header of the answer itself, after any interim ones. May be dropped and called again.
pub(super) async fn final_header(
    session: &mut EndpointSession,
) -> pingora::Result<Box<ResponseHeader>> {
    let mut interim = 0;
    loop {
        session.read_response_header().await?;
        if let EndpointSession::H1(session) = session {
            wire::check_raw(&session.get_headers_raw_bytes())?;
        }
        match session.response_header() {
            Some(head) if head.status == StatusCode::SWITCHING_PROTOCOLS => {
                return wire::invalid("a switch of protocols that was not requested");
            }
            Some(head) if head.status.is_informational() => wire::count_interim(&mut interim)?,
            Some(head) => {
                wire::check(head)?;
                return Ok(Box::new(head.clone()));
            }
            None => return Error::e_explain(ErrorType::ReadError, "no response header"),
        }
    }
}

/// Pingora's name for a chunked body that breaks the rules; its constant is not public.
const INVALID_CHUNK: ErrorType = ErrorType::new("InvalidChunk");

/// The cause of a failed exchange with an endpoint, and the reason for the client.
pub(super) fn classify(error: &Error) -> (RetryOn, Reason) {
    use ErrorType::{
        BindError, ConnectError, ConnectNoRoute, ConnectRefused, ConnectTimedout,
        InvalidHTTPHeader, SocketError,
    };
    match error.etype() {
        ConnectError | ConnectRefused | ConnectTimedout | ConnectNoRoute | BindError
        | SocketError => (RetryOn::Connect, Reason::ConnectFailed),
        InvalidHTTPHeader => (RetryOn::Invalid, Reason::InvalidResponse),
        kind if *kind == UNSOLICITED || *kind == INVALID_CHUNK => {
            (RetryOn::Invalid, Reason::InvalidResponse)
        }
        _ => (RetryOn::Reset, Reason::EndpointReset),
    }
}

/// Words for the client: what happened, without addresses or causes from inside.
pub(super) fn message_of(reason: Reason) -> &'static str {
    match reason {
        Reason::ConnectFailed => "no connection to an endpoint",
        Reason::InvalidResponse => "the endpoint's answer is not HTTP",
        _ => "the connection to the endpoint broke before the answer was complete",
    }
}
