//! Models come and go while requests run: load, warm up, switch, drain, unload.
//!
//! One thread is the only one that changes what is served. So there is nothing to lock, one load
//! serves all who asked for it, and a repository does not need all its memory twice at once. What is
//! served goes on being served until its successor has loaded and run; if that fails, nothing but
//! the index, the log and a counter change. What was replaced lives until its last request has gone,
//! and is freed here, not on a thread that others wait for.
//!
//! Changes on disk are found by looking (at intervals, or on SIGHUP), not by the kernel's word:
//! inotify is silent on network and overlay file systems, where repositories often lie, and tells of
//! files that are half written. A look at a thousand models costs some milliseconds. What has
//! changed is loaded once it looks the same twice.

use crate::again::Again;
use crate::app::App;
use crate::disk::{Disk, Found, Stamp};
use crate::load::Why;
use crate::metrics::NO_MODEL;
use crate::model_config::ModelConfig;
use crate::queue::LineConfig;
use crate::refusal::Refusal;
use crate::repository::{Entry, Model, Served, State, Version};
use crate::trial::Trial;
use forebay_process::supervise::{Importance, fault_point};
use forebay_protocol::Reason;
use forebay_protocol::metric::worker as metric;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How often versions are looked after that wait for their last request.
const DRAIN_STEP: Duration = Duration::from_millis(5);

/// What the loader is asked to do.
#[derive(Debug)]
pub(crate) enum Command {
    /// Look for what has changed on disk.
    Scan,
    /// Load a model, or what is new in it.
    Load { model: String, reply: oneshot::Sender<Result<(), Refusal>> },
    /// Take a model away.
    Unload { model: String, reply: oneshot::Sender<Result<(), Refusal>> },
    /// Load a version that requests wait for.
    Fetch { model: String, number: u64 },
    /// The worker has ended.
    End,
}

/// The thread that changes what is served.
pub(crate) struct Loader {
    pub(crate) app: Arc<App>,
    pub(crate) disk: Disk,
    /// Not served any more, but perhaps still in use.
    pub(crate) retired: Vec<Arc<Version>>,
    /// Models that looked changed at the last look.
    unsettled: HashMap<String, Stamp>,
    pub(crate) trial: Trial,
    again: Again,
    /// Models that were there at the start and have not been tried.
    to_load: VecDeque<String>,
    /// Whether all of them have been tried.
    has_begun: bool,
}

impl Loader {
    /// Lists everything; nothing is loaded yet, but the index tells of it.
    ///
    /// # Errors
    /// The repository can't be read.
    pub(crate) fn new(app: Arc<App>, disk: Disk) -> std::io::Result<Self> {
        let mut loader = Self {
            app,
            disk,
            retired: Vec::new(),
            unsettled: HashMap::new(),
            trial: Trial::default(),
            again: Again::default(),
            to_load: VecDeque::new(),
            has_begun: false,
        };
        for name in loader.disk.names()? {
            loader.to_load.push_back(name.clone());
            if let Ok(found) = loader.disk.model(&name) {
                loader.prepare(&name, None, found, None);
            }
        }
        Ok(loader)
    }

    /// Starts the thread, which loads everything first.
    ///
    /// # Errors
    /// No thread can be started.
    pub(crate) fn start(self, commands: Receiver<Command>) -> std::io::Result<()> {
        let tasks = self.app.tasks.clone();
        let mut loader = self;
        let work = move || {
            tasks.keep_up_here("loader", Importance::Vital, || loader.run(&commands));
        };
        std::thread::Builder::new().name("loader".to_owned()).spawn(work)?;
        Ok(())
    }

    fn run(&mut self, commands: &Receiver<Command>) {
        self.first();
        let poll = self.app.options.models_poll;
        let mut next_look = poll.map(|poll| Instant::now() + poll);
        loop {
            let now = Instant::now();
            let next = [next_look, self.again.next()].into_iter().flatten().min();
            let mut patience = next.map(|at| at.saturating_duration_since(now));
            if !self.retired.is_empty() {
                patience = Some(patience.map_or(DRAIN_STEP, |wait| wait.min(DRAIN_STEP)));
            }
            let command = match patience {
                Some(patience) => commands.recv_timeout(patience),
                None => commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match command {
                Ok(Command::End) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(command) => self.obey(command),
                Err(RecvTimeoutError::Timeout) => {}
            }
            fault_point("loader");
            self.free();
            self.try_again();
            if next_look.is_some_and(|at| Instant::now() >= at) {
                self.scan(false);
                next_look = poll.map(|poll| Instant::now() + poll);
            }
        }
    }

    /// Loads those again that failed for a reason that may have passed.
    fn try_again(&mut self) {
        for name in self.again.due(Instant::now()) {
            if self.app.is_ended() {
                return;
            }
            let stamp = self.disk.stamp(&name);
            if self.has_seen(&name, &stamp) {
                // What is wrong stands in the index and the log.
                drop(self.reconcile(&name, Why::Present));
            } else {
                // What has changed since is found by looking, or on request.
                self.again.forget(&name);
            }
        }
    }

    /// Is a model served as its files are now, or are they not to be looked at?
    fn has_seen(&self, name: &str, stamp: &Stamp) -> bool {
        let served = self.app.repository.served();
        served
            .get(name)
            .is_some_and(|model| model.stamp.as_ref() == Some(stamp) || model.is_unloaded)
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Scan => self.scan(true),
            Command::Load { model, reply } => {
                let result = self.load_model(&model);
                // Whoever asked may have gone.
                drop(reply.send(result));
            }
            Command::Unload { model, reply } => {
                let result = self.unload_model(&model);
                drop(reply.send(result));
            }
            Command::Fetch { model, number } => self.fetch(&model, number),
            Command::End => {}
        }
    }

    fn first(&mut self) {
        if self.has_begun {
            return;
        }
        let models = self.to_load.len();
        // A model that makes this thread panic is not tried again: the others are due.
        while let Some(name) = self.to_load.pop_front() {
            if self.app.is_ended() {
                return;
            }
            // What is wrong stands in the index and the log.
            drop(self.reconcile(&name, Why::Present));
        }
        self.has_begun = true;
        self.app.repository.tried_all();
        let ready = self.app.repository.is_ready();
        tracing::info!(ready, models, "all models have settled");
    }

    /// Loads what has changed and takes away what has gone. `at_once`: even if it may be half
    /// written, and what is to be tried again later.
    fn scan(&mut self, at_once: bool) {
        let names = match self.disk.names() {
            Ok(names) => names,
            Err(error) => {
                tracing::error!(%error, "the model repository can't be read: nothing is changed");
                return;
            }
        };
        let known: Vec<String> = self.app.repository.served().keys().cloned().collect();
        for name in known.iter().filter(|name| !names.contains(name)) {
            tracing::info!(model = name, "its directory has gone");
            self.take_away(name);
        }
        let mut unsettled = HashMap::new();
        for name in names {
            if self.app.is_ended() {
                return;
            }
            let stamp = self.disk.stamp(&name);
            let is_again = at_once && self.again.awaits(&name);
            if self.has_seen(&name, &stamp) && !is_again {
                continue;
            }
            if at_once || self.unsettled.get(&name) == Some(&stamp) {
                // What is wrong stands in the index and the log.
                drop(self.reconcile(&name, Why::Present));
            } else {
                unsettled.insert(name, stamp);
            }
        }
        self.unsettled = unsettled;
        // Those that were never in memory are not among the retired.
        self.forget();
    }

    fn load_model(&mut self, name: &str) -> Result<(), Refusal> {
        if !self.disk.has(name) {
            let name: String = name.chars().take(200).collect();
            let text = format!("no model \"{}\" in the repository", name.escape_debug());
            return Err(Refusal::new(Reason::ModelNotFound, text));
        }
        let result = self.reconcile(name, Why::Asked);
        self.forget();
        result.map_err(|why| {
            let text = format!("model \"{name}\" can't be loaded: {why}");
            Refusal::new(Reason::LoadFailed, text)
        })
    }

    fn unload_model(&mut self, name: &str) -> Result<(), Refusal> {
        let served = self.app.repository.served();
        let Some(model) = served.get(name) else {
            let name: String = name.chars().take(200).collect();
            let text = format!("no model \"{}\" in the repository", name.escape_debug());
            return Err(Refusal::new(Reason::ModelNotFound, text));
        };
        let mut model = Model::clone(model);
        model.is_unloaded = true;
        model.failure = None;
        let mut retired = Vec::new();
        for entry in model.versions.values_mut() {
            let version = entry.version().cloned();
            let weak = version.as_ref().map_or_else(Default::default, Arc::downgrade);
            (entry.state, entry.failure) = (State::Unloaded(weak), None);
            retired.extend(version);
        }
        self.put(name, model);
        self.again.forget(name);
        retired.into_iter().for_each(|version| self.retire(version, "unloaded"));
        Ok(())
    }

    /// Its directory has gone.
    fn take_away(&mut self, name: &str) {
        let mut gone = None;
        self.app.repository.change(|served| gone = served.remove(name));
        self.again.forget(name);
        for entry in gone.iter().flat_map(|model| model.versions.values()) {
            if let Some(version) = entry.version() {
                self.retire(Arc::clone(version), "gone");
            }
        }
    }

    /// Makes what is served of a model be what its directory says.
    fn reconcile(&mut self, name: &str, why: Why) -> Result<(), String> {
        let stamp = self.disk.stamp(name);
        let old = self.app.repository.served().get(name).cloned();
        let found = match self.disk.model(name) {
            Ok(found) => found,
            Err(failure) => {
                tracing::error!(model = name, failure, "model can't be served");
                let new = || self.new_model(ModelConfig::default());
                let mut model = old.map_or_else(new, |old| Model::clone(&old));
                model.failure = Some(failure.clone());
                model.stamp = Some(stamp);
                self.put(name, model);
                self.again.forget(name);
                return Err(failure);
            }
        };
        let mut model = self.prepare(name, old.as_deref(), found, Some(stamp));
        let mut failures = Vec::new();
        let wanted: Vec<u64> = model.versions.keys().copied().collect();
        for number in wanted {
            let old = old.as_ref().and_then(|old| old.versions.get(&number));
            let entry = self.load(name, number, &model, old, why);
            if let Some(failure) = &entry.failure {
                failures.push(format!("version {number}: {failure}"));
            }
            model.versions.insert(number, entry.clone());
            self.put_version(name, number, entry);
        }
        if model.versions.values().any(|entry| entry.may_pass) {
            self.again.put_off(name, Instant::now());
        } else {
            self.again.forget(name);
        }
        let old_versions = old.map(|old| old.versions.clone()).unwrap_or_default();
        if !failures.is_empty() {
            // Better the versions of before than none: nothing that answers is taken away.
            for (number, entry) in &old_versions {
                if entry.state.can_answer() && !model.versions.contains_key(number) {
                    model.versions.insert(*number, entry.clone());
                }
            }
        }
        self.put(name, model.clone());
        for (number, entry) in old_versions {
            let Some(version) = entry.version() else { continue };
            let kept = model.versions.get(&number).and_then(Entry::version);
            if !kept.is_some_and(|kept| Arc::ptr_eq(kept, version)) {
                self.retire(Arc::clone(version), "replaced");
            }
        }
        if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
    }

    /// The model with an entry for each version that is wanted. One that is new is shown at once.
    fn prepare(
        &mut self,
        name: &str,
        old: Option<&Model>,
        found: Found,
        stamp: Option<Stamp>,
    ) -> Model {
        let mut model = match old {
            // The same configuration: what it made goes on.
            Some(old) if *old.config == found.config => old.clone(),
            _ => self.new_model(found.config),
        };
        (model.stamp, model.is_unloaded, model.failure) = (stamp, false, None);
        let entry = |number| (number, Entry::new(State::Loading));
        model.versions = found.numbers.into_iter().map(entry).collect();
        let is_serving = |old: &Model| old.versions.values().any(|entry| entry.state.can_answer());
        if !old.is_some_and(is_serving) {
            self.put(name, model.clone());
        }
        model
    }

    fn new_model(&self, config: ModelConfig) -> Model {
        let line = LineConfig {
            bound: config.queue.unwrap_or(self.app.options.queue),
            weight: config.weight,
            max_delay: config.max_delay,
        };
        Model {
            config: Arc::new(config),
            line: Arc::new(self.app.queue.open(line)),
            versions: BTreeMap::new(),
            failure: None,
            is_unloaded: false,
            stamp: None,
        }
    }

    /// Loads a version that requests wait for.
    fn fetch(&mut self, name: &str, number: u64) {
        let found = self.app.repository.served().get(name).map(|model| Model::clone(model));
        let Some(mut model) = found else { return };
        let Some(entry) = model.versions.remove(&number) else { return };
        // Held in here, the other versions could not be unloaded to make room.
        model.versions.clear();
        if matches!(entry.state, State::OnDemand) {
            let loaded = self.load(name, number, &model, Some(&entry), Why::Fetched);
            if loaded.may_pass {
                self.again.put_off(name, Instant::now());
            }
            self.put_version(name, number, loaded);
        }
        entry.demand.attempted();
        // Those who wait look again.
        self.app.repository.change(|_| ());
    }

    fn put(&self, name: &str, model: Model) {
        let model = Arc::new(model);
        self.app.repository.change(|served| drop(served.insert(name.to_owned(), model)));
    }

    /// Shows one version, where it is new or better than what is shown.
    pub(crate) fn put_version(&self, name: &str, number: u64, entry: Entry) {
        self.app.repository.change(|served: &mut Served| {
            if let Some(model) = served.get_mut(name) {
                Arc::make_mut(model).versions.insert(number, entry);
            }
        });
    }

    /// Lets a version go once its last request has gone.
    pub(crate) fn retire(&mut self, version: Arc<Version>, why: &'static str) {
        let (model, number) = (version.model.as_str(), version.number.as_str());
        self.app.metrics.series.gauge(metric::MODEL_READY, (model, number)).set(0.0);
        self.app.metrics.unloads(model, why).increment(1);
        tracing::info!(model, version = number, digest = version.digest, why, "model retired");
        self.retired.push(version);
    }

    /// Frees what nobody uses any more.
    pub(crate) fn free(&mut self) {
        let before = self.retired.len();
        self.retired.retain(|version| Arc::strong_count(version) > 1);
        if self.retired.len() < before {
            self.forget();
        }
    }

    /// Forgets the metrics of versions that are neither in the repository nor in use any more.
    fn forget(&self) {
        let served = self.app.repository.served();
        self.app.metrics.series.retain(|model, number| {
            let mut retired = self.retired.iter();
            let is_listed = |model: &Arc<Model>| {
                number.parse().is_ok_and(|number| model.versions.contains_key(&number))
            };
            (model, number) == (NO_MODEL, NO_MODEL)
                || served.get(model).is_some_and(is_listed)
                || retired.any(|v| (v.model.as_str(), v.number.as_str()) == (model, number))
        });
    }
}
