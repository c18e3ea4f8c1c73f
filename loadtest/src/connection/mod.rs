//! One connection to the target, and one request at a time on it.
//!
//! A client library's pool decides by itself when to open, reuse and retry; a load generator must
//! know. Here every connection belongs to one *slot* (HTTP/1.1) or to a few (HTTP/2), nothing is
//! retried that could have reached the other side, and every way to fail has its own name.

pub mod ask;
mod transport;

use crate::plan::target::Target;
use crate::report::outcome::Failure;
use crate::scenario::Protocol;

use bytes::{Bytes, BytesMut};
use forebay_synthetic::LocalTasks;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::TokioIo;
use std::cell::{Cell, RefCell};
use std::error::Error as _;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use transport::Transport;

/// A request as it is handed to the connection.
pub type Outgoing = Request<Full<Bytes>>;

/// An answer that arrived whole.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The answer's headers, and the trailers among them.
    pub headers: HeaderMap,
    /// Bytes of the body.
    pub length: u64,
    /// The body, if it was to be kept and is no longer than was allowed.
    pub body: Option<Bytes>,
}

/// A way to the target that opens its connection when it is first needed, and again when it broke.
#[derive(Debug)]
pub enum Connection {
    /// A connection of its own.
    Http1(Box<Http1>),
    /// A connection shared with other connections.
    Http2(Rc<Http2>),
}

/// An HTTP/1.1 connection, driven by the slot that waits for an answer on it: no task of its own, so no
/// switches between tasks within a request.
#[derive(Debug, Default)]
pub struct Http1 {
    sender: Option<http1::SendRequest<Full<Bytes>>>,
    connection: Option<Driver>,
}

type Driver = Pin<Box<http1::Connection<TokioIo<Transport>, Full<Bytes>>>>;

/// An HTTP/2 connection, driven by a task.
#[derive(Debug, Default)]
pub struct Http2 {
    sender: RefCell<Option<http2::SendRequest<Full<Bytes>>>>,
    /// One connects, the others wait.
    connecting: Mutex<()>,
}

/// The point that a request without an answer had reached.
enum Lost {
    /// The connection was gone before a byte was written: it may be sent again.
    Unsent(Box<Outgoing>),
    /// It may have arrived.
    Sent(Failure),
}

impl Connection {
    /// A connection with a connection of its own.
    pub fn http1() -> Self {
        Self::Http1(Box::default())
    }

    /// Opens the connection if there is none.
    ///
    /// # Errors
    /// One of the connect failures.
    pub async fn connect(&mut self, target: &Target, opened: &Cell<u64>) -> Result<(), Failure> {
        match self {
            Self::Http1(connection) => connection.connect(target, opened).await,
            Self::Http2(connection) => connection.connect(target, opened).await,
        }
    }

    /// Sends a request and reads the answer to its end.
    ///
    /// A request whose connection turns out to have been closed before it was written goes over a
    /// new one, once. `keep` is the longest body that is returned with the answer; longer ones are
    /// counted and dropped.
    ///
    /// # Errors
    /// The first thing that went wrong. The next request opens a new connection where needed.
    pub async fn exchange(
        &mut self,
        target: &Target,
        opened: &Cell<u64>,
        request: Outgoing,
        keep: usize,
    ) -> Result<Answer, Failure> {
        let request = match self.attempt(request, keep).await {
            Ok(answer) => return Ok(answer),
            Err(Lost::Sent(failure)) => return Err(failure),
            Err(Lost::Unsent(request)) => request,
        };
        self.reset();
        self.connect(target, opened).await?;
        match self.attempt(*request, keep).await {
            Ok(answer) => Ok(answer),
            Err(Lost::Sent(failure)) => Err(failure),
            Err(Lost::Unsent(_)) => Err(Failure::Closed),
        }
    }

    /// Waits for `event` and meanwhile notices when the other side closes the idle connection.
    pub async fn idle<T>(&mut self, event: impl Future<Output = T>) -> T {
        match self {
            Self::Http1(connection) => connection.idle(event).await,
            Self::Http2(_) => event.await,
        }
    }

    /// Forgets the connection, which may be in the middle of an answer. A shared one stays: HTTP/2
    /// can give up a single stream.
    pub fn reset(&mut self) {
        if let Self::Http1(connection) = self {
            **connection = Http1::default();
        }
    }

    async fn attempt(&mut self, request: Outgoing, keep: usize) -> Result<Answer, Lost> {
        match self {
            Self::Http1(connection) => connection.attempt(request, keep).await,
            Self::Http2(connection) => connection.attempt(request, keep).await,
        }
    }
}

impl Http1 {
    async fn connect(&mut self, target: &Target, opened: &Cell<u64>) -> Result<(), Failure> {
        if let (Some(sender), Some(_)) = (&mut self.sender, &self.connection) {
            // An answer that said `connection: close` is followed by the end of the connection.
            let ready = poll_fn(|cx| sender.poll_ready(cx));
            if matches!(drive(&mut self.connection, ready).await, Some(Ok(()))) {
                return Ok(());
            }
        }
        *self = Self::default();
        let io = TokioIo::new(dial(target).await.map_err(|undialled| undialled.failure)?);
        let (sender, connection) =
            http1::handshake(io).await.map_err(|_| Failure::ConnectFailed)?;
        opened.set(opened.get() + 1);
        self.sender = Some(sender);
        self.connection = Some(Box::pin(connection));
        Ok(())
    }

    async fn attempt(&mut self, request: Outgoing, keep: usize) -> Result<Answer, Lost> {
        let Some(sender) = &mut self.sender else {
            return Err(Lost::Unsent(Box::new(request)));
        };
        let sent = sender.try_send_request(request);
        let (head, mut body) = match drive(&mut self.connection, sent).await {
            Some(Ok(response)) => response.into_parts(),
            Some(Err(error)) => return Err(lost(error)),
            None => return Err(Lost::Sent(Failure::Closed)),
        };
        let mut kept = Kept::new(keep);
        loop {
            match drive(&mut self.connection, body.frame()).await {
                Some(Some(Ok(frame))) => kept.take(frame),
                Some(Some(Err(error))) => return Err(Lost::Sent(body_failure(&error))),
                Some(None) => return Ok(kept.answer(&head.status, head.headers)),
                None => return Err(Lost::Sent(Failure::Truncated)),
            }
        }
    }

    async fn idle<T>(&mut self, event: impl Future<Output = T>) -> T {
        let mut event = pin!(event);
        poll_fn(|cx| {
            if let Some(connection) = &mut self.connection
                && connection.as_mut().poll(cx).is_ready()
            {
                self.connection = None;
            }
            event.as_mut().poll(cx)
        })
        .await
    }
}

impl Http2 {
    async fn connect(&self, target: &Target, opened: &Cell<u64>) -> Result<(), Failure> {
        if self.is_open() {
            return Ok(());
        }
        let _one_connects = self.connecting.lock().await;
        if self.is_open() {
            return Ok(());
        }
        let io = TokioIo::new(dial(target).await.map_err(|undialled| undialled.failure)?);
        let (sender, connection) =
            http2::handshake(LocalTasks, io).await.map_err(|_| Failure::ConnectFailed)?;
        tokio::task::spawn_local(connection);
        opened.set(opened.get() + 1);
        self.sender.replace(Some(sender));
        Ok(())
    }

    fn is_open(&self) -> bool {
        self.sender.borrow().as_ref().is_some_and(|sender| !sender.is_closed())
    }

    async fn attempt(&self, request: Outgoing, keep: usize) -> Result<Answer, Lost> {
        let Some(mut sender) = self.sender.borrow().clone() else {
            return Err(Lost::Unsent(Box::new(request)));
        };
        let (head, mut body) = sender.try_send_request(request).await.map_err(lost)?.into_parts();
        let mut kept = Kept::new(keep);
        while let Some(frame) = body.frame().await {
            kept.take(frame.map_err(|error| Lost::Sent(body_failure(&error)))?);
        }
        Ok(kept.answer(&head.status, head.headers))
    }
}

/// New connections, one for each slot.
#[derive(Debug)]
pub struct Connections {
    shared: Vec<Rc<Http2>>,
    next: usize,
}

impl Connections {
    /// Connections of `protocol`; with HTTP/2 they share `connections` (at least one).
    pub fn new(protocol: Protocol, connections: usize) -> Self {
        let shared = match protocol {
            Protocol::Http1 => Vec::new(),
            Protocol::Http2 | Protocol::Grpc => {
                (0..connections.max(1)).map(|_| Rc::default()).collect()
            }
        };
        Self { shared, next: 0 }
    }

    /// One more; with HTTP/2 on the connections in turn.
    pub fn make(&mut self) -> Connection {
        if self.shared.is_empty() {
            return Connection::http1();
        }
        let connection = Connection::Http2(Rc::clone(&self.shared[self.next % self.shared.len()]));
        self.next += 1;
        connection
    }
}

/// A body on its way in: counted, and kept as far as it is wanted.
struct Kept {
    room: usize,
    length: u64,
    /// The usual case, a body that comes in one piece, is not copied.
    first: Bytes,
    rest: BytesMut,
    /// Trailers behind the body: with gRPC, how the call ended.
    trailers: Option<HeaderMap>,
}

impl Kept {
    fn new(room: usize) -> Self {
        Self { room, length: 0, first: Bytes::new(), rest: BytesMut::new(), trailers: None }
    }

    fn take(&mut self, frame: hyper::body::Frame<Bytes>) {
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(other) => {
                self.trailers = other.into_trailers().ok();
                return;
            }
        };
        self.length += data.len() as u64;
        if self.length > self.room as u64 {
            self.first = Bytes::new();
            self.rest = BytesMut::new();
        } else if self.first.is_empty() {
            self.first = data;
        } else {
            if self.rest.is_empty() {
                self.rest.extend_from_slice(&self.first);
            }
            self.rest.extend_from_slice(&data);
        }
    }

    fn answer(self, status: &http::StatusCode, mut headers: HeaderMap) -> Answer {
        headers.extend(self.trailers.into_iter().flatten());
        let body = (self.length <= self.room as u64)
            .then(|| if self.rest.is_empty() { self.first } else { self.rest.freeze() });
        Answer { status: status.as_u16(), headers, length: self.length, body }
    }
}

/// Why there is no connection: the class, and the words.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub(crate) struct Undialled {
    failure: Failure,
    error: io::Error,
}

/// Opens a connection, TLS included.
pub(crate) async fn dial(target: &Target) -> Result<Transport, Undialled> {
    let stream = TcpStream::connect(target.address).await.map_err(|error| Undialled {
        failure: match error.kind() {
            io::ErrorKind::ConnectionRefused => Failure::ConnectRefused,
            io::ErrorKind::TimedOut => Failure::ConnectTimeout,
            _ => Failure::ConnectFailed,
        },
        error,
    })?;
    // Without it a request of two segments may wait 40 ms for an acknowledgement.
    let fail = |error| Undialled { failure: Failure::ConnectFailed, error };
    stream.set_nodelay(true).map_err(fail)?;
    let Some(tls) = &target.tls else { return Ok(Transport::Plain(stream)) };
    let fail = |error| Undialled { failure: Failure::TlsFailed, error };
    Ok(Transport::Tls(Box::new(tls.handshake(stream).await.map_err(fail)?)))
}

/// Polls `event` and the connection that it depends on together. `None`: the connection ended and
/// the event will never come.
async fn drive<T>(connection: &mut Option<Driver>, event: impl Future<Output = T>) -> Option<T> {
    let mut event = pin!(event);
    poll_fn(|cx| {
        if let Poll::Ready(value) = event.as_mut().poll(cx) {
            return Poll::Ready(Some(value));
        }
        let Some(driver) = connection else { return Poll::Ready(None) };
        let ended = driver.as_mut().poll(cx).is_ready();
        if ended {
            *connection = None;
        }
        match event.as_mut().poll(cx) {
            Poll::Ready(value) => Poll::Ready(Some(value)),
            Poll::Pending if ended => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

fn lost(mut error: TrySendError<Outgoing>) -> Lost {
    match error.take_message() {
        Some(request) => Lost::Unsent(Box::new(request)),
        None => Lost::Sent(match error.error() {
            error if error.is_parse() => Failure::NotHttp,
            _ => Failure::Closed,
        }),
    }
}

fn body_failure(error: &hyper::Error) -> Failure {
    let io = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    match io.map(io::Error::kind) {
        Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) => Failure::NotHttp,
        _ if error.is_parse() => Failure::NotHttp,
        _ => Failure::Truncated,
    }
}
