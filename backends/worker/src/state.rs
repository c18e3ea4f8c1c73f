//! The state that all requests share: a handle to each part of the worker.
//!
//! Only what answers requests takes it whole. The parts themselves are given what they use of each
//! other, so that none of them knows all the others.

use crate::config::Options;
use crate::connections::Connections;
use crate::lifecycle::Lifecycle;
use crate::memory::Memory;
use crate::repository::Repository;
use crate::repository::command::Command;
use crate::repository::models;
use crate::scheduler::executor::Pool;
use crate::scheduler::job::Job;
use crate::scheduler::queue::Queue;
use crate::scheduler::watchdog::{self, Watchdog};
use crate::telemetry::load_report::LoadMonitor;
use crate::telemetry::metrics::Metrics;
use forebay_process::supervise::Supervisor;
use forebay_protocol::LoadReport;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

/// State shared by all requests.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) options: Options,
    pub(crate) repository: Arc<Repository>,
    pub(crate) queue: Arc<Queue<Job>>,
    pub(crate) load: Arc<LoadMonitor>,
    pub(crate) watchdog: Arc<Watchdog>,
    pub(crate) metrics: Arc<Metrics>,
    /// Of request bodies.
    pub(crate) memory: Arc<Memory>,
    /// Of answers that clients have not read yet.
    pub(crate) answers: Arc<Memory>,
    pub(crate) connections: Arc<Connections>,
    pub(crate) lifecycle: Lifecycle,
    /// The tasks that keep the worker going.
    pub(crate) tasks: Supervisor,
}

impl App {
    /// The parts that the executors use.
    pub(crate) fn pool(&self) -> Pool {
        Pool {
            queue: Arc::clone(&self.queue),
            watchdog: Arc::clone(&self.watchdog),
            load: Arc::clone(&self.load),
            repository: Arc::clone(&self.repository),
            executors: self.options.executors,
            pin_executors: self.options.pin_executors,
            models_memory: self.options.models_memory,
        }
    }

    /// The parts that loading uses.
    pub(crate) fn loading(&self) -> models::Parts {
        models::Parts {
            options: self.options.clone(),
            repository: Arc::clone(&self.repository),
            queue: Arc::clone(&self.queue),
            metrics: Arc::clone(&self.metrics),
            tasks: self.tasks.clone(),
            lifecycle: self.lifecycle.clone(),
        }
    }

    /// The parts that the watchdog of `pool` uses.
    pub(crate) fn watching(
        &self,
        pool: &Arc<Pool>,
    ) -> watchdog::Parts<impl Fn(usize) -> io::Result<()> + use<>> {
        let pool = Arc::clone(pool);
        watchdog::Parts {
            watchdog: Arc::clone(&self.watchdog),
            queue: Arc::clone(&self.queue),
            lifecycle: self.lifecycle.clone(),
            executors: self.options.executors,
            start_one: move |index| pool.start_one(index),
        }
    }

    /// Without models; the receiver is for the loader, which brings them.
    pub(crate) fn new(options: Options) -> (Self, Receiver<Command>) {
        let (repository, commands) = Repository::new(options.queue);
        let app = Self {
            queue: Queue::new(options.executors),
            load: Arc::new(LoadMonitor::new(options.executors)),
            watchdog: Arc::default(),
            memory: Memory::new(options.max_body_memory),
            answers: Memory::new(options.max_answer_memory),
            connections: Arc::default(),
            lifecycle: Lifecycle::new(),
            tasks: Supervisor::default(),
            metrics: Arc::new(Metrics::new()),
            repository: Arc::new(repository),
            options,
        };
        (app, commands)
    }

    /// The load now, as it is stated on every answer.
    pub(crate) fn load_report(&self) -> LoadReport {
        let generation = self.repository.generation();
        LoadReport { generation, ..self.load.report(&self.queue.counts()) }
    }
}
