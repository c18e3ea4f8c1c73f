//! The number of retries that a pool may add to its load.
//!
//! A retry helps one client and costs all others; when a whole pool fails, retrying every request multiplies
//! the load just when it can be carried least. So retries are paid for by answers: each good answer earns a
//! share of one retry (as in gRPC's retry throttling, proposal A6), and a pool without answers earns
//! nothing. The balance fades as time passes, so that a burst is at most as large as a few seconds of good
//! answers have paid for; a small reserve lets a quiet pool retry at all.
//!
//! The balance is not spent on a pool that is gone: a retry that fails, too, is charged again, and each
//! further one in a row once more than the one before it, until any answer comes. The balance of a thousand
//! answers is then gone after fourteen such retries instead of a hundred, while the loss of one endpoint,
//! where retries succeed, may use all of it.

use crate::Time;
use crate::sync::{AtomicI64, AtomicU32, AtomicU64, Ordering::Relaxed};

/// One retry, in the unit that the balance is kept in.
const RETRY: i64 = 1000;
/// Seconds after which what was earned beyond the reserve is worth 1/e, and seconds of allowance
/// that can be saved up.
const WINDOW_SECONDS: f64 = 10.0;
/// Nanoseconds between two settlements of the account for the time that has passed.
const MIN_SETTLE_INTERVAL: u64 = 50_000_000;
/// Retries that are saved up from the start: the requests that one endpoint of a quiet pool takes
/// with it when it is killed.
const RESERVE: i64 = 10 * RETRY;
/// Requests whose share of hedges can be saved up.
const HEDGED_REQUESTS: i64 = 1000;

/// A token bucket, filled by good answers, emptied by retries.
#[derive(Debug)]
pub struct RetryBudget {
    balance: AtomicI64,
    /// Time until which the account is settled, in nanoseconds.
    settled_at: AtomicU64,
    /// Retries that failed since the last good answer.
    failed: AtomicU32,
    per_answer: i64,
    per_second: f64,
    reserve: i64,
    max_balance: i64,
}

impl RetryBudget {
    /// `ratio`: retries per good answer (0.1 = one in ten); `per_second`: retries that are allowed
    /// beside it, as long as retries are answered. Starts with the reserve, and with the allowance of
    /// the window saved up. A budget of nothing allows nothing.
    #[allow(clippy::cast_possible_truncation, reason = "configuration bounds both")]
    pub fn new(ratio: f64, per_second: f64) -> Self {
        let (ratio, per_second) = (ratio.max(0.0), per_second.max(0.0) * RETRY as f64);
        let quiet = if ratio > 0.0 { RESERVE } else { 0 };
        let reserve = quiet.max((per_second * WINDOW_SECONDS) as i64);
        Self {
            balance: AtomicI64::new(reserve),
            settled_at: AtomicU64::new(0),
            failed: AtomicU32::new(0),
            per_answer: (ratio * RETRY as f64) as i64,
            per_second,
            reserve,
            max_balance: i64::MAX,
        }
    }

    /// A budget for second attempts beside slow ones: no reserve, and a burst of what 1,000 requests
    /// earn.
    pub fn for_hedges(ratio: f64) -> Self {
        let budget = Self::new(ratio, 0.0);
        let max_balance = HEDGED_REQUESTS * budget.per_answer;
        Self { balance: AtomicI64::new(0), reserve: max_balance, max_balance, ..budget }
    }

    /// Takes in a good answer at `now`: it earns its share of a retry.
    pub fn earn(&self, now: Time) {
        if self.failed.load(Relaxed) != 0 {
            self.failed.store(0, Relaxed);
        }
        self.settle(now);
        if self.balance.load(Relaxed) < self.max_balance {
            self.balance.fetch_add(self.per_answer, Relaxed);
        }
    }

    /// Whether one retry may be sent now. If so it is paid for.
    pub fn try_retry(&self, now: Time) -> bool {
        self.settle(now);
        let pay = |balance: i64| (balance >= RETRY).then(|| balance - RETRY);
        self.balance.fetch_update(Relaxed, Relaxed, pay).is_ok()
    }

    /// Takes a retry back that was paid for and not sent.
    pub fn refund(&self) {
        self.balance.fetch_add(RETRY, Relaxed);
    }

    /// Takes in that a retry failed too: it has cost the pool more than it was worth.
    pub fn retry_failed(&self) {
        let in_a_row = i64::from(self.failed.fetch_add(1, Relaxed)) + 1;
        let charge = |balance: i64| Some((balance - in_a_row * RETRY).max(0));
        self.balance.fetch_update(Relaxed, Relaxed, charge).ok();
    }

    /// The balance beyond the reserve fades with time, and the allowance comes in.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "a balance needs no more than fifteen digits, and elapsed time is bounded"
    )]
    fn settle(&self, now: Time) {
        let before = self.settled_at.load(Relaxed);
        let elapsed = now.nanos().saturating_sub(before);
        // Time that another thread has settled is not ours.
        if elapsed < MIN_SETTLE_INTERVAL
            || self.settled_at.compare_exchange(before, now.nanos(), Relaxed, Relaxed).is_err()
        {
            return;
        }
        let seconds = elapsed as f64 / 1e9;
        // While retries fail, an allowance would only add to the load of a pool that is gone.
        let works = self.failed.load(Relaxed) == 0;
        let allowance = if works { seconds.min(WINDOW_SECONDS) * self.per_second } else { 0.0 };
        let settled = |balance: i64| {
            let filled = (balance + allowance as i64).min(self.reserve.max(balance));
            let beyond = (filled - self.reserve).max(0);
            let kept = beyond as f64 * (-seconds / WINDOW_SECONDS).exp();
            Some(filled - beyond + kept as i64)
        };
        self.balance.fetch_update(Relaxed, Relaxed, settled).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(seconds: f64) -> Time {
        Time::new(Duration::from_secs_f64(seconds))
    }

    fn allowed(budget: &RetryBudget, now: Time) -> usize {
        (0..100_000).take_while(|_| budget.try_retry(now)).count()
    }

    /// Some seconds with a rate of good answers.
    fn works(budget: &RetryBudget, from: f64, seconds: f64, rate: f64) {
        let mut now = from;
        while now < from + seconds {
            budget.earn(at(now));
            now += 1.0 / rate;
        }
    }

    /// Attempts for each request where nothing is answered for so many seconds.
    fn fails(budget: &RetryBudget, from: f64, seconds: f64, rate: f64) -> f64 {
        let (mut now, mut requests, mut attempts) = (from, 0, 0);
        while now < from + seconds {
            requests += 1;
            attempts += 1;
            // Three attempts, each of which takes 20 ms.
            for retry in 1..3 {
                if !budget.try_retry(at(now + f64::from(retry) * 0.02)) {
                    break;
                }
                attempts += 1;
                budget.retry_failed();
            }
            now += 1.0 / rate;
        }
        f64::from(attempts) / f64::from(requests)
    }

    #[test]
    fn a_share_of_the_answers_may_be_retried() {
        let budget = RetryBudget::new(0.2, 0.0);
        assert_eq!(allowed(&budget, at(1.0)), 10, "the reserve");
        for _ in 0..100 {
            budget.earn(at(1.0));
        }
        assert_eq!(allowed(&budget, at(1.0)), 20);
    }

    #[test]
    fn a_pool_that_fails_everything_gets_hardly_more_than_is_offered() {
        for rate in [5.0, 20.0, 100.0, 500.0, 2000.0] {
            let cold = fails(&RetryBudget::new(0.2, 0.0), 0.0, 10.0, rate);
            let budget = RetryBudget::new(0.2, 0.0);
            works(&budget, 0.0, 60.0, rate);
            let warm = fails(&budget, 60.0, 10.0, rate);
            assert!(cold <= 1.1 && warm <= 1.1, "{rate}/s: {cold}, {warm}");
        }
    }

    #[test]
    fn an_allowance_is_not_paid_to_a_pool_that_fails_everything() {
        let budget = RetryBudget::new(0.1, 10.0);
        works(&budget, 0.0, 60.0, 5.0);
        let ratio = fails(&budget, 60.0, 60.0, 5.0);
        assert!(ratio <= 1.1, "{ratio}");
    }

    #[test]
    fn what_a_lost_endpoint_takes_with_it_is_retried_at_any_rate() {
        // A third of what comes in half a second fails, and its retries are answered.
        for (rate, lost) in [(1.0, 1), (5.0, 1), (50.0, 9), (2000.0, 334)] {
            let budget = RetryBudget::new(0.1, 0.0);
            works(&budget, 0.0, 30.0, rate);
            for _ in 0..lost {
                assert!(budget.try_retry(at(30.0)), "{rate}/s");
                budget.earn(at(30.0));
            }
        }
    }

    #[test]
    fn where_half_of_all_attempts_fail_retries_stay_within_their_share() {
        let budget = RetryBudget::new(0.1, 0.0);
        works(&budget, 0.0, 30.0, 100.0);
        let (mut attempts, mut turn) = (0, 0);
        for number in 0..3000 {
            for retry in 0..3 {
                let now = at(30.0 + f64::from(number) * 0.01);
                if retry > 0 && !budget.try_retry(now) {
                    break;
                }
                attempts += 1;
                turn = (turn * 5 + 3) % 16;
                if turn % 8 < 4 {
                    budget.earn(now);
                    break;
                }
                if retry > 0 {
                    budget.retry_failed();
                }
            }
        }
        assert!(attempts <= 3300, "{attempts} for 3000");
    }

    #[test]
    fn a_quiet_pool_has_a_steady_allowance_if_it_is_given_one() {
        let budget = RetryBudget::new(0.2, 2.0);
        assert_eq!(allowed(&budget, at(0.0)), 20);
        assert_eq!(allowed(&budget, at(3.0)), 6);
        assert_eq!(allowed(&budget, at(1000.0)), 20, "saved up over the window, no further");
    }

    #[test]
    fn a_budget_of_nothing_allows_nothing() {
        let budget = RetryBudget::new(0.0, 0.0);
        works(&budget, 0.0, 10.0, 100.0);
        assert_eq!(allowed(&budget, at(10.0)), 0);
    }

    #[test]
    fn what_is_saved_up_is_bounded() {
        let budget = RetryBudget::new(0.2, 0.0);
        works(&budget, 0.0, 100.0, 1000.0);
        let retries = allowed(&budget, at(100.0));
        assert!((1900..=2100).contains(&retries), "ten seconds of 200 a second: {retries}");
        let hedges = RetryBudget::for_hedges(0.03);
        assert_eq!(allowed(&hedges, at(0.0)), 0, "no reserve");
        works(&hedges, 0.0, 100.0, 1000.0);
        let saved = allowed(&hedges, at(100.0));
        assert!((29..=31).contains(&saved), "{saved}");
    }
}
