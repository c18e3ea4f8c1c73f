//! The options of a load, and the findings of earlier loads.
//!
//! Options come as an operator's words: the build by its name, earlier findings as text that only the
//! engine that wrote it reads. An engine parses both once ([`LoadOptions::parse`]) and works with its
//! own types from then on.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The options of a load; `Build` and `Findings` are text until an engine has parsed them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoadOptions<Build = String, Findings = Profile> {
    /// Most rows in one request, for a model whose rows are independent; 0 and 1: no batching.
    pub max_batch: usize,
    /// Shapes by tensor name that narrow what the file declares; -1 stays open.
    pub shapes: BTreeMap<String, Vec<i64>>,
    /// Input shapes by name to compile and warm up with.
    pub warm_up: BTreeMap<String, Vec<usize>>,
    /// Values that inputs may be padded with, by input name, so that requests of near lengths can be joined.
    pub pad: BTreeMap<String, i64>,
    /// The size of open dimensions other than the first where no shape is given; 0 counts as 1.
    pub open: usize,
    /// The condition under which rows of several requests run together.
    pub batching: Batching,
    /// Load quantised graphs that the engine may compute wrongly.
    pub allow_quantized: bool,
    /// The form to compile to; none: by the engine's rule.
    pub build: Option<Build>,
    /// The findings of an earlier load of the same model with the same options: they are not
    /// measured again.
    pub profile: Option<Findings>,
}

/// The condition under which the rows of a model count as independent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Batching {
    /// If that is proved from the graph.
    #[default]
    Proved,
    /// On the operator's word.
    Trusted,
    /// Never.
    Off,
}

/// The findings of a model's first runs on this machine, in the form of the engine that made them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile(pub String);

impl<Build, Findings> Default for LoadOptions<Build, Findings> {
    fn default() -> Self {
        Self {
            max_batch: 0,
            shapes: BTreeMap::new(),
            warm_up: BTreeMap::new(),
            pad: BTreeMap::new(),
            open: 0,
            batching: Batching::default(),
            allow_quantized: false,
            build: None,
            profile: None,
        }
    }
}

impl LoadOptions {
    /// The same options in an engine's own types. `findings` may give none for a profile that the
    /// engine can't read: it measures again.
    ///
    /// # Errors
    /// Those of `build`: the engine has no build of the name.
    pub fn parse<Build, Findings, E>(
        &self,
        build: impl FnOnce(&str) -> Result<Build, E>,
        findings: impl FnOnce(&Profile) -> Option<Findings>,
    ) -> Result<LoadOptions<Build, Findings>, E> {
        let Self { max_batch, shapes, warm_up, pad, open, batching, allow_quantized, .. } = self;
        Ok(LoadOptions {
            max_batch: *max_batch,
            shapes: shapes.clone(),
            warm_up: warm_up.clone(),
            pad: pad.clone(),
            open: *open,
            batching: *batching,
            allow_quantized: *allow_quantized,
            build: self.build.as_deref().map(build).transpose()?,
            profile: self.profile.as_ref().and_then(findings),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_parses_its_own_words_and_measures_again_what_it_can_not_read() {
        let options = LoadOptions {
            max_batch: 8,
            pad: BTreeMap::from([("ids".to_owned(), 0)]),
            build: Some("2".to_owned()),
            profile: Some(Profile("x".to_owned())),
            ..LoadOptions::default()
        };
        let parsed = options.parse(str::parse, |profile| profile.0.parse::<u8>().ok());
        let expected = LoadOptions {
            max_batch: 8,
            pad: options.pad.clone(),
            build: Some(2_u8),
            profile: None,
            ..LoadOptions::default()
        };
        assert_eq!(parsed, Ok(expected));
        let wrong = LoadOptions { build: Some("two".to_owned()), ..options };
        assert!(wrong.parse(str::parse::<u8>, |_| None::<u8>).is_err());
    }
}
