//! A backend whose service times are known.
//!
//! Whether a balancer is any good can't be seen on a backend that one does not understand. This one
//! has `k` slots, a line before them, service times from a stated distribution (or from each request,
//! so that every balancer under comparison is given the same demands), speaks the Open Inference
//! Protocol and reports its load as our workers do.

mod http;
mod line;

pub use line::{Line, Load, Refused};

use crate::args::BackendArgs;
use crate::distribution::Distribution;
use anyhow::Context as _;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use std::cell::{Cell, RefCell};
use std::io::Write as _;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// Most connections that are open at once; a new one beyond is closed at once.
const MAX_CONNECTIONS: usize = 20_000;
/// Pause after a failed `accept`, which is nearly always a lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// What a synthetic backend does.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Name of the model that is served.
    pub model: String,
    /// `None`: answer at once with a fixed text, without load reports.
    pub service: Option<Service>,
}

/// How requests are served.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Service {
    /// Requests that are served at once.
    pub slots: u32,
    /// Requests that may wait.
    pub queue: usize,
    /// Service time of those that do not state their own.
    pub time: Distribution,
    /// Every service takes so many times as long.
    pub slow: f64,
    /// Service times follow from it.
    pub seed: u64,
}

/// One backend at work; it belongs to one thread.
#[derive(Debug)]
pub struct Backend {
    options: Options,
    line: Line,
    rng: RefCell<fastrand::Rng>,
    reports: Cell<u64>,
    connections: Cell<usize>,
}

/// `forebay-load backend`: serves until SIGTERM or SIGINT.
///
/// # Errors
/// The address can't be listened on.
pub fn serve(args: &BackendArgs) -> anyhow::Result<()> {
    let service = (!args.fast).then_some(Service {
        slots: args.slots,
        queue: args.queue,
        time: args.service,
        slow: args.slow,
        seed: args.seed,
    });
    let options = Options { model: args.model.clone(), service };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())?;
    runtime.block_on(async {
        let listener =
            TcpListener::bind(args.listen).await.with_context(|| format!("{}", args.listen))?;
        announce(listener.local_addr()?, &options)?;
        let (mut term, mut int) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::select! {
            result = Rc::new(Backend::new(options)).accept(listener) => result.context("timer"),
            _ = term.recv() => Ok(()),
            _ = int.recv() => Ok(()),
        }
    })
}

fn announce(address: SocketAddr, options: &Options) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "listening on http://{address}")?;
    match &options.service {
        None => writeln!(out, "model {}: answers at once", options.model)?,
        Some(service) => writeln!(
            out,
            "model {}: {} slots, service time {}{}",
            options.model,
            service.slots,
            service.time,
            if service.slow == 1.0 { String::new() } else { format!(", x {}", service.slow) }
        )?,
    }
    out.flush()
}

impl Backend {
    /// A backend that has not served yet.
    pub fn new(options: Options) -> Self {
        let (slots, queue, seed) = options
            .service
            .map_or((1, 0, 0), |service| (service.slots as usize, service.queue, service.seed));
        Self {
            line: Line::new(slots, queue),
            rng: RefCell::new(fastrand::Rng::with_seed(seed)),
            reports: Cell::new(0),
            connections: Cell::new(0),
            options,
        }
    }

    /// Serves all connections, http/1.1 and h2c; ends only when it is dropped.
    ///
    /// Runs on a [`tokio::runtime::LocalRuntime`].
    ///
    /// # Errors
    /// The line's timer can't be made.
    pub async fn accept(self: Rc<Self>, listener: TcpListener) -> std::io::Result<()> {
        tokio::select! {
            result = self.line.run() => result,
            () = self.accept_all(&listener) => Ok(()),
        }
    }

    async fn accept_all(self: &Rc<Self>, listener: &TcpListener) {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            if self.connections.get() >= MAX_CONNECTIONS {
                continue;
            }
            // Without it an answer may wait for the client's acknowledgement.
            let _ = stream.set_nodelay(true);
            let guard = Connection::new(self);
            tokio::task::spawn_local(async move {
                // No time-outs: a timer for every request would cost more than the request, and
                // what an idle client holds is bounded by the number of connections.
                let builder = auto::Builder::new(LocalTasks);
                let service = hyper::service::service_fn(|request| {
                    let backend = Rc::clone(&guard.0);
                    async move { backend.answer(request).await }
                });
                // A client that breaks off is its own business.
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    }
}

/// Counts a connection while it lives.
struct Connection(Rc<Backend>);

impl Connection {
    fn new(backend: &Rc<Backend>) -> Self {
        backend.connections.set(backend.connections.get() + 1);
        Self(Rc::clone(backend))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.connections.set(self.0.connections.get() - 1);
    }
}

#[derive(Debug, Clone, Copy)]
struct LocalTasks;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalTasks {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}
