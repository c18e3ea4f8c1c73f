//! How many connections each listener holds, and that they are not too many.
//!
//! A connection costs memory and a file descriptor whether or not it ever says anything, and when
//! descriptors run out, nothing works any more: not the callers that are there, not the probes, not
//! the admin listener. So each listener has a bound, and beyond it a connection is refused at once.

use crate::config;
use forebay_protocol::{Reason, metric};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The connections of one listener.
#[derive(Debug)]
pub struct Connections {
    /// The listener's address, as it is bound: its name in logs and metrics.
    pub listener: Arc<str>,
    /// What is spoken there.
    pub protocol: &'static str,
    most: usize,
    open: AtomicUsize,
}

/// One open connection; dropping it counts it out.
#[derive(Debug)]
pub struct Connection {
    of: Arc<Connections>,
    outcome: &'static str,
}

impl Connections {
    /// None yet.
    pub fn new(bound: std::net::SocketAddr, listener: &config::Listener) -> Self {
        Self {
            listener: bound.to_string().into(),
            protocol: listener.protocol.as_str(),
            most: listener.max_connections,
            open: AtomicUsize::new(0),
        }
    }

    /// Counts a connection in; `None` (and counted as refused) if there are too many already.
    pub fn enter(self: &Arc<Self>) -> Option<Connection> {
        let before = self.open.fetch_add(1, Relaxed);
        let mut connection = Connection { of: Arc::clone(self), outcome: OK };
        if before >= self.most {
            connection.ended(Reason::ConnectionLimit);
            return None;
        }
        Some(connection)
    }

    /// Counts a connection that was never let in.
    pub fn refused(&self, reason: Reason) {
        self.count(reason.code());
    }

    fn count(&self, outcome: &'static str) {
        metrics::counter!(
            metric::proxy::CONNECTIONS,
            "listener" => self.listener.to_string(), "reason" => outcome,
        )
        .increment(1);
    }

    /// How many are open.
    pub fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    /// How many may be open.
    pub fn most(&self) -> usize {
        self.most
    }
}

impl Connection {
    /// The listener's connections, this one among them.
    pub fn listener(&self) -> &Connections {
        &self.of
    }

    /// It ends for this reason; without one it ends in order.
    pub fn ended(&mut self, reason: Reason) {
        self.outcome = reason.code();
    }

    /// Why it ended: `ok`, or the reason.
    pub fn outcome(&self) -> &'static str {
        self.outcome
    }
}

/// Ended in order.
const OK: &str = "ok";

impl Drop for Connection {
    fn drop(&mut self) {
        self.of.open.fetch_sub(1, Relaxed);
        self.of.count(self.outcome);
    }
}
