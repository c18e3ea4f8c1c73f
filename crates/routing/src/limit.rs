//! How many requests an endpoint can take at once that does not say so.
//!
//! A limit that falls when latency rises (Vegas, gradients) throttles what is healthy: an endpoint that
//! joins requests takes longer for more of them, and is the faster for it. What shows that an endpoint
//! is full is that more requests there no longer mean more answers a second. So latency is read by how
//! many were there, in levels that double, and from level to level it is asked whether the throughput
//! (requests there by how long they take, by Little's law) still grows. The first level that brings
//! nothing is beyond the limit, which is so found within a factor of two: rather too high than too low,
//! since too much only waits there. A little more than the limit is allowed, so that an endpoint that
//! has grown is found out.

use crate::speed::Float;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Levels: 1, 2, 3-4, 5-8, … 257-512, more.
const LEVELS: usize = 11;
/// Answers in a level before it is believed, and in the mean of it at most.
const ENOUGH: u32 = 30;
const MEMORY: u32 = 200;
/// A level is worth having that brings so many times the throughput of the one below, of which it has
/// up to twice the requests.
const WORTH: f32 = 1.15;
/// What is allowed beyond the limit: a quarter, and one.
const BEYOND: u32 = 4;

/// What is learnt of one endpoint.
#[derive(Debug, Default)]
pub(crate) struct Learnt {
    levels: [Level; LEVELS],
    /// Requests at once beyond which nothing is gained; 0: not known.
    limit: AtomicU32,
}

#[derive(Debug, Default)]
struct Level {
    answers: AtomicU32,
    present: Float,
    seconds: Float,
}

impl Learnt {
    /// Requests at once, if that is known.
    pub(crate) fn limit(&self) -> Option<u32> {
        let limit = self.limit.load(Relaxed);
        (limit > 0).then_some(limit)
    }

    /// A request took so many `seconds` where so many were `present`, itself among them.
    pub(crate) fn learn(&self, present: u32, seconds: f32) {
        let at = level_of(present);
        let level = &self.levels[at];
        let answers = level.answers.load(Relaxed).saturating_add(1).min(MEMORY);
        level.answers.store(answers, Relaxed);
        #[allow(clippy::cast_precision_loss, reason = "counts of requests are far below 2^24")]
        let (weight, present) = (1.0 / answers as f32, present as f32);
        level.present.draw(present, weight);
        level.seconds.draw(seconds, weight);
        // Not for every answer: it is a walk over all levels, and nothing changes so fast.
        if answers.is_multiple_of(8) {
            self.limit.store(self.found().unwrap_or(0), Relaxed);
        }
    }

    /// The top of the last level that was worth it, if the one above it was not.
    fn found(&self) -> Option<u32> {
        let mut best: Option<(u32, f32)> = None;
        for (at, level) in self.levels.iter().enumerate() {
            if level.answers.load(Relaxed) < ENOUGH {
                continue;
            }
            let throughput = level.present.get() / level.seconds.get().max(f32::MIN_POSITIVE);
            match best {
                Some((top, least)) if throughput < least * WORTH => {
                    return Some(top.saturating_add(top / BEYOND).saturating_add(1));
                }
                _ => best = Some((1 << at, throughput)),
            }
        }
        None
    }
}

/// The level of so many requests: the least power of two that holds them.
fn level_of(present: u32) -> usize {
    let level = present.max(1).next_power_of_two().trailing_zeros() as usize;
    level.min(LEVELS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Latency of an endpoint with `slots` and a queue, where so many are present.
    fn queueing(slots: f32) -> impl Fn(f32) -> f32 {
        move |present| 0.02 * (present / slots).max(1.0)
    }

    fn learnt(latency: impl Fn(f32) -> f32, most: u32) -> Option<u32> {
        let learnt = Learnt::default();
        for _ in 0..50 {
            for present in 1..=most {
                #[allow(clippy::cast_precision_loss, reason = "small")]
                learnt.learn(present, latency(present as f32));
            }
        }
        learnt.limit()
    }

    #[test]
    fn the_limit_is_found_where_more_requests_bring_nothing() {
        for (slots, at_most) in [(1.0, 2), (4.0, 6), (16.0, 41), (100.0, 161)] {
            let found = learnt(queueing(slots), 400);
            // At most twice the slots, and what is allowed beyond.
            assert_eq!(found, Some(at_most), "{slots}");
        }
        assert_eq!(learnt(queueing(8.0), 8), None, "it was never full");
    }

    #[test]
    fn batches_that_take_longer_are_no_congestion() {
        // A batch of n takes 10 ms and 1 ms for each, up to 32; then batches queue.
        let batches = |present: f32| {
            let batch = present.min(32.0);
            (0.010 + 0.001 * batch) * (present / 32.0).max(1.0)
        };
        assert_eq!(learnt(batches, 300), Some(41));
    }
}
