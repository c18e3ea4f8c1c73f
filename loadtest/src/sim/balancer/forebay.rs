//! The proxy's own code: [`forebay_routing`], called as the proxy calls it.

use super::{Balancer, Decision, Done, RequestView, bind};
use crate::sim::fleet::Fleet;
use crate::sim::keys::RequestKey;
use crate::sim::plan::SimPlan;
use forebay_protocol::Reason;
use forebay_routing::attempt::blame::Sample;
use forebay_routing::pick::{Context, Ring};
use forebay_routing::{
    Binding, Candidate, Dispatch, Enqueued, Entry, FairQueue, InFlight, Load, ModelHandle,
    ModelStats, PickMemory, Policy, PoolView, Position, Report, Rng, StandInTime, Time,
};
use slotmap::SecondaryMap;
use std::sync::Arc;
use std::time::Duration;

/// One proxy.
pub(super) struct Forebay {
    policy: Policy,
    loads: Vec<Arc<Load>>,
    /// In rotation, in order.
    ready: Vec<ReadyEndpoint>,
    report_ttl: Duration,
    slow_start: Duration,
    handoff_delay: Duration,
    recent: Arc<PickMemory>,
    /// Of those in rotation, if the policy needs it.
    ring: Ring,
    rng: Rng,
    /// Time of the last event here.
    now: u64,
    /// Requests that wait, and where each was sent already.
    queue: FairQueue<(RequestKey, Vec<u32>)>,
    /// Statistics of each model.
    models: Arc<ModelStats>,
    /// No second attempt is made sooner; `None`: none is made at all.
    min_hedge_delay: Option<Duration>,
    /// Since when each has been ready.
    since: Vec<Time>,
    states: SecondaryMap<RequestKey, State>,
}

/// The state of a request.
enum State {
    Queued(Position, ModelHandle),
    Running(Running, Option<Running>),
}

/// An attempt that is under way.
struct Running {
    endpoint: usize,
    guard: InFlight,
    asked: ModelHandle,
}

/// An endpoint in rotation.
struct ReadyEndpoint {
    endpoint: usize,
    load: Arc<Load>,
}

impl Candidate for ReadyEndpoint {
    fn load(&self) -> &Load {
        &self.load
    }
}

impl ReadyEndpoint {
    fn new(endpoint: usize, load: &Arc<Load>) -> Self {
        Self { endpoint, load: Arc::clone(load) }
    }

    fn is_among(&self, tried: &[u32]) -> bool {
        tried.iter().any(|tried| *tried as usize == self.endpoint)
    }
}

impl Forebay {
    /// `members`: the endpoints of its pool.
    pub(super) fn new(policy: Policy, plan: &SimPlan, members: &[bool], seed: u64) -> Self {
        let load = |_| Arc::new(Load::new(plan.sim.slots));
        let loads: Vec<Arc<Load>> = (0..plan.endpoints()).map(load).collect();
        let known = |(endpoint, load): (usize, &Arc<Load>)| ReadyEndpoint::new(endpoint, load);
        let is_member = |(at, _): &(usize, &Arc<Load>)| members[*at];
        let ready: Vec<ReadyEndpoint> =
            loads.iter().enumerate().filter(is_member).map(known).collect();
        let keyed: Vec<u64> = match policy {
            Policy::Sticky => ready.iter().map(|known| known.endpoint as u64).collect(),
            _ => Vec::new(),
        };
        Self {
            policy,
            ready,
            // Those that are there from the start were there before.
            since: vec![Time::default(); loads.len()],
            loads,
            report_ttl: plan.sim.reports.ttl,
            slow_start: plan.sim.slow_start,
            handoff_delay: plan.sim.queue.handoff_delay,
            recent: Arc::default(),
            ring: Ring::new(keyed),
            rng: Rng::new(seed),
            now: 0,
            queue: FairQueue::new(plan.sim.queue.size),
            models: Arc::new(ModelStats::new(plan.sim.hedge.as_ref().map(|it| it.quantile))),
            min_hedge_delay: plan.sim.hedge.as_ref().map(|hedge| hedge.min_delay),
            states: SecondaryMap::new(),
        }
    }

    fn view<'a>(&'a self, freed: Option<usize>, now: u64) -> PoolView<'a, ReadyEndpoint> {
        let context = Context {
            now: time(now),
            report_ttl: self.report_ttl,
            memory: &self.recent,
            key: None,
            ring: Some(&self.ring),
            trace: None,
        };
        PoolView {
            policy: self.policy,
            endpoints: &self.ready,
            freed,
            handoff_delay: self.handoff_delay,
            context,
            time_budget: None,
        }
    }

    /// The request goes to the one in rotation with this `index`.
    fn send(
        &mut self,
        request: RequestKey,
        (index, asked): (usize, ModelHandle),
        out: &mut Vec<Decision>,
    ) {
        let known = &self.ready[index];
        let running = Running { endpoint: known.endpoint, guard: known.load.enter(), asked };
        bind(request, Some(running.endpoint), out);
        self.states.insert(request, State::Running(running, None));
    }

    fn refuse(&mut self, request: RequestKey, reason: Reason, out: &mut Vec<Decision>) {
        self.states.remove(request);
        out.push(Decision::Refuse { request, reason });
    }

    fn join(&mut self, ask: &RequestView<'_>, asked: ModelHandle, out: &mut Vec<Decision>) {
        let entry = Entry {
            class: ask.class,
            since: time(ask.now),
            deadline: time(ask.deadline),
            client: u64::from(ask.client),
            key: Some(ask.key),
            relative_cost: asked.relative_cost(),
        };
        let mut rng = self.rng.clone();
        let promised = self.view(None, ask.now).can_meet_deadline(&self.queue, &entry, &mut rng);
        self.rng = rng;
        if ask.tried.is_empty() && promised.is_err() {
            return self.refuse(ask.request, Reason::DeadlineUnreachable, out);
        }
        match self.queue.enqueue(&entry, (ask.request, ask.tried.to_vec())) {
            Enqueued::Full(_) => self.refuse(ask.request, Reason::QueueFull, out),
            Enqueued::Queued(position) => {
                if let Some(at) = self.waits_until(ask, &asked) {
                    out.push(Decision::Wake { request: ask.request, at: at.nanos() });
                }
                self.states.insert(ask.request, State::Queued(position, asked));
            }
            Enqueued::Displaced(position, (other, _)) => {
                if let Some(at) = self.waits_until(ask, &asked) {
                    out.push(Decision::Wake { request: ask.request, at: at.nanos() });
                }
                self.states.insert(ask.request, State::Queued(position, asked));
                self.refuse(other, Reason::Displaced, out);
            }
        }
    }

    /// The time at which a request that waits gives way to the variant that stands in.
    fn waits_until(&mut self, ask: &RequestView<'_>, asked: &ModelHandle) -> Option<Time> {
        let terms = (time(ask.deadline), asked.relative_cost());
        let mut rng = self.rng.clone();
        let until = self.view(None, ask.now).waits_until(terms, ask.stand_in?, &mut rng);
        self.rng = rng;
        until
    }

    /// Sends the queued requests that can go after a change.
    fn dispatch(&mut self, mut freed: Option<usize>, now: u64, out: &mut Vec<Decision>) {
        let mut rng = self.rng.clone();
        loop {
            let tried =
                |waits: &(RequestKey, Vec<u32>), known: &ReadyEndpoint| known.is_among(&waits.1);
            let next = self.view(freed.take(), now).next(&self.queue, tried, &mut rng);
            let Some((position, next)) = next else { break };
            let taken = match next {
                Dispatch::Bind(_) | Dispatch::BindAhead(_) => self.queue.serve(&position),
                Dispatch::NoEndpoint | Dispatch::TooLate => self.queue.remove(&position),
            };
            let Some((request, _)) = taken else { break };
            match next {
                Dispatch::Bind(index) | Dispatch::BindAhead(index) => {
                    let Some(State::Queued(_, asked)) = self.states.remove(request) else { break };
                    self.send(request, (index, asked), out);
                }
                Dispatch::NoEndpoint => self.refuse(request, Reason::NoEndpoint, out),
                Dispatch::TooLate => self.refuse(request, Reason::DeadlineExceeded, out),
            }
        }
        self.rng = rng;
    }

    fn ready_index(&self, endpoint: usize) -> Result<usize, usize> {
        self.ready.binary_search_by_key(&endpoint, |known| known.endpoint)
    }
}

impl Balancer for Forebay {
    fn arrive(&mut self, ask: &RequestView<'_>, _: &Fleet, out: &mut Vec<Decision>) {
        self.now = ask.now;
        let asked = self.models.handle(ask.model, time(ask.now));
        if self.queue.is_empty() {
            let mut rng = self.rng.clone();
            let tried = |known: &ReadyEndpoint| known.is_among(ask.tried);
            let binding =
                self.view(None, ask.now).with_key(Some(ask.key)).bind_now_with_slow_start(
                    (self.slow_start, |known: &ReadyEndpoint| self.since[known.endpoint]),
                    (time(ask.deadline), asked.relative_cost()),
                    tried,
                    &mut rng,
                );
            self.rng = rng;
            match binding {
                Binding::Bind(index) => return self.send(ask.request, (index, asked), out),
                Binding::NoEndpoint => return self.refuse(ask.request, Reason::NoEndpoint, out),
                Binding::Wait => {}
            }
        }
        self.join(ask, asked, out);
        self.dispatch(None, ask.now, out);
    }

    fn finished(&mut self, done: &Done, _: &Fleet, out: &mut Vec<Decision>) {
        self.now = done.now;
        let Some(State::Running(first, second)) = self.states.remove(done.request) else { return };
        let (running, left) = match second {
            Some(second) if first.endpoint != done.endpoint => (second, Some(first)),
            other => (first, other),
        };
        if let Some(left) = left {
            self.states.insert(done.request, State::Running(left, None));
        }
        let (took, now) = (Duration::from_nanos(done.took), time(done.now));
        let Running { guard, mut asked, .. } = running;
        let mean = self.loads[done.endpoint].service_seconds().unwrap_or_default();
        let usual = Duration::try_from_secs_f64(mean * asked.relative_cost().get());
        let found = done.blame.consequences(took, usual.unwrap_or_default(), true);
        if found.penalty {
            self.loads[done.endpoint].failed(now);
        }
        match found.sample {
            Sample::Answered => guard.answered(asked.answered(took, now), now),
            Sample::AtLeast => guard.answered(asked.given_up(took), now),
            Sample::CutShort => guard.cut_short(asked.given_up(took), now),
            Sample::Late | Sample::Nothing | Sample::Open => {}
        }
        // Before the next one is bound there.
        if found.sample == Sample::Late {
            guard.late(asked.given_up(took), now);
        } else {
            drop(guard);
        }
        let freed = self.ready_index(done.endpoint).ok();
        self.dispatch(freed, done.now, out);
    }

    fn wake(&mut self, ask: &RequestView<'_>, _: &Fleet, out: &mut Vec<Decision>) {
        self.now = ask.now;
        if let Some(State::Queued(position, _)) = self.states.get(ask.request) {
            self.queue.remove(position);
            self.refuse(ask.request, Reason::DeadlineUnreachable, out);
        }
    }

    fn stand_in_time(&mut self, model: u64, now: u64) -> Option<StandInTime> {
        let relative_cost = self.models.handle(model, time(now)).relative_cost();
        let mut rng = self.rng.clone();
        let found = self.view(None, now).stand_in_time(self.queue.len(), relative_cost, &mut rng);
        self.rng = rng;
        found
    }

    fn runs_until(&self, ask: &RequestView<'_>) -> Option<Time> {
        let Some(State::Running(running, None)) = self.states.get(ask.request) else { return None };
        let terms = (time(ask.deadline), running.asked.relative_cost());
        self.view(None, ask.now).runs_until(terms, ask.stand_in?, &self.loads[running.endpoint])
    }

    fn hedge_after(&self, request: RequestKey) -> Option<Duration> {
        let min_delay = self.min_hedge_delay?;
        let Some(State::Running(running, None)) = self.states.get(request) else { return None };
        running.asked.estimate().map(|usual| usual.max(min_delay))
    }

    fn expected(&self, request: RequestKey, endpoint: usize) -> Duration {
        let Some(State::Running(first, second)) = self.states.get(request) else {
            return Duration::ZERO;
        };
        let there = [Some(first), second.as_ref()].into_iter().flatten();
        let weight = there
            .filter(|running| running.endpoint == endpoint)
            .map(|running| running.asked.relative_cost().get())
            .next();
        let mean = self.loads[endpoint].service_seconds().unwrap_or_default();
        Duration::try_from_secs_f64(mean * weight.unwrap_or(1.0)).unwrap_or_default()
    }

    fn room(&mut self, ask: &RequestView<'_>) -> Option<usize> {
        self.now = ask.now;
        let mut rng = self.rng.clone();
        let tried = |known: &ReadyEndpoint| known.is_among(ask.tried);
        let index = self.view(None, ask.now).bind_hedge(self.queue.len(), tried, &mut rng);
        self.rng = rng;
        index.map(|index| self.ready[index].endpoint)
    }

    fn hedged(&mut self, ask: &RequestView<'_>, endpoint: usize) {
        let asked = self.models.handle(ask.model, time(ask.now));
        if let Some(State::Running(_, second)) = self.states.get_mut(ask.request) {
            *second = Some(Running { endpoint, guard: self.loads[endpoint].enter(), asked });
        }
    }

    fn first_took(&mut self, ask: &RequestView<'_>, took: Duration) {
        self.models.handle(ask.model, time(ask.now)).first_took(took, time(ask.now));
    }

    fn abandoned(&mut self, request: RequestKey, _: &mut Vec<Decision>) {
        if let Some(State::Queued(position, _)) = self.states.remove(request) {
            self.queue.remove(&position);
        }
    }

    fn health_changed(&mut self, endpoint: usize, ready: bool, _: &Fleet, out: &mut Vec<Decision>) {
        match (self.ready_index(endpoint), ready) {
            (Ok(at), false) => drop(self.ready.remove(at)),
            (Err(at), true) => {
                self.ready.insert(at, ReadyEndpoint::new(endpoint, &self.loads[endpoint]));
            }
            _ => {}
        }
        if self.policy == Policy::Sticky {
            self.ring = Ring::new(self.ready.iter().map(|known| known.endpoint as u64));
        }
        self.dispatch(None, self.now, out);
    }

    fn rejoined(&mut self, endpoint: usize, now: u64) {
        self.now = now;
        self.loads[endpoint].rejoined();
        self.since[endpoint] = time(now);
    }

    fn reported(&mut self, endpoint: usize, report: &Report, now: u64) {
        self.now = now;
        self.loads[endpoint].report(report, time(now));
    }
}

fn time(nanos: u64) -> Time {
    Time::new(Duration::from_nanos(nanos))
}
