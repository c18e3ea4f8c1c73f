//! Accept loops: connections from a socket to the part of the proxy that serves them.
//!
//! Pingora's own loop spins at full speed on most errors of `accept`, waits a second on one, and ends
//! for good with a panic. A loop that stops accepting takes a listener out of service while the
//! process looks healthy. This one tells errors of one connection from a lack of resources, pauses
//! briefly for the latter, and is started again if it panics. It keeps a spare descriptor, so that
//! where there is none left a client is told so.

use crate::exhausted;
use forebay_process::allocator::lasting;
use forebay_process::limit::CLIENT;
use forebay_process::resources::{Exhausted, Spare, is_about_one_connection};
use forebay_process::supervise;
use std::future::poll_fn;
use std::io;
use std::net::{self, SocketAddr};
use std::os::fd::OwnedFd;
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
    let mut spare = Spare::default();
    loop {
        spare.take();
        let accepted = tokio::select! {
            accepted = poll_fn(|cx| lasting(|| listener.poll_accept(cx))) => accepted,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        match accepted {
            Ok((stream, peer)) => take(stream, peer),
            Err(error) if is_about_one_connection(&error) => {
                tracing::debug!(listener = name, %error, "connection ended before it was accepted");
            }
            Err(error) => {
                let resource = Exhausted::of(&error);
                if let Some(resource) = resource {
                    exhausted::count(resource, "accept");
                }
                // One more can be told that it is one too many.
                if resource == Some(Exhausted::Descriptors) && spare.give_up() {
                    continue;
                }
                tracing::warn!(target: CLIENT, listener = name, %error, "cannot accept connections");
                sleep(PAUSE).await;
            }
        }
        supervise::fault_point("accept");
    }
}
