//! Models come and go while requests run: load, warm up, switch, drain, unload.
//!
//! One thread decides what is loaded and unloaded, and is never busy with either: loads run on threads of
//! their own (see [`load_queue`](super::load_queue)), so that a model that takes minutes, or never finishes,
//! delays neither other models nor requests to this thread. One load serves all clients that asked for it. A
//! served version stays until its successor has loaded and run; if that fails, nothing but the index, the
//! log and a counter change. A replaced version lives until its last request has gone, and is freed here,
//! not on a thread that others wait for.
//!
//! Changes on disk are found by scanning (at intervals, or on SIGHUP), not by kernel events: inotify is
//! silent on network and overlay file systems, where repositories often lie, and reports files that are half
//! written. A scan of a thousand models takes some milliseconds. A change is loaded once it looks the same
//! twice.

use crate::refusal::Refusal;
use crate::repository::command::{Cancel, Command, Reply, TaskId, Why};
use crate::repository::load_queue::{LoadQueue, LoadRequest};
use crate::repository::memory_budget::Spare;
use crate::repository::model_files::{ModelFiles, Stamp};
use crate::repository::models::{Models, Parts};
use forebay_process::supervise::{Importance, fault_point};
use forebay_protocol::Reason;
use std::collections::{BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Interval at which versions that wait for their last request are checked.
const DRAIN_STEP: Duration = Duration::from_millis(5);
/// Minimum number of parallel loads, for any number of cores: with one, the first of two hanging models
/// would keep all others waiting until it counts as long.
const MIN_WIDTH: usize = 2;
const MAX_WIDTH: usize = 4;

/// The thread that decides what is served.
pub(crate) struct Loader {
    models: Arc<Models>,
    queue: LoadQueue,
    /// Models that looked changed at the last look.
    unsettled: HashMap<String, Stamp>,
    /// Models that were there at the start and have not been tried yet.
    untried: BTreeSet<String>,
    /// The time after which the worker is ready without those; `None`: it is.
    overdue: Option<Instant>,
    next_look: Option<Instant>,
}

impl Loader {
    /// Lists everything; nothing is loaded yet, but the index tells of it.
    ///
    /// # Errors
    /// The repository can't be read.
    pub(crate) fn new(parts: Parts, files: ModelFiles) -> std::io::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        // With a bound on memory the order decides which models are loaded and which on demand.
        let width = match parts.options.models_memory {
            Some(_) => 1,
            None => (cores / 2).clamp(MIN_WIDTH, MAX_WIDTH),
        };
        let names = files.names()?;
        let models = Arc::new(Models::new(parts, files));
        names.iter().for_each(|name| models.list(name));
        Ok(Self {
            models,
            queue: LoadQueue::new(width),
            unsettled: HashMap::new(),
            untried: names.into_iter().collect(),
            overdue: None,
            next_look: None,
        })
    }

    /// Starts the thread, which loads everything first.
    ///
    /// # Errors
    /// No thread can be started.
    pub(crate) fn start(mut self, commands: Receiver<Command>) -> std::io::Result<()> {
        let options = &self.models.options;
        self.overdue = Some(Instant::now() + options.ready_timeout);
        self.next_look = options.models_poll.map(|poll| Instant::now() + poll);
        for name in self.untried.clone() {
            self.request(name, Why::Present, None);
        }
        self.settle();
        let tasks = self.models.tasks.clone();
        let work = move || {
            // The sets of waiting and running loads outlive a panic.
            tasks.keep_up_here("loader", Importance::Vital, || while self.turn(&commands) {});
        };
        std::thread::Builder::new().name("loader".to_owned()).spawn(work)?;
        Ok(())
    }

    /// Starts what may start, waits for a command or for the time of something, and sees to it.
    /// `false`: the worker has ended.
    fn turn(&mut self, commands: &Receiver<Command>) -> bool {
        self.start_loads();
        let command = match self.next_turn() {
            Some(wait) => commands.recv_timeout(wait),
            None => commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match command {
            Ok(Command::End) | Err(RecvTimeoutError::Disconnected) => return false,
            Ok(command) => self.obey(command),
            Err(RecvTimeoutError::Timeout) => {}
        }
        fault_point("loader");
        self.models.free();
        let now = Instant::now();
        self.try_again(now);
        if self.overdue.is_some_and(|at| now >= at) {
            self.overdue = None;
            self.models.repository.waited_long();
            tracing::warn!(models = ?self.untried, "ready, without the models that are still loading");
        }
        if self.next_look.is_some_and(|at| now >= at) {
            self.scan(false);
            self.next_look = self.models.options.models_poll.map(|poll| Instant::now() + poll);
        }
        true
    }

    fn next_turn(&self) -> Option<Duration> {
        let now = Instant::now();
        let backoff = self.models.backoff().next();
        let times = [self.next_look, self.overdue, backoff, self.queue.next_start(now)];
        let drain = self.models.has_retired().then(|| now + DRAIN_STEP);
        let next = times.into_iter().chain([drain]).flatten().min();
        next.map(|at| at.saturating_duration_since(now))
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Scan => self.scan(true),
            Command::Load { model, reply } if self.models.files.has(&model) => {
                self.request(model, Why::Asked, Some(reply));
            }
            // The client that asked may have left.
            Command::Load { model, reply } => drop(reply.send(Err(no_model(&model)))),
            Command::Unload { model, reply } => drop(reply.send(self.unload(&model))),
            Command::Fetch { model, number } => {
                let (why, replies) = (Why::Fetched, Vec::new());
                self.queue.push(LoadRequest { model, why, number: Some(number), replies });
            }
            Command::Grown { model, number } => {
                let number = number.parse().unwrap_or_default();
                self.models.evict_excess(Spare::Version(&model, number));
            }
            Command::Ended { id, model } => {
                self.queue.ended(id);
                if !self.queue.has(&model) {
                    self.untried.remove(&model);
                    self.settle();
                }
            }
            Command::End => {}
        }
    }

    fn request(&mut self, model: String, why: Why, reply: Option<Reply>) {
        let replies = reply.into_iter().collect();
        self.queue.push(LoadRequest { model, why, number: None, replies });
    }

    fn start_loads(&mut self) {
        while !self.models.is_ended()
            && let Some((id, request, cancel)) = self.queue.start(Instant::now())
        {
            let (models, model) = (Arc::clone(&self.models), request.model.clone());
            let work = move || run(&models, id, request, &cancel);
            let thread = std::thread::Builder::new().name("load".to_owned());
            if let Err(error) = thread.spawn(work) {
                // The client that asked is told by the dropped sender; the rest is tried again.
                tracing::error!(model, %error, "can't start a thread to load the model");
                self.queue.ended(id);
                self.models.backoff().put_off(&model, Instant::now());
                return;
            }
        }
    }

    /// Whether everything that was there at the start has been tried.
    fn settle(&mut self) {
        let repository = &self.models.repository;
        if self.untried.is_empty() && !repository.has_tried_all() {
            self.overdue = None;
            repository.tried_all();
            let (ready, models) = (repository.is_ready(), repository.served().len());
            let failed = repository.failed();
            let text = match failed.as_slice() {
                [] => format!("{models} of {models} models ready"),
                failed => format!(
                    "{} of {models} models ready; failed: {}",
                    models - failed.len(),
                    failed.join(", ")
                ),
            };
            tracing::info!(ready, models, failed = failed.len(), "{text}");
        }
    }

    /// Loads those again that failed for a reason that may have passed.
    fn try_again(&mut self, now: Instant) {
        let due = self.models.backoff().due(now);
        for name in due {
            match self.models.files.stamp(&name) {
                Ok(stamp) if !self.models.has_seen(&name, &stamp) => {
                    // Later changes are found by scanning, or on request.
                    self.models.backoff().forget(&name);
                }
                // The index and the log have the errors.
                _ => self.request(name, Why::Present, None),
            }
        }
    }

    /// Loads what has changed and takes away what has gone. `at_once`: even if it may be half
    /// written, and what is to be tried again later.
    fn scan(&mut self, at_once: bool) {
        let names = match self.models.files.names() {
            Ok(names) => names,
            Err(error) => {
                tracing::error!(%error, "can't read the model repository, keeping the served models");
                return;
            }
        };
        let known: Vec<String> = self.models.repository.served().keys().cloned().collect();
        for name in known.iter().filter(|name| !names.contains(name)) {
            tracing::info!(model = name, "model directory removed, unloading model");
            self.cancel(name);
            self.models.take_away(name);
        }
        let mut unsettled = HashMap::new();
        for name in names {
            // A file that can't be read now is assumed to be unchanged.
            let Ok(stamp) = self.models.files.stamp(&name) else { continue };
            let is_again = at_once && self.models.backoff().awaits(&name);
            if self.models.has_seen(&name, &stamp) && !is_again {
                continue;
            }
            if at_once || self.unsettled.get(&name) == Some(&stamp) {
                self.request(name, Why::Present, None);
            } else if !self.queue.has(&name) {
                unsettled.insert(name, stamp);
            }
        }
        self.unsettled = unsettled;
        // Those that were never in memory are not among the retired.
        self.models.forget();
    }

    fn unload(&mut self, name: &str) -> Result<(), Refusal> {
        // First: a load that ends later must not bring the model back.
        self.cancel(name);
        if self.models.unload(name) { Ok(()) } else { Err(no_model(name)) }
    }

    fn cancel(&mut self, name: &str) {
        for reply in self.queue.cancel(name) {
            drop(reply.send(Err(cancelled(name))));
        }
        self.untried.remove(name);
        self.settle();
    }
}

/// One load, on its thread.
fn run(models: &Models, id: TaskId, request: LoadRequest, cancel: &Cancel) {
    let LoadRequest { model, why, number, replies } = request;
    let work = || match number {
        Some(number) => {
            models.fetch(&model, number, cancel);
            Ok(())
        }
        None => models.reconcile(&model, why, cancel),
    };
    let result = catch_unwind(AssertUnwindSafe(work));
    let result = result.unwrap_or_else(|_| Err("loading it panicked".to_owned()));
    let result = match result {
        _ if cancel.is_cancelled() => Err(cancelled(&model)),
        Ok(()) => Ok(()),
        Err(why) => {
            let text = format!("model \"{model}\" can't be loaded: {why}");
            Err(Refusal::new(Reason::LoadFailed, text))
        }
    };
    // Before the replies: a client that has one finds the load counted as ended.
    models.repository.tell(Command::Ended { id, model });
    for reply in replies {
        drop(reply.send(result.clone()));
    }
}

fn cancelled(name: &str) -> Refusal {
    let text = format!("model \"{name}\" was unloaded while it was loading");
    Refusal::new(Reason::LoadFailed, text)
}

fn no_model(name: &str) -> Refusal {
    let name: String = name.chars().take(200).collect();
    let text = format!("no model \"{}\" in the repository", name.escape_debug());
    Refusal::new(Reason::ModelNotFound, text)
}
