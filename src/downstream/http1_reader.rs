//! The client's side of an HTTP/1 connection: one request after the other, each checked before it is used.
//!
//! Pingora reads the head of a request itself: it bounds each read but not their sum, accepts requests that
//! the standard lets a server refuse, and answers malformed ones with a bare 400 that is not counted. Its
//! reader is given the bytes that were read here instead: a head that was complete in time and passed
//! [`request_head::check`], and after it only the body. The bytes behind that body are the next request, and
//! stay here until its turn.

use crate::refusal::Refusal;
use bytes::{Buf, BytesMut};
use forebay_framing::chunked::Chunks;
use forebay_framing::request_head::{self, Framing, MAX_HEAD};
use forebay_protocol::Reason;
use pingora::protocols::Stream;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::time::timeout;
use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// Bytes of a chunked body that are read at once.
const PIECE: usize = 16 * 1024;
/// Time that the end of an idle connection may take.
const FAREWELL: Duration = Duration::from_secs(1);
/// The preface of every HTTP/2 connection (RFC 9113, 3.4).
const H2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The next event from a client.
#[derive(Debug)]
pub enum Arrival {
    /// A request; its head and what is here of its body.
    Request(BytesMut),
    /// HTTP/2 from here on.
    Http2,
    /// Nothing any more.
    Ended,
    /// Something that is refused.
    Refused(Refusal),
}

/// A client's connection.
#[derive(Debug)]
pub struct Http1Reader {
    stream: Stream,
    /// Read from the connection and not yet given to anyone.
    ahead: BytesMut,
    /// The rest of the current request's body.
    body: Body,
    /// Written and not yet sent: header and body of a short answer go out together.
    written: Vec<u8>,
    /// Whether something was written since the last flush.
    unflushed: bool,
}

/// Bytes that are written together, as many as fit into a packet.
const PACKET: usize = 1460;
/// Bytes that are read at once where no body is expected.
const GLANCE: usize = 8 * 1024;

thread_local! {
    /// Buffer for reads of unknown length: connections that wait hold no buffer.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; GLANCE].into());
}

#[derive(Debug)]
enum Body {
    Length(u64),
    Chunked(Chunks),
    Open,
}

impl Body {
    fn is_done(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunks) => chunks.is_done(),
            Self::Open => false,
        }
    }
}

impl Http1Reader {
    /// A new connection; `ahead` was read from it already.
    pub fn new(stream: Stream, ahead: BytesMut) -> Self {
        Self { stream, ahead, body: Body::Length(0), written: Vec::new(), unflushed: false }
    }

    fn inner(&self) -> &Stream {
        &self.stream
    }

    fn inner_mut(&mut self) -> &mut Stream {
        &mut self.stream
    }

    /// From now on what comes is no request: all of it can be read, from the first byte that was not
    /// given away.
    pub fn opens(&mut self) {
        self.body = Body::Open;
    }

    /// Reads and drops bytes until the client has sent everything.
    pub async fn discard(&mut self) {
        self.ahead = BytesMut::new();
        let mut rest = [0; 4096];
        while self.stream.read(&mut rest).await.is_ok_and(|read| read > 0) {}
    }

    /// Ends a connection with no answer outstanding. Within TLS the client is told, since it could not tell
    /// a mere end from one that an attacker made (RFC 8446, 6.1).
    pub async fn farewell(mut self) {
        // Bytes that the client does not take in time are lost with its socket.
        let _ = timeout(FAREWELL, self.stream.shutdown()).await;
    }

    /// The address of the client, as the log has it.
    pub fn address(&self) -> Option<String> {
        let digest = self.stream.get_socket_digest()?;
        digest.peer_addr().map(SocketAddr::to_string)
    }

    /// The version of TLS that it speaks, if it does.
    pub fn tls(&self) -> Option<String> {
        self.stream.get_ssl_digest().map(|digest| digest.version.to_string())
    }

    /// Bytes that were read and are not a complete request yet.
    pub fn ahead(&self) -> &[u8] {
        &self.ahead
    }

    /// Waits for the next request: no longer than `idle` until it begins, and then no longer than
    /// `head` until its head is whole, but not longer than `idle` in all if that is less.
    pub async fn next(&mut self, idle: Duration, head: Duration) -> Arrival {
        if !matches!(self.body, Body::Open) && !self.body.is_done() {
            // The rest of that body was not read; the next bytes are not a head.
            return Arrival::Ended;
        }
        let mut until = Instant::now() + idle;
        let (mut begun, mut searched) = (false, 0);
        loop {
            if let Some(arrival) = self.look(&mut searched) {
                return arrival;
            }
            if !begun && !self.ahead.is_empty() {
                begun = true;
                until = until.min(Instant::now() + head);
            }
            let left = until.saturating_duration_since(Instant::now());
            match timeout(left, poll_fn(|cx| self.poll_glance(cx))).await {
                Ok(Ok(0) | Err(_)) => return Arrival::Ended,
                Ok(Ok(_)) => {}
                Err(_) if self.ahead.is_empty() => return Arrival::Ended,
                Err(_) => {
                    let message = format!("expected a complete header within {head:?}");
                    return Arrival::Refused(Refusal::new(Reason::RequestTimeout, message));
                }
            }
        }
    }

    /// The event that the buffered bytes amount to; `None`: none yet. The first `searched` of them hold no
    /// end of a head.
    fn look(&mut self, searched: &mut usize) -> Option<Arrival> {
        while *searched == 0 && self.ahead.starts_with(b"\r\n") {
            // Some clients end a body with a line end too many (RFC 9112, 2.2).
            self.ahead.advance(2);
        }
        let bytes = &self.ahead[..];
        let undecided = H2_PREFACE.starts_with(bytes) || bytes == b"\r";
        if bytes.starts_with(H2_PREFACE) {
            return Some(Arrival::Http2);
        }
        if undecided {
            return None;
        }
        if !bytes[0].is_ascii_graphic() {
            // TLS, most likely: its end would never come.
            return Some(refused("expected an HTTP/1 request, found something else"));
        }
        let Some(end) = end_of_head(bytes, searched.saturating_sub(3)) else {
            *searched = bytes.len();
            return (bytes.len() > MAX_HEAD)
                .then(|| Arrival::Refused(request_head::too_long().into()));
        };
        Some(match request_head::check(&bytes[..end]) {
            Ok(framing) => self.take(end, framing),
            Err(violation) => Arrival::Refused(violation.into()),
        })
    }

    /// The request whose head ends at `end`, with what is here of its body.
    fn take(&mut self, end: usize, framing: Framing) -> Arrival {
        let behind = &self.ahead[end..];
        let here;
        (self.body, here) = match framing {
            Framing::Length(length) => {
                let here = usize::try_from(length).unwrap_or(usize::MAX).min(behind.len());
                (Body::Length(length - here as u64), here)
            }
            Framing::Chunked => {
                let mut chunks = Chunks::default();
                match chunks.scan(behind) {
                    Ok(here) => (Body::Chunked(chunks), here),
                    Err(words) => return refused(words),
                }
            }
            Framing::Open => (Body::Open, behind.len()),
        };
        // Dividing a buffer costs an allocation; mostly there is nothing to divide.
        let whole = end + here == self.ahead.len();
        Arrival::Request(if whole {
            std::mem::take(&mut self.ahead)
        } else {
            self.ahead.split_to(end + here)
        })
    }

    /// Reads the bytes at hand ahead of any reader, without a buffer while there are none.
    fn poll_glance(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
            self.ahead.extend_from_slice(buffer.filled());
            Poll::Ready(Ok(buffer.filled().len()))
        })
    }

    /// Until the next request nothing is held that it does not need.
    pub fn rests(&mut self) {
        self.written = Vec::new();
        if self.ahead.is_empty() {
            self.ahead = BytesMut::new();
        }
    }

    /// Sends what was written, and then as much of `more` as goes with it: how much that was.
    fn poll_send(&mut self, cx: &mut Context<'_>, more: &[u8]) -> Poll<io::Result<usize>> {
        while !self.written.is_empty() {
            let parts = [IoSlice::new(&self.written), IoSlice::new(more)];
            let sent = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, &parts))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let ours = sent.min(self.written.len());
            self.written.drain(..ours);
            if sent > ours {
                return Poll::Ready(Ok(sent - ours));
            }
        }
        if more.is_empty() {
            return Poll::Ready(Ok(0));
        }
        Pin::new(&mut self.stream).poll_write(cx, more)
    }

    /// Reads on, ahead of any reader.
    fn poll_ahead(&mut self, cx: &mut Context<'_>, room: usize) -> Poll<io::Result<usize>> {
        self.ahead.reserve(room);
        pin!(self.stream.read_buf(&mut self.ahead)).poll(cx)
    }

    /// The request has been read: only whether the client is still there matters. Further bytes belong to
    /// the next request.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Pingora flushes an answer of a stated length at its end only. That there is nothing to do but
        // to wait is the moment for what is there already.
        if self.unflushed
            && let Poll::Ready(flushed) = Pin::new(&mut *self).poll_flush(cx)
        {
            flushed?;
        }
        // The caller waits for another event, too, so no wake-up for more bytes is needed.
        if self.ahead.is_empty() && ready!(self.poll_glance(cx))? == 0 {
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
    }

    /// Bytes of the body up to `most`, straight into the reader's buffer.
    fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
        most: u64,
    ) -> Poll<io::Result<u64>> {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let before = buffer.filled().len();
        if !self.ahead.is_empty() {
            let here = most.min(self.ahead.len()).min(buffer.remaining());
            buffer.put_slice(&self.ahead[..here]);
            self.ahead.advance(here);
            if self.ahead.is_empty() {
                // A connection of HTTP/2 would hold it to its end.
                self.ahead = BytesMut::new();
            }
        } else if most >= buffer.remaining() {
            ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        } else {
            let mut bounded = ReadBuf::new(buffer.initialize_unfilled_to(most));
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut bounded))?;
            let read = bounded.filled().len();
            buffer.advance(read);
        }
        Poll::Ready(Ok((buffer.filled().len() - before) as u64))
    }

    /// The next piece of a chunked body, its chunks' sizes included.
    fn poll_chunks(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() && ready!(self.poll_ahead(cx, PIECE))? == 0 {
            return Poll::Ready(Ok(()));
        }
        let Body::Chunked(chunks) = &mut self.body else { return Poll::Ready(Ok(())) };
        let here = self.ahead.len().min(buffer.remaining());
        let belong = chunks
            .scan(&self.ahead[..here])
            .map_err(|words| io::Error::new(io::ErrorKind::InvalidData, words))?;
        buffer.put_slice(&self.ahead[..belong]);
        self.ahead.advance(belong);
        Poll::Ready(Ok(()))
    }
}

/// Did the client's own bytes cause the error: a body that is not by the letter?
pub fn is_malformed(error: &pingora::Error) -> bool {
    let cause = error.root_cause().downcast_ref::<io::Error>();
    cause.is_some_and(|cause| cause.kind() == io::ErrorKind::InvalidData)
}

fn refused(words: &'static str) -> Arrival {
    Arrival::Refused(Refusal::new(Reason::InvalidRequest, words))
}

/// The end of the empty line that ends a head, if it lies behind `from`. Bare line feeds count, too: they
/// are refused, but there is nothing to wait for.
fn end_of_head(bytes: &[u8], from: usize) -> Option<usize> {
    memchr::memchr_iter(b'\n', &bytes[from..]).map(|at| from + at + 1).find(|&end| {
        let line = &bytes[..end];
        line.ends_with(b"\r\n\r\n") || line.ends_with(b"\n\n")
    })
}

impl AsyncRead for Http1Reader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.body.is_done() {
            return this.poll_gone(cx);
        }
        let most = match &this.body {
            Body::Length(left) => *left,
            Body::Chunked(chunks) => chunks.data_left(),
            Body::Open => u64::MAX,
        };
        if most == 0 || (matches!(this.body, Body::Chunked(_)) && !this.ahead.is_empty()) {
            return this.poll_chunks(cx, buffer);
        }
        let read = ready!(this.poll_body(cx, buffer, most))?;
        match &mut this.body {
            Body::Length(left) => *left -= read,
            Body::Chunked(chunks) => chunks.passed(read),
            Body::Open => {}
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Http1Reader {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        this.unflushed = true;
        if bytes.len() > PACKET {
            return this.poll_send(cx, bytes);
        }
        if this.written.len() + bytes.len() > PACKET {
            ready!(this.poll_send(cx, &[]))?;
        }
        this.written.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        this.unflushed = true;
        let length = parts.iter().map(|part| part.len()).sum::<usize>();
        if this.written.len() + length > PACKET {
            ready!(this.poll_send(cx, &[]))?;
        }
        if length > PACKET {
            return Pin::new(&mut this.stream).poll_write_vectored(cx, parts);
        }
        for part in parts {
            this.written.extend_from_slice(part);
        }
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx, &[]))?;
        let flushed = ready!(Pin::new(&mut self.stream).poll_flush(cx));
        self.unflushed = false;
        Poll::Ready(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx, &[]))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Drop for Http1Reader {
    fn drop(&mut self) {
        // Pingora does not flush in every case of an error. Bytes that the socket takes at once are sent.
        if !self.written.is_empty() {
            let _ = self.poll_send(&mut Context::from_waker(Waker::noop()), &[]);
        }
    }
}

crate::io::forward_questions!(Http1Reader);
