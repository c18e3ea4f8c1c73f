//! One request: asked for, bound, served, answered, or given up.

use super::decisions::Why;
use super::proxy::Proxy;
use super::{Answer, DelayedReport, Engine, Request};
use crate::report::outcome::{Finished, Outcome};
use crate::sim::balancer::{Balancer, Decision, RequestView};
use crate::sim::clock::Event;
use crate::sim::fleet::{Fleet, Full, Next, Started, Work, times};
use crate::sim::keys::{AttemptKey, RequestKey};
use crate::sim::plan::SimPlan;
use crate::units::nanos;
use forebay_protocol::Reason;
use forebay_routing::attempt::fallback::Passed;
use forebay_routing::{Report, attempt};
use std::time::Duration;

impl Engine<'_> {
    /// Asks the balancer of the request's proxy for an endpoint.
    pub(super) fn ask(&mut self, key: RequestKey) {
        let Some(request) = self.requests.get(key) else { return };
        let number = self.balancer_of(request.proxy);
        let stand_in = self.stand_in_time(key);
        let Some(request) = self.requests.get(key) else { return };
        let ask = view_of(self.plan, &self.proxies, self.now, (key, request));
        let ask = RequestView { stand_in, ..ask };
        self.balancers[number].arrive(&ask, &self.fleet, &mut self.outbox);
        self.collect(number);
    }

    /// Makes a balancer check a request again that is under way.
    pub(super) fn wake(&mut self, number: usize, key: RequestKey) {
        let Some(request) = self.requests.get(key) else { return };
        let ask = view_of(self.plan, &self.proxies, self.now, (key, request));
        self.balancers[number].wake(&ask, &self.fleet, &mut self.outbox);
        self.collect(number);
    }

    /// The balancer of `proxy`: its own, or that of all proxies of its pool.
    pub(super) fn balancer_of(&self, proxy: usize) -> usize {
        let proxies = self.plan.sim.proxies as usize;
        let each = self.balancers.len() / self.plan.pools.members.len();
        proxy / proxies * each + proxy % proxies % each
    }

    /// Calls the balancer of `proxy`.
    pub(super) fn call_balancer(
        &mut self,
        proxy: usize,
        call: impl FnOnce(&mut dyn Balancer, &Fleet, &mut Vec<Decision>),
    ) {
        let number = self.balancer_of(proxy);
        call(self.balancers[number].as_mut(), &self.fleet, &mut self.outbox);
        self.collect(number);
    }

    /// Collects the decisions of this balancer.
    fn collect(&mut self, number: usize) {
        for decision in self.outbox.drain(..) {
            match decision {
                Decision::Probe { endpoint } => {
                    let at = self.now + self.plan.one_way;
                    self.clock.plan(at, Event::ProbeAsks { balancer: number, endpoint });
                }
                Decision::Wake { request, at } => {
                    self.clock.plan(at, Event::Wake { balancer: number, request });
                }
                other => self.decisions.push_back(other),
            }
        }
    }

    /// Carries out the balancers' decisions, until there are none left.
    pub(super) fn decide(&mut self) {
        while let Some(decision) = self.decisions.pop_front() {
            match decision {
                Decision::Bind { request, endpoint } => self.bind(request, endpoint),
                Decision::Refuse { request, reason } => {
                    self.on(request, attempt::event::Event::Rejected(Why(reason)));
                }
                Decision::Probe { .. } | Decision::Wake { .. } => {}
            }
        }
    }

    pub(super) fn reach(&mut self, key: AttemptKey) {
        let Some(attempt) = self.attempts.get(key) else { return };
        let number = attempt.endpoint;
        let Some(request) = self.requests.get(attempt.request) else {
            // Given up on its way.
            self.attempts.remove(key);
            return;
        };
        let endpoint = &mut self.fleet.endpoints[number];
        if !endpoint.is_up() {
            return self.reply(key, self.now, Answer::Lost(Reason::ConnectFailed));
        }
        if let Some(after) = endpoint.sinkhole().filter(|_| endpoint.answers()) {
            return self.reply(key, self.now + after, Answer::Refused(Reason::InferenceFailed));
        }
        let cost = attempt.cost;
        let work = Work { attempt: key, demand: request.demand, cost, rng: request.rng.clone() };
        match endpoint.enter(self.now, work) {
            Ok(next) => self.schedule(number, next),
            Err(Full) => self.reply(key, self.now, Answer::Refused(Reason::QueueFull)),
        }
    }

    /// Plans the next step of an endpoint.
    pub(super) fn schedule(&mut self, endpoint: usize, next: Next) {
        match next {
            Next::Nothing => {}
            Next::Held(until) => self.clock.plan(until, Event::Close(endpoint)),
            Next::Started(Started { number: service, end }) => {
                self.clock.plan(end, Event::Served { endpoint, service });
            }
        }
    }

    pub(super) fn end(&mut self, endpoint: usize, service: u32) {
        let mut ended = std::mem::take(&mut self.ended);
        if let Some(next) = self.fleet.endpoints[endpoint].end(self.now, service, &mut ended) {
            self.schedule(endpoint, next);
        }
        self.tally.served(endpoint, ended.len() as u64);
        for attempt in ended.drain(..) {
            self.reply(attempt, self.now, Answer::Good);
        }
        self.ended = ended;
    }

    /// An answer leaves the endpoint at `at`, and a load report with it.
    pub(super) fn reply(&mut self, key: AttemptKey, at: u64, answer: Answer) {
        let Some(attempt) = self.attempts.get_mut(key) else { return };
        attempt.answer = Some(answer);
        if self.plan.sim.reports.in_band && !matches!(answer, Answer::Lost(_)) {
            attempt.report = Some(self.fleet.endpoints[attempt.endpoint].report());
        }
        match at + self.plan.one_way {
            now if now == self.now => self.answer(key),
            later => self.clock.plan(later, Event::Answer(key)),
        }
    }

    pub(super) fn answer(&mut self, number: AttemptKey) {
        let Some(attempt) = self.attempts.remove(number) else { return };
        // The request may be over already.
        let Some(request) = self.requests.get(attempt.request) else { return };
        // Its connection is closed if it was given up.
        if !request.running.contains(&number) {
            return;
        }
        let (endpoint, proxy) = (attempt.endpoint, request.proxy);
        if let Some(report) = attempt.report {
            self.heard(proxy, endpoint, Report { answered: 1, ..report });
        }
        self.answered(number, &attempt);
    }

    pub(super) fn plan_polls(&mut self) {
        let Some(every) = self.plan.sim.reports.every else { return };
        for proxy in 0..self.proxies.len() {
            // Proxies do not ask all at the same time.
            let first = self.plan.seed_of(proxy as u64) % nanos(every).max(1);
            self.clock.plan(first, Event::Poll(proxy));
        }
    }

    /// A proxy asks all endpoints for their load.
    pub(super) fn poll(&mut self, proxy: usize) {
        let Some(every) = self.plan.sim.reports.every else { return };
        for endpoint in 0..self.fleet.endpoints.len() {
            if self.proxies[proxy].has(endpoint) && self.fleet.endpoints[endpoint].answers() {
                let report = self.fleet.endpoints[endpoint].report();
                self.heard(proxy, endpoint, report);
            }
        }
        self.clock.plan(self.now + nanos(every).max(1), Event::Poll(proxy));
    }

    /// A report was heard by `proxy`, which may take it in later.
    fn heard(&mut self, proxy: usize, endpoint: usize, report: Report) {
        match nanos(self.plan.sim.reports.delay) {
            0 => self.deliver(proxy, endpoint, &report),
            delay => {
                // By then the proxy has counted its answer out.
                let report = Report { answered: 0, ..report };
                let key = self.reports.insert(DelayedReport { proxy, endpoint, report });
                self.clock.plan(self.now + delay, Event::Report(key));
            }
        }
    }

    pub(super) fn deliver(&mut self, proxy: usize, endpoint: usize, report: &Report) {
        let now = self.now;
        self.call_balancer(proxy, |balancer, _, _| balancer.reported(endpoint, report, now));
    }

    /// The time of the earliest request of this kind is up.
    pub(super) fn expire(&mut self, kind: usize) {
        let Some((_, key)) = self.expiries[kind].pop_front() else { return };
        let Some(request) = self.requests.get(key) else { return };
        if request.running.is_empty() {
            self.call_balancer(request.proxy, |balancer, _, outbox| {
                balancer.abandoned(key, outbox);
            });
        } else if self.measured(key) {
            self.tally.late();
        }
        self.expired(key);
    }

    pub(super) fn measured(&self, key: RequestKey) -> bool {
        let warm_up = nanos(self.plan.run.timeline.warm_up);
        self.requests.get(key).is_some_and(|request| request.intended >= warm_up)
    }

    /// The request is over.
    pub(super) fn finish(&mut self, key: RequestKey, outcome: Outcome) {
        let Some(request) = self.requests.remove(key) else { return };
        let intended = Duration::from_nanos(request.intended);
        let finished = Finished {
            intended,
            taken: intended,
            sent: intended,
            done: Duration::from_nanos(self.now),
            outcome,
            bytes_out: 0,
            bytes_in: 0,
        };
        self.tally.finish(self.plan, request.kind, &finished);
    }
}

/// The number of the model that a request of this kind asks for once it has passed so many fallbacks.
pub(super) fn model_of(plan: &SimPlan, kind: usize, passed: Passed) -> u64 {
    plan.models[kind] + passed.count() * plan.run.requests.len() as u64
}

/// The part of a request that its balancer sees.
pub(super) fn view_of<'a>(
    plan: &SimPlan,
    proxies: &'a [Proxy],
    now: u64,
    (key, request): (RequestKey, &'a Request),
) -> RequestView<'a> {
    RequestView {
        request: key,
        now,
        key: request.key,
        client: request.client,
        class: plan.classes[request.kind],
        model: model_of(plan, request.kind, request.passed),
        deadline: request.intended.saturating_add(plan.timeouts[request.kind].0),
        demand: times(request.demand.unwrap_or(0), request.variant.cost),
        ready: &proxies[request.proxy].ready,
        tried: &request.tried,
        stand_in: None,
    }
}
