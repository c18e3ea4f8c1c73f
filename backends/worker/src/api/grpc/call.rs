//! Incoming calls: their terms and their messages.

use super::answer::frame;
use crate::api::body::{self, Encoding, ReadTimeout};
use crate::api::compress;
use crate::api::terms;
use crate::inference::Terms;
use crate::inference::blocking::{INLINE, bounded, off_io};
use crate::lifecycle::Phase;
use crate::memory::OfConnection;
use crate::memory::Share;
use crate::refusal::Refusal;
use crate::state::App;
use axum::body::Body;
use axum::extract::Request;
use bytes::{Bytes, BytesMut};
use forebay_protocol::grpc::{self, FrameError, PREFIX_BYTES, Prefix, ProtobufError};
use forebay_protocol::{Reason, header as names};
use http::HeaderMap;
use http_body_util::BodyExt;
use prost::Message;
use std::sync::Arc;
use std::time::Instant;

/// Longest message that carries no tensors, in bytes.
const SMALL: usize = 64 << 10;

/// A call whose headers have come.
pub(crate) struct Call {
    pub(crate) app: Arc<App>,
    pub(crate) terms: Terms,
    /// The compression of answers.
    pub(crate) answers: Encoding,
    encoding: Encoding,
    body: Body,
    of_connection: Option<OfConnection>,
}

/// A message, and the memory that it holds.
pub(crate) struct Received {
    pub(crate) message: Bytes,
    pub(crate) share: Share,
}

impl Call {
    /// Reads the headers.
    ///
    /// # Errors
    /// They make no sense.
    pub(crate) fn begin(app: &Arc<App>, request: Request) -> Result<Self, Refusal> {
        let (parts, body) = request.into_parts();
        let encoding = Encoding::named(&parts.headers, &names::GRPC_ENCODING)?;
        let terms = terms(&parts.headers)?;
        // A client that compresses its own messages wants it; others may merely be able to read it.
        let accepted = compress::accepted(&parts.headers, &names::GRPC_ACCEPT_ENCODING);
        let answers = if encoding == Encoding::Identity { encoding } else { accepted };
        let of_connection = parts.extensions.get().cloned();
        Ok(Self { app: Arc::clone(app), terms, answers, encoding, body, of_connection })
    }

    /// Reads the one message of a unary call.
    ///
    /// # Errors
    /// There is not exactly one, or it is too long, too slow or damaged.
    pub(crate) async fn message(self, limit: usize) -> Result<Received, Refusal> {
        let Self { app, terms, encoding, body, of_connection, .. } = self;
        let mut share = Share::of(&app.memory, of_connection);
        let within = ReadTimeout::of(&app.options);
        let read = body::read(body, (limit + PREFIX_BYTES, 0), within, &mut share);
        let (compressed, message) = grpc::only_message(&bounded(terms.deadline, read).await?)?;
        inflated(compressed, encoding, limit, Received { message, share }).await
    }

    /// Reads a small message, has it answered until the deadline, and frames the answer.
    ///
    /// # Errors
    /// As of [`Call::message`], and those of `answer`.
    pub(crate) async fn answer<Q, A, F>(
        self,
        answer: impl FnOnce(Arc<App>, Q) -> F,
    ) -> Result<Bytes, Refusal>
    where
        Q: Message + Default,
        A: Message,
        F: Future<Output = Result<A, Refusal>>,
    {
        let (app, deadline) = (Arc::clone(&self.app), self.terms.deadline);
        let request = self.small().await?;
        let answered = bounded(deadline, answer(app, request)).await?;
        Ok(frame(&answered))
    }

    /// Reads the one message of a call that has no tensors.
    ///
    /// # Errors
    /// As of [`Call::message`].
    pub(crate) async fn small<Q: Message + Default>(self) -> Result<Q, Refusal> {
        let received = self.message(SMALL).await?;
        Q::decode(received.message)
            .map_err(|error| Refusal::request(format!("invalid protobuf: {error}")))
    }

    /// The messages of a call that has many.
    pub(crate) fn messages(self, limit: usize) -> Messages {
        let Self { app, terms, encoding, body, of_connection, .. } = self;
        let share = Share::of(&app.memory, of_connection);
        Messages {
            app,
            deadline: terms.deadline,
            encoding,
            body,
            limit,
            buffer: BytesMut::new(),
            share,
        }
    }
}

fn terms(headers: &HeaderMap) -> Result<Terms, Refusal> {
    let mut terms = terms::of(headers)?;
    if let Some(value) = headers.get(names::GRPC_TIMEOUT) {
        let timeout = value.to_str().ok().and_then(grpc::parse_timeout);
        terms.within(timeout.ok_or_else(|| {
            let form = "at most eight digits and one of H, M, S, m, u, n";
            Refusal::request(format!("expected grpc-timeout of {form}, found {value:?}"))
        })?);
    }
    Ok(terms)
}

async fn inflated(
    compressed: bool,
    encoding: Encoding,
    limit: usize,
    received: Received,
) -> Result<Received, Refusal> {
    let Received { message, mut share } = received;
    if !compressed {
        return Ok(Received { message, share });
    }
    if encoding == Encoding::Identity {
        let text = "expected grpc-encoding beside a compressed message, found none";
        return Err(Refusal::request(text));
    }
    off_io(move || {
        let message = body::inflate(message, encoding, limit, &mut share)?;
        Ok(Received { message, share })
    })
    .await
}

/// Decodes or encodes on this thread if there is little to do, else off the I/O threads.
pub(crate) async fn work<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    if bytes <= INLINE { work() } else { off_io(work).await }
}

/// Messages as they come in; memory grows with what arrives, never with what is announced.
pub(crate) struct Messages {
    app: Arc<App>,
    deadline: Option<Instant>,
    encoding: Encoding,
    body: Body,
    limit: usize,
    buffer: BytesMut,
    /// For what is in the buffer.
    share: Share,
}

impl Messages {
    /// The next message; `None` at the end.
    ///
    /// # Errors
    /// It is too long, too slow or damaged; the deadline of the call has passed; or the worker is on
    /// its way out. Nothing comes after an error.
    pub(crate) async fn next(&mut self) -> Result<Option<Received>, Refusal> {
        let deadline = self.deadline;
        let Some((compressed, received)) = bounded(deadline, self.framed()).await? else {
            return Ok(None);
        };
        inflated(compressed, self.encoding, self.limit, received).await.map(Some)
    }

    async fn framed(&mut self) -> Result<Option<(bool, Received)>, Refusal> {
        // Between two messages a client may be silent for as long as it likes.
        if self.buffer.is_empty() && !self.begun().await? {
            return Ok(None);
        }
        self.whole().await.map(Some)
    }

    /// Waits for the beginning of a message. `false`: there is none.
    async fn begun(&mut self) -> Result<bool, Refusal> {
        let lifecycle = self.app.lifecycle.clone();
        while self.buffer.is_empty() {
            tokio::select! {
                more = self.more() => if !more? { return Ok(false) },
                () = lifecycle.reached(Phase::Closing) => {
                    return Err(Refusal::new(Reason::Draining, "the worker is shutting down"));
                }
            }
        }
        Ok(true)
    }

    async fn whole(&mut self) -> Result<(bool, Received), Refusal> {
        let (began, within) = (Instant::now(), ReadTimeout::of(&self.app.options));
        loop {
            let mut expected = PREFIX_BYTES;
            if let Some(prefix) = Prefix::read(&self.buffer)? {
                if prefix.length > self.limit {
                    return Err(body::too_large(self.limit, &prefix.length));
                }
                expected += prefix.length;
                if self.buffer.len() >= expected {
                    let message = self.buffer.split_to(expected).freeze().slice(PREFIX_BYTES..);
                    let share = self.share.split(expected);
                    return Ok((prefix.compressed, Received { message, share }));
                }
            }
            let due = within.due(began, self.buffer.len());
            let Ok(more) = tokio::time::timeout_at(due.into(), self.more()).await else {
                return Err(body::too_slow(self.buffer.len(), began.elapsed()));
            };
            if !more? {
                let found = self.buffer.len();
                return Err(FrameError::Incomplete { expected, found }.into());
            }
        }
    }

    /// Reads what comes next. `false`: nothing will.
    async fn more(&mut self) -> Result<bool, Refusal> {
        let Some(frame) = self.body.frame().await else { return Ok(false) };
        let frame = frame.map_err(|error| body::broken_off(&error))?;
        if let Ok(data) = frame.into_data() {
            self.share.grow(data.len())?;
            self.buffer.extend_from_slice(&data);
        }
        Ok(true)
    }
}

impl From<FrameError> for Refusal {
    fn from(error: FrameError) -> Self {
        Self::new(error.reason(), error.to_string())
    }
}

impl From<ProtobufError> for Refusal {
    fn from(error: ProtobufError) -> Self {
        Self::request(format!("invalid protobuf: {error}"))
    }
}

/// There is no such method.
pub(super) fn no_method(method: &str) -> Refusal {
    let method: String = method.chars().take(100).collect();
    Refusal::new(Reason::NotFound, format!("unknown method \"{}\"", method.escape_debug()))
}
