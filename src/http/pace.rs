//! Limits how slow a client may be where an endpoint or memory waits for it.
//!
//! A timeout for each read or write bounds nothing: a byte every few seconds passes it forever. A deadline
//! for the whole refuses a transfer that is long but moves. So a client has a credit of time: waiting for it
//! spends the credit, and bytes that move earn it back at the minimum rate. A client that stalls is cut off
//! when the credit is spent, and so is one that is too slow on average.

use crate::config::Limits;
use std::future::Future;
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// The credit of one client for one direction of one request.
#[derive(Debug)]
pub struct Pace {
    /// Bytes per second.
    rate: f64,
    most: Duration,
    left: Duration,
}

/// The client was slower than it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooSlow;

impl Pace {
    /// A full credit.
    pub fn new(limits: &Limits) -> Self {
        Self { rate: limits.min_rate, most: limits.stall_timeout, left: limits.stall_timeout }
    }

    /// Waits for the client for as long as its credit lasts.
    ///
    /// # Errors
    /// The credit is spent.
    pub async fn wait<F: Future>(&mut self, what: F) -> Result<F::Output, TooSlow> {
        let started = Instant::now();
        let outcome = timeout(self.left, what).await;
        self.spend(started.elapsed());
        outcome.map_err(|_| TooSlow)
    }

    /// Takes off time for which the client was waited for.
    pub fn spend(&mut self, time: Duration) {
        self.left = self.left.saturating_sub(time);
    }

    /// Earns credit for bytes that moved.
    pub fn moved(&mut self, bytes: usize) {
        #[allow(clippy::cast_precision_loss, reason = "a pace need not be exact")]
        let earned = Duration::try_from_secs_f64(bytes as f64 / self.rate).unwrap_or(self.most);
        self.left = self.left.saturating_add(earned).min(self.most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;

    fn pace(rate: f64) -> Pace {
        let most = Duration::from_secs(10);
        Pace { rate, most, left: most }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stall_ends_when_the_credit_is_spent() {
        assert_eq!(pace(1000.0).wait(pending::<()>()).await, Err(TooSlow));
    }

    #[test]
    fn bytes_earn_time_and_no_more_than_the_credit_holds() {
        let mut pace = pace(1000.0);
        pace.left = Duration::from_secs(1);
        pace.moved(500);
        assert_eq!(pace.left, Duration::from_millis(1500));
        pace.moved(1_000_000);
        assert_eq!(pace.left, pace.most);
        pace.left = Duration::ZERO;
        pace.rate = 0.0;
        pace.moved(1);
        assert_eq!(pace.left, pace.most);
    }
}
