//! EndpointFaultKind, and what proxies do about it: second attempts and health checks, as the proxy has them.

use super::proxy::Check;
use super::{Answer, Engine};
use crate::sim::clock::Event;
use crate::sim::keys::RequestKey;
use crate::units::nanos;
use forebay_protocol::Reason;
use forebay_routing::{Health, ProbeOutcome, Time};
use std::time::Duration;

impl Engine<'_> {
    pub(super) fn plan_faults(&mut self) {
        for (number, fault) in self.plan.faults.iter().enumerate() {
            let (begin, end) = self.plan.fault_span(fault);
            self.clock.plan(begin, Event::Fault { fault: number, begins: true });
            if fault.length.is_some() {
                self.clock.plan(end, Event::Fault { fault: number, begins: false });
            }
        }
        let interval = nanos(self.plan.sim.probe.interval.0).max(1);
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
        }
    }

    /// Sends a request again whose attempt at `endpoint` failed, if that is allowed.
    pub(super) fn retry(&mut self, key: RequestKey, endpoint: usize) -> bool {
        let Some(request) = self.requests.get_mut(key) else { return false };
        let proxy = &self.proxies[request.proxy];
        if !request.tried.is_empty() {
            proxy.budget.retry_failed();
        }
        request.tried.push(u32::try_from(endpoint).unwrap_or(u32::MAX));
        let max = self.plan.sim.retry.attempts as usize;
        let untried = |at: usize| !request.tried.iter().any(|tried| *tried as usize == at);
        let left = || proxy.ready.iter().enumerate().any(|(at, ready)| *ready && untried(at));
        let now = Time::new(Duration::from_nanos(self.now));
        if request.tried.len() >= max || !left() || !proxy.budget.try_retry(now) {
            return false;
        }
        self.ask(key);
        true
    }

    /// The answer to a health check, or that there is none.
    pub(super) fn check(&mut self, proxy: usize, endpoint: usize, number: u32) {
        let now = self.now;
        let up = self.fleet.endpoints[endpoint].is_up();
        let probe = &self.plan.sim.probe;
        let Some(check) = self.check_of(proxy, endpoint).filter(|check| check.number == number)
        else {
            return;
        };
        let outcome = if up { ProbeOutcome::Ready } else { ProbeOutcome::Failed };
        let changed = check.check.probed(outcome);
        check.last = now;
        let pause = if check.check.unsettled() { probe.fast_interval } else { probe.interval };
        let at = now + nanos(pause.0).max(1);
        self.clock.plan(at, Event::Check { proxy, endpoint, number });
        if let Some(health) = changed {
            let ready = health == Health::Ready;
            self.proxies[proxy].ready[endpoint] = ready;
            self.call_balancer(proxy, |balancer, fleet, outbox| {
                balancer.health_changed(endpoint, ready, fleet, outbox);
            });
        }
    }

    /// An attempt got no answer: the next check comes sooner.
    pub(super) fn suspect(&mut self, proxy: usize, endpoint: usize) {
        let (now, fast) = (self.now, nanos(self.plan.sim.probe.fast_interval.0));
        let Some(check) = self.check_of(proxy, endpoint) else { return };
        check.number = check.number.wrapping_add(1);
        let (at, number) = ((check.last + fast).max(now + 1), check.number);
        self.clock.plan(at, Event::Check { proxy, endpoint, number });
    }

    fn check_of(&mut self, proxy: usize, endpoint: usize) -> Option<&mut Check> {
        self.proxies[proxy].checks.iter_mut().find(|check| check.endpoint == endpoint)
    }
}
