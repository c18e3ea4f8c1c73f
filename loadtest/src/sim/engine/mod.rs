//! The simulation itself: requests come, are bound, served and answered, on the virtual clock.
//!
//! What proxies do with a request happens in no time; time passes in endpoints and on the wire. All
//! chance follows from the seed and the number of the request or of the proxy, so that every policy
//! is given the very same requests at the same moments.

mod faults;
mod flow;
mod proxy;

use crate::plan::Load;
use crate::plan::arrivals::Arrivals;
use crate::plan::mix::Mix;
use crate::plan::seed::derive;
use crate::report::record::Record;
use crate::sim::balancer::build::build;
use crate::sim::balancer::policy::SimPolicy;
use crate::sim::balancer::{Balancer, Decision};
use crate::sim::clock::{Clock, Event};
use crate::sim::episode::Account;
use crate::sim::fleet::{Fleet, Probed};
use crate::sim::plan::{PROXY, SimPlan};
use crate::sim::slab::{Key, Slab};
use crate::units::nanos;
use forebay_protocol::Reason;
use forebay_routing::Report;
use forebay_routing::line::CLASSES;
use proxy::Proxy;
use std::collections::VecDeque;

/// Different keys that requests have, for those who send the same to the same endpoint.
const KEYS: u64 = 1000;
/// Keeps their chance apart.
const KEY: u64 = 0x6b_65_79;

/// What a simulation found.
#[derive(Debug)]
pub struct Found {
    /// The same that a live run remembers.
    pub record: Record,
    /// Requests that each endpoint served, the warm-up's included.
    pub served: Vec<u64>,
    /// What became of each episode of the scenario, in order.
    pub accounts: Vec<Account>,
    /// What became of the time when more was asked for than could be served.
    pub overload: Option<Account>,
    /// The same by class of urgency, the most urgent first; empty if there was no such time.
    pub classes: Vec<Account>,
    /// The same by kind of request, in the order of the scenario.
    pub kinds: Vec<Account>,
    /// Second attempts beside slow first ones.
    pub hedges: u64,
    /// Events on the virtual clock.
    pub events: u64,
}

/// Runs `setting` with this policy.
pub fn run(setting: &SimPlan, policy: SimPolicy) -> Found {
    let mut engine = Engine::new(setting, policy);
    while engine.step() {}
    let Engine { record, served, accounts, overload, classes, kinds, hedges, clock, .. } = engine;
    Found { record, served, accounts, overload, classes, kinds, hedges, events: clock.planned() }
}

struct Engine<'a> {
    setting: &'a SimPlan,
    mix: Mix,
    arrivals: Arrivals,
    /// When the next request comes, and its number.
    coming: Option<u64>,
    index: u64,
    now: u64,
    clock: Clock,
    fleet: Fleet,
    proxies: Vec<Proxy>,
    balancers: Vec<Box<dyn Balancer>>,
    requests: Slab<Request>,
    attempts: Slab<Attempt>,
    reports: Slab<Told>,
    probes: Slab<(usize, Probed)>,
    /// By kind of request: when each is given up, earliest first.
    expiries: Vec<VecDeque<(u64, Key)>>,
    /// What is still to be done at this moment.
    decisions: VecDeque<Decision>,
    /// Where a balancer writes what it wants.
    wishes: Vec<Decision>,
    /// Attempts that just ended.
    ended: Vec<Key>,
    record: Record,
    accounts: Vec<Account>,
    overload: Option<Account>,
    classes: Vec<Account>,
    kinds: Vec<Account>,
    hedges: u64,
    served: Vec<u64>,
    names: Vec<String>,
}

/// A request that is not answered yet.
struct Request {
    intended: u64,
    demand: Option<u64>,
    rng: fastrand::Rng,
    kind: usize,
    caller: u32,
    /// One of [`KEYS`], by chance.
    key: u64,
    proxy: usize,
    tried: Vec<u32>,
    /// Those under way: one, or two of which the earlier answer counts.
    attempts: Vec<Key>,
}

/// A request on its way to an endpoint, there, or on its way back.
struct Attempt {
    request: Key,
    endpoint: usize,
    sent: u64,
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
struct Told {
    proxy: usize,
    endpoint: usize,
    report: Report,
}

impl<'a> Engine<'a> {
    fn new(setting: &'a SimPlan, policy: SimPolicy) -> Self {
        let plan = &setting.run;
        let mut arrivals = match &plan.load {
            Load::Open(source) => source.arrivals(plan.seed),
            Load::Closed => Arrivals::Recorded { times: [].into(), next: 0 },
        };
        let n = setting.endpoints();
        let account = |(begin, end)| Account::new(begin, end);
        let mut engine = Self {
            setting,
            mix: Mix::new(plan),
            coming: arrivals.next(),
            arrivals,
            index: 0,
            now: 0,
            clock: Clock::default(),
            fleet: Fleet::new(&setting.groups),
            proxies: (0..setting.sim.proxies).map(|_| Proxy::new(setting)).collect(),
            balancers: build(policy, setting),
            requests: Slab::new(),
            attempts: Slab::new(),
            reports: Slab::new(),
            probes: Slab::new(),
            expiries: vec![VecDeque::new(); setting.patience.len()],
            decisions: VecDeque::new(),
            wishes: Vec::new(),
            ended: Vec::new(),
            record: Record::default(),
            accounts: setting.episodes.iter().map(|it| account(setting.stretch(it))).collect(),
            overload: setting.overload.map(account),
            classes: (0..CLASSES).filter_map(|_| setting.overload.map(account)).collect(),
            kinds: plan.requests.iter().filter_map(|_| setting.overload.map(account)).collect(),
            hedges: 0,
            served: vec![0; n],
            names: (0..n).map(|number| format!("endpoint-{number}")).collect(),
        };
        engine.plan_polls();
        engine.plan_episodes();
        engine
    }

    /// One thing happens; false if nothing more will.
    fn step(&mut self) -> bool {
        if self.coming.is_none() && self.requests.len() == 0 {
            return false;
        }
        let (expiry, kind) = self.next_expiry();
        let event = self.clock.next().unwrap_or(u64::MAX);
        let coming = self.coming.unwrap_or(u64::MAX);
        if event <= coming && event <= expiry {
            self.now = event;
            if let Some(event) = self.clock.pop() {
                self.happen(event);
            }
        } else if coming <= expiry {
            self.now = coming;
            self.arrive();
        } else {
            self.now = expiry;
            self.expire(kind);
        }
        self.decide();
        true
    }

    /// When the next request is given up, and of which kind it is.
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

    fn happen(&mut self, event: Event) {
        match event {
            Event::Reach(attempt) => self.reach(attempt),
            Event::Served { endpoint, service } => self.end(endpoint, service),
            Event::Close(endpoint) => {
                let next = self.fleet.endpoints[endpoint].next(self.now);
                self.goes_on(endpoint, next);
            }
            Event::Befall { episode, begins } => self.befall(episode, begins),
            Event::Check { proxy, endpoint, number } => self.check(proxy, endpoint, number),
            Event::Wake { balancer, request } => self.wake(balancer, request),
            Event::Answer(attempt) => self.answer(attempt),
            Event::Report(told) => {
                if let Some(told) = self.reports.remove(told) {
                    self.tell(told.proxy, told.endpoint, &told.report);
                }
            }
            Event::Poll(proxy) => self.poll(proxy),
            // Nobody answers where nobody listens.
            Event::ProbeAsks { endpoint, .. } if !self.fleet.endpoints[endpoint].is_up() => {}
            Event::ProbeAsks { balancer, endpoint } => {
                let probed = self.fleet.endpoints[endpoint].probed(endpoint);
                let key = self.probes.insert((balancer, probed));
                self.clock.plan(self.now + self.setting.half_trip, Event::ProbeAnswers(key));
            }
            Event::ProbeAnswers(key) => {
                if let Some((balancer, probed)) = self.probes.remove(key) {
                    self.balancers[balancer].probed(&probed, self.now);
                }
            }
        }
    }

    fn arrive(&mut self) {
        let (intended, index) = (self.now, self.index);
        let seed = self.setting.run.seed;
        let drawn = self.mix.draw(index);
        let proxies = u64::from(self.setting.sim.proxies);
        let proxy = usize::try_from(derive(seed, index ^ PROXY) % proxies).unwrap_or(0);
        let request = Request {
            intended,
            demand: drawn.demand.map(nanos),
            rng: drawn.rng,
            kind: drawn.kind,
            caller: drawn.caller,
            key: derive(seed, index ^ KEY) % KEYS,
            proxy,
            tried: Vec::new(),
            attempts: Vec::new(),
        };
        let key = self.requests.insert(request);
        let (patience, _) = self.setting.patience[drawn.kind];
        self.expiries[drawn.kind].push_back((intended + patience, key));
        self.coming = self.arrivals.next();
        self.index += 1;
        self.ask(key);
    }
}
