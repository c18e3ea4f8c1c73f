//! The proxy's own code: [`forebay_routing`], called as the proxy calls it.

use super::super::fleet::Fleet;
use super::super::setting::Setting;
use super::{Ask, Balancer, Decision, Done, Ending, bind, usable};
use forebay_routing::pick::{self, Context};
use forebay_routing::{Candidate, InFlight, Load, Policy, Report, Rng, Time};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

/// One proxy.
pub(super) struct Ours {
    policy: Policy,
    loads: Vec<Arc<Load>>,
    /// In rotation, in order.
    ready: Vec<Known>,
    report_ttl: Duration,
    turn: AtomicUsize,
    rng: Rng,
    /// By the request's place.
    guards: Vec<Option<InFlight>>,
}

/// What the proxy knows of an endpoint.
struct Known {
    endpoint: usize,
    load: Arc<Load>,
}

impl Candidate for Known {
    fn load(&self) -> &Load {
        &self.load
    }
}

impl Known {
    fn new(endpoint: usize, load: &Arc<Load>) -> Self {
        Self { endpoint, load: Arc::clone(load) }
    }
}

impl Ours {
    pub(super) fn new(policy: Policy, setting: &Setting, seed: u64) -> Self {
        let load = |_| Arc::new(Load::new(setting.sim.slots));
        let loads: Vec<Arc<Load>> = (0..setting.endpoints()).map(load).collect();
        let known = |(endpoint, load): (usize, &Arc<Load>)| Known::new(endpoint, load);
        Self {
            policy,
            ready: loads.iter().enumerate().map(known).collect(),
            loads,
            report_ttl: setting.sim.reports.ttl.0,
            turn: AtomicUsize::new(0),
            rng: Rng::new(seed),
            guards: Vec::new(),
        }
    }
}

impl Balancer for Ours {
    fn arrive(&mut self, ask: &Ask<'_>, _: &Fleet, out: &mut Vec<Decision>) {
        let context = Context { now: time(ask.now), report_ttl: self.report_ttl, turn: &self.turn };
        let tried = |known: &Known| !usable(ask, known.endpoint);
        let chosen = pick::pick(self.policy, &self.ready, tried, &context, &mut self.rng);
        let chosen = chosen.map(|index| {
            let place = ask.request.slot();
            if self.guards.len() <= place {
                self.guards.resize_with(place + 1, || None);
            }
            self.guards[place] = Some(self.ready[index].load.enter());
            self.ready[index].endpoint
        });
        bind(ask.request, chosen, out);
    }

    fn finished(&mut self, done: &Done, _: &Fleet, _: &mut Vec<Decision>) {
        let Some(guard) = self.guards.get_mut(done.request.slot()).and_then(Option::take) else {
            return;
        };
        match done.ending {
            Ending::Answered => guard.answered(Duration::from_nanos(done.took), time(done.now)),
            Ending::Abandoned => drop(guard),
            Ending::Failed | Ending::Lost => {
                drop(guard);
                self.loads[done.endpoint].failed(time(done.now));
            }
        }
    }

    fn health(&mut self, endpoint: usize, ready: bool, _: &Fleet, _: &mut Vec<Decision>) {
        self.ready.retain(|known| known.endpoint != endpoint);
        if ready {
            let at = self.ready.partition_point(|known| known.endpoint < endpoint);
            self.ready.insert(at, Known::new(endpoint, &self.loads[endpoint]));
        }
    }

    fn reported(&mut self, endpoint: usize, report: &Report, now: u64) {
        self.loads[endpoint].report(report, time(now));
    }
}

fn time(nanos: u64) -> Time {
    Time::new(Duration::from_nanos(nanos))
}
