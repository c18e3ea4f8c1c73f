//! What the proxy knows of the endpoints, and who may change it.
//!
//! A request must see one consistent picture, and a reload or a health change must not disturb
//! the requests that run. So the picture is an immutable [`Snapshot`], loaded once a request and
//! replaced as a whole by one task ([`control`]). What must outlive snapshots (counts in flight,
//! learnt service times, the retry budget) hangs on the identity of an endpoint or a pool and is
//! carried from one snapshot to the next: a reload never resets a counter.

mod ask;
pub mod attempt;
pub mod control;
mod eject;
pub mod fleet;
pub mod liveness;
pub mod pending;
mod poll;
pub mod probe;
pub mod report;
mod rotation;

use crate::clock;
use crate::config;
use forebay_routing::outlier::{Record, Tally};
use forebay_routing::pick::{Ring, identity};
use forebay_routing::{
    Asked, Candidate, Health, Load, Models, Outcome, Picks, Policy, RetryBudget, Time,
};
use pingora::upstreams::peer::HttpPeer;
use rotation::Rotation;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::Notify;

/// Everything a request needs to know of the configuration and the fleet, at one moment.
#[derive(Debug)]
pub struct Snapshot {
    /// What the file says.
    pub config: Arc<config::Config>,
    /// In the order of [`config::Config::pools`].
    pub pools: Vec<Arc<Pool>>,
    /// How many configurations this process has run, this one included.
    pub generation: u64,
    /// When this configuration was loaded.
    pub loaded_at: SystemTime,
}

/// A pool at one moment.
#[derive(Debug)]
pub struct Pool {
    /// What the file says of it.
    pub config: Arc<config::Pool>,
    /// All endpoints.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// Those in rotation.
    pub ready: Vec<Arc<Endpoint>>,
    /// The same, for what lasts.
    pub for_lasting: Vec<ForLasting>,
    /// Whether so few are ready that those that are ejected are in rotation too.
    pub panics: bool,
    /// Whether none is ready, so that those are in rotation that are down for their silence alone.
    pub last_resort: bool,
    /// Those in rotation in a circle, if the policy wants it.
    pub ring: Ring,
    /// What outlives the snapshot.
    pub state: Arc<PoolState>,
}

impl Pool {
    /// With those in rotation whose health allows it now.
    fn new(
        config: Arc<config::Pool>,
        endpoints: Vec<Arc<Endpoint>>,
        state: Arc<PoolState>,
    ) -> Self {
        let Rotation { used: ready, panics, last_resort } = rotation::of(&config, &endpoints);
        let for_lasting = ready.iter().map(|endpoint| ForLasting(Arc::clone(endpoint))).collect();
        let ring = circle(&config, &ready);
        Self { config, endpoints, ready, for_lasting, panics, last_resort, ring, state }
    }

    /// Is an endpoint silent alone? Where others answer probes since, it is neither the network nor work
    /// that keeps all of them busy.
    pub fn is_silent_alone(&self, silent: &EndpointState) -> bool {
        let since = silent.silent_since.load(Relaxed);
        let answers = |other: &Arc<Endpoint>| {
            !std::ptr::eq(&*other.state, silent)
                && other.state.answered_probe_at.load(Relaxed) > since
        };
        silent.is_silent() && self.endpoints.iter().any(answers)
    }

    /// How many of those in rotation are there on their own merits.
    pub fn ready_count(&self) -> usize {
        if self.last_resort { 0 } else { self.ready.len() }
    }
}

/// The endpoints in rotation in a circle, if keys are to find theirs. By their addresses, so that all
/// proxies agree.
fn circle(config: &config::Pool, ready: &[Arc<Endpoint>]) -> Ring {
    if config.policy != Policy::Sticky {
        return Ring::default();
    }
    Ring::new(ready.iter().map(|endpoint| identity(endpoint.state.name.as_bytes())))
}

/// What a pool remembers across snapshots.
#[derive(Debug)]
pub struct PoolState {
    /// What its picks share.
    pub turn: Arc<Picks>,
    /// When its reports were last looked at for stale ones; see [`report::refresh_stale`].
    pub looked_for_stale: AtomicU64,
    /// Requests that wait for an endpoint.
    pub pending: Arc<pending::Pending>,
    /// How many retries are left.
    pub budget: RetryBudget,
    /// What the budget was made from.
    retry: config::Retry,
    /// Second attempts, if there are any.
    pub hedges: Option<Hedges>,
    /// What is known of each model.
    pub models: Arc<Models>,
}

impl PoolState {
    /// Was it made from what `config` says?
    fn follows(&self, config: &config::Pool) -> bool {
        let hedge = self.hedges.as_ref().map(|hedges| &hedges.settings);
        self.retry == config.retry && hedge == config.hedge.as_ref()
    }
}

/// What decides on second attempts beside slow first ones.
#[derive(Debug)]
pub struct Hedges {
    /// How many are left.
    pub budget: RetryBudget,
    /// What they are made after.
    settings: config::Hedge,
}

impl Hedges {
    fn new(settings: &config::Hedge) -> Self {
        Self { budget: RetryBudget::for_hedges(settings.budget), settings: settings.clone() }
    }

    /// The time after which a second attempt is worth its cost; `None` while nothing is known of what the
    /// model takes.
    pub fn after(&self, asked: &Asked) -> Option<Duration> {
        asked.estimate().map(|usual| usual.max(self.settings.min_delay))
    }
}

/// An endpoint at one moment: how to reach it, and what is remembered of it.
#[derive(Debug)]
pub struct Endpoint {
    /// What outlives the snapshot.
    pub state: Arc<EndpointState>,
    /// Address and timeouts, as Pingora takes them, for plain HTTP.
    peer: HttpPeer,
    /// The same for gRPC.
    grpc: HttpPeer,
}

impl Endpoint {
    /// How to reach it.
    pub fn peer(&self, for_grpc: bool) -> &HttpPeer {
        if for_grpc { &self.grpc } else { &self.peer }
    }
}

/// What is remembered of an endpoint as long as any snapshot has its address in the same pool.
#[derive(Debug)]
pub struct EndpointState {
    /// Where it is.
    pub address: SocketAddr,
    /// The same as text, for logs, labels and headers.
    pub name: Arc<str>,
    /// Its load, shared with the guards of requests in flight.
    pub load: Arc<Load>,
    /// The load of what lasts: connections at Layer 4, streams. They may be silent for hours, so they
    /// are balanced among themselves and take no slots from requests.
    pub lasting: Arc<Load>,
    /// Where its reports came from, and in which order.
    pub reports: report::Reports,
    /// Counts its answers; resolved when the first comes.
    pub answers: OnceLock<metrics::Counter>,
    /// Whether it may be picked, all in all; written by [`control`] only, like what it is made from.
    health: AtomicU8,
    /// Where it stands among those in rotation, if it is; written by [`control`] only.
    place: AtomicUsize,
    /// Since when it has been ready, in nanoseconds on the clock of [`Time`].
    ready_since: AtomicU64,
    /// What its probes say.
    probed: AtomicU8,
    /// Whether its probes took it down only by having no answer in time; written by [`control`] only.
    silent: AtomicBool,
    /// When its probes had taken it down for that, and when one was answered last, in nanoseconds on the
    /// clock of [`Time`]; 0: never.
    silent_since: AtomicU64,
    answered_probe_at: AtomicU64,
    /// Whether an operator has it drained.
    drained: AtomicBool,
    /// Counts what was heard from it in answers: a number to compare with a later one.
    heard: AtomicU64,
    /// What requests met here.
    tally: Tally,
    /// What is held against it; only [`control`] writes, and nobody waits for it on a request's way.
    record: Mutex<Record>,
    /// Wakes [`control`]: the tally should be looked at.
    alarm: Arc<Notify>,
    /// Wakes the prober: a request met trouble here.
    suspected: Notify,
    /// Wakes requests that wait here: a probe had no answer.
    unanswered: Notify,
    /// Those of them that can't be woken.
    awaited: liveness::Awaited,
}

impl EndpointState {
    fn new(address: SocketAddr, slots: u32, alarm: Arc<Notify>) -> Self {
        Self {
            address,
            name: address.to_string().into(),
            load: Arc::new(Load::new(slots)),
            lasting: Arc::new(Load::new(0)),
            reports: report::Reports::default(),
            answers: OnceLock::new(),
            health: AtomicU8::new(Health::Probing as u8),
            place: AtomicUsize::new(usize::MAX),
            ready_since: AtomicU64::new(0),
            probed: AtomicU8::new(Health::Probing as u8),
            silent: AtomicBool::new(false),
            silent_since: AtomicU64::new(0),
            answered_probe_at: AtomicU64::new(0),
            drained: AtomicBool::new(false),
            heard: AtomicU64::new(0),
            tally: Tally::default(),
            record: Mutex::default(),
            alarm,
            suspected: Notify::new(),
            unanswered: Notify::new(),
            awaited: liveness::Awaited::default(),
        }
    }

    /// Whether it may be picked.
    pub fn health(&self) -> Health {
        health_in(&self.health)
    }

    /// Since when it has been ready, if it is.
    pub fn ready_since(&self) -> Time {
        Time::new(Duration::from_nanos(self.ready_since.load(Relaxed)))
    }

    /// What its probes say, whatever else keeps it out.
    pub fn probed(&self) -> Health {
        health_in(&self.probed)
    }

    /// Is it down only for having given probes no answer in time?
    pub fn is_silent(&self) -> bool {
        self.silent.load(Relaxed)
    }

    /// Its probes take it down for its silence now.
    fn falls_silent(&self) {
        self.silent_since.store(clock::now().nanos(), Relaxed);
    }

    /// A probe had a good answer now.
    fn answered_probe(&self) {
        self.answered_probe_at.store(clock::now().nanos(), Relaxed);
    }

    /// Until a probe has no answer.
    pub async fn unanswered(&self) {
        self.unanswered.notified().await;
    }

    /// A probe had no answer: has requests that wait here see whether they wait in vain.
    fn has_not_answered(&self) {
        self.unanswered.notify_waiters();
        self.awaited.look(self.is_silent());
    }

    /// A part of an answer came from it.
    pub fn heard(&self) {
        self.heard.fetch_add(1, Relaxed);
    }

    /// How much was heard from it so far.
    fn heard_so_far(&self) -> u64 {
        self.heard.load(Relaxed)
    }

    /// Has an operator drained it?
    pub fn is_drained(&self) -> bool {
        self.drained.load(Relaxed)
    }

    /// What is held against it.
    pub fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What we sent and is unfinished, be it a request or something that lasts.
    pub fn in_flight(&self) -> u32 {
        self.load.in_flight() + self.lasting.in_flight()
    }

    /// An attempt failed here, whatever it was.
    pub fn failed(&self, now: Time) {
        self.load.failed(now);
        self.lasting.failed(now);
    }

    /// Takes in how a request ended here, as far as that speaks of the endpoint.
    pub fn note(&self, outcome: Outcome) {
        if self.tally.note(outcome) {
            self.alarm.notify_one();
        }
    }

    /// How often it has answered: a number to compare with a later one.
    pub fn answers_so_far(&self) -> u32 {
        self.tally.answers()
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
}

/// An endpoint as something is balanced that lasts.
#[derive(Debug)]
pub struct ForLasting(pub Arc<Endpoint>);

impl Candidate for ForLasting {
    #[allow(clippy::misnamed_getters, reason = "it is the load that counts for what lasts")]
    fn load(&self) -> &Load {
        &self.0.state.lasting
    }
}
