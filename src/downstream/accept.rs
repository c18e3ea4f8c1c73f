//! The edge towards the clients: detects the protocol of a new connection, and applies the rules that hold
//! for every request.
//!
//! Pingora tells h2c from HTTP/1.1 by waiting for as many bytes as HTTP/2 begins with. A whole HTTP/1.0
//! request can be shorter than that (HAProxy's health check is), and would wait forever. Here a connection
//! is HTTP/1.1 as soon as a byte differs, and [`Http1Reader`] reads the head of each of its requests:
//! completely, in time, and strictly. Only then does Pingora see it. A refused request gets a message, a
//! count and a line in the log, as any refusal. The stages before HTTP, a PROXY header and a TLS handshake,
//! have no such message: a connection that fails there is counted and closed.

use crate::connections::{Connection, Connections};
use crate::downstream::http1_reader::{Arrival, Http1Reader};
use crate::downstream::http2::{self, EndReason, Http2};
use crate::downstream::tls::{self, Encrypted};
use crate::exhausted::{self, LastWords};
use crate::http::proxy::{KEEPALIVE_SECONDS, MAX_WRITE_STALL, Proxy};
use crate::lifecycle::Lifecycle;
use crate::pool::Snapshot;
use crate::refusal::Refusal;
use crate::telemetry::observe::{Observer, RejectedConnection, record_rejected_connection};
use arc_swap::ArcSwap;
use bytes::BytesMut;
use forebay_framing::proxy_protocol;
use forebay_process::allocator::lasting;
use forebay_process::resources::Exhausted;
use forebay_protocol::Reason;
use pingora::apps::{HttpPersistentSettings, HttpServerApp, ReusedHttpStream};
use pingora::protocols::http::ServerSession;
use pingora::protocols::l4::stream::Stream as L4Stream;
use pingora::protocols::{ALPN, GetSocketDigest, SocketDigest, Stream};
use pingora::proxy::HttpProxy;
use pingora::server::ShutdownWatch;
use rustls::ServerConfig;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

/// Time in which the rest of what was refused is read.
const MAX_LINGER: Duration = Duration::from_secs(1);
/// The same, and the time for the whole answer, where there is no descriptor left.
const MAX_LINGER_EXHAUSTED: Duration = Duration::from_millis(100);
const LAST_WORDS: Duration = Duration::from_millis(500);
/// Time that an HTTP/2 client gets to answer a GOAWAY where its connection is to make room.
const LAST_REQUESTS: Duration = Duration::from_secs(1);
/// Time in which a request that came just before the process stops is noticed.
const LAST_LOOK: Duration = Duration::from_millis(10);

/// A socket as Pingora has it. Without its buffers, which are there for as long as the connection is:
/// requests bring their own.
pub fn socket(stream: TcpStream, peer: SocketAddr) -> L4Stream {
    // Without it an answer may be late, but not wrong.
    let _ = stream.set_nodelay(true);
    let digest = SocketDigest::from_raw_fd(stream.as_raw_fd());
    let _ = digest.peer_addr.set(Some(peer.into()));
    lasting(|| {
        let mut socket = L4Stream::from(stream);
        socket.set_socket_digest(digest);
        socket
    })
}

/// Takes the connections of one listener.
pub struct Accept {
    /// The handler of their requests.
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
    /// Counts new connections.
    pub lifecycle: Arc<Lifecycle>,
    /// Metrics and access log.
    pub observer: Arc<Observer>,
}

impl Accept {
    /// Takes one connection, unless there are too many.
    pub fn take(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr, stop: &ShutdownWatch) {
        let (accept, stop) = (Arc::clone(self), stop.clone());
        lasting(|| tokio::spawn(async move { accept.connection(stream, peer, stop).await }));
    }

    /// From the first byte to the last. Thousands of connections may say nothing at a time: what is
    /// held for each while it is silent is the socket and this future, so the rest is boxed.
    async fn connection(&self, stream: TcpStream, peer: SocketAddr, stop: ShutdownWatch) {
        let Some(mut connection) = lasting(|| self.connections.enter()) else {
            return Box::pin(self.turn_away(stream, peer)).await;
        };
        if !self.proxy_protocol && !connection.belongs_to(peer.ip()) {
            connection.ended(Reason::ConnectionLimit);
            return Box::pin(self.turn_away(stream, peer)).await;
        }
        let _open = self.lifecycle.connected();
        let began = Instant::now();
        let in_all = self.header_timeout();
        let patience = if self.proxy_protocol { proxy_protocol::MAX_HEADER_TIME } else { in_all };
        // The wait gives back its memory with the first byte.
        if !lasting(|| Box::pin(speaks(&stream, patience, &connection))).await {
            return connection.ended(Reason::Evicted);
        }
        // Bound to a name, it would take its room here as well.
        match Box::pin(self.begun(socket(stream, peer), (began, in_all), &mut connection)).await {
            Some((reader, None)) => {
                lasting(|| Box::pin(self.http2(reader, &mut connection, &stop))).await;
            }
            Some((reader, Some(first))) => {
                lasting(|| Box::pin(self.http1(reader, first, &mut connection, &stop))).await;
            }
            None => {}
        }
    }

    /// A connection that has said something. Returns it with what comes first of HTTP/1, unless it speaks
    /// HTTP/2 from here on.
    async fn begun(
        &self,
        socket: L4Stream,
        (began, in_all): (Instant, Duration),
        connection: &mut Connection,
    ) -> Option<(Box<Http1Reader>, Option<Arrival>)> {
        let begun = Box::pin(self.begin(socket, (began, in_all), connection)).await;
        let (stream, ahead) = match begun {
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
        let mut reader = lasting(|| Box::new(Http1Reader::new(stream, ahead)));
        let left = (began + in_all).saturating_duration_since(Instant::now());
        let waiting = connection.waiting();
        waiting.begins();
        let first = tokio::select! {
            biased;
            first = reader.next(left, in_all) => first,
            () = connection.room_is_wanted() => {
                connection.ended(Reason::Evicted);
                reader.farewell().await;
                return None;
            }
        };
        waiting.ends();
        let is_http2 = h2 && matches!(first, Arrival::Http2);
        Some((reader, (!is_http2).then_some(first)))
    }

    /// There is no descriptor for this connection but the one that it came with, for as long as it takes to
    /// say so. If too many are told that already, it is reset.
    pub fn one_too_many(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        // Words in TLS need a handshake.
        let words = if self.tls().is_none() { LastWords::begin() } else { None };
        let Some(words) = words else { return exhausted::reset(&stream) };
        let accept = Arc::clone(self);
        tokio::spawn(async move {
            let refusal = exhausted::refusal(Exhausted::Descriptors);
            let reader = Http1Reader::new(Box::new(socket(stream, peer)), BytesMut::new());
            let said = accept.refuse(Box::new(reader), &refusal, MAX_LINGER_EXHAUSTED);
            let _ = timeout(LAST_WORDS, said).await;
            drop(words);
        });
    }

    /// There is no room for this connection.
    async fn turn_away(&self, stream: TcpStream, peer: SocketAddr) {
        if self.tls().is_some() {
            // Words need a handshake, which is what there is no room for.
            return;
        }
        let words = "the listener has reached max_connections";
        let refusal = Refusal::new(Reason::ConnectionLimit, words);
        let stream = Box::new(socket(stream, peer));
        let reader = Box::new(Http1Reader::new(stream, BytesMut::new()));
        // No lingering where there is no room.
        self.refuse(reader, &refusal, Duration::ZERO).await;
    }

    /// Runs the stages before HTTP, for `in_all` from the connection's beginning at most. From then on the
    /// connection is the client's; bytes of HTTP that were read already are returned beside it.
    async fn begin(
        &self,
        mut socket: L4Stream,
        time: (Instant, Duration),
        connection: &mut Connection,
    ) -> Result<(Stream, BytesMut), Refusal> {
        let rest = self.origin(&mut socket, connection).await?;
        let Some(tls) = self.tls() else {
            return Ok((lasting(|| Box::new(socket)), rest));
        };
        socket.rewind(&rest);
        let shaken = tls::handshake(tls, socket, time, &self.connections).await;
        let stream =
            shaken.map_err(|error| Refusal::new(Reason::TlsHandshakeFailed, error.to_string()))?;
        Ok((lasting(|| Box::new(Encrypted::new(stream))), BytesMut::new()))
    }

    /// Reads the PROXY header, if there must be one; from then on the connection is the client's
    /// that it names.
    async fn origin(
        &self,
        socket: &mut L4Stream,
        connection: &mut Connection,
    ) -> Result<BytesMut, Refusal> {
        if !self.proxy_protocol {
            return Ok(BytesMut::new());
        }
        let (ends, rest) = proxy_protocol::read(socket)
            .await
            .map_err(|error| Refusal::new(Reason::InvalidProxyHeader, error.to_string()))?;
        if let Some(ends) = ends {
            let origin = SocketDigest::from_raw_fd(socket.as_raw_fd());
            // A digest that was just made has no addresses yet.
            let _ = origin.peer_addr.set(Some(ends.source.into()));
            socket.set_socket_digest(origin);
            // Only what the header names is a client: without one it is the balancer's own probe.
            if !connection.belongs_to(ends.source.ip()) {
                let words = "this client has reached max_connections_per_client";
                return Err(Refusal::new(Reason::ConnectionLimit, words));
            }
        }
        Ok(rest)
    }

    /// HTTP/2, until the client leaves, the process stops, or the connection is to make room.
    async fn http2(
        &self,
        reader: Box<Http1Reader>,
        connection: &mut Connection,
        stop: &ShutdownWatch,
    ) {
        let observer = Arc::clone(&self.observer);
        let (waiting, leave, ended) = (connection.waiting(), Notify::new(), EndReason::default());
        let mut serving = {
            let told = ended.clone();
            let stream = Http2::new(reader, connection, observer, (told, self.header_timeout()));
            lasting(|| Box::pin(http2::serve(Box::new(stream), &self.proxy, stop, &leave)))
        };
        let mut stopping = stop.clone();
        let is_evicted = tokio::select! {
            _ = &mut serving => return ended.note(connection),
            _ = stopping.wait_for(|stop| *stop) => false,
            () = connection.room_is_wanted() => true,
        };
        leave.notify_one();
        if !is_evicted {
            serving.await;
            return ended.note(connection);
        }
        // A client that does not answer the GOAWAY does not get to keep its place.
        while timeout(LAST_REQUESTS, &mut serving).await.is_err() {
            if waiting.is_on() {
                break;
            }
        }
        connection.ended(Reason::Evicted);
        ended.note(connection);
    }

    /// One request after the other, as long as the connection is kept.
    async fn http1(
        &self,
        mut reader: Box<Http1Reader>,
        first: Arrival,
        connection: &mut Connection,
        stop: &ShutdownWatch,
    ) {
        let (mut arrival, mut settings) = (first, None);
        loop {
            let begun = match arrival {
                Arrival::Request(begun) => begun,
                Arrival::Ended => return reader.farewell().await,
                Arrival::Http2 => {
                    let words =
                        "expected HTTP/1.1, found HTTP/2, which this listener does not speak";
                    let refusal = Refusal::new(Reason::InvalidRequest, words);
                    connection.ended(refusal.reason);
                    return Box::pin(self.refuse(reader, &refusal, MAX_LINGER)).await;
                }
                Arrival::Refused(refusal) => {
                    connection.ended(refusal.reason);
                    return Box::pin(self.refuse(reader, &refusal, MAX_LINGER)).await;
                }
            };
            let session = session(reader, begun, settings, connection.is_leaving());
            let next = self.proxy.process_new_http(session, stop).await;
            let Some((stream, kept)) = next.map(ReusedHttpStream::consume) else { return };
            // The reader that was passed in comes back.
            let Ok(same) = stream.into_any().downcast::<Http1Reader>() else { return };
            (reader, settings) = (same, kept);
            reader.rests();
            let Some(next) = self.next(&mut reader, connection, stop).await else {
                return reader.farewell().await;
            };
            arrival = next;
        }
    }

    /// Waits for a further request. `None`: the process stops, or the connection is to make room, and
    /// the client has nothing to say. Were its connection kept until the process ends, a request could
    /// come just then.
    async fn next(
        &self,
        reader: &mut Http1Reader,
        connection: &mut Connection,
        stop: &ShutdownWatch,
    ) -> Option<Arrival> {
        let idle = Duration::from_secs(KEEPALIVE_SECONDS);
        let mut stopping = stop.clone();
        let waiting = connection.waiting();
        waiting.begins();
        let arrival = tokio::select! {
            // Bytes that have arrived come first.
            biased;
            arrival = reader.next(idle, self.header_timeout()) => Some(arrival),
            _ = stopping.wait_for(|stop| *stop) => None,
            () = connection.room_is_wanted() => None,
        };
        waiting.ends();
        if arrival.is_some() {
            return arrival;
        }
        if connection.is_leaving() {
            connection.ended(Reason::Evicted);
        }
        let in_all = self.header_timeout();
        match timeout(LAST_LOOK, reader.next(in_all, in_all)).await {
            Ok(arrival) => Some(arrival),
            Err(_) if reader.ahead().is_empty() => None,
            Err(_) => Some(reader.next(in_all, in_all).await),
        }
    }

    fn tls(&self) -> Option<Arc<ServerConfig>> {
        tls::current(&self.snapshot.load().config, self.place)
    }

    fn header_timeout(&self) -> Duration {
        self.snapshot.load().config.limits.header_timeout
    }

    /// There is no request that could be refused in the usual way.
    async fn refuse(&self, reader: Box<Http1Reader>, refusal: &Refusal, linger: Duration) {
        let tls = reader.tls();
        let (client, head) = (reader.address(), reader.ahead());
        let from = RejectedConnection { client, tls: tls.as_deref(), head };
        let request_id = record_rejected_connection(&self.observer, &from, refusal);
        say(reader, refusal, &request_id, linger).await;
    }
}

/// Waits for the first byte of a connection, or its end, or the end of `patience`. `false`: it is to make room.
async fn speaks(stream: &TcpStream, patience: Duration, connection: &Connection) -> bool {
    let waiting = connection.waiting();
    waiting.begins();
    let mut first = [0];
    tokio::select! {
        // A silent connection ends like one that sends too little. A socket that was just accepted
        // counts as readable, so the read checks whether there is anything.
        _ = timeout(patience, stream.peek(&mut first)) => {}
        () = connection.room_is_wanted() => return false,
    }
    waiting.ends();
    true
}

/// One request as Pingora takes it: `begun` are its first bytes. Made in a place of its own, since the future of a
/// connection would keep room for it while it is idle.
fn session(
    reader: Box<Http1Reader>,
    begun: BytesMut,
    settings: Option<HttpPersistentSettings>,
    is_last: bool,
) -> ServerSession {
    let mut session = ServerSession::new_http1(reader);
    match settings {
        Some(settings) => settings.apply_to_session(&mut session),
        None => session.set_keepalive(Some(KEEPALIVE_SECONDS)),
    }
    if is_last {
        session.set_keepalive(None);
    }
    session.set_pipelined_prefix(begun);
    session
}

/// Answers with a refusal and closes. Bytes that the client still sends are read for as long as `linger`:
/// closing before would reset the connection and destroy the answer.
pub async fn say(
    mut reader: Box<Http1Reader>,
    refusal: &Refusal,
    request_id: &str,
    linger: Duration,
) {
    let Ok((head, body)) = refusal.answer(request_id) else { return };
    let mut answer = format!("HTTP/1.1 {}\r\n", refusal.reason.status());
    for (name, value) in &head.headers {
        // Writing to a string does not fail.
        let _ = write!(answer, "{name}: {}\r\n", value.to_str().unwrap_or_default());
    }
    answer.push_str("connection: close\r\n\r\n");
    let answer = [answer.as_bytes(), &body].concat();
    let said = async {
        reader.write_all(&answer).await?;
        AsyncWriteExt::shutdown(&mut reader).await
    };
    // The client may have gone; there is nothing else to do for it.
    if let Ok(Ok(())) = timeout(MAX_WRITE_STALL, said).await {
        let _ = timeout(linger, reader.discard()).await;
    }
}
