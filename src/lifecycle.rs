//! Whether the process takes requests, and how many it has: what all layers count into and ask.
//!
//! [`server`](crate::server) leads the process from one phase to the next; this only says which it is.
//! Requests and connections are counted by guards, which give back their place when they are dropped, so
//! that no way out of a request can forget to.

use crate::body_memory::Memory;
use crate::pool::{Snapshot, readiness};
use forebay_process::memory::{self, Taken};
use forebay_process::places::Places;
use forebay_process::supervise::Supervisor;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::sleep;

/// Whether the process takes requests, and how many it has.
#[derive(Debug, Default)]
pub struct Lifecycle {
    /// The tasks that keep the process going.
    pub tasks: Supervisor,
    draining: AtomicBool,
    in_flight: Taken,
    /// Open connections at Layer 7.
    open: Taken,
    /// Memory that bodies and answers hold.
    memory: Arc<Memory>,
    /// Requests in flight beyond those that are not counted by clients.
    requests: Arc<Places>,
    /// Open streams of gRPC.
    streams: Arc<Places>,
    /// Whether what is still open has had its time.
    cut: watch::Sender<bool>,
}

/// Counts as an open connection until dropped.
#[derive(Debug)]
pub struct OpenConnection(Arc<Lifecycle>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.open.remove(1);
    }
}

/// Counts as a request in flight until dropped.
#[derive(Debug)]
pub struct InFlightRequest(Arc<Lifecycle>);

impl Lifecycle {
    /// Counts a request in.
    pub fn enter(self: &Arc<Self>) -> InFlightRequest {
        self.in_flight.add(1);
        InFlightRequest(Arc::clone(self))
    }

    /// Requests inside the proxy.
    pub fn in_flight(&self) -> usize {
        self.in_flight.now()
    }

    /// Whether the process is shutting down.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    /// From now on the process is on its way out.
    pub fn begin_drain(&self) {
        self.draining.store(true, Relaxed);
    }

    /// Closes the connections that are still open after the drain.
    pub fn cut_what_is_open(&self) {
        self.cut.send_replace(true);
    }

    /// Whether requests can be served: the process is not draining, all vital tasks run and make progress,
    /// and there are endpoints for the routes ([`readiness`]).
    pub fn is_ready(&self, snapshot: &Snapshot) -> bool {
        !self.is_draining() && self.tasks.all_up() && readiness::is_ready(snapshot)
    }

    /// Counts a new connection in.
    pub fn connected(self: &Arc<Self>) -> OpenConnection {
        self.open.add(1);
        OpenConnection(Arc::clone(self))
    }

    /// The consumers of memory, each with the amount that counts as little.
    pub fn takes_memory(&self) -> [memory::Watched<'_>; 3] {
        [(&self.open, 100), (&self.in_flight, 50), (self.memory.taken(), 1024 * 1024)]
    }

    /// Memory that bodies and answers hold.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// The open streams of gRPC.
    pub fn streams(&self) -> &Arc<Places> {
        &self.streams
    }

    /// Places of requests that are in flight where many are.
    pub fn requests(&self) -> &Arc<Places> {
        &self.requests
    }

    /// Until what is still open has had its time.
    pub async fn cut_off(&self) {
        // The sender is ours: waiting does not fail.
        let _ = self.cut.subscribe().wait_for(|cut| *cut).await;
    }

    /// Until nothing is in flight, and nothing that was accepted can still become a request.
    pub async fn wait_idle(&self) {
        let started = Instant::now();
        let mut quiet = 0;
        // Between its first byte and its count a connection is seen by neither, for as long as a busy
        // machine lets its task wait; so look again.
        while quiet < IDLE_CHECKS {
            sleep(IDLE_CHECK_INTERVAL).await;
            let open = self.open.now() > 0 && started.elapsed() < MAX_SILENCE;
            quiet = if open || self.in_flight() > 0 { 0 } else { quiet + 1 };
        }
    }
}

/// Interval at which a draining process checks whether it is idle.
const IDLE_CHECK_INTERVAL: Duration = Duration::from_millis(10);
/// Number of checks in a row that must find it idle.
const IDLE_CHECKS: u32 = 5;
/// Time that the last connections get to say something, or to end.
const MAX_SILENCE: Duration = Duration::from_secs(1);

impl Drop for InFlightRequest {
    fn drop(&mut self) {
        self.0.in_flight.remove(1);
    }
}
