//! What keeps a long-running process alive when its surroundings fail.
//!
//! The proxy and the worker share these parts, because both must survive the same faults: a log
//! whose reader is gone or stands still, and a disk that is full.
//!
//! | module | does |
//! |---|---|
//! | [`writer`] | writes lines to a file or a standard stream behind a bounded queue |
//! | [`log`] | the process log on standard error, and panics as lines of it |
//! | [`limit`] | bounds how often one kind of event is logged |

pub mod limit;
pub mod log;
pub mod writer;
