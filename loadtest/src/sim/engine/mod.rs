//! The simulation itself: requests come, are bound, served and answered, on the virtual clock.
//!
//! A proxy handles a request in no time; time passes in endpoints and on the wire. All
//! chance follows from the seed and the number of the request or of the proxy, so that every policy
//! is given the very same requests at the same moments.

mod attempts;
mod decisions;
mod faults;
mod flow;
mod proxy;
mod rotation;
mod tally;
pub(super) mod workload;

pub use tally::SimResult;

use crate::plan::seed::derive;
use crate::sim::balancer::build::build;
use crate::sim::balancer::policy::SimPolicy;
use crate::sim::balancer::{Balancer, Decision};
use crate::sim::clock::{Clock, Event};
use crate::sim::fleet::{Fleet, Probed};
use crate::sim::keys::{AttemptKey, ProbeKey, ReportKey, RequestKey};
use crate::sim::plan::{PROXY, SimPlan};
use crate::sim::pools::Variant;
use crate::units::nanos;
use decisions::{Sent, Why};
use forebay_protocol::Reason;
use forebay_routing::attempt::fallback::Passed;
use forebay_routing::{Attempts, Report, attempt};
use proxy::Proxy;
use slotmap::SlotMap;
use std::collections::VecDeque;
use tally::Tally;
use workload::Workload;

/// Number of different keys that requests have, for policies that send equal keys to one endpoint.
const KEYS: u64 = 1000;
/// Keeps their chance apart.
const KEY: u64 = 0x6b_65_79;

/// Runs `plan` with this policy.
pub fn run(plan: &SimPlan, policy: SimPolicy) -> SimResult {
    let mut engine = Engine::new(plan, policy);
    while engine.step() {}
    engine.tally.into_result(engine.clock.planned())
}

struct Engine<'a> {
    plan: &'a SimPlan,
    /// Whether the proxies are ours, and not their peers.
    is_forebay: bool,
    workload: Workload,
    now: u64,
    clock: Clock,
    fleet: Fleet,
    /// Those of the route's own pool, then those of each other one.
    proxies: Vec<Proxy>,
    balancers: Vec<Box<dyn Balancer>>,
    requests: SlotMap<RequestKey, Request>,
    attempts: SlotMap<AttemptKey, InFlightAttempt>,
    reports: SlotMap<ReportKey, DelayedReport>,
    probes: SlotMap<ProbeKey, (usize, Probed)>,
    /// By kind of request: when each is given up, earliest first.
    expiries: Vec<VecDeque<(u64, RequestKey)>>,
    /// Decisions that are still to be carried out at this moment.
    decisions: VecDeque<Decision>,
    /// The buffer for a balancer's decisions.
    outbox: Vec<Decision>,
    /// Attempts that just ended.
    ended: Vec<AttemptKey>,
    tally: Tally,
}

/// A request that is not answered yet.
struct Request {
    intended: u64,
    demand: Option<u64>,
    rng: fastrand::Rng,
    kind: usize,
    client: u32,
    /// One of [`KEYS`], by chance.
    key: u64,
    proxy: usize,
    /// The variant that answers it, and the fallbacks that were passed.
    variant: Variant,
    passed: Passed,
    /// The decisions on its attempts.
    decisions: Attempts<Why>,
    /// Endpoints that it was sent to.
    tried: Vec<u32>,
    /// All attempts, and those under way: one, or two of which the earlier answer counts.
    sent: Vec<Sent>,
    running: Vec<AttemptKey>,
    /// Errors that attempts were answered with.
    errors: Vec<(usize, Reason)>,
    /// Time at which a second attempt is due beside the current one.
    hedge_at: Option<u64>,
}

/// A request on its way to an endpoint, there, or on its way back.
struct InFlightAttempt {
    request: RequestKey,
    /// Its place among the request's.
    place: usize,
    endpoint: usize,
    /// So many times as much work as its request asks for.
    cost: f64,
    answer: Option<Answer>,
    report: Option<Report>,
}

#[derive(Clone, Copy, PartialEq)]
enum Answer {
    Good,
    /// The endpoint says no.
    Refused(Reason),
    /// There is no answer.
    Lost(Reason),
}

/// A report on its way to a proxy.
struct DelayedReport {
    proxy: usize,
    endpoint: usize,
    report: Report,
}

/// Those of each pool, one after the other.
fn proxies(plan: &SimPlan, policy: SimPolicy) -> Vec<Proxy> {
    let of_pool = |members: &Vec<bool>| {
        let members = members.clone();
        (0..plan.sim.proxies).map(move |_| Proxy::new(plan, policy, &members))
    };
    plan.pools.members.iter().flat_map(of_pool).collect()
}

impl<'a> Engine<'a> {
    fn new(plan: &'a SimPlan, policy: SimPolicy) -> Self {
        let mut engine = Self {
            plan,
            is_forebay: policy.is_forebay(),
            workload: Workload::new(&plan.run),
            now: 0,
            clock: Clock::default(),
            fleet: Fleet::new(&plan.groups),
            proxies: proxies(plan, policy),
            balancers: build(policy, plan),
            requests: SlotMap::with_key(),
            attempts: SlotMap::with_key(),
            reports: SlotMap::with_key(),
            probes: SlotMap::with_key(),
            expiries: vec![VecDeque::new(); plan.timeouts.len()],
            decisions: VecDeque::new(),
            outbox: Vec::new(),
            ended: Vec::new(),
            tally: Tally::new(plan),
        };
        engine.plan_polls();
        engine.plan_faults();
        engine.plan_outlier_checks();
        engine
    }

    /// One thing happens; false if nothing more will.
    fn step(&mut self) -> bool {
        if self.workload.next().is_none() && self.requests.is_empty() {
            return false;
        }
        let (expiry, kind) = self.next_expiry();
        let event = self.clock.next().unwrap_or(u64::MAX);
        let arrival = self.workload.next().unwrap_or(u64::MAX);
        if event <= arrival && event <= expiry {
            self.now = event;
            if let Some(event) = self.clock.pop() {
                self.handle(event);
            }
        } else if arrival <= expiry {
            self.now = arrival;
            self.arrive();
        } else {
            self.now = expiry;
            self.expire(kind);
        }
        self.decide();
        true
    }

    /// Time at which the next request is given up, and its kind.
    fn next_expiry(&mut self) -> (u64, usize) {
        let mut next = (u64::MAX, 0);
        for (kind, expiries) in self.expiries.iter_mut().enumerate() {
            while expiries.front().is_some_and(|(_, key)| self.requests.get(*key).is_none()) {
                expiries.pop_front();
            }
            next = next.min((expiries.front().map_or(u64::MAX, |(at, _)| *at), kind));
        }
        next
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Reach(attempt) => self.reach(attempt),
            Event::Served { endpoint, service } => self.end(endpoint, service),
            Event::Close(endpoint) => {
                let next = self.fleet.endpoints[endpoint].next(self.now);
                self.schedule(endpoint, next);
            }
            Event::Fault { fault, begins } => self.inject_fault(fault, begins),
            Event::Check { proxy, endpoint, number } => self.check(proxy, endpoint, number),
            Event::CheckExpired { proxy, endpoint } => self.check_expired(proxy, endpoint),
            Event::Wake { balancer, request } => self.wake(balancer, request),
            Event::Hedge(request) => self.hedge(request),
            Event::AttemptTimeout(attempt) => self.time_out(attempt),
            Event::Outliers(proxy) => self.check_outliers(proxy),
            Event::Answer(attempt) => self.answer(attempt),
            Event::Report(told) => {
                if let Some(told) = self.reports.remove(told) {
                    self.deliver(told.proxy, told.endpoint, &told.report);
                }
            }
            Event::Poll(proxy) => self.poll(proxy),
            // One that is down or stands still does not answer probes.
            Event::ProbeAsks { endpoint, .. } if !self.fleet.endpoints[endpoint].answers() => {}
            Event::ProbeAsks { balancer, endpoint } => {
                let probed = self.fleet.endpoints[endpoint].probed(endpoint);
                let key = self.probes.insert((balancer, probed));
                self.clock.plan(self.now + self.plan.one_way, Event::ProbeAnswers(key));
            }
            Event::ProbeAnswers(key) => {
                if let Some((balancer, probed)) = self.probes.remove(key) {
                    self.balancers[balancer].probed(&probed, self.now);
                }
            }
        }
    }

    fn arrive(&mut self) {
        let intended = self.now;
        let (index, drawn) = self.workload.take();
        let seed = self.plan.run.seed;
        let proxies = u64::from(self.plan.sim.proxies);
        let proxy = usize::try_from(derive(seed, index ^ PROXY) % proxies).unwrap_or(0);
        let request = Request {
            intended,
            demand: drawn.demand.map(nanos),
            rng: drawn.rng,
            kind: drawn.kind,
            client: drawn.client,
            key: derive(seed, index ^ KEY) % KEYS,
            proxy,
            variant: Variant::OWN,
            passed: Passed::default(),
            decisions: decisions::decisions(self.plan, drawn.kind, intended),
            tried: Vec::new(),
            sent: Vec::new(),
            running: Vec::new(),
            errors: Vec::new(),
            hedge_at: None,
        };
        let key = self.requests.insert(request);
        let (timeout, _) = self.plan.timeouts[drawn.kind];
        self.expiries[drawn.kind].push_back((intended + timeout, key));
        self.on(key, attempt::event::Event::Began);
    }
}
