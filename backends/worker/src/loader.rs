//! Models come and go while requests run: load, warm up, switch, drain, unload.
//!
//! One thread decides what is loaded and unloaded, and is never busy with either: loads run on
//! threads of their own (see [`tasks`](crate::tasks)), so that a model that takes minutes, or never
//! comes to an end, delays neither other models nor what is asked of this thread. One load serves all
//! who asked for it. What is served goes on being served until its successor has loaded and run; if
//! that fails, nothing but the index, the log and a counter change. What was replaced lives until its
//! last request has gone, and is freed here, not on a thread that others wait for.
//!
//! Changes on disk are found by looking (at intervals, or on SIGHUP), not by the kernel's word:
//! inotify is silent on network and overlay file systems, where repositories often lie, and tells of
//! files that are half written. A look at a thousand models costs some milliseconds. What has
//! changed is loaded once it looks the same twice.

use crate::command::{Cancel, Command, Reply, TaskId, Why};
use crate::disk::{Disk, Stamp};
use crate::models::{Parts, Shared};
use crate::refusal::Refusal;
use crate::room::Spare;
use crate::tasks::{Tasks, Wish};
use forebay_process::supervise::{Importance, fault_point};
use forebay_protocol::Reason;
use std::collections::{BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// How often versions are looked after that wait for their last request.
const DRAIN_STEP: Duration = Duration::from_millis(5);
/// Loads at once, whatever the number of cores: with one, the first of two hanging models would keep
/// all others waiting until it counts as long.
const LEAST_WIDTH: usize = 2;
const MOST_WIDTH: usize = 4;

/// The thread that decides what is served.
pub(crate) struct Loader {
    shared: Arc<Shared>,
    tasks: Tasks,
    /// Models that looked changed at the last look.
    unsettled: HashMap<String, Stamp>,
    /// Models that were there at the start and have not been tried yet.
    untried: BTreeSet<String>,
    /// When the worker is ready without those; `None`: it is.
    overdue: Option<Instant>,
    next_look: Option<Instant>,
}

impl Loader {
    /// Lists everything; nothing is loaded yet, but the index tells of it.
    ///
    /// # Errors
    /// The repository can't be read.
    pub(crate) fn new(parts: Parts, disk: Disk) -> std::io::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        // With a bound on memory the order decides which models are loaded and which on demand.
        let width = match parts.options.models_memory {
            Some(_) => 1,
            None => (cores / 2).clamp(LEAST_WIDTH, MOST_WIDTH),
        };
        let names = disk.names()?;
        let shared = Arc::new(Shared::new(parts, disk));
        names.iter().for_each(|name| shared.list(name));
        Ok(Self {
            shared,
            tasks: Tasks::new(width),
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
        let options = &self.shared.options;
        self.overdue = Some(Instant::now() + options.ready_timeout);
        self.next_look = options.models_poll.map(|poll| Instant::now() + poll);
        for name in self.untried.clone() {
            self.wish(name, Why::Present, None);
        }
        self.settle();
        let tasks = self.shared.tasks.clone();
        let work = move || {
            // What is to be loaded and what is being loaded outlives a panic.
            tasks.keep_up_here("loader", Importance::Vital, || while self.turn(&commands) {});
        };
        std::thread::Builder::new().name("loader".to_owned()).spawn(work)?;
        Ok(())
    }

    /// Starts what may start, waits for a command or for the time of something, and sees to it.
    /// `false`: the worker has ended.
    fn turn(&mut self, commands: &Receiver<Command>) -> bool {
        self.start_loads();
        let command = match self.patience() {
            Some(patience) => commands.recv_timeout(patience),
            None => commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match command {
            Ok(Command::End) | Err(RecvTimeoutError::Disconnected) => return false,
            Ok(command) => self.obey(command),
            Err(RecvTimeoutError::Timeout) => {}
        }
        fault_point("loader");
        self.shared.free();
        let now = Instant::now();
        self.try_again(now);
        if self.overdue.is_some_and(|at| now >= at) {
            self.overdue = None;
            self.shared.repository.waited_long();
            tracing::warn!(models = ?self.untried, "ready without models that still load");
        }
        if self.next_look.is_some_and(|at| now >= at) {
            self.scan(false);
            self.next_look = self.shared.options.models_poll.map(|poll| Instant::now() + poll);
        }
        true
    }

    fn patience(&self) -> Option<Duration> {
        let now = Instant::now();
        let again = self.shared.again().next();
        let times = [self.next_look, self.overdue, again, self.tasks.next_start(now)];
        let drain = self.shared.has_retired().then(|| now + DRAIN_STEP);
        let next = times.into_iter().chain([drain]).flatten().min();
        next.map(|at| at.saturating_duration_since(now))
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Scan => self.scan(true),
            Command::Load { model, reply } if self.shared.disk.has(&model) => {
                self.wish(model, Why::Asked, Some(reply));
            }
            // The client that asked may have left.
            Command::Load { model, reply } => drop(reply.send(Err(no_model(&model)))),
            Command::Unload { model, reply } => drop(reply.send(self.unload(&model))),
            Command::Fetch { model, number } => {
                let (why, replies) = (Why::Fetched, Vec::new());
                self.tasks.wish(Wish { model, why, number: Some(number), replies });
            }
            Command::Grown { model, number } => {
                let number = number.parse().unwrap_or_default();
                self.shared.evict_excess(Spare::Version(&model, number));
            }
            Command::Ended { id, model } => {
                self.tasks.ended(id);
                if !self.tasks.has(&model) {
                    self.untried.remove(&model);
                    self.settle();
                }
            }
            Command::End => {}
        }
    }

    fn wish(&mut self, model: String, why: Why, reply: Option<Reply>) {
        let replies = reply.into_iter().collect();
        self.tasks.wish(Wish { model, why, number: None, replies });
    }

    fn start_loads(&mut self) {
        while !self.shared.is_ended()
            && let Some((id, wish, cancel)) = self.tasks.start(Instant::now())
        {
            let (shared, model) = (Arc::clone(&self.shared), wish.model.clone());
            let work = move || run(&shared, id, wish, &cancel);
            let thread = std::thread::Builder::new().name("load".to_owned());
            if let Err(error) = thread.spawn(work) {
                // The client that asked is told by the dropped sender; the rest is tried again.
                tracing::error!(model, %error, "no thread to load it with");
                self.tasks.ended(id);
                self.shared.again().put_off(&model, Instant::now());
                return;
            }
        }
    }

    /// Has everything been tried that was there at the start?
    fn settle(&mut self) {
        let repository = &self.shared.repository;
        if self.untried.is_empty() && !repository.has_tried_all() {
            self.overdue = None;
            repository.tried_all();
            let (ready, models) = (repository.is_ready(), repository.served().len());
            tracing::info!(ready, models, "all models have settled");
        }
    }

    /// Loads those again that failed for a reason that may have passed.
    fn try_again(&mut self, now: Instant) {
        let due = self.shared.again().due(now);
        for name in due {
            match self.shared.disk.stamp(&name) {
                Ok(stamp) if !self.shared.has_seen(&name, &stamp) => {
                    // What has changed since is found by looking, or on request.
                    self.shared.again().forget(&name);
                }
                // What is wrong stands in the index and the log.
                _ => self.wish(name, Why::Present, None),
            }
        }
    }

    /// Loads what has changed and takes away what has gone. `at_once`: even if it may be half
    /// written, and what is to be tried again later.
    fn scan(&mut self, at_once: bool) {
        let names = match self.shared.disk.names() {
            Ok(names) => names,
            Err(error) => {
                tracing::error!(%error, "the model repository can't be read: nothing is changed");
                return;
            }
        };
        let known: Vec<String> = self.shared.repository.served().keys().cloned().collect();
        for name in known.iter().filter(|name| !names.contains(name)) {
            tracing::info!(model = name, "its directory has gone");
            self.cancel(name);
            self.shared.take_away(name);
        }
        let mut unsettled = HashMap::new();
        for name in names {
            // A file that can't be read now is assumed to be unchanged.
            let Ok(stamp) = self.shared.disk.stamp(&name) else { continue };
            let is_again = at_once && self.shared.again().awaits(&name);
            if self.shared.has_seen(&name, &stamp) && !is_again {
                continue;
            }
            if at_once || self.unsettled.get(&name) == Some(&stamp) {
                self.wish(name, Why::Present, None);
            } else if !self.tasks.has(&name) {
                unsettled.insert(name, stamp);
            }
        }
        self.unsettled = unsettled;
        // Those that were never in memory are not among the retired.
        self.shared.forget();
    }

    fn unload(&mut self, name: &str) -> Result<(), Refusal> {
        // First: a load that ends later must not bring the model back.
        self.cancel(name);
        if self.shared.unload(name) { Ok(()) } else { Err(no_model(name)) }
    }

    fn cancel(&mut self, name: &str) {
        for reply in self.tasks.cancel(name) {
            drop(reply.send(Err(cancelled(name))));
        }
        self.untried.remove(name);
        self.settle();
    }
}

/// One load, on its thread.
fn run(shared: &Shared, id: TaskId, wish: Wish, cancel: &Cancel) {
    let Wish { model, why, number, replies } = wish;
    let work = || match number {
        Some(number) => {
            shared.fetch(&model, number, cancel);
            Ok(())
        }
        None => shared.reconcile(&model, why, cancel),
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
    // Before the replies: whoever has one finds the load counted as ended.
    shared.repository.tell(Command::Ended { id, model });
    for reply in replies {
        drop(reply.send(result.clone()));
    }
}

fn cancelled(name: &str) -> Refusal {
    let text = format!("model \"{name}\" was unloaded while it was loaded");
    Refusal::new(Reason::LoadFailed, text)
}

fn no_model(name: &str) -> Refusal {
    let name: String = name.chars().take(200).collect();
    let text = format!("no model \"{}\" in the repository", name.escape_debug());
    Refusal::new(Reason::ModelNotFound, text)
}
