//! The models on disk: `<model>/<version>/model.onnx`.
//!
//! One broken model must not keep the others from being served, so each keeps its own error, which
//! the index, the log and the readiness call repeat. Names become paths and labels, so they are
//! checked; nothing outside the repository is read, whatever a symbolic link says.

use crate::config::Options;
use crate::metrics::Metrics;
use crate::model_config::{ModelConfig, Versions};
use crate::queue::LineId;
use crate::refusal::Refusal;
use forebay_protocol::Reason;
use forebay_protocol::metric::worker as metric;
use forebay_tract as engine;
use metrics::{Counter, Histogram};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// Most models in a repository, and most versions of one.
const MAX_ENTRIES: usize = 1000;
/// Longest model name.
const MAX_NAME: usize = 128;
/// Longest `model.toml`, in bytes.
const MAX_CONFIG: u64 = 1 << 20;

/// All models, by name.
#[derive(Debug)]
pub(crate) struct Repository {
    models: BTreeMap<String, Model>,
}

/// One directory of the repository.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) config: Arc<ModelConfig>,
    /// Its line in the queue.
    pub(crate) line: LineId,
    /// The versions that are served, by number.
    pub(crate) versions: BTreeMap<u64, Arc<Version>>,
    /// Why there is none to serve.
    pub(crate) failure: Option<String>,
}

/// One version of one model.
#[derive(Debug)]
pub(crate) struct Version {
    pub(crate) model: String,
    pub(crate) number: String,
    pub(crate) path: PathBuf,
    pub(crate) config: Arc<ModelConfig>,
    pub(crate) line: LineId,
    /// Set once: loaded and warmed, or why not.
    pub(crate) settled: OnceLock<Result<engine::Model, String>>,
    pub(crate) answered: Counter,
    pub(crate) queue_seconds: Histogram,
    pub(crate) execute_seconds: Histogram,
}

impl Repository {
    /// Lists what is there; nothing is loaded yet.
    ///
    /// # Errors
    /// The directory itself can't be read.
    pub(crate) fn scan(options: &Options, metrics: &Metrics) -> io::Result<Self> {
        let root = options.models.canonicalize()?;
        let mut models = BTreeMap::new();
        for name in entries(&root)? {
            let path = root.join(&name);
            if !path.is_dir() {
                continue;
            }
            if !is_name(&name) {
                tracing::warn!(name, "skipped: expected a name of letters, digits, '-', '_', '.'");
                continue;
            }
            let line = models.len();
            models.insert(name.clone(), Model::scan(&root, &name, line, metrics));
        }
        Ok(Self { models })
    }

    /// All models in order of their names.
    pub(crate) fn models(&self) -> impl Iterator<Item = (&str, &Model)> {
        self.models.iter().map(|(name, model)| (name.as_str(), model))
    }

    /// All versions that are served.
    pub(crate) fn versions(&self) -> impl Iterator<Item = &Arc<Version>> {
        self.models.values().flat_map(|model| model.versions.values())
    }

    /// Has every version settled, and is at least one ready?
    pub(crate) fn is_ready(&self) -> bool {
        let settled = self.versions().all(|version| version.settled.get().is_some());
        settled && self.versions().any(|version| version.ready().is_ok())
    }

    /// The model of this name.
    pub(crate) fn model(&self, name: &str) -> Result<&Model, Refusal> {
        self.models.get(name).ok_or_else(|| {
            let name = name.escape_debug();
            Refusal::new(Reason::ModelNotFound, format!("no model \"{name}\" in the repository"))
        })
    }

    /// A version of a model; without a number the highest that is ready (or else the highest).
    pub(crate) fn version(
        &self,
        name: &str,
        number: Option<&str>,
    ) -> Result<&Arc<Version>, Refusal> {
        let model = self.model(name)?;
        let mut newest_first = model.versions.values().rev();
        let found = match number {
            Some(number) => newest_first.find(|version| version.number == number),
            None => newest_first
                .find(|version| version.ready().is_ok())
                .or_else(|| model.versions.values().next_back()),
        };
        found.ok_or_else(|| match (&model.failure, number) {
            (Some(failure), _) => {
                Refusal::new(Reason::ModelNotReady, format!("model \"{name}\": {failure}"))
            }
            (None, number) => Refusal::new(
                Reason::ModelNotFound,
                format!(
                    "no version \"{}\" of model \"{name}\" is served, only {}",
                    number.unwrap_or_default().escape_debug(),
                    model
                        .versions
                        .values()
                        .map(|v| v.number.as_str())
                        .collect::<Vec<_>>()
                        .join(", ")
                ),
            ),
        })
    }
}

impl Version {
    /// The engine, once it is loaded and warmed.
    pub(crate) fn ready(&self) -> Result<&engine::Model, Refusal> {
        let state = match self.settled.get() {
            Some(Ok(engine)) => return Ok(engine),
            Some(Err(failure)) => failure.as_str(),
            None => "still loading",
        };
        let (model, number) = (&self.model, &self.number);
        let text = format!("model \"{model}\" version {number} is not ready: {state}");
        Err(Refusal::new(Reason::ModelNotReady, text))
    }
}

impl Model {
    fn scan(root: &Path, name: &str, line: LineId, metrics: &Metrics) -> Self {
        let read = Self::config(root, name)
            .and_then(|config| Ok((Self::numbers(root, name, &config.versions)?, config)));
        let (numbers, config, failure) = match read {
            Ok((numbers, config)) => (numbers, config, None),
            Err(failure) => {
                tracing::error!(model = name, failure, "model can't be served");
                (Vec::new(), ModelConfig::default(), Some(failure))
            }
        };
        let config = Arc::new(config);
        let version = |number: u64| {
            let text = number.to_string();
            let version = Version {
                model: name.to_owned(),
                path: root.join(name).join(&text).join("model.onnx"),
                config: Arc::clone(&config),
                line,
                settled: OnceLock::new(),
                answered: metrics.inferences(name, &text, "ok"),
                queue_seconds: metrics.histogram(metric::QUEUE_SECONDS, name),
                execute_seconds: metrics.histogram(metric::EXECUTE_SECONDS, name),
                number: text,
            };
            // A bad path settles the version before it is ever loaded.
            if let Err(failure) = inside(root, &version.path) {
                tracing::error!(model = name, version = number, failure, "model can't be served");
                drop(version.settled.set(Err(failure)));
            }
            (number, Arc::new(version))
        };
        let versions = numbers.into_iter().map(version).collect();
        Self { config, line, versions, failure }
    }

    fn config(root: &Path, name: &str) -> Result<ModelConfig, String> {
        let path = root.join(name).join("model.toml");
        if !path.exists() {
            return Ok(ModelConfig::default());
        }
        inside(root, &path)?;
        let failed = |error: &dyn std::fmt::Display| format!("model.toml: {error}");
        let size = std::fs::metadata(&path).map_err(|error| failed(&error))?.len();
        if size > MAX_CONFIG {
            return Err(failed(&format_args!("expected at most {MAX_CONFIG} bytes, found {size}")));
        }
        let text = std::fs::read_to_string(&path).map_err(|error| failed(&error))?;
        ModelConfig::parse(&text).map_err(|error| failed(&error))
    }

    /// The numbers that are there and wanted; at least one.
    fn numbers(root: &Path, name: &str, wanted: &Versions) -> Result<Vec<u64>, String> {
        let names = entries(&root.join(name)).map_err(|error| error.to_string())?;
        let mut found: Vec<u64> = names.iter().filter_map(|name| number(name)).collect();
        found.sort_unstable();
        if let Versions::Only(wanted) = wanted
            && let Some(missing) = wanted.iter().find(|number| !found.contains(number))
        {
            return Err(format!("expected version {missing}, found only {found:?}"));
        }
        match wanted {
            Versions::Latest => found.drain(..found.len().saturating_sub(1)).for_each(drop),
            Versions::All => {}
            Versions::Only(wanted) => found.retain(|number| wanted.contains(number)),
        }
        if found.is_empty() {
            return Err("expected a directory such as 1/ with a model.onnx, found none".to_owned());
        }
        Ok(found)
    }
}

/// Names in a directory, sorted; hidden ones and those that are not UTF-8 are passed over.
fn entries(path: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let Ok(name) = entry?.file_name().into_string() else { continue };
        if name.starts_with('.') {
            continue;
        }
        if names.len() == MAX_ENTRIES {
            let text = format!("expected at most {MAX_ENTRIES} entries in {}", path.display());
            return Err(io::Error::other(text));
        }
        names.push(name);
    }
    names.sort_unstable();
    Ok(names)
}

fn is_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    name.len() <= MAX_NAME && name.chars().all(fits)
}

/// A version as Triton writes it: digits without leading zeros, from 1.
fn number(name: &str) -> Option<u64> {
    let digits = name.bytes().all(|b| b.is_ascii_digit()) && !name.starts_with('0');
    if digits { name.parse().ok() } else { None }
}

/// Refuses what lies outside `root` once all links are followed.
fn inside(root: &Path, path: &Path) -> Result<(), String> {
    let short = path.strip_prefix(root).unwrap_or(path).display();
    match path.canonicalize() {
        Ok(real) if real.starts_with(root) => Ok(()),
        Ok(_) => Err(format!("{short} leads out of the repository")),
        Err(error) => Err(format!("{short}: {error}")),
    }
}
