//! Answers inferences from memory where an equal one was answered before, and lets equal ones that come at
//! once be one inference.
//!
//! The stage stands behind the choice of the variant, which is a part of the question, and before the queue:
//! a hit needs no endpoint, so it is given even while the pool is down or full. It is off unless the route
//! says otherwise. A request that it can't read passes by: what a cache does not understand in full, it must
//! not answer.
//!
//! [`look_up`](look_up()) is met before the attempts, [`keep`](keep()) behind them. [`answers`] are
//! those that are kept, [`ask`] reads the question, [`message`] the forms of requests and answers, [`give`]
//! answers a client from memory, [`persist`] has a file that outlives the process, which [`restart`] reads and writes, [`shared`] starts a store behind the memory that [`fetch`] asks, [`rows`] takes batches apart, [`stale`] decides on answers whose time is up,
//! [`conditional`] is for caches between clients and the proxy, and [`operate`] for the operator.

mod answers;
mod ask;
pub mod conditional;
mod fetch;
mod give;
mod keep;
mod look_up;
mod message;
pub mod operate;
pub mod outcome;
mod persist;
mod restart;
mod rows;
mod shared;
mod stale;
mod time;

pub use answers::Cache;
pub use ask::Ask;
pub(in crate::http) use ask::is_embeddings;
pub use keep::{Kept, keep, replace, replacement};
pub use look_up::{Lookup, look_up};
pub(in crate::http) use message::{Wire, is_success, joined, off_io};
pub use rows::Replaced;
pub use stale::in_place_of;
