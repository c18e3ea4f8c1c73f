//! Detects a connection whose other end is gone.
//!
//! A machine that loses its power or its network sends nothing: its connections stay open, and
//! unacknowledged bytes are sent again for a quarter of an hour. HTTP/2 pings would find out, but servers
//! take them for an attack. So the kernel is asked: it knows whether the other kernel acknowledges the bytes
//! that it is sent, which needs no help from a server, however busy that is.

use super::awaited::{Exchange, SilenceTimeout, is_unreachable};
use super::{EndpointState, Pool};
use crate::clock;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Instant;
use tokio::task::AbortHandle;
use tokio::time::sleep_until;

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

/// Keeps an exchange among the awaited until it is dropped.
#[derive(Debug)]
pub struct Watched {
    endpoint: Arc<EndpointState>,
    exchange: Arc<Exchange>,
}

impl Watched {
    /// Watches the exchange on this socket, which must stay open while it lasts.
    pub fn new(
        endpoint: &Arc<EndpointState>,
        socket: RawFd,
        silence_timeout: SilenceTimeout,
    ) -> Self {
        let exchange = Arc::new(Exchange::new(socket, silence_timeout));
        endpoint.awaited.lock().insert(socket, Arc::clone(&exchange));
        Self { endpoint: Arc::clone(endpoint), exchange }
    }

    /// The watched exchange.
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

/// Ends the connection of an exchange at its deadline, unless this is dropped before: Pingora, which moves
/// the bytes, bounds each read and write, so that what moves just before the deadline could last for as long
/// again. The connection must be the exchange's own.
#[derive(Debug)]
pub struct CutAt {
    exchange: Arc<Exchange>,
    timer: AbortHandle,
}

impl CutAt {
    /// Ends the exchange on this socket at this time.
    pub fn new(socket: RawFd, at: Instant) -> Self {
        let exchange = Arc::new(Exchange::new(socket, SilenceTimeout::never()));
        let cut = Arc::clone(&exchange);
        let timer = tokio::spawn(async move {
            sleep_until(at.into()).await;
            cut.cut();
        });
        Self { exchange, timer: timer.abort_handle() }
    }

    /// Did the deadline come?
    pub fn was_cut(&self) -> bool {
        self.exchange.was_cut()
    }
}

impl Drop for CutAt {
    fn drop(&mut self) {
        self.timer.abort();
    }
}

/// Until a request that waits for an answer on this socket waits in vain. Where it is to be sent elsewhere, that
/// has been paid for ([`Lost::Silent`]): one that can't be would give up an answer that may still come.
pub async fn until_lost(
    (endpoint, pool): (&EndpointState, &Pool),
    socket: impl Fn() -> Option<RawFd>,
    silence_timeout: SilenceTimeout,
) -> Lost {
    loop {
        endpoint.unanswered().await;
        if socket().is_some_and(is_unreachable) {
            return Lost::Unreachable;
        }
        if is_over(silence_timeout, endpoint) {
            let is_alone = pool.is_silent_alone(endpoint);
            if silence_timeout.takes_another {
                if is_alone {
                    return Lost::Silent { is_paid: false };
                }
            } else if pool.state.budget.try_retry(clock::now()) {
                return Lost::Silent { is_paid: true };
            } else if is_alone || silence_timeout.has_stand_in {
                // Others go on, and this one does not.
                return Lost::Silent { is_paid: false };
            }
        }
    }
}

/// Whether the timeout at this endpoint is over.
fn is_over(silence_timeout: SilenceTimeout, endpoint: &EndpointState) -> bool {
    endpoint.is_silent() && silence_timeout.is_over()
}

/// Why a request waits in vain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// The other end acknowledges nothing.
    Unreachable,
    /// It answers neither the request nor probes.
    Silent {
        /// Whether a retry has been taken from the pool's budget for it.
        is_paid: bool,
    },
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
    use super::*;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;
    use std::time::Duration;

    fn endpoint() -> Arc<EndpointState> {
        Arc::new(EndpointState::new(([127, 0, 0, 1], 1).into(), 1, Arc::default()))
    }

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (ours, listener.accept().unwrap().0)
    }

    fn watched(
        endpoint: &Arc<EndpointState>,
        socket: &TcpStream,
        silence_timeout: SilenceTimeout,
    ) -> Watched {
        Watched::new(endpoint, socket.as_raw_fd(), silence_timeout)
    }

    #[test]
    fn only_what_is_overdue_at_a_silent_endpoint_and_may_move_is_cut() {
        let endpoint = endpoint();
        let (ours, mut theirs) = pair();
        let overdue = SilenceTimeout::when_overdue(Duration::ZERO);
        for (silence_timeout, silent, stays) in [
            (SilenceTimeout::never(), true, false),
            (SilenceTimeout::when_overdue(Duration::from_secs(1000)), true, false),
            (overdue, false, false),
            (overdue, true, true),
        ] {
            let watched = watched(&endpoint, &ours, silence_timeout);
            if stays {
                watched.exchange().stays();
            }
            endpoint.awaited.look(silent);
            assert!(!watched.exchange().was_cut(), "{silence_timeout:?}, {silent}, {stays}");
        }
        let watched = watched(&endpoint, &ours, overdue);
        endpoint.awaited.look(true);
        assert!(watched.exchange().was_cut());
        assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
    }

    #[tokio::test]
    async fn a_deadline_ends_a_connection_unless_the_exchange_was_over_before() {
        let (ours, mut theirs) = pair();
        drop(CutAt::new(ours.as_raw_fd(), Instant::now()));
        tokio::task::yield_now().await;
        theirs.set_nonblocking(true).unwrap();
        assert!(theirs.read(&mut [0]).is_err(), "still open");
        let cut = CutAt::new(ours.as_raw_fd(), Instant::now());
        while !cut.was_cut() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        theirs.set_nonblocking(false).unwrap();
        assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_number_that_became_another_sockets_is_not_cut() {
        let endpoint = endpoint();
        let (ours, _theirs) = pair();
        let (mut other, other_end) = pair();
        let mut watched = watched(&endpoint, &ours, SilenceTimeout::when_overdue(Duration::ZERO));
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
        let first = watched(&endpoint, &ours, SilenceTimeout::never());
        let second = watched(&endpoint, &ours, SilenceTimeout::never());
        drop(first);
        assert_eq!(endpoint.awaited.lock().len(), 1, "the number is the second one's now");
        drop(second);
        assert!(endpoint.awaited.lock().is_empty());
    }
}
