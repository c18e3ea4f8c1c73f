//! Connections that fail because this machine has run out of something.
//!
//! They say nothing about the endpoint: they get a reason and a count of their own.

use crate::refusal::Refusal;
use forebay_process::resources::{Descriptors, Exhausted};
use forebay_protocol::{Reason, metric};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use tokio::net::{TcpSocket, TcpStream};

/// Counts a connection that failed for want of `resource`.
pub fn count(resource: Exhausted, operation: &'static str) {
    metric::proxy::EXHAUSTED.with([resource.as_str(), operation]).increment(1);
}

/// The resource whose lack is behind an error of Pingora, if one is.
pub fn behind(error: &Error) -> Option<Exhausted> {
    Exhausted::behind(error.root_cause())
}

/// The refusal of a request that a lack of `resource` has ended.
pub fn refusal(resource: Exhausted) -> Refusal {
    Refusal::new(Reason::ProxyExhausted, format!("the proxy has run out of {}", resource.as_str()))
}

/// Closes a connection so that nothing of it is left behind.
pub fn reset(stream: &TcpStream) {
    // If a reset cannot be had, closing will do.
    let _ = stream.set_zero_linger();
}

/// A connection that is one too many, and is told so; counted until dropped.
pub struct LastWords;

/// Their current number, at all listeners.
static LAST_WORDS: AtomicU64 = AtomicU64::new(0);

impl LastWords {
    /// `None`: so many are being told that there is no room for one more.
    pub fn begin() -> Option<Self> {
        let most = Descriptors::of_this_process().for_last_words();
        // Counted out again where it is dropped.
        let one = Self;
        (LAST_WORDS.fetch_add(1, Relaxed) < most).then_some(one)
    }
}

impl Drop for LastWords {
    fn drop(&mut self) {
        LAST_WORDS.fetch_sub(1, Relaxed);
    }
}

type Check = dyn Fn(&TcpSocket) -> pingora::Result<()> + Send + Sync;

/// Keeps connections to `peer` off the descriptors that are reserved for probes and the admin listener.
pub fn keep_reserve(peer: &mut HttpPeer) {
    static CHECK: LazyLock<Arc<Check>> = LazyLock::new(|| {
        Arc::new(|socket| {
            leaves_reserve(socket)
                .map_err(|error| Error::because(ErrorType::SocketError, "no descriptor", error))
        })
    });
    peer.options.upstream_tcp_sock_tweak_hook = Some(Arc::clone(&CHECK));
}

/// A connection for a request, which leaves the same descriptors alone.
///
/// # Errors
/// It cannot be made.
pub async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    leaves_reserve(&socket)?;
    socket.connect(address).await
}

fn leaves_reserve(socket: &TcpSocket) -> io::Result<()> {
    if Descriptors::of_this_process().allow_request(socket.as_fd()) {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EMFILE))
    }
}
