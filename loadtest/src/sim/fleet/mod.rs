//! The endpoints: slots or batches, a queue before them, the time that services take, and faults.
//!
//! Times are nanoseconds on the virtual clock. An endpoint serves first come, first served; its
//! speed is the same for all services that run at a moment.

mod latencies;

use super::keys::AttemptKey;
use crate::distribution::Distribution;
use crate::scenario::{Batch, EndpointFaultKind, Group, Sinkhole, SlowServices};
use crate::units::{float, nanos, nanos_of};
use forebay_routing::Report;
use latencies::Latencies;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

/// Weight of the newest service time in the mean that an endpoint reports, as in
/// [`crate::synthetic`].
const MEAN_WEIGHT: f64 = 0.05;

/// Where the time that services have left is counted from while their endpoint stands still: later than any
/// run ends.
const STANDSTILL: u64 = u64::MAX / 4;

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
    batch: Option<Batch>,
    room: usize,
    slow: f64,
    service: Distribution,
    /// Its faults: how much slower it is for now, whether it is there, and after how many
    /// nanoseconds it fails everything.
    factor: f64,
    up: bool,
    sinkhole: Option<u64>,
    /// Whether it stands still: services end [`STANDSTILL`] later than they have left.
    silent: bool,
    running: Vec<Service>,
    waiting: VecDeque<Waiting>,
    /// Until when a batch is kept open.
    held: Option<u64>,
    /// Number of the last service that was started.
    started: u32,
    mean: Option<f64>,
    /// Time at which each slot will be free of all that was sent: exact, as only [`Self::finish`] may know
    /// it.
    free: BinaryHeap<Reverse<u64>>,
    latencies: Latencies,
}

/// The answer to a probe.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Probed {
    /// The endpoint.
    pub endpoint: usize,
    /// Requests there.
    pub in_flight: usize,
    /// Latency, in nanoseconds, of recent requests that found about as many others there.
    pub latency: u64,
}

/// The work of one attempt.
#[derive(Debug, Clone)]
pub(super) struct Work {
    /// The attempt.
    pub attempt: AttemptKey,
    /// Service time at speed 1; the endpoint's own choice if absent.
    pub demand: Option<u64>,
    /// It takes so many times as long.
    pub cost: f64,
    /// For the endpoint's own choice.
    pub rng: fastrand::Rng,
}

/// One slot at work.
#[derive(Debug)]
struct Service {
    number: u32,
    end: u64,
    members: Vec<Member>,
}

#[derive(Debug, Clone, Copy)]
struct Member {
    attempt: AttemptKey,
    entered: u64,
    others: usize,
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    member: Member,
    demand: u64,
}

/// The next step of an endpoint.
#[derive(Debug, Clone, Copy)]
pub(super) enum Next {
    /// Nothing that is not known already.
    Nothing,
    /// A service was started.
    Started(Started),
    /// A batch is kept open until this time.
    Held(u64),
}

/// A service: its number and when it ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Started {
    pub number: u32,
    pub end: u64,
}

/// The queue of an endpoint is full.
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
            batch: group.batch,
            room: group.queue as usize,
            slow: group.slow,
            service: group.service,
            factor: 1.0,
            up: true,
            sinkhole: None,
            silent: false,
            running: Vec::with_capacity(slots.min(64)),
            waiting: VecDeque::new(),
            held: None,
            started: 0,
            mean: None,
            free: (0..slots).map(|_| Reverse(0)).collect(),
            latencies: Latencies::default(),
        }
    }

    /// Requests that it serves at once.
    pub fn slots(&self) -> usize {
        self.slots * self.batch.map_or(1, |batch| batch.max_size as usize)
    }

    /// Factor by which its services take longer than usual.
    pub fn slowness(&self) -> f64 {
        self.slow * self.factor
    }

    /// Requests that are here.
    pub fn in_flight(&self) -> usize {
        self.running.iter().map(|service| service.members.len()).sum::<usize>() + self.waiting.len()
    }

    /// The end of the first of its services after `now`. No proxy can know that.
    pub(super) fn next_end(&self, now: u64) -> Option<u64> {
        self.running.iter().map(|service| service.end).filter(|end| *end > now).min()
    }

    /// Whether it accepts connections.
    pub fn is_up(&self) -> bool {
        self.up
    }

    /// Whether it answers: it is there and does not stand still.
    pub fn answers(&self) -> bool {
        self.up && !self.silent
    }

    /// After how many nanoseconds it fails what comes, if it does.
    pub(super) fn sinkhole(&self) -> Option<u64> {
        self.sinkhole
    }

    /// The time at which a request with this `demand` that arrives at `at` will have been served, if
    /// services are not batched. No proxy can know that; oracles do.
    pub fn finish(&self, at: u64, demand: u64) -> u64 {
        if !self.answers() {
            return u64::MAX;
        }
        let free = self.free.peek().map_or(0, |Reverse(free)| *free);
        free.max(at) + self.scaled(demand)
    }

    /// Takes in that a request with this `demand` will get here at `at`.
    pub(super) fn expect(&mut self, at: u64, demand: u64) {
        if self.answers() {
            let finish = self.finish(at, demand);
            self.free.pop();
            self.free.push(Reverse(finish));
        }
    }

    /// Its answer to a probe: how many requests are there, and how long recent ones took that found
    /// about as many.
    pub(super) fn probed(&self, endpoint: usize) -> Probed {
        let in_flight = self.in_flight();
        Probed { endpoint, in_flight, latency: self.latencies.at(in_flight) }
    }

    /// Its load report.
    pub(super) fn report(&self) -> Report {
        let count = |n: usize| u32::try_from(n).ok();
        Report {
            in_flight: count(self.in_flight()),
            queue: count(self.waiting.len()),
            slots: count(self.slots()),
            batch: self.batch.map(|batch| batch.max_size),
            service_time: self.mean.and_then(|mean| Duration::try_from_secs_f64(mean).ok()),
            answered: 0,
        }
    }

    /// Takes work in at `now`.
    pub(super) fn enter(&mut self, now: u64, mut work: Work) -> Result<Next, Full> {
        let room = self.room + if self.running.len() < self.slots { self.slots() } else { 0 };
        // One that stands still can't even say that.
        if self.waiting.len() >= room && !self.silent {
            return Err(Full);
        }
        let demand = work.demand.unwrap_or_else(|| nanos(self.service.draw(&mut work.rng)));
        let demand = times(demand, work.cost);
        let others = self.in_flight();
        let member = Member { attempt: work.attempt, entered: now, others };
        self.waiting.push_back(Waiting { member, demand });
        if self.batch.is_none() {
            self.learn(self.scaled(demand));
        }
        Ok(self.next(now))
    }

    /// Ends a service at `now` and hands out whose it was. `None` if there is no such service any
    /// more.
    pub(super) fn end(
        &mut self,
        now: u64,
        number: u32,
        ended: &mut Vec<AttemptKey>,
    ) -> Option<Next> {
        let is_it = |service: &Service| service.number == number && service.end == now;
        let position = self.running.iter().position(is_it)?;
        for member in self.running.swap_remove(position).members {
            self.latencies.add(member.others, now - member.entered);
            ended.push(member.attempt);
        }
        Some(self.next(now))
    }

    /// Takes an attempt out of the queue at `now`, if it waits there.
    pub(super) fn leave(&mut self, now: u64, attempt: AttemptKey) -> bool {
        let Some(at) = self.waiting.iter().position(|waiting| waiting.member.attempt == attempt)
        else {
            return false;
        };
        self.waiting.remove(at);
        self.foresee(now);
        true
    }

    /// Starts what can be started at `now`.
    pub(super) fn next(&mut self, now: u64) -> Next {
        let Some(first) = self.waiting.front() else { return Next::Nothing };
        if self.silent || self.running.len() >= self.slots {
            return Next::Nothing;
        }
        let mut count = 1;
        if let Some(batch) = self.batch {
            count = self.waiting.len().min(batch.max_size as usize);
            let until = first.member.entered + nanos(batch.wait);
            if count < batch.max_size as usize && until > now {
                let known = self.held.replace(until) == Some(until);
                return if known { Next::Nothing } else { Next::Held(until) };
            }
        }
        self.held = None;
        Next::Started(self.start(now, count))
    }

    fn start(&mut self, now: u64, count: usize) -> Started {
        self.started = self.started.wrapping_add(1);
        let mut demand =
            self.batch.map_or(0, |batch| nanos(batch.base) + nanos(batch.each) * count as u64);
        let mut members = Vec::with_capacity(count);
        for waiting in self.waiting.drain(..count) {
            demand += waiting.demand;
            members.push(waiting.member);
        }
        let takes = self.scaled(demand);
        if self.batch.is_some() {
            self.learn(takes);
        }
        let (number, end) = (self.started, now + takes);
        self.running.push(Service { number, end, members });
        Started { number, end }
    }

    /// A fault begins or ends at `now`: hands out the attempts that are lost and the
    /// services that now end at another time.
    pub(super) fn inject(
        &mut self,
        now: u64,
        kind: EndpointFaultKind,
        begins: bool,
    ) -> FaultEffect {
        let mut effect = FaultEffect::default();
        match kind {
            EndpointFaultKind::Sinkhole(Sinkhole { after }) => {
                self.sinkhole = begins.then(|| nanos(after));
            }
            EndpointFaultKind::Slow(SlowServices { factor }) => {
                let before = self.factor;
                self.factor = if begins { factor } else { 1.0 };
                let ratio = self.factor / before;
                let origin = self.origin(now);
                for service in &mut self.running {
                    let left = float(service.end.saturating_sub(origin)) / 1e9;
                    service.end = origin + nanos_of(left * ratio);
                    let Service { number, end, .. } = *service;
                    effect.moved.push(Started { number, end });
                }
            }
            EndpointFaultKind::Silent => {
                let before = self.origin(now);
                self.silent = begins;
                let origin = self.origin(now);
                self.held = None;
                for service in &mut self.running {
                    service.end = origin + service.end.saturating_sub(before);
                    let Service { number, end, .. } = *service;
                    effect.moved.push(Started { number, end });
                }
            }
            EndpointFaultKind::Down => {
                self.up = !begins;
                (self.held, self.mean) = (None, None);
                self.latencies = Latencies::default();
                let running = self.running.drain(..).flat_map(|service| service.members);
                let waiting = self.waiting.drain(..).map(|waiting| waiting.member);
                effect.lost.extend(running.chain(waiting).map(|member| member.attempt));
            }
        }
        self.foresee(now);
        effect
    }

    /// Computes again when the slots will be free, after a change that was not foreseen.
    fn foresee(&mut self, now: u64) {
        self.free.clear();
        self.free.extend(self.running.iter().map(|service| Reverse(service.end)));
        self.free.extend((self.running.len()..self.slots).map(|_| Reverse(now)));
        for at in 0..self.waiting.len() {
            self.expect(now, self.waiting[at].demand);
        }
    }

    /// From when on the time is counted that services have left.
    fn origin(&self, now: u64) -> u64 {
        if self.silent { STANDSTILL } else { now }
    }

    fn scaled(&self, demand: u64) -> u64 {
        times(demand, self.slowness())
    }

    fn learn(&mut self, took: u64) {
        let seconds = float(took) / 1e9;
        let mean = self.mean.get_or_insert(seconds);
        *mean += (seconds - *mean) * MEAN_WEIGHT;
    }
}

/// So many times this time.
pub(super) fn times(nanos: u64, factor: f64) -> u64 {
    if factor == 1.0 { nanos } else { nanos_of(float(nanos) / 1e9 * factor) }
}

/// The effect of a fault that begins or ends.
#[derive(Debug, Default)]
pub(super) struct FaultEffect {
    /// Attempts that end without an answer.
    pub lost: Vec<AttemptKey>,
    /// Services that now end at another time.
    pub moved: Vec<Started>,
}
