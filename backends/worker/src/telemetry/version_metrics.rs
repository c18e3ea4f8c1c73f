//! Metrics with the label `version`, which disappear with the version.
//!
//! Otherwise an operator who rolls out a new version each day would have another line of each metric every
//! day, on every scrape and in memory, until the worker is restarted: a recorder forgets nothing.

use forebay_protocol::family::{CounterFamily, Described, GaugeFamily, Kind};
use forebay_protocol::metric::worker as name;
use metrics::{Counter, Gauge};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
        let [.., label] = name::INFERENCES.labels;
        let label = Some((label, reason.to_owned()));
        Counter::from_arc(self.value(name::INFERENCES.name, (model, version), label))
    }

    /// A counter of a version.
    pub(crate) fn counter(&self, family: &CounterFamily<2>, version: (&str, &str)) -> Counter {
        Counter::from_arc(self.value(family.name, version, None))
    }

    /// A gauge of a version.
    pub(crate) fn gauge(&self, family: &GaugeFamily<2>, version: (&str, &str)) -> Gauge {
        Gauge::from_arc(self.value(family.name, version, None))
    }

    /// A gauge of a version for so many rows.
    pub(crate) fn gauge_of_rows(
        &self,
        family: &GaugeFamily<3>,
        version: (&str, &str),
        rows: usize,
    ) -> Gauge {
        let [.., label] = family.labels;
        Gauge::from_arc(self.value(family.name, version, Some((label, rows.to_string()))))
    }

    /// Whether it is a family with versions.
    pub(crate) fn has(family: &Described) -> bool {
        family.labels.starts_with(&["model", "version"])
    }

    /// Forgets all versions but these, by model and version.
    pub(crate) fn retain(&self, mut is_there: impl FnMut(&str, &str) -> bool) {
        self.lock().retain(|(model, version), _| is_there(model, version));
    }

    /// Adds all of them to a text for Prometheus.
    pub(crate) fn render(&self, text: &mut String) {
        let versions = self.lock();
        for described in name::ALL.iter().filter(|family| Self::has(family)) {
            let (family, kind, help) = (described.name, described.kind, described.help());
            let lines = versions.iter().flat_map(|(version, values)| {
                let values = values.iter().filter(|((name, _), _)| *name == family);
                values.map(move |((_, label), value)| (version, label, value.load(Relaxed)))
            });
            let kind_text = kind.as_str();
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
                    Kind::Gauge | Kind::Histogram => writeln!(text, "}} {}", f64::from_bits(value)),
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
        series.gauge(&name::MODEL_READY, ("a\"b", "1")).set(1.0);
        series.gauge_of_rows(&name::BATCH_SECONDS, ("c", "2"), 8).set(0.25);
        let mut text = String::new();
        series.render(&mut text);
        let expected = "\
            # HELP forebay_worker_inferences_total Finished inferences by reason (ok if answered)\n\
            # TYPE forebay_worker_inferences_total counter\n\
            forebay_worker_inferences_total{model=\"a\\\"b\",version=\"1\",reason=\"ok\"} 3\n\n\
            # HELP forebay_worker_batch_duration_seconds Mean seconds that a batch of rows takes\n\
            # TYPE forebay_worker_batch_duration_seconds gauge\n\
            forebay_worker_batch_duration_seconds{model=\"c\",version=\"2\",rows=\"8\"} 0.25\n\n\
            # HELP forebay_worker_model_ready 1 if the model is loaded and warmed\n\
            # TYPE forebay_worker_model_ready gauge\n\
            forebay_worker_model_ready{model=\"a\\\"b\",version=\"1\"} 1\n\n";
        assert_eq!(text, expected);
        series.retain(|model, version| (model, version) != ("a\"b", "1"));
        // A handle that still exists does not bring it back.
        counter.increment(1);
        text.clear();
        series.render(&mut text);
        assert!(!text.contains("a\\\"b") && text.contains("model=\"c\""), "{text}");
    }
}
