//! The decisions, and nothing else.
//!
//! Where a request goes, whether an endpoint is healthy and whether a retry is allowed decide the
//! tail latency of a fleet. Such code is only trusted if it can be tested without luck and run a
//! million times in a simulator, so it is pure: no clock, no randomness, no socket, no log of its
//! own. The time comes in as [`Time`], chance as [`Rng`], and the same functions run in the proxy
//! and on a virtual clock.
//!
//! - [`pick`]: which endpoint gets the next request, by one of the [`Policy`] values.
//! - [`load`]: what is known of one endpoint's load, updated without locks; the in-flight guard.
//! - [`queue`]: requests that wait in the proxy; when one is bound to an endpoint, and which one goes next.
//! - [`decision`]: records of picks, and the same picks from them.
//! - [`health`]: probes, outlier detection and slow start.
//! - [`attempt`]: the attempts of one request: retries, hedges, fallback to another variant, and the blame.
//! - [`split`]: which variant of a route gets which clients, by weights that may change.
//! - [`waits`]: how long requests of a pool wait, and how long they would with perfect routing.
//! - [`retry`]: how many retries and hedges a pool may add to the load it has, and when they are worth it.

pub mod attempt;
pub mod decision;
mod float;
pub mod health;
pub mod load;
pub mod pick;
pub mod queue;
mod relative_cost;
pub mod retry;
mod rng;
pub mod split;
mod sync;
mod time;
pub mod waits;

pub use attempt::Attempts;
pub use attempt::blame::Blame;
pub use attempt::policy::{RetryOn, RetryPolicy};
pub use health::check::{Health, HealthCheck, ProbeOutcome};
pub use health::outlier::{Ejection, Outcome};
pub use health::slow_start::SlowStart;
pub use load::{InFlight, Load, Report};
pub use pick::{Candidate, PickMemory, Policy};
pub use queue::bind::{Binding, PoolView};
pub use queue::capacity::CapacityEstimate;
pub use queue::dispatch::Dispatch;
pub use queue::fair_queue::{Enqueued, Entry, FairQueue, Position};
pub use queue::giving_way::StandInTime;
pub use queue::odds::TimeBudget;
pub use relative_cost::RelativeCost;
pub use retry::budget::RetryBudget;
pub use retry::hedge::Latencies;
pub use retry::model_stats::{ModelHandle, ModelStats};
pub use rng::Rng;
pub use time::Time;
