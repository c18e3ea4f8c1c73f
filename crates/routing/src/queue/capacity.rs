//! The speed of a pool, and the promises that it allows.
//!
//! A request that waits may be too late already. [`CapacityEstimate`] gives the rate at which slots free and
//! the time that services take, so that a request whose deadline can't be met is refused when it comes, not
//! when it is late, and so that the refusal can say when a retry is worthwhile.

use crate::{RelativeCost, Time};
use std::time::Duration;

/// Mean deviations above the mean within which a service is promised to end: 99% of an exponential
/// distribution do.
const PROMISE_DEVIATIONS: f64 = 5.0;
/// Standard deviations above the mean up to which slots may free: 2% of the time it is more.
const LUCK_DEVIATIONS: f64 = 2.0;
/// Part of its time that one must have left to count as fresh.
pub(crate) const FRESH_SHARE: f64 = 0.9;

/// The speed of a pool.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CapacityEstimate {
    /// Slots that become free in a second, when all are busy.
    pub per_second: f64,
    /// Seconds that a service takes on average.
    pub service: f64,
    /// Mean deviation from the average.
    pub deviation: f64,
    /// Seconds that it takes at the fastest endpoint.
    pub fastest: f64,
}

impl CapacityEstimate {
    /// The same for a request of this weight: those before it are of any.
    #[must_use = "the outlook itself is for a request of the mean"]
    pub fn for_relative_cost(self, relative_cost: RelativeCost) -> Self {
        let [service, deviation] =
            [self.service, self.deviation].map(|seconds| seconds * relative_cost.get());
        Self { service, deviation, ..self }
    }

    /// Until so many requests that wait have been bound, and one more.
    pub fn wait(&self, ahead: usize) -> Duration {
        let seconds = (ahead as f64 + 1.0) / self.per_second;
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }

    /// Whether the slots that free within this time may be enough for `ahead` waiting requests and one more.
    /// A request is refused only if it would need more than chance is likely to bring: slots of few
    /// endpoints free unevenly, and one that frees while the queue is empty is lost.
    pub fn may_serve(&self, ahead: usize, within: Duration) -> bool {
        let frees = self.per_second * within.as_secs_f64();
        (ahead as f64 + 1.0) <= frees + LUCK_DEVIATIONS * frees.sqrt()
    }

    /// Until so many requests that wait have been bound.
    pub fn drained_in(&self, waiting: usize) -> Duration {
        Duration::try_from_secs_f64(waiting as f64 / self.per_second).unwrap_or_default()
    }

    /// The part of a request's time that must be left when it begins: as much as nearly all services take. A
    /// request with less than that from the start would never be begun, so half of its time suffices where a
    /// common service fits into that, and otherwise most of it.
    pub fn reserve(&self, patience: Duration) -> Duration {
        let seconds = |means: f64| {
            let seconds = self.service + means * self.deviation;
            Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
        };
        let most = (patience / 2).max(seconds(1.0).min(patience.mul_f64(FRESH_SHARE)));
        seconds(PROMISE_DEVIATIONS).min(most)
    }

    /// Will a request be done in time before which so many wait, almost certainly?
    pub fn can_meet(&self, deadline: Time, now: Time, ahead: usize) -> bool {
        let patience = deadline.since(now);
        self.wait(ahead).saturating_add(self.reserve(patience)) <= patience
    }

    /// Whether a request that came at `since` has so little time left that others had better go first.
    pub fn is_too_late(&self, since: Time, deadline: Time, now: Time) -> bool {
        deadline.since(now) < self.reserve(deadline.since(since))
    }
}
