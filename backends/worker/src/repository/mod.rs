//! The models that are served now, and the way from a request to its version.
//!
//! A model that is loaded, replaced or taken away while requests run must not fail one of them. So the set
//! of served models is one immutable value that is swapped whole: a request keeps the version that it found,
//! and a version lives until its last request has gone. The [loader](crate::repository::loader) and its
//! loads change it, one change at a time; all other code reads, or asks the loader.

mod backoff;
pub(crate) mod command;
mod error;
mod generation;
mod guard;
mod load;
mod load_queue;
pub(crate) mod loader;
mod memory_budget;
pub(crate) mod model_files;
pub(crate) mod models;
mod reconcile;
pub(crate) mod sandbox;
mod self_test;
pub(crate) mod version;

use crate::config::model::ModelConfig;
use crate::refusal::Refusal;
use crate::repository::command::Command;
use crate::repository::model_files::Stamp;
use crate::repository::version::{Known, MemoryShare, Version};
use crate::scheduler::queue::LineHandle;
use arc_swap::ArcSwap;
use forebay_protocol::{ModelContent, Reason};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;
use tokio::sync::watch;

/// Wishes that may wait for the loader.
const MAX_COMMANDS: usize = 1024;
/// Loads that one request waits for, where models drive each other out of memory.
const MAX_FETCHES: usize = 64;

/// All models, by name.
pub(crate) type Served = BTreeMap<String, Arc<Model>>;

/// The served models, for all code to read.
#[derive(Debug)]
pub(crate) struct Repository {
    served: ArcSwap<Served>,
    /// The number of what is served; 0 while it is being changed.
    generation: AtomicU64,
    /// Held while `served` is changed.
    writer: Mutex<()>,
    /// Rings whenever `served` has changed.
    changed: watch::Sender<()>,
    commands: SyncSender<Command>,
    /// Times of last use are counted from here.
    born: Instant,
    /// Bytes of all models in memory, those included that only their last requests hold.
    memory: Arc<AtomicU64>,
    /// Whether everything that was there at the start has been tried.
    tried_all: AtomicBool,
    /// Whether that has taken so long that the worker is ready without it.
    waited_long: AtomicBool,
    /// Requests that may wait for a model, unless its configuration says otherwise.
    queue: usize,
}

/// One directory of the repository.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) config: Arc<ModelConfig>,
    /// Its line in the queue.
    pub(crate) line: Arc<LineHandle>,
    /// The versions that are wanted, or served still, by number.
    pub(crate) versions: BTreeMap<u64, Entry>,
    /// Why the directory can't be served as it stands.
    pub(crate) failure: Option<String>,
    /// Had that another reason than its files, so that it may be served the next time?
    pub(crate) may_pass: bool,
    /// Asked to be unloaded, and not to be loaded by itself again.
    pub(crate) is_unloaded: bool,
    /// The state of the files that this was read from.
    pub(crate) stamp: Option<Stamp>,
}

/// One version of a model, as it stands.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) state: State,
    /// Why the last attempt to load it failed, though an older content may be served.
    pub(crate) failure: Option<String>,
    /// Had that another reason than its files, so that it may load the next time?
    pub(crate) may_pass: bool,
    /// The measurements of the last load.
    pub(crate) known: Option<Arc<Known>>,
    pub(crate) demand: Arc<Demand>,
}

/// Whether a version can be used.
#[derive(Debug, Clone)]
pub(crate) enum State {
    /// For the first time.
    Loading,
    Ready(Arc<Version>),
    /// Not in memory, to make room for others: the next request loads it.
    OnDemand,
    /// It can't be loaded: see the entry's failure.
    Failed,
    /// Taken away on request; the version lives while requests hold it.
    Unloaded(Weak<Version>),
}

/// Requests that wait for a version to be loaded for them.
#[derive(Debug, Default)]
pub(crate) struct Demand {
    /// One load serves all who wait.
    asked: AtomicBool,
    waiting: AtomicUsize,
    /// Attempts that have ended.
    attempts: AtomicUsize,
}

impl Entry {
    /// The content that it answers with, now or once it has been loaded.
    fn content(&self) -> Option<u64> {
        match &self.state {
            State::Ready(version) => Some(version.content),
            State::OnDemand => self.known.as_ref().map(|known| known.content),
            State::Loading | State::Failed | State::Unloaded(_) => None,
        }
    }
}

/// The generation of all that is served.
fn number_of(served: &Served) -> u64 {
    let models = served.iter().map(|(name, model)| {
        let versions = model.versions.iter();
        let versions = versions.filter_map(|(&number, entry)| Some((number, entry.content()?)));
        (name.as_str(), &model.config.labels, versions.collect())
    });
    generation::generation(models)
}

impl Repository {
    /// Serves nothing yet. The receiver is for the loader.
    pub(crate) fn new(queue: usize) -> (Self, std::sync::mpsc::Receiver<Command>) {
        let (commands, receiver) = std::sync::mpsc::sync_channel(MAX_COMMANDS);
        let repository = Self {
            served: ArcSwap::default(),
            generation: AtomicU64::new(generation::generation(std::iter::empty())),
            writer: Mutex::default(),
            changed: watch::Sender::new(()),
            commands,
            born: Instant::now(),
            memory: Arc::default(),
            tried_all: AtomicBool::new(false),
            waited_long: AtomicBool::new(false),
            queue,
        };
        (repository, receiver)
    }

    /// The currently served models.
    pub(crate) fn served(&self) -> Arc<Served> {
        self.served.load_full()
    }

    /// Whether everything that was there at the start has been tried, or has taken too long to wait for, and
    /// at least one version can answer.
    pub(crate) fn is_ready(&self) -> bool {
        let served = self.served.load();
        let mut entries = served.values().flat_map(|model| model.versions.values());
        let has_settled = self.has_tried_all() || self.waited_long.load(Relaxed);
        has_settled && entries.any(|entry| entry.state.can_answer())
    }

    /// Names of models none of whose versions can answer, since each has failed.
    pub(crate) fn failed(&self) -> Vec<String> {
        let served = self.served.load();
        let has_failed = |model: &Model| {
            let versions = model.versions.values();
            let mut states = versions.map(|entry| matches!(entry.state, State::Failed));
            if model.versions.is_empty() { model.failure.is_some() } else { states.all(|f| f) }
        };
        let failed = served.iter().filter(|(_, model)| has_failed(model));
        let mut names: Vec<String> = failed.map(|(name, _)| name.to_string()).collect();
        names.sort();
        names
    }

    /// Whether everything that was there at the start has been tried.
    pub(crate) fn has_tried_all(&self) -> bool {
        self.tried_all.load(Relaxed)
    }

    /// The loader's alone: what is still to be tried is not waited for any longer.
    pub(crate) fn waited_long(&self) {
        self.waited_long.store(true, Relaxed);
        self.changed.send_replace(());
    }

    /// Waits until everything has been tried that was there at the start.
    pub(crate) async fn settled(&self) {
        let mut changed = self.changed.subscribe();
        while !self.has_tried_all() {
            // Fails only without a sender, which `self` is.
            drop(changed.changed().await);
        }
    }

    /// The loader's alone: everything has been tried that was there at the start.
    pub(crate) fn tried_all(&self) {
        self.tried_all.store(true, Relaxed);
        self.changed.send_replace(());
    }

    /// The version that a request means: a number, a label, or none for the newest that can answer.
    /// One that is not in memory is loaded first.
    ///
    /// # Errors
    /// It is not there, can't be loaded, or too many wait for it already.
    pub(crate) async fn acquire(
        &self,
        model: &str,
        version: Option<&str>,
    ) -> Result<Arc<Version>, Refusal> {
        match self.find(model, version)? {
            Found::Ready(version) => Ok(self.touch(version)),
            Found::OnDemand { number, demand, bound } => {
                let _place = demand.enter(bound, model)?;
                self.fetch(model, number, &demand).await
            }
        }
    }

    /// Like [`Repository::acquire`], but `None` if it would have to be loaded first.
    ///
    /// # Errors
    /// It is not there, or can't be loaded.
    pub(crate) fn ready(
        &self,
        model: &str,
        version: Option<&str>,
    ) -> Result<Option<Arc<Version>>, Refusal> {
        match self.find(model, version)? {
            Found::Ready(version) => Ok(Some(version)),
            Found::OnDemand { .. } => Ok(None),
        }
    }

    /// Puts a wish in the loader's line.
    ///
    /// # Errors
    /// The line is full, or the worker is shutting down.
    pub(crate) fn ask(&self, command: Command) -> Result<(), Refusal> {
        self.commands.try_send(command).map_err(|error| match error {
            TrySendError::Full(_) => {
                let text = format!("{MAX_COMMANDS} requests to load or unload are waiting already");
                Refusal::new(Reason::QueueFull, text)
            }
            TrySendError::Disconnected(_) => {
                Refusal::new(Reason::Draining, "the worker is shutting down")
            }
        })
    }

    /// Tells the loader, which always listens for as long as it lives.
    pub(crate) fn tell(&self, command: Command) {
        // Fails only when the worker has ended.
        drop(self.commands.send(command));
    }

    /// The loader's and its loads' alone: puts something else in place of what is served. One change
    /// waits for the other, so each sees what the one before has made.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Served) -> T) -> T {
        // A change that panicked was not stored.
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut served = Served::clone(&self.served.load());
        let result = change(&mut served);
        let generation = number_of(&served);
        // A reader that finds the same number before and after has looked at what it stands for.
        self.generation.store(0, SeqCst);
        let before = self.served.swap(Arc::new(served));
        self.generation.store(generation, SeqCst);
        drop(writer);
        // The old value may be freed with its last reader, which is not done under the lock.
        drop(before);
        self.changed.send_replace(());
        result
    }

    /// The number of what is served; `None` while it is being changed.
    pub(crate) fn generation(&self) -> Option<u64> {
        Some(self.generation.load(SeqCst)).filter(|&generation| generation > 0)
    }

    /// The content of `ran`, which has answered a request for `model` and `version`, and the generation, if
    /// such a request would get the same content still.
    pub(crate) fn content(
        &self,
        model: &str,
        version: Option<&str>,
        ran: &Version,
    ) -> ModelContent {
        let before = self.generation();
        let served = self.served.load();
        let entry = served.get(model).and_then(|model| match version {
            Some(wanted) => model.named(wanted),
            None => model.newest(),
        });
        let is_served = entry.and_then(|(_, entry)| entry.content()) == Some(ran.content);
        let generation = before.filter(|_| is_served && before == self.generation());
        ModelContent {
            content: ran.content,
            generation,
            has_rows: ran.loaded.max_batch().is_some(),
        }
    }

    /// Accounts for a model in memory.
    pub(crate) fn hold(&self, bytes: u64) -> MemoryShare {
        self.memory.fetch_add(bytes, Relaxed);
        MemoryShare::new(&self.memory, bytes)
    }

    /// The same, if all models together then hold at most `bound` bytes.
    pub(crate) fn try_hold(&self, bytes: u64, bound: u64) -> Option<MemoryShare> {
        let fits = |used: u64| used.checked_add(bytes).filter(|&sum| sum <= bound);
        self.memory.fetch_update(Relaxed, Relaxed, fits).ok()?;
        Some(MemoryShare::new(&self.memory, bytes))
    }

    /// Bytes of all models in memory.
    pub(crate) fn memory(&self) -> u64 {
        self.memory.load(Relaxed)
    }

    /// Notes that the version is used now, for the choice of what to unload.
    pub(crate) fn touch(&self, version: Arc<Version>) -> Arc<Version> {
        let now = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        version.touch(now);
        version
    }

    fn find(&self, name: &str, version: Option<&str>) -> Result<Found, Refusal> {
        let served = self.served.load();
        let Some(model) = served.get(name) else {
            let name = name.escape_debug();
            let text = format!("no model \"{name}\" in the repository");
            return Err(Refusal::new(Reason::ModelNotFound, text));
        };
        let found = match version {
            Some(wanted) => model.named(wanted),
            None => model.newest(),
        };
        let Some((&number, entry)) = found else { return Err(model.without(name, version)) };
        let not_ready = |state: &str| {
            let text = format!("model \"{name}\" version {number} is not ready: {state}");
            Err(Refusal::new(Reason::ModelNotReady, text))
        };
        match &entry.state {
            State::Ready(version) => Ok(Found::Ready(Arc::clone(version))),
            State::OnDemand => {
                let bound = model.config.queue.unwrap_or(self.queue);
                let demand = Arc::clone(&entry.demand);
                Ok(Found::OnDemand { number, demand, bound })
            }
            State::Loading => not_ready("still loading"),
            State::Failed => {
                let why = entry.failure.as_deref().unwrap_or("it can't be loaded");
                if entry.may_pass { not_ready(why) } else { Err(failed(name, Some(number), why)) }
            }
            State::Unloaded(_) => not_ready("unloaded"),
        }
    }

    /// Waits until the loader has loaded the version, or has failed to.
    async fn fetch(
        &self,
        model: &str,
        number: u64,
        demand: &Demand,
    ) -> Result<Arc<Version>, Refusal> {
        let text = number.to_string();
        let mut changed = self.changed.subscribe();
        for _ in 0..MAX_FETCHES {
            let attempts = demand.attempts.load(Relaxed);
            if !demand.asked.swap(true, Relaxed) {
                let asked = self.ask(Command::Fetch { model: model.to_owned(), number });
                asked.inspect_err(|_| demand.asked.store(false, Relaxed))?;
            }
            loop {
                changed.mark_unchanged();
                if let Found::Ready(version) = self.find(model, Some(&text))? {
                    return Ok(self.touch(version));
                }
                if demand.attempts.load(Relaxed) > attempts {
                    break;
                }
                drop(changed.changed().await);
            }
            let served = self.served.load();
            let entry = served.get(model).and_then(|model| model.versions.get(&number));
            if let Some((entry, why)) = entry.and_then(|e| Some((e, e.failure.as_deref()?))) {
                // For want of memory it fails only for now.
                if !entry.may_pass && matches!(entry.state, State::Failed) {
                    return Err(failed(model, Some(number), why));
                }
                let text = format!("model \"{model}\" version {number} is not ready: {why}");
                return Err(Refusal::new(Reason::ModelNotReady, text));
            }
            // It was unloaded again before this task ran.
        }
        let text = format!(
            "model \"{model}\" version {number}: other models need its memory at the same time"
        );
        Err(Refusal::new(Reason::ModelNotReady, text))
    }
}

/// A model that is not served until its files or the configuration change.
fn failed(name: &str, number: Option<u64>, why: &str) -> Refusal {
    let version = number.map(|number| format!(" version {number}")).unwrap_or_default();
    let text = format!("model \"{name}\"{version} can't be loaded: {why}");
    Refusal::new(Reason::ModelFailed, text)
}

enum Found {
    Ready(Arc<Version>),
    OnDemand { number: u64, demand: Arc<Demand>, bound: usize },
}

impl State {
    /// Whether it is in memory, or can be loaded.
    pub(crate) fn can_answer(&self) -> bool {
        matches!(self, Self::Ready(_) | Self::OnDemand)
    }
}

impl Entry {
    pub(crate) fn new(state: State) -> Self {
        Self { state, failure: None, may_pass: false, known: None, demand: Arc::default() }
    }

    /// The version, if it is in memory and served.
    pub(crate) fn version(&self) -> Option<&Arc<Version>> {
        if let State::Ready(version) = &self.state { Some(version) } else { None }
    }
}

impl Model {
    /// The version of this number or label.
    pub(crate) fn named(&self, wanted: &str) -> Option<(&u64, &Entry)> {
        let by_label = self.config.labels.get(wanted).copied();
        // As it is written: "01" names no version.
        let by_number = || wanted.parse().ok().filter(|n: &u64| n.to_string() == wanted);
        self.versions.get_key_value(&by_label.or_else(by_number)?)
    }

    /// The newest version that can answer, or else the newest.
    fn newest(&self) -> Option<(&u64, &Entry)> {
        let mut newest_first = self.versions.iter().rev();
        let answers = newest_first.find(|(_, entry)| entry.state.can_answer());
        answers.or_else(|| self.versions.last_key_value())
    }

    fn without(&self, name: &str, version: Option<&str>) -> Refusal {
        match (&self.failure, version) {
            (Some(failure), _) if self.versions.is_empty() => {
                if self.may_pass {
                    let text = format!("model \"{name}\": {failure}");
                    return Refusal::new(Reason::ModelNotReady, text);
                }
                failed(name, None, failure)
            }
            (_, version) => {
                let served: Vec<_> = self.versions.keys().map(u64::to_string).collect();
                let text = format!(
                    "no version \"{}\" of model \"{name}\" is served, only {}",
                    version.unwrap_or_default().escape_debug(),
                    served.join(", ")
                );
                Refusal::new(Reason::ModelNotFound, text)
            }
        }
    }
}

impl Demand {
    /// An attempt has ended, one way or the other: the next request may ask again.
    pub(crate) fn attempted(&self) {
        self.asked.store(false, Relaxed);
        self.attempts.fetch_add(1, Relaxed);
    }

    /// Takes one of the places of those who wait, as many as may wait for the model in the queue.
    fn enter(&self, bound: usize, model: &str) -> Result<Place<'_>, Refusal> {
        let place = Place(self);
        let waiting = self.waiting.fetch_add(1, Relaxed);
        if waiting < bound {
            return Ok(place);
        }
        let text = format!("model \"{model}\": {waiting} requests wait for it to load");
        Err(Refusal::new(Reason::QueueFull, text))
    }
}

struct Place<'a>(&'a Demand);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}
