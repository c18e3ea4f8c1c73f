//! The options of a load, and the findings of earlier loads.

use crate::build::Build;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The options of a load, in this engine's types.
pub type LoadOptions = forebay_engine::LoadOptions<Build, Profile>;

/// The findings of a model's first runs on this machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    pub(crate) build: Build,
    /// Least seconds of one row in each build that was compared.
    pub(crate) compared: Vec<(Build, f64)>,
    /// Whether its rows are independent.
    pub(crate) has_batches: bool,
    /// Why they are not, where they might have been.
    pub(crate) unbatched: Option<String>,
    /// Why there is no plan for all sizes, where there might have been.
    pub(crate) closed: Option<String>,
    /// Seconds by bucket of rows.
    pub(crate) seconds: Vec<(usize, f64)>,
    pub(crate) grain: Duration,
}
