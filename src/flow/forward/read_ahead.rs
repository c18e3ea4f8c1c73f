//! Reading an answer ahead of its client, so that the endpoint does not wait for the client.

use super::exchange::{
    self, HELD_ANSWER, Rest, is_event_stream, message_of, send_piece, socket_of, trouble_of,
};
use super::{count_attempt, grpc, take_in_report};
use crate::body_memory::Held;
use crate::error::Refusal;
use crate::flow::balance::Picked;
use crate::flow::route::Target;
use crate::pool::Endpoint;
use crate::pool::liveness::unreachable;
use crate::request::Request;
use bytes::Bytes;
use forebay_protocol::Reason;
use forebay_protocol::grpc::Code;
use forebay_routing::Outcome;
use http::HeaderMap;
use pingora::connectors::http::Connector;
use pingora::http::ResponseHeader;
use pingora::protocols::http::client::HttpSession as EndpointSession;
use pingora::{Error, ErrorType};
use std::future::pending;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{Receiver, UnboundedSender};
use tokio::time::timeout_at;

/// Longest that an answer without a deadline may take: far beyond any.
const FOR_EVER: Duration = Duration::from_secs(24 * 3600);

/// What is passed from the reader of an answer to its writer.
pub(super) enum Item {
    /// A piece of the body, and how much of the room it takes.
    Chunk(Bytes, usize),
    /// The answer is complete.
    End(Option<HeaderMap>),
    /// It will not be.
    Failed(Refusal),
}

impl Item {
    /// A piece that was there before it was asked whether there is room.
    pub(super) fn chunk(bytes: Bytes, room: &Semaphore) -> Self {
        let takes = bytes.len().min(room.available_permits());
        room.forget_permits(takes);
        Self::Chunk(bytes, takes)
    }
}

/// Until when the endpoint may take.
pub(super) struct Bounds {
    /// In all.
    total: Option<Instant>,
    /// For each piece.
    each: Option<Duration>,
}

impl Bounds {
    pub(super) fn new(request: &Request, target: &Target, head: &ResponseHeader) -> Self {
        if is_event_stream(head) {
            let total = request.identity.deadline.map(|asked| request.arrived + asked);
            return Self { total, each: Some(target.route.deadline) };
        }
        Self { total: request.deadline, each: None }
    }

    fn next(&self) -> Instant {
        let now = Instant::now();
        let each = self.each.map(|each| now + each);
        self.total.into_iter().chain(each).min().unwrap_or(now + FOR_EVER)
    }

    /// The endpoint had to wait for so long: that is not its time.
    fn waited(&mut self, time: Duration) {
        self.total = self.total.map(|total| total + time);
    }
}

/// Reads the rest of an answer ahead of the client.
pub(super) struct Reader<'a> {
    pub(super) target: &'a Target,
    pub(super) endpoint: &'a Endpoint,
    pub(super) connector: &'a Connector,
    pub(super) is_grpc: bool,
    /// Whether the answer is what was asked for, as far as its header says.
    pub(super) succeeds: bool,
    pub(super) picked: &'a mut Picked,
    pub(super) bounds: Bounds,
    /// The rest of the request, if the endpoint answered before all of it was sent.
    pub(super) uploads: Option<Receiver<Bytes>>,
}

impl Reader<'_> {
    /// Reads to the end, and gives the endpoint's slot back there.
    pub(super) async fn read(
        &mut self,
        rest: Rest,
        queue: UnboundedSender<Item>,
        room: &Semaphore,
        held: &Held,
    ) {
        let Rest { mut session, keep, .. } = rest;
        let last = match self.body(&mut session, &queue, room, held).await {
            Ok(trailers) => {
                self.ended(session, keep, trailers.as_ref()).await;
                Item::End(trailers)
            }
            Err(refusal) => Item::Failed(refusal),
        };
        // Nobody is there to take it if the client is gone.
        let _ = queue.send(last);
    }

    async fn body(
        &mut self,
        session: &mut EndpointSession,
        queue: &UnboundedSender<Item>,
        room: &Semaphore,
        held: &Held,
    ) -> Result<Option<HeaderMap>, Refusal> {
        let socket = socket_of(session);
        loop {
            let until = self.bounds.next();
            let read = tokio::select! {
                read = timeout_at(until.into(), session.read_response_body()) => read,
                () = unreachable(&self.endpoint.state, socket) => {
                    let words = "the endpoint acknowledges nothing";
                    Ok(Error::e_explain(ErrorType::ConnectionClosed, words))
                }
                piece = next_of(&mut self.uploads) => {
                    let written = timeout_at(until.into(), send_on(session, piece)).await;
                    if !matches!(written, Ok(Ok(true))) {
                        // It is complete, or not wanted: then the answer says why.
                        self.uploads = None;
                    }
                    continue;
                }
            };
            let Some(chunk) = self.in_time(read)? else { break };
            self.endpoint.state.heard();
            // Without memory for it, it has to wait until everything before it is written.
            let has_memory = held.grow(chunk.len()).is_ok();
            let takes = if has_memory { chunk.len().min(HELD_ANSWER) } else { HELD_ANSWER };
            let takes_permits = u32::try_from(takes).unwrap_or(u32::MAX);
            let permits = match room.try_acquire_many(takes_permits) {
                Ok(permits) => permits,
                Err(_) => {
                    let since = Instant::now();
                    // How fast a client reads says nothing of the endpoint.
                    self.succeeds = false;
                    let Ok(permits) = room.acquire_many(takes_permits).await else { break };
                    self.bounds.waited(since.elapsed());
                    permits
                }
            };
            permits.forget();
            let _ = queue.send(Item::Chunk(chunk, takes));
            if session.response_done() && !self.is_grpc {
                return Ok(None);
            }
        }
        let last = timeout_at(self.bounds.next().into(), exchange::trailers(session)).await;
        Ok(self.in_time(last)?.map(|last| *last))
    }

    fn in_time<T>(
        &mut self,
        read: Result<pingora::Result<T>, tokio::time::error::Elapsed>,
    ) -> Result<T, Refusal> {
        let state = &self.endpoint.state;
        let refusal = match read {
            Ok(Ok(read)) => return Ok(read),
            Ok(Err(error)) => {
                tracing::debug!(endpoint = &*state.name, %error, "an answer broke off");
                self.picked.failed();
                state.note(Outcome::Failed);
                let reason = trouble_of(&error).1;
                Refusal::new(reason, message_of(reason))
            }
            Err(_) => {
                self.picked.late();
                let message = "the answer was not complete before the deadline";
                Refusal::new(Reason::DeadlineExceeded, message)
            }
        };
        count_attempt(self.target, state, refusal.reason.code());
        Err(refusal)
    }

    /// The endpoint has done its work.
    async fn ended(&mut self, session: Box<EndpointSession>, keep: bool, last: Option<&HeaderMap>) {
        let code = last.and_then(grpc::code);
        if let Some(last) = last {
            take_in_report(last, self.target, &self.endpoint.state, true);
        }
        self.picked.answered(self.succeeds && matches!(code, None | Some(Code::Ok)));
        if keep {
            let peer = self.endpoint.peer(self.is_grpc);
            let idle = peer.options.idle_timeout;
            self.connector.release_http_session(*session, peer, idle).await;
        }
    }
}

/// The next piece of the request; never, if all of it was sent.
async fn next_of(uploads: &mut Option<Receiver<Bytes>>) -> Option<Bytes> {
    match uploads {
        Some(uploads) => uploads.recv().await,
        None => pending().await,
    }
}

/// Sends a piece of the request, or its end; whether more is to come.
async fn send_on(session: &mut EndpointSession, piece: Option<Bytes>) -> pingora::Result<bool> {
    match piece {
        Some(piece) => send_piece(session, piece).await.map(|()| true),
        None => session.finish_request_body().await.map(|()| false),
    }
}
