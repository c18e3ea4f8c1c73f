//! One request: asked for, bound, served, answered, or given up.

use super::proxy::Proxy;
use super::{Answer, Attempt, Engine, Request, Told};
use crate::report::outcome::{Finished, Outcome};
use crate::sim::balancer::{Ask, Balancer, Decision, Done, Ending};
use crate::sim::clock::Event;
use crate::sim::fleet::{Fleet, Full, Next, Started, Work};
use crate::sim::plan::{SimPlan, refused};
use crate::sim::slab::Key;
use crate::units::nanos;
use forebay_protocol::Reason;
use forebay_routing::{Report, Time};
use std::time::Duration;

/// The status of every good answer.
const OK: u16 = 200;

impl Engine<'_> {
    /// Has the request's proxy say where it goes.
    pub(super) fn ask(&mut self, key: Key) {
        let Some(request) = self.requests.get(key) else { return };
        let number = request.proxy % self.balancers.len();
        let ask = asking(self.setting, &self.proxies, self.now, (key, request));
        self.balancers[number].arrive(&ask, &self.fleet, &mut self.wishes);
        self.grant(number);
    }

    /// Has a balancer look at a request again that is under way.
    pub(super) fn wake(&mut self, number: usize, key: Key) {
        let Some(request) = self.requests.get(key) else { return };
        let ask = asking(self.setting, &self.proxies, self.now, (key, request));
        self.balancers[number].woken(&ask, &mut self.wishes);
        self.grant(number);
    }

    /// Calls the balancer of `proxy`.
    pub(super) fn consult(
        &mut self,
        proxy: usize,
        call: impl FnOnce(&mut dyn Balancer, &Fleet, &mut Vec<Decision>),
    ) {
        let number = proxy % self.balancers.len();
        call(self.balancers[number].as_mut(), &self.fleet, &mut self.wishes);
        self.grant(number);
    }

    /// Takes up what this balancer wants.
    fn grant(&mut self, number: usize) {
        for wish in self.wishes.drain(..) {
            match wish {
                Decision::Probe { endpoint } => {
                    let at = self.now + self.setting.half_trip;
                    self.clock.plan(at, Event::ProbeAsks { balancer: number, endpoint });
                }
                Decision::Wake { request, at } => {
                    self.clock.plan(at, Event::Wake { balancer: number, request });
                }
                other => self.decisions.push_back(other),
            }
        }
    }

    /// Does what balancers want, until they want nothing more.
    pub(super) fn decide(&mut self) {
        while let Some(decision) = self.decisions.pop_front() {
            match decision {
                Decision::Bind { request, endpoint } => self.bind(request, endpoint),
                Decision::Refuse { request, reason } => self.finish(request, refused(reason)),
                Decision::Probe { .. } | Decision::Wake { .. } => {}
            }
        }
    }

    fn bind(&mut self, key: Key, endpoint: usize) {
        let Some(request) = self.requests.get_mut(key) else { return };
        for (account, episode) in self.accounts.iter_mut().zip(&self.setting.episodes) {
            let hit = episode.endpoints.iter().any(|number| *number as usize == endpoint);
            account.bound(self.now, hit);
        }
        let attempt =
            Attempt { request: key, endpoint, sent: self.now, answer: None, report: None };
        let attempt = self.attempts.insert(attempt);
        self.hedges += u64::from(!request.attempts.is_empty());
        request.attempts.push(attempt);
        let at = self.now + self.setting.half_trip;
        self.fleet.endpoints[endpoint].expect(at, request.demand.unwrap_or(0));
        match self.setting.half_trip {
            0 => self.reach(attempt),
            _ => self.clock.plan(at, Event::Reach(attempt)),
        }
    }

    pub(super) fn reach(&mut self, key: Key) {
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
        if let Some(after) = endpoint.sinkhole() {
            return self.reply(key, self.now + after, Answer::Refused(Reason::InferenceFailed));
        }
        let work = Work { attempt: key, demand: request.demand, rng: request.rng.clone() };
        match endpoint.enter(self.now, work) {
            Ok(next) => self.goes_on(number, next),
            Err(Full) => self.reply(key, self.now, Answer::Refused(Reason::QueueFull)),
        }
    }

    /// What an endpoint does next is planned.
    pub(super) fn goes_on(&mut self, endpoint: usize, next: Next) {
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
            self.goes_on(endpoint, next);
        }
        self.served[endpoint] += ended.len() as u64;
        for attempt in ended.drain(..) {
            self.reply(attempt, self.now, Answer::Good);
        }
        self.ended = ended;
    }

    /// An answer leaves the endpoint at `at`, and a load report with it.
    pub(super) fn reply(&mut self, key: Key, at: u64, answer: Answer) {
        let Some(attempt) = self.attempts.get_mut(key) else { return };
        attempt.answer = Some(answer);
        if self.setting.sim.reports.in_band && !matches!(answer, Answer::Lost(_)) {
            attempt.report = Some(self.fleet.endpoints[attempt.endpoint].report());
        }
        match at + self.setting.half_trip {
            now if now == self.now => self.answer(key),
            later => self.clock.plan(later, Event::Answer(key)),
        }
    }

    pub(super) fn answer(&mut self, number: Key) {
        let Some(attempt) = self.attempts.remove(number) else { return };
        // Nobody may wait for it any more.
        let Some(request) = self.requests.get_mut(attempt.request) else { return };
        let (key, endpoint, proxy) = (attempt.request, attempt.endpoint, request.proxy);
        request.attempts.retain(|other| *other != number);
        let others = request.attempts.clone();
        if let Some(report) = attempt.report {
            self.told(proxy, endpoint, Report { answered: 1, ..report });
        }
        let (ending, outcome) = match attempt.answer {
            Some(Answer::Good) => (Ending::Answered, Outcome::Ok(OK)),
            Some(Answer::Refused(reason)) => (Ending::Failed, refused(reason)),
            Some(Answer::Lost(reason)) => (Ending::Lost, refused(reason)),
            None => (Ending::Lost, refused(Reason::EndpointReset)),
        };
        let took = self.now - attempt.sent;
        let done = Done { request: key, endpoint, now: self.now, took, ending };
        self.consult(proxy, |balancer, fleet, wishes| balancer.finished(&done, fleet, wishes));
        if ending == Ending::Lost {
            self.suspect(proxy, endpoint);
        }
        if ending == Ending::Answered {
            self.proxies[proxy].budget.earn(Time::new(Duration::from_nanos(self.now)));
        } else {
            // As long as there is another attempt, that may be answered.
            let tried = self.requests.get_mut(key).filter(|_| !others.is_empty());
            if let Some(request) = tried {
                request.tried.push(u32::try_from(endpoint).unwrap_or(u32::MAX));
                return;
            }
            if self.retry(key, endpoint) {
                return;
            }
        }
        for other in others {
            self.give_up(proxy, other, Ending::Beaten);
        }
        if self.measured(key) {
            self.record.share(None, Some(&self.names[endpoint]));
        }
        self.finish(key, outcome);
    }

    pub(super) fn plan_polls(&mut self) {
        let Some(every) = self.setting.sim.reports.every else { return };
        for proxy in 0..self.proxies.len() {
            // Proxies do not ask all at the same time.
            let first = self.setting.seed_of(proxy as u64) % nanos(every.0).max(1);
            self.clock.plan(first, Event::Poll(proxy));
        }
    }

    /// A proxy asks all endpoints for their load.
    pub(super) fn poll(&mut self, proxy: usize) {
        let Some(every) = self.setting.sim.reports.every else { return };
        for endpoint in 0..self.fleet.endpoints.len() {
            if self.fleet.endpoints[endpoint].is_up() {
                let report = self.fleet.endpoints[endpoint].report();
                self.told(proxy, endpoint, report);
            }
        }
        self.clock.plan(self.now + nanos(every.0).max(1), Event::Poll(proxy));
    }

    /// A report was heard by `proxy`, which may take it in later.
    fn told(&mut self, proxy: usize, endpoint: usize, report: Report) {
        match nanos(self.setting.sim.reports.delay.0) {
            0 => self.tell(proxy, endpoint, &report),
            delay => {
                // By then the proxy has counted its answer out.
                let report = Report { answered: 0, ..report };
                let key = self.reports.insert(Told { proxy, endpoint, report });
                self.clock.plan(self.now + delay, Event::Report(key));
            }
        }
    }

    pub(super) fn tell(&mut self, proxy: usize, endpoint: usize, report: &Report) {
        let now = self.now;
        self.consult(proxy, |balancer, _, _| balancer.reported(endpoint, report, now));
    }

    /// The time of the earliest request of this kind is up.
    pub(super) fn expire(&mut self, kind: usize) {
        let Some((_, key)) = self.expiries[kind].pop_front() else { return };
        let Some(request) = self.requests.get(key) else { return };
        let (proxy, (_, outcome)) = (request.proxy, self.setting.patience[request.kind]);
        let attempts = request.attempts.clone();
        if attempts.is_empty() {
            self.consult(proxy, |balancer, _, wishes| balancer.left(key, wishes));
        }
        for attempt in attempts {
            self.give_up(proxy, attempt, Ending::Abandoned);
        }
        self.finish(key, outcome);
    }

    /// Nobody waits for this attempt any more.
    fn give_up(&mut self, proxy: usize, key: Key, ending: Ending) {
        let Some(attempt) = self.attempts.get(key) else { return };
        let Attempt { request, endpoint, sent, .. } = *attempt;
        if self.fleet.endpoints[endpoint].leave(self.now, key) {
            self.attempts.remove(key);
        }
        let done = Done { request, endpoint, now: self.now, took: self.now - sent, ending };
        self.consult(proxy, |balancer, fleet, wishes| balancer.finished(&done, fleet, wishes));
    }

    fn measured(&self, key: Key) -> bool {
        let warm_up = nanos(self.setting.run.timeline.warm_up);
        self.requests.get(key).is_some_and(|request| request.intended >= warm_up)
    }

    /// The request is over.
    fn finish(&mut self, key: Key, outcome: Outcome) {
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
        self.record.finish(self.setting.run.timeline, &finished);
        let class = self.classes.get_mut(usize::from(self.setting.classes[request.kind]));
        let kind = self.kinds.get_mut(request.kind);
        let accounts = self.accounts.iter_mut().chain(&mut self.overload).chain(class);
        for account in accounts.chain(kind) {
            account.finished(&finished);
        }
    }
}

/// What a balancer is told of a request.
fn asking<'a>(
    setting: &SimPlan,
    proxies: &'a [Proxy],
    now: u64,
    (key, request): (Key, &'a Request),
) -> Ask<'a> {
    Ask {
        request: key,
        now,
        key: request.key,
        caller: request.caller,
        class: setting.classes[request.kind],
        deadline: request.intended.saturating_add(setting.patience[request.kind].0),
        demand: request.demand.unwrap_or(0),
        ready: &proxies[request.proxy].ready,
        tried: &request.tried,
    }
}
