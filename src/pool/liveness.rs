//! Is there still someone at the other end of a connection?
//!
//! A machine that loses its power or its network says nothing: its connections stay open, and what is
//! sent on them is sent again for a quarter of an hour. Pings of HTTP/2 would find out, but servers take
//! them for an attack. So the kernel is asked: it knows whether the other kernel acknowledges what it is
//! sent, which needs no help from a server, however busy that is.

use super::{EndpointState, Pool};
use crate::config;
use nix::sys::socket::{Shutdown, SockaddrStorage, getsockname, shutdown};
use pingora::protocols::TcpKeepalive;
use pingora::protocols::l4::ext::get_tcp_info;
use std::collections::HashMap;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Questions without an acknowledgement after which a silent connection is given up.
const QUESTIONS: u32 = 2;
/// Times that the same bytes were sent again without an acknowledgement. The pauses between them follow
/// the round trip, so this is a second or two on a local network and longer on a long way.
const RETRANSMISSIONS: u8 = 3;

/// How the kernel asks on silent connections.
pub fn keepalive(pool: &config::Pool) -> TcpKeepalive {
    // The kernel takes whole seconds.
    let each = Duration::from_secs((pool.tcp_keepalive / (QUESTIONS + 1)).as_secs().max(1));
    TcpKeepalive {
        idle: each,
        interval: each,
        count: QUESTIONS as usize,
        // Zero: the system's own.
        user_timeout: pool.tcp_user_timeout.unwrap_or_default(),
    }
}

/// Does the other end acknowledge nothing of what was sent? An end that has no room for more does
/// acknowledge, and is not meant.
pub fn is_unreachable(socket: RawFd) -> bool {
    get_tcp_info(socket).is_ok_and(|info| info.tcpi_retransmits >= RETRANSMISSIONS)
}

/// Until the other end of a connection to this endpoint acknowledges nothing any more. It is looked at
/// only when a probe had no answer.
pub async fn unreachable(endpoint: &EndpointState, socket: RawFd) {
    loop {
        endpoint.unanswered().await;
        if is_unreachable(socket) {
            return;
        }
    }
}

/// When a request that waits at an endpoint that went silent is sent to another one.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    since: Instant,
    /// How long it is left there in any case; `None`: it stays.
    at_least: Option<Duration>,
    /// Whether others must answer probes meanwhile.
    takes_another: bool,
}

impl Patience {
    /// For a request that may be sent elsewhere. An endpoint that gives probes no answer in time may be at
    /// work on just this one, so that it is left in peace for twice the time that its work is expected to
    /// take.
    pub fn until_overdue(expected: Duration) -> Self {
        Self { since: Instant::now(), at_least: Some(expected * 2), takes_another: false }
    }

    /// For a request that can't be sent elsewhere, since it may have had its effect. Its caller had better
    /// know of the silence than wait until its deadline; but if all endpoints are silent, they may well be
    /// at work.
    pub fn until_silent_alone(expected: Duration) -> Self {
        Self { takes_another: true, ..Self::until_overdue(expected) }
    }

    /// For a request that stays where it is.
    pub fn endless() -> Self {
        Self { since: Instant::now(), at_least: None, takes_another: false }
    }

    /// Is it over?
    pub fn is_over(&self) -> bool {
        self.at_least.is_some_and(|at_least| self.since.elapsed() >= at_least)
    }

    /// Is it over with this endpoint, which belongs to this pool?
    pub fn is_over_with(&self, endpoint: &EndpointState, pool: &Pool) -> bool {
        endpoint.is_silent()
            && self.is_over()
            && (!self.takes_another || pool.is_silent_alone(endpoint))
    }
}

/// The exchanges of one endpoint whose answer has not begun and whose bytes Pingora moves. Nothing but the
/// end of its connection reaches such an exchange.
#[derive(Debug, Default)]
pub struct Awaited(Mutex<HashMap<RawFd, Arc<Exchange>>>);

/// One such exchange.
#[derive(Debug)]
pub struct Exchange {
    socket: RawFd,
    /// The socket's own address: the number may have become another socket's.
    own: Option<SockaddrStorage>,
    patience: Patience,
    stays: AtomicBool,
    was_cut: AtomicBool,
}

impl Exchange {
    /// From now on it can't be sent to another endpoint.
    pub fn stays(&self) {
        self.stays.store(true, Relaxed);
    }

    /// Was its connection ended from here?
    pub fn was_cut(&self) -> bool {
        self.was_cut.load(Relaxed)
    }

    fn cut(&self) {
        if self.own.is_some() && getsockname(self.socket).ok() == self.own {
            self.was_cut.store(true, Relaxed);
            // One that is gone has ended by itself.
            let _ = shutdown(self.socket, Shutdown::Both);
        }
    }
}

impl Awaited {
    fn lock(&self) -> MutexGuard<'_, HashMap<RawFd, Arc<Exchange>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends what waits in vain. `is_silent`: the endpoint is down for its silence.
    pub(super) fn look(&self, is_silent: bool) {
        for exchange in self.lock().values() {
            let moves = is_silent && !exchange.stays.load(Relaxed) && exchange.patience.is_over();
            if moves || is_unreachable(exchange.socket) {
                exchange.cut();
            }
        }
    }
}

/// Keeps an exchange among the awaited until it is dropped.
#[derive(Debug)]
pub struct Watched {
    endpoint: Arc<EndpointState>,
    exchange: Arc<Exchange>,
}

impl Watched {
    /// Watches the exchange on this socket, which must stay open while it lasts.
    pub fn new(endpoint: &Arc<EndpointState>, socket: RawFd, patience: Patience) -> Self {
        let exchange = Arc::new(Exchange {
            socket,
            own: getsockname(socket).ok(),
            patience,
            stays: AtomicBool::new(false),
            was_cut: AtomicBool::new(false),
        });
        endpoint.awaited.lock().insert(socket, Arc::clone(&exchange));
        Self { endpoint: Arc::clone(endpoint), exchange }
    }

    /// What is watched.
    pub fn exchange(&self) -> &Exchange {
        &self.exchange
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let mut awaited = self.endpoint.awaited.lock();
        let socket = self.exchange.socket;
        if awaited.get(&socket).is_some_and(|known| Arc::ptr_eq(known, &self.exchange)) {
            awaited.remove(&socket);
        }
    }
}

/// Until a request that waits for an answer on this socket waits in vain.
pub async fn in_vain(
    (endpoint, pool): (&EndpointState, &Pool),
    socket: impl Fn() -> Option<RawFd>,
    patience: Patience,
) -> Vain {
    loop {
        endpoint.unanswered().await;
        if socket().is_some_and(is_unreachable) {
            return Vain::Unreachable;
        }
        if patience.is_over_with(endpoint, pool) {
            return Vain::Silent;
        }
    }
}

/// Why a request waits in vain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vain {
    /// The other end acknowledges nothing.
    Unreachable,
    /// It answers neither the request nor probes.
    Silent,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
    use super::*;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    fn endpoint() -> Arc<EndpointState> {
        Arc::new(EndpointState::new(([127, 0, 0, 1], 1).into(), 1, Arc::default()))
    }

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (ours, listener.accept().unwrap().0)
    }

    fn watched(endpoint: &Arc<EndpointState>, socket: &TcpStream, patience: Patience) -> Watched {
        Watched::new(endpoint, socket.as_raw_fd(), patience)
    }

    #[test]
    fn only_what_is_overdue_at_a_silent_endpoint_and_may_move_is_cut() {
        let endpoint = endpoint();
        let (ours, mut theirs) = pair();
        let overdue = Patience::until_overdue(Duration::ZERO);
        for (patience, silent, stays) in [
            (Patience::endless(), true, false),
            (Patience::until_overdue(Duration::from_secs(1000)), true, false),
            (overdue, false, false),
            (overdue, true, true),
        ] {
            let watched = watched(&endpoint, &ours, patience);
            if stays {
                watched.exchange().stays();
            }
            endpoint.awaited.look(silent);
            assert!(!watched.exchange().was_cut(), "{patience:?}, {silent}, {stays}");
        }
        let watched = watched(&endpoint, &ours, overdue);
        endpoint.awaited.look(true);
        assert!(watched.exchange().was_cut());
        assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_number_that_became_another_sockets_is_not_cut() {
        let endpoint = endpoint();
        let (ours, _theirs) = pair();
        let (mut other, other_end) = pair();
        let mut watched = watched(&endpoint, &ours, Patience::until_overdue(Duration::ZERO));
        let exchange = Arc::get_mut(&mut watched.exchange);
        assert!(exchange.is_none(), "the registry has it too");
        endpoint.awaited.lock().clear();
        Arc::get_mut(&mut watched.exchange).unwrap().socket = other.as_raw_fd();
        let copy = Arc::clone(&watched.exchange);
        endpoint.awaited.lock().insert(other.as_raw_fd(), copy);
        endpoint.awaited.look(true);
        assert!(!watched.exchange().was_cut());
        other.set_nonblocking(true).unwrap();
        assert!(other.read(&mut [0]).is_err(), "still open");
        drop(other_end);
    }

    #[test]
    fn what_is_over_is_not_watched() {
        let endpoint = endpoint();
        let (ours, _theirs) = pair();
        let first = watched(&endpoint, &ours, Patience::endless());
        let second = watched(&endpoint, &ours, Patience::endless());
        drop(first);
        assert_eq!(endpoint.awaited.lock().len(), 1, "the number is the second one's now");
        drop(second);
        assert!(endpoint.awaited.lock().is_empty());
    }
}
