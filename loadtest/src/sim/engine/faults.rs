//! Faults of endpoints, and the health checks by which proxies find out, as the proxy has them.

use super::proxy::Check;
use super::{Answer, Engine};
use crate::sim::clock::Event;
use crate::units::nanos;
use forebay_protocol::Reason;
use forebay_routing::ProbeOutcome;

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
        }
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
        let at = now + nanos(pause).max(1);
        self.clock.plan(at, Event::Check { proxy, endpoint, number });
        if let Some(health) = changed {
            self.proxies[proxy].probed(endpoint, health, now);
            self.refresh_rotation(proxy);
        }
    }

    /// An attempt got no answer: the next check comes sooner.
    pub(super) fn suspect(&mut self, proxy: usize, endpoint: usize) {
        let (now, fast) = (self.now, nanos(self.plan.sim.probe.fast_interval));
        let Some(check) = self.check_of(proxy, endpoint) else { return };
        check.number = check.number.wrapping_add(1);
        let (at, number) = ((check.last + fast).max(now + 1), check.number);
        self.clock.plan(at, Event::Check { proxy, endpoint, number });
    }

    fn check_of(&mut self, proxy: usize, endpoint: usize) -> Option<&mut Check> {
        self.proxies[proxy].checks.iter_mut().find(|check| check.endpoint == endpoint)
    }
}
