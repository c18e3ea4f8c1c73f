//! The edge towards the callers: which protocol a new connection speaks, and what holds for every
//! request before anything is known of it.
//!
//! Pingora tells h2c from HTTP/1.1 by waiting for as many bytes as HTTP/2 begins with. A whole
//! HTTP/1.0 request can be shorter than that (HAProxy's health check is), and would wait for ever.
//! Here a connection is HTTP/1.1 as soon as a byte differs. Pingora also bounds each read but not
//! their sum; here the first header must be complete in time, so that a connection that says
//! nothing, or one byte at a time, is closed.

use crate::connections::Connections;
use crate::error::Refusal;
use crate::flow::proxy_protocol::{self, HeaderError};
use crate::proxy::Proxy;
use crate::server::Lifecycle;
use async_trait::async_trait;
use forebay_protocol::{Reason, metric};
use pingora::apps::{HttpServerApp, ServerApp};
use pingora::protocols::http::ServerSession;
use pingora::protocols::l4::stream::Stream as L4Stream;
use pingora::protocols::{GetSocketDigest, SocketDigest, Stream};
use pingora::proxy::{HttpProxy, Session};
use pingora::server::ShutdownWatch;
use std::os::fd::AsRawFd;
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
/// Time in which the rest of what was refused is read.
const LINGER: Duration = Duration::from_secs(1);
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
    /// Whether every connection must begin with a PROXY header.
    pub proxy_protocol: bool,
    /// The listener's open connections.
    pub connections: Arc<Connections>,
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
        // Listeners are made of sockets; anything else is a fault of ours, and not served.
        let mut stream = stream.into_any().downcast::<L4Stream>().ok()?;
        let Some(mut connection) = self.connections.enter() else {
            let words = "expected fewer connections, found as many as may be open";
            refuse(&mut stream, &Refusal::new(Reason::ConnectionLimit, words), Duration::ZERO)
                .await;
            return None;
        };
        let waiting = self.lifecycle.connected();
        if self.proxy_protocol
            && let Err(error) = take_origin(&mut stream).await
        {
            tracing::debug!(listener = &*self.connections.listener, %error, "connection refused");
            connection.ended(Reason::InvalidProxyHeader);
            return None;
        }
        let (stream, speaks_h2) = timeout(FIRST_HEADER, first_header(stream)).await.ok()??;
        drop(waiting);
        if speaks_h2 && self.h2c {
            return ServerApp::process_new(&self.proxy, stream, shutdown).await;
        }
        self.http1(stream, shutdown).await;
        None
    }
}

/// Reads the PROXY header; from then on the connection is the caller's that it names.
async fn take_origin(stream: &mut L4Stream) -> Result<(), HeaderError> {
    let (ends, rest) = proxy_protocol::read(stream).await?;
    stream.rewind(&rest);
    if let Some(ends) = ends {
        let origin = SocketDigest::from_raw_fd(stream.as_raw_fd());
        // A digest that was just made has no addresses yet.
        let _ = origin.peer_addr.set(Some(ends.source.into()));
        stream.set_socket_digest(origin);
    }
    Ok(())
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
async fn first_header(mut stream: Box<L4Stream>) -> Option<(Stream, bool)> {
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
            let words = format!("expected a header of at most {MAX_HEADER} bytes");
            let refusal = Refusal::new(Reason::HeadersTooLarge, words);
            refuse(&mut stream, &refusal, LINGER).await;
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

/// There is no request yet that could be refused in the usual way. What the caller still sends is
/// read for as long as `linger`: closing before would reset the connection and destroy the answer.
async fn refuse(stream: &mut L4Stream, refusal: &Refusal, linger: Duration) {
    let reason = refusal.reason;
    let Ok((head, body)) = refusal.answer("") else { return };
    let mut text = format!("HTTP/1.1 {}\r\n", reason.status());
    for (name, value) in &head.headers {
        let value = value.to_str().unwrap_or_default();
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("connection: close\r\n\r\n");
    let answer = [text.as_bytes(), &body].concat();
    // The caller may have gone; there is nothing else to do for it.
    if stream.write_all(&answer).await.is_ok() {
        let _ = stream.flush().await;
        let _ = AsyncWriteExt::shutdown(stream).await;
        let mut rest = [0; 4096];
        let discard = async { while stream.read(&mut rest).await.is_ok_and(|n| n > 0) {} };
        let _ = timeout(linger, discard).await;
    }
    metrics::counter!(
        metric::proxy::REQUESTS,
        "route" => "", "variant" => "",
        "status" => reason.status().as_u16().to_string(), "reason" => reason.code(),
    )
    .increment(1);
}
