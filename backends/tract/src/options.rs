//! How a model is loaded, and what is known of it from before.

use crate::build::Build;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// How a model is to be loaded.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct LoadOptions {
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
    /// When rows of several requests are run together.
    pub batching: Batching,
    /// Load graphs with QuantizeLinear and DequantizeLinear nodes.
    pub allow_quantized: bool,
    /// The form to compile to; the fastest of those that agree, if none is given.
    pub build: Option<Build>,
    /// The findings of an earlier load of the same model with the same options: they are not
    /// measured again.
    pub profile: Option<Profile>,
}

/// When the rows of a model are taken to be independent.
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

/// The findings of a model's first runs on this machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    pub(crate) build: Build,
    /// Least seconds of one row in each build that was compared.
    pub(crate) compared: Vec<(Build, f64)>,
    /// Are its rows independent?
    pub(crate) has_batches: bool,
    /// Why they are not, where they might have been.
    pub(crate) unbatched: Option<String>,
    /// Why there is no plan for all sizes, where there might have been.
    pub(crate) closed: Option<String>,
    /// Seconds by bucket of rows.
    pub(crate) seconds: Vec<(usize, f64)>,
    pub(crate) grain: Duration,
}
