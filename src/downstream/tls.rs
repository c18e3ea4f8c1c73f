//! Terminates TLS, so that the content can be routed.
//!
//! Pingora's own listeners shake hands before any code of this program runs, but a PROXY header comes before
//! TLS, and a silent client must not be waited for. So the handshake is a step of this module, with a
//! deadline, with the certificates of the current configuration, and every failure has a name: an operator
//! must be able to tell a scanner from a client that no longer trusts the certificate.

use crate::config::{Config, Tls};
use crate::connections::Connections;
use async_trait::async_trait;
use forebay_protocol::metric;
use pingora::protocols::l4::stream::Stream as L4Stream;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::SslDigest;
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    TimingDigest, UniqueID, UniqueIDType,
};
use rustls::{Error, ProtocolVersion, ServerConfig};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Time that the last words on a connection may take.
const GOODBYE: Duration = Duration::from_secs(5);

/// Why there was no handshake.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// It took too long.
    #[error("expected a TLS handshake within {0:?}")]
    Late(Duration),
    /// The connection ended or broke.
    #[error("expected a TLS handshake, found the end of the connection")]
    Closed,
    /// The two sides do not agree, or only one of them speaks TLS.
    #[error("expected a TLS handshake: {0}")]
    Refused(Error),
}

impl HandshakeError {
    /// The word in metrics.
    pub fn outcome(&self) -> &'static str {
        match self {
            Self::Late(_) => "late",
            Self::Closed => "closed",
            Self::Refused(error) => match error {
                Error::InvalidMessage(_) | Error::InappropriateMessage { .. } => "not_tls",
                // No version, cipher suite or curve in common.
                Error::PeerIncompatible(_) => "incompatible",
                Error::NoApplicationProtocol => "protocol",
                Error::NoCertificatesPresented | Error::InvalidCertificate(_) => {
                    "client_certificate"
                }
                // The client does not like ours, most likely.
                Error::AlertReceived(_) => "client_refused",
                _ => "other",
            },
        }
    }
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        error.downcast::<Error>().map_or(Self::Closed, Self::Refused)
    }
}

/// The current settings of handshakes at the listener with this position in the configuration.
pub fn current(config: &Config, place: usize) -> Option<Arc<ServerConfig>> {
    config.listeners.get(place)?.tls.as_ref().map(|tls: &Tls| Arc::clone(&tls.server))
}

/// Shakes hands within `in_all` from `began` on, and counts how that ended.
///
/// # Errors
/// It did not end well.
pub async fn handshake<S>(
    config: Arc<ServerConfig>,
    stream: S,
    (began, in_all): (Instant, Duration),
    connections: &Connections,
) -> Result<TlsStream<S>, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let accepting = TlsAcceptor::from(config).accept(stream);
    let accepted = match timeout_at(began + in_all, accepting).await {
        Ok(accepted) => accepted.map_err(HandshakeError::from),
        Err(_) => Err(HandshakeError::Late(in_all)),
    };
    metric::proxy::TLS_HANDSHAKES
        .with([
            &connections.listener,
            accepted.as_ref().map_or("", version),
            accepted.as_ref().map_or_else(HandshakeError::outcome, |_| "ok"),
        ])
        .increment(1);
    accepted
}

/// The version that is spoken, as in the configuration.
pub fn version<S>(stream: &TlsStream<S>) -> &'static str {
    match stream.get_ref().1.protocol_version() {
        Some(ProtocolVersion::TLSv1_3) => "1.3",
        Some(ProtocolVersion::TLSv1_2) => "1.2",
        _ => "",
    }
}

/// A client's connection inside of which requests are spoken.
#[derive(Debug)]
pub struct Encrypted {
    stream: TlsStream<L4Stream>,
    digest: Arc<SslDigest>,
}

impl Encrypted {
    /// A connection after its handshake.
    pub fn new(stream: TlsStream<L4Stream>) -> Self {
        let suite = stream.get_ref().1.negotiated_cipher_suite();
        let suite = suite.and_then(|suite| suite.suite().as_str()).unwrap_or_default();
        let digest = SslDigest::new(suite, version(&stream), None, None, Vec::new());
        Self { stream, digest: Arc::new(digest) }
    }

    fn socket(&self) -> &L4Stream {
        self.stream.get_ref().0
    }
}

impl AsyncRead for Encrypted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Encrypted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

// The traits that Pingora requires of a connection.

#[async_trait]
impl Shutdown for Encrypted {
    async fn shutdown(&mut self) {
        // A client that reads nothing any more does not get to hold its connection with that.
        let _ = timeout(GOODBYE, self.stream.shutdown()).await;
    }
}

impl Ssl for Encrypted {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        Some(Arc::clone(&self.digest))
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        match self.stream.get_ref().1.alpn_protocol()? {
            b"h2" => Some(ALPN::H2),
            _ => Some(ALPN::H1),
        }
    }
}

impl UniqueID for Encrypted {
    fn id(&self) -> UniqueIDType {
        self.socket().id()
    }
}

impl GetTimingDigest for Encrypted {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.socket().get_timing_digest()
    }

    fn get_read_pending_time(&self) -> Duration {
        self.socket().get_read_pending_time()
    }

    fn get_write_pending_time(&self) -> Duration {
        self.socket().get_write_pending_time()
    }
}

impl GetProxyDigest for Encrypted {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.socket().get_proxy_digest()
    }

    fn set_proxy_digest(&mut self, digest: ProxyDigest) {
        self.stream.get_mut().0.set_proxy_digest(digest);
    }
}

impl GetSocketDigest for Encrypted {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.socket().get_socket_digest()
    }

    fn set_socket_digest(&mut self, digest: SocketDigest) {
        self.stream.get_mut().0.set_socket_digest(digest);
    }
}

impl Peek for Encrypted {}
