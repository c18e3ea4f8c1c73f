//! The decisions, and nothing else.
//!
//! Where a request goes, whether an endpoint is healthy and whether a retry is allowed decide the
//! tail latency of a fleet. Such code is only trusted if it can be tested without luck and run a
//! million times in a simulator, so it is pure: no clock, no randomness, no socket, no log of its
//! own. The time comes in as [`Time`], chance as [`Rng`], and the same functions run in the proxy
//! and on a virtual clock.
//!
//! - [`bind`]: bind a request now, or hold it back, and what can be promised.
//! - [`dispatch`]: who of those that wait goes next.
//! - [`line`]: requests that wait until an endpoint can take them.
//! - [`models`]: what is known of each model of a pool.
//! - [`load`]: what is known of one endpoint's load, updated without locks; the in-flight guard.
//! - [`pick`]: which endpoint gets the next request, by one of the [`Policy`] values.
//! - [`health`]: rise and fall of one endpoint from the outcomes of its probes.
//! - [`outlier`]: which endpoint is taken out for what its answers were like, and for how long.
//! - [`ramp`]: the share of an endpoint that has just come into rotation.
//! - [`budget`]: how many retries a pool may add to the load it has.
//! - [`hedge`]: after which time a second attempt is worth its cost.

pub mod bind;
pub mod budget;
pub mod dispatch;
pub mod health;
pub mod hedge;
pub mod line;
pub mod load;
pub mod models;
mod odds;
pub mod outlier;
pub mod pick;
mod picks;
mod prospects;
pub mod ramp;
mod rng;
mod saturation;
mod speed;
mod sync;

pub use bind::{Binding, Outlook, View};
pub use budget::RetryBudget;
pub use dispatch::Next;
pub use health::{Health, HealthCheck, ProbeOutcome};
pub use hedge::Latencies;
pub use line::{Claim, Joined, Line, Place};
pub use load::{InFlight, Load, Report};
pub use models::{Asked, Models, Weight};
pub use outlier::{Ejection, Outcome};
pub use pick::{Candidate, Policy};
pub use picks::Picks;
pub use prospects::Terms;
pub use ramp::Ramp;
pub use rng::Rng;

use std::time::Duration;

/// A point on a monotonic clock: the time since its origin, whatever that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Time(Duration);

impl Time {
    /// The point `since_origin` after the clock's origin.
    pub const fn new(since_origin: Duration) -> Self {
        Self(since_origin)
    }

    /// Nanoseconds since the origin; saturates after 584 years.
    pub fn nanos(self) -> u64 {
        u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX)
    }

    /// How long ago `earlier` was; zero if it is in the future.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl std::ops::Add<Duration> for Time {
    type Output = Self;
    fn add(self, later: Duration) -> Self {
        Self(self.0.saturating_add(later))
    }
}
