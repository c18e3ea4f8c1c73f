//! Faults of endpoints, and the health checks by which proxies find out, as the proxy has them.

use super::decisions::Why;
use super::proxy::Check;
use super::{Answer, Engine};
use crate::scenario::EndpointFaultKind;
use crate::sim::clock::Event;
use crate::sim::fleet::Next;
use crate::sim::keys::RequestKey;
use crate::units::nanos;
use forebay_protocol::Reason;
use forebay_routing::ProbeOutcome;
use forebay_routing::attempt::event::{self, End};

impl Engine<'_> {
    pub(super) fn plan_faults(&mut self) {
        for (number, fault) in self.plan.faults.iter().enumerate() {
            let (begin, end) = self.plan.fault_span(fault);
            self.clock.plan(begin, Event::Fault { fault: number, begins: true });
            if fault.length.is_some() {
                self.clock.plan(end, Event::Fault { fault: number, begins: false });
            }
        }
        let interval = nanos(self.plan.sim.probe.interval).max(1);
        for proxy in 0..self.proxies.len() {
            // Proxies do not ask all at the same time.
            let first = self.plan.seed_of(proxy as u64) % interval;
            for check in &self.proxies[proxy].checks {
                let endpoint = check.endpoint;
                self.clock.plan(first, Event::Check { proxy, endpoint, number: 0 });
            }
        }
    }

    pub(super) fn inject_fault(&mut self, fault: usize, begins: bool) {
        let Some(fault) = self.plan.faults.get(fault) else { return };
        for endpoint in fault.endpoints.iter().map(|number| *number as usize) {
            let effect = self.fleet.endpoints[endpoint].inject(self.now, fault.kind, begins);
            for service in effect.moved {
                let number = service.number;
                self.clock.plan(service.end, Event::Served { endpoint, service: number });
            }
            for attempt in effect.lost {
                self.reply(attempt, self.now, Answer::Lost(Reason::EndpointReset));
            }
            if fault.kind == EndpointFaultKind::Silent && !begins {
                self.start_waiting(endpoint);
            }
        }
    }

    /// An endpoint that stood still takes up what has come meanwhile.
    fn start_waiting(&mut self, endpoint: usize) {
        loop {
            let next = self.fleet.endpoints[endpoint].next(self.now);
            if matches!(next, Next::Nothing) {
                return;
            }
            self.schedule(endpoint, next);
        }
    }

    /// The answer to a health check, or that the connection is refused. One that stands still says nothing.
    pub(super) fn check(&mut self, proxy: usize, endpoint: usize, number: u32) {
        let now = self.now;
        let (is_up, answers) = {
            let endpoint = &self.fleet.endpoints[endpoint];
            (endpoint.is_up(), endpoint.answers())
        };
        let heard = self.proxies[proxy].answers(endpoint);
        let Some(check) = self.check_of(proxy, endpoint).filter(|check| check.number == number)
        else {
            return;
        };
        check.last = now;
        if is_up && !answers {
            check.heard = Some(heard);
            let timeout = nanos(self.plan.sim.probe.timeout);
            return self.clock.plan(now + timeout, Event::CheckExpired { proxy, endpoint });
        }
        let outcome = if is_up { ProbeOutcome::Ready } else { ProbeOutcome::Failed };
        self.checked(proxy, endpoint, outcome);
    }

    /// The time of a health check is up: no answer, unless the endpoint has gone on meanwhile.
    pub(super) fn check_expired(&mut self, proxy: usize, endpoint: usize) {
        let (answers, heard) =
            (self.fleet.endpoints[endpoint].answers(), self.proxies[proxy].answers(endpoint));
        let Some(check) = self.check_of(proxy, endpoint) else { return };
        let before = check.heard.take();
        let outcome = match before {
            _ if answers => ProbeOutcome::Ready,
            Some(before) if before != heard => ProbeOutcome::Working,
            _ => ProbeOutcome::Silent,
        };
        self.checked(proxy, endpoint, outcome);
        if outcome == ProbeOutcome::Silent {
            self.give_up_waiting(proxy, endpoint);
        }
    }

    /// A probe had no answer: what waits at a silent endpoint for longer than it should is sent elsewhere.
    fn give_up_waiting(&mut self, proxy: usize, endpoint: usize) {
        if !self.proxies[proxy].is_silent(endpoint) {
            return;
        }
        let now = self.now;
        let overdue = |request: &super::Request| {
            let running = request.sent.iter().enumerate().filter(|(_, sent)| {
                sent.endpoint == endpoint && request.running.contains(&sent.key)
            });
            let mut overdue = running
                .filter(|(_, sent)| sent.patience.is_some_and(|least| now - sent.at >= least));
            overdue.next().map(|(place, _)| place)
        };
        let here = self.requests.iter().filter(|(_, request)| request.proxy == proxy);
        let lost: Vec<(RequestKey, usize)> =
            here.filter_map(|(key, request)| Some((key, overdue(request)?))).collect();
        for (key, place) in lost {
            let end = End::Silent(Why(Reason::EndpointSilent));
            self.on(key, event::Event::Ended(place, end));
        }
    }

    fn checked(&mut self, proxy: usize, endpoint: usize, outcome: ProbeOutcome) {
        let (now, probe) = (self.now, &self.plan.sim.probe);
        let Some(check) = self.check_of(proxy, endpoint) else { return };
        let was_silent = check.check.is_silent();
        let changed = check.check.probed(outcome);
        let (silent, number) = (check.check.is_silent(), check.number);
        let pause = if check.check.unsettled() { probe.fast_interval } else { probe.interval };
        let at = now + nanos(pause).max(1);
        self.clock.plan(at, Event::Check { proxy, endpoint, number });
        if let Some(health) = changed {
            self.proxies[proxy].probed(endpoint, health, now);
        }
        if changed.is_some() || silent != was_silent {
            self.proxies[proxy].set_silent(endpoint, silent);
            self.refresh_rotation(proxy);
        }
    }

    /// An attempt got no answer: the next check comes sooner.
    pub(super) fn suspect(&mut self, proxy: usize, endpoint: usize) {
        let (now, fast) = (self.now, nanos(self.plan.sim.probe.fast_interval));
        // One that is asked already will be asked again soon if it says nothing.
        let check = self.check_of(proxy, endpoint).filter(|check| check.heard.is_none());
        let Some(check) = check else { return };
        check.number = check.number.wrapping_add(1);
        let (at, number) = ((check.last + fast).max(now + 1), check.number);
        self.clock.plan(at, Event::Check { proxy, endpoint, number });
    }

    fn check_of(&mut self, proxy: usize, endpoint: usize) -> Option<&mut Check> {
        self.proxies[proxy].checks.iter_mut().find(|check| check.endpoint == endpoint)
    }
}
