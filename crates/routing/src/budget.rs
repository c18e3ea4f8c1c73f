//! How many retries a pool may add to the load that it has.
//!
//! A retry helps one caller and costs everybody; when a whole pool fails, retrying everything
//! multiplies the load just when it can be carried least. The budget allows a share of the live
//! requests to be retried, and a small steady allowance so that a quiet pool can retry at all
//! (the form that Finagle made known: <https://finagle.github.io/blog/2016/02/08/retry-budgets/>).

use crate::Time;
use crate::sync::{AtomicI64, AtomicU64, Ordering::Relaxed};

/// One retry, in the unit that the balance is kept in.
const RETRY: i64 = 1000;
/// Seconds of allowance and of requests that can be saved up.
const WINDOW_SECONDS: f64 = 10.0;

/// A token bucket, filled by requests and by time, emptied by retries.
#[derive(Debug)]
pub struct RetryBudget {
    balance: AtomicI64,
    filled_at: AtomicU64,
    per_request: i64,
    per_second: f64,
    most: i64,
}

impl RetryBudget {
    /// `ratio`: retries per request (0.2 = one in five); `per_second`: retries that are allowed
    /// beside it. Starts with the allowance of the window saved up.
    #[allow(clippy::cast_possible_truncation, reason = "configuration bounds both")]
    pub fn new(ratio: f64, per_second: f64) -> Self {
        let per_second = per_second.max(0.0) * RETRY as f64;
        let saved = (per_second * WINDOW_SECONDS) as i64;
        // A busy pool may save up what 1,000 requests bring; beyond that, a burst of retries
        // would be as bad as none were bounded.
        let per_request = (ratio.max(0.0) * RETRY as f64) as i64;
        Self {
            balance: AtomicI64::new(saved),
            filled_at: AtomicU64::new(0),
            per_request,
            per_second,
            most: saved + 1000 * per_request,
        }
    }

    /// Takes in that a request arrived.
    pub fn request(&self) {
        if self.balance.load(Relaxed) < self.most {
            self.balance.fetch_add(self.per_request, Relaxed);
        }
    }

    /// May one retry be sent now? If so it is paid for.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "nanoseconds of at most the window, times a bounded rate"
    )]
    pub fn try_retry(&self, now: Time) -> bool {
        let before = self.filled_at.load(Relaxed);
        let elapsed = now.nanos().saturating_sub(before) as f64 / 1e9;
        let mut earned = (elapsed.min(WINDOW_SECONDS) * self.per_second) as i64;
        // Time that earned nothing yet is kept; time that another thread has cashed is not ours.
        let next = now.nanos();
        if earned == 0 || self.filled_at.compare_exchange(before, next, Relaxed, Relaxed).is_err() {
            earned = 0;
        }
        let change = |balance: i64| {
            let filled = (balance + earned).min(self.most.max(balance));
            Some(if filled >= RETRY { filled - RETRY } else { filled })
        };
        let before = self.balance.fetch_update(Relaxed, Relaxed, change).unwrap_or_else(|b| b);
        (before + earned).min(self.most.max(before)) >= RETRY
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(seconds: u64) -> Time {
        Time::new(Duration::from_secs(seconds))
    }

    fn allowed(budget: &RetryBudget, now: Time) -> usize {
        (0..100_000).take_while(|_| budget.try_retry(now)).count()
    }

    #[test]
    fn a_share_of_the_requests_may_be_retried() {
        let budget = RetryBudget::new(0.2, 0.0);
        assert_eq!(allowed(&budget, at(1)), 0);
        for _ in 0..100 {
            budget.request();
        }
        assert_eq!(allowed(&budget, at(1)), 20);
    }

    #[test]
    fn a_quiet_pool_has_a_steady_allowance() {
        let budget = RetryBudget::new(0.2, 2.0);
        assert_eq!(allowed(&budget, at(0)), 20);
        assert_eq!(allowed(&budget, at(3)), 6);
        assert_eq!(allowed(&budget, at(1000)), 20, "saved up over the window, no further");
    }

    #[test]
    fn what_is_saved_up_is_bounded() {
        let budget = RetryBudget::new(0.2, 1.0);
        for _ in 0..1_000_000 {
            budget.request();
        }
        let retries = allowed(&budget, at(0));
        assert!(retries <= 211, "{retries}");
    }
}
