//! Errors of an engine, and whose mistake each is.

use serde::{Deserialize, Serialize};

/// Why a model was not loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum LoadError {
    /// The file or the options: it fails again until they change.
    #[error("{0}")]
    Refused(String),
    /// The model is one that this engine can't run, or would run wrongly: another engine may.
    #[error("{0}")]
    Unsupported(String),
    /// The machine, such as a device without memory: the same may load later.
    #[error("{0}")]
    Passing(String),
    /// The watch stopped it; nothing is wrong.
    #[error("cancelled")]
    Cancelled,
}

/// Why an inference gave no outputs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// The tensors do not fit the model; the client's mistake.
    #[error("{0}")]
    Input(String),
    /// The client's shapes are allowed by the metadata but lead to a graph that can't be built.
    #[error("the model can't run with these input shapes: {0}")]
    Shape(String),
    /// The watch stopped the run; nothing is wrong.
    #[error("cancelled")]
    Cancelled,
    /// The engine failed.
    #[error("the engine failed: {0}")]
    Engine(String),
    /// The engine panicked; only this request is lost.
    #[error("the engine panicked: {0}")]
    Panic(String),
}
