//! The state of one proxy beside its balancer: its rotation, health checks, ejections and budgets.

use super::Engine;
use crate::scenario::EndpointFaultKind;
use crate::sim::balancer::policy::SimPolicy;
use crate::sim::clock::Event;
use crate::sim::plan::SimPlan;
use crate::units::nanos;
use forebay_routing::health::outlier::{EjectionHistory, Member, OutcomeCounts, OutlierDetector};
use forebay_routing::health::rotation::Rotation;
use forebay_routing::{Ejection, Health, HealthCheck, Outcome, RetryBudget, RetryPolicy, Time};
use std::time::Duration;

/// How often a proxy looks for outliers if nothing calls for it.
const OUTLIER_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// The state of one proxy beside its balancer.
pub(super) struct Proxy {
    /// What is sent again.
    pub policy: RetryPolicy,
    /// Pays for attempts after failures.
    pub budget: RetryBudget,
    /// Pays for second attempts beside slow ones, if there are any.
    pub hedge_budget: Option<RetryBudget>,
    /// By endpoint: whether it is in rotation.
    pub ready: Vec<bool>,
    /// Of the endpoints that are ever down: others would only ever be found ready.
    pub checks: Vec<Check>,
    outliers: Outliers,
}

pub(super) struct Check {
    pub endpoint: usize,
    pub check: HealthCheck,
    /// The one that is under way or planned; those before it do not count any more.
    pub number: u32,
    pub last: u64,
}

/// What requests met at the endpoints, and what is held against those.
struct Outliers {
    rules: Ejection,
    detector: OutlierDetector,
    counts: Vec<OutcomeCounts>,
    histories: Vec<EjectionHistory>,
    /// What their probes say, and that and the rest together.
    probed: Vec<Health>,
    healths: Vec<Health>,
    /// Whether outcomes call for a look.
    is_called: bool,
    /// When the present window began, and whether any endpoint is out: without that, nothing is to be seen
    /// before its end.
    window_began: Time,
    any_out: bool,
}

impl Proxy {
    pub(super) fn new(plan: &SimPlan, policy: SimPolicy) -> Self {
        let (retry, probe, n) = (&plan.sim.retry, &plan.sim.probe, plan.endpoints());
        let down = plan.faults.iter().filter(|fault| fault.kind == EndpointFaultKind::Down);
        let mut watched: Vec<usize> =
            down.flat_map(|fault| &fault.endpoints).map(|number| *number as usize).collect();
        watched.sort_unstable();
        watched.dedup();
        let check = |endpoint| Check {
            endpoint,
            check: HealthCheck::resume(probe.rise, probe.fall, Health::Ready),
            number: 0,
            last: 0,
        };
        let hedge = plan.sim.hedge.as_ref().filter(|_| policy.is_forebay());
        let mut rules = plan.sim.ejection.rules();
        if !policy.is_forebay() {
            // The others take none out for its answers unless they are told to.
            rules.max_share = 0.0;
        }
        Self {
            policy: retry.policy(),
            budget: RetryBudget::new(retry.budget, retry.min_per_second),
            hedge_budget: hedge.map(|hedge| RetryBudget::for_hedges(hedge.budget)),
            ready: vec![true; n],
            checks: watched.into_iter().map(check).collect(),
            outliers: Outliers {
                rules,
                detector: OutlierDetector::default(),
                counts: (0..n).map(|_| OutcomeCounts::default()).collect(),
                histories: vec![EjectionHistory::default(); n],
                probed: vec![Health::Ready; n],
                healths: vec![Health::Ready; n],
                is_called: false,
                window_began: Time::default(),
                any_out: false,
            },
        }
    }

    /// Takes in how a request ended at an endpoint, as far as that speaks of it.
    pub(super) fn note(&mut self, endpoint: usize, outcome: Outcome) {
        let outliers = &mut self.outliers;
        if outliers.rules.is_on() {
            outliers.is_called |= outliers.counts[endpoint].note(outcome);
        }
    }

    /// How often an endpoint has answered: a number to compare with a later one.
    pub(super) fn answers(&self, endpoint: usize) -> u32 {
        self.outliers.counts[endpoint].answers()
    }

    /// Does what requests met call for a look at once?
    pub(super) fn is_called(&mut self) -> bool {
        std::mem::take(&mut self.outliers.is_called)
    }

    /// The probes of an endpoint say something else from now on.
    pub(super) fn probed(&mut self, endpoint: usize, health: Health, now: u64) {
        let outliers = &mut self.outliers;
        outliers.probed[endpoint] = health;
        if health != Health::Ready {
            outliers.histories[endpoint].probe_failed(&outliers.rules, time(now));
            outliers.any_out |= outliers.histories[endpoint].out().is_some();
        }
    }

    /// Is anything to be seen by looking for outliers?
    fn is_worth_a_look(&self, now: Time) -> bool {
        let Outliers { rules, window_began, any_out, .. } = &self.outliers;
        *any_out || now.since(*window_began) >= rules.interval
    }

    /// Looks for outliers.
    fn detect(&mut self, now: Time) {
        if now.since(self.outliers.window_began) >= self.outliers.rules.interval {
            self.outliers.window_began = now;
        }
        let Outliers { rules, detector, counts, histories, probed, .. } = &mut self.outliers;
        let mut members: Vec<_> = histories
            .iter_mut()
            .zip(counts)
            .zip(probed)
            .map(|((history, counts), probed)| Member {
                counts,
                history,
                probed: *probed,
                draining: false,
            })
            .collect();
        detector.evaluate(rules, &mut members, now);
        self.outliers.any_out = histories.iter().any(|history| history.out().is_some());
    }

    /// Brings health and rotation up to date; the endpoints whose health came back, and those that came into
    /// rotation or went out of it.
    fn refresh(&mut self) -> (Vec<usize>, Vec<usize>) {
        let Outliers { rules, histories, probed, healths, .. } = &mut self.outliers;
        let mut rejoined = Vec::new();
        for (endpoint, health) in healths.iter_mut().enumerate() {
            let present = match probed[endpoint] {
                Health::Ready if histories[endpoint].out().is_some() => Health::Ejected,
                probed => probed,
            };
            if present == Health::Ready && *health != present {
                rejoined.push(endpoint);
            }
            *health = present;
        }
        let rotation = Rotation::of(healths.iter().copied(), rules.panic_below);
        let mut changed = Vec::new();
        for (endpoint, ready) in self.ready.iter_mut().enumerate() {
            // One that is down refuses connections here, which is more than silence.
            let is_used = rotation.uses(healths[endpoint], false);
            if *ready != is_used {
                *ready = is_used;
                changed.push(endpoint);
            }
        }
        (rejoined, changed)
    }
}

impl Engine<'_> {
    pub(super) fn plan_outlier_checks(&mut self) {
        let every = nanos(OUTLIER_CHECK_INTERVAL);
        for (number, proxy) in self.proxies.iter().enumerate() {
            if proxy.outliers.rules.is_on() {
                // Proxies were not started at the same moment.
                let first = self.plan.seed_of(number as u64) % every;
                self.clock.plan(first, Event::Outliers(number));
            }
        }
    }

    /// The time has come to look for outliers.
    pub(super) fn check_outliers(&mut self, proxy: usize) {
        if self.proxies[proxy].is_worth_a_look(time(self.now)) {
            self.detect_outliers(proxy);
        }
        self.clock.plan(self.now + nanos(OUTLIER_CHECK_INTERVAL), Event::Outliers(proxy));
    }

    /// Looks for outliers, and has the balancer do without those that are taken out.
    pub(super) fn detect_outliers(&mut self, proxy: usize) {
        self.proxies[proxy].detect(time(self.now));
        self.refresh_rotation(proxy);
    }

    /// Tells the balancer what has changed.
    pub(super) fn refresh_rotation(&mut self, proxy: usize) {
        let (now, (rejoined, changed)) = (self.now, self.proxies[proxy].refresh());
        for endpoint in rejoined {
            self.call_balancer(proxy, |balancer, _, _| balancer.rejoined(endpoint, now));
        }
        for endpoint in changed {
            let ready = self.proxies[proxy].ready[endpoint];
            self.tally.rotated(ready);
            self.call_balancer(proxy, |balancer, fleet, outbox| {
                balancer.health_changed(endpoint, ready, fleet, outbox);
            });
        }
    }
}

fn time(nanos: u64) -> Time {
    Time::new(Duration::from_nanos(nanos))
}
