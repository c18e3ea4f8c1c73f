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

use crate::app::App;
use crate::attempt::Attempt;
use crate::disk::{Disk, Found, Stamp};
use crate::embedding::Embedder;
use crate::golden;
use crate::metrics::NO_MODEL;
use crate::model_config::ModelConfig;
use crate::queue::LineConfig;
use crate::refusal::Refusal;
use crate::repository::{Entry, Known, Labels, Model, Served, State, Version};
use crate::room::{self, Spare};
use crate::stats::Stats;
use crate::trial::Trial;
use forebay_protocol::Reason;
use forebay_protocol::metric::worker as metric;
use forebay_tract as engine;
use std::collections::{BTreeMap, HashMap};
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

/// Why a version was not loaded.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// Others hold the memory; later it may fit.
    #[error("{0}")]
    Full(String),
    /// It will fail again, until its files change.
    #[error("{0}")]
    Bad(String),
}

/// The thread that changes what is served.
pub(crate) struct Loader {
    pub(crate) app: Arc<App>,
    disk: Disk,
    /// Not served any more, but perhaps still in use.
    pub(crate) retired: Vec<Arc<Version>>,
    /// Models that looked changed at the last look.
    unsettled: HashMap<String, Stamp>,
    trial: Trial,
}

/// Why a version is loaded.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    /// It is there, and there may be room.
    Present,
    /// Someone asked for the model: other models may have to go.
    Asked,
    /// Requests wait for this version: any other may have to go.
    Fetched,
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
        };
        for name in loader.disk.names()? {
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
        let work = move || self.run(&commands);
        std::thread::Builder::new().name("loader".to_owned()).spawn(work)?;
        Ok(())
    }

    fn run(mut self, commands: &Receiver<Command>) {
        self.first();
        let poll = self.app.options.models_poll;
        let mut next_look = poll.map(|poll| Instant::now() + poll);
        loop {
            let now = Instant::now();
            let mut patience = next_look.map(|at| at.saturating_duration_since(now));
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
            self.free();
            if next_look.is_some_and(|at| Instant::now() >= at) {
                self.scan(false);
                next_look = poll.map(|poll| Instant::now() + poll);
            }
        }
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
        let names = self.disk.names().unwrap_or_default();
        for name in &names {
            if self.app.is_ended() {
                return;
            }
            // What is wrong stands in the index and the log.
            drop(self.reconcile(name, Why::Present));
        }
        self.app.repository.tried_all();
        let ready = self.app.repository.is_ready();
        tracing::info!(ready, models = names.len(), "all models have settled");
    }

    /// Loads what has changed and takes away what has gone. `at_once`: even if it may be half
    /// written.
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
            let known = self.app.repository.served().get(&name).cloned();
            let is_same =
                |model: Arc<Model>| model.stamp.as_ref() == Some(&stamp) || model.is_unloaded;
            if known.is_some_and(is_same) {
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
        retired.into_iter().for_each(|version| self.retire(version, "unloaded"));
        Ok(())
    }

    /// Its directory has gone.
    fn take_away(&mut self, name: &str) {
        let mut gone = None;
        self.app.repository.change(|served| gone = served.remove(name));
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

    /// What becomes of one version: kept, loaded, left for later, or failed.
    fn load(
        &mut self,
        name: &str,
        number: u64,
        model: &Model,
        old: Option<&Entry>,
        why: Why,
    ) -> Entry {
        let mut entry = old.cloned().unwrap_or_else(|| Entry::new(State::Loading));
        let serving = old.and_then(Entry::version);
        let outcome = match self.try_load(name, number, model, &entry, why) {
            Ok(None) => {
                entry.failure = None;
                return entry;
            }
            Ok(Some(version)) => {
                entry.known = Some(Arc::new(Known {
                    digest: version.digest.clone(),
                    bytes: version.memory.bytes,
                    config: Arc::clone(&version.config),
                    profile: version.engine.profile(),
                    stats: Arc::clone(&version.stats),
                }));
                (entry.state, entry.failure) = (State::Ready(Arc::new(version)), None);
                "ok"
            }
            Err(failure) => {
                let (outcome, state) = match &failure {
                    Failure::Full(_) => ("full", State::OnDemand),
                    Failure::Bad(_) => ("failed", State::Failed),
                };
                let (text, keeps) = (failure.to_string(), serving.is_some());
                if why != Why::Present || outcome == "failed" {
                    tracing::error!(
                        model = name,
                        version = number,
                        failure = text,
                        keeps,
                        "model can't be served"
                    );
                    entry.failure = Some(text);
                } else {
                    tracing::info!(model = name, version = number, why = text, "on demand");
                }
                if !keeps {
                    entry.state = state;
                }
                outcome
            }
        };
        self.app.metrics.loads(name, outcome).increment(1);
        entry
    }

    /// `None`: it is what is served already.
    fn try_load(
        &mut self,
        name: &str,
        number: u64,
        model: &Model,
        old: &Entry,
        why: Why,
    ) -> Result<Option<Version>, Failure> {
        let bytes = self.disk.onnx(name, number).map_err(Failure::Bad)?;
        let digest = blake3::hash(&bytes).to_hex().to_string();
        let labels = self.labels(name, &model.config).map_err(Failure::Bad)?;
        let tokenizer = self.tokenizer(name, &model.config).map_err(Failure::Bad)?;
        let is_same = |old: &Arc<Version>| {
            let embedding = old.embedding.as_ref().map(|embedding| embedding.digest);
            let is_same = old.digest == digest && old.labels == labels;
            is_same
                && embedding == tokenizer.as_deref().map(blake3::hash)
                && Arc::ptr_eq(&old.config, &model.config)
        };
        if old.version().is_some_and(is_same) {
            return Ok(None);
        }
        let before = old.known.as_ref().filter(|known| known.digest == digest);
        let known = model.config.memory.or(before.map(|known| known.bytes));
        let stats = before.map(|known| Arc::clone(&known.stats));
        let profile = before.filter(|known| Arc::ptr_eq(&known.config, &model.config));
        let profile = profile.map(|known| known.profile.clone());
        let room = known.unwrap_or_else(|| room::estimate(bytes.len()));
        let spare = match why {
            Why::Present => Spare::All,
            Why::Asked => Spare::Model(name),
            Why::Fetched => Spare::Version(name, number),
        };
        self.make_room(room, spare).map_err(Failure::Full)?;
        let (started, before) = (Instant::now(), room::resident());
        let (length, config) = (bytes.len(), Arc::clone(&model.config));
        let examples = self.disk.examples(name).map_err(Failure::Bad)?;
        let compared = examples.len();
        let limit = self.app.options.load_timeout;
        let attempt = Attempt::of(&self.app.options);
        let compile = move || {
            let mut options = config.load_options(profile);
            if options.profile.is_none() {
                options.profile = attempt.profile(&bytes, &options)?;
            }
            let engine = engine::Model::load(&bytes, &options).map_err(|e| e.to_string())?;
            golden::check(&engine, &examples, config.tolerance)?;
            let embedding = embedder(&config, tokenizer, &engine)?;
            Ok((engine, embedding))
        };
        let (engine, embedding) = self.trial.run(limit, compile).map_err(Failure::Bad)?;
        let took = started.elapsed();
        let memory = known.unwrap_or_else(|| room::measured(length, before));
        let share = self.app.repository.hold(memory);
        // It may be larger than it looked.
        self.make_room(0, spare).map_err(Failure::Full)?;
        let max_batch = engine.max_batch().unwrap_or(1);
        let of_model = (Arc::clone(&model.config), Arc::clone(&model.line));
        let stats = stats
            .unwrap_or_else(|| Arc::new(Stats::new(&self.app.metrics, name, &number.to_string())));
        let beside = (labels, embedding);
        let version =
            Version::new((name, number), of_model, (engine, digest), beside, share, stats);
        tracing::info!(
            model = name,
            version = number,
            digest = version.digest,
            memory_bytes = memory,
            took_ms = took.as_millis(),
            max_batch,
            best_batch = version.engine.curve().best(),
            examples = compared,
            build = ?version.engine.build(),
            "model ready"
        );
        let labels = (name, version.number.as_str());
        let seconds = self.app.metrics.series.gauge(metric::MODEL_LOAD_SECONDS, labels);
        seconds.set(took.as_secs_f64());
        Ok(Some(version))
    }

    /// Names of the outputs' elements.
    fn labels(&self, name: &str, config: &ModelConfig) -> Result<Labels, String> {
        let files = config.tensors.iter().filter_map(|t| Some((&t.name, t.label_file.as_ref()?)));
        files.map(|(output, file)| Ok((output.clone(), self.disk.labels(name, file)?))).collect()
    }

    /// The tokenizer's file, where embeddings are wanted.
    fn tokenizer(&self, name: &str, config: &ModelConfig) -> Result<Option<Vec<u8>>, String> {
        let embedding = config.embedding.as_ref();
        embedding.map(|embedding| self.disk.tokenizer(name, &embedding.tokenizer)).transpose()
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

/// From texts to the model's inputs; each length is run once, so that no caller waits for its plan.
fn embedder(
    config: &ModelConfig,
    tokenizer: Option<Vec<u8>>,
    engine: &engine::Model,
) -> Result<Option<Embedder>, String> {
    let (Some(config), Some(tokenizer)) = (&config.embedding, tokenizer) else { return Ok(None) };
    let embedder = Embedder::new(config, &tokenizer, engine)?;
    for length in embedder.lengths() {
        let request = embedder.request(&vec![0; length]);
        let outputs = engine.run(&[&request.inputs], 1, &|| false);
        let outputs = outputs.map_err(|error| format!("{length} tokens: {error}"))?;
        let outputs = outputs.first().map(Vec::as_slice).unwrap_or_default();
        embedder.pool(outputs, length).map_err(|refusal| refusal.message)?;
    }
    Ok(Some(embedder))
}
