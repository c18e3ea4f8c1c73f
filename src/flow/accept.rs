//! The edge towards the callers: which protocol a new connection speaks, and what holds for every
//! request before anything is known of it.
//!
//! Pingora tells h2c from HTTP/1.1 by waiting for as many bytes as HTTP/2 begins with. A whole
//! HTTP/1.0 request can be shorter than that (HAProxy's health check is), and would wait for ever.
//! Here a connection is HTTP/1.1 as soon as a byte differs, and [`Caller`] reads the head of each of
//! its requests: whole, in time, and by the letter. Only then does Pingora see it. What is refused
//! gets words, a count and a line in the log, as any refusal. What comes before HTTP, a PROXY header
//! and a TLS handshake, has no such words: a connection that fails there is counted and closed.

use crate::connections::{Connection, Connections};
use crate::error::Refusal;
use crate::flow::caller::{Arrival, Caller};
use crate::flow::http2::Http2;
use crate::flow::observe::{Observer, TurnedAway, turned_away};
use crate::flow::proxy_protocol;
use crate::flow::tls::{self, Encrypted};
use crate::pool::Snapshot;
use crate::proxy::Proxy;
use crate::server::Lifecycle;
use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::BytesMut;
use forebay_protocol::Reason;
use pingora::apps::{HttpPersistentSettings, HttpServerApp, ReusedHttpStream, ServerApp};
use pingora::protocols::http::ServerSession;
use pingora::protocols::l4::stream::Stream as L4Stream;
use pingora::protocols::{ALPN, SocketDigest, Stream};
use pingora::proxy::{HttpProxy, Session};
use pingora::server::ShutdownWatch;
use rustls::ServerConfig;
use std::fmt::Write as _;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

/// Seconds that a caller's idle connection is kept.
const KEEPALIVE_SECONDS: u64 = 60;
/// Time that one write to the caller's connection may take.
const STALL: Duration = Duration::from_secs(30);
/// Time in which the rest of what was refused is read.
const LINGER: Duration = Duration::from_secs(1);
/// Time in which a request that came just before the process stops is noticed.
const LAST_LOOK: Duration = Duration::from_millis(10);

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
    /// The listener's place in the configuration.
    pub place: usize,
    /// Whether HTTP/2 is spoken here: without TLS by its first bytes, within it by agreement.
    pub h2: bool,
    /// Whether every connection must begin with a PROXY header.
    pub proxy_protocol: bool,
    /// The listener's open connections.
    pub connections: Arc<Connections>,
    /// The present picture, for its limits.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// Where new connections are counted.
    pub lifecycle: Arc<Lifecycle>,
    /// Metrics and access log.
    pub observer: Arc<Observer>,
}

#[async_trait]
impl ServerApp for Accept {
    async fn process_new(
        self: &Arc<Self>,
        stream: Stream,
        shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        let Some(mut connection) = self.connections.enter() else {
            if self.tls().is_some() {
                // Words need a handshake, which is what there is no room for.
                return None;
            }
            let words = "expected fewer connections, found as many as may be open";
            let refusal = Refusal::new(Reason::ConnectionLimit, words);
            // Nobody lingers where there is no room.
            self.refuse(Caller::new(stream, BytesMut::new()), &refusal, Duration::ZERO).await;
            return None;
        };
        let _open = self.lifecycle.connected();
        let in_all = self.header_timeout();
        let until = Instant::now() + in_all;
        let (stream, ahead) = match self.begin(stream, in_all).await {
            Ok(begun) => begun,
            Err(refusal) => {
                let (listener, error) = (&*self.connections.listener, &*refusal.message);
                tracing::debug!(listener, error, "connection refused");
                connection.ended(refusal.reason);
                return None;
            }
        };
        let h2 = match stream.get_ssl_digest() {
            Some(_) => stream.selected_alpn_proto() == Some(ALPN::H2),
            None => self.h2,
        };
        let mut caller = Caller::new(stream, ahead);
        let left = until.saturating_duration_since(Instant::now());
        let first = caller.next(left, in_all).await;
        if h2 && matches!(first, Arrival::Http2) {
            let (stream, ended) = Http2::new(caller, &connection, Arc::clone(&self.observer));
            ServerApp::process_new(&self.proxy, Box::new(stream), shutdown).await;
            ended.note(&mut connection);
            return None;
        }
        self.http1(caller, first, &mut connection, shutdown).await;
        None
    }
}

impl Accept {
    /// What comes before HTTP, `in_all` at most. From then on the connection is the caller's; what
    /// was read of HTTP already is beside it.
    async fn begin(&self, stream: Stream, in_all: Duration) -> Result<(Stream, BytesMut), Refusal> {
        let began = Instant::now();
        let (stream, rest) = self.origin(stream).await?;
        let Some(tls) = self.tls() else {
            return Ok((stream, rest));
        };
        let socket = stream.into_any().downcast::<L4Stream>();
        let mut socket = socket.map_err(|_| {
            Refusal::new(Reason::Internal, "expected a socket, found another connection")
        })?;
        socket.rewind(&rest);
        let shaken = tls::handshake(tls, *socket, (began, in_all), &self.connections).await;
        let stream =
            shaken.map_err(|error| Refusal::new(Reason::TlsHandshakeFailed, error.to_string()))?;
        Ok((Box::new(Encrypted::new(stream)), BytesMut::new()))
    }

    /// Reads the PROXY header, if there must be one; from then on the connection is the caller's
    /// that it names.
    async fn origin(&self, mut stream: Stream) -> Result<(Stream, BytesMut), Refusal> {
        if !self.proxy_protocol {
            return Ok((stream, BytesMut::new()));
        }
        let (ends, rest) = proxy_protocol::read(&mut *stream)
            .await
            .map_err(|error| Refusal::new(Reason::InvalidProxyHeader, error.to_string()))?;
        if let Some(ends) = ends
            && let Some(socket) = stream.as_any().downcast_ref::<L4Stream>()
        {
            let origin = SocketDigest::from_raw_fd(socket.as_raw_fd());
            // A digest that was just made has no addresses yet.
            let _ = origin.peer_addr.set(Some(ends.source.into()));
            stream.set_socket_digest(origin);
        }
        Ok((stream, rest))
    }

    /// One request after the other, as long as the connection is kept.
    async fn http1(
        &self,
        mut caller: Caller,
        first: Arrival,
        connection: &mut Connection,
        shutdown: &ShutdownWatch,
    ) {
        let (mut arrival, mut settings) = (first, None);
        loop {
            let begun = match arrival {
                Arrival::Request(begun) => begun,
                Arrival::Ended => return caller.farewell().await,
                Arrival::Http2 => {
                    let words = "expected HTTP/1.1, found HTTP/2, which is not spoken here";
                    let refusal = Refusal::new(Reason::InvalidRequest, words);
                    connection.ended(refusal.reason);
                    return self.refuse(caller, &refusal, LINGER).await;
                }
                Arrival::Refused(refusal) => {
                    connection.ended(refusal.reason);
                    return self.refuse(caller, &refusal, LINGER).await;
                }
            };
            let mut session = ServerSession::new_http1(Box::new(caller));
            match settings {
                Some(settings) => HttpPersistentSettings::apply_to_session(settings, &mut session),
                None => session.set_keepalive(Some(KEEPALIVE_SECONDS)),
            }
            session.set_pipelined_prefix(begun);
            let next = self.proxy.process_new_http(session, shutdown).await;
            let Some((stream, kept)) = next.map(ReusedHttpStream::consume) else { return };
            // What was given is given back.
            let Ok(same) = stream.into_any().downcast::<Caller>() else { return };
            (caller, settings) = (*same, kept);
            let Some(next) = self.next(&mut caller, shutdown).await else {
                return caller.farewell().await;
            };
            arrival = next;
        }
    }

    /// Waits for a further request. `None`: the process stops, and the caller has nothing to say. Were
    /// its connection kept until the process ends, a request could come just then.
    async fn next(&self, caller: &mut Caller, shutdown: &ShutdownWatch) -> Option<Arrival> {
        let idle = Duration::from_secs(KEEPALIVE_SECONDS);
        let mut stopping = shutdown.clone();
        tokio::select! {
            // What is there already comes first.
            biased;
            arrival = caller.next(idle, self.header_timeout()) => return Some(arrival),
            _ = stopping.wait_for(|stop| *stop) => {}
        }
        let in_all = self.header_timeout();
        match timeout(LAST_LOOK, caller.next(in_all, in_all)).await {
            Ok(arrival) => Some(arrival),
            Err(_) if caller.ahead().is_empty() => None,
            Err(_) => Some(caller.next(in_all, in_all).await),
        }
    }

    fn tls(&self) -> Option<Arc<ServerConfig>> {
        tls::current(&self.snapshot.load().config, self.place)
    }

    fn header_timeout(&self) -> Duration {
        self.snapshot.load().config.limits.header_timeout
    }

    /// There is no request that could be refused in the usual way. What the caller still sends is
    /// read for as long as `linger`: closing before would reset the connection and destroy the
    /// answer.
    async fn refuse(&self, caller: Caller, refusal: &Refusal, linger: Duration) {
        let tls = caller.tls();
        let (client, head) = (caller.address(), caller.ahead());
        let from = TurnedAway { client, tls: tls.as_deref(), head };
        let request_id = turned_away(&self.observer, &from, refusal);
        let Ok((head, body)) = refusal.answer(&request_id) else { return };
        let mut answer = format!("HTTP/1.1 {}\r\n", refusal.reason.status());
        for (name, value) in &head.headers {
            // Writing to a string does not fail.
            let _ = write!(answer, "{name}: {}\r\n", value.to_str().unwrap_or_default());
        }
        answer.push_str("connection: close\r\n\r\n");
        let answer = [answer.as_bytes(), &body].concat();
        let (mut stream, _) = caller.into_parts();
        let said = async {
            stream.write_all(&answer).await?;
            stream.flush().await?;
            AsyncWriteExt::shutdown(&mut stream).await
        };
        // The caller may have gone; there is nothing else to do for it.
        if let Ok(Ok(())) = timeout(STALL, said).await {
            let mut rest = [0; 4096];
            let discard = async { while stream.read(&mut rest).await.is_ok_and(|n| n > 0) {} };
            let _ = timeout(linger, discard).await;
        }
    }
}
