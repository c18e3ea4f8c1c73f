//! How long the requests of a pool wait, and how long they would wait with perfect routing.
//!
//! When requests are slow, an operator has to know whether machines are missing or whether the proxy uses those that
//! are there badly. No request can tell: its own time has no parts, and a stamp on each would cost every request
//! something. By Little's law it is enough to look at times at how many requests wait and how many are served: divided by
//! the rate of answers, these numbers are the mean times that a request waits and is served.
//!
//! With perfect routing, as from one queue before all slots, a request waits only while all slots are taken. So of the
//! requests that wait at a moment as many need not as slots are free at that moment; the others would wait all the same.
//! Where endpoints differ in speed, a request may do well to wait beside a free slot of a slow one; that counts
//! as a wait that routing could avoid.

use crate::{Load, Time};
use std::time::Duration;

/// Half-life of what was seen, in seconds.
const HALF_LIFE: f64 = 30.0;
/// The longest time for which one look stands: after a longer pause nothing is known of the time between.
const MAX_GAP: Duration = Duration::from_secs(1);
/// Answers below which there is no estimate.
const MIN_ANSWERS: f64 = 50.0;
/// Share of the service below which a wait is not worth a change.
const MIN_WAIT_SHARE: f64 = 0.1;

/// Numbers of requests of a pool at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Counts {
    /// Waiting in this proxy.
    pub queued: f64,
    /// Sent by this proxy and waiting at endpoints, as far as slots are known.
    pub behind: f64,
    /// Sent by this proxy and served.
    pub served: f64,
    /// Slots that are taken, by anyone.
    pub taken: f64,
    /// All slots; 0 if those of an endpoint in use are not known.
    pub slots: f64,
}

impl Counts {
    /// Adds an endpoint; a report older than `ttl` is not believed.
    pub fn add(&mut self, load: &Load, now: Time, ttl: Duration) {
        let ours = f64::from(load.in_flight());
        let there = f64::from(load.occupancy(now, ttl));
        let Some(slots) = load.known_slots().map(f64::from) else {
            self.slots = f64::NAN;
            self.served += ours;
            return;
        };
        let waits = if there > slots { ours * (there - slots) / there } else { 0.0 };
        self.behind += waits;
        self.served += ours - waits;
        self.taken += there.min(slots);
        self.slots += slots;
    }

    /// Requests that would wait with perfect routing, of those that do.
    fn remains(&self) -> f64 {
        let remains = self.queued + self.behind - (self.slots - self.taken);
        if remains.is_nan() { remains } else { remains.max(0.0) }
    }
}

/// Looks at a pool, over the last half minute or so.
#[derive(Debug, Default)]
pub struct PoolWaits {
    last: Option<Last>,
    seconds: f64,
    answers: f64,
    sums: Counts,
    /// Requests that would wait with perfect routing; not a number while slots are not known.
    remains: f64,
}

/// The last look.
#[derive(Debug, Clone, Copy)]
struct Last {
    at: Time,
    answers: u32,
    generation: u64,
}

/// Mean times of a request, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WaitEstimate {
    /// Answers in a second.
    pub rate: f64,
    /// In the proxy's queue.
    pub in_proxy: f64,
    /// At an endpoint behind others.
    pub at_endpoints: f64,
    /// In service, the way there and back included.
    pub service: f64,
    /// Share of the slots that are taken; `None`: slots are not known.
    pub utilisation: Option<f64>,
    /// The part of both waits that would remain with perfect routing: while all slots were taken. `None`: slots are not
    /// known.
    pub while_full: Option<f64>,
}

/// The part of a fleet to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advice {
    /// Most of the wait would remain with perfect routing.
    AddMachines,
    /// Most of the wait would be gone with perfect routing.
    LookAtTheProxy,
    /// Requests hardly wait.
    Nothing,
}

impl Advice {
    /// Its name in the status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AddMachines => "add_machines",
            Self::LookAtTheProxy => "look_at_the_proxy",
            Self::Nothing => "nothing",
        }
    }
}

impl PoolWaits {
    /// Takes in what is there at `now`; `answers` is the number of all so far, modulo 2^32, of the endpoints of this
    /// `generation` of the configuration.
    pub fn look(&mut self, counts: Counts, answers: u32, generation: u64, now: Time) {
        let last = self.last.replace(Last { at: now, answers, generation });
        // Other endpoints have answered another number.
        let Some(last) = last.filter(|last| last.generation == generation) else { return };
        let gap = now.since(last.at);
        if gap.is_zero() || gap > MAX_GAP {
            return;
        }
        let gap = gap.as_secs_f64();
        let kept = (-gap / HALF_LIFE).exp2();
        let draw = |sum: &mut f64, value: f64| *sum = *sum * kept + value * gap;
        let remains = counts.remains();
        // As soon as slots are known, that counts; sums over different times have no ratio.
        if self.remains.is_nan() && !remains.is_nan() {
            *self = Self { last: self.last, ..Self::default() };
        }
        draw(&mut self.remains, remains);
        draw(&mut self.sums.queued, counts.queued);
        draw(&mut self.sums.behind, counts.behind);
        draw(&mut self.sums.served, counts.served);
        draw(&mut self.sums.taken, counts.taken);
        draw(&mut self.sums.slots, counts.slots);
        draw(&mut self.seconds, 1.0);
        self.answers = self.answers * kept + f64::from(answers.wrapping_sub(last.answers));
    }

    /// The mean times, once enough is known.
    pub fn estimate(&self) -> Option<WaitEstimate> {
        if self.answers < MIN_ANSWERS || self.seconds <= 0.0 {
            return None;
        }
        let each = |sum: f64| sum / self.answers;
        let utilisation =
            (self.sums.slots > 0.0).then(|| (self.sums.taken / self.sums.slots).min(1.0));
        Some(WaitEstimate {
            rate: self.answers / self.seconds,
            in_proxy: each(self.sums.queued),
            at_endpoints: each(self.sums.behind),
            service: each(self.sums.served),
            utilisation,
            while_full: utilisation.map(|_| each(self.remains)),
        })
    }
}

impl WaitEstimate {
    /// Add machines, or look at the proxy? `None`: slots are not known.
    pub fn advice(&self) -> Option<Advice> {
        let wait = self.in_proxy + self.at_endpoints;
        let remains = self.while_full?.min(wait);
        Some(if wait < MIN_WAIT_SHARE * self.service {
            Advice::Nothing
        } else if wait - remains > remains {
            Advice::LookAtTheProxy
        } else {
            Advice::AddMachines
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn at(millis: u64) -> Time {
        Time::new(Duration::from_millis(millis))
    }

    /// After a minute of looks at this, and so many answers in a second.
    fn seen(counts: Counts, rate: u32) -> PoolWaits {
        let mut waits = PoolWaits::default();
        for number in 0..600_u32 {
            let answers = 7_u32.wrapping_sub(100).wrapping_add(number * rate / 10);
            waits.look(counts, answers, 1, at(u64::from(number) * 100));
        }
        waits
    }

    fn counts(queued: f64, behind: f64, served: f64) -> Counts {
        Counts { queued, behind, served, taken: served, slots: 10.0 }
    }

    #[test]
    fn means_follow_from_numbers_and_the_rate() {
        let found = seen(counts(2.0, 1.0, 8.0), 400).estimate();
        let found = found.unwrap_or(WaitEstimate {
            rate: 0.0,
            in_proxy: 0.0,
            at_endpoints: 0.0,
            service: 0.0,
            utilisation: None,
            while_full: None,
        });
        let ms = |seconds: f64| (seconds * 1e4).round() / 10.0;
        assert_eq!([found.in_proxy, found.at_endpoints, found.service].map(ms), [5.0, 2.5, 20.0]);
        assert_eq!(found.rate.round(), 400.0);
        assert!(found.utilisation.is_some_and(|used| (used - 0.8).abs() < 1e-9), "{found:?}");
        assert_eq!(PoolWaits::default().estimate(), None);
    }

    #[test]
    fn a_wait_that_perfect_routing_would_have_asks_for_machines_and_another_for_a_look_at_the_proxy()
     {
        let advice = |counts| seen(counts, 400).estimate()?.advice();
        assert_eq!(advice(counts(0.1, 0.1, 8.0)), Some(Advice::Nothing));
        assert_eq!(advice(counts(1.6, 0.2, 10.0)), Some(Advice::AddMachines));
        assert_eq!(
            advice(counts(1.0, 2.0, 8.0)),
            Some(Advice::LookAtTheProxy),
            "two slots are free"
        );
        assert_eq!(advice(counts(1.0, 8.0, 8.0)), Some(Advice::AddMachines));
        let unknown = Counts { slots: f64::NAN, ..counts(1.0, 1.0, 8.0) };
        assert_eq!(advice(unknown), None);
    }

    #[test]
    fn slots_that_are_unknown_for_a_moment_begin_a_new_estimate() {
        let mut waits = seen(counts(1.0, 0.0, 5.0), 400);
        let look = |waits: &mut PoolWaits, counts: Counts, number: u32| {
            let answers = 7_u32.wrapping_sub(100).wrapping_add(number * 40);
            waits.look(counts, answers, 1, at(u64::from(number) * 100));
        };
        let unknown = Counts { slots: f64::NAN, ..counts(1.0, 0.0, 5.0) };
        look(&mut waits, unknown, 600);
        assert_eq!(waits.estimate().map(|found| found.utilisation), Some(None));
        for number in 601..610 {
            look(&mut waits, counts(1.0, 0.0, 5.0), number);
        }
        let found = waits.estimate();
        let used = found.and_then(|found| found.utilisation);
        assert!(used.is_some_and(|used| (used - 0.5).abs() < 1e-9), "{found:?}");
    }

    #[test]
    fn pauses_and_other_endpoints_count_for_nothing() {
        let mut waits = seen(counts(2.0, 1.0, 8.0), 400);
        let before = waits.estimate();
        waits.look(counts(500.0, 0.0, 8.0), 3_000_000, 2, at(60_000));
        waits.look(counts(500.0, 0.0, 8.0), 3_000_001, 2, at(90_000));
        assert_eq!(waits.estimate(), before);
    }

    #[test]
    fn requests_beyond_the_slots_wait_there() {
        let load = Arc::new(Load::new(2));
        let _there: Vec<_> = (0..6).map(|_| load.enter()).collect();
        let mut found = Counts::default();
        found.add(&load, at(0), Duration::from_secs(1));
        assert_eq!(found, Counts { queued: 0.0, behind: 4.0, served: 2.0, taken: 2.0, slots: 2.0 });
        found.add(&Load::new(0), at(0), Duration::from_secs(1));
        assert!(found.slots.is_nan());
    }
}
