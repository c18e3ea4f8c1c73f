//! The state of shadows: how many are under way, what they hold, and the results of each route.
//!
//! Shadows have places and memory of their own, so that they can never take those of a client. The counts of a
//! route outlive reloads, for as long as the route has its name.

use super::compare::Difference;
use super::worst::{self, Bounds, Case, Worst};
use crate::body_memory::{Account, Memory};
use crate::config::{Limits, Shadow};
use crate::telemetry::observe::Observer;
use forebay_protocol::metric::proxy as metric;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Copies that may be under way at once.
const MAX_IN_FLIGHT: usize = 64;
/// Most memory that all copies and their answers hold, in bytes; no more than a sixteenth of `limits.memory`.
const MAX_MEMORY: u64 = 64 * 1024 * 1024;
/// Pairs of a model and an output that have histograms of their own. Their names come from models and clients, so
/// their number has to be bounded.
const MAX_OUTPUTS: usize = 64;
/// Longest name of a model or of an output in a metric.
const MAX_NAME: usize = 128;
/// The account of shadows: no client has this number but by one chance in 2^64.
const ACCOUNT: u64 = 0x5348_4144_4f57_5321;
/// Time between two writings of a report.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Why a copy was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dropped {
    /// Requests wait for an endpoint.
    Queued,
    /// No endpoint is free, or the pool has too much to do.
    Busy,
    /// As many copies as may be are under way.
    InFlight,
    /// Its bytes find no memory.
    Memory,
    /// The request or its answer is not held whole.
    Long,
    /// The variant can't be asked in this form, or has no pool.
    Form,
    /// The process is on its way out.
    Draining,
}

impl Dropped {
    const ALL: [Self; 7] = [
        Self::Queued,
        Self::Busy,
        Self::InFlight,
        Self::Memory,
        Self::Long,
        Self::Form,
        Self::Draining,
    ];

    /// The word in metrics.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Busy => "busy",
            Self::InFlight => "in_flight",
            Self::Memory => "memory",
            Self::Long => "long",
            Self::Form => "form",
            Self::Draining => "draining",
        }
    }
}

/// How a copy ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Both answers are the same.
    Equal,
    /// Some elements differ.
    Differs,
    /// Outputs are missing, or of another datatype or shape.
    Mismatch,
    /// It was not answered with a success.
    Failed,
    /// One of the answers can't be read.
    Unread,
}

impl Outcome {
    const ALL: [Self; 5] = [Self::Equal, Self::Differs, Self::Mismatch, Self::Failed, Self::Unread];

    /// The word in metrics and the log.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::Differs => "differs",
            Self::Mismatch => "mismatch",
            Self::Failed => "failed",
            Self::Unread => "unread",
        }
    }
}

/// The shadows of a process.
pub struct Shadows {
    places: Arc<Semaphore>,
    routes: Mutex<BTreeMap<String, Arc<RouteShadows>>>,
    outputs: Mutex<BTreeSet<(String, String)>>,
    /// For the lines in the access log.
    pub(super) observer: Arc<Observer>,
}

impl Shadows {
    /// None yet; lines go to the log of `observer`.
    pub fn new(observer: Arc<Observer>) -> Self {
        Self {
            places: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
            routes: Mutex::default(),
            outputs: Mutex::default(),
            observer,
        }
    }

    /// The results of a route, if there are any.
    pub fn of(&self, route: &str) -> Option<Arc<RouteShadows>> {
        let routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        routes.get(route).cloned()
    }

    /// The same, to add to it.
    pub(super) fn route(&self, route: &str) -> Arc<RouteShadows> {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = routes.get(route) {
            return Arc::clone(known);
        }
        Arc::clone(routes.entry(route.to_owned()).or_default())
    }

    /// A place for a copy.
    pub(super) fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.places).try_acquire_owned().ok()
    }

    /// The memory account of copies.
    pub(super) fn account(memory: &Arc<Memory>, limits: &Limits) -> Account {
        // No more where half of all is held: the rest is for clients.
        let total = limits.memory / 2;
        Account::apart(memory, ACCOUNT, (total, MAX_MEMORY.min(limits.memory / 16)))
    }

    /// Adds differences to the histograms.
    pub(super) fn record(
        &self,
        (route, model): (&str, &str),
        (differences, is_noise): (&[Difference], bool),
    ) {
        let against = if is_noise { "itself" } else { "shadow" };
        for difference in differences {
            let (model, output) = self.labels(model, &difference.output);
            for (measure, value) in difference.measures() {
                let labels = [route, model.as_str(), output.as_str(), measure, against];
                metric::SHADOW_DIFFERENCE.with(labels).record(value);
            }
        }
    }

    /// The labels of a model and an output: their names, or `other` once there are too many.
    fn labels(&self, model: &str, output: &str) -> (String, String) {
        let pair = (shortened(model), shortened(output));
        let mut known = self.outputs.lock().unwrap_or_else(PoisonError::into_inner);
        if known.contains(&pair) || (known.len() < MAX_OUTPUTS && known.insert(pair.clone())) {
            return pair;
        }
        ("other".to_owned(), "other".to_owned())
    }
}

fn shortened(name: &str) -> String {
    name.chars().take(MAX_NAME).collect()
}

/// The results of a route.
#[derive(Debug, Default)]
pub struct RouteShadows {
    outcomes: [AtomicU64; Outcome::ALL.len()],
    noise: [AtomicU64; Outcome::ALL.len()],
    dropped: [AtomicU64; Dropped::ALL.len()],
    worst: Mutex<Report>,
    /// Whether a writing of the report is due.
    is_due: AtomicBool,
}

#[derive(Debug, Default)]
struct Report {
    worst: Worst,
    /// Lines of the day before that are still to be written.
    before: Option<Vec<u8>>,
}

/// The shadows of a route, for operators.
#[derive(Debug, Default, Serialize)]
pub struct ShadowCounts {
    /// Copies by how they ended.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// Those that went to the variant that had answered.
    pub noise: BTreeMap<&'static str, u64>,
    /// Copies that were not sent, by cause.
    pub dropped: BTreeMap<&'static str, u64>,
}

impl RouteShadows {
    /// Counts a copy that was not sent.
    pub(super) fn dropped(&self, route: &str, why: Dropped) {
        let place = Dropped::ALL.iter().position(|it| *it == why).unwrap_or_default();
        self.dropped[place].fetch_add(1, Relaxed);
        metric::SHADOWS_DROPPED.with([route, why.as_str()]).increment(1);
    }

    /// Counts how a copy ended.
    pub(super) fn ended(&self, (route, variant): (&str, &str), outcome: Outcome, is_noise: bool) {
        let place = Outcome::ALL.iter().position(|it| *it == outcome).unwrap_or_default();
        let counts = if is_noise { &self.noise } else { &self.outcomes };
        counts[place].fetch_add(1, Relaxed);
        let against = if is_noise { "itself" } else { "shadow" };
        metric::SHADOWS.with([route, variant, against, outcome.as_str()]).increment(1);
    }

    /// All that was counted.
    pub fn counts(&self) -> ShadowCounts {
        let outcomes = |counts: &[AtomicU64]| {
            let pairs = Outcome::ALL.iter().zip(counts);
            pairs.map(|(outcome, count)| (outcome.as_str(), count.load(Relaxed))).collect()
        };
        let dropped = Dropped::ALL.iter().zip(&self.dropped);
        let dropped = dropped.map(|(why, count)| (why.as_str(), count.load(Relaxed)));
        ShadowCounts {
            outcomes: outcomes(&self.outcomes),
            noise: outcomes(&self.noise),
            dropped: dropped.collect(),
        }
    }

    /// Adds a case to the report, if it belongs there, and has the file written soon.
    pub(super) fn report(self: &Arc<Self>, settings: &Shadow, score: f64, case: &Case<'_>) {
        let Some(path) = settings.report.clone() else { return };
        let bounds = Bounds {
            cases: settings.worst as usize,
            bytes: usize::try_from(settings.report_size).unwrap_or(usize::MAX),
        };
        let day = case.time.get(..10).unwrap_or_default();
        {
            let mut report = self.worst.lock().unwrap_or_else(PoisonError::into_inner);
            if !report.worst.wants(day, score, bounds) {
                return;
            }
            let before = report.worst.add(day, (score, case), bounds);
            report.before = before.or(report.before.take());
        }
        if !self.is_due.swap(true, Relaxed) {
            let state = Arc::clone(self);
            tokio::spawn(async move { state.write_soon(path).await });
        }
    }

    async fn write_soon(self: Arc<Self>, path: PathBuf) {
        tokio::time::sleep(REPORT_INTERVAL).await;
        self.is_due.store(false, Relaxed);
        let (lines, before) = {
            let mut report = self.worst.lock().unwrap_or_else(PoisonError::into_inner);
            (report.worst.text(), report.before.take())
        };
        let file = path.clone();
        let written =
            tokio::task::spawn_blocking(move || worst::write(&file, &lines, before.as_deref()));
        let written = written.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        if let Err(error) = written {
            let path = path.display().to_string();
            tracing::warn!(path, %error, "can't write the report of differences");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
    use super::*;
    use crate::config::AccessLog;
    use crate::telemetry::access_log::AccessLogger;

    #[test]
    fn names_of_models_and_outputs_are_bounded_in_number_and_length() {
        let log = AccessLogger::start(&AccessLog::Off).unwrap();
        let shadows = Shadows::new(Arc::new(Observer::new(log)));
        for number in 0..10 * MAX_OUTPUTS {
            let (model, _) = shadows.labels(&format!("m{number}"), "y");
            assert_eq!(model == "other", number >= MAX_OUTPUTS, "{number}");
        }
        assert_eq!(shadows.labels("m0", "y"), ("m0".to_owned(), "y".to_owned()));
        assert_eq!(shadows.outputs.lock().unwrap().len(), MAX_OUTPUTS);
        assert_eq!(shortened(&"é".repeat(1000)).chars().count(), MAX_NAME);
    }
}
