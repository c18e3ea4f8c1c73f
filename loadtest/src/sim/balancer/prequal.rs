//! Prequal's hot-cold lexicographic rule, as published (Wydrowski et al., "Load is not what you
//! should balance: introducing Prequal", NSDI 2024), with the parameters of its testbed.

use super::{Balancer, Decision, Done, RequestView, bind, least, usable};
use crate::sim::fleet::{Fleet, Probed};
use crate::units::float;
use std::collections::VecDeque;

/// Probes that are kept.
const POOL: usize = 16;
/// Nanoseconds after which a probe is forgotten.
const MAX_AGE: u64 = 1_000_000_000;
/// Probes a query.
const PROBES: usize = 3;
/// Probes that are removed a query, beside those that are too old or used up.
const REMOVED: f64 = 1.0;
/// Net rate at which probes pile up, from which follows how often one may be used.
const DELTA: f64 = 1.0;
/// Fewer usable probes than this: choose at random.
const MIN_PROBES: usize = 2;
/// Quantile of requests in flight above which an endpoint is hot: 2^-0.25.
const HOT_QUANTILE: f64 = 0.840_896;
/// Answers to probes from which that quantile is taken.
const WINDOW: usize = 128;

/// One client with its pool of probes.
pub(super) struct Prequal {
    endpoints: usize,
    /// Oldest first.
    pool: VecDeque<Probe>,
    seen: VecDeque<usize>,
    remove_oldest: bool,
    rng: fastrand::Rng,
}

#[derive(Debug, Clone, Copy)]
struct Probe {
    what: Probed,
    at: u64,
    uses: u32,
}

impl Prequal {
    pub(super) fn new(endpoints: usize, seed: u64) -> Self {
        Self {
            endpoints,
            pool: VecDeque::new(),
            seen: VecDeque::new(),
            remove_oldest: true,
            rng: fastrand::Rng::with_seed(seed),
        }
    }

    /// One at random, among those that are ready and were not tried.
    fn any(&mut self, ask: &RequestView<'_>) -> Option<usize> {
        let first = self.rng.usize(..self.endpoints);
        (0..self.endpoints)
            .map(|step| (first + step) % self.endpoints)
            .find(|endpoint| usable(ask, *endpoint))
    }

    /// Number of times that a new probe may be used: as in the paper, rounded up or down at random.
    fn uses(&mut self) -> u32 {
        let n = float(self.endpoints as u64);
        let gain = (1.0 - float(POOL as u64) / n) * float(PROBES as u64) - REMOVED;
        if gain <= 0.0 {
            return u32::MAX;
        }
        let uses = ((1.0 + DELTA) / gain).max(1.0);
        let up = u32::from(self.rng.f64() < uses.fract());
        u32::try_from(crate::units::whole(uses.floor())).unwrap_or(u32::MAX).saturating_add(up)
    }

    /// Requests in flight above which an endpoint is hot.
    fn threshold(&self) -> usize {
        let mut seen: Vec<usize> = self.seen.iter().copied().collect();
        seen.sort_unstable();
        let rank = crate::units::whole((HOT_QUANTILE * float(seen.len() as u64)).floor());
        let last = seen.len().saturating_sub(1);
        seen.get(usize::try_from(rank).unwrap_or(last).min(last)).copied().unwrap_or(0)
    }

    /// Position of the best probe: the least latency among the cold, else the fewest in flight.
    fn best(&mut self, threshold: usize) -> Option<usize> {
        let probes = self.pool.iter().enumerate();
        let cold = probes.clone().filter(|(_, probe)| probe.what.in_flight <= threshold);
        least(cold.map(|(at, probe)| (at, probe.what.latency)), &mut self.rng)
            .or_else(|| least(probes.map(|(at, probe)| (at, probe.what.in_flight)), &mut self.rng))
    }

    /// In turn the oldest and the worst: of the hot the one with the max in flight, else the
    /// slowest.
    fn remove_one(&mut self, threshold: usize) {
        self.remove_oldest = !self.remove_oldest;
        if !self.remove_oldest {
            self.pool.pop_front();
            return;
        }
        let worst = self.pool.iter().enumerate().max_by_key(|(_, probe)| {
            let hot = probe.what.in_flight > threshold;
            (hot, if hot { probe.what.in_flight as u64 } else { probe.what.latency })
        });
        if let Some((at, _)) = worst {
            self.pool.remove(at);
        }
    }

    /// Probes so many different endpoints.
    fn probe(&mut self, out: &mut Vec<Decision>) {
        let mut chosen = [usize::MAX; PROBES];
        for number in 0..PROBES.min(self.endpoints) {
            let mut endpoint = self.rng.usize(..self.endpoints);
            while chosen.contains(&endpoint) {
                endpoint = (endpoint + 1) % self.endpoints;
            }
            chosen[number] = endpoint;
            out.push(Decision::Probe { endpoint });
        }
    }
}

impl Balancer for Prequal {
    fn arrive(&mut self, ask: &RequestView<'_>, _: &Fleet, out: &mut Vec<Decision>) {
        self.pool.retain(|probe| {
            usable(ask, probe.what.endpoint) && ask.now.saturating_sub(probe.at) <= MAX_AGE
        });
        let threshold = self.threshold();
        let chosen = if self.pool.len() < MIN_PROBES { None } else { self.best(threshold) };
        let endpoint = match chosen.and_then(|at| Some((at, self.pool.get_mut(at)?))) {
            None => match self.any(ask) {
                Some(endpoint) => endpoint,
                None => return bind(ask.request, None, out),
            },
            Some((at, probe)) => {
                let endpoint = probe.what.endpoint;
                probe.uses -= 1;
                // Requests sent since the probe are there too.
                probe.what.in_flight += 1;
                if probe.uses == 0 {
                    self.pool.remove(at);
                }
                endpoint
            }
        };
        self.remove_one(threshold);
        self.probe(out);
        bind(ask.request, Some(endpoint), out);
    }

    fn finished(&mut self, _: &Done, _: &Fleet, _: &mut Vec<Decision>) {}

    fn probed(&mut self, probed: &Probed, now: u64) {
        let uses = self.uses();
        self.pool.push_back(Probe { what: *probed, at: now, uses });
        if self.pool.len() > POOL {
            self.pool.pop_front();
        }
        self.seen.push_back(probed.in_flight);
        if self.seen.len() > WINDOW {
            self.seen.pop_front();
        }
    }
}
