//! The edge towards the callers: which protocol a new connection speaks, and what holds for every
//! request before anything is known of it.
//!
//! Pingora tells h2c from HTTP/1.1 by waiting for as many bytes as HTTP/2 begins with. A whole
//! HTTP/1.0 request can be shorter than that (HAProxy's health check is), and would wait for ever.
//! Here a connection is HTTP/1.1 as soon as a byte differs, and one that says nothing is closed.

use crate::proxy::Proxy;
use crate::server::Lifecycle;
use async_trait::async_trait;
use pingora::apps::{HttpServerApp, ServerApp};
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession;
use pingora::protocols::l4::stream::Stream as L4Stream;
use pingora::proxy::{HttpProxy, Session};
use pingora::server::ShutdownWatch;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

/// Seconds that a caller's idle connection is kept.
const KEEPALIVE_SECONDS: u64 = 60;
/// Time that one write to the caller's connection may take.
const STALL: Duration = Duration::from_secs(30);
/// Time that a new connection gets to say its first bytes.
const FIRST_BYTES: Duration = Duration::from_secs(10);
/// What every HTTP/2 connection begins with (RFC 9113, 3.4).
const H2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Sets what holds for every request.
pub fn session(session: &mut Session, lifecycle: &Lifecycle) {
    let downstream = &mut session.downstream_session;
    if lifecycle.is_draining() {
        // Each connection is told before it closes: no request is lost on the way out.
        downstream.set_keepalive(None);
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
        let (stream, speaks_h2) = timeout(FIRST_BYTES, first_bytes(stream)).await.ok()??;
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

/// Looks at the first bytes and puts them back. `None`: the connection ended before any.
async fn first_bytes(stream: Stream) -> Option<(Stream, bool)> {
    let mut stream = match stream.into_any().downcast::<L4Stream>() {
        Ok(stream) => stream,
        // Listeners are made of sockets; anything else is a fault of ours, and not served.
        Err(_) => return None,
    };
    let mut seen = [0; H2_PREFACE.len()];
    let mut length = 0;
    while length < seen.len() && seen[..length] == H2_PREFACE[..length] {
        let read = stream.read(&mut seen[length..]).await.ok()?;
        if read == 0 {
            return None;
        }
        length += read;
    }
    stream.rewind(&seen[..length]);
    Some((stream, seen == *H2_PREFACE))
}

/// Takes a connection that was still waiting when the listener's own loop had ended.
pub async fn leftover(accept: Arc<Accept>, stream: tokio::net::TcpStream, shutdown: ShutdownWatch) {
    // Without it an answer may be late, but not wrong.
    let _ = stream.set_nodelay(true);
    accept.process_new(Box::new(L4Stream::from(stream)), &shutdown).await;
}
