//! Exchanges with an endpoint that wait for an answer, and how long each may.
//!
//! The kernel knows whether the other kernel acknowledges what it is sent; see
//! [`liveness`](super::liveness) for why it is asked.

use crate::config;
use forebay_routing::attempt::event::SilencePolicy;
use nix::sys::socket::{Shutdown, SockaddrStorage, getsockname, shutdown};
use pingora::protocols::TcpKeepalive;
use pingora::protocols::l4::ext::get_tcp_info;
use std::collections::HashMap;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Questions without an acknowledgement after which a silent connection is given up.
const MAX_KEEPALIVE_PROBES: u32 = 2;
/// Times that the same bytes were sent again without an acknowledgement. The pauses between them follow
/// the round trip, so this is a second or two on a local network and longer on a long way.
const MAX_RETRANSMISSIONS: u8 = 3;

/// TCP keepalive settings for silent connections.
pub fn keepalive(pool: &config::Pool) -> TcpKeepalive {
    // The kernel takes whole seconds.
    let each =
        Duration::from_secs((pool.tcp_keepalive / (MAX_KEEPALIVE_PROBES + 1)).as_secs().max(1));
    TcpKeepalive {
        idle: each,
        interval: each,
        count: MAX_KEEPALIVE_PROBES as usize,
        // Zero: the system's own.
        user_timeout: pool.tcp_user_timeout.unwrap_or_default(),
    }
}

/// Whether the other end acknowledges nothing that was sent. An end that has no room for more does
/// acknowledge, and is not meant.
pub fn is_unreachable(socket: RawFd) -> bool {
    get_tcp_info(socket).is_ok_and(|info| info.tcpi_retransmits >= MAX_RETRANSMISSIONS)
}

/// The time at which a request at an endpoint that went silent is sent to another one.
#[derive(Debug, Clone, Copy)]
pub struct SilenceTimeout {
    since: Instant,
    /// Minimum time for which it is left there; `None`: it stays.
    at_least: Option<Duration>,
    /// Whether others must answer probes meanwhile.
    pub(super) takes_another: bool,
    /// Whether a variant stands in where no retry is left.
    pub(super) has_stand_in: bool,
}

impl SilenceTimeout {
    /// The timeout that was decided on, for work of this expected duration.
    pub fn of(policy: SilencePolicy, expected: Duration) -> Self {
        let (at_least, takes_another) = (policy.at_least(expected), policy.takes_another());
        Self { since: Instant::now(), at_least, takes_another, has_stand_in: false }
    }

    /// The same for a request that another variant answers if this one does not.
    #[must_use]
    pub fn with_stand_in(self, has_stand_in: bool) -> Self {
        Self { has_stand_in, ..self }
    }

    /// For a request that may be sent elsewhere.
    pub fn when_overdue(expected: Duration) -> Self {
        Self::of(SilencePolicy::WhenOverdue, expected)
    }

    /// For a request that can't be sent elsewhere, since it may have had its effect. Its client had better
    /// know of the silence than wait until its deadline.
    pub fn when_silent_alone(expected: Duration) -> Self {
        Self::of(SilencePolicy::WhenSilentAlone, expected)
    }

    /// For a request that stays where it is.
    pub fn never() -> Self {
        Self::of(SilencePolicy::Never, Duration::ZERO)
    }

    /// Whether it is over.
    pub fn is_over(&self) -> bool {
        self.at_least.is_some_and(|at_least| self.since.elapsed() >= at_least)
    }
}

/// The exchanges of one endpoint whose answer has not begun and whose bytes Pingora moves. Nothing but the
/// end of its connection reaches such an exchange.
#[derive(Debug, Default)]
pub struct Awaited(Mutex<HashMap<RawFd, Arc<Exchange>>>);

/// One such exchange.
#[derive(Debug)]
pub struct Exchange {
    pub(super) socket: RawFd,
    /// The socket's own address: the number may have become another socket's.
    own: Option<SockaddrStorage>,
    silence_timeout: SilenceTimeout,
    stays: AtomicBool,
    was_cut: AtomicBool,
}

impl Exchange {
    pub(super) fn new(socket: RawFd, silence_timeout: SilenceTimeout) -> Self {
        Self {
            socket,
            own: getsockname(socket).ok(),
            silence_timeout,
            stays: AtomicBool::new(false),
            was_cut: AtomicBool::new(false),
        }
    }

    /// From now on it can't be sent to another endpoint.
    pub fn stays(&self) {
        self.stays.store(true, Relaxed);
    }

    /// Whether the proxy ended its connection.
    pub fn was_cut(&self) -> bool {
        self.was_cut.load(Relaxed)
    }

    pub(super) fn cut(&self) {
        if self.own.is_some() && getsockname(self.socket).ok() == self.own {
            self.was_cut.store(true, Relaxed);
            // One that is gone has ended by itself.
            let _ = shutdown(self.socket, Shutdown::Both);
        }
    }
}

impl Awaited {
    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<RawFd, Arc<Exchange>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends what waits in vain. `is_silent`: the endpoint is down for its silence.
    pub(super) fn look(&self, is_silent: bool) {
        for exchange in self.lock().values() {
            let moves =
                is_silent && !exchange.stays.load(Relaxed) && exchange.silence_timeout.is_over();
            if moves || is_unreachable(exchange.socket) {
                exchange.cut();
            }
        }
    }
}
