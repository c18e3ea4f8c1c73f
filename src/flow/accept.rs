//! The edge towards the callers: which protocol a new connection speaks, and what holds for every
//! request before anything is known of it.
//!
//! Pingora tells h2c from HTTP/1.1 by waiting for as many bytes as HTTP/2 begins with. A whole
//! HTTP/1.0 request can be shorter than that (HAProxy's health check is), and would wait for ever.
//! Here a connection is HTTP/1.1 as soon as a byte differs. Pingora also bounds each read but not
//! their sum; here the first header must be complete in time, so that a connection that says
//! nothing, or one byte at a time, is closed.

use crate::error::Refusal;
use crate::proxy::Proxy;
use crate::server::Lifecycle;
use async_trait::async_trait;
use forebay_protocol::{Reason, header, metric};
use pingora::apps::{HttpServerApp, ServerApp};
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession;
use pingora::protocols::l4::stream::Stream as L4Stream;
use pingora::proxy::{HttpProxy, Session};
use pingora::server::ShutdownWatch;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// Seconds that a caller's idle connection is kept.
const KEEPALIVE_SECONDS: u64 = 60;
/// Time that one write to the caller's connection may take.
const STALL: Duration = Duration::from_secs(30);
/// Time that a new connection gets to send its first header, and the longest that it may be.
const FIRST_HEADER: Duration = Duration::from_secs(10);
const MAX_HEADER: usize = 64 * 1024;
/// What every HTTP/2 connection begins with (RFC 9113, 3.4).
const H2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Sets what holds for every request.
pub fn session(session: &mut Session, lifecycle: &Lifecycle) {
    let downstream = &mut session.downstream_session;
    if lifecycle.is_draining() {
        // Each connection is told before it closes: no request is lost on the way out.
        downstream.set_keepalive(None);
    } else if downstream.get_keepalive().is_some() {
        // Pingora takes a caller's wish to be kept for a wish to be kept for ever.
        downstream.set_keepalive(Some(KEEPALIVE_SECONDS));
    }
    downstream.set_write_timeout(Some(STALL));
}

/// Takes the connections of one listener.
#[derive(Clone)]
pub struct Accept {
    /// What takes their requests.
    pub proxy: Arc<HttpProxy<Proxy>>,
    /// Whether HTTP/2 without TLS is spoken here.
    pub h2c: bool,
    /// Where new connections are counted.
    pub lifecycle: Arc<Lifecycle>,
}

#[async_trait]
impl ServerApp for Accept {
    async fn process_new(
        self: &Arc<Self>,
        stream: Stream,
        shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        let waiting = self.lifecycle.connected();
        let (stream, speaks_h2) = timeout(FIRST_HEADER, first_header(stream)).await.ok()??;
        drop(waiting);
        if speaks_h2 && self.h2c {
            return ServerApp::process_new(&self.proxy, stream, shutdown).await;
        }
        self.http1(stream, shutdown).await;
        None
    }
}

impl Accept {
    /// One request after the other, as long as the connection is kept.
    async fn http1(&self, stream: Stream, shutdown: &ShutdownWatch) {
        let mut session = ServerSession::new_http1(stream);
        session.set_keepalive(Some(KEEPALIVE_SECONDS));
        session.set_pipelining_enabled(true);
        let mut next = self.proxy.process_new_http(session, shutdown).await;
        while let Some((stream, settings)) = next.map(pingora::apps::ReusedHttpStream::consume) {
            let mut session = ServerSession::new_http1(stream);
            if let Some(settings) = settings {
                settings.apply_to_session(&mut session);
            }
            next = self.proxy.process_new_http(session, shutdown).await;
        }
    }
}

/// Reads the first header and puts it back; tells HTTP/2 by its preface. `None`: the connection
/// ended before, or its header is too long.
async fn first_header(stream: Stream) -> Option<(Stream, bool)> {
    // Listeners are made of sockets; anything else is a fault of ours, and not served.
    let mut stream = stream.into_any().downcast::<L4Stream>().ok()?;
    let mut seen = Vec::with_capacity(1024);
    loop {
        let known = seen.len();
        if stream.read_buf(&mut seen).await.ok()? == 0 {
            return None;
        }
        let speaks_h2 = seen.starts_with(H2_PREFACE);
        let undecided = H2_PREFACE.starts_with(&seen);
        // An end may lie across what was known and what is new.
        let end = end_of_header(&seen, known.saturating_sub(3));
        if end.unwrap_or(seen.len()) > MAX_HEADER && !speaks_h2 {
            refuse_header(&mut stream).await;
            return None;
        }
        if speaks_h2 || (end.is_some() && !undecided) {
            stream.rewind(&seen);
            return Some((stream, speaks_h2));
        }
    }
}

/// Where the empty line ends that ends a header, if it lies behind `from`.
fn end_of_header(bytes: &[u8], from: usize) -> Option<usize> {
    let lines = bytes[from..].iter().enumerate().filter(|(_, byte)| **byte == b'\n');
    lines.map(|(at, _)| from + at + 1).find(|&end| {
        let line = &bytes[..end];
        line.ends_with(b"\r\n\r\n") || line.ends_with(b"\n\n")
    })
}

/// There is no request yet that could be refused in the usual way.
async fn refuse_header(stream: &mut L4Stream) {
    let reason = Reason::HeadersTooLarge;
    let refusal = Refusal::new(reason, format!("expected a header of at most {MAX_HEADER} bytes"));
    let Ok((_, body)) = refusal.answer("") else { return };
    let head = format!(
        "HTTP/1.1 {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{}: {}\r\nconnection: close\r\n\r\n",
        reason.status(),
        body.len(),
        header::REASON,
        reason.code(),
    );
    let answer = [head.as_bytes(), &body].concat();
    // The caller may have gone; there is nothing else to do for it.
    if stream.write_all(&answer).await.is_ok() {
        let _ = stream.flush().await;
        let _ = AsyncWriteExt::shutdown(stream).await;
        let mut rest = [0; 4096];
        let discard = async { while stream.read(&mut rest).await.is_ok_and(|n| n > 0) {} };
        let _ = timeout(Duration::from_secs(1), discard).await;
    }
    metrics::counter!(
        metric::proxy::REQUESTS,
        "route" => "", "variant" => "",
        "status" => reason.status().as_u16().to_string(), "reason" => reason.code(),
    )
    .increment(1);
}

/// Takes a connection that was still waiting when the listener's own loop had ended.
pub async fn leftover(accept: Arc<Accept>, stream: tokio::net::TcpStream, shutdown: ShutdownWatch) {
    // Without it an answer may be late, but not wrong.
    let _ = stream.set_nodelay(true);
    accept.process_new(Box::new(L4Stream::from(stream)), &shutdown).await;
}
