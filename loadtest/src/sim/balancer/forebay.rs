//! The proxy's own code: [`forebay_routing`], called as the proxy calls it.

use super::{Balancer, Decision, Done, Ending, RequestView, bind};
use crate::scenario::Hedge;
use crate::sim::fleet::Fleet;
use crate::sim::keys::RequestKey;
use crate::sim::plan::SimPlan;
use crate::units::nanos;
use forebay_protocol::Reason;
use forebay_routing::pick::{Context, Ring};
use forebay_routing::{
    Binding, Candidate, Dispatch, Enqueued, Entry, FairQueue, InFlight, Latencies, Load,
    PickMemory, Policy, PoolView, Position, RelativeCost, Report, RetryBudget, Rng, Time,
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
    /// When anything last happened here.
    now: u64,
    /// Requests that wait, and where each was sent already.
    queue: FairQueue<(RequestKey, Vec<u32>)>,
    hedges: Option<Hedges>,
    states: SecondaryMap<RequestKey, State>,
}

/// The state of a request.
enum State {
    Queued(Position),
    Running(Attempts),
}

/// A request that is under way.
struct Attempts {
    began: u64,
    /// When it may have a second attempt.
    due: u64,
    first: (usize, InFlight),
    second: Option<(usize, InFlight)>,
}

/// An endpoint in rotation.
struct ReadyEndpoint {
    endpoint: usize,
    /// Since when it has been in rotation.
    since: Time,
    load: Arc<Load>,
}

impl Candidate for ReadyEndpoint {
    fn load(&self) -> &Load {
        &self.load
    }
}

impl ReadyEndpoint {
    fn new(endpoint: usize, load: &Arc<Load>, since: Time) -> Self {
        Self { endpoint, since, load: Arc::clone(load) }
    }

    fn is_among(&self, tried: &[u32]) -> bool {
        tried.iter().any(|tried| *tried as usize == self.endpoint)
    }
}

impl Forebay {
    pub(super) fn new(policy: Policy, plan: &SimPlan, seed: u64) -> Self {
        let load = |_| Arc::new(Load::new(plan.sim.slots));
        let loads: Vec<Arc<Load>> = (0..plan.endpoints()).map(load).collect();
        // Those that are there from the start were there before.
        let since = Time::default();
        let known =
            |(endpoint, load): (usize, &Arc<Load>)| ReadyEndpoint::new(endpoint, load, since);
        let keyed = if policy == Policy::Sticky { loads.len() as u64 } else { 0 };
        Self {
            policy,
            ready: loads.iter().enumerate().map(known).collect(),
            loads,
            report_ttl: plan.sim.reports.ttl.0,
            slow_start: plan.sim.slow_start.0,
            handoff_delay: plan.sim.queue.handoff_delay.0,
            recent: Arc::default(),
            ring: Ring::new(0..keyed),
            rng: Rng::new(seed),
            now: 0,
            queue: FairQueue::new(plan.sim.queue.size),
            hedges: plan.sim.hedge.as_ref().map(Hedges::new),
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
    fn send(&mut self, request: RequestKey, index: usize, out: &mut Vec<Decision>) {
        let known = &self.ready[index];
        let (endpoint, guard) = (known.endpoint, known.load.enter());
        bind(request, Some(endpoint), out);
        let after = self.hedges.as_ref().and_then(Hedges::after);
        let due = after.map_or(u64::MAX, |after| self.now.saturating_add(nanos(after)));
        if after.is_some() {
            out.push(Decision::Wake { request, at: due });
        }
        let run = Attempts { began: self.now, due, first: (endpoint, guard), second: None };
        self.states.insert(request, State::Running(run));
    }

    fn refuse(&mut self, request: RequestKey, reason: Reason, out: &mut Vec<Decision>) {
        self.states.remove(request);
        out.push(Decision::Refuse { request, reason });
    }

    fn join(&mut self, ask: &RequestView<'_>, out: &mut Vec<Decision>) {
        let entry = Entry {
            class: ask.class,
            since: time(ask.now),
            deadline: time(ask.deadline),
            client: u64::from(ask.client),
            key: Some(ask.key),
            relative_cost: RelativeCost::default(),
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
                self.states.insert(ask.request, State::Queued(position));
            }
            Enqueued::Displaced(position, (other, _)) => {
                self.states.insert(ask.request, State::Queued(position));
                self.refuse(other, Reason::Displaced, out);
            }
        }
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
                Dispatch::Bind(_) => self.queue.serve(&position),
                Dispatch::NoEndpoint | Dispatch::TooLate => self.queue.remove(&position),
            };
            let Some((request, _)) = taken else { break };
            match next {
                Dispatch::Bind(index) => self.send(request, index, out),
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
        if let Some(hedges) = self.hedges.as_ref().filter(|_| ask.tried.is_empty()) {
            hedges.budget.earn(time(ask.now));
        }
        if self.queue.is_empty() {
            let mut rng = self.rng.clone();
            let tried = |known: &ReadyEndpoint| known.is_among(ask.tried);
            let binding =
                self.view(None, ask.now).with_key(Some(ask.key)).bind_now_with_slow_start(
                    (self.slow_start, |known: &ReadyEndpoint| known.since),
                    (time(ask.deadline), RelativeCost::default()),
                    tried,
                    &mut rng,
                );
            self.rng = rng;
            match binding {
                Binding::Bind(index) => return self.send(ask.request, index, out),
                Binding::NoEndpoint => return self.refuse(ask.request, Reason::NoEndpoint, out),
                Binding::Wait => {}
            }
        }
        self.join(ask, out);
        self.dispatch(None, ask.now, out);
    }

    fn finished(&mut self, done: &Done, _: &Fleet, out: &mut Vec<Decision>) {
        self.now = done.now;
        let Some(State::Running(run)) = self.states.remove(done.request) else { return };
        let began = run.began;
        let (guard, rest) = run.without(done.endpoint);
        let was_last = rest.is_none();
        if let Some(rest) = rest {
            self.states.insert(done.request, State::Running(rest));
        }
        let tells = match done.ending {
            Ending::Answered => true,
            Ending::Abandoned => was_last,
            Ending::Superseded | Ending::Failed | Ending::Lost => false,
        };
        if let Some(hedges) = self.hedges.as_ref().filter(|_| tells) {
            hedges.latencies.observe(Duration::from_nanos(done.now - began), time(done.now));
        }
        match done.ending {
            // It took at least so long.
            Ending::Answered | Ending::Superseded => {
                guard.answered(Duration::from_nanos(done.took), time(done.now));
                drop(guard);
            }
            Ending::Abandoned => guard.late(Duration::from_nanos(done.took), time(done.now)),
            Ending::Failed | Ending::Lost => {
                self.loads[done.endpoint].failed(time(done.now));
                drop(guard);
            }
        }
        let freed = self.ready_index(done.endpoint).ok();
        self.dispatch(freed, done.now, out);
    }

    fn wake(&mut self, ask: &RequestView<'_>, _: &Fleet, out: &mut Vec<Decision>) {
        self.now = ask.now;
        let Some(State::Running(run)) = self.states.get_mut(ask.request) else { return };
        if run.due != ask.now || run.second.is_some() {
            return;
        }
        let first = run.first.0;
        let mut rng = self.rng.clone();
        let tried = |known: &ReadyEndpoint| known.endpoint == first || known.is_among(ask.tried);
        let index = self.view(None, ask.now).bind_hedge(self.queue.len(), tried, &mut rng);
        self.rng = rng;
        let Some(known) = index.map(|index| &self.ready[index]) else { return };
        let (endpoint, load) = (known.endpoint, Arc::clone(&known.load));
        let paid = |hedges: &Hedges| hedges.budget.try_retry(time(ask.now));
        if !self.hedges.as_ref().is_some_and(paid) {
            return;
        }
        if let Some(State::Running(run)) = self.states.get_mut(ask.request) {
            run.second = Some((endpoint, load.enter()));
            bind(ask.request, Some(endpoint), out);
        }
    }

    fn abandoned(&mut self, request: RequestKey, _: &mut Vec<Decision>) {
        if let Some(State::Queued(position)) = self.states.remove(request) {
            self.queue.remove(&position);
        }
    }

    fn health_changed(&mut self, endpoint: usize, ready: bool, _: &Fleet, out: &mut Vec<Decision>) {
        match (self.ready_index(endpoint), ready) {
            (Ok(at), false) => drop(self.ready.remove(at)),
            (Err(at), true) => {
                let since = time(self.now);
                self.loads[endpoint].rejoined();
                self.ready.insert(at, ReadyEndpoint::new(endpoint, &self.loads[endpoint], since));
            }
            _ => {}
        }
        if self.policy == Policy::Sticky {
            self.ring = Ring::new(self.ready.iter().map(|known| known.endpoint as u64));
        }
        self.dispatch(None, self.now, out);
    }

    fn reported(&mut self, endpoint: usize, report: &Report, now: u64) {
        self.now = now;
        self.loads[endpoint].report(report, time(now));
    }
}

impl Attempts {
    /// Takes out the attempt at this endpoint; what is left, if there is another.
    fn without(self, endpoint: usize) -> (InFlight, Option<Self>) {
        let Self { first, second, .. } = self;
        let (ended, left) = match second {
            Some(second) if first.0 != endpoint => (second, Some(first)),
            other => (first, other),
        };
        // It has no further one beside it.
        (ended.1, left.map(|first| Self { first, second: None, due: u64::MAX, ..self }))
    }
}

/// Second attempts beside slow first ones.
struct Hedges {
    latencies: Latencies,
    budget: RetryBudget,
    min_delay: Duration,
}

impl Hedges {
    fn new(settings: &Hedge) -> Self {
        Self {
            latencies: Latencies::new(settings.quantile),
            budget: RetryBudget::for_hedges(settings.budget),
            min_delay: settings.min_delay.0,
        }
    }

    fn after(&self) -> Option<Duration> {
        self.latencies.estimate().map(|usual| usual.max(self.min_delay))
    }
}

fn time(nanos: u64) -> Time {
    Time::new(Duration::from_nanos(nanos))
}
