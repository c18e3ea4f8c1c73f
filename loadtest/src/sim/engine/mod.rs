//! The simulation itself: requests come, are bound, served and answered, on the virtual clock.
//!
//! What proxies do with a request happens in no time; time passes in endpoints and on the wire. All
//! chance follows from the seed and the number of the request or of the proxy, so that every policy
//! is given the very same requests at the same moments.

mod flow;

use crate::arrivals::Arrivals;
use crate::mix::{Mix, mix};
use crate::plan::Load;
use crate::record::Record;
use crate::sim::balancer::{Balancer, Decision, Kind, Probed};
use crate::sim::clock::{Clock, Event};
use crate::sim::fleet::Fleet;
use crate::sim::setting::{PROXY, Setting};
use crate::sim::slab::{Key, Slab};
use crate::units::nanos;
use forebay_protocol::Reason;
use forebay_routing::Report;
use std::collections::VecDeque;

/// What a simulation found.
#[derive(Debug)]
pub struct Found {
    /// The same that a live run remembers.
    pub record: Record,
    /// Requests that each endpoint served, the warm-up's included.
    pub served: Vec<u64>,
    /// Events on the virtual clock.
    pub events: u64,
}

/// Runs `setting` with this policy.
pub fn run(setting: &Setting, policy: Kind) -> Found {
    let mut engine = Engine::new(setting, policy);
    while engine.step() {}
    engine.into_result()
}

struct Engine<'a> {
    setting: &'a Setting,
    mix: Mix,
    arrivals: Arrivals,
    /// The next arrival, and its number.
    coming: Option<u64>,
    index: u64,
    now: u64,
    clock: Clock,
    fleet: Fleet,
    balancers: Vec<Box<dyn Balancer>>,
    requests: Slab<Request>,
    attempts: Slab<Attempt>,
    reports: Slab<Told>,
    probes: Slab<(usize, Probed)>,
    /// When requests are given up, earliest first.
    expiries: VecDeque<(u64, Key)>,
    /// What is still to be done at this moment.
    decisions: VecDeque<Decision>,
    /// Where a balancer writes what it wants.
    wishes: Vec<Decision>,
    record: Record,
    served: Vec<u64>,
    names: Vec<String>,
}

/// A request that is not answered yet.
struct Request {
    intended: u64,
    demand: Option<u64>,
    rng: fastrand::Rng,
    proxy: usize,
    tried: Vec<u32>,
    attempt: Option<Key>,
}

/// A request on its way to an endpoint, there, or on its way back.
struct Attempt {
    request: Key,
    endpoint: usize,
    sent: u64,
    answer: Answer,
    report: Option<Report>,
}

#[derive(Clone, Copy, PartialEq)]
enum Answer {
    None,
    Good,
    Refused(Reason),
}

/// A report on its way to a proxy.
struct Told {
    proxy: usize,
    endpoint: usize,
    report: Report,
}

impl<'a> Engine<'a> {
    fn new(setting: &'a Setting, policy: Kind) -> Self {
        let plan = &setting.plan;
        let mut arrivals = match &plan.load {
            Load::Open(source) => source.arrivals(plan.seed),
            Load::Closed => Arrivals::Recorded { times: [].into(), next: 0 },
        };
        let mut clock = Clock::default();
        if let Some(every) = setting.sim.reports.every {
            for proxy in 0..setting.sim.proxies as usize {
                // Proxies do not ask all at the same time.
                clock.plan(
                    setting.seed_of(proxy as u64) % nanos(every.0).max(1),
                    Event::Poll(proxy),
                );
            }
        }
        let n = setting.endpoints();
        Self {
            setting,
            mix: Mix::new(plan),
            coming: arrivals.next(),
            arrivals,
            index: 0,
            now: 0,
            clock,
            fleet: Fleet::new(&setting.groups),
            balancers: policy.make(setting),
            requests: Slab::new(),
            attempts: Slab::new(),
            reports: Slab::new(),
            probes: Slab::new(),
            expiries: VecDeque::new(),
            decisions: VecDeque::new(),
            wishes: Vec::new(),
            record: Record::default(),
            served: vec![0; n],
            names: (0..n).map(|number| format!("endpoint-{number}")).collect(),
        }
    }

    /// One thing happens; false if nothing more will.
    fn step(&mut self) -> bool {
        if self.coming.is_none() && self.requests.len() == 0 {
            return false;
        }
        while self.expiries.front().is_some_and(|(_, key)| self.requests.get(*key).is_none()) {
            self.expiries.pop_front();
        }
        let expiry = self.expiries.front().map_or(u64::MAX, |(at, _)| *at);
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
            self.expire();
        }
        self.decide();
        true
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Reach(attempt) => self.reach(attempt),
            Event::Served { endpoint, service } => self.end(endpoint, service),
            Event::Answer(attempt) => self.answer(attempt),
            Event::Report(told) => {
                if let Some(told) = self.reports.remove(told) {
                    self.tell(told.proxy, told.endpoint, &told.report);
                }
            }
            Event::Poll(proxy) => self.poll(proxy),
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
        let seed = self.setting.plan.seed;
        let drawn = self.mix.draw(index);
        let proxies = u64::from(self.setting.sim.proxies);
        let proxy = usize::try_from(mix(seed ^ mix(index ^ PROXY)) % proxies).unwrap_or(0);
        let request = Request {
            intended,
            demand: drawn.demand.map(nanos),
            rng: drawn.rng,
            proxy,
            tried: Vec::new(),
            attempt: None,
        };
        let key = self.requests.insert(request);
        self.expiries.push_back((intended + nanos(self.setting.plan.timeout), key));
        self.coming = self.arrivals.next();
        self.index += 1;
        self.ask(key);
    }

    fn into_result(self) -> Found {
        Found { record: self.record, served: self.served, events: self.clock.planned() }
    }
}
