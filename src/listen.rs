//! Accept loops: connections from a socket to the part of the proxy that serves them.
//!
//! Pingora's own loop spins at full speed on most errors of `accept`, waits a second on one, and ends
//! for good with a panic. A loop that stops accepting takes a listener out of service while the
//! process looks healthy. This one tells errors of one connection from a lack of resources, pauses
//! briefly for the latter, and is started again if it panics.

use crate::exhausted;
use forebay_process::limit::CLIENT;
use forebay_process::resources::{Exhausted, is_about_one_connection};
use forebay_process::supervise;
use pingora::apps::ServerApp;
use pingora::protocols::l4::stream::Stream as L4Stream;
use pingora::protocols::{GetSocketDigest, SocketDigest};
use pingora::server::ShutdownWatch;
use std::io;
use std::net::{self, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;

/// Longest queue of connections that wait to be accepted: what the kernel is asked for.
pub const MAX_WAITING: u32 = 65_536;
/// Pause after the system had no resources for a connection. Trying again at once would take the CPU
/// time that it takes to free some; a longer pause would delay recovery.
const PAUSE: Duration = Duration::from_millis(50);

/// A listener of the present runtime on a socket that is bound.
///
/// # Errors
/// The kernel refuses to listen, or no descriptor is left.
pub fn listener(socket: &net::TcpListener) -> io::Result<TcpListener> {
    let owned = OwnedFd::from(socket.try_clone()?);
    // It may listen already; this makes its queue longer.
    TcpSocket::from_std_stream(net::TcpStream::from(owned)).listen(MAX_WAITING)
}

/// Gives connections to `take` until told to stop. `name` is the listener's address in messages.
pub async fn accept(
    listener: &TcpListener,
    name: &str,
    mut stop: watch::Receiver<bool>,
    take: impl Fn(TcpStream, SocketAddr),
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        match accepted {
            Ok((stream, peer)) => take(stream, peer),
            Err(error) if is_about_one_connection(&error) => {
                tracing::debug!(listener = name, %error, "a connection ended before it was accepted");
            }
            Err(error) => {
                if let Some(resource) = Exhausted::of(&error) {
                    exhausted::count(resource, "accept");
                }
                tracing::warn!(target: CLIENT, listener = name, %error, "cannot accept connections");
                sleep(PAUSE).await;
            }
        }
        supervise::fault_point("accept");
    }
}

/// Has a Pingora application serve a connection in a task of its own.
pub fn serve<A: ServerApp + Send + Sync + 'static>(
    app: &Arc<A>,
    stream: TcpStream,
    peer: SocketAddr,
    stop: &ShutdownWatch,
) {
    // Without it an answer may be late, but not wrong.
    let _ = stream.set_nodelay(true);
    let digest = SocketDigest::from_raw_fd(stream.as_raw_fd());
    // A digest that was just made has no addresses yet.
    let _ = digest.peer_addr.set(Some(peer.into()));
    let mut stream = L4Stream::from(stream);
    stream.set_socket_digest(digest);
    let (app, stop) = (Arc::clone(app), stop.clone());
    tokio::spawn(async move {
        let mut next = app.process_new(Box::new(stream), &stop).await;
        while let Some(stream) = next {
            next = app.process_new(stream, &stop).await;
        }
    });
}
