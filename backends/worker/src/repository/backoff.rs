//! The times at which models are loaded again after a failure that may pass.
//!
//! No other event would trigger it: their files have not changed, and a version that failed is not asked
//! for. The reason may stay, and then each attempt costs as much as a load. So the time between them
//! doubles.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Time to the first new attempt.
const MIN_WAIT: Duration = Duration::from_secs(1);
/// Longest time between two.
const MAX_WAIT: Duration = Duration::from_secs(300);

/// Models that are to be loaded again, by name: when, unless that has begun, and how long after the
/// last attempt.
#[derive(Debug, Default)]
pub(crate) struct ReloadBackoff(HashMap<String, (Option<Instant>, Duration)>);

impl ReloadBackoff {
    /// An attempt failed, for a reason that may pass.
    pub(crate) fn put_off(&mut self, name: &str, now: Instant) {
        let before = self.0.get(name).map(|(_, wait)| *wait * 2);
        let wait = before.map_or(MIN_WAIT, |wait| wait.min(MAX_WAIT));
        self.0.insert(name.to_owned(), (Some(now + wait), wait));
    }

    /// There is no need any more.
    pub(crate) fn forget(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// Whether it is to be loaded again, now or later.
    pub(crate) fn awaits(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The time at which the first of them is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.0.values().filter_map(|(at, _)| *at).min()
    }

    /// Those that are due, each told once: what becomes of the attempt puts it off or forgets it.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<String> {
        let due = self.0.iter_mut().filter(|(_, (at, _))| at.is_some_and(|at| at <= now));
        due.map(|(name, (at, _))| (name.clone(), *at = None).0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_wait_is_twice_the_one_before_up_to_a_bound_until_it_is_over() {
        let (mut backoff, mut now) = (ReloadBackoff::default(), Instant::now());
        assert_eq!(backoff.next(), None);
        let mut waits = Vec::new();
        for _ in 0..11 {
            backoff.put_off("m", now);
            let at = backoff.next().unwrap_or(now);
            assert!(backoff.awaits("m") && backoff.due(at - MIN_WAIT / 2).is_empty());
            assert_eq!(backoff.due(at), ["m"]);
            waits.push((at - now).as_secs());
            now = at;
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert_eq!((backoff.due(now), backoff.next()), (Vec::new(), None), "each is told once");
        backoff.put_off("n", now);
        assert_eq!(backoff.due(now + MIN_WAIT), ["n"], "each has a time of its own");
        backoff.forget("m");
        assert!(!backoff.awaits("m"));
        backoff.put_off("m", now);
        assert_eq!(backoff.next(), Some(now + MIN_WAIT), "from the start");
    }
}
