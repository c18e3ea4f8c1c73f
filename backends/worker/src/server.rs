//! The listener and its connections, each with deadlines for what it sends.

use crate::app::{App, router};
use crate::config::Options;
use crate::disk::Disk;
use crate::lifecycle::{Lifecycle, Phase};
use crate::loader::{Command, Loader};
use crate::report::cpu_time;
use crate::{executor, overseer};
use forebay_process::limit::CLIENT;
use forebay_process::resources::{Descriptors, is_about_one_connection};
use forebay_process::supervise::{Importance, fault_point};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};

/// Longest header of a request, in bytes.
const MAX_HEADER: u32 = 64 << 10;
/// Streams that a client may open on one HTTP/2 connection.
const MAX_STREAMS: u32 = 256;
/// How often a silent HTTP/2 connection is pinged, and how long the answer may take.
const PING: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(10));
/// How long a client may leave sent bytes unacknowledged before its connection is dropped.
const SLOW_READER: Duration = Duration::from_secs(15);
/// Pause after a failed accept, such as when file descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Descriptors that a worker without connections uses.
const OWN_DESCRIPTORS: usize = 16;
/// How often histograms are folded and CPU use is sampled.
const UPKEEP: Duration = Duration::from_secs(1);

/// A running worker.
#[derive(Debug)]
pub struct Worker {
    app: Arc<App>,
    address: SocketAddr,
    serving: JoinHandle<()>,
}

/// Why a worker did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The model repository can't be read.
    #[error("model repository {path}: {error}")]
    Repository {
        /// The directory.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The address can't be listened on.
    #[error("can't listen on {address}: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        error: io::Error,
    },
    /// A thread can't be started.
    #[error("can't start threads: {0}")]
    Threads(io::Error),
}

impl StartError {
    /// Is it a mistake in flags or file, rather than in the machine?
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Repository { .. })
    }
}

impl Worker {
    /// Lists the repository, listens, and starts to load in the background.
    ///
    /// # Errors
    /// The repository can't be read, the address is taken, or threads are not to be had.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        let path = options.models.clone();
        let unreadable = |error| StartError::Repository { path: path.clone(), error };
        let disk = Disk::new(&options.models, options.max_model).map_err(unreadable)?;
        let (app, commands) = App::new(options);
        let app = Arc::new(app);
        let loader = Loader::new(Arc::clone(&app), disk).map_err(unreadable)?;
        let address = app.options.listen;
        let listen = |error| StartError::Listen { address, error };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        executor::start(&app).map_err(StartError::Threads)?;
        loader.start(commands).map_err(StartError::Threads)?;
        tracing::info!(
            %address,
            executors = app.options.executors,
            vector_unit = %forebay_tract::VectorUnit::in_use(),
            "listening"
        );
        let shared = Arc::clone(&app);
        app.tasks.spawn("metrics", Importance::Helpful, move || upkeep(Arc::clone(&shared)));
        let shared = Arc::clone(&app);
        app.tasks
            .spawn("overseer", Importance::Vital, move || overseer::watch(Arc::clone(&shared)));
        let (delay, timeout) = (app.options.drain_delay, app.options.drain_timeout);
        let lifecycle = app.lifecycle.clone();
        let conduct = move || lifecycle.clone().conduct(delay, timeout);
        app.tasks.spawn("lifecycle", Importance::Vital, conduct);
        let shared = Arc::clone(&app);
        tokio::spawn(async move {
            shared.tasks.lost().await;
            shared.lifecycle.advance(Phase::Draining);
        });
        let serving = tokio::spawn(serve(Arc::clone(&app), listener));
        Ok(Self { app, address, serving })
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// To drain it, and to see how far that is.
    pub fn lifecycle(&self) -> &Lifecycle {
        &self.app.lifecycle
    }

    /// Waits until every model has loaded or failed.
    pub async fn settled(&self) {
        self.app.repository.settled().await;
    }

    /// Asks for a look at the model repository: what has changed there is loaded.
    pub fn rescan(&self) -> impl Fn() + Send + 'static {
        let app = Arc::clone(&self.app);
        move || {
            if let Err(refusal) = app.repository.ask(Command::Scan) {
                tracing::warn!(error = refusal.message, "no look at the model repository");
            }
        }
    }

    /// Waits until the worker has drained and ended. `false`: it could not go on.
    pub async fn finished(self) -> bool {
        // Fails only if the task panicked, and then it has ended as well.
        self.serving.await.is_ok() && self.app.tasks.all_up()
    }
}

async fn serve(app: Arc<App>, listener: TcpListener) {
    let service = TowerToHyperService::new(router(Arc::clone(&app)));
    let builder = Arc::new(connection_builder(&app.options));
    let places = Arc::new(Semaphore::new(connections(app.options.max_connections)));
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    let closing = app.lifecycle.reached(Phase::Closing);
    tokio::pin!(closing);
    loop {
        // Above the limit connections wait in the kernel's backlog, which is bounded too.
        let accepted = tokio::select! {
            () = &mut closing => break,
            accepted = accept(&listener, &places) => accepted,
        };
        while connections.try_join_next().is_some() {}
        fault_point("serve");
        match accepted {
            Ok((stream, place)) => {
                let connection = Connection {
                    builder: Arc::clone(&builder),
                    watcher: graceful.watcher(),
                    patience: app.options.header_timeout,
                };
                let service = service.clone();
                connections.spawn(async move {
                    connection.run(stream, service).await;
                    drop(place);
                });
            }
            Err(error) if is_about_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(target: CLIENT, %error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    tracing::info!(connections = graceful.count(), "listener closed, finishing what is in flight");
    tokio::select! {
        () = graceful.shutdown() => {}
        () = app.lifecycle.reached(Phase::Ended) => tracing::warn!("ended with requests in flight"),
    }
    app.lifecycle.advance(Phase::Ended);
    app.queue.close();
    // If its line is full it sees the phase after what it does now.
    drop(app.repository.ask(Command::End));
}

/// As many connections as are wanted and as descriptors are left for: models and the log need some.
fn connections(wanted: usize) -> usize {
    let Descriptors { limit, for_requests, .. } = Descriptors::of_this_process();
    let most = usize::try_from(for_requests).unwrap_or(usize::MAX).saturating_sub(OWN_DESCRIPTORS);
    if wanted > most {
        tracing::warn!(
            max_connections = wanted,
            most,
            limit,
            "max_connections does not fit the limit of open file descriptors"
        );
    }
    wanted.min(most).max(1)
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, place))
}

fn connection_builder(options: &Options) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(options.idle_timeout)
        .max_buf_size(MAX_HEADER as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER)
        .keep_alive_interval(PING.0)
        .keep_alive_timeout(PING.1);
    builder
}

/// What one connection is served with.
struct Connection {
    builder: Arc<Builder<TokioExecutor>>,
    watcher: Watcher,
    /// Until the first request's header.
    patience: Duration,
}

impl Connection {
    async fn run(self, stream: TcpStream, service: TowerToHyperService<axum::Router>) {
        // Small answers must not wait for the acknowledgement of earlier ones.
        drop(stream.set_nodelay(true));
        let slow = u32::try_from(SLOW_READER.as_millis()).unwrap_or(u32::MAX);
        // Missing only where the socket is no TCP socket.
        let _ = rustix::net::sockopt::set_tcp_user_timeout(&stream, slow);
        let spoke = Arc::new(AtomicBool::new(false));
        let heard = Arc::clone(&spoke);
        let service = service_fn(move |request| {
            heard.store(true, Relaxed);
            service.call(request)
        });
        let connection = self.builder.serve_connection(TokioIo::new(stream), service).into_owned();
        let served = self.watcher.watch(connection);
        tokio::pin!(served);
        // The builder's own timer starts only after it knows which HTTP is spoken.
        let result = tokio::select! {
            result = &mut served => result,
            () = tokio::time::sleep(self.patience) => {
                if !spoke.load(Relaxed) {
                    return;
                }
                served.await
            }
        };
        if let Err(error) = result {
            tracing::debug!(error, "connection ended");
        }
    }
}

/// Folds histograms and samples CPU use until the end.
async fn upkeep(app: Arc<App>) {
    let cores = std::thread::available_parallelism().map_or(1.0, |n| n.get() as f64);
    let mut last = (Instant::now(), cpu_time());
    loop {
        tokio::select! {
            () = app.lifecycle.reached(Phase::Ended) => return,
            () = tokio::time::sleep(UPKEEP) => {}
        }
        let now = (Instant::now(), cpu_time());
        let wall = (now.0 - last.0).as_secs_f64();
        let used = now.1.saturating_sub(last.1).as_secs_f64();
        app.load.set_cpu_utilization(used / wall.max(1e-3) / cores);
        app.metrics.upkeep();
        fault_point("metrics");
        last = now;
    }
}
