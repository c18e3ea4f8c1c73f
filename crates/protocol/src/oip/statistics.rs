//! Statistics of models, in the form of Triton's statistics extension.
//!
//! Source: <https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_statistics.md>.

use serde::{Deserialize, Serialize};

/// Answer to `GET /v2/models[/{model}[/versions/{version}]]/stats`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Statistics {
    /// One entry a version.
    pub model_stats: Vec<ModelStatistics>,
}

/// Statistics of one version.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelStatistics {
    /// Name of the model.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Time of the last run, in milliseconds since 1970; 0: never.
    pub last_inference: u64,
    /// Rows that it answered.
    pub inference_count: u64,
    /// Runs of the engine: fewer than rows where rows were joined.
    pub execution_count: u64,
    /// Times of requests.
    pub inference_stats: InferStatistics,
    /// Times of runs by their rows.
    pub batch_stats: Vec<BatchStatistics>,
    /// Memory that it takes.
    pub memory_usage: Vec<MemoryUsage>,
}

/// A number of times, and the time that they took together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DurationStatistic {
    /// Number of events.
    pub count: u64,
    /// Nanoseconds in all.
    pub ns: u64,
}

/// The time that requests spent in each stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct InferStatistics {
    /// Requests that were answered, from their arrival to the answer.
    pub success: DurationStatistic,
    /// Those that were not.
    pub fail: DurationStatistic,
    /// Waiting for an executor.
    pub queue: DurationStatistic,
    /// Reading and checking inputs.
    pub compute_input: DurationStatistic,
    /// In the engine; each request of a batch counts the whole batch's time.
    pub compute_infer: DurationStatistic,
    /// Writing outputs.
    pub compute_output: DurationStatistic,
    /// Answers out of a cache.
    pub cache_hit: DurationStatistic,
    /// Looks into it in vain.
    pub cache_miss: DurationStatistic,
}

/// Runs of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BatchStatistics {
    /// Rows.
    pub batch_size: u64,
    /// Preparing the runs' inputs.
    pub compute_input: DurationStatistic,
    /// In the engine.
    pub compute_infer: DurationStatistic,
    /// Taking their outputs apart.
    pub compute_output: DurationStatistic,
}

/// Memory of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryUsage {
    /// `CPU`, `CPU_PINNED` or `GPU`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Number of the memory device.
    pub id: i64,
    /// Size in bytes.
    pub byte_size: u64,
}
