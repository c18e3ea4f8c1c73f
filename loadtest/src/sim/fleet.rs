//! The endpoints: slots, a line before them, and the time that services take.
//!
//! Times are nanoseconds on the virtual clock. An endpoint serves first come, first served; its
//! speed is the same for all services that run at a moment.

use super::balancer::Probed;
use super::slab::Key;
use crate::distribution::Distribution;
use crate::scenario::Group;
use crate::units::{float, nanos, nanos_of};
use forebay_routing::Report;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

/// Weight of the newest service time in the mean that an endpoint reports, as in
/// [`crate::synthetic`].
const MEAN_WEIGHT: f64 = 0.05;

/// All endpoints of a run.
#[derive(Debug)]
pub struct Fleet {
    /// By number.
    pub endpoints: Vec<Endpoint>,
}

/// One endpoint.
#[derive(Debug)]
pub struct Endpoint {
    slots: usize,
    room: usize,
    slow: f64,
    service: Distribution,
    running: Vec<Service>,
    waiting: VecDeque<Work>,
    /// Number of the last service that was started.
    started: u32,
    mean: Option<f64>,
    /// When each slot will be free of all that was sent: exact, as only [`Self::finish`] may know it.
    free: BinaryHeap<Reverse<u64>>,
    /// Requests that were sent here and are not served yet, those on their way included.
    sent: u32,
    latencies: Latencies,
}

/// What one attempt asks of an endpoint.
#[derive(Debug, Clone)]
pub(super) struct Work {
    /// Whose it is.
    pub attempt: Key,
    /// Service time at speed 1; the endpoint's own choice if absent.
    pub demand: Option<u64>,
    /// For the endpoint's own choice.
    pub rng: fastrand::Rng,
    /// When it got here, and how many others were there.
    pub entered: u64,
    pub others: usize,
}

impl Work {
    pub(super) fn new(attempt: Key, demand: Option<u64>, rng: fastrand::Rng) -> Self {
        Self { attempt, demand, rng, entered: 0, others: 0 }
    }
}

/// How long the last ones took, and how many others each had found.
#[derive(Debug, Default)]
struct Latencies(VecDeque<(usize, u64)>);

/// Latencies that are remembered, and how many of them a median is taken of.
const REMEMBERED: usize = 64;
const NEAREST: usize = 9;

impl Latencies {
    fn add(&mut self, others: usize, took: u64) {
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back((others, took));
    }

    /// The median of those that found the number of others that is nearest to `in_flight`.
    fn at(&self, in_flight: usize) -> u64 {
        let mut near: Vec<(usize, u64)> =
            self.0.iter().map(|(others, took)| (others.abs_diff(in_flight), *took)).collect();
        // Stable: among equals the newest are kept.
        near.reverse();
        near.sort_by_key(|(distance, _)| *distance);
        near.truncate(NEAREST);
        near.sort_unstable_by_key(|(_, took)| *took);
        near.get(near.len() / 2).map_or(0, |(_, took)| *took)
    }
}

#[derive(Debug)]
struct Service {
    number: u32,
    attempt: Key,
    end: u64,
    entered: u64,
    others: usize,
}

/// A service that was started: its number and when it ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Started {
    pub number: u32,
    pub end: u64,
}

/// The line of an endpoint was as long as it may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Full;

impl Fleet {
    pub(super) fn new(groups: &[Group]) -> Self {
        let endpoints =
            groups.iter().flat_map(|group| (0..group.count).map(|_| Endpoint::new(group)));
        Self { endpoints: endpoints.collect() }
    }
}

impl Endpoint {
    fn new(group: &Group) -> Self {
        let slots = group.slots as usize;
        Self {
            slots,
            room: group.queue as usize,
            slow: group.slow,
            service: group.service,
            running: Vec::with_capacity(slots.min(64)),
            waiting: VecDeque::new(),
            started: 0,
            mean: None,
            free: (0..slots).map(|_| Reverse(0)).collect(),
            sent: 0,
            latencies: Latencies::default(),
        }
    }

    /// Requests that it serves at once.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// How many times as long as usual its services take.
    pub fn slowness(&self) -> f64 {
        self.slow
    }

    /// Requests that were sent here and are not served yet.
    pub fn sent(&self) -> u32 {
        self.sent
    }

    /// Requests that are here.
    pub fn in_flight(&self) -> usize {
        self.running.len() + self.waiting.len()
    }

    /// When a request with this `demand` that gets here at `at` will have been served. Only one who
    /// knows everything can know that.
    pub fn finish(&self, at: u64, demand: u64) -> u64 {
        let free = self.free.peek().map_or(0, |Reverse(free)| *free);
        free.max(at) + self.scaled(demand)
    }

    /// Takes in that a request with this `demand` will get here at `at`.
    pub(super) fn expect(&mut self, at: u64, demand: u64) {
        self.sent += 1;
        let finish = self.finish(at, demand);
        self.free.pop();
        self.free.push(Reverse(finish));
    }

    /// Takes in that one that was sent here will not come.
    pub(super) fn lost(&mut self) {
        self.sent -= 1;
    }

    /// Takes an attempt out of the line at `now`, if it waits there.
    pub(super) fn leave(&mut self, now: u64, attempt: Key) -> bool {
        let Some(at) = self.waiting.iter().position(|work| work.attempt == attempt) else {
            return false;
        };
        self.waiting.remove(at);
        self.sent -= 1;
        self.foresee(now);
        true
    }

    /// Computes anew when the slots will be free, after something that nobody could foresee.
    fn foresee(&mut self, now: u64) {
        self.free.clear();
        self.free.extend(self.running.iter().map(|service| Reverse(service.end)));
        self.free.extend((self.running.len()..self.slots).map(|_| Reverse(now)));
        for at in 0..self.waiting.len() {
            let finish = self.finish(now, self.waiting[at].demand.unwrap_or(0));
            self.free.pop();
            self.free.push(Reverse(finish));
        }
    }

    /// What it says when it is probed: how many are there, and what others took lately that found
    /// about as many.
    pub(super) fn probed(&self, endpoint: usize) -> Probed {
        let in_flight = self.in_flight();
        Probed { endpoint, in_flight, latency: self.latencies.at(in_flight) }
    }

    /// What it says of itself.
    pub(super) fn report(&self) -> Report {
        let count = |n: usize| u32::try_from(n).ok();
        Report {
            in_flight: count(self.in_flight()),
            queue: count(self.waiting.len()),
            slots: count(self.slots),
            service_time: self.mean.and_then(|mean| Duration::try_from_secs_f64(mean).ok()),
            answered: 0,
        }
    }

    /// Takes work in at `now`; says whether its service starts at once.
    pub(super) fn enter(&mut self, now: u64, mut work: Work) -> Result<Option<Started>, Full> {
        if self.running.len() >= self.slots && self.waiting.len() >= self.room {
            self.sent -= 1;
            return Err(Full);
        }
        work.entered = now;
        work.others = self.in_flight();
        let demand = work.demand.unwrap_or_else(|| nanos(self.service.draw(&mut work.rng)));
        work.demand = Some(demand);
        self.learn(float(self.scaled(demand)) / 1e9);
        if self.running.len() < self.slots {
            return Ok(Some(self.start(now, &work)));
        }
        self.waiting.push_back(work);
        Ok(None)
    }

    /// Ends a service at `now`: whose it was, and which one starts instead. `None` if there is no
    /// such service any more.
    pub(super) fn end(&mut self, now: u64, number: u32) -> Option<(Key, Option<Started>)> {
        let is_it = |service: &Service| service.number == number && service.end == now;
        let position = self.running.iter().position(is_it)?;
        let ended = self.running.swap_remove(position);
        self.latencies.add(ended.others, now - ended.entered);
        self.sent -= 1;
        let next = self.waiting.pop_front().map(|work| self.start(now, &work));
        Some((ended.attempt, next))
    }

    fn start(&mut self, now: u64, work: &Work) -> Started {
        self.started = self.started.wrapping_add(1);
        let end = now + self.scaled(work.demand.unwrap_or(0));
        let &Work { attempt, entered, others, .. } = work;
        self.running.push(Service { number: self.started, attempt, end, entered, others });
        Started { number: self.started, end }
    }

    fn scaled(&self, demand: u64) -> u64 {
        if self.slow == 1.0 { demand } else { nanos_of(float(demand) / 1e9 * self.slow) }
    }

    fn learn(&mut self, seconds: f64) {
        let mean = self.mean.get_or_insert(seconds);
        *mean += (seconds - *mean) * MEAN_WEIGHT;
    }
}
