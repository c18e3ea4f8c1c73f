//! The cost of a request at an endpoint, from the estimate of its load.
//!
//! Pick compares this number. It has to be right on average and honest about its uncertainty: the number of
//! others' requests at this moment, and the speed of an endpoint that has hardly answered.

use super::estimate::LoadEstimate;
use super::{Load, SCATTER_SHARE, UNKNOWN, fading, float, nanos, seconds};
use crate::Time;
use crate::float::narrow;
use crate::sync::Ordering::Relaxed;
use std::time::Duration;

/// Half-life, in seconds, of the endpoint's own report of its speed: one slow answer must not keep it out of
/// use forever.
const REPORTED_HALF_LIFE: f32 = 10.0;
/// Worth of the endpoint's own word on its speed, in answers: it decides where we know nothing. More
/// would be worse: all proxies hear the same word, and would all follow its errors.
const REPORTED_ANSWERS: f32 = 1.0;
/// Answers beside which its word does not count any more.
const MAX_ANSWERS_BESIDE_REPORT: f32 = 30.0;
/// For how many service times the last report says more than the mean of all.
const REPORT_SERVICE_TIMES: f32 = 0.2;
impl Load {
    /// Requests that are there now, from everyone: ours, and what others are likely to have there. A
    /// report older than `ttl` is not believed.
    pub fn occupancy(&self, now: Time, ttl: Duration) -> u32 {
        let estimate = self.estimate(now.nanos(), nanos(ttl), 0.0);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
        let others = estimate.others.round() as u32;
        self.in_flight().saturating_add(others)
    }

    /// Seconds until a request sent now is expected to finish.
    ///
    /// `best` is the least service time in the pool, in seconds: it stands in for one that is not
    /// known, and draws one that nothing has confirmed for a while towards itself, so that every
    /// endpoint is tried again at times.
    #[inline]
    pub fn completion(&self, now: Time, ttl: Duration, best: f64) -> f64 {
        let estimate = self.estimate(now.nanos(), nanos(ttl), narrow(best));
        f64::from(estimate.completion()) + self.penalty(now)
    }

    /// The cost that pick compares, in seconds: what [`Self::completion`] says, with what it costs
    /// others to wait behind this request, and with the doubt about what cannot be seen.
    #[inline]
    pub fn cost(&self, now: Time, ttl: Duration, best: f64) -> f64 {
        self.cost_at(now.nanos(), nanos(ttl), narrow(best))
    }

    /// The same with times in nanoseconds.
    #[inline]
    pub(crate) fn cost_at(&self, now: u64, ttl: u64, best: f32) -> f64 {
        f64::from(self.estimate(now, ttl, best).cost()) + self.penalty_at(now)
    }

    /// Seconds that a request is expected to take here once it runs; `best` as for [`Self::cost`].
    pub fn expected_service(&self, now: Time, best: f64) -> f64 {
        f64::from(self.service_at(now.nanos(), narrow(best)))
    }

    #[inline]
    pub(super) fn estimate(&self, now: u64, ttl: u64, best: f32) -> LoadEstimate {
        let service = self.service_at(now, best);
        let (others, variance) = self.others_at(now, ttl, service);
        let others = others + float(self.abandoned.count(now));
        let slots = float(self.speedup().unwrap_or(1));
        LoadEstimate { ours: float(self.in_flight()), others, variance, slots, service }
    }

    /// The requests that others have there now, and the error of that estimate.
    #[inline]
    fn others_at(&self, now: u64, ttl: u64, service: f32) -> (f32, f32) {
        let at = self.reported_at.load(Relaxed);
        if at == UNKNOWN || now.saturating_sub(at) > ttl {
            return (0.0, 0.0);
        }
        if self.scatter.get() == 0.0 {
            return (self.others.get().max(0.0), 0.0);
        }
        let ages = seconds(now, at) / (REPORT_SERVICE_TIMES * service).max(1e-9);
        // Close to the exponential, and cheaper.
        let weight = 1.0 / (1.0 + ages + 0.5 * ages * ages);
        let mean = self.others.get();
        let others = mean + weight * (self.last_others.get() - mean);
        (others.max(0.0), self.scatter.get() * SCATTER_SHARE * (1.0 - weight * weight))
    }

    /// Seconds that a service takes: our own answers first, then the endpoint's word, then the best.
    #[inline]
    fn service_at(&self, now: u64, best: f32) -> f32 {
        let (own, answers) = self.service_time.believed();
        let fresh = self.freshness(now);
        let samples = answers * fresh;
        if samples > MAX_ANSWERS_BESIDE_REPORT {
            return own;
        }
        let reported = self.reported_service.get();
        let (reported, weight) = if reported > 0.0 {
            let heard = fading(seconds(now, self.reported_at.load(Relaxed)), REPORTED_HALF_LIFE);
            (best + (reported - best) * heard, REPORTED_ANSWERS)
        } else if answers > 0.0 {
            (best, REPORTED_ANSWERS * (1.0 - fresh))
        } else {
            (best, REPORTED_ANSWERS)
        };
        (own * samples + reported * weight) / (samples + weight)
    }
}
