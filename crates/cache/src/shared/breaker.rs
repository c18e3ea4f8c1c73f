//! Whether a shared store is worth asking.
//!
//! A store that is away or slow would cost each request its time-out. After a few failures it is not asked any more,
//! until it has answered a probe that no request waits for. Failures weigh more than successes, so that a store that
//! fails now and then is given up as well, at one failure in five.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

/// Weight of a failure; a success has 1.
const FAILURE: u32 = 4;
/// At this weight the breaker opens: after five failures in a row.
const OPEN: u32 = 5 * FAILURE;
/// Weight that is left when it closes: one that fails again is soon given up again.
const AFTER: u32 = 3 * FAILURE;

/// Opens while a store fails.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    weight: AtomicU32,
    is_open: AtomicBool,
    opened: AtomicU64,
}

impl Breaker {
    /// One that is open: nothing is known of the store yet.
    pub(super) fn open() -> Self {
        Self { is_open: AtomicBool::new(true), ..Self::default() }
    }

    /// Whether the store is not to be asked.
    pub(super) fn is_open(&self) -> bool {
        self.is_open.load(Relaxed)
    }

    /// Number of times that it has opened.
    pub(super) fn opened(&self) -> u64 {
        self.opened.load(Relaxed)
    }

    /// Notes that the store has answered a request in time, or that it has not.
    pub(super) fn note(&self, is_answered: bool) {
        if is_answered {
            // Most of the time there is nothing to write, and threads share this line of memory.
            if self.weight.load(Relaxed) > 0 {
                let less = |weight: u32| weight.checked_sub(1);
                let _ = self.weight.fetch_update(Relaxed, Relaxed, less);
            }
            return;
        }
        let more = |weight: u32| Some((weight + FAILURE).min(OPEN));
        let before = self.weight.fetch_update(Relaxed, Relaxed, more).unwrap_or(0);
        if before + FAILURE >= OPEN && !self.is_open.swap(true, Relaxed) {
            self.opened.fetch_add(1, Relaxed);
        }
    }

    /// Notes that the store has answered a probe in time.
    pub(super) fn close(&self) {
        if self.is_open.load(Relaxed) {
            self.weight.store(AFTER, Relaxed);
            self.is_open.store(false, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failures_until_open(breaker: &Breaker, successes_between: u32) -> Option<u32> {
        (1..1000).find(|_| {
            (0..successes_between).for_each(|_| breaker.note(true));
            breaker.note(false);
            breaker.is_open()
        })
    }

    #[test]
    fn it_opens_at_a_few_failures_in_a_row_or_many_among_successes() {
        for (between, expected) in [(0, Some(5)), (1, Some(7)), (3, Some(17)), (4, None)] {
            let breaker = Breaker::default();
            assert_eq!(failures_until_open(&breaker, between), expected, "{between}");
            assert_eq!(breaker.opened(), u64::from(expected.is_some()));
        }
    }

    #[test]
    fn it_closes_with_a_probe_and_opens_again_sooner() {
        let breaker = Breaker::open();
        breaker.note(true);
        assert!(breaker.is_open(), "late answers to others close nothing");
        breaker.close();
        assert!(!breaker.is_open());
        assert_eq!(failures_until_open(&breaker, 0), Some(2));
        breaker.close();
        (0..100).for_each(|_| breaker.note(true));
        assert_eq!(failures_until_open(&breaker, 0), Some(5));
        assert_eq!(breaker.opened(), 2);
    }
}
