//! A connection to a server that is held to its [`ServerBudget`].

mod budget;

pub use budget::ServerBudget;

use crate::budget::{Flood, error};
use crate::frame::Scanner;
use crate::guarded::{PREFACE, goaway};
use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A function that is told why a connection ends, once.
pub type FloodObserver = Arc<dyn Fn(Flood) + Send + Sync>;

/// The error that the HTTP/2 library reads from a connection whose server has exhausted its budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flooded(pub Flood);

impl fmt::Display for Flooded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server has sent too many HTTP/2 frames ({})", self.0.as_str())
    }
}

impl std::error::Error for Flooded {}

/// A client's side of a connection.
///
/// When the server has exhausted its budget it gets GOAWAY, and the HTTP/2 library reads an error, so that
/// the requests on the connection end at once.
pub struct GuardedServer<S> {
    stream: S,
    /// Bytes of the preface that are still to be written.
    preface: usize,
    received: Scanner,
    sent: Scanner,
    budget: ServerBudget,
    observer: FloodObserver,
    flooded: Option<Flood>,
}

impl<S> GuardedServer<S> {
    /// Guards a connection from its first byte on. `window`: bytes that the client lets the server send ahead
    /// on one stream.
    pub fn new(stream: S, window: u32, observer: FloodObserver) -> Self {
        Self {
            stream,
            preface: PREFACE.len(),
            received: Scanner::new(),
            sent: Scanner::new(),
            budget: ServerBudget::new(window, Instant::now()),
            observer,
            flooded: None,
        }
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

    /// Takes in what the server sent. Returns how much of it is within the budget, and what the rest is.
    fn received(&mut self, bytes: &[u8]) -> (usize, Option<Flood>) {
        let (now, mut at) = (Instant::now(), 0);
        while at < bytes.len() {
            let (taken, frame) = self.received.next(&bytes[at..]);
            if let Some(frame) = frame
                && let Err(flood) = self.budget.received(&frame, now)
            {
                return (at, Some(flood));
            }
            at += taken;
        }
        (at, None)
    }

    /// Takes in what the client sent.
    fn sent(&mut self, bytes: &[u8]) {
        let preface = self.preface.min(bytes.len());
        self.preface -= preface;
        let mut bytes = &bytes[preface..];
        while !bytes.is_empty() {
            let (taken, frame) = self.sent.next(bytes);
            bytes = &bytes[taken..];
            if let Some(frame) = frame {
                self.budget.sent(&frame);
            }
        }
    }
}

impl<S: fmt::Debug> fmt::Debug for GuardedServer<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardedServer").field("stream", &self.stream).finish_non_exhaustive()
    }
}

fn over(flood: Flood) -> io::Error {
    io::Error::other(Flooded(flood))
}

impl<S: AsyncRead + AsyncWrite + Unpin> GuardedServer<S> {
    /// Says GOAWAY, if that is possible at once, and writes no more: nothing waits for a server that floods.
    fn end(&mut self, cx: &mut Context<'_>, flood: Flood) {
        self.flooded = Some(flood);
        let code = match flood {
            Flood::FlowControl => error::FLOW_CONTROL_ERROR,
            _ => error::ENHANCE_YOUR_CALM,
        };
        let mut stream = Pin::new(&mut self.stream);
        if self.preface == 0 && self.sent.at_boundary() {
            // A server opens no streams, so none of its was looked at. If the GOAWAY finds no room, the end of
            // the connection says the same.
            let _ = stream.as_mut().poll_write(cx, &goaway(0, code));
            let _ = stream.as_mut().poll_flush(cx);
        }
        let _ = stream.poll_shutdown(cx);
        (self.observer)(flood);
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for GuardedServer<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(flood) = this.flooded {
            return Poll::Ready(Err(over(flood)));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        let (good, flood) = this.received(&buffer.filled()[before..]);
        let Some(flood) = flood else { return Poll::Ready(Ok(())) };
        this.end(cx, flood);
        if good == 0 {
            return Poll::Ready(Err(over(flood)));
        }
        // The bytes before it may be the end of an answer.
        buffer.set_filled(before + good);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for GuardedServer<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if let Some(flood) = this.flooded {
            return Poll::Ready(Err(over(flood)));
        }
        let written = ready!(Pin::new(&mut this.stream).poll_write(cx, bytes))?;
        this.sent(&bytes[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if let Some(flood) = this.flooded {
            return Poll::Ready(Err(over(flood)));
        }
        let written = ready!(Pin::new(&mut this.stream).poll_write_vectored(cx, parts))?;
        let mut left = written;
        for part in parts {
            let here = left.min(part.len());
            this.sent(&part[..here]);
            left -= here;
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
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
