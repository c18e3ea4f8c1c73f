//! The listener and its connections, each with deadlines for what it sends.

use crate::api::grpc;
use crate::api::router::router;
use crate::config::Options;
use crate::connections::{self, Answer, Record, SLOW_READER, Timeouts, Why};
use crate::engines;
use crate::lifecycle::{Lifecycle, Phase};
use crate::memory::{Memory, OfConnection, Share};
use crate::refusal::Refusal;
use crate::repository::command::Command;
use crate::repository::loader::Loader;
use crate::repository::model_files::ModelFiles;
use crate::state::App;
use crate::telemetry::load_report::cpu_time;
use axum::body::HttpBody as _;
use axum::response::Response;
use bytes::Bytes;
use forebay_http2guard::{Event, Guarded};
use forebay_process::limit::CLIENT;
use forebay_process::memory;
use forebay_process::places::{Place, Places, PlacesFull};
use forebay_process::resources::{Descriptors, Exhausted, Spare, is_about_one_connection};
use forebay_process::supervise::{Importance, fault_point};
use forebay_protocol::metric::worker as metric;
use forebay_protocol::{Reason, header as names};
use http::{Request, header};
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

/// Longest header of a request, in bytes.
const MAX_HEADER: u32 = 64 << 10;
/// Streams that a client may open on one HTTP/2 connection.
const MAX_STREAMS: u32 = 256;
/// Interval of pings on a silent HTTP/2 connection, and the time for their answer.
const PING: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(10));
/// Bytes of one answer that may wait in an HTTP/2 connection for the client's window.
const MAX_SEND_BUFFER: usize = 128 << 10;
/// Most fields in a request's header.
const MAX_FIELDS: usize = 100;
/// One connection's share of the memory for bodies and for answers.
const SHARE: usize = 4;
/// Pause after a failed accept, such as when file descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Time that a client gets to read that there is no descriptor for it. No other client is accepted
/// meanwhile.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// Descriptors that a worker without connections uses.
const OWN_DESCRIPTORS: usize = 16;
/// Interval at which histograms are folded and CPU use is sampled.
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
    /// Whether it is a mistake in flags or file, rather than in the machine.
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
        let files = ModelFiles::new(&options.models, options.max_model, options.engines.clone())
            .map_err(unreadable)?;
        let (app, commands) = App::new(options);
        let app = Arc::new(app);
        let loader = Loader::new(app.loading(), files).map_err(unreadable)?;
        let address = app.options.listen;
        let listen = |error| StartError::Listen { address, error };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let pool = Arc::new(app.pool());
        pool.start().map_err(StartError::Threads)?;
        loader.start(commands).map_err(StartError::Threads)?;
        tracing::info!(
            %address,
            executors = app.options.executors,
            engines = engines::described(&app.options.engines),
            "listening"
        );
        let shared = Arc::clone(&app);
        app.tasks.spawn("metrics", Importance::Helpful, move || upkeep(Arc::clone(&shared)));
        let watching = Arc::new(app.watching(&pool));
        app.tasks.spawn("overseer", Importance::Vital, move || Arc::clone(&watching).watch());
        let (connections, lifecycle) = (Arc::clone(&app.connections), app.lifecycle.clone());
        let (header, idle) = (app.options.header_timeout, app.options.idle_timeout);
        let timeouts = Timeouts { header, idle, read: SLOW_READER };
        let watch =
            move || connections::watch(Arc::clone(&connections), lifecycle.clone(), timeouts);
        app.tasks.spawn("connections", Importance::Helpful, watch);
        let shared = Arc::clone(&app);
        let watch = move || give_back(Arc::clone(&shared));
        app.tasks.spawn("memory", Importance::Helpful, watch);
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
                tracing::warn!(error = refusal.message, "skipped the scan of the model repository");
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
    let server = Arc::new(Server {
        service: TowerToHyperService::new(router(Arc::clone(&app))),
        builder: connection_builder(&app.options),
        places: Arc::new(Semaphore::new(most_connections(app.options.max_connections))),
        requests: Arc::default(),
        refusals: Arc::default(),
        app: Arc::clone(&app),
    });
    // They outlive a panic of the loop: connections that are open, and those that wait to be accepted.
    let kept = Arc::new(Mutex::new((listener, JoinSet::new())));
    let accept = {
        let kept = Arc::clone(&kept);
        move || {
            let (server, kept) = (Arc::clone(&server), Arc::clone(&kept));
            async move {
                let (listener, tasks) = &mut *kept.lock().await;
                server.accept_all(listener, tasks).await;
            }
        }
    };
    app.tasks.clone().keep_up("accept", Importance::Vital, accept).await;
    let Some(kept) = Arc::into_inner(kept) else { return };
    let (listener, mut tasks) = kept.into_inner();
    drop(listener);
    let connections = tasks.len();
    tracing::info!(connections, "listener closed, finishing requests in flight");
    let finished = async { while tasks.join_next().await.is_some() {} };
    tokio::select! {
        () = finished => {}
        () = app.lifecycle.reached(Phase::Ended) => tracing::warn!("drain timed out with requests in flight"),
    }
    app.lifecycle.advance(Phase::Ended);
    app.queue.close();
    // If its line is full it sees the phase after what it does now.
    drop(app.repository.ask(Command::End));
}

/// The number of connections that descriptors allow, up to `wanted`: models and the log need some.
fn most_connections(wanted: usize) -> usize {
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
        .max_send_buf_size(MAX_SEND_BUFFER)
        .keep_alive_interval(PING.0)
        .keep_alive_timeout(PING.1);
    builder
}

/// The state that all connections share.
struct Server {
    app: Arc<App>,
    service: TowerToHyperService<axum::Router>,
    builder: Builder<TokioExecutor>,
    places: Arc<Semaphore>,
    /// Those of requests in flight.
    requests: Arc<Places>,
    /// Those of requests that are told that there is no place.
    refusals: Arc<Places>,
}

/// Ends a request for which there is no place without an answer: its client may send it again.
#[derive(Debug, thiserror::Error)]
#[error("too many requests are in flight")]
struct NoPlace(#[source] h2::Error);

impl Server {
    /// Accepts connections until the worker closes.
    async fn accept_all(self: &Arc<Self>, listener: &TcpListener, tasks: &mut JoinSet<()>) {
        let closing = self.app.lifecycle.reached(Phase::Closing);
        tokio::pin!(closing);
        let mut spare = Spare::default();
        loop {
            spare.take();
            let accepted = tokio::select! {
                () = &mut closing => return,
                accepted = self.accept(listener) => accepted,
            };
            while tasks.try_join_next().is_some() {}
            match accepted {
                Ok((stream, peer, permit)) => {
                    let server = Arc::clone(self);
                    tasks.spawn(async move {
                        server.connection(stream, peer).await;
                        drop(permit);
                    });
                }
                Err(error) if is_about_one_connection(&error) => {}
                Err(error) => {
                    self.app.metrics.counter(&metric::ACCEPT_ERRORS, []).increment(1);
                    tracing::warn!(target: CLIENT, %error, "accept failed");
                    // One more can be told that it is one too many.
                    let is_told = Exhausted::of(&error) == Some(Exhausted::Descriptors)
                        && spare.give_up()
                        && one_too_many(listener).await;
                    if !is_told {
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
            fault_point("accept");
        }
    }

    /// The next connection, once there is a place for it: one that is idle may have to go. More wait
    /// in the kernel's backlog, which is bounded too.
    async fn accept(
        &self,
        listener: &TcpListener,
    ) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
        let (stream, peer) = listener.accept().await?;
        if let Ok(permit) = Arc::clone(&self.places).try_acquire_owned() {
            return Ok((stream, peer, permit));
        }
        let mut wanted = std::pin::pin!(Arc::clone(&self.places).acquire_owned());
        loop {
            self.app.connections.make_room(Instant::now());
            let waited = timeout(ACCEPT_PAUSE, &mut wanted).await;
            if let Ok(permit) = waited {
                return Ok((stream, peer, permit.map_err(io::Error::other)?));
            }
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        // Small answers must not wait for the acknowledgement of earlier ones.
        drop(stream.set_nodelay(true));
        let slow = u32::try_from(SLOW_READER.as_millis()).unwrap_or(u32::MAX);
        // Missing only where the socket is no TCP socket.
        let _ = rustix::net::sockopt::set_tcp_user_timeout(&stream, slow);
        let (place, socket) = self.app.connections.enter(stream, peer.ip(), Instant::now());
        let socket = Guarded::new(socket, Bytes::new(), self.observer(peer));
        let options = &self.app.options;
        let most = (options.max_body_memory / SHARE).max(options.max_body);
        let bodies = OfConnection(Memory::new(most));
        let (server, record) = (Arc::clone(&self), Arc::clone(&place.record));
        let service = service_fn(move |request| {
            let (server, record) = (Arc::clone(&server), Arc::clone(&record));
            let bodies = bodies.clone();
            async move { server.respond(&record, bodies, request).await }
        });
        let connection = self.builder.serve_connection(TokioIo::new(socket), service);
        tokio::pin!(connection);
        let mut closing = std::pin::pin!(self.app.lifecycle.reached(Phase::Closing));
        let mut is_told = false;
        let result = loop {
            tokio::select! {
                result = &mut connection => break result,
                () = &mut closing, if !is_told => {
                    is_told = true;
                    connection.as_mut().graceful_shutdown();
                }
                why = place.record.closed() => {
                    connections::count_closed(&self.app.metrics, why);
                    // A request may be on its way: it is answered, and the client told.
                    if !matches!(why, Why::Idle | Why::Room) {
                        return;
                    }
                    is_told = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        };
        if let Err(error) = result {
            tracing::debug!(error, "connection ended");
        }
    }

    /// Counts what the HTTP/2 library and its guard do without the worker's knowledge.
    fn observer(&self, peer: SocketAddr) -> forebay_http2guard::Observer {
        let app = Arc::clone(&self.app);
        Arc::new(move |event| {
            if let Event::Flood(flood) = event {
                let kind = flood.as_str();
                app.metrics.counter(&metric::HTTP2_FLOODS, [kind]).increment(1);
                tracing::warn!(target: CLIENT, %peer, kind, "{}", forebay_http2guard::FLOODED);
            }
            tracing::debug!(?event, "HTTP/2");
        })
    }

    /// Answers one request. Nothing is done for a client that has not read what was done for it
    /// before, and what it leaves unread is bounded.
    async fn respond(
        &self,
        record: &Arc<Record>,
        bodies: OfConnection,
        mut request: Request<Incoming>,
    ) -> Result<Response<Answer>, NoPlace> {
        let app = &self.app;
        let in_flight = record.begin(request.version());
        let (place, is_admitted) = self.place(record.client(), request.uri().path())?;
        record.until_read().await;
        request.extensions_mut().insert(bodies);
        let is_grpc = forebay_protocol::grpc::is_grpc(request.headers());
        let mut response = match is_admitted.and_then(|()| check(&request)) {
            Ok(()) => match self.service.call(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            },
            Err(refusal) => grpc::refuse(app, is_grpc, refusal),
        };
        let exact = response.body().size_hint().exact().unwrap_or(0);
        let mut length = usize::try_from(exact).unwrap_or(usize::MAX);
        let mut share = Share::new(&app.answers);
        let most = app.options.max_answer_memory / SHARE;
        if !record.may_hold(length, most) || share.grow(length).is_err() {
            let text = "unread answers have reached max_answer_memory";
            response = grpc::refuse(app, is_grpc, Refusal::new(Reason::QueueFull, text));
            (share, length) = (Share::new(&app.answers), 0);
        }
        Ok(response.map(|body| Answer::new(body, in_flight, (length, share), place)))
    }

    /// A place for a request, or for its refusal, which a client may leave unread as well.
    ///
    /// # Errors
    /// There are too many of both.
    fn place(&self, client: u64, path: &str) -> Result<(Place, Result<(), Refusal>), NoPlace> {
        let most = self.app.options.max_requests;
        // Others must not keep a probe from finding out how the worker is.
        let reserve = if asks_for_health(path) { most.div_ceil(4) } else { 0 };
        let full = match self.requests.begin(client, most + reserve) {
            Ok(place) => return Ok((place, Ok(()))),
            Err(full) => full,
        };
        let text = match full {
            PlacesFull::Client => "this client has half of max_requests in flight",
            PlacesFull::Total => "the requests of all clients have reached max_requests",
        };
        let place = self.refusals.begin(client, most.div_ceil(4) + 1);
        let place = place.map_err(|_| NoPlace(h2::Reason::REFUSED_STREAM.into()))?;
        Ok((place, Err(Refusal::new(Reason::QueueFull, text))))
    }
}

/// Accepts a connection for which there is only the spare descriptor, says why it is refused, and closes
/// it. `false`: there was none.
async fn one_too_many(listener: &TcpListener) -> bool {
    let Ok(Ok((mut stream, _))) = timeout(ACCEPT_PAUSE, listener.accept()).await else {
        return false;
    };
    let reason = Reason::ConnectionLimit;
    let body = r#"{"error":"expected fewer connections, found no file descriptor for one more"}"#;
    let answer = format!(
        "HTTP/1.1 {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{}: {}\r\n\
         retry-after: 1\r\nconnection: close\r\n\r\n{body}",
        reason.status(),
        body.len(),
        names::REASON,
        reason.code(),
    );
    let said = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        // Closing before its request is read would reset the connection and destroy the answer.
        let mut rest = [0; 4096];
        while stream.read(&mut rest).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    // The client may have gone, or sends without end.
    let _ = timeout(LAST_WORDS, said).await;
    true
}

/// Whether the path is that of a call for the health of the worker, or of one of its models.
fn asks_for_health(path: &str) -> bool {
    path.starts_with("/v2/health/")
        || path.starts_with("/grpc.health.v1.Health/")
        || ["/ServerLive", "/ServerReady"].iter().any(|call| path.ends_with(call))
}

/// Requests that HTTP/2 accepts and HTTP/1 does not.
fn check(request: &Request<Incoming>) -> Result<(), Refusal> {
    let fields = request.headers();
    if fields.len() > MAX_FIELDS {
        let text = format!("expected at most {MAX_FIELDS} header fields, found {}", fields.len());
        return Err(Refusal::new(Reason::HeadersTooLarge, text));
    }
    if fields.get_all(header::CONTENT_LENGTH).iter().count() > 1 {
        return Err(Refusal::request("expected one content-length, found several"));
    }
    Ok(())
}

/// Gives memory back when many connections, or long bodies and answers, have ended, until the worker ends.
async fn give_back(app: Arc<App>) {
    let (connections, most) = (app.connections.taken(), 4 << 20);
    let watched = [(connections, 100), (app.memory.taken(), most), (app.answers.taken(), most)];
    tokio::select! {
        () = app.lifecycle.reached(Phase::Ended) => {}
        () = memory::watch(&watched) => {}
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
