//! The life of the process: bind, serve, reload on SIGHUP, drain on SIGTERM.
//!
//! Pingora's own server closes its listeners at the instant of a SIGTERM and then sleeps for the
//! whole grace period. Here readiness goes first, so that whoever balances over several proxies
//! turns away before a connection is refused; connections are told to close with their next
//! answer; listeners are closed after that; and the process leaves as soon as nothing is in flight.
//! Its services are run as they are, on a runtime of ours.

use crate::access_log::AccessLogger;
use crate::admin::Admin;
use crate::admin_listener::{self, AdminListener};
use crate::body_memory::Memory;
use crate::config::{self, Config};
use crate::connections::Connections;
use crate::doors::{Door, Sockets};
use crate::flow::observe::Observer;
use crate::listen;
use crate::pool::Snapshot;
use crate::pool::control::{self, ControlHandle};
use crate::pool::fleet::{Fleets, Supervisors, WorkerLog};
use crate::proxy::Proxy;
use anyhow::{Context, Result};
use arc_swap::ArcSwap;
use forebay_process::memory::{self, Taken};
use forebay_process::resources::Descriptors;
use forebay_process::supervise::{Importance, Supervisor, fault_point};
use futures_util::future::BoxFuture;
use pingora::connectors::ConnectorOptions;
use pingora::connectors::http::Connector;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Mutex, Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Whether the process takes requests, and how many it has.
#[derive(Debug, Default)]
pub struct Lifecycle {
    /// The tasks that keep the process going.
    pub tasks: Supervisor,
    draining: AtomicBool,
    in_flight: Taken,
    /// Open connections at Layer 7.
    open: Taken,
    /// What bodies and answers hold.
    memory: Arc<Memory>,
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

    /// Is the process on its way out?
    pub fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    /// Can requests be served: not draining, all vital tasks run and none stands still, and every pool
    /// has an endpoint in rotation?
    pub fn is_ready(&self, snapshot: &Snapshot) -> bool {
        !self.is_draining()
            && self.tasks.all_up()
            && snapshot.pools.iter().all(|pool| pool.ready_count() > 0)
    }

    /// Counts a new connection in.
    pub fn connected(self: &Arc<Self>) -> OpenConnection {
        self.open.add(1);
        OpenConnection(Arc::clone(self))
    }

    /// What takes memory, each with how much of it takes little.
    fn takes_memory(&self) -> [memory::Watched<'_>; 3] {
        [(&self.open, 100), (&self.in_flight, 50), (self.memory.taken(), 1024 * 1024)]
    }

    /// What bodies and answers hold.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Until what is still open has had its time.
    pub async fn cut_off(&self) {
        // The sender is ours: waiting does not fail.
        let _ = self.cut.subscribe().wait_for(|cut| *cut).await;
    }

    /// Until nothing is in flight, and nothing that was accepted can still become a request.
    async fn wait_idle(&self) {
        let started = Instant::now();
        let mut quiet = 0;
        // Between its first byte and its count a connection is seen by neither, for as long as a busy
        // machine lets its task wait; so look again.
        while quiet < QUIET {
            sleep(LOOK).await;
            let open = self.open.now() > 0 && started.elapsed() < SILENCE;
            quiet = if open || self.in_flight() > 0 { 0 } else { quiet + 1 };
        }
    }
}

/// How often a draining process looks whether it is idle.
const LOOK: Duration = Duration::from_millis(10);
/// How many looks in a row must see nothing.
const QUIET: u32 = 5;
/// Time that the last connections get to say something, or to end.
const SILENCE: Duration = Duration::from_secs(1);

impl Drop for InFlightRequest {
    fn drop(&mut self) {
        self.0.in_flight.remove(1);
    }
}

/// What the process was started with.
pub struct Options {
    /// What runs first.
    pub config: Config,
    /// Where a reload reads from; `None`: reloads are refused.
    pub file: Option<PathBuf>,
    /// How workers of a fleet log.
    pub worker_log: WorkerLog,
    /// Called once everything listens.
    pub started: Box<dyn FnOnce(&Started) + Send>,
}

/// What runs, for those who tell it to a person.
pub struct Started {
    /// Where requests come in.
    pub listeners: Vec<SocketAddr>,
    /// Where the admin listener is.
    pub admin: Option<SocketAddr>,
    /// Endpoints and pools.
    pub control: ControlHandle,
}

/// Serves until told to stop.
///
/// # Errors
/// An address that can't be bound, a fleet that does not start, a log that can't be opened.
pub fn run(options: Options) -> Result<()> {
    Descriptors::of_this_process();
    memory::without_huge_pages();
    // The only other thread writes the log, and does not read the environment.
    let sockets = Sockets::passed();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(options.config.server.threads)
        .thread_name("forebay")
        .on_thread_park(memory::idle_thread)
        .enable_all()
        .build()
        .context("can't start the I/O threads")?;
    let result = runtime.block_on(serve(options, sockets));
    // Connections that are still open after the drain are cut here.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

async fn serve(options: Options, mut sockets: Sockets) -> Result<()> {
    let Options { config, file, worker_log, started } = options;
    let server = config.server.clone();
    // Before anything starts: a signal that comes during the start must not be lost.
    let mut signals = Signals::new()?;
    let lifecycle = Arc::new(Lifecycle::default());
    let tasks = &lifecycle.tasks;
    let prometheus = crate::admin::install_metrics(tasks)?;
    let listeners: Vec<_> = config
        .listeners
        .iter()
        .map(|listener| Ok((sockets.bind(listener.address)?, listener.clone())))
        .collect::<Result<_>>()?;
    let admin = server.admin.map(|address| sockets.bind(address)).transpose()?;
    sockets.close_unused();
    let log = AccessLogger::start(&server.access_log).context("can't open the access log")?;
    let observer = Arc::new(Observer::new(log));
    let (fleets, supervisors) = Fleets::start(&config, &worker_log, tasks).await?;
    let control = control::start(config, fleets, tasks);
    let reloader = Reloader {
        file,
        control: control.clone(),
        observer: Arc::clone(&observer),
        turn: Arc::default(),
    };
    let occupied = Arc::clone(&lifecycle);
    let watch = move || {
        let occupied = Arc::clone(&occupied);
        async move { memory::watch(&occupied.takes_memory()).await }
    };
    tasks.spawn("memory", Importance::Helpful, watch);
    let watched = tasks.clone();
    tasks.spawn("watchdog", Importance::Helpful, move || watched.clone().watch());

    let proxy = Proxy {
        snapshot: Arc::clone(control.snapshot()),
        connector: Arc::new(Connector::new(Some(ConnectorOptions::new(server.idle_connections)))),
        lifecycle: Arc::clone(&lifecycle),
        observer: Arc::clone(&observer),
    };
    let (stop, stopping) = watch::channel(false);
    let mut services = JoinSet::new();
    let doors: Vec<_> = listeners
        .iter()
        .enumerate()
        .map(|(place, (bound, listener))| {
            Door::new(&sockets, *bound, (place, listener), &proxy, &server)
        })
        .collect::<Result<_>>()?;
    for door in &doors {
        let ready = wait_ready(Arc::clone(&lifecycle), Arc::clone(control.snapshot()));
        door.open(tasks, &stopping, &mut services, ready)?;
    }
    if let Some(bound) = admin {
        let admin = Admin {
            control: control.clone(),
            lifecycle: Arc::clone(&lifecycle),
            listeners: doors.iter().map(|door| Arc::clone(&door.connections)).collect(),
            reloader: reloader.clone(),
            prometheus,
            bound: bound.ip(),
            hosts: server.admin_hosts.clone(),
        };
        let connections = Connections::of_operators(bound, admin_listener::MAX_CONNECTIONS);
        let admin = AdminListener { admin: Arc::new(admin), connections: Arc::new(connections) };
        let socket = listen::listener(&sockets.hold(bound)?)?;
        services.spawn(tasks.clone().keep_up(
            "admin",
            Importance::Vital,
            serve_admin(admin, socket, stopping),
        ));
    }
    // Each listener has its own handle now. Another one would keep the kernel accepting connections
    // when the last loop has ended.
    drop(sockets);
    let listeners = listeners.iter().map(|(bound, _)| *bound).collect();
    started(&Started { listeners, admin, control });

    let lost = signals.wait_for_stop(&reloader, tasks).await;
    let orderly = drain(&lifecycle, &server, doors, &stop, &mut services, &mut signals).await;
    if orderly {
        supervisors_stop(supervisors, &mut signals).await;
    } else {
        // Workers are killed with their supervisors.
        drop(supervisors);
    }
    // Nothing else is left to do on this thread.
    observer.log().stop(LOG_PATIENCE);
    tracing::info!("stopped");
    match lost {
        None => Ok(()),
        Some(task) => Err(anyhow::anyhow!("the task {task:?} kept failing")),
    }
}

/// The accept loop of the admin listener, as often as it is needed.
fn serve_admin(
    admin: AdminListener,
    socket: TcpListener,
    stopping: watch::Receiver<bool>,
) -> impl FnMut() -> BoxFuture<'static, ()> + Send {
    let (admin, socket) = (Arc::new(admin), Arc::new(socket));
    move || {
        let (admin, socket, stopping) = (Arc::clone(&admin), Arc::clone(&socket), stopping.clone());
        Box::pin(async move {
            let take = |stream, peer| admin.take(stream, peer, &stopping);
            listen::accept(&socket, "admin", stopping.clone(), take).await;
        })
    }
}

/// Until requests can be served, or for [`WARM_UP`] at most: what is broken must be answered, too.
async fn wait_ready(lifecycle: Arc<Lifecycle>, snapshot: Arc<ArcSwap<Snapshot>>) {
    let started = Instant::now();
    while !lifecycle.is_ready(&snapshot.load()) && started.elapsed() < WARM_UP {
        sleep(LOOK).await;
    }
}

/// Time that the first probes get before a socket is used that was passed.
const WARM_UP: Duration = Duration::from_secs(5);

/// Readiness first, then listeners, then what is in flight. `false`: a second signal ended it.
async fn drain(
    lifecycle: &Lifecycle,
    server: &config::Server,
    doors: Vec<Door>,
    stop: &watch::Sender<bool>,
    services: &mut JoinSet<()>,
    signals: &mut Signals,
) -> bool {
    lifecycle.draining.store(true, Relaxed);
    tracing::info!(in_flight = lifecycle.in_flight(), "draining");
    let orderly = async {
        sleep(server.drain_delay).await;
        stop.send_replace(true);
        while services.join_next().await.is_some() {}
        for door in doors {
            door.close(stop);
        }
        if timeout(server.drain_timeout, lifecycle.wait_idle()).await.is_err() {
            tracing::warn!(in_flight = lifecycle.in_flight(), "drain timed out, requests are cut");
            lifecycle.cut.send_replace(true);
            // Connections get to say how they ended; what is left then goes with the runtime.
            let _ = timeout(LAST_WORDS, lifecycle.wait_idle()).await;
        }
    };
    tokio::select! {
        () = orderly => true,
        () = signals.again() => {
            tracing::warn!("second signal: stopping at once");
            false
        }
    }
}

/// Time that connections get to be counted and logged once they are cut.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Time that the last lines of the access log get.
const LOG_PATIENCE: Duration = Duration::from_secs(1);

async fn supervisors_stop(supervisors: Supervisors, signals: &mut Signals) {
    tokio::select! {
        () = supervisors.stop() => {}
        () = signals.again() => {}
    }
}

/// Reads the file again and runs what it says.
#[derive(Clone)]
pub struct Reloader {
    file: Option<PathBuf>,
    control: ControlHandle,
    observer: Arc<Observer>,
    /// One reload at a time.
    turn: Arc<Mutex<()>>,
}

impl Reloader {
    /// The access log, which a reload opens again.
    pub fn access_log(&self) -> &AccessLogger {
        self.observer.log()
    }

    /// Reloads; answers the new generation.
    ///
    /// # Errors
    /// Why the running configuration stays, as a person reads it.
    pub async fn reload(&self) -> Result<u64, String> {
        // In a task of its own: whatever it does, the part that asked for it goes on.
        let this = self.clone();
        let task = tokio::spawn(async move { this.try_reload().await });
        let result = task.await.unwrap_or_else(|error| Err(format!("the reload failed: {error}")));
        let outcome = if result.is_ok() { "ok" } else { "refused" };
        metrics::counter!(forebay_protocol::metric::proxy::RELOADS, "outcome" => outcome)
            .increment(1);
        match &result {
            Ok(generation) => tracing::info!(generation, "configuration reloaded"),
            Err(error) => tracing::error!(error, "reload refused, the running configuration stays"),
        }
        result
    }

    async fn try_reload(&self) -> Result<u64, String> {
        let _turn = self.turn.lock().await;
        fault_point("reload");
        let Some(file) = self.file.clone() else {
            return Err("this process runs without a configuration file".to_owned());
        };
        let config = tokio::task::spawn_blocking(move || Config::load(&file))
            .await
            .map_err(|error| error.to_string())?
            .map_err(|error| error.render())?;
        config.warn();
        let generation = self.control.reload(config).await.map_err(|error| error.to_string())?;
        self.observer.log().reopen();
        Ok(generation)
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    /// A log file at the limit of its size must not end the process: with a handler, the write fails.
    _file_size: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("can't listen for signals");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
            _file_size: listen(SignalKind::from_raw(libc::SIGXFSZ))?,
        })
    }

    /// Until SIGTERM or SIGINT, or until a vital task is lost, whose name is the answer. SIGHUP reloads
    /// meanwhile: once for all signals that come while a reload is under way.
    async fn wait_for_stop(
        &mut self,
        reloader: &Reloader,
        tasks: &Supervisor,
    ) -> Option<&'static str> {
        let wanted = Arc::new(Notify::new());
        let (reloader, notified) = (reloader.clone(), Arc::clone(&wanted));
        let reloads = tasks.spawn("reload", Importance::Helpful, move || {
            let (reloader, notified) = (reloader.clone(), Arc::clone(&notified));
            async move {
                loop {
                    notified.notified().await;
                    // The log has the outcome.
                    let _ = reloader.reload().await;
                }
            }
        });
        let lost = loop {
            tokio::select! {
                _ = self.terminate.recv() => break None,
                _ = self.interrupt.recv() => break None,
                _ = self.hangup.recv() => wanted.notify_one(),
                task = tasks.lost() => break Some(task),
            }
        };
        reloads.abort();
        lost
    }

    async fn again(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
