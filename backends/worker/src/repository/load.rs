//! One version from disk into service: read, tried, compiled, compared, accounted for.

use crate::allocator::give_back;
use crate::config::model::ModelConfig;
use crate::inference::embedding::Embedder;
use crate::repository::command::{Cancel, Why};
use crate::repository::error::LoadError;
use crate::repository::generation;
use crate::repository::memory_budget::{self, Spare};
use crate::repository::model_files::Located;
use crate::repository::models::Models;
use crate::repository::sandbox::{Candidate, MARGIN, Sandbox};
use crate::repository::self_test;
use crate::repository::version::{Known, Labels, LastUse, MemoryShare, Version};
use crate::scheduler::queue::LineHandle;
use crate::telemetry::stats::Stats;
use forebay_engine::{Batching, Engine, Model, ModelFile, Profile, Remote, Watch};
use forebay_protocol::metric::worker as metric;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// The version that is to be loaded, and how.
pub(crate) struct Order<'a> {
    pub(crate) name: &'a str,
    pub(crate) number: u64,
    pub(crate) config: &'a Arc<ModelConfig>,
    pub(crate) line: &'a Arc<LineHandle>,
    pub(crate) why: Why,
    pub(crate) cancel: &'a Cancel,
}

/// The outcome.
pub(crate) enum Outcome {
    /// It is what is served already.
    Same,
    Loaded(Box<Version>),
    Failed(LoadError),
}

/// A load on its way.
struct Trial<'a> {
    order: &'a Order<'a>,
    beside: &'a Beside,
    /// The measurements of the last load.
    before: Option<&'a Arc<Known>>,
    share: MemoryShare,
    started: Instant,
    spare: Spare<'a>,
}

/// A version as an engine has loaded it.
struct Made {
    engine: Arc<dyn Engine>,
    loaded: Arc<dyn Model>,
    embedding: Option<Embedder>,
    digest: String,
    /// The measurements of the last load of the same content.
    before: Option<Arc<Known>>,
}

impl Trial<'_> {
    fn version(self, made: Made, models: &Models) -> Version {
        let Self { order, beside, share, .. } = self;
        let (name, number) = (order.name, order.number.to_string());
        let Made { engine, loaded, embedding, digest, before } = made;
        let beside_it = (&beside.labels, embedding.as_ref());
        let content = generation::content(&digest, order.config, beside_it);
        let stats = before
            .map(|known| Arc::clone(&known.stats))
            .unwrap_or_else(|| Arc::new(Stats::new(&models.metrics, name, &number)));
        Version {
            model: name.to_owned(),
            number,
            config: Arc::clone(order.config),
            line: Arc::clone(order.line),
            engine,
            loaded,
            digest,
            content,
            labels: beside.labels.clone(),
            embedding,
            memory: share,
            stats,
            last_use: LastUse::default(),
        }
    }
}

/// Whether this engine has made the measurements.
fn is_engine_of(known: Option<&Known>, located: &Located) -> bool {
    known.is_some_and(|known| known.engine == located.engine.name())
}

/// Why none of the engines runs a model, and how another could.
fn refusal(refused: &[(&str, String)], missing: Option<String>) -> String {
    let mut text = match refused {
        [(_, why)] => why.clone(),
        several => {
            let each = several.iter().map(|(engine, why)| format!("{engine}: {why}"));
            each.collect::<Vec<_>>().join("; ")
        }
    };
    if let Some(missing) = missing {
        text.push_str("; another engine may run it: ");
        text.push_str(&missing);
    }
    text
}

/// The files beside a version's model.
struct Beside {
    labels: Labels,
    tokenizer: Option<Vec<u8>>,
}

impl Models {
    /// Loads one version. Holds no version that is served while it does.
    pub(crate) fn load(&self, order: &Order<'_>) -> Outcome {
        match self.try_load(order) {
            Ok(None) => Outcome::Same,
            Ok(Some(version)) => Outcome::Loaded(Box::new(version)),
            Err(failure) => Outcome::Failed(failure),
        }
    }

    /// `None`: it is what is served already.
    fn try_load(&self, order: &Order<'_>) -> Result<Option<Version>, LoadError> {
        let (name, number) = (order.name, order.number);
        // Before anything of it is read: it may be too long, or no file.
        let mut located = self.files.locate(name, number, order.config.engine)?;
        let first = located.first().ok_or_else(|| "expected an engine, found none".to_owned())?;
        let length = self.files.length(first)?;
        let beside = self.beside(name, order.config)?;
        if self.is_served(order, &located, &beside)? {
            return Ok(None);
        }
        let before = self.known(order);
        let bytes = order.config.memory.or(before.as_ref().map(|known| known.bytes));
        let spare = match order.why {
            Why::Present => Spare::All,
            Why::Asked => Spare::Model(name),
            Why::Fetched => Spare::Version(name, number),
        };
        let room = bytes.unwrap_or_else(|| memory_budget::estimate(length));
        let share = self.make_room(room, spare).map_err(LoadError::Full)?;
        let started = Instant::now();
        // The engine that has run it before is most likely the one that does now.
        located.sort_by_key(|located| !is_engine_of(before.as_deref(), located));
        let trial =
            Trial { order, beside: &beside, before: before.as_ref(), share, started, spare };
        self.try_engines(trial, located).map(Some)
    }

    /// Loads a version with the first of these engines that runs it right.
    fn try_engines(&self, trial: Trial<'_>, located: Vec<Located>) -> Result<Version, LoadError> {
        let order = trial.order;
        let mut refused: Vec<(&str, String)> = Vec::new();
        for located in located {
            let engine = located.engine.name();
            match self.load_with(&trial, located) {
                Ok((made, compared)) => {
                    let started = trial.started;
                    let version = trial.version(made, self);
                    self.announce(&version, started.elapsed(), compared);
                    for (other, why) in refused {
                        let (model, version) = (order.name, order.number);
                        tracing::info!(model, version, engine, other, why, "engine chosen");
                    }
                    return Ok(version);
                }
                Err(LoadError::Unsupported(why)) => refused.push((engine, why)),
                Err(error) => return Err(error),
            }
        }
        let missing = match order.config.engine {
            Some(_) => None,
            None => self.files.engines().iter().find_map(|engine| engine.missing()),
        };
        Err(LoadError::Unsupported(refusal(&refused, missing)))
    }

    /// Loads a version with one engine; says how many examples it was compared with.
    fn load_with(&self, trial: &Trial<'_>, located: Located) -> Result<(Made, usize), LoadError> {
        let Trial { order, beside, before, share, .. } = trial;
        let bytes = self.files.bytes(&located)?;
        let digest = blake3::hash(&bytes).to_hex().to_string();
        let before = before
            .filter(|known| known.digest == digest && is_engine_of(Some(known), &located))
            .cloned();
        let examples = self.files.examples(order.name)?;
        let compared = examples.len();
        let (bytes, config) = (Arc::new(bytes), Arc::clone(order.config));
        let profile = before.as_ref().filter(|known| Arc::ptr_eq(&known.config, &config));
        let mut profile = profile.map(|known| known.profile.clone());
        if profile.is_none() {
            profile = self.profile_in_sandbox((&located, &bytes), &config, order.cancel)?;
        }
        let tokenizer = beside.tokenizer.clone();
        let engine = Arc::clone(&located.engine);
        let work = move |watch: &dyn Watch| {
            let options = config.load_options(profile);
            let file = ModelFile { name: located.file, bytes: &bytes };
            let loaded = located.engine.load(file, &options, watch)?;
            // Another engine may give the recorded answers.
            self_test::run(&*loaded, &examples, config.tolerance)
                .map_err(LoadError::Unsupported)?;
            let embedding = embedder(&config, tokenizer, &*loaded)?;
            Ok((loaded, embedding))
        };
        let (loaded, embedding) = self.watched(order.cancel, work)?;
        give_back();
        if order.config.memory.is_none() {
            self.release_excess(share, &*loaded);
        }
        // It may be larger than it looked.
        drop(self.make_room(0, trial.spare).map_err(LoadError::Full)?);
        Ok((Made { engine, loaded, embedding, digest, before }, compared))
    }

    /// Loads within the operator's time limit. An engine that watches ends soon after its load has been
    /// given up or the model is no longer wanted; one that does not watch goes on alone.
    fn watched<T: Send + 'static>(
        &self,
        cancel: &Cancel,
        work: impl FnOnce(&dyn Watch) -> Result<T, LoadError> + Send + 'static,
    ) -> Result<T, LoadError> {
        let is_over = Arc::new(AtomicBool::new(false));
        let watch = LoadWatch { cancel: cancel.clone(), is_over: Arc::clone(&is_over) };
        let work = move || work(&watch);
        let result = self.guard.run(self.options.load_timeout, work);
        is_over.store(true, Relaxed);
        result
    }

    /// Accounts for what a model holds; it forgets plans where models take too much together.
    fn release_excess(&self, share: &MemoryShare, loaded: &dyn Model) {
        share.resize(loaded.memory() as u64);
        let Some(bound) = self.options.models_memory else { return };
        let excess = self.repository.memory().saturating_sub(bound);
        if excess > 0 {
            loaded.release(usize::try_from(excess).unwrap_or(usize::MAX));
            share.resize(loaded.memory() as u64);
        }
    }

    /// Whether the served version is the one on disk, configured in the same way.
    fn is_served(
        &self,
        order: &Order<'_>,
        located: &[Located],
        beside: &Beside,
    ) -> Result<bool, LoadError> {
        let (name, number) = (order.name, order.number);
        let Some(served) = self.served_version(name, number) else { return Ok(false) };
        let engine = served.engine.name();
        let Some(located) = located.iter().find(|located| located.engine.name() == engine) else {
            return Ok(false);
        };
        let looks_so = Some(served).is_some_and(|version| {
            let tokenizer = version.embedding.as_ref().map(|embedding| embedding.digest);
            version.labels == beside.labels
                && tokenizer == beside.tokenizer.as_deref().map(blake3::hash)
                && Arc::ptr_eq(&version.config, order.config)
        });
        if !looks_so {
            return Ok(false);
        }
        // Looked up once more: reading the file may take long, and nothing is held meanwhile.
        let digest = self.files.digest(located)?;
        Ok(self.served_version(name, number).is_some_and(|version| version.digest == digest))
    }

    fn served_version(&self, name: &str, number: u64) -> Option<Arc<Version>> {
        let served = self.repository.served();
        served.get(name)?.versions.get(&number)?.version().cloned()
    }

    /// The measurements of the last load.
    fn known(&self, order: &Order<'_>) -> Option<Arc<Known>> {
        let served = self.repository.served();
        served.get(order.name)?.versions.get(&order.number)?.known.clone()
    }

    /// The measurements that a child makes of a model that was never loaded before, if there can be a child.
    fn profile_in_sandbox(
        &self,
        (located, bytes): (&Located, &Arc<Vec<u8>>),
        config: &ModelConfig,
        cancel: &Cancel,
    ) -> Result<Option<Profile>, LoadError> {
        let sandbox = Sandbox::of(&self.options);
        let (located, bytes) = (located.clone(), Arc::clone(bytes));
        let options = config.load_options(None);
        let cancel = cancel.clone();
        // The child is killed at its limit; only one that the kernel holds on to stays longer.
        let limit = self.options.load_timeout.saturating_add(MARGIN);
        self.guard.run(limit, move || {
            let file = ModelFile { name: located.file, bytes: &bytes };
            let candidate = Candidate { engine: located.engine.name(), file };
            sandbox.profile(candidate, &options, &cancel)
        })
    }

    /// Says that a version is ready, after so long and so many examples.
    fn announce(&self, version: &Version, took: Duration, examples: usize) {
        tracing::info!(
            model = version.model,
            version = version.number,
            digest = version.digest,
            memory_bytes = version.memory.bytes(),
            took_ms = took.as_millis(),
            max_batch = version.loaded.max_batch().unwrap_or(1),
            best_batch = version.loaded.curve().best(),
            examples,
            engine = version.engine.name(),
            build = version.loaded.build(),
            builds = compared(&version.loaded.compared()),
            "model ready"
        );
        for note in version.loaded.notes().iter().chain(&version.config.notes) {
            tracing::info!(
                model = version.model,
                version = version.number,
                note,
                "served otherwise"
            );
        }
        if let Some(why) = version.loaded.unbatched()
            && version.config.batching != Batching::Off
        {
            tracing::warn!(
                model = version.model,
                version = version.number,
                why,
                "each request runs alone: its rows are not proved to be independent; \
                 batching = \"rows are independent\" in model.toml joins them all the same"
            );
        }
        if let Some(why) = version.loaded.closed() {
            tracing::warn!(
                model = version.model,
                version = version.number,
                why,
                "there is no plan for all sizes: one is compiled for each new shape of requests"
            );
        }
        let labels = (version.model.as_str(), version.number.as_str());
        let seconds = self.metrics.by_version.gauge(&metric::MODEL_LOAD_SECONDS, labels);
        seconds.set(took.as_secs_f64());
    }

    fn beside(&self, name: &str, config: &ModelConfig) -> Result<Beside, LoadError> {
        let (labels, tokenizer) = (self.labels(name, config)?, self.tokenizer(name, config)?);
        Ok(Beside { labels, tokenizer })
    }

    /// Names of the outputs' elements.
    fn labels(&self, name: &str, config: &ModelConfig) -> Result<Labels, LoadError> {
        let files = config.tensors.iter().filter_map(|t| Some((&t.name, t.label_file.as_ref()?)));
        files.map(|(output, file)| Ok((output.clone(), self.files.labels(name, file)?))).collect()
    }

    /// The tokenizer's file, where embeddings are wanted.
    fn tokenizer(&self, name: &str, config: &ModelConfig) -> Result<Option<Vec<u8>>, LoadError> {
        let embedding = config.embedding.as_ref();
        embedding.map(|embedding| self.files.tokenizer(name, &embedding.tokenizer)).transpose()
    }
}

/// Whether a load is still wanted.
#[derive(Clone)]
struct LoadWatch {
    cancel: Cancel,
    is_over: Arc<AtomicBool>,
}

impl Watch for LoadWatch {
    fn stop(&self) -> bool {
        self.is_over.load(Relaxed) || self.cancel.is_cancelled()
    }

    fn remote(&self) -> Option<Remote> {
        let watch = self.clone();
        Some(Arc::new(move || watch.stop()))
    }
}

/// The time of each build, such as `plain 1.9 ms, own 0.8 ms`.
fn compared(builds: &[(&str, f64)]) -> String {
    let each = builds.iter().map(|(build, seconds)| format!("{build} {:.3} ms", seconds * 1e3));
    each.collect::<Vec<_>>().join(", ")
}

/// From texts to the model's inputs; each length is run once, so that no client waits for its plan.
fn embedder(
    config: &ModelConfig,
    tokenizer: Option<Vec<u8>>,
    loaded: &dyn Model,
) -> Result<Option<Embedder>, String> {
    let (Some(config), Some(tokenizer)) = (&config.embedding, tokenizer) else { return Ok(None) };
    let embedder = Embedder::new(config, &tokenizer, loaded)?;
    for length in embedder.lengths() {
        let request = embedder.request(&vec![0; length]);
        let outputs = loaded.run(&[&request.inputs], 1, &|| false);
        let outputs = outputs.map_err(|error| format!("{length} tokens: {error}"))?;
        let outputs = outputs.first().map(Vec::as_slice).unwrap_or_default();
        embedder.pool(outputs, length, None).map_err(|refusal| refusal.message)?;
    }
    Ok(Some(embedder))
}
