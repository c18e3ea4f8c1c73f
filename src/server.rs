//! The life of the process: bind, serve, reload on SIGHUP, drain on SIGTERM.
//!
//! Pingora's own server closes its listeners at the instant of a SIGTERM and then sleeps for the
//! whole grace period. Here readiness goes first, so that whoever balances over several proxies
//! turns away before a connection is refused; connections are told to close with their next
//! answer; listeners are closed after that; and the process leaves as soon as nothing is in flight.
//! Its services are run as they are, on a runtime of ours.

use crate::access_log::AccessLogger;
use crate::admin::Admin;
use crate::config::{Config, Listener};
use crate::flow::observe::Observer;
use crate::pool::Snapshot;
use crate::pool::control::{self, ControlHandle};
use crate::pool::fleet::{Fleets, Supervisors, WorkerLog};
use crate::proxy::Proxy;
use anyhow::{Context, Result, bail};
use pingora::apps::HttpServerOptions;
use pingora::connectors::ConnectorOptions;
use pingora::connectors::http::Connector;
use pingora::proxy::http_proxy_service_with_name;
use pingora::server::configuration::ServerConf;
use pingora::server::{Fds, ListenFds};
use pingora::services::Service as _;
use pingora::services::listening::Service;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::IntoRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Whether the process takes requests, and how many it has.
#[derive(Debug, Default)]
pub struct Lifecycle {
    draining: AtomicBool,
    in_flight: AtomicUsize,
    idle: Notify,
}

/// Counts as a request in flight until dropped.
#[derive(Debug)]
pub struct InFlightRequest(Arc<Lifecycle>);

impl Lifecycle {
    /// Counts a request in.
    pub fn enter(self: &Arc<Self>) -> InFlightRequest {
        self.in_flight.fetch_add(1, Relaxed);
        InFlightRequest(Arc::clone(self))
    }

    /// Requests inside the proxy.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Relaxed)
    }

    /// Is the process on its way out?
    pub fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    /// Can requests be served: not draining, and every pool has an endpoint in rotation?
    pub fn is_ready(&self, snapshot: &Snapshot) -> bool {
        !self.is_draining() && snapshot.pools.iter().all(|pool| !pool.ready.is_empty())
    }

    async fn wait_idle(&self) {
        loop {
            let idle = self.idle.notified();
            if self.in_flight() == 0 {
                return;
            }
            idle.await;
        }
    }
}

impl Drop for InFlightRequest {
    fn drop(&mut self) {
        if self.0.in_flight.fetch_sub(1, Relaxed) == 1 {
            self.0.idle.notify_waiters();
        }
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
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(options.config.server.threads)
        .thread_name("forebay")
        .enable_all()
        .build()
        .context("can't start the I/O threads")?;
    let result = runtime.block_on(serve(options));
    // Connections that are still open after the drain are cut here.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

async fn serve(options: Options) -> Result<()> {
    let Options { config, file, worker_log, started } = options;
    let server = config.server.clone();
    // Before anything starts: a signal that comes during the start must not be lost.
    let mut signals = Signals::new()?;
    let prometheus = crate::admin::install_metrics()?;
    let mut sockets = Sockets::default();
    let listeners: Vec<_> = config
        .listeners
        .iter()
        .map(|listener| Ok((sockets.bind(listener.address)?, listener.clone())))
        .collect::<Result<_>>()?;
    let admin = server.admin.map(|address| sockets.bind(address)).transpose()?;
    let log = AccessLogger::start(&server.access_log).context("can't open the access log")?;
    let observer = Arc::new(Observer::new(log));
    let (fleets, supervisors) = Fleets::start(&config, &worker_log).await?;
    let control = control::start(config, fleets);
    let lifecycle = Arc::new(Lifecycle::default());
    let reloader = Reloader { file, control: control.clone(), observer: Arc::clone(&observer) };

    let proxy = Proxy {
        snapshot: Arc::clone(control.snapshot()),
        connector: Arc::new(Connector::new(Some(ConnectorOptions::new(server.idle_connections)))),
        lifecycle: Arc::clone(&lifecycle),
        observer: Arc::clone(&observer),
    };
    let (stop, stopping) = watch::channel(false);
    let mut services = JoinSet::new();
    let fds = ListenFds::new(sockets.0.into());
    for (bound, listener) in &listeners {
        let mut service = proxy_service(&proxy, *bound, listener, &server);
        let (fds, stopping) = (Arc::clone(&fds), stopping.clone());
        services.spawn(async move { service.start_service(Some(fds), stopping, 1).await });
    }
    if let Some(bound) = admin {
        let admin = Admin {
            control: control.clone(),
            lifecycle: Arc::clone(&lifecycle),
            reloader: reloader.clone(),
            prometheus,
        };
        let mut service = Service::new("admin".to_owned(), admin);
        service.add_tcp(&bound.to_string());
        let (fds, stopping) = (Arc::clone(&fds), stopping.clone());
        services.spawn(async move { service.start_service(Some(fds), stopping, 1).await });
    }
    let listeners = listeners.iter().map(|(bound, _)| *bound).collect();
    started(&Started { listeners, admin, control });

    signals.wait_for_stop(&reloader).await;
    drain(&lifecycle, &server, &stop, &mut services, &mut signals).await;
    supervisors_stop(supervisors, &mut signals).await;
    observer.log().stop();
    tracing::info!("stopped");
    Ok(())
}

fn proxy_service(
    proxy: &Proxy,
    bound: SocketAddr,
    listener: &Listener,
    server: &crate::config::Server,
) -> Service<pingora::proxy::HttpProxy<Proxy>> {
    let conf = ServerConf {
        threads: server.threads,
        upstream_keepalive_pool_size: server.idle_connections.div_ceil(server.threads),
        max_retries: 16,
        ..ServerConf::default()
    };
    let name = format!("proxy {bound}");
    let mut service = http_proxy_service_with_name(&Arc::new(conf), proxy.clone(), &name);
    if let Some(app) = service.app_logic_mut() {
        let mut options = HttpServerOptions::default();
        options.h2c = listener.h2c;
        options.h2_idle_timeout = Some(Duration::from_secs(60));
        app.server_options = Some(options);
    }
    service.add_tcp(&bound.to_string());
    service
}

/// Readiness first, then listeners, then what is in flight. A second signal ends it at once.
async fn drain(
    lifecycle: &Lifecycle,
    server: &crate::config::Server,
    stop: &watch::Sender<bool>,
    services: &mut JoinSet<()>,
    signals: &mut Signals,
) {
    lifecycle.draining.store(true, Relaxed);
    tracing::info!(in_flight = lifecycle.in_flight(), "draining");
    let orderly = async {
        sleep(server.drain_delay).await;
        stop.send_replace(true);
        while services.join_next().await.is_some() {}
        // Connections that were accepted last get the time to send what they came with.
        sleep(ACCEPTED_LAST).await;
        if timeout(server.drain_timeout, lifecycle.wait_idle()).await.is_err() {
            tracing::warn!(in_flight = lifecycle.in_flight(), "drain timed out, requests are cut");
        }
    };
    tokio::select! {
        () = orderly => {}
        () = signals.again() => tracing::warn!("second signal: stopping at once"),
    }
}

/// Time between the last accept and the first look at what is in flight.
const ACCEPTED_LAST: Duration = Duration::from_millis(50);

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
}

impl Reloader {
    /// Reloads; answers the new generation.
    ///
    /// # Errors
    /// Why the running configuration stays, as a person reads it.
    pub async fn reload(&self) -> Result<u64, String> {
        let result = self.try_reload().await;
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
        let Some(file) = self.file.clone() else {
            return Err("this process runs without a configuration file".to_owned());
        };
        let config = tokio::task::spawn_blocking(move || Config::load(&file))
            .await
            .map_err(|error| error.to_string())?
            .map_err(|error| error.render())?;
        let generation = self.control.reload(config).await.map_err(|error| error.to_string())?;
        self.observer.log().reopen();
        Ok(generation)
    }
}

/// Sockets that were bound before anything runs: an address in use is an error message, not a
/// panic inside a service. Pingora takes them over by the text of their address.
struct Sockets(Fds);

impl Default for Sockets {
    fn default() -> Self {
        Self(Fds::new())
    }
}

impl Sockets {
    fn bind(&mut self, address: SocketAddr) -> Result<SocketAddr> {
        let socket =
            TcpListener::bind(address).with_context(|| format!("can't listen on {address}"))?;
        socket.set_nonblocking(true)?;
        let bound = socket.local_addr()?;
        if self.0.get(&bound.to_string()).is_some() {
            bail!("can't listen on {bound} twice");
        }
        self.0.add(bound.to_string(), socket.into_raw_fd());
        Ok(bound)
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("can't listen for signals");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// Until SIGTERM or SIGINT; SIGHUP reloads meanwhile.
    async fn wait_for_stop(&mut self, reloader: &Reloader) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => { let _ = reloader.reload().await; }
            }
        }
    }

    async fn again(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
