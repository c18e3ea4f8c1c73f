//! A connection whose client is held to its [`Budget`].

use crate::budget::{Budget, Flood, error};
use crate::frame::{Frame, Scanner, kind};
use bytes::{Buf, Bytes};
use std::fmt;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// The bytes that begin every HTTP/2 connection (RFC 9113, section 3.4).
pub(crate) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Time in which the last GOAWAY must be written.
const LAST_WORD: Duration = Duration::from_secs(1);
/// Time between the last GOAWAY and the end. Closing a socket that has unread bytes resets it, which
/// can destroy the GOAWAY before the client reads it. Nothing is read meanwhile, so a flood that goes
/// on costs nothing.
const LINGER: Duration = Duration::from_millis(500);

/// An event that the guard sees and the server's code does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The client has exhausted its budget; the connection ends.
    Flood(Flood),
    /// The HTTP/2 library has answered a request with this status (400 or 431) and nothing else.
    Answered(u16),
    /// The HTTP/2 library has reset a stream because the request is malformed.
    Malformed,
    /// The HTTP/2 library ends the connection with this error code.
    GoneAway(u32),
    /// A header or another short frame has begun and was not complete in time; the connection ends.
    Late,
    /// A request has begun where there was none.
    Busy,
    /// The last request has ended.
    Idle,
}

/// A function that receives each [`Event`].
pub type Observer = Arc<dyn Fn(Event) + Send + Sync>;

/// A server's side of a connection.
pub struct Guarded<S> {
    stream: S,
    /// Bytes that were read once and are read again.
    ahead: Bytes,
    phase: Phase,
    observer: Observer,
    header_timeout: Option<Duration>,
}

enum Phase {
    /// Number of bytes of the preface received so far. A server need not wait for it before it sends
    /// SETTINGS.
    Preface(usize, Scanner),
    /// It is not HTTP/2.
    Other,
    Http2(Box<Guard>),
}

struct Guard {
    budget: Budget,
    received: Scanner,
    sent: Scanner,
    /// The stream that was answered or reset last by the library.
    rejected: u32,
    busy: bool,
    headers: Headers,
    closing: Option<Closing>,
}

/// The client's position in its headers.
#[derive(Default)]
struct Headers {
    /// Frames that have come.
    frames: u64,
    /// Header blocks that have begun.
    blocks: u64,
    /// Whether the last of them goes on.
    open: bool,
    /// Whether the first has been complete.
    begun: bool,
    /// The part that is awaited, and its deadline.
    timer: Option<(Awaited, Pin<Box<Sleep>>)>,
}

/// An event that must not take long, with a number that tells one from the next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Awaited {
    FirstRequest,
    Block(u64),
    Frame(u64),
}

/// The end of the connection of a client that has exhausted its budget.
struct Closing {
    goaway: Bytes,
    shut: bool,
    end: Pin<Box<Sleep>>,
    over: bool,
}

impl<S> Guarded<S> {
    /// Guards a connection from its first byte on; `ahead` was read from it already.
    pub fn new(stream: S, ahead: Bytes, observer: Observer) -> Self {
        Self {
            stream,
            ahead,
            phase: Phase::Preface(0, Scanner::new()),
            observer,
            header_timeout: None,
        }
    }

    /// Ends the connection if the header of its first request is not complete within this time from the
    /// preface on, or that of another request, or any frame but DATA, from its own first byte on.
    #[must_use]
    pub fn with_header_timeout(mut self, header_timeout: Duration) -> Self {
        self.header_timeout = Some(header_timeout);
        self
    }

    /// The connection inside.
    pub fn get_ref(&self) -> &S {
        &self.stream
    }

    /// The connection inside. The guard sees nothing of bytes that are read from it or written to it
    /// directly.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.stream
    }
}

impl<S: fmt::Debug> fmt::Debug for Guarded<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guarded").field("stream", &self.stream).finish_non_exhaustive()
    }
}

impl Phase {
    fn is_closing(&self) -> bool {
        matches!(self, Self::Http2(guard) if guard.closing.is_some())
    }

    /// Takes in what the client sent. `false`: it has sent too much.
    fn received(&mut self, mut bytes: &[u8], observer: &Observer) -> bool {
        if let Self::Preface(here, sent) = self {
            let more = (PREFACE.len() - *here).min(bytes.len());
            let (first, rest) = bytes.split_at(more);
            if first != &PREFACE[*here..*here + more] {
                *self = Self::Other;
                return true;
            }
            *here += more;
            bytes = rest;
            if *here == PREFACE.len() {
                let sent = std::mem::take(sent);
                *self = Self::Http2(Box::new(Guard::new(Instant::now(), sent)));
            }
        }
        match self {
            Self::Http2(guard) => guard.received(bytes, observer),
            Self::Preface(..) | Self::Other => true,
        }
    }
}

impl Guard {
    fn new(now: Instant, sent: Scanner) -> Self {
        Self {
            budget: Budget::new(now),
            received: Scanner::new(),
            sent,
            rejected: 0,
            busy: false,
            headers: Headers::default(),
            closing: None,
        }
    }

    fn received(&mut self, mut bytes: &[u8], observer: &Observer) -> bool {
        let now = Instant::now();
        while !bytes.is_empty() {
            let (taken, frame) = self.received.next(bytes);
            bytes = &bytes[taken..];
            let Some(frame) = frame else { continue };
            self.headers.received(&frame);
            if let Err(flood) = self.budget.received(&frame, now) {
                self.flooded(flood, observer);
                return false;
            }
        }
        self.note_busy(observer);
        true
    }

    fn note_busy(&mut self, observer: &Observer) {
        let busy = self.budget.is_busy();
        if busy != std::mem::replace(&mut self.busy, busy) {
            observer(if busy { Event::Busy } else { Event::Idle });
        }
    }

    /// Whether something is late: a frame that the client has begun, or its first request.
    fn poll_late(&mut self, cx: &mut Context<'_>, timeout: Option<Duration>) -> Option<Awaited> {
        let timeout = timeout?;
        let awaited = self.headers.awaited(&self.received);
        match (&self.headers.timer, awaited) {
            (Some((present, _)), Some(awaited)) if *present == awaited => {}
            (_, Some(awaited)) => {
                self.headers.timer = Some((awaited, Box::pin(sleep(timeout))));
            }
            (_, None) => self.headers.timer = None,
        }
        let (awaited, timer) = self.headers.timer.as_mut()?;
        timer.as_mut().poll(cx).is_ready().then_some(*awaited)
    }

    /// Takes in what the server sent.
    fn sent(&mut self, mut bytes: &[u8], now: Instant, observer: &Observer) {
        while !bytes.is_empty() {
            let (taken, frame) = self.sent.next(bytes);
            bytes = &bytes[taken..];
            let Some(frame) = frame else { continue };
            self.observe(&frame, observer);
            if let Err(flood) = self.budget.sent(&frame, now) {
                self.flooded(flood, observer);
            }
        }
        self.note_busy(observer);
    }

    fn flooded(&mut self, flood: Flood, observer: &Observer) {
        if self.closing.is_none() {
            observer(Event::Flood(flood));
            self.close(error::ENHANCE_YOUR_CALM);
        }
    }

    fn late(&mut self, awaited: Awaited, observer: &Observer) {
        // A client that has not begun anything has done nothing wrong.
        if awaited != Awaited::FirstRequest || self.headers.open || !self.received.at_boundary() {
            observer(Event::Late);
        }
        self.close(error::NO_ERROR);
    }

    fn close(&mut self, code: u32) {
        self.closing = Some(Closing {
            goaway: goaway(self.budget.last_stream(), code),
            shut: false,
            end: Box::pin(sleep(LAST_WORD)),
            over: false,
        });
    }

    /// Tells what the library says without having been asked.
    fn observe(&mut self, frame: &Frame, observer: &Observer) {
        let event = match frame.kind {
            kind::HEADERS if frame.ends_stream() && self.budget.is_unanswered(frame.stream) => {
                bare_status(frame).map(Event::Answered)
            }
            kind::RST_STREAM => {
                let malformed = frame.error_code() == Some(error::PROTOCOL_ERROR);
                malformed.then_some(Event::Malformed)
            }
            kind::GOAWAY => {
                let code = frame.error_code().filter(|code| *code != error::NO_ERROR);
                code.map(Event::GoneAway)
            }
            _ => None,
        };
        let Some(event) = event else { return };
        // A stream is answered first and reset then.
        if frame.stream == 0 || std::mem::replace(&mut self.rejected, frame.stream) != frame.stream
        {
            observer(event);
        }
    }
}

impl Headers {
    fn received(&mut self, frame: &Frame) {
        self.frames += 1;
        // All frames before this one are complete.
        self.begun |= self.blocks > 0 && !self.open;
        if frame.kind == kind::HEADERS {
            self.blocks += 1;
        }
        if matches!(frame.kind, kind::HEADERS | kind::CONTINUATION) {
            self.open = !frame.ends_headers();
        }
    }

    fn awaited(&mut self, received: &Scanner) -> Option<Awaited> {
        let whole = received.at_boundary();
        self.begun |= self.blocks > 0 && !self.open && whole;
        if !self.begun {
            return Some(Awaited::FirstRequest);
        }
        if self.open {
            return Some(Awaited::Block(self.blocks));
        }
        let short = !whole && received.present_kind() != Some(kind::DATA);
        short.then_some(Awaited::Frame(self.frames))
    }
}

/// The status of an answer that has no header fields beside it. Servers add at least a date, so only the
/// HTTP/2 library makes such an answer: 400, which HPACK knows as one byte, or 431.
fn bare_status(frame: &Frame) -> Option<u16> {
    let length = usize::try_from(frame.length).unwrap_or(usize::MAX);
    let block = frame.start.get(..length)?;
    // A change of the table's size may come first (RFC 7541, section 6.3).
    let block = match block {
        [size, rest @ ..] if size & 0xe0 == 0x20 => rest,
        block => block,
    };
    match *block {
        [0x8c] => Some(400),
        // From the dynamic table, where 431 is once it was sent.
        [index] if index >= 0xbe => Some(431),
        // A literal under the name `:status`, as text or in Huffman's code.
        [0x48 | 0x08, 3, b'4', b'3', b'1'] | [0x48 | 0x08, 0x82 | 0x83, ..] if block.len() <= 5 => {
            Some(431)
        }
        _ => None,
    }
}

/// A GOAWAY frame.
pub(crate) fn goaway(last_stream: u32, code: u32) -> Bytes {
    let payload = 8_u8;
    let mut bytes = vec![0, 0, payload, kind::GOAWAY, 0, 0, 0, 0, 0];
    bytes.extend_from_slice(&last_stream.to_be_bytes());
    bytes.extend_from_slice(&code.to_be_bytes());
    bytes.into()
}

impl<S: AsyncRead + AsyncWrite + Unpin> Guarded<S> {
    /// Says GOAWAY at the end of the frame that is being written, and waits until the client can have
    /// read it.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Phase::Http2(guard) = &mut self.phase else { return Poll::Ready(()) };
        let Some(closing) = &mut guard.closing else { return Poll::Ready(()) };
        if closing.over || closing.end.as_mut().poll(cx).is_ready() {
            closing.over = true;
            return Poll::Ready(());
        }
        if !guard.sent.at_boundary() {
            // The server goes on writing; it wakes this when the frame is complete.
            return Poll::Pending;
        }
        if closing.shut {
            return Poll::Pending;
        }
        let stream = &mut self.stream;
        while !closing.goaway.is_empty() {
            match ready!(Pin::new(&mut *stream).poll_write(cx, &closing.goaway)) {
                Ok(written @ 1..) => closing.goaway.advance(written),
                Ok(0) | Err(_) => closing.over = true,
            }
            if closing.over {
                return Poll::Ready(());
            }
        }
        if ready!(Pin::new(&mut *stream).poll_shutdown(cx)).is_err() {
            closing.over = true;
            return Poll::Ready(());
        }
        closing.shut = true;
        closing.end = Box::pin(sleep(LINGER));
        // Registers the timer.
        closing.end.as_mut().poll(cx)
    }

    /// Ends the connection if the client takes too long.
    fn is_late(&mut self, cx: &mut Context<'_>) -> bool {
        let Phase::Http2(guard) = &mut self.phase else { return false };
        let late = guard.poll_late(cx, self.header_timeout);
        if let Some(awaited) = late {
            guard.late(awaited, &self.observer);
        }
        late.is_some()
    }

    /// Number of `bytes` that may still be written: all, or the rest of the current frame if the connection
    /// is closing.
    fn allowed(&self, bytes: &[u8]) -> usize {
        match &self.phase {
            Phase::Http2(guard) if guard.closing.is_some() => guard.sent.belonging(bytes),
            _ => bytes.len(),
        }
    }

    fn sent(&mut self, bytes: &[u8], now: Instant) {
        match &mut self.phase {
            Phase::Http2(guard) => guard.sent(bytes, now, &self.observer),
            Phase::Preface(_, sent) => sent.skip(bytes),
            Phase::Other => {}
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.phase.is_closing() {
            ready!(this.poll_close(cx));
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        if this.ahead.is_empty() {
            let read = Pin::new(&mut this.stream).poll_read(cx, buffer);
            if read.is_pending() && this.is_late(cx) {
                ready!(this.poll_close(cx));
                return Poll::Ready(Ok(()));
            }
            ready!(read)?;
        } else {
            let here = this.ahead.len().min(buffer.remaining());
            buffer.put_slice(&this.ahead[..here]);
            this.ahead.advance(here);
            if this.ahead.is_empty() {
                this.ahead = Bytes::new();
            }
        }
        if matches!(this.phase, Phase::Other)
            || this.phase.received(&buffer.filled()[before..], &this.observer)
        {
            return Poll::Ready(Ok(()));
        }
        buffer.set_filled(before);
        ready!(this.poll_close(cx));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let closing = this.phase.is_closing();
        let allowed = this.allowed(bytes);
        if closing && allowed == 0 {
            // The client has been told to go away: drop the rest.
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = ready!(Pin::new(&mut this.stream).poll_write(cx, &bytes[..allowed]))?;
        this.sent(&bytes[..written], Instant::now());
        if this.phase.is_closing() {
            // The frame may be complete now; the reading side says GOAWAY.
            cx.waker().wake_by_ref();
        }
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.phase.is_closing() {
            let first = parts.iter().find(|part| !part.is_empty());
            let Some(first) = first else { return Poll::Ready(Ok(0)) };
            return Pin::new(this).poll_write(cx, first);
        }
        let written = ready!(Pin::new(&mut this.stream).poll_write_vectored(cx, parts))?;
        let (mut left, now) = (written, Instant::now());
        for part in parts {
            let here = left.min(part.len());
            this.sent(&part[..here], now);
            left -= here;
        }
        if this.phase.is_closing() {
            cx.waker().wake_by_ref();
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.phase.is_closing() {
            ready!(self.poll_close(cx));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
