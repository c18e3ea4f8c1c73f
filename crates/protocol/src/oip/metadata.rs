//! The small JSON documents of the protocol: metadata, readiness, errors, the repository index.

use super::Datatype;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Answer to `GET /v2`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerMetadata {
    /// Name of the program.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Extensions of the protocol that it speaks.
    #[serde(default)]
    pub extensions: Vec<String>,
}

/// Answer to `GET /v2/models/{model}[/versions/{version}]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelMetadata {
    /// Name of the model.
    pub name: String,
    /// Versions that are served.
    #[serde(default)]
    pub versions: Vec<String>,
    /// Framework and format, such as `onnx`.
    pub platform: String,
    /// Inputs in the model's order.
    pub inputs: Vec<TensorMetadata>,
    /// Outputs in the model's order.
    pub outputs: Vec<TensorMetadata>,
    /// Further facts: the content's digest, labels of versions.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, String>,
}

/// One input or output of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorMetadata {
    /// Name of the tensor.
    pub name: String,
    /// Its element type.
    pub datatype: Datatype,
    /// Dimensions; -1 for one that may vary.
    pub shape: Vec<i64>,
}

/// Answer to the health calls. The protocol's texts disagree on the key, so all are optional.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ready {
    /// The process answers.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub live: Option<bool>,
    /// It is ready for inferences.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ready: Option<bool>,
}

/// Body of every refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The expected and the found value.
    pub error: String,
}

/// One entry of the answer to `POST /v2/repository/index`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelIndex {
    /// Name of the model.
    pub name: String,
    /// Its version; absent if the directory holds none that could be read.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub version: Option<String>,
    /// `READY`, `LOADING` or `UNAVAILABLE`.
    #[serde(default)]
    pub state: String,
    /// Why it is in that state; empty when ready.
    #[serde(default)]
    pub reason: String,
}
