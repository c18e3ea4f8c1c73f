//! Work that an endpoint goes on with though its client no longer waits.
//!
//! A model that runs can't be stopped: a request whose deadline has come is answered with a refusal, but its
//! slot stays busy until the work is done. To count it out at once is to send the next request behind it,
//! which is then late in turn, and so on: under tight deadlines an endpoint with one slot does nothing but
//! late work. No answer tells when such a slot is free. So each one counts as there until, by the times that
//! services of this pool take, it is more likely done than not, or until a report says that it is.

use crate::Time;
use crate::sync::{AtomicU64, Ordering::Relaxed};
use std::sync::OnceLock;

/// Pieces of work that are known one by one; of more, the last to be done.
const MAX_KNOWN: usize = 32;

/// See above. Relaxed atomics: of two that are given up at the same moment one may be lost.
#[derive(Debug, Default)]
pub(super) struct Abandoned {
    /// Time at which the last of them is likely done, in nanoseconds on the clock of [`Time`]; 0: there was
    /// none.
    last: AtomicU64,
    /// The same for each.
    each: OnceLock<Box<[AtomicU64; MAX_KNOWN]>>,
}

impl Abandoned {
    /// One more, which is likely done at `until`.
    pub(super) fn add(&self, until: Time) {
        let each = self.each.get_or_init(|| Box::new(std::array::from_fn(|_| AtomicU64::new(0))));
        if let Some(soonest) = each.iter().min_by_key(|done| done.load(Relaxed)) {
            soonest.fetch_max(until.nanos(), Relaxed);
        }
        self.last.fetch_max(until.nanos(), Relaxed);
    }

    /// Number of them that are likely there at `now`, in nanoseconds on the clock of [`Time`].
    #[inline]
    pub(super) fn count(&self, now: u64) -> u32 {
        if self.last.load(Relaxed) <= now {
            return 0;
        }
        let there = |each: &[AtomicU64; MAX_KNOWN]| {
            each.iter().map(|done| u32::from(done.load(Relaxed) > now)).sum()
        };
        self.each.get().map_or(0, |each| there(each))
    }

    /// Is nothing of it likely there after this moment, in nanoseconds on the clock of [`Time`]?
    pub(super) fn is_over(&self, by: u64) -> bool {
        self.last.load(Relaxed) <= by
    }

    /// The endpoint has said at `now` that it has at most so many.
    pub(super) fn at_most(&self, most: u32, now: u64) {
        let Some(each) = self.each.get() else { return };
        for _ in most..self.count(now) {
            let there = each.iter().filter(|done| done.load(Relaxed) > now);
            if let Some(soonest) = there.min_by_key(|done| done.load(Relaxed)) {
                soonest.store(0, Relaxed);
            }
        }
        if most == 0 {
            self.last.store(0, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(millis: u64) -> Time {
        Time::new(Duration::from_millis(millis))
    }

    fn count(abandoned: &Abandoned, millis: u64) -> u32 {
        abandoned.count(at(millis).nanos())
    }

    #[test]
    fn each_counts_until_it_is_likely_done() {
        let abandoned = Abandoned::default();
        assert_eq!(count(&abandoned, 0), 0);
        abandoned.add(at(10));
        abandoned.add(at(20));
        assert_eq!([5, 10, 15, 20].map(|millis| count(&abandoned, millis)), [2, 1, 1, 0]);
    }

    #[test]
    fn a_report_is_believed_more() {
        let abandoned = Abandoned::default();
        [10, 20, 30].into_iter().for_each(|millis| abandoned.add(at(millis)));
        abandoned.at_most(3, at(5).nanos());
        assert_eq!(count(&abandoned, 5), 3);
        abandoned.at_most(1, at(5).nanos());
        assert_eq!([5, 29, 30].map(|millis| count(&abandoned, millis)), [1, 1, 0]);
        abandoned.at_most(0, at(5).nanos());
        assert_eq!(count(&abandoned, 5), 0);
    }

    #[test]
    fn more_than_can_be_known_one_by_one_take_no_more_memory() {
        let abandoned = Abandoned::default();
        (1..=1000).for_each(|millis| abandoned.add(at(millis)));
        assert_eq!(count(&abandoned, 0), 32);
        assert_eq!(count(&abandoned, 999), 1);
        assert_eq!(count(&abandoned, 1000), 0);
    }
}
