//! Connections to endpoints, for requests that are held and for streams.
//!
//! An endpoint may be broken, or somebody else's. Over HTTP/2 it can send frames that answer nothing for as long
//! as its connection lasts, whether a request is on it or not, and Pingora's connector puts nothing between
//! the socket and the HTTP/2 library. So connections that speak HTTP/2 are made here, with a
//! [`GuardedServer`] in front of the library: one that floods is closed, and the requests on it have
//! failed at the endpoint.
//!
//! Pingora's pipe, which carries streams of gRPC, makes its connections itself. It is given a socket that is
//! guarded ([`GuardedSocket`]), on a connection of the stream's own.

use super::Endpoint;
use crate::exhausted;
use async_trait::async_trait;
use forebay_http2guard::{FloodObserver, GuardedServer};
use pingora::connectors::http::Connector as PingoraConnector;
use pingora::connectors::http::v2::{self, H2HandshakeSettings, handshake};
use pingora::connectors::{ConnectorOptions, L4Connect};
use pingora::protocols::Stream;
use pingora::protocols::http::client::HttpSession;
use pingora::protocols::http::v2::client::Http2Session;
use pingora::protocols::l4::ext::set_tcp_keepalive;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream as Socket;
use pingora::protocols::l4::virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream};
use pingora::upstreams::peer::{HttpPeer, Peer};
use pingora::{Error, ErrorType};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;

/// A number that is no socket.
pub const NO_SOCKET: RawFd = -1;

/// Makes and keeps connections.
pub struct Connector {
    /// HTTP/1.
    http1: PingoraConnector,
    http2: v2::Connector,
}

impl Connector {
    /// `idle_connections`: most that are kept of each protocol, over all endpoints.
    pub fn new(idle_connections: usize) -> Self {
        let options = || Some(ConnectorOptions::new(idle_connections));
        Self { http1: PingoraConnector::new(options()), http2: v2::Connector::new(options()) }
    }

    /// A connection, or a stream of one, and whether it was kept from before.
    ///
    /// # Errors
    /// None could be made.
    pub async fn get(
        &self,
        endpoint: &Endpoint,
        for_grpc: bool,
    ) -> pingora::Result<(HttpSession, bool)> {
        let peer = endpoint.peer(for_grpc);
        if !is_http2(peer) {
            return self.http1.get_http_session(peer).await;
        }
        match self.http2.reused_http_session(peer).await {
            Ok(Some(session)) => return Ok((HttpSession::H2(session), true)),
            Ok(None) => {}
            // It has broken since it was last used, and nothing was sent on it.
            Err(error) => tracing::debug!(%error, "a kept connection can't be used"),
        }
        Ok((HttpSession::H2(self.connect_http2(endpoint, peer).await?), false))
    }

    /// A connection that was not there before.
    ///
    /// # Errors
    /// It could not be made.
    pub async fn connect(
        &self,
        endpoint: &Endpoint,
        for_grpc: bool,
    ) -> pingora::Result<HttpSession> {
        let peer = endpoint.peer(for_grpc);
        if is_http2(peer) {
            return Ok(HttpSession::H2(self.connect_http2(endpoint, peer).await?));
        }
        let mut fresh = peer.clone();
        // A key of its own: no kept connection has it.
        fresh.group_key = u64::MAX;
        Ok(self.http1.get_http_session(&fresh).await?.0)
    }

    async fn connect_http2(
        &self,
        endpoint: &Endpoint,
        peer: &HttpPeer,
    ) -> pingora::Result<Http2Session> {
        let stream = self.http2.transport().new_stream(peer).await?;
        let guarded = GuardedServer::new(stream, stream_window(peer), endpoint.flood_observer());
        let mut settings = H2HandshakeSettings::new();
        settings.max_streams = peer.options.max_h2_streams;
        settings.ping_interval = peer.options.h2_ping_interval;
        settings.stream_window_size = peer.options.h2_stream_window_size;
        settings.connection_window_size = peer.options.h2_connection_window_size;
        let connection = handshake(Box::new(GuardedStream(guarded)), settings).await?;
        let session = connection.spawn_stream().await?.ok_or_else(|| {
            Error::explain(ErrorType::ConnectError, "a new connection takes no request")
        })?;
        if connection.more_streams_allowed() {
            self.http2.in_use_pool().insert(peer.reuse_hash(), connection);
        }
        Ok(session)
    }

    /// Keeps a connection whose exchange is over.
    pub async fn release(&self, session: HttpSession, endpoint: &Endpoint, for_grpc: bool) {
        let peer = endpoint.peer(for_grpc);
        let idle = peer.options.idle_timeout;
        match session {
            HttpSession::H2(session) => self.http2.release_http_session(session, peer, idle),
            session => self.http1.release_http_session(session, peer, idle).await,
        }
    }
}

/// Whether connections to it speak HTTP/2.
pub fn is_http2(peer: &HttpPeer) -> bool {
    peer.options.alpn.get_max_http_version() > 1
}

/// Bytes of one answer that it may send ahead.
fn stream_window(peer: &HttpPeer) -> u32 {
    // Unless something else is said, it has what every connection begins with.
    peer.options.h2_stream_window_size.unwrap_or(65_535)
}

/// A connection as Pingora takes it.
#[derive(Debug)]
struct GuardedStream(GuardedServer<Stream>);

impl GuardedStream {
    fn inner(&self) -> &Stream {
        self.0.get_ref()
    }

    fn inner_mut(&mut self) -> &mut Stream {
        self.0.get_mut()
    }
}

impl AsyncRead for GuardedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

crate::io::forward_writes!(GuardedStream, 0);
crate::io::forward_questions!(GuardedStream);

/// The socket of a connection that the pipe makes. Pingora knows no number of such a socket, so it is
/// noted here.
#[derive(Debug, Clone)]
pub struct PipeSocket(Arc<AtomicI32>);

impl PipeSocket {
    /// Its number, once it is connected.
    pub fn get(&self) -> Option<RawFd> {
        Some(self.0.load(Relaxed)).filter(|socket| *socket != NO_SOCKET)
    }
}

/// Has the pipe connect to this peer of `endpoint` by a guarded socket. The connection can't be one that is
/// kept, nor be kept.
pub fn guard_pipe(endpoint: &Endpoint, peer: &mut HttpPeer) -> PipeSocket {
    let socket = Arc::new(AtomicI32::new(NO_SOCKET));
    peer.options.custom_l4 = Some(Arc::new(PipeConnect {
        window: stream_window(peer),
        observer: endpoint.flood_observer(),
        socket: Arc::clone(&socket),
    }));
    PipeSocket(socket)
}

struct PipeConnect {
    window: u32,
    observer: FloodObserver,
    socket: Arc<AtomicI32>,
}

impl std::fmt::Debug for PipeConnect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PipeConnect").finish_non_exhaustive()
    }
}

#[async_trait]
impl L4Connect for PipeConnect {
    async fn connect(&self, address: &SocketAddr) -> pingora::Result<Socket> {
        let Some(address) = address.as_inet() else {
            return Error::e_explain(ErrorType::ConnectError, "expected an address of IP");
        };
        let stream = exhausted::connect(*address)
            .await
            .map_err(|error| Error::because(ErrorType::ConnectError, "no connection", error))?;
        self.socket.store(stream.as_raw_fd(), Relaxed);
        let guarded = GuardedServer::new(stream, self.window, Arc::clone(&self.observer));
        Ok(VirtualSocketStream::new(Box::new(GuardedSocket(guarded))).into())
    }
}

/// A connection under Pingora's buffers.
#[derive(Debug)]
struct GuardedSocket(GuardedServer<TcpStream>);

impl VirtualSocket for GuardedSocket {
    fn set_socket_option(&self, option: VirtualSockOpt) -> io::Result<()> {
        let stream = self.0.get_ref();
        match option {
            VirtualSockOpt::NoDelay => stream.set_nodelay(true),
            VirtualSockOpt::KeepAlive(settings) => {
                set_tcp_keepalive(stream, &settings).map_err(io::Error::other)
            }
            _ => Ok(()),
        }
    }
}

impl AsyncRead for GuardedSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

crate::io::forward_writes!(GuardedSocket, 0);
