//! Decides which job runs next, on which thread, and until when.

pub(crate) mod executor;
pub(crate) mod job;
pub(crate) mod queue;
pub(crate) mod watchdog;
