//! A backend whose service times are known.
//!
//! Whether a balancer is any good can't be seen on a backend that one does not understand. This one
//! has `k` slots, a queue before them, service times from a stated distribution (or from each request,
//! so that every balancer under comparison is given the same demands), speaks the Open Inference
//! Protocol over REST and gRPC, and reports its load as our workers do.
//!
//! | module | does |
//! |---|---|
//! | `args` | the command line: `forebay-worker --synthetic` |
//! | `slot_queue` | the slots and the queue before them, in exact time; [`timer`] is its timer |
//! | `call` | what both protocols share: one inference from its demand to its digest |
//! | `rest`, `grpc` | the protocols |
//! | [`distribution`] | how long a service takes |

mod args;
mod call;
pub mod distribution;
mod grpc;
mod reply;
mod rest;
mod slot_queue;
pub mod timer;

pub use args::main;
pub use slot_queue::{Load, Refused, SlotQueue};

use bytes::Bytes;
use distribution::Distribution;
use forebay_http2guard::Guarded;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Notify;

/// Most connections that are open at once; a new one beyond is closed at once.
const MAX_CONNECTIONS: usize = 20_000;
/// Pause after a failed `accept`, which is nearly always a lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// Time that the last answer may take from the server to the socket.
const LAST_WRITE: Duration = Duration::from_millis(5);

/// Settings of a synthetic backend.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Name of the model that is served.
    pub model: String,
    /// `None`: answer at once with a fixed text, without load reports.
    pub service: Option<Service>,
}

/// Settings of its service.
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
    slot_queue: SlotQueue,
    rng: RefCell<fastrand::Rng>,
    /// And so many times on top, as `POST /slow` said.
    slow: Cell<f64>,
    reports: Cell<u64>,
    connections: Cell<usize>,
    /// Requests that are being answered.
    open: Cell<usize>,
    draining: Cell<bool>,
    /// Nothing new is taken any more.
    closed: Cell<bool>,
    closing: Notify,
    /// A request has ended.
    ended: Notify,
}

impl Backend {
    /// A backend that has not served yet.
    pub fn new(options: Options) -> Self {
        let (slots, queue, seed) = options
            .service
            .map_or((1, 0, 0), |service| (service.slots as usize, service.queue, service.seed));
        Self {
            slot_queue: SlotQueue::new(slots, queue),
            rng: RefCell::new(fastrand::Rng::with_seed(seed)),
            slow: Cell::new(1.0),
            reports: Cell::new(0),
            connections: Cell::new(0),
            open: Cell::new(0),
            draining: Cell::new(false),
            closed: Cell::new(false),
            closing: Notify::new(),
            ended: Notify::new(),
            options,
        }
    }

    /// Serves all connections, http/1.1 and h2c; ends only when it is dropped.
    ///
    /// Runs on a [`tokio::runtime::LocalRuntime`].
    ///
    /// # Errors
    /// The queue's timer can't be made.
    pub async fn accept(self: Rc<Self>, listener: TcpListener) -> std::io::Result<()> {
        let accepting = async {
            self.accept_until_closed(listener).await;
            // The queue works on for those that are in it.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            result = self.slot_queue.run() => result,
            () = accepting => Ok(()),
        }
    }

    /// Closes the listener when nothing new is to be taken.
    async fn accept_until_closed(self: &Rc<Self>, listener: TcpListener) {
        tokio::select! {
            () = self.accept_all(&listener) => {}
            () = self.closing.notified() => {}
        }
    }

    /// Becomes not ready, serves on for `delay` so that every balancer notices, then accepts nothing new,
    /// and ends when the last request has its answer.
    pub async fn drain(&self, delay: Duration) {
        self.draining.set(true);
        tokio::time::sleep(delay).await;
        self.closed.set(true);
        self.closing.notify_one();
        while self.open.get() > 0 {
            self.ended.notified().await;
        }
        // HTTP/2 writes in a task of its own, whose turn comes after this one's.
        tokio::time::sleep(LAST_WRITE).await;
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
                // Its end is all that a flood costs; there is no page of metrics that would count it.
                let stream = Guarded::new(stream, Bytes::new(), Arc::new(|_| {}));
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

/// Puts hyper's HTTP/2 tasks on the thread's own runtime.
#[derive(Debug, Clone, Copy)]
pub struct LocalTasks;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalTasks {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}
