//! Reading an answer ahead of its client, so that the endpoint does not wait for the client.

use super::exchange::{self, Rest, classify, is_event_stream, message_of, send_piece, socket_of};
use super::hurry::Hurry;
use super::{count_attempt, grpc, take_in_report};
use crate::body_memory::{Held, cost};
use crate::config::Limits;
use crate::http::request::Request;
use crate::http::variant::Target;
use crate::pool::Endpoint;
use crate::pool::attempt::EndpointAttempt;
use crate::pool::connector::Connector;
use crate::pool::liveness::unreachable;
use crate::refusal::Refusal;
use bytes::Bytes;
use forebay_protocol::grpc::Code;
use forebay_protocol::{Reason, metric};
use forebay_routing::{Blame, Outcome};
use http::HeaderMap;
use pingora::http::ResponseHeader;
use pingora::protocols::http::client::HttpSession as EndpointSession;
use pingora::{Error, ErrorType};
use std::future::pending;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{Receiver, UnboundedSender};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{timeout, timeout_at};

/// Longest that an answer without a deadline may take: far beyond any.
const FOR_EVER: Duration = Duration::from_secs(24 * 3600);

/// Unread bytes of an answer that is too long to be read to its end ahead of its client. Its endpoint
/// waits for the client however much is read, so more would take memory and gain nothing.
const WINDOW: usize = 64 * 1024;

/// Bytes of an answer that may be unread: read from its endpoint and not yet written to its client.
pub(in crate::http) struct Room {
    permits: Semaphore,
    /// Bytes for which there are permits, taken or not, in the beginning.
    size: usize,
    /// Bytes that the client has taken.
    given: AtomicUsize,
}

impl Room {
    /// For an answer with this header. One that states no length gets room for a whole one: most turn
    /// out to be short, and those that do not get less when that is known ([`Reader::narrow`]).
    pub(in crate::http) fn new(head: &ResponseHeader, limits: &Limits) -> Self {
        let most = usize::try_from(limits.read_ahead).unwrap_or(usize::MAX);
        let size = match stated_length(head) {
            Some(length) if length > limits.read_ahead => WINDOW,
            _ => most.clamp(WINDOW, Semaphore::MAX_PERMITS),
        };
        Self { permits: Semaphore::new(size), size, given: AtomicUsize::new(0) }
    }

    /// Bytes that may be unread in the beginning.
    pub(in crate::http) fn size(&self) -> usize {
        self.size
    }

    /// A piece that was there before it was asked whether there is room.
    pub(in crate::http) fn chunk(&self, bytes: Bytes) -> Item {
        let takes = cost(bytes.len()).min(self.permits.available_permits());
        self.permits.forget_permits(takes);
        Item::Chunk(bytes, takes)
    }

    /// Frees the room of a piece.
    pub(in crate::http) fn give_back(&self, takes: usize) {
        self.given.fetch_add(takes, Relaxed);
        self.permits.add_permits(takes);
    }

    /// Takes room, if there is so much at once.
    fn try_take(&self, takes: usize) -> bool {
        let permits = self.permits.try_acquire_many(u32::try_from(takes).unwrap_or(u32::MAX));
        permits.map(SemaphorePermit::forget).is_ok()
    }

    /// Takes room as soon as there is so much; `false`: there will be none.
    async fn take(&self, takes: usize) -> bool {
        let permits = self.permits.acquire_many(u32::try_from(takes).unwrap_or(u32::MAX)).await;
        permits.map(SemaphorePermit::forget).is_ok()
    }
}

/// The length of an answer's body that its header states, in bytes.
fn stated_length(head: &ResponseHeader) -> Option<u64> {
    head.headers.get(http::header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// An item on its way from the reader of an answer to its writer.
pub(in crate::http) enum Item {
    /// A piece of the body, and how much of the room it takes.
    Chunk(Bytes, usize),
    /// The answer is complete.
    End(Option<HeaderMap>),
    /// It will not be.
    Failed(Refusal),
}

/// Until when the endpoint may take.
pub(in crate::http) struct Bounds {
    /// In all.
    total: Option<Instant>,
    /// For each piece.
    each: Option<Duration>,
}

impl Bounds {
    pub(in crate::http) fn new(request: &Request, target: &Target, head: &ResponseHeader) -> Self {
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
pub(in crate::http) struct Reader<'a> {
    pub(in crate::http) target: &'a Target,
    pub(in crate::http) endpoint: &'a Endpoint,
    pub(in crate::http) connector: &'a Connector,
    pub(in crate::http) is_grpc: bool,
    /// Whether the answer is what was asked for, as far as its header says.
    pub(in crate::http) succeeds: bool,
    pub(in crate::http) picked: &'a mut EndpointAttempt,
    pub(in crate::http) bounds: Bounds,
    /// The rest of the request, if the endpoint answered before all of it was sent.
    pub(in crate::http) uploads: Option<Receiver<Bytes>>,
    /// The room for bytes that the client has not taken yet.
    pub(in crate::http) room: &'a Room,
    /// Bytes of that room that this answer may still fill.
    pub(in crate::http) size: usize,
    /// Time that it may wait for memory that its client does not free.
    pub(in crate::http) stall_timeout: Duration,
    /// The same, where it is in the way of others.
    pub(in crate::http) hurry: Hurry,
    /// Bytes of the answer that were read so far.
    pub(in crate::http) length: usize,
}

impl Reader<'_> {
    /// Reads to the end, and gives the endpoint's slot back there.
    pub(in crate::http) async fn read(
        &mut self,
        rest: Rest,
        queue: UnboundedSender<Item>,
        held: &Held,
    ) {
        let Rest { mut session, keep, .. } = rest;
        let last = match self.body(&mut session, &queue, held).await {
            Ok(trailers) => {
                self.ended(session, keep, trailers.as_ref()).await;
                Item::End(trailers)
            }
            Err(refusal) => {
                // Its client may take its time to notice.
                self.picked.abandoned();
                Item::Failed(refusal)
            }
        };
        // Fails if the client is gone.
        let _ = queue.send(last);
    }

    async fn body(
        &mut self,
        session: &mut EndpointSession,
        queue: &UnboundedSender<Item>,
        held: &Held,
    ) -> Result<Option<HeaderMap>, Refusal> {
        let socket = socket_of(session);
        loop {
            if self.size <= WINDOW {
                self.wait_for_room().await;
            }
            self.wait_for_memory(held).await?;
            let until = self.bounds.next();
            let read = tokio::select! {
                read = timeout_at(until.into(), session.read_response_body()) => read,
                () = unreachable(&self.endpoint.state, socket) => {
                    let words = "the endpoint acknowledges no data";
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
            self.length += chunk.len();
            let Some(takes) = self.place(chunk.len(), held).await? else { break };
            let _ = queue.send(Item::Chunk(chunk, takes));
            if session.response_done() && !self.is_grpc {
                return Ok(None);
            }
        }
        let last = timeout_at(self.bounds.next().into(), exchange::trailers(session)).await;
        Ok(self.in_time(last)?.map(|last| *last))
    }

    /// Waits until there is any room: a piece that was read and waits for some takes memory as well.
    async fn wait_for_room(&mut self) {
        if self.room.try_take(1) {
            return self.room.give_back(1);
        }
        let since = Instant::now();
        // How fast a client reads says nothing of the endpoint.
        self.succeeds = false;
        if self.room.take(1).await {
            self.room.give_back(1);
        }
        self.bounds.waited(since.elapsed());
    }

    /// Waits until a piece may find memory. One that was read without would wait in hand, and there may be many
    /// streams.
    async fn wait_for_memory(&mut self, held: &Held) -> Result<(), Refusal> {
        if held.has_room() {
            return Ok(());
        }
        let since = Instant::now();
        // How fast a client reads says nothing of the endpoint.
        self.succeeds = false;
        tokio::select! {
            biased;
            found = timeout(self.stall_timeout, held.room()) => found.map_err(|_| too_slow_reader())?,
            () = self.is_in_the_way() => return Err(too_slow_reader()),
        }
        self.bounds.waited(since.elapsed());
        Ok(())
    }

    /// Until this answer has waited for memory for so long that it is in the way of others. Memory is short because
    /// clients do not read, and this is one of them.
    async fn is_in_the_way(&mut self) {
        let given = || self.room.given.load(Relaxed);
        self.hurry.is_spent(given, (&self.target.pool, self.endpoint)).await;
    }

    /// Waits until there is room for a piece of this many bytes, and takes it: how much. `None`: the writer
    /// is gone.
    async fn place(&mut self, bytes: usize, held: &Held) -> Result<Option<usize>, Refusal> {
        let cost = cost(bytes);
        // Without memory for it, it has to wait until everything before it is written.
        let has_memory = held.grow(cost).is_ok();
        let takes = if has_memory { cost.min(self.size) } else { self.size };
        let turns_out_long = self.size > WINDOW && self.length > self.room.size;
        if !turns_out_long && self.room.try_take(takes) {
            return Ok(Some(takes));
        }
        let since = Instant::now();
        // How fast a client reads says nothing of the endpoint.
        self.succeeds = false;
        let (too_much, takes) = if turns_out_long { self.narrow(takes) } else { (0, takes) };
        let room = self.room;
        let taken = tokio::select! {
            biased;
            taken = async { room.take(too_much).await && room.take(takes).await } => taken,
            () = self.is_in_the_way(), if !has_memory => return Err(too_slow_reader()),
        };
        self.bounds.waited(since.elapsed());
        Ok(taken.then_some(takes))
    }

    /// The answer is longer than what is read ahead whole: from now on a window is enough. Returns the room that is
    /// too much, and of a piece that would have taken so much how much it takes.
    fn narrow(&mut self, takes: usize) -> (usize, usize) {
        let too_much = self.size - WINDOW;
        self.size = WINDOW;
        (too_much, takes.min(WINDOW))
    }

    fn in_time<T>(
        &mut self,
        read: Result<pingora::Result<T>, tokio::time::error::Elapsed>,
    ) -> Result<T, Refusal> {
        let state = &self.endpoint.state;
        let refusal = match read {
            Ok(Ok(read)) => return Ok(read),
            Ok(Err(error)) => {
                tracing::debug!(endpoint = &*state.name, %error, "answer ended early");
                self.picked.settle(Blame::Failed);
                state.note(Outcome::Failed);
                let reason = classify(&error).1;
                Refusal::new(reason, message_of(reason))
            }
            Err(_) => {
                self.picked.settle(Blame::Late { cut_short: false });
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
            self.connector.release(*session, self.endpoint, self.is_grpc).await;
        }
    }
}

/// The refusal of a client that does not read, which can only be counted and logged.
pub(in crate::http) fn too_slow_reader() -> Refusal {
    metric::proxy::SLOW_CLIENTS.with(["answer"]).increment(1);
    let message = "the client did not read its answer, or too slowly";
    Refusal::new(Reason::ClientTooSlow, message)
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
