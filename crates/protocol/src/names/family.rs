//! Families of metrics: a name, the labels, and what it means, declared once.
//!
//! A metric that is counted under one set of labels in one place and described elsewhere drifts apart. A
//! family is a constant of its kind and its number of labels, so that a value for each label is asked
//! for wherever it is counted; the descriptions on the metrics page come from the same declaration.

/// The kind of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A number that only grows.
    Counter,
    /// A number as it is now.
    Gauge,
    /// The distribution of values.
    Histogram,
}

impl Kind {
    /// The word of Prometheus' text format.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A family as it is described to people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Described {
    /// Its name.
    pub name: &'static str,
    /// The kind of its values.
    pub kind: Kind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// Lines of its documentation.
    pub doc: &'static [&'static str],
}

impl Described {
    /// Its documentation in one line, without a full stop at its end.
    pub fn help(&self) -> String {
        let words: Vec<_> = self.doc.iter().map(|line| line.trim()).collect();
        let words = words.join(" ");
        words.strip_suffix('.').unwrap_or(&words).replace('`', "")
    }
}

/// A counter with `N` labels.
#[derive(Debug, Clone, Copy)]
pub struct CounterFamily<const N: usize> {
    /// Its name.
    pub name: &'static str,
    /// The names of its labels.
    pub labels: [&'static str; N],
}

/// A gauge with `N` labels.
#[derive(Debug, Clone, Copy)]
pub struct GaugeFamily<const N: usize> {
    /// Its name.
    pub name: &'static str,
    /// The names of its labels.
    pub labels: [&'static str; N],
}

/// A histogram with `N` labels.
#[derive(Debug, Clone, Copy)]
pub struct HistogramFamily<const N: usize> {
    /// Its name.
    pub name: &'static str,
    /// The names of its labels.
    pub labels: [&'static str; N],
}

#[cfg(feature = "metrics")]
mod handles {
    use super::{CounterFamily, GaugeFamily, HistogramFamily};
    use metrics::{Counter, Gauge, Histogram, Key, Label};

    fn labels<const N: usize>(names: [&'static str; N], values: [&str; N]) -> Vec<Label> {
        let pairs = names.into_iter().zip(values);
        pairs.map(|(name, value)| Label::new(name, value.to_owned())).collect()
    }

    impl<const N: usize> CounterFamily<N> {
        /// The counter with these values of the labels, in the process's recorder.
        pub fn with(&self, values: [&str; N]) -> Counter {
            metrics::counter!(self.name, labels(self.labels, values))
        }

        /// The same as a key, for a recorder of its own.
        pub fn key(&self, values: [&str; N]) -> Key {
            Key::from_parts(self.name, labels(self.labels, values))
        }
    }

    impl<const N: usize> GaugeFamily<N> {
        /// The gauge with these values of the labels, in the process's recorder.
        pub fn with(&self, values: [&str; N]) -> Gauge {
            metrics::gauge!(self.name, labels(self.labels, values))
        }

        /// The same as a key, for a recorder of its own.
        pub fn key(&self, values: [&str; N]) -> Key {
            Key::from_parts(self.name, labels(self.labels, values))
        }
    }

    impl<const N: usize> HistogramFamily<N> {
        /// The histogram with these values of the labels, in the process's recorder.
        pub fn with(&self, values: [&str; N]) -> Histogram {
            metrics::histogram!(self.name, labels(self.labels, values))
        }

        /// The same as a key, for a recorder of its own.
        pub fn key(&self, values: [&str; N]) -> Key {
            Key::from_parts(self.name, labels(self.labels, values))
        }
    }
}

/// Declares families: constants, and `ALL` with their descriptions.
macro_rules! families {
    ($($(#[doc = $doc:literal])* $kind:ident $id:ident = $name:literal [$($label:ident),*];)*) => {
        $($(#[doc = $doc])* pub const $id: $crate::names::family::family!($kind, [$($label),*]) =
            <$crate::names::family::family!($kind, [$($label),*])>::new(
                $name, [$(stringify!($label)),*],
            );)*

        /// All of them, in the order of their declaration.
        pub const ALL: &[$crate::names::family::Described] = &[
            $($crate::names::family::Described {
                name: $name,
                kind: $crate::names::family::Kind::$kind,
                labels: &[$(stringify!($label)),*],
                doc: &[$($doc),*],
            }),*
        ];
    };
}

/// The type of a family of a kind with these labels.
macro_rules! family {
    (Counter, $labels:tt) => { $crate::names::family::CounterFamily<{ $crate::names::family::count!($labels) }> };
    (Gauge, $labels:tt) => { $crate::names::family::GaugeFamily<{ $crate::names::family::count!($labels) }> };
    (Histogram, $labels:tt) => { $crate::names::family::HistogramFamily<{ $crate::names::family::count!($labels) }> };
}

/// The number of labels.
macro_rules! count {
    ([$($label:ident),*]) => {{
        const LABELS: &[&str] = &[$(stringify!($label)),*];
        LABELS.len()
    }};
}

pub(crate) use {count, families, family};

macro_rules! new {
    ($($family:ident),*) => {$(
        impl<const N: usize> $family<N> {
            /// A family with a name and the names of its labels.
            pub const fn new(name: &'static str, labels: [&'static str; N]) -> Self {
                Self { name, labels }
            }
        }
    )*};
}
new!(CounterFamily, GaugeFamily, HistogramFamily);
