//! The policies of other proxies, after their sources.

use super::{Balancer, Decision, Done, RequestView, bind, usable};
use crate::sim::fleet::Fleet;
use crate::sim::keys::RequestKey;
use crate::units::float;
use std::collections::VecDeque;

/// nginx's `least_conn`: the fewest requests in flight, ties in turn (smooth weighted round robin
/// among those that tie, all weights 1). With a bound it is `HAProxy`'s `leastconn` with `maxconn`:
/// what finds all endpoints full waits in the proxy, first come, first served.
pub(super) struct LeastConn {
    in_flight: Vec<u32>,
    max_in_flight: Vec<u32>,
    ready: Vec<bool>,
    waiting: VecDeque<RequestKey>,
    turn: Turn,
}

impl LeastConn {
    /// `max_in_flight`: requests in flight that each endpoint may have.
    pub(super) fn new(max_in_flight: Vec<u32>) -> Self {
        let n = max_in_flight.len();
        Self {
            in_flight: vec![0; n],
            max_in_flight,
            ready: vec![true; n],
            waiting: VecDeque::new(),
            turn: Turn::new(n),
        }
    }

    fn fill(&mut self, endpoint: usize, out: &mut Vec<Decision>) {
        while self.ready[endpoint] && self.in_flight[endpoint] < self.max_in_flight[endpoint] {
            let Some(request) = self.waiting.pop_front() else { return };
            self.in_flight[endpoint] += 1;
            bind(request, Some(endpoint), out);
        }
    }
}

impl Balancer for LeastConn {
    fn arrive(&mut self, ask: &RequestView<'_>, _: &Fleet, out: &mut Vec<Decision>) {
        let Self { in_flight, max_in_flight, .. } = self;
        let can = |index: usize| usable(ask, index) && in_flight[index] < max_in_flight[index];
        let mut all = 0..in_flight.len();
        let fewest = all.clone().filter(|at| can(*at)).map(|at| in_flight[at]).min();
        let chosen = fewest
            .and_then(|fewest| self.turn.next(|index| in_flight[index] == fewest && can(index)));
        match chosen {
            Some(endpoint) => in_flight[endpoint] += 1,
            None if all.any(|index| usable(ask, index)) => {
                self.waiting.push_back(ask.request);
                return;
            }
            None => {}
        }
        bind(ask.request, chosen, out);
    }

    fn finished(&mut self, done: &Done, _: &Fleet, out: &mut Vec<Decision>) {
        self.in_flight[done.endpoint] -= 1;
        self.fill(done.endpoint, out);
    }

    fn abandoned(&mut self, request: RequestKey, _: &mut Vec<Decision>) {
        self.waiting.retain(|waiting| *waiting != request);
    }

    fn health_changed(&mut self, endpoint: usize, ready: bool, _: &Fleet, out: &mut Vec<Decision>) {
        self.ready[endpoint] = ready;
        self.fill(endpoint, out);
    }
}

/// Takes turns among endpoints that tie: the one that has waited longest in sum goes first.
struct Turn {
    credit: Vec<i64>,
}

impl Turn {
    fn new(endpoints: usize) -> Self {
        Self { credit: vec![0; endpoints] }
    }

    fn next(&mut self, ties: impl Fn(usize) -> bool) -> Option<usize> {
        let mut best: Option<usize> = None;
        let mut total = 0;
        for index in (0..self.credit.len()).filter(|index| ties(*index)) {
            total += 1;
            self.credit[index] += 1;
            if best.is_none_or(|best| self.credit[index] > self.credit[best]) {
                best = Some(index);
            }
        }
        let best = best?;
        self.credit[best] -= total;
        Some(best)
    }
}

/// Envoy's `LEAST_REQUEST` with equal weights and `choice_count` 2: two drawn at random, perhaps the
/// same one twice; the first unless the second has fewer requests in flight. Never the same one twice
/// it is nginx's `random two least_conn`, and what is known as P2C.
pub(super) struct LeastRequest {
    in_flight: Vec<u32>,
    twice: bool,
    rng: fastrand::Rng,
}

/// Draws after which an endpoint that was tried already is taken all the same, as Envoy does.
const MAX_DRAWS: usize = 5;

impl LeastRequest {
    /// `twice`: may both be the same one?
    pub(super) fn new(endpoints: usize, twice: bool, seed: u64) -> Self {
        Self { in_flight: vec![0; endpoints], twice, rng: fastrand::Rng::with_seed(seed) }
    }

    fn draw(&mut self) -> usize {
        let n = self.in_flight.len();
        let (first, mut second) = (self.rng.usize(..n), self.rng.usize(..n));
        if !self.twice && n > 1 && first == second {
            second = (first + self.rng.usize(1..n)) % n;
        }
        if self.in_flight[second] < self.in_flight[first] { second } else { first }
    }
}

impl Balancer for LeastRequest {
    fn arrive(&mut self, ask: &RequestView<'_>, _: &Fleet, out: &mut Vec<Decision>) {
        let mut chosen = self.draw();
        for _ in 1..MAX_DRAWS {
            if usable(ask, chosen) {
                break;
            }
            chosen = self.draw();
        }
        self.in_flight[chosen] += 1;
        bind(ask.request, Some(chosen), out);
    }

    fn finished(&mut self, done: &Done, _: &Fleet, _: &mut Vec<Decision>) {
        self.in_flight[done.endpoint] -= 1;
    }
}

/// Traefik's `leasttime`: mean response time of the last 100 answers times requests in flight and
/// one; ties in turn. An endpoint that has not answered yet goes first.
pub(super) struct LeastTime {
    endpoints: Vec<Timed>,
    turn: Turn,
}

#[derive(Default, Clone)]
struct Timed {
    in_flight: u32,
    last: VecDeque<u64>,
    sum: u64,
}

/// Answers that the mean is made of.
const TIMED_ANSWERS: usize = 100;

impl LeastTime {
    pub(super) fn new(endpoints: usize) -> Self {
        Self { endpoints: vec![Timed::default(); endpoints], turn: Turn::new(endpoints) }
    }
}

impl Timed {
    fn score(&self) -> f64 {
        let mean = float(self.sum) / float(self.last.len().max(1) as u64);
        mean * (1.0 + f64::from(self.in_flight))
    }
}

impl Balancer for LeastTime {
    fn arrive(&mut self, ask: &RequestView<'_>, _: &Fleet, out: &mut Vec<Decision>) {
        let all = (0..self.endpoints.len()).filter(|index| usable(ask, *index));
        let best = all.map(|index| self.endpoints[index].score()).reduce(f64::min);
        let chosen = best.and_then(|best| {
            let endpoints = &self.endpoints;
            self.turn.next(|index| endpoints[index].score() <= best && usable(ask, index))
        });
        if let Some(endpoint) = chosen {
            self.endpoints[endpoint].in_flight += 1;
        }
        bind(ask.request, chosen, out);
    }

    fn finished(&mut self, done: &Done, _: &Fleet, _: &mut Vec<Decision>) {
        let timed = &mut self.endpoints[done.endpoint];
        timed.in_flight -= 1;
        timed.sum += done.took;
        timed.last.push_back(done.took);
        if timed.last.len() > TIMED_ANSWERS {
            timed.sum -= timed.last.pop_front().unwrap_or(0);
        }
    }
}
