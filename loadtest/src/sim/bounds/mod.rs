//! The best that is possible with a fleet, over requests whose times and work are known.
//!
//! Pure functions over lists: what was simulated and what an access log recorded are compared with the same bounds.

pub mod log;
pub(super) mod simulated;

use crate::report::fleet::Level;
use crate::report::times::Times;
use crate::units::{float, nanos_of};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

/// A request, in nanoseconds; work at the speed of an endpoint that is not slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// Its arrival.
    pub at: u64,
    /// The time that it takes alone.
    pub alone: u64,
    /// The part that it adds to the work of a slot that is always busy: less than that where requests are served together.
    pub work: u64,
    /// The time after which it is given up.
    pub patience: u64,
    /// Whether it is measured; others only take their part of the endpoints.
    pub is_measured: bool,
}

/// An endpoint.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Server {
    /// Requests that it serves at once.
    pub slots: u32,
    /// Its services take so many times as long.
    pub slow: f64,
}

/// Latencies of a level while it is computed.
#[derive(Default)]
struct Tally {
    latency: Times,
    lost: u64,
}

impl Tally {
    fn add(&mut self, ask: &Ask, took: u64) {
        if !ask.is_measured {
            return;
        }
        if took > ask.patience {
            self.lost += 1;
        } else {
            self.latency.add(Duration::from_nanos(took));
        }
    }

    fn level(&self) -> Level {
        Level::new(&self.latency, self.lost)
    }
}

/// Every request begins at once, at the fastest of `servers`, and is `way` nanoseconds on its way.
pub fn ideal(asks: &[Ask], servers: &[Server], way: u64) -> Level {
    let fastest = fastest(servers);
    let mut tally = Tally::default();
    for ask in asks {
        tally.add(ask, scaled(ask.alone, fastest) + way);
    }
    tally.level()
}

/// All slots are one server, as fast as all of them together, first come, first served. No request is faster than
/// in [`ideal`], and one that can't be in time is not begun.
pub fn capacity(asks: &[Ask], servers: &[Server], way: u64) -> Level {
    let (fastest, speed) = (fastest(servers), speed(servers).max(f64::MIN_POSITIVE));
    let (mut backlog, mut now) = (0.0, 0);
    let mut tally = Tally::default();
    for ask in asks {
        backlog = (backlog - float(ask.at - now) * speed).max(0.0);
        now = ask.at;
        let done = nanos(backlog / speed + float(ask.work) / speed);
        let took = done.max(scaled(ask.alone, fastest)).saturating_add(way);
        if took <= ask.patience {
            backlog += float(ask.work);
        }
        tally.add(ask, took);
    }
    tally.level()
}

/// Each request goes to the one of `servers` where it will be finished first, by all that is there and will be: the
/// rest of every service is known. One that can't be in time anywhere goes nowhere.
pub fn perfect(asks: &[Ask], servers: &[Server], way: u64) -> Level {
    let mut free: Vec<BinaryHeap<Reverse<u64>>> = servers
        .iter()
        // More slots than requests make no difference, however many a log states.
        .map(|server| {
            let slots = usize::try_from(server.slots.max(1)).unwrap_or(usize::MAX);
            (0..slots.min(asks.len().max(1))).map(|_| Reverse(0)).collect()
        })
        .collect();
    let mut tally = Tally::default();
    for ask in asks {
        let finish = |(server, free): (&Server, &BinaryHeap<Reverse<u64>>)| {
            let begins = free.peek().map_or(0, |Reverse(at)| *at).max(ask.at);
            begins.saturating_add(scaled(ask.alone, server.slow))
        };
        let all = servers.iter().zip(&free).map(finish).enumerate();
        let Some((best, end)) = all.min_by_key(|(_, end)| *end) else { continue };
        let took = (end - ask.at).saturating_add(way);
        if took <= ask.patience {
            free[best].pop();
            free[best].push(Reverse(end));
        }
        tally.add(ask, took);
    }
    tally.level()
}

/// The work as a share of what `servers` can do between the first and the last arrival.
pub fn load(asks: &[Ask], servers: &[Server]) -> f64 {
    let (Some(first), Some(last)) = (asks.first(), asks.last()) else { return 0.0 };
    // The last one begins the stretch that would come next.
    let work: f64 = asks[..asks.len() - 1].iter().map(|ask| float(ask.work)).sum();
    let time = float(last.at - first.at) * speed(servers);
    if time > 0.0 { work / time } else { 0.0 }
}

fn fastest(servers: &[Server]) -> f64 {
    let least = servers.iter().map(|server| server.slow).fold(f64::INFINITY, f64::min);
    if least.is_finite() { least } else { 1.0 }
}

/// Seconds of work at usual speed that are done in a second.
fn speed(servers: &[Server]) -> f64 {
    servers.iter().map(|server| f64::from(server.slots) / server.slow).sum()
}

fn scaled(work: u64, slow: f64) -> u64 {
    if slow == 1.0 { work } else { nanos(float(work) * slow) }
}

fn nanos(value: f64) -> u64 {
    nanos_of(value / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn asks(at: &[u64], takes: u64) -> Vec<Ask> {
        let ask = |at: &u64| Ask {
            at: at * MS,
            alone: takes * MS,
            work: takes * MS,
            patience: u64::MAX,
            is_measured: true,
        };
        at.iter().map(ask).collect()
    }

    fn servers(slow: &[f64]) -> Vec<Server> {
        slow.iter().map(|slow| Server { slots: 1, slow: *slow }).collect()
    }

    /// In milliseconds.
    fn has_mean(level: &Level, expected: f64) {
        let found = level.latency.mean * 1e3;
        assert!((found - expected).abs() < 0.1, "{found}, not {expected}");
    }

    #[test]
    fn each_level_adds_a_cause_of_waiting() {
        // Four at once, of 10 ms each, at two slots.
        let (asks, two) = (asks(&[0, 0, 0, 0], 10), servers(&[1.0, 1.0]));
        has_mean(&ideal(&asks, &two, 0), 10.0);
        // 10, 10, 15 and 20: the pooled server is twice as fast, but none is faster than alone.
        has_mean(&capacity(&asks, &two, 0), 13.75);
        // 10, 10, 20 and 20.
        has_mean(&perfect(&asks, &two, 0), 15.0);
        has_mean(&perfect(&asks, &two, MS), 16.0);
    }

    #[test]
    fn perfect_routing_waits_for_a_fast_endpoint_as_long_as_that_is_sooner() {
        let mixed = servers(&[1.0, 2.5]);
        // 10 and 20 at the fast one; the third is sooner done at the slow one.
        has_mean(&perfect(&asks(&[0, 0], 10), &mixed, 0), 15.0);
        has_mean(&perfect(&asks(&[0, 0, 0], 10), &mixed, 0), 18.33);
        has_mean(&ideal(&asks(&[0, 0], 10), &servers(&[2.0, 2.5]), 0), 20.0);
    }

    #[test]
    fn more_than_can_be_done_is_lost_at_every_level_but_the_ideal() {
        let times: Vec<u64> = (0..1000).map(|number| number * 5).collect();
        let mut asks = asks(&times, 10);
        asks.iter_mut().for_each(|ask| ask.patience = 30 * MS);
        let one = servers(&[1.0]);
        assert!((load(&asks, &one) - 2.0).abs() < 1e-9);
        assert_eq!(ideal(&asks, &one, 0).lost, 0.0);
        for level in [capacity(&asks, &one, 0), perfect(&asks, &one, 0)] {
            assert!((level.lost - 0.5).abs() < 0.01, "{}", level.lost);
            assert!(level.latency.max <= 0.0301);
        }
        asks.iter_mut().take(500).for_each(|ask| ask.is_measured = false);
        assert_eq!(ideal(&asks, &one, 0).latency.count, 500);
    }

    #[test]
    fn nothing_is_compared_where_nothing_came() {
        assert_eq!(load(&[], &[]), 0.0);
        assert_eq!(perfect(&[], &servers(&[1.0]), 0).latency.count, 0);
        assert_eq!(load(&asks(&[3], 10), &servers(&[1.0])), 0.0);
    }
}
