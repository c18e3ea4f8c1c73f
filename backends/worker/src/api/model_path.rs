//! The model that a path names.

use crate::refusal::Refusal;
use axum::extract::{FromRequestParts, Path};
use http::request::Parts;

/// Model and version, as the path names them.
#[derive(Debug, serde::Deserialize)]
pub(crate) struct ModelPath {
    pub(crate) model: String,
    pub(crate) version: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for ModelPath {
    type Rejection = Refusal;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let path = Path::<Self>::from_request_parts(parts, state).await;
        path.map(|Path(path)| path).map_err(|error| Refusal::request(error.body_text()))
    }
}
