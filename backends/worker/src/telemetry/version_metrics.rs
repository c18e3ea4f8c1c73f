//! Metrics with the label `version`, which go when the version has gone.
//!
//! Whoever rolls out a new version a day would otherwise have a line more of each metric every day,
//! on every scrape and in memory, until the worker is started anew: a recorder forgets nothing.

use forebay_protocol::metric::worker as name;
use metrics::{Counter, Gauge};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a family counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
}

/// All families, each with a word for people.
const FAMILIES: [(&str, Kind, &str); 9] = [
    (name::INFERENCES, Kind::Counter, "finished inferences by outcome"),
    (name::MODEL_READY, Kind::Gauge, "1 if the model is loaded and warmed"),
    (name::MODEL_MEMORY, Kind::Gauge, "bytes that a version takes in memory"),
    (name::MODEL_LOAD_SECONDS, Kind::Gauge, "seconds that loading and warming took"),
    (name::MODEL_COMPILATIONS, Kind::Counter, "plans that were compiled"),
    (name::MODEL_COMPILE_SECONDS, Kind::Gauge, "seconds that compiling plans took so far"),
    (name::MODEL_FALLBACKS, Kind::Counter, "shapes that fell back to the plain build"),
    (name::BATCH_SECONDS, Kind::Gauge, "mean seconds that a batch of so many rows takes"),
    (name::BATCH_BEST, Kind::Gauge, "rows that are worth joining"),
];

/// A label beside model and version, and its value; names that sort as they are to be shown.
type Label = Option<(&'static str, String)>;
/// By model and version, then by family and label. Gauges are the bits of an `f64`.
type Versions = BTreeMap<(String, String), BTreeMap<(&'static str, Label), Arc<AtomicU64>>>;

/// The metrics of all versions that there are.
#[derive(Debug, Default)]
pub(crate) struct VersionMetrics {
    versions: Mutex<Versions>,
}

impl VersionMetrics {
    /// Requests of a version that ended for this reason.
    pub(crate) fn inferences(&self, model: &str, version: &str, reason: &'static str) -> Counter {
        let label = Some(("reason", reason.to_owned()));
        Counter::from_arc(self.value(name::INFERENCES, (model, version), label))
    }

    /// A counter of a version.
    pub(crate) fn counter(&self, name: &'static str, version: (&str, &str)) -> Counter {
        Counter::from_arc(self.value(name, version, None))
    }

    /// A gauge of a version.
    pub(crate) fn gauge(&self, name: &'static str, version: (&str, &str)) -> Gauge {
        Gauge::from_arc(self.value(name, version, None))
    }

    /// A gauge of a version for so many rows.
    pub(crate) fn gauge_of_rows(
        &self,
        name: &'static str,
        version: (&str, &str),
        rows: usize,
    ) -> Gauge {
        Gauge::from_arc(self.value(name, version, Some(("rows", rows.to_string()))))
    }

    /// Forgets all versions but these, by model and version.
    pub(crate) fn retain(&self, mut is_there: impl FnMut(&str, &str) -> bool) {
        self.lock().retain(|(model, version), _| is_there(model, version));
    }

    /// Adds all of them to a text for Prometheus.
    pub(crate) fn render(&self, text: &mut String) {
        let versions = self.lock();
        for (family, kind, help) in FAMILIES {
            let lines = versions.iter().flat_map(|(version, values)| {
                let values = values.iter().filter(|((name, _), _)| *name == family);
                values.map(move |((_, label), value)| (version, label, value.load(Relaxed)))
            });
            let kind_text = if kind == Kind::Counter { "counter" } else { "gauge" };
            let mut head = Some(format!("# HELP {family} {help}\n# TYPE {family} {kind_text}\n"));
            for ((model, version), label, value) in lines {
                text.push_str(&head.take().unwrap_or_default());
                let (model, version) = (escaped(model), escaped(version));
                // Writing to a string can't fail.
                let _ = write!(text, "{family}{{model=\"{model}\",version=\"{version}\"");
                if let Some((label, value)) = label {
                    let _ = write!(text, ",{label}=\"{}\"", escaped(value));
                }
                let _ = match kind {
                    Kind::Counter => writeln!(text, "}} {value}"),
                    Kind::Gauge => writeln!(text, "}} {}", f64::from_bits(value)),
                };
            }
            if head.is_none() {
                text.push('\n');
            }
        }
    }

    fn value(&self, name: &'static str, version: (&str, &str), label: Label) -> Arc<AtomicU64> {
        let version = (version.0.to_owned(), version.1.to_owned());
        Arc::clone(self.lock().entry(version).or_default().entry((name, label)).or_default())
    }

    fn lock(&self) -> MutexGuard<'_, Versions> {
        // Nothing of ours panics under the lock half way through a change.
        self.versions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A label's value as the text format has it.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_shown_as_prometheus_reads_them_until_they_have_gone() {
        let series = VersionMetrics::default();
        let counter = series.inferences("a\"b", "1", "ok");
        counter.increment(2);
        series.inferences("a\"b", "1", "ok").increment(1);
        series.gauge(name::MODEL_READY, ("a\"b", "1")).set(1.0);
        series.gauge_of_rows(name::BATCH_SECONDS, ("c", "2"), 8).set(0.25);
        let mut text = String::new();
        series.render(&mut text);
        let expected = "\
            # HELP forebay_worker_inferences_total finished inferences by outcome\n\
            # TYPE forebay_worker_inferences_total counter\n\
            forebay_worker_inferences_total{model=\"a\\\"b\",version=\"1\",reason=\"ok\"} 3\n\n\
            # HELP forebay_worker_model_ready 1 if the model is loaded and warmed\n\
            # TYPE forebay_worker_model_ready gauge\n\
            forebay_worker_model_ready{model=\"a\\\"b\",version=\"1\"} 1\n\n\
            # HELP forebay_worker_batch_duration_seconds mean seconds that a batch of so many rows \
            takes\n\
            # TYPE forebay_worker_batch_duration_seconds gauge\n\
            forebay_worker_batch_duration_seconds{model=\"c\",version=\"2\",rows=\"8\"} 0.25\n\n";
        assert_eq!(text, expected);
        series.retain(|model, version| (model, version) != ("a\"b", "1"));
        // Whoever still holds it does not bring it back.
        counter.increment(1);
        text.clear();
        series.render(&mut text);
        assert!(!text.contains("a\\\"b") && text.contains("model=\"c\""), "{text}");
    }
}
