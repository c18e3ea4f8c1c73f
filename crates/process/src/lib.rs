//! Keeps a long-running process alive when its surroundings fail.
//!
//! The proxy and the worker share these parts, because both must survive the same faults: a log
//! whose reader is gone or stands still, a disk that is full, and a mistake in their own code.
//!
//! | module | does |
//! |---|---|
//! | [`writer`] | writes lines to a file or a standard stream behind a bounded queue |
//! | [`log`] | the process log on standard error, and panics as lines of it |
//! | [`allocator`] | keeps what lasts apart from what is needed for a moment |
//! | [`memory`] | gives memory back to the system when what it was taken for has ended |
//! | [`limit`] | bounds how often one kind of event is logged |
//! | [`places`] | bounds how many requests there are, of all clients and of each |
//! | [`resources`] | descriptors: how many there are, what they are kept for, and errors for want of them |
//! | [`supervise`] | tasks that are started again when they panic |

pub mod allocator;
pub mod limit;
pub mod log;
pub mod memory;
pub mod places;
pub mod resources;
pub mod supervise;
pub mod writer;
