//! The state that one connection is waiting in.

use futures_util::FutureExt;
use http::Version;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::Notify;

/// Bytes of answers that a client may leave unread before no further request of its connection is
/// begun.
const MAX_UNREAD: usize = 4 << 20;

/// Why the worker closes a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// No request, or not the whole header of one, came in time.
    Header,
    /// An answer was not read in time.
    SlowReader,
    /// It was idle for as long as it may be.
    Idle,
    /// The client has left.
    Left,
    /// Others need its place.
    Room,
}

impl Why {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Header => "header_timeout",
            Self::SlowReader => "slow_reader",
            Self::Idle => "idle",
            Self::Left => "client_left",
            Self::Room => "room",
        }
    }
}

/// Limits on a client's time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timeouts {
    /// For a request's header, from its first byte or from the beginning of the connection.
    pub(crate) header: Duration,
    /// Between two requests.
    pub(crate) idle: Duration,
    /// To read a piece of an answer.
    pub(crate) read: Duration,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Record {
    pub(super) peer: IpAddr,
    stream: Arc<TcpStream>,
    state: Mutex<State>,
    /// Rings when the connection is to be closed.
    closed: Notify,
    /// Rings when an answer was read.
    read: Notify,
}

#[derive(Debug)]
struct State {
    /// The version of the first request, once there was one.
    version: Option<Version>,
    /// Requests that have begun, and whose answers are not read yet.
    requests: usize,
    /// End of the last request, or the beginning of the connection.
    idle_since: Instant,
    /// Arrival of the first byte of an incomplete header.
    header_since: Option<Instant>,
    /// Since when nothing can be written.
    blocked_since: Option<Instant>,
    /// Answers of which the client has still to read a piece, and since when.
    unread: BTreeMap<u64, Instant>,
    unread_bytes: usize,
    next: u64,
    close: Option<Why>,
}

impl Record {
    pub(super) fn new(stream: &Arc<TcpStream>, peer: IpAddr, now: Instant) -> Self {
        let state = State {
            version: None,
            requests: 0,
            idle_since: now,
            header_since: None,
            blocked_since: None,
            unread: BTreeMap::new(),
            unread_bytes: 0,
            next: 0,
            close: None,
        };
        Self {
            peer,
            stream: Arc::clone(stream),
            state: Mutex::new(state),
            closed: Notify::new(),
            read: Notify::new(),
        }
    }

    /// The client as a number, equal for connections of one address.
    pub(crate) fn client(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.peer.hash(&mut hasher);
        hasher.finish()
    }

    /// A request has come.
    pub(crate) fn begin(self: &Arc<Self>, version: Version) -> InFlight {
        let mut state = self.lock();
        state.version.get_or_insert(version);
        (state.requests, state.header_since) = (state.requests + 1, None);
        drop(state);
        InFlight(Arc::clone(self))
    }

    /// Waits until the client has read enough of its earlier answers that more may be made for it.
    pub(crate) async fn until_read(&self) {
        loop {
            let read = self.read.notified();
            tokio::pin!(read);
            // Before the look, or what happens in between would not ring.
            read.as_mut().enable();
            if self.lock().unread_bytes <= MAX_UNREAD {
                return;
            }
            read.await;
        }
    }

    /// Whether an answer of `bytes` more may be held for this client, which may hold `most` in all.
    pub(crate) fn may_hold(&self, bytes: usize, most: usize) -> bool {
        let unread = self.lock().unread_bytes;
        unread == 0 || unread.saturating_add(bytes) <= most
    }

    /// Waits until the connection is to be closed.
    pub(crate) async fn closed(&self) -> Why {
        loop {
            self.closed.notified().await;
            if let Some(why) = self.lock().close {
                return why;
            }
        }
    }

    /// Closes the connection. `false`: it is being closed already.
    pub(super) fn close(&self, why: Why) -> bool {
        let is_first = self.lock().close.replace(why).is_none();
        self.closed.notify_one();
        is_first
    }

    /// For how long nothing was asked on it; `None` if something is, or it is being closed.
    pub(super) fn idle_for(&self, now: Instant) -> Option<Duration> {
        let state = self.lock();
        let is_idle = state.requests == 0 && state.close.is_none();
        is_idle.then(|| now.saturating_duration_since(state.idle_since))
    }

    /// Why the connection is to be closed now, if it is.
    pub(super) fn overdue(&self, now: Instant, timeouts: &Timeouts) -> Option<Why> {
        let state = self.lock();
        let is_over =
            |since: Instant, limit: Duration| now.saturating_duration_since(since) > limit;
        let idle = is_over(state.idle_since, timeouts.idle);
        let unread = state.unread.values().chain(&state.blocked_since).copied();
        if state.version.is_none() && is_over(state.idle_since, timeouts.header)
            || state.header_since.is_some_and(|since| is_over(since, timeouts.header))
        {
            Some(Why::Header)
        } else if unread.into_iter().any(|since| is_over(since, timeouts.read)) {
            Some(Why::SlowReader)
        } else if state.requests == 0 && idle {
            Some(Why::Idle)
        } else if state.requests > 0 && state.is_http1() && self.has_left() {
            Some(Why::Left)
        } else {
            None
        }
    }

    /// Whether the client has closed its side. The socket is checked without reading: bytes that the client
    /// sent before it left may be unread, such as a second request, and then the HTTP library looks no
    /// further.
    /// unread, such as a second request, and then the HTTP library looks no further.
    fn has_left(&self) -> bool {
        let ready = self.stream.ready(Interest::READABLE).now_or_never();
        matches!(ready, Some(Ok(ready)) if ready.is_read_closed())
    }

    /// Bytes came.
    pub(super) fn received(&self, now: Instant) {
        let mut state = self.lock();
        // Over HTTP/2 other frames than headers come at any time.
        if state.requests == 0 && state.is_http1() {
            state.header_since.get_or_insert(now);
        }
    }

    /// Bytes were written, or could not be.
    pub(super) fn wrote(&self, could: bool, now: Instant) {
        let mut state = self.lock();
        if could {
            state.blocked_since = None;
        } else {
            state.blocked_since.get_or_insert(now);
        }
    }

    /// An answer of so many bytes, if that is known, waits for its client.
    pub(super) fn answer(&self, bytes: usize, now: Instant) -> u64 {
        let mut state = self.lock();
        let number = state.next;
        (state.next, state.unread_bytes) = (number + 1, state.unread_bytes + bytes);
        state.unread.insert(number, now);
        number
    }

    /// The client took a piece of the answer. `waits`: there is another for it to take.
    pub(super) fn took(&self, number: u64, bytes: usize, waits: Option<Instant>) {
        let mut state = self.lock();
        state.unread_bytes = state.unread_bytes.saturating_sub(bytes);
        match waits {
            Some(since) => drop(state.unread.insert(number, since)),
            None => drop(state.unread.remove(&number)),
        }
        drop(state);
        self.read.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing is left half done under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_http1(&self) -> bool {
        self.version.is_some_and(|version| version <= Version::HTTP_11)
    }
}

/// A request that has begun, until its answer was read or its client has left.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<Record>);

impl InFlight {
    pub(crate) fn record(&self) -> &Arc<Record> {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.requests = state.requests.saturating_sub(1);
        if state.requests == 0 {
            state.idle_since = Instant::now();
        }
    }
}
