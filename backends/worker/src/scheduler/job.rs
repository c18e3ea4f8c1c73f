//! One inference on its way through the queue to an executor.

use crate::refusal::Refusal;
use crate::repository::version::Version;
use crate::scheduler::queue::Work;
use forebay_engine::Form;
use forebay_protocol::oip::Tensor;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;
use tokio::sync::{Notify, oneshot};

/// One inference that waits or runs.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) version: Arc<Version>,
    pub(crate) inputs: Vec<Tensor>,
    pub(crate) rows: usize,
    pub(crate) form: Form,
    /// Not to be started after this.
    pub(crate) deadline: Option<Instant>,
    /// Time at which it was queued.
    pub(crate) queued: Instant,
    pub(crate) client: Arc<Client>,
    pub(crate) reply: oneshot::Sender<Result<Vec<Tensor>, Refusal>>,
}

/// The client of a job, as its executor sees it.
#[derive(Debug, Default)]
pub(crate) struct Client {
    /// Whether the client has left.
    pub(crate) left: AtomicBool,
    /// The engine has begun.
    pub(crate) started: AtomicBool,
    /// Rings when the run is given up.
    pub(crate) lost: Notify,
}

impl Job {
    /// Whether the client has left, or the result would be too late.
    pub(crate) fn is_pointless(&self, now: Instant) -> bool {
        self.client.has_no_use(self.deadline, now)
    }
}

impl Client {
    /// Whether it has left, or a result would be too late for it.
    pub(crate) fn has_no_use(&self, deadline: Option<Instant>, now: Instant) -> bool {
        self.left.load(Relaxed) || deadline.is_some_and(|at| now >= at)
    }
}

impl Work for Job {
    fn deadline(&self) -> Option<Instant> {
        self.deadline
    }
    fn rows(&self) -> usize {
        self.rows
    }
    fn joins(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.version, &other.version) && self.form == other.form
    }
    fn best(&self) -> usize {
        self.version.loaded.curve().best()
    }
    fn limit(&self) -> usize {
        self.version.loaded.curve().limit()
    }
    fn expected(&self, rows: usize) -> f64 {
        self.version.loaded.expected(&self.form, rows)
    }
    fn high_estimate(&self, rows: usize) -> f64 {
        self.version.loaded.careful(&self.form, rows)
    }
    fn preemption_delay(&self) -> f64 {
        self.version.loaded.grain().as_secs_f64()
    }
}
