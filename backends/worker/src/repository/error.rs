//! Why a version was not loaded, and what that means for the next attempt.

use std::fmt::Display;
use std::io;

/// Why a version was not loaded.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LoadError {
    /// Others hold the memory: the next request for it may find room.
    #[error("{0}")]
    Full(String),
    /// Something else than the model was the reason, such as a machine without memory.
    #[error("{0}; it will be tried again")]
    Passing(String),
    /// The engine can't run it, or runs it wrongly: another engine may do better.
    #[error("{0}")]
    Unsupported(String),
    /// It will fail again, until its files change.
    #[error("{0}")]
    Bad(String),
}

/// A plain message: the fault is the model's.
impl From<String> for LoadError {
    fn from(text: String) -> Self {
        Self::Bad(text)
    }
}

impl From<forebay_engine::LoadError> for LoadError {
    fn from(error: forebay_engine::LoadError) -> Self {
        match error {
            forebay_engine::LoadError::Refused(text) => Self::Bad(text),
            forebay_engine::LoadError::Unsupported(text) => Self::Unsupported(text),
            forebay_engine::LoadError::Passing(text) => Self::Passing(text),
            forebay_engine::LoadError::Cancelled => Self::cancelled(),
        }
    }
}

impl LoadError {
    /// It was called off while it was loaded.
    pub(crate) fn cancelled() -> Self {
        Self::Passing("no longer wanted: it was unloaded meanwhile".to_owned())
    }

    /// The error for a file of a model that could not be read: a fault of the file, or of the machine.
    pub(crate) fn of_io(path: &dyn Display, error: &io::Error) -> Self {
        use rustix::io::Errno;
        /// Nothing that a file could do.
        const OF_THE_MACHINE: [Errno; 9] = [
            Errno::MFILE,
            Errno::NFILE,
            Errno::NOMEM,
            Errno::NOBUFS,
            Errno::AGAIN,
            Errno::IO,
            Errno::STALE,
            Errno::TIMEDOUT,
            Errno::INTR,
        ];
        let text = format!("{path}: {error}");
        let is_the_machines = error.kind() == io::ErrorKind::OutOfMemory
            || Errno::from_io_error(error).is_some_and(|errno| OF_THE_MACHINE.contains(&errno));
        if is_the_machines { Self::Passing(text) } else { Self::Bad(text) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_machine_lacks_is_not_blamed_on_a_model() {
        let of = |errno: rustix::io::Errno| LoadError::of_io(&"m/1/model.onnx", &errno.into());
        for errno in [rustix::io::Errno::MFILE, rustix::io::Errno::IO, rustix::io::Errno::NOMEM] {
            assert!(matches!(of(errno), LoadError::Passing(_)), "{errno}");
        }
        for errno in [rustix::io::Errno::NOENT, rustix::io::Errno::ACCESS, rustix::io::Errno::LOOP]
        {
            assert!(matches!(of(errno), LoadError::Bad(_)), "{errno}");
        }
    }
}
