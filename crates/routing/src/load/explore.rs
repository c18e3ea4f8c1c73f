//! Exploration: when an endpoint that is avoided is worth a request that finds out how it is.
//!
//! An endpoint that gets no requests gives no answers, so one that was slow once would never be found to have
//! recovered. How often picks are spent on that is for [`pick`](mod@crate::pick) to say.

use super::{Load, UNKNOWN, seconds};
use crate::sync::Ordering::Relaxed;

/// Answers below which an endpoint's speed is hardly known.
const MIN_ANSWERS: f32 = 1.0;
/// An endpoint that is avoided is tried again after a pause of so many of its service times, in
/// seconds at least and at most: exploration takes a small share of what it can do, and it is found soon
/// that it has recovered.
const PAUSE_SERVICE_TIMES: f32 = 10.0;
const MIN_PAUSE: f32 = 0.05;
const MAX_PAUSE: f32 = 0.2;
/// The pause is this part at least of the time for which its speed has been the same: a change is as likely in the
/// next hour after a day without one as in the next minute after half an hour. It is much shorter where
/// the last answers hint at one.
const STEADY_PAUSE_SHARE: f32 = 0.03;
const PROMISING_PAUSE_SHARE: f32 = 0.001;
/// Part of a service time that a penalty may be to count for nothing.
const MAX_PENALTY_SHARE: f64 = 0.01;

impl Load {
    /// Whether a request may be sent there to explore it. Not while a request of this proxy is there, nor as
    /// long as its failures count: it may be dead, and the request may be a second attempt.
    pub(crate) fn may_explore(&self, now: u64) -> bool {
        let service = f64::from(self.service_time.mean().0);
        self.in_flight() == 0 && self.penalty_at(now) <= service * MAX_PENALTY_SHARE
    }

    /// Whether hardly anything is known of its speed, or the last answers hint that it got faster, and that was
    /// not just now.
    pub(crate) fn is_unsure(&self, now: u64) -> bool {
        let pause = self.steady_for() * PROMISING_PAUSE_SHARE;
        self.service_time.mean().1 < MIN_ANSWERS
            || (self.service_time.is_promising()
                && seconds(now, self.answered_at.load(Relaxed)) > pause)
    }

    /// The same, or has it not been used for long?
    pub(crate) fn is_due_for_exploration(&self, now: u64) -> bool {
        let pause = (self.service_time.mean().0 * PAUSE_SERVICE_TIMES).clamp(MIN_PAUSE, MAX_PAUSE);
        let pause = pause.max(self.steady_for() * STEADY_PAUSE_SHARE);
        self.service_time.mean().1 < MIN_ANSWERS
            || seconds(now, self.answered_at.load(Relaxed)) > pause
    }

    /// Nanoseconds since the last answer.
    pub(crate) fn silence(&self, now: u64) -> u64 {
        match self.answered_at.load(Relaxed) {
            UNKNOWN => u64::MAX,
            at => now.saturating_sub(at),
        }
    }
}
