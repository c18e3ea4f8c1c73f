//! The one task that may change what the proxy knows of its endpoints.
//!
//! Health changes and reloads arrive from many sides at once. If each side swapped snapshots by
//! itself, one would undo the other. They all send messages here; this task applies them one after
//! the other and publishes the result.

use super::awaited;
use super::bind;
use super::eject;
use super::fleet::Fleets;
use super::message::{Drain, Drained, Message, ReloadError, SetWeights, Unknown, WeightsError};
use super::probe::{self, Prober};
use super::queue::Queue;
use super::{
    Endpoint, EndpointState, Hedges, Pool, PoolState, STANDSTILL, Snapshot, health, waits,
};
use crate::config::{self, Config, EndpointProtocol, Source};
use crate::exhausted;
use crate::split::{Split, Splits};
use crate::telemetry::variant_metrics::VariantMetrics;
use arc_swap::ArcSwap;
use forebay_process::supervise::{Importance, Pulse, Supervisor, fault_point, hang_point};
use forebay_routing::health::outlier::OutlierDetector;
use forebay_routing::{ModelStats, RetryBudget};
use pingora::upstreams::peer::HttpPeer;
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime};
use tokio::sync::{Mutex, Notify, mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval};

/// Messages that may wait; senders wait beyond that.
const MAX_MESSAGES: usize = 1024;

/// Talks to the control task.
#[derive(Clone)]
pub struct ControlHandle {
    messages: mpsc::Sender<Message>,
    snapshot: Arc<ArcSwap<Snapshot>>,
}

impl ControlHandle {
    /// The current snapshot.
    pub fn snapshot(&self) -> &Arc<ArcSwap<Snapshot>> {
        &self.snapshot
    }

    /// Runs `config` from now on; answers its generation.
    ///
    /// # Errors
    /// It changes what is fixed at start; nothing has changed then.
    pub async fn reload(&self, config: Config) -> Result<u64, ReloadError> {
        const GONE: ReloadError = ReloadError::ShuttingDown;
        let (reply, answer) = oneshot::channel();
        let message = Message::Reload(Box::new(config), reply);
        self.messages.send(message).await.map_err(|_| GONE)?;
        answer.await.unwrap_or(Err(ReloadError::Failed))
    }

    /// Drains an endpoint, or has it used again; says what it still has.
    ///
    /// # Errors
    /// There is no such endpoint.
    pub async fn drain(&self, drain: Drain) -> Result<Drained, Unknown> {
        let (reply, answer) = oneshot::channel();
        let sent = self.messages.send(Message::Drain(drain, reply)).await;
        sent.map_err(|_| Unknown::Stopping)?;
        answer.await.unwrap_or(Err(Unknown::Failed))
    }

    /// Changes the weights of a route's variants, all that are given at once; answers its split. They are those
    /// of every request that comes from now on, until the file says something else of the variants.
    ///
    /// # Errors
    /// There is no such route or variant, or the weights don't add up; nothing has changed then.
    pub async fn set_weights(&self, wanted: SetWeights) -> Result<Arc<Split>, WeightsError> {
        let (reply, answer) = oneshot::channel();
        let sent = self.messages.send(Message::Weights(wanted, reply)).await;
        sent.map_err(|_| WeightsError::Stopping)?;
        answer.await.unwrap_or(Err(WeightsError::Failed))
    }
}

/// Starts the control task and the probers on the present runtime.
pub fn start(config: Config, fleets: Fleets, tasks: &Supervisor) -> ControlHandle {
    let (sender, mailbox) = mpsc::channel(MAX_MESSAGES);
    let mut control = Control {
        fleets,
        probers: HashMap::new(),
        pools: HashMap::new(),
        detectors: HashMap::new(),
        outlier_wakeup: Arc::new(Notify::new()),
        changes: sender.clone(),
        joined: Arc::new(Notify::new()),
        tasks: tasks.clone(),
    };
    let snapshot = Arc::new(ArcSwap::from_pointee(control.build(config, 1, None)));
    publish(&snapshot, &snapshot.load_full());
    let pools = Arc::clone(&snapshot);
    let joined = Arc::clone(&control.joined);
    tasks.spawn("queue", Importance::Vital, move || {
        let pools = Arc::clone(&pools);
        bind::tick(Arc::clone(&joined), move || pools.load().pools.clone())
    });
    let handle = ControlHandle { messages: sender, snapshot: Arc::clone(&snapshot) };
    // Both outlive a panic: what is remembered, and what was sent meanwhile.
    let kept = Arc::new(Mutex::new((control, mailbox)));
    let pulse = tasks.pulse("control", STANDSTILL);
    tasks.spawn("control", Importance::Vital, move || {
        let (kept, snapshot, pulse) = (Arc::clone(&kept), Arc::clone(&snapshot), pulse.clone());
        async move {
            let (control, mailbox) = &mut *kept.lock().await;
            control.run(mailbox, &snapshot, &pulse).await;
        }
    });
    handle
}

/// An endpoint's identity: the same address in two pools is two endpoints, with two budgets.
type Key = (String, SocketAddr);

struct Control {
    fleets: Fleets,
    probers: HashMap<Key, Prober>,
    pools: HashMap<String, Arc<PoolState>>,
    /// The outlier detector of each pool.
    detectors: HashMap<String, OutlierDetector>,
    /// Wakes this task: an endpoint's answers should be looked at.
    outlier_wakeup: Arc<Notify>,
    changes: mpsc::Sender<Message>,
    /// Told when a request waits where none did.
    joined: Arc<Notify>,
    /// Keeps probers up.
    tasks: Supervisor,
}

/// Interval of checks if no event calls for one: the precision of back-offs.
const OUTLIER_CHECK_INTERVAL: Duration = Duration::from_millis(100);

impl Control {
    async fn run(
        &mut self,
        mailbox: &mut mpsc::Receiver<Message>,
        snapshot: &ArcSwap<Snapshot>,
        pulse: &Pulse,
    ) {
        let mut looks = interval(OUTLIER_CHECK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let outlier_wakeup = Arc::clone(&self.outlier_wakeup);
        loop {
            // Looks count only at even intervals: at other times a failure calls for one.
            let mut is_due = false;
            let message = tokio::select! {
                message = mailbox.recv() => message.map(Some),
                () = outlier_wakeup.notified() => Some(None),
                _ = looks.tick() => {
                    is_due = true;
                    Some(None)
                }
            };
            fault_point("control");
            hang_point("control").await;
            pulse.beat();
            let current = snapshot.load_full();
            if is_due {
                waits::look(&current);
            }
            match message {
                None => return,
                Some(Some(message)) => self.take(message, &current, snapshot),
                Some(None) => {
                    if self.detect_outliers(&current) {
                        publish(snapshot, &Arc::new(refreshed(&current)));
                    }
                }
            }
        }
    }

    fn take(&mut self, message: Message, current: &Snapshot, snapshot: &ArcSwap<Snapshot>) {
        match message {
            Message::Probed { state, health, silent } => {
                if health::apply_probe(current, &state, health, silent) {
                    publish(snapshot, &Arc::new(refreshed(current)));
                }
            }
            Message::Drain(wanted, reply) => {
                let result = health::drain(current, &wanted);
                if result.is_ok() {
                    publish(snapshot, &Arc::new(refreshed(current)));
                }
                // The receiver may be gone; the endpoint is drained all the same.
                let _ = reply.send(result);
            }
            Message::Weights(wanted, reply) => {
                // The receiver may be gone; the weights are changed all the same.
                let _ = reply.send(set_weights(current, &wanted));
            }
            Message::Reload(config, reply) => {
                let result = fixed_parts(&current.config, &config).and_then(|()| {
                    let generation = current.generation + 1;
                    // However often it fails, this task goes on with the snapshot that it has.
                    let built = catch_unwind(AssertUnwindSafe(|| {
                        self.build(*config, generation, Some(&current.splits))
                    }));
                    let next = built.map_err(|_| ReloadError::Failed)?;
                    publish(snapshot, &Arc::new(next));
                    Ok(generation)
                });
                // The receiver may be gone; the reload stands.
                let _ = reply.send(result);
            }
        }
    }

    /// Looks at what requests met everywhere; did that change anybody's health?
    fn detect_outliers(&mut self, current: &Snapshot) -> bool {
        let mut changed = false;
        for pool in &current.pools {
            let detector = self.detectors.entry(pool.config.name.clone()).or_default();
            changed |= eject::apply_outlier_detection(detector, pool);
        }
        changed
    }

    /// A snapshot of `config` in which everything that is remembered under the same identity lives
    /// on. Probers of endpoints that are gone are stopped; all others follow the new settings. Nothing
    /// changes before the whole snapshot is made, so that a panic leaves what there was.
    fn build(&mut self, config: Config, generation: u64, before: Option<&Splits>) -> Snapshot {
        let mut next = Next::default();
        let pools = config.pools.iter().map(|pool| self.pool(pool, &mut next)).collect();
        fault_point("build");
        self.probers.retain(|key, _| next.kept.contains(key));
        self.probers.extend(next.started);
        self.pools = next.pools;
        self.detectors.retain(|name, _| config.pools.iter().any(|pool| pool.name == *name));
        let metrics = Arc::new(VariantMetrics::new(&config));
        let splits = Arc::new(Splits::new(&config, before));
        let loaded_at = SystemTime::now();
        Snapshot { config: Arc::new(config), metrics, splits, pools, generation, loaded_at }
    }

    fn pool(&self, config: &Arc<config::Pool>, next: &mut Next) -> Arc<Pool> {
        let addresses = match &config.source {
            Source::Static(addresses) => addresses.as_slice(),
            Source::Fleet(_) => self.fleets.addresses(&config.name),
        };
        let mut endpoints = Vec::with_capacity(addresses.len());
        let name: Arc<str> = config.name.as_str().into();
        for &address in addresses {
            let key = (config.name.clone(), address);
            let known = self.probers.get(&key);
            let state = match known {
                Some(prober) => {
                    prober.state().load.assume_slots(config.slots);
                    Arc::clone(prober.state())
                }
                None => Arc::new(EndpointState::new(
                    address,
                    config.slots,
                    Arc::clone(&self.outlier_wakeup),
                )),
            };
            endpoints.push(Arc::new(Endpoint {
                state: Arc::clone(&state),
                peer: peer(address, config, config.protocol),
                grpc: peer(address, config, EndpointProtocol::H2),
                pool: Arc::clone(&name),
            }));
            if known.is_some_and(|prober| prober.follows(config)) {
                next.kept.insert(key);
            } else {
                let prober = probe::start(state, config, self.changes.clone(), &self.tasks);
                next.started.insert(key, prober);
            }
        }
        let state = self.pool_state(config);
        next.pools.insert(config.name.clone(), Arc::clone(&state));
        Arc::new(Pool::new(Arc::clone(config), endpoints, state))
    }

    /// The state that a pool keeps: all of it, or if its settings have changed, a part.
    fn pool_state(&self, config: &config::Pool) -> Arc<PoolState> {
        let known = self.pools.get(&config.name);
        if let Some(state) = known.filter(|state| state.follows(config)) {
            return Arc::clone(state);
        }
        let retry = config.retry.clone();
        let budget = RetryBudget::new(retry.budget, retry.min_per_second);
        // Waiting requests keep their place under the new settings.
        let queue = known.map(|known| Arc::clone(&known.queue));
        let new = || Arc::new(Queue::new(Arc::clone(&self.joined)));
        let pick_memory = known.map(|known| Arc::clone(&known.pick_memory));
        Arc::new(PoolState {
            // Endpoints tell what they learn to this one.
            pick_memory: pick_memory.unwrap_or_default(),
            looked_for_stale: AtomicU64::new(0),
            queue: queue.unwrap_or_else(new),
            budget,
            retry_policy: retry.policy(),
            retry,
            hedges: config.hedge.as_ref().map(Hedges::new),
            models: Arc::new(ModelStats::new(config.hedge.as_ref().map(|it| it.quantile))),
            waits: Default::default(),
        })
    }
}

/// The parts of a snapshot in the making.
#[derive(Default)]
struct Next {
    /// Probers that go on as they are.
    kept: HashSet<Key>,
    started: HashMap<Key, Prober>,
    pools: HashMap<String, Arc<PoolState>>,
}

/// The same snapshot with rotation as health has it now.
fn refreshed(current: &Snapshot) -> Snapshot {
    let pool = |pool: &Arc<Pool>| {
        let (config, state) = (Arc::clone(&pool.config), Arc::clone(&pool.state));
        Arc::new(Pool::new(config, pool.endpoints.clone(), state))
    };
    Snapshot {
        config: Arc::clone(&current.config),
        metrics: Arc::clone(&current.metrics),
        splits: Arc::clone(&current.splits),
        pools: current.pools.iter().map(pool).collect(),
        generation: current.generation,
        loaded_at: current.loaded_at,
    }
}

/// Sets weights of a route of this snapshot.
fn set_weights(current: &Snapshot, wanted: &SetWeights) -> Result<Arc<Split>, WeightsError> {
    let Some(split) = current.splits.named(&wanted.route) else {
        let is_known = current.config.routes.iter().any(|route| route.name == wanted.route);
        let name = wanted.route.clone();
        return Err(if is_known {
            WeightsError::NotSplit(name)
        } else {
            WeightsError::Route(name)
        });
    };
    split.set(&wanted.weights, &wanted.by)?;
    Ok(Arc::clone(split))
}

/// Makes `next` what everybody sees, and has those looked at who wait: for them it may change all.
fn publish(snapshot: &ArcSwap<Snapshot>, next: &Arc<Snapshot>) {
    snapshot.store(Arc::clone(next));
    for pool in &next.pools {
        pool.state.queue.renew(&pool.rotation);
        pool.state.queue.changed(None);
    }
}

/// Requests at once on one HTTP/2 connection: half of what our workers allow, since a connection
/// that is lost loses all of them.
const MAX_STREAMS: usize = 128;

/// Bytes of one answer that an endpoint may send over HTTP/2 before they are read here. Bytes that are read
/// are counted ([`body_memory`](crate::body_memory)); those that are not read yet can't be.
const STREAM_WINDOW: u32 = 256 * 1024;
/// The same for all streams of a connection. An answer whose client does not read must not keep the others
/// waiting, so it is as much as a quarter of them can fill.
const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;

fn peer(address: SocketAddr, config: &config::Pool, protocol: EndpointProtocol) -> HttpPeer {
    let mut peer = HttpPeer::new(address, false, String::new());
    peer.options.connection_timeout = Some(config.connect_timeout);
    peer.options.total_connection_timeout = Some(config.connect_timeout);
    peer.options.idle_timeout = Some(config.idle_timeout);
    peer.options.tcp_keepalive = Some(awaited::keepalive(config));
    if protocol == EndpointProtocol::H2 {
        peer.options.set_http_version(2, 2);
        peer.options.max_h2_streams = MAX_STREAMS;
        peer.options.h2_stream_window_size = Some(STREAM_WINDOW);
        peer.options.h2_connection_window_size = Some(CONNECTION_WINDOW);
        peer.options.h2_ping_interval = config.http2_ping_interval;
    }
    exhausted::keep_reserve(&mut peer);
    peer
}

/// Listeners, threads and fleets are made at start and can't follow a reload.
fn fixed_parts(running: &Config, next: &Config) -> Result<(), ReloadError> {
    let fleets = |config: &Config| -> Vec<_> {
        let fleet = |pool: &Arc<config::Pool>| match &pool.source {
            Source::Fleet(fleet) => Some((pool.name.clone(), fleet.clone())),
            Source::Static(_) => None,
        };
        config.pools.iter().filter_map(fleet).collect()
    };
    for (what, same) in [
        ("[server]", running.server == next.server),
        ("[[listener]]", running.listeners == next.listeners),
        ("a fleet", fleets(running) == fleets(next)),
    ] {
        if !same {
            return Err(ReloadError::NeedsRestart(what));
        }
    }
    Ok(())
}
