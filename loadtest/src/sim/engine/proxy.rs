//! The state of one proxy for one pool, beside its balancer: its rotation, health checks, ejections and budgets.

use crate::scenario::EndpointFaultKind;
use crate::sim::balancer::policy::SimPolicy;
use crate::sim::plan::SimPlan;
use forebay_routing::health::outlier::{EjectionHistory, Member, OutcomeCounts, OutlierDetector};
use forebay_routing::health::rotation::Rotation;
use forebay_routing::{Ejection, Health, HealthCheck, Outcome, RetryBudget, RetryPolicy, Time};
use std::time::Duration;

/// The state of one proxy for one pool, beside its balancer.
pub(super) struct Proxy {
    /// By endpoint: whether it belongs to the pool.
    members: Vec<bool>,
    /// The conditions of retries.
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
    /// While an answer is waited for: how often the endpoint had answered requests before.
    pub heard: Option<u32>,
}

/// Outcomes of requests at the endpoints, and the endpoints' ejection histories.
struct Outliers {
    rules: Ejection,
    detector: OutlierDetector,
    counts: Vec<OutcomeCounts>,
    histories: Vec<EjectionHistory>,
    /// The health by probes, and the overall health.
    probed: Vec<Health>,
    /// Whether they are down only for their silence.
    silent: Vec<bool>,
    healths: Vec<Health>,
    /// Whether outcomes call for a look.
    is_called: bool,
    /// Begin of the current window, and whether any endpoint is out: without that, a check before its end
    /// finds nothing.
    window_began: Time,
    any_out: bool,
}

impl Proxy {
    pub(super) fn new(plan: &SimPlan, policy: SimPolicy, members: &[bool]) -> Self {
        let (retry, probe, n) = (&plan.sim.retry, &plan.sim.probe, plan.endpoints());
        let fails = |kind| matches!(kind, EndpointFaultKind::Down | EndpointFaultKind::Silent);
        let down = plan.faults.iter().filter(|fault| fails(fault.kind));
        let mut watched: Vec<usize> =
            down.flat_map(|fault| &fault.endpoints).map(|number| *number as usize).collect();
        watched.sort_unstable();
        watched.dedup();
        watched.retain(|endpoint| members[*endpoint]);
        let check = |endpoint| Check {
            endpoint,
            check: HealthCheck::resume(probe.rise, probe.fall, Health::Ready, false),
            number: 0,
            last: 0,
            heard: None,
        };
        let hedge = plan.sim.hedge.as_ref().filter(|_| policy.is_forebay());
        let mut rules = plan.sim.ejection.rules();
        if !policy.is_forebay() {
            // The others take none out for its answers unless they are told to.
            rules.max_share = 0.0;
        }
        Self {
            members: members.to_vec(),
            policy: retry.policy(),
            budget: RetryBudget::new(retry.budget, retry.min_per_second),
            hedge_budget: hedge.map(|hedge| RetryBudget::for_hedges(hedge.budget)),
            ready: members.to_vec(),
            checks: watched.into_iter().map(check).collect(),
            outliers: Outliers {
                rules,
                detector: OutlierDetector::default(),
                counts: (0..n).map(|_| OutcomeCounts::default()).collect(),
                histories: vec![EjectionHistory::default(); n],
                probed: vec![Health::Ready; n],
                silent: vec![false; n],
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

    /// Number of an endpoint's answers, to compare with a later one.
    pub(super) fn answers(&self, endpoint: usize) -> u32 {
        self.outliers.counts[endpoint].answers()
    }

    /// Whether endpoints are ever ejected.
    pub(super) fn ejects(&self) -> bool {
        self.outliers.rules.is_on()
    }

    /// Whether outcomes call for a check at once.
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

    /// Whether an endpoint belongs to its pool.
    pub(super) fn has(&self, endpoint: usize) -> bool {
        self.members[endpoint]
    }

    /// Whether an endpoint is down only for its silence.
    pub(super) fn is_silent(&self, endpoint: usize) -> bool {
        self.outliers.silent[endpoint]
    }

    /// Whether the probes of an endpoint take it down only for its silence.
    pub(super) fn set_silent(&mut self, endpoint: usize, silent: bool) {
        self.outliers.silent[endpoint] = silent;
    }

    /// Whether a check for outliers can find anything.
    pub(super) fn is_worth_a_look(&self, now: Time) -> bool {
        let Outliers { rules, window_began, any_out, .. } = &self.outliers;
        *any_out || now.since(*window_began) >= rules.interval
    }

    /// Looks for outliers.
    pub(super) fn detect(&mut self, now: Time) {
        if now.since(self.outliers.window_began) >= self.outliers.rules.interval {
            self.outliers.window_began = now;
        }
        let Outliers { rules, detector, counts, histories, probed, .. } = &mut self.outliers;
        let mut members: Vec<_> = histories
            .iter_mut()
            .zip(counts)
            .zip(probed)
            .zip(&self.members)
            .filter(|(_, is_member)| **is_member)
            .map(|(((history, counts), probed), _)| Member {
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
    pub(super) fn refresh(&mut self) -> (Vec<usize>, Vec<usize>) {
        let Outliers { rules, histories, probed, healths, silent, .. } = &mut self.outliers;
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
        let own = healths.iter().zip(&self.members).filter(|(_, is_member)| **is_member);
        let rotation = Rotation::of(own.map(|(health, _)| *health), rules.panic_below);
        let mut changed = Vec::new();
        for (endpoint, ready) in self.ready.iter_mut().enumerate() {
            let is_used =
                self.members[endpoint] && rotation.uses(healths[endpoint], silent[endpoint]);
            if *ready != is_used {
                *ready = is_used;
                changed.push(endpoint);
            }
        }
        (rejoined, changed)
    }
}

fn time(nanos: u64) -> Time {
    Time::new(Duration::from_nanos(nanos))
}
