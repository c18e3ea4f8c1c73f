//! The ways in which a request leaves a stage without going on to the next.

use crate::refusal::Refusal;
use pingora::Error;

/// Why a request ended at a stage.
pub enum Stop {
    /// It is refused; the client is to be told.
    Refused(Refusal),
    /// The connection to the client can't be used any more.
    Broken(Box<Error>),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Box<Error>> for Stop {
    fn from(error: Box<Error>) -> Self {
        Self::Broken(error)
    }
}
