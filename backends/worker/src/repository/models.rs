//! State shared by the loader and all loads: the models that are served, and those that are being retired.

use crate::config::Options;
use crate::lifecycle::{Lifecycle, Phase};
use crate::repository::backoff::ReloadBackoff;
use crate::repository::guard::Guard;
use crate::repository::model_files::{ModelFiles, Stamp};
use crate::repository::version::Version;
use crate::repository::{Model, Repository};
use crate::scheduler::job::Job;
use crate::scheduler::queue::Queue;
use crate::telemetry::metrics::{Metrics, NO_MODEL};
use forebay_process::supervise::Supervisor;
use forebay_protocol::metric::worker as metric;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The parts of the worker that loading uses.
pub(crate) struct Parts {
    pub(crate) options: Options,
    pub(crate) repository: Arc<Repository>,
    pub(crate) queue: Arc<Queue<Job>>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) tasks: Supervisor,
    pub(crate) lifecycle: Lifecycle,
}

/// State that the loader and all loads share.
pub(crate) struct Models {
    pub(crate) options: Options,
    pub(crate) repository: Arc<Repository>,
    pub(crate) queue: Arc<Queue<Job>>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) tasks: Supervisor,
    lifecycle: Lifecycle,
    pub(crate) files: ModelFiles,
    pub(crate) guard: Guard,
    /// Not served any more, but perhaps still in use.
    retired: Mutex<Vec<Arc<Version>>>,
    backoff: Mutex<ReloadBackoff>,
}

impl Models {
    pub(crate) fn new(parts: Parts, files: ModelFiles) -> Self {
        let Parts { options, repository, queue, metrics, tasks, lifecycle } = parts;
        Self {
            options,
            repository,
            queue,
            metrics,
            tasks,
            lifecycle,
            files,
            guard: Guard::default(),
            retired: Mutex::default(),
            backoff: Mutex::default(),
        }
    }

    /// Whether the worker has ended, so that nothing more is to be loaded.
    pub(crate) fn is_ended(&self) -> bool {
        self.lifecycle.phase() == Phase::Ended
    }

    /// Models that are to be loaded again.
    pub(crate) fn backoff(&self) -> MutexGuard<'_, ReloadBackoff> {
        self.backoff.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a model is served as its files are now, or is not to be checked.
    pub(crate) fn has_seen(&self, name: &str, stamp: &Stamp) -> bool {
        let served = self.repository.served();
        served
            .get(name)
            .is_some_and(|model| model.stamp.as_ref() == Some(stamp) || model.is_unloaded)
    }

    fn retired(&self) -> MutexGuard<'_, Vec<Arc<Version>>> {
        self.retired.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of versions that are only waited for.
    pub(crate) fn retired_bytes(&self) -> u64 {
        self.retired().iter().map(|version| version.memory.bytes()).sum()
    }

    pub(crate) fn has_retired(&self) -> bool {
        !self.retired().is_empty()
    }

    /// Lets a version go once its last request has gone.
    pub(crate) fn retire(&self, version: Arc<Version>, why: &'static str) {
        let (model, number) = (version.model.as_str(), version.number.as_str());
        self.metrics.by_version.gauge(&metric::MODEL_READY, (model, number)).set(0.0);
        self.metrics.unloads(model, why).increment(1);
        tracing::info!(model, version = number, digest = version.digest, why, "model retired");
        self.retired().push(version);
    }

    /// Frees versions that no request uses any more.
    pub(crate) fn free(&self) {
        let is_unused = |version: &mut Arc<Version>| Arc::strong_count(version) == 1;
        let freed: Vec<_> = self.retired().extract_if(.., is_unused).collect();
        if !freed.is_empty() {
            // Where no lock is held.
            drop(freed);
            self.forget();
        }
    }

    /// Forgets the metrics of versions that are neither in the repository nor in use any more.
    pub(crate) fn forget(&self) {
        let served = self.repository.served();
        let retired: Vec<_> =
            self.retired().iter().map(|v| (v.model.clone(), v.number.clone())).collect();
        self.metrics.by_version.retain(|model, number| {
            let is_listed = |model: &Arc<Model>| {
                number.parse().is_ok_and(|number| model.versions.contains_key(&number))
            };
            (model, number) == (NO_MODEL, NO_MODEL)
                || served.get(model).is_some_and(is_listed)
                || retired
                    .iter()
                    .any(|known| (known.0.as_str(), known.1.as_str()) == (model, number))
        });
    }
}
