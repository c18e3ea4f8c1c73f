//! Why a version was not loaded, and what that means for the next attempt.

/// Why a version was not loaded.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    /// Others hold the memory: the next request for it may find room.
    #[error("{0}")]
    Full(String),
    /// Something else than the model was the reason, such as a machine without memory.
    #[error("{0}; it will be tried again")]
    Passing(String),
    /// It will fail again, until its files change.
    #[error("{0}")]
    Bad(String),
}

/// What says no more is the model's fault.
impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self::Bad(text)
    }
}
