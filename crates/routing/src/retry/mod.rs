//! Attempts beyond the first: how many a pool can bear, and when one is worth its cost.
//!
//! - [`budget`]: how many retries a pool may add to the load it has.
//! - [`hedge`]: after which time a second attempt is worth its cost.
//! - [`model_stats`]: what is known of each model of a pool, among it the latencies for that.

pub mod budget;
pub mod hedge;
pub mod model_stats;
