//! The life of the process: bind, serve, reload on SIGHUP, drain on SIGTERM.
//!
//! Pingora's own server closes its listeners at the instant of a SIGTERM and then sleeps for the whole grace
//! period. Here readiness goes first, so that a load balancer in front turns away before a connection is
//! refused; connections are told to close with their next answer; listeners are closed after that; and the
//! process ends as soon as nothing is in flight. Pingora's services run unchanged, on a runtime of this
//! module.

use crate::admin::Admin;
use crate::admin::listener::{self, AdminListener};
use crate::config::{self, Config};
use crate::connections::Connections;
use crate::downstream::accept_loop;
use crate::http::cache::Cache;
use crate::http::proxy::Proxy;
use crate::http::services::Services;
use crate::http::shadow::Shadows;
use crate::lifecycle::Lifecycle;
use crate::listeners::{Listener, Sockets};
use crate::pool::connector::Connector;
use crate::pool::control::{self, ControlHandle};
use crate::pool::fleet::{Fleets, Supervisors, WorkerLog};
use crate::pool::{Snapshot, readiness};
use crate::reload::Reloader;
use crate::rollout::Rollouts;
use crate::telemetry::access_log::AccessLogger;
use crate::telemetry::metrics;
use crate::telemetry::observe::Observer;
use anyhow::{Context, Result};
use arc_swap::ArcSwap;
use forebay_process::memory;
use forebay_process::resources::Descriptors;
use forebay_process::supervise::{Importance, Supervisor};
use futures_util::future::BoxFuture;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// The options of the process.
pub struct Options {
    /// The initial configuration.
    pub config: Config,
    /// The file that a reload reads; `None`: reloads are refused.
    pub file: Option<PathBuf>,
    /// Log settings of a fleet's workers.
    pub worker_log: WorkerLog,
    /// Called once everything listens.
    pub started: Box<dyn FnOnce(&Started) + Send>,
}

/// The addresses of a running proxy, for a banner.
pub struct Started {
    /// Addresses of the listeners.
    pub listeners: Vec<SocketAddr>,
    /// Address of the admin listener.
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
    let (server, cache_memory) = (config.server.clone(), config.cache.clone());
    // Before anything starts: a signal that comes during the start must not be lost.
    let mut signals = Signals::new()?;
    let lifecycle = Arc::new(Lifecycle::default());
    let tasks = &lifecycle.tasks;
    let prometheus = metrics::install(tasks)?;
    let bound_listeners: Vec<_> = config
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
    let rollouts = Arc::new(Rollouts::default());
    let (judged, moved) = (Arc::clone(&rollouts), control.clone());
    tasks.spawn("rollouts", Importance::Helpful, move || Arc::clone(&judged).run(moved.clone()));
    let reloader = Reloader::new(file, control.clone(), Arc::clone(&observer));
    let occupied = Arc::clone(&lifecycle);
    let watch = move || {
        let occupied = Arc::clone(&occupied);
        async move { memory::watch(&occupied.takes_memory()).await }
    };
    tasks.spawn("memory", Importance::Helpful, watch);
    let watched = tasks.clone();
    tasks.spawn("watchdog", Importance::Helpful, move || watched.clone().watch());

    let cache = Arc::new(Cache::new(&cache_memory, tasks)?);
    cache.keep_over_restarts(tasks);
    let shadows = Arc::new(Shadows::new(Arc::clone(&observer)));
    let proxy = Proxy {
        services: Services {
            shadows: Arc::clone(&shadows),
            present: Arc::clone(control.snapshot()),
            connector: Arc::new(Connector::new(server.idle_connections)),
            lifecycle: Arc::clone(&lifecycle),
            cache: Arc::clone(&cache),
        },
        observer: Arc::clone(&observer),
    };
    let (stop, stopping) = watch::channel(false);
    let mut services = JoinSet::new();
    let listeners: Vec<_> = bound_listeners
        .iter()
        .enumerate()
        .map(|(place, (bound, listener))| {
            Listener::new(&sockets, *bound, (place, listener), &proxy, &server)
        })
        .collect::<Result<_>>()?;
    for listener in &listeners {
        let ready = wait_ready(Arc::clone(&lifecycle), Arc::clone(control.snapshot()));
        listener.open(tasks, &stopping, &mut services, ready)?;
    }
    if let Some(bound) = admin {
        let admin = Admin {
            control: control.clone(),
            lifecycle: Arc::clone(&lifecycle),
            cache: Arc::clone(&cache),
            shadows,
            listeners: listeners.iter().map(|listener| Arc::clone(&listener.connections)).collect(),
            reloader: reloader.clone(),
            rollouts,
            prometheus,
            bound: bound.ip(),
            hosts: server.admin_hosts.clone(),
        };
        let connections = Connections::of_operators(bound, listener::MAX_CONNECTIONS);
        let admin = AdminListener { admin: Arc::new(admin), connections: Arc::new(connections) };
        let socket = accept_loop::listener(&sockets.hold(bound)?)?;
        services.spawn(tasks.clone().keep_up(
            "admin",
            Importance::Vital,
            serve_admin(admin, socket, stopping),
        ));
    }
    // Each listener has its own handle now. Another one would keep the kernel accepting connections
    // when the last loop has ended.
    drop(sockets);
    let addresses = bound_listeners.iter().map(|(bound, _)| *bound).collect();
    started(&Started { listeners: addresses, admin, control });

    let lost = signals.wait_for_stop(&reloader, tasks).await;
    // While the last requests are answered. Another process may be there already that reads it.
    let persisted = tokio::spawn(cache.persist());
    let orderly = drain(&lifecycle, &server, listeners, &stop, &mut services, &mut signals).await;
    if orderly {
        supervisors_stop(supervisors, &mut signals).await;
        let _ = persisted.await;
    } else {
        // Workers are killed with their supervisors.
        drop(supervisors);
    }
    // Nothing else is left to do on this thread.
    observer.log().stop(MAX_LOG_FLUSH_TIME);
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
            accept_loop::accept(&socket, "admin", stopping.clone(), take).await;
        })
    }
}

/// Until requests can be served by all that will be there, or for [`MAX_WARM_UP`] at most: what is broken
/// must be answered, too.
async fn wait_ready(lifecycle: Arc<Lifecycle>, snapshot: Arc<ArcSwap<Snapshot>>) {
    let started = Instant::now();
    let is_ready = || {
        let snapshot = snapshot.load();
        lifecycle.is_ready(&snapshot) && !readiness::may_become_fuller(&snapshot)
    };
    while !is_ready() && started.elapsed() < MAX_WARM_UP {
        sleep(READY_CHECK_INTERVAL).await;
    }
}

/// Interval at which a starting process checks whether it is ready.
const READY_CHECK_INTERVAL: Duration = Duration::from_millis(10);
/// Time that the first probes get before a socket is used that was passed.
const MAX_WARM_UP: Duration = Duration::from_secs(5);

/// Readiness first, then listeners, then what is in flight. `false`: a second signal ended it.
async fn drain(
    lifecycle: &Lifecycle,
    server: &config::Server,
    listeners: Vec<Listener>,
    stop: &watch::Sender<bool>,
    services: &mut JoinSet<()>,
    signals: &mut Signals,
) -> bool {
    lifecycle.begin_drain();
    tracing::info!(in_flight = lifecycle.in_flight(), "draining");
    let orderly = async {
        sleep(server.drain_delay).await;
        stop.send_replace(true);
        while services.join_next().await.is_some() {}
        for listener in listeners {
            listener.close(stop);
        }
        if timeout(server.drain_timeout, lifecycle.wait_idle()).await.is_err() {
            tracing::warn!(
                in_flight = lifecycle.in_flight(),
                "drain timed out, closing connections with requests in flight"
            );
            lifecycle.cut_what_is_open();
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
const MAX_LOG_FLUSH_TIME: Duration = Duration::from_secs(1);

async fn supervisors_stop(supervisors: Supervisors, signals: &mut Signals) {
    tokio::select! {
        () = supervisors.stop() => {}
        () = signals.again() => {}
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
