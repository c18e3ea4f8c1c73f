//! When an endpoint that is avoided is worth a visit: a request that finds out how it is.
//!
//! What is not asked does not answer, so that an endpoint that was slow once would never be found to have
//! recovered. How often picks are spent on that is for [`pick`](mod@crate::pick) to say.

use super::{Load, UNKNOWN, seconds};
use crate::sync::Ordering::Relaxed;

/// Answers below which an endpoint's speed is hardly known.
const FEW: f32 = 1.0;
/// An endpoint that is avoided is tried again after a pause of so many of its service times, in
/// seconds at least and at most: visits take a small share of what it can do, and it is found soon
/// that it has recovered.
const VISIT_PAUSE: f32 = 10.0;
const SHORTEST_PAUSE: f32 = 0.05;
const LONGEST_PAUSE: f32 = 0.2;
/// Part of a service time that a penalty may be to count for nothing.
const FORGIVEN: f64 = 0.01;

impl Load {
    /// May a request be sent there to learn how it is? Not while one of ours is there, nor as long as
    /// its failures count for anything: it may be dead, and the request may be a second attempt.
    pub(crate) fn may_be_visited(&self, now: u64) -> bool {
        let service = f64::from(self.speed.mean().0);
        self.in_flight() == 0 && self.penalty_at(now) <= service * FORGIVEN
    }

    /// Is hardly anything known of its speed, or do the last answers hint that it got faster?
    pub(crate) fn is_unsure(&self) -> bool {
        self.speed.mean().1 < FEW || self.speed.is_promising()
    }

    /// The same, or has it not been used for long?
    pub(crate) fn is_due_for_visit(&self, now: u64) -> bool {
        let pause = (self.speed.mean().0 * VISIT_PAUSE).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        self.is_unsure() || seconds(now, self.answered_at.load(Relaxed)) > pause
    }

    /// Nanoseconds since the last answer.
    pub(crate) fn silence(&self, now: u64) -> u64 {
        match self.answered_at.load(Relaxed) {
            UNKNOWN => u64::MAX,
            at => now.saturating_sub(at),
        }
    }
}
