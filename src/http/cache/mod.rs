//! Answers inferences from memory where an equal one was answered before, and lets equal ones that come at
//! once be one inference.
//!
//! The stage stands behind the choice of the variant, which is a part of the question, and before the queue:
//! a hit needs no endpoint, so it is given even while the pool is down or full. It is off unless the route
//! says otherwise. A request that it can't read passes by: what a cache does not understand in full, it must
//! not answer.
//!
//! [`stage`] is the stage itself: [`look_up`] is met before the attempts, [`keep`] behind them. [`answers`] are
//! those that are kept, [`ask`] reads the question, [`message`] the
//! forms of requests and answers, [`rows`] takes batches apart, and [`operate`] is what an operator sees.

mod answers;
mod ask;
mod message;
pub mod operate;
pub mod outcome;
mod rows;
mod stage;

pub use answers::Cache;
pub use ask::Ask;
pub use rows::Replaced;
pub use stage::{Kept, Lookup, keep, look_up, replace, replacement};
