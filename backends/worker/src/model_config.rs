//! `<model>/model.toml`: what the file of a model does not say of itself. All of it is optional.

use forebay_config::{Diagnostics, Document, FromToml, Table};
use forebay_tract::LoadOptions;
use std::collections::BTreeMap;
use toml::de::DeValue;

/// Rows that a request may carry, where the model's rows are independent.
const DEFAULT_BATCH: usize = 32;
/// More rows than this in one request would occupy an executor for minutes.
const MAX_BATCH: usize = 4096;
/// See the same bound on the worker's own `queue`.
const MAX_QUEUE: usize = 1 << 20;

/// What `model.toml` says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ModelConfig {
    /// For people.
    pub(crate) description: String,
    /// Which versions are served.
    pub(crate) versions: Versions,
    /// Most rows in one request, for models whose rows are independent; 1: no batches.
    pub(crate) max_batch: usize,
    /// Requests that may wait, if not as the worker says.
    pub(crate) queue: Option<usize>,
    /// Take and give NaN and infinities.
    pub(crate) allow_non_finite: bool,
    /// Load quantised graphs, which the engine may fold wrongly.
    pub(crate) allow_quantized: bool,
    /// Narrows and describes inputs and outputs.
    pub(crate) tensors: Vec<TensorConfig>,
}

/// One `[[input]]` or `[[output]]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct TensorConfig {
    pub(crate) name: String,
    /// A shape within the file's; -1 stays open.
    pub(crate) shape: Option<Vec<i64>>,
    /// Input shape to warm up with, where 1 for each open dimension does not fit.
    pub(crate) warm_up: Option<Vec<usize>>,
    pub(crate) description: String,
}

/// Which versions are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Versions {
    /// The highest number.
    Latest,
    /// Every one.
    All,
    /// These.
    Only(Vec<u64>),
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            description: String::new(),
            versions: Versions::Latest,
            max_batch: DEFAULT_BATCH,
            queue: None,
            allow_non_finite: false,
            allow_quantized: false,
            tensors: Vec::new(),
        }
    }
}

impl ModelConfig {
    /// Reads the file's text; every mistake in it is reported.
    pub(crate) fn parse(text: &str) -> Result<Self, Diagnostics> {
        let document = Document::parse(text);
        let config = {
            let file = document.root();
            let default = Self::default();
            let queue = file.within("queue", 1..=MAX_QUEUE, 0);
            let mut tensors = Vec::new();
            for input in file.tables("input") {
                let warm_up = input.get("warm_up");
                tensors.extend(TensorConfig::read(&input, warm_up));
            }
            for output in file.tables("output") {
                tensors.extend(TensorConfig::read(&output, None));
            }
            Self {
                description: file.or("description", default.description),
                versions: file.or("versions", default.versions),
                max_batch: file.within("max_batch", 1..=MAX_BATCH, default.max_batch),
                queue: (queue > 0).then_some(queue),
                allow_non_finite: file.or("allow_non_finite", default.allow_non_finite),
                allow_quantized: file.or("allow_quantized", default.allow_quantized),
                tensors,
            }
        };
        document.finish().map(|()| config)
    }

    /// What the engine has to know.
    pub(crate) fn load_options(&self) -> LoadOptions {
        fn by_name<T>(
            tensors: &[TensorConfig],
            value: impl Fn(&TensorConfig) -> Option<T>,
        ) -> BTreeMap<String, T> {
            tensors.iter().filter_map(|t| Some((t.name.clone(), value(t)?))).collect()
        }
        LoadOptions {
            max_batch: self.max_batch,
            shapes: by_name(&self.tensors, |tensor| tensor.shape.clone()),
            warm_up: by_name(&self.tensors, |tensor| tensor.warm_up.clone()),
            allow_quantized: self.allow_quantized,
        }
    }
}

impl TensorConfig {
    fn read(table: &Table<'_, '_>, warm_up: Option<Vec<usize>>) -> Option<Self> {
        let shape = table.get::<Vec<Dimension>>("shape");
        let description = table.or("description", String::new());
        let name = table.required("name")?;
        let shape = shape.map(|shape| shape.into_iter().map(|Dimension(dim)| dim).collect());
        Some(Self { name, shape, warm_up, description })
    }
}

struct Dimension(i64);

impl FromToml for Dimension {
    const EXPECTED: &'static str = "a dimension of 1 or more, or -1 for an open one";
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Option<String>> {
        let integer = value.as_integer().ok_or(None)?;
        let dim = i64::from_str_radix(integer.as_str(), integer.radix()).map_err(|_| None)?;
        if dim == -1 || dim > 0 { Ok(Self(dim)) } else { Err(None) }
    }
}

impl FromToml for Versions {
    const EXPECTED: &'static str = "\"latest\", \"all\" or a list of versions such as [1, 3]";
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Option<String>> {
        match value.as_str() {
            Some("latest") => Ok(Self::Latest),
            Some("all") => Ok(Self::All),
            _ => Vec::from_toml(value).map(Self::Only),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn what_is_written_is_what_the_engine_is_told() {
        let config = ModelConfig::parse(
            "versions = [1, 3]\nmax_batch = 8\n[[input]]\nname = \"x\"\nshape = [-1, 3]\n\
             warm_up = [2, 3]\n[[output]]\nname = \"y\"\ndescription = \"text\"",
        )
        .unwrap();
        assert_eq!(config.versions, Versions::Only(vec![1, 3]));
        let options = config.load_options();
        assert_eq!((options.max_batch, options.allow_quantized), (8, false));
        assert_eq!(options.shapes, BTreeMap::from([("x".to_owned(), vec![-1, 3])]));
        assert_eq!(options.warm_up, BTreeMap::from([("x".to_owned(), vec![2, 3])]));
        assert_eq!(ModelConfig::parse("").unwrap(), ModelConfig::default());
    }

    #[test]
    fn every_mistake_is_reported_with_its_line() {
        let found = ModelConfig::parse(
            "versions = \"newest\"\nmax_batch = 0\nmax_batches = 3\n[[input]]\nshape = [0]\n\
             [[output]]\nname = \"y\"\nwarm_up = [1]\n",
        )
        .unwrap_err();
        let lines: Vec<_> = found.iter().map(|error| error.line).collect();
        assert_eq!(lines, [1, 2, 3, 4, 5, 8], "{found}");
    }
}
