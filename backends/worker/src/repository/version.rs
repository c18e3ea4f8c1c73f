//! One version of a model in memory: what a request needs of it, and what stays known of it.

use crate::config::model::ModelConfig;
use crate::inference::embedding::Embedder;
use crate::scheduler::queue::LineHandle;
use crate::telemetry::stats::Stats;
use forebay_engine::{Engine, Model, Profile};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A version that is loaded and warmed.
#[derive(Debug)]
pub(crate) struct Version {
    pub(crate) model: String,
    pub(crate) number: String,
    pub(crate) config: Arc<ModelConfig>,
    pub(crate) line: Arc<LineHandle>,
    /// The engine that has loaded it.
    pub(crate) engine: Arc<dyn Engine>,
    /// The model as the engine has loaded it.
    pub(crate) loaded: Arc<dyn Model>,
    /// BLAKE3 of the model file, in hexadecimal.
    pub(crate) digest: String,
    /// The number of all that its answers depend on: the file, its configuration, and what is beside it.
    pub(crate) content: u64,
    /// Names of outputs' elements.
    pub(crate) labels: Labels,
    /// From texts to its inputs, where it is said how.
    pub(crate) embedding: Option<Embedder>,
    /// Its share of the memory for models.
    pub(crate) memory: MemoryShare,
    pub(crate) stats: Arc<Stats>,
    pub(crate) last_use: LastUse,
}

/// Milliseconds from the repository's birth to the last use.
#[derive(Debug, Default)]
pub(crate) struct LastUse(AtomicU64);

/// Names of an output's elements, by output.
pub(crate) type Labels = BTreeMap<String, Vec<String>>;

/// A version's bytes of memory, accounted for as long as it lives.
#[derive(Debug)]
pub(crate) struct MemoryShare {
    total: Arc<AtomicU64>,
    bytes: AtomicU64,
}

impl MemoryShare {
    /// Takes over `bytes`, which `total` counts already.
    pub(crate) fn new(total: &Arc<AtomicU64>, bytes: u64) -> Self {
        Self { total: Arc::clone(total), bytes: AtomicU64::new(bytes) }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// It has turned out to be another number of bytes.
    pub(crate) fn resize(&self, bytes: u64) {
        self.total.fetch_add(bytes, Relaxed);
        self.total.fetch_sub(self.bytes.swap(bytes, Relaxed), Relaxed);
    }
}

impl Drop for MemoryShare {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes(), Relaxed);
    }
}

/// The measurements of a content that was loaded once.
#[derive(Debug)]
pub(crate) struct Known {
    /// The name of the engine that has loaded it.
    pub(crate) engine: &'static str,
    pub(crate) digest: String,
    pub(crate) content: u64,
    /// Bytes of memory that it takes.
    pub(crate) bytes: u64,
    /// Its configuration when it was measured.
    pub(crate) config: Arc<ModelConfig>,
    pub(crate) profile: Profile,
    /// Its statistics, over all times that it was loaded.
    pub(crate) stats: Arc<Stats>,
}

impl Version {
    /// Accounts for what it holds now, unless the operator has said what it takes.
    pub(crate) fn recount(&self) {
        if self.config.memory.is_none() {
            self.memory.resize(self.loaded.memory() as u64);
        }
    }

    /// The measurements to keep while it is not in memory.
    pub(crate) fn known(&self) -> Known {
        Known {
            engine: self.engine.name(),
            digest: self.digest.clone(),
            content: self.content,
            bytes: self.memory.bytes(),
            config: Arc::clone(&self.config),
            profile: self.loaded.profile(),
            stats: Arc::clone(&self.stats),
        }
    }

    /// Notes that it is used now, so many milliseconds after the repository's birth.
    pub(crate) fn touch(&self, now: u64) {
        // Written at most once a millisecond: all executors share this line of the cache.
        if self.used() != now {
            self.last_use.0.store(now, Relaxed);
        }
    }

    /// Milliseconds from the repository's birth to the last use.
    pub(crate) fn used(&self) -> u64 {
        self.last_use.0.load(Relaxed)
    }
}
