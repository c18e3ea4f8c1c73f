//! One version from disk into service: read, tried, compiled, compared, accounted for.

use crate::attempt::{Attempt, MARGIN};
use crate::embedding::Embedder;
use crate::failure::Failure;
use crate::golden;
use crate::loader::Loader;
use crate::model_config::ModelConfig;
use crate::repository::{Entry, Known, Labels, Model, State, Version};
use crate::room::{self, Spare};
use crate::stats::Stats;
use forebay_protocol::metric::worker as metric;
use forebay_tract as engine;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Why a version is loaded.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// It is there, and there may be room.
    Present,
    /// Someone asked for the model: other models may have to go.
    Asked,
    /// Requests wait for this version: any other may have to go.
    Fetched,
}

/// What a version is made of.
struct Content {
    onnx: Vec<u8>,
    /// BLAKE3 of that, in hexadecimal.
    digest: String,
    labels: Labels,
    tokenizer: Option<Vec<u8>>,
}

impl Content {
    /// Is it what this version was made of, configured in the same way?
    fn is_that_of(&self, version: &Version, model: &Model) -> bool {
        let tokenizer = version.embedding.as_ref().map(|embedding| embedding.digest);
        version.digest == self.digest
            && version.labels == self.labels
            && tokenizer == self.tokenizer.as_deref().map(blake3::hash)
            && Arc::ptr_eq(&version.config, &model.config)
    }
}

impl Loader {
    /// What becomes of one version: kept, loaded, left for later, or failed.
    pub(crate) fn load(
        &mut self,
        name: &str,
        number: u64,
        model: &Model,
        old: Option<&Entry>,
        why: Why,
    ) -> Entry {
        let mut entry = old.cloned().unwrap_or_else(|| Entry::new(State::Loading));
        let serving = old.and_then(Entry::version);
        entry.may_pass = false;
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
                    Failure::Passing(_) | Failure::Bad(_) => ("failed", State::Failed),
                };
                entry.may_pass = matches!(failure, Failure::Passing(_));
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
                    entry.failure = None;
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
        let content = self.content(name, number, &model.config)?;
        if old.version().is_some_and(|version| content.is_that_of(version, model)) {
            return Ok(None);
        }
        let before = old.known.as_ref().filter(|known| known.digest == content.digest);
        let known = model.config.memory.or(before.map(|known| known.bytes));
        let stats = before.map(|known| Arc::clone(&known.stats));
        let profile = before.filter(|known| Arc::ptr_eq(&known.config, &model.config));
        let mut profile = profile.map(|known| known.profile.clone());
        let spare = match why {
            Why::Present => Spare::All,
            Why::Asked => Spare::Model(name),
            Why::Fetched => Spare::Version(name, number),
        };
        let length = content.onnx.len();
        self.make_room(known.unwrap_or_else(|| room::estimate(length)), spare)
            .map_err(Failure::Full)?;
        let (started, held) = (Instant::now(), room::resident());
        let examples = self.disk.examples(name)?;
        let compared = examples.len();
        let Content { onnx, digest, labels, tokenizer } = content;
        let (onnx, config) = (Arc::new(onnx), Arc::clone(&model.config));
        if profile.is_none() {
            profile = self.attempt(&onnx, &config)?;
        }
        let work = move || {
            let options = config.load_options(profile);
            let engine = engine::Model::load(&onnx, &options).map_err(|error| error.to_string())?;
            golden::check(&engine, &examples, config.tolerance)?;
            let embedding = embedder(&config, tokenizer, &engine)?;
            Ok::<_, Failure>((engine, embedding))
        };
        let limit = self.app.options.load_timeout;
        let (engine, embedding) = self.trial.run(limit, work)?;
        let took = started.elapsed();
        let memory = known.unwrap_or_else(|| room::measured(length, held));
        let share = self.app.repository.hold(memory);
        // It may be larger than it looked.
        self.make_room(0, spare).map_err(Failure::Full)?;
        let of_model = (Arc::clone(&model.config), Arc::clone(&model.line));
        let stats = stats
            .unwrap_or_else(|| Arc::new(Stats::new(&self.app.metrics, name, &number.to_string())));
        let beside = (labels, embedding);
        let version =
            Version::new((name, number), of_model, (engine, digest), beside, share, stats);
        self.announce(&version, took, compared);
        Ok(Some(version))
    }

    /// What a child finds out of a model that was never loaded before, if there can be one.
    fn attempt(
        &self,
        onnx: &Arc<Vec<u8>>,
        config: &ModelConfig,
    ) -> Result<Option<engine::Profile>, Failure> {
        let attempt = Attempt::of(&self.app.options);
        let (onnx, options) = (Arc::clone(onnx), config.load_options(None));
        // The child is killed at its limit; only one that the kernel holds on to stays longer.
        let limit = self.app.options.load_timeout.saturating_add(MARGIN);
        self.trial.run(limit, move || attempt.profile(&onnx, &options))
    }

    /// Says that a version is ready, after so long and so many examples.
    fn announce(&self, version: &Version, took: Duration, examples: usize) {
        tracing::info!(
            model = version.model,
            version = version.number,
            digest = version.digest,
            memory_bytes = version.memory.bytes,
            took_ms = took.as_millis(),
            max_batch = version.engine.max_batch().unwrap_or(1),
            best_batch = version.engine.curve().best(),
            examples,
            build = ?version.engine.build(),
            builds = compared(version.engine.compared()),
            "model ready"
        );
        if let Some(why) = version.engine.unbatched()
            && version.config.batching != engine::Batching::Off
        {
            tracing::warn!(
                model = version.model,
                version = version.number,
                why,
                "each request runs alone: its rows are not proved to be independent; \
                 batching = \"rows are independent\" in model.toml joins them all the same"
            );
        }
        let labels = (version.model.as_str(), version.number.as_str());
        let seconds = self.app.metrics.series.gauge(metric::MODEL_LOAD_SECONDS, labels);
        seconds.set(took.as_secs_f64());
    }

    fn content(&self, name: &str, number: u64, config: &ModelConfig) -> Result<Content, String> {
        let onnx = self.disk.onnx(name, number)?;
        let digest = blake3::hash(&onnx).to_hex().to_string();
        let (labels, tokenizer) = (self.labels(name, config)?, self.tokenizer(name, config)?);
        Ok(Content { onnx, digest, labels, tokenizer })
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
}

/// What was measured of each build, such as `Plain 1.9 ms, Own 0.8 ms`.
fn compared(builds: &[(engine::Build, f64)]) -> String {
    let each = builds.iter().map(|(build, seconds)| format!("{build:?} {:.3} ms", seconds * 1e3));
    each.collect::<Vec<_>>().join(", ")
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
        embedder.pool(outputs, length, None).map_err(|refusal| refusal.message)?;
    }
    Ok(Some(embedder))
}
