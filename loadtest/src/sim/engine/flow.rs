//! One request: asked for, bound, served, answered, or given up.

use super::{Answer, Attempt, Engine, Told};
use crate::link::Failure;
use crate::record::{Finished, Outcome};
use crate::sim::balancer::{Ask, Balancer, Decision, Done, Ending};
use crate::sim::clock::Event;
use crate::sim::fleet::{Fleet, Full, Started, Work};
use crate::sim::slab::Key;
use crate::units::nanos;
use forebay_protocol::Reason;
use forebay_routing::Report;
use std::time::Duration;

/// What every answer with this status says.
const OK: u16 = 200;

impl Engine<'_> {
    /// Has the request's proxy say where it goes.
    pub(super) fn ask(&mut self, key: Key) {
        let Some(request) = self.requests.get(key) else { return };
        let (proxy, tried) = (request.proxy, request.tried.clone());
        let demand = request.demand.unwrap_or(0);
        let ask = Ask { request: key, now: self.now, demand, tried: &tried };
        self.consult(proxy, |balancer, fleet, wishes| balancer.arrive(&ask, fleet, wishes));
    }

    /// Calls the balancer of `proxy` and notes what it wants.
    pub(super) fn consult(
        &mut self,
        proxy: usize,
        call: impl FnOnce(&mut dyn Balancer, &Fleet, &mut Vec<Decision>),
    ) {
        let number = proxy % self.balancers.len();
        call(self.balancers[number].as_mut(), &self.fleet, &mut self.wishes);
        for wish in self.wishes.drain(..) {
            match wish {
                Decision::Probe { endpoint } => {
                    let balancer = number;
                    let at = self.now + self.setting.half_trip;
                    self.clock.plan(at, Event::ProbeAsks { balancer, endpoint });
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
                Decision::Probe { .. } => {}
            }
        }
    }

    fn bind(&mut self, key: Key, endpoint: usize) {
        let Some(request) = self.requests.get_mut(key) else { return };
        let attempt =
            Attempt { request: key, endpoint, sent: self.now, answer: Answer::None, report: None };
        let attempt = self.attempts.insert(attempt);
        request.attempt = Some(attempt);
        let at = self.now + self.setting.half_trip;
        self.fleet.endpoints[endpoint].expect(at, request.demand.unwrap_or(0));
        match self.setting.half_trip {
            0 => self.reach(attempt),
            _ => self.clock.plan(at, Event::Reach(attempt)),
        }
    }

    pub(super) fn reach(&mut self, key: Key) {
        let Some(attempt) = self.attempts.get(key) else { return };
        let endpoint = attempt.endpoint;
        let Some(request) = self.requests.get(attempt.request) else {
            // Given up on its way.
            self.attempts.remove(key);
            self.fleet.endpoints[endpoint].lost();
            return;
        };
        let work = Work::new(key, request.demand, request.rng.clone());
        match self.fleet.endpoints[endpoint].enter(self.now, work) {
            Ok(started) => self.started(endpoint, started),
            Err(Full) => self.reply(key, Answer::Refused(Reason::QueueFull)),
        }
    }

    fn started(&mut self, endpoint: usize, started: Option<Started>) {
        if let Some(Started { number: service, end }) = started {
            self.clock.plan(end, Event::Served { endpoint, service });
        }
    }

    pub(super) fn end(&mut self, endpoint: usize, service: u32) {
        let Some((ended, next)) = self.fleet.endpoints[endpoint].end(self.now, service) else {
            return;
        };
        self.started(endpoint, next);
        self.served[endpoint] += 1;
        self.reply(ended, Answer::Good);
    }

    /// An answer leaves the endpoint, and a load report with it.
    fn reply(&mut self, key: Key, answer: Answer) {
        let Some(attempt) = self.attempts.get_mut(key) else { return };
        attempt.answer = answer;
        attempt.report = self
            .setting
            .sim
            .reports
            .in_band
            .then(|| self.fleet.endpoints[attempt.endpoint].report());
        match self.setting.half_trip {
            0 => self.answer(key),
            half => self.clock.plan(self.now + half, Event::Answer(key)),
        }
    }

    pub(super) fn answer(&mut self, key: Key) {
        let Some(attempt) = self.attempts.remove(key) else { return };
        // Nobody waits for it any more.
        let Some(request) = self.requests.get_mut(attempt.request) else { return };
        let proxy = request.proxy;
        request.attempt = None;
        if let Some(report) = attempt.report {
            self.told(proxy, attempt.endpoint, Report { answered: 1, ..report });
        }
        let ending = match attempt.answer {
            Answer::Good => Ending::Answered,
            Answer::None | Answer::Refused(_) => Ending::Failed,
        };
        let done = Done {
            request: attempt.request,
            endpoint: attempt.endpoint,
            now: self.now,
            took: self.now - attempt.sent,
            ending,
        };
        self.consult(proxy, |balancer, fleet, wishes| balancer.finished(&done, fleet, wishes));
        let outcome = match attempt.answer {
            Answer::Good => Outcome::Ok(OK),
            Answer::Refused(reason) => refused(reason),
            Answer::None => refused(Reason::EndpointReset),
        };
        if self.measured(attempt.request) {
            self.record.share(None, Some(&self.names[attempt.endpoint]));
        }
        self.finish(attempt.request, outcome);
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

    /// A proxy asks all endpoints for their load.
    pub(super) fn poll(&mut self, proxy: usize) {
        let Some(every) = self.setting.sim.reports.every else { return };
        for endpoint in 0..self.fleet.endpoints.len() {
            let report = self.fleet.endpoints[endpoint].report();
            self.told(proxy, endpoint, report);
        }
        self.clock.plan(self.now + nanos(every.0).max(1), Event::Poll(proxy));
    }

    /// The time of the earliest request is up.
    pub(super) fn expire(&mut self) {
        let Some((_, key)) = self.expiries.pop_front() else { return };
        let Some(request) = self.requests.get(key) else { return };
        let proxy = request.proxy;
        let Some(attempt) = request.attempt else {
            self.consult(proxy, |balancer, _, wishes| balancer.left(key, wishes));
            self.finish(key, Outcome::Failed(Failure::Timeout));
            return;
        };
        let Some(Attempt { endpoint, sent, .. }) = self.attempts.get(attempt) else { return };
        let (endpoint, took) = (*endpoint, self.now - sent);
        if self.fleet.endpoints[endpoint].leave(self.now, attempt) {
            self.attempts.remove(attempt);
        }
        let ending = Ending::Abandoned;
        let done = Done { request: key, endpoint, now: self.now, took, ending };
        self.consult(proxy, |balancer, fleet, wishes| balancer.finished(&done, fleet, wishes));
        self.finish(key, Outcome::Failed(Failure::Timeout));
    }

    fn measured(&self, key: Key) -> bool {
        let warm_up = nanos(self.setting.plan.window.warm_up);
        self.requests.get(key).is_some_and(|request| request.intended >= warm_up)
    }

    /// The request is over.
    pub(super) fn finish(&mut self, key: Key, outcome: Outcome) {
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
        self.record.finish(self.setting.plan.window, &finished);
    }
}

fn refused(reason: Reason) -> Outcome {
    Outcome::refused(reason.status().as_u16(), Some(reason.code()))
}
