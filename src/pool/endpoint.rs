//! An endpoint: its address, and the state that is kept for it.
//!
//! Many tasks write here at once (requests, probes, polls), so each part is an atomic of its own and
//! documents which side writes it. The parts' combined meaning, the health, is written by the control task
//! alone.

use super::awaited::Awaited;
use super::report::history::ReportHistory;
use crate::clock;
use forebay_http2guard::{FloodObserver, SERVER_FLOODED};
use forebay_process::limit::CLIENT;
use forebay_protocol::metric;
use forebay_routing::health::outlier::{EjectionHistory, OutcomeCounts};
use forebay_routing::{Candidate, Health, Load, Outcome, Time};
use pingora::upstreams::peer::HttpPeer;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// An endpoint at one moment: how to reach it, and what is remembered of it.
#[derive(Debug)]
pub struct Endpoint {
    /// State that outlives the snapshot.
    pub state: Arc<EndpointState>,
    /// Address and timeouts, as Pingora takes them, for plain HTTP.
    pub(super) peer: HttpPeer,
    /// The same for gRPC.
    pub(super) grpc: HttpPeer,
    /// The pool's name, for metrics and logs.
    pub(super) pool: Arc<str>,
}

impl Endpoint {
    /// The peer to connect to.
    pub fn peer(&self, for_grpc: bool) -> &HttpPeer {
        if for_grpc { &self.grpc } else { &self.peer }
    }

    /// Counts and logs that the endpoint floods a connection over HTTP/2.
    pub fn flood_observer(&self) -> FloodObserver {
        let (state, pool) = (Arc::clone(&self.state), Arc::clone(&self.pool));
        Arc::new(move |flood| {
            state.floods.fetch_add(1, Relaxed);
            let kind = flood.as_str();
            metric::proxy::ENDPOINT_HTTP2_FLOODS.with([&*pool, &*state.name, kind]).increment(1);
            let endpoint = &*state.name;
            // An endpoint can do it as often as it is asked.
            tracing::warn!(target: CLIENT, pool = &*pool, endpoint, kind, "{SERVER_FLOODED}");
        })
    }
}

/// State of an endpoint for as long as any snapshot has its address in the same pool.
#[derive(Debug)]
pub struct EndpointState {
    /// Its address.
    pub address: SocketAddr,
    /// The same as text, for logs, labels and headers.
    pub name: Arc<str>,
    /// Its load, shared with the guards of requests in flight.
    pub load: Arc<Load>,
    /// The load of what lasts: connections at Layer 4, streams. They may be silent for hours, so they
    /// are balanced among themselves and take no slots from requests.
    pub long_lived: Arc<Load>,
    /// Origin and order of its reports.
    pub reports: ReportHistory,
    /// Counts its answers; resolved when the first comes.
    pub answers: OnceLock<metrics::Counter>,
    /// Whether it may be picked, all in all; written by [`control`](super::control) only, like what it is
    /// made from.
    pub(super) health: AtomicU8,
    /// Its position among those in rotation, if it is; written by [`control`](super::control) only.
    pub(super) place: AtomicUsize,
    /// Since when it has been ready, in nanoseconds on the clock of [`Time`].
    ready_since: AtomicU64,
    /// The health by its probes.
    pub(super) probed: AtomicU8,
    /// Whether its probes took it down only by having no answer in time; written by
    /// [`control`](super::control) only.
    pub(super) silent: AtomicBool,
    /// Time at which its probes had taken it down for that, and time of the last answered probe, in
    /// nanoseconds on the clock of [`Time`]; 0: never.
    pub(super) silent_since: AtomicU64,
    pub(super) answered_probe_at: AtomicU64,
    /// Whether an operator has it drained.
    pub(super) drained: AtomicBool,
    /// Number of its connections that were closed because it flooded them.
    floods: AtomicU64,
    /// Counts what was heard from it in answers: a number to compare with a later one.
    heard: AtomicU64,
    /// Outcomes of requests here.
    pub(super) counts: OutcomeCounts,
    /// Its ejection history; only [`control`](super::control) writes, and no request on its way waits for
    /// it.
    record: Mutex<EjectionHistory>,
    /// Wakes [`control`](super::control): the tally should be looked at.
    outlier_wakeup: Arc<Notify>,
    /// Wakes the prober: a request met trouble here.
    pub(super) suspected: Notify,
    /// Wakes requests that wait here: a probe had no answer.
    unanswered: Notify,
    /// Those of them that can't be woken.
    pub(super) awaited: Awaited,
}

impl EndpointState {
    pub(super) fn new(address: SocketAddr, slots: u32, outlier_wakeup: Arc<Notify>) -> Self {
        Self {
            address,
            name: address.to_string().into(),
            load: Arc::new(Load::new(slots)),
            long_lived: Arc::new(Load::new(0)),
            reports: ReportHistory::default(),
            answers: OnceLock::new(),
            health: AtomicU8::new(Health::Probing as u8),
            place: AtomicUsize::new(usize::MAX),
            ready_since: AtomicU64::new(0),
            probed: AtomicU8::new(Health::Probing as u8),
            silent: AtomicBool::new(false),
            silent_since: AtomicU64::new(0),
            answered_probe_at: AtomicU64::new(0),
            drained: AtomicBool::new(false),
            floods: AtomicU64::new(0),
            heard: AtomicU64::new(0),
            counts: OutcomeCounts::default(),
            record: Mutex::default(),
            outlier_wakeup,
            suspected: Notify::new(),
            unanswered: Notify::new(),
            awaited: Awaited::default(),
        }
    }

    /// The endpoint's overall health: the operator's word goes first, then that of its probes, then the
    /// outcomes of requests.
    pub(super) fn present_health(&self) -> Health {
        match self.probed() {
            _ if self.is_drained() => Health::Draining,
            Health::Ready if self.record().out().is_some() => Health::Ejected,
            probed => probed,
        }
    }

    /// Brings an endpoint's health up to date. Did it change?
    pub(super) fn update_health(&self) -> bool {
        let (from, to) = (self.health(), self.present_health());
        self.health.store(to as u8, Relaxed);
        if from == to {
            return false;
        }
        if to == Health::Ready {
            self.load.rejoined();
            self.ready_since.store(clock::now().nanos(), Relaxed);
        }
        let cause = self.record().out().map(|(cause, _)| cause.as_str());
        tracing::info!(
            endpoint = &*self.name,
            from = from.as_str(),
            to = to.as_str(),
            cause,
            "health changed"
        );
        true
    }

    /// Whether it may be picked.
    pub fn health(&self) -> Health {
        health_in(&self.health)
    }

    /// Since when it has been ready, if it is.
    pub fn ready_since(&self) -> Time {
        Time::new(Duration::from_nanos(self.ready_since.load(Relaxed)))
    }

    /// The health by its probes alone.
    pub fn probed(&self) -> Health {
        health_in(&self.probed)
    }

    /// Whether it is down only because probes got no answer in time.
    pub fn is_silent(&self) -> bool {
        self.silent.load(Relaxed)
    }

    /// Its probes take it down for its silence now.
    pub(super) fn falls_silent(&self) {
        self.silent_since.store(clock::now().nanos(), Relaxed);
    }

    /// A probe had a good answer now.
    pub(super) fn answered_probe(&self) {
        self.answered_probe_at.store(clock::now().nanos(), Relaxed);
    }

    /// Until a probe has no answer.
    pub async fn unanswered(&self) {
        self.unanswered.notified().await;
    }

    /// A probe had no answer: has requests that wait here see whether they wait in vain.
    pub(super) fn has_not_answered(&self) {
        self.unanswered.notify_waiters();
        self.awaited.look(self.is_silent());
    }

    /// Number of its connections that were closed because it flooded them.
    pub fn floods(&self) -> u64 {
        self.floods.load(Relaxed)
    }

    /// A part of an answer came from it.
    pub fn heard(&self) {
        self.heard.fetch_add(1, Relaxed);
    }

    /// Number of signs of life so far.
    pub(super) fn heard_so_far(&self) -> u64 {
        self.heard.load(Relaxed)
    }

    /// Whether an operator has drained it.
    pub fn is_drained(&self) -> bool {
        self.drained.load(Relaxed)
    }

    /// Its ejection history.
    pub fn record(&self) -> MutexGuard<'_, EjectionHistory> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests and connections that this proxy sent and that are unfinished.
    pub fn in_flight(&self) -> u32 {
        self.load.in_flight() + self.long_lived.in_flight()
    }

    /// Records that an attempt failed here, for any cause.
    pub fn failed(&self, now: Time) {
        self.load.failed(now);
        self.long_lived.failed(now);
    }

    /// Takes in how a request ended here, as far as that speaks of the endpoint.
    pub fn note(&self, outcome: Outcome) {
        if self.counts.note(outcome) {
            self.outlier_wakeup.notify_one();
        }
    }

    /// Number of its answers so far, to compare with a later one.
    pub fn answers_so_far(&self) -> u32 {
        self.counts.answers()
    }

    /// A request met trouble here: have it probed now instead of at the next turn.
    pub fn suspect(&self) {
        self.reports.forget_order();
        self.suspected.notify_one();
    }
}

fn health_in(cell: &AtomicU8) -> Health {
    let number = cell.load(Relaxed);
    Health::ALL.into_iter().find(|h| *h as u8 == number).unwrap_or(Health::Probing)
}

impl Candidate for Endpoint {
    fn load(&self) -> &Load {
        &self.state.load
    }

    fn name(&self) -> &str {
        &self.state.name
    }
}

/// An endpoint as something is balanced that lasts.
#[derive(Debug)]
pub struct LongLived(pub Arc<Endpoint>);

impl Candidate for LongLived {
    #[allow(clippy::misnamed_getters, reason = "it is the load that counts for what lasts")]
    fn load(&self) -> &Load {
        &self.0.state.long_lived
    }
}
