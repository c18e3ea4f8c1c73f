//! The proxy's own code: [`forebay_routing`], called as the proxy calls it.

use super::{Ask, Balancer, Decision, Done, Ending, bind};
use crate::scenario::Hedge;
use crate::sim::fleet::Fleet;
use crate::sim::plan::SimPlan;
use crate::sim::slab::Key;
use crate::units::nanos;
use forebay_protocol::Reason;
use forebay_routing::pick::{Context, Ring};
use forebay_routing::{
    Binding, Candidate, Claim, InFlight, Joined, Latencies, Line, Load, Next, Picks, Place, Policy,
    Report, RetryBudget, Rng, Time, View, Weight,
};
use std::sync::Arc;
use std::time::Duration;

/// One proxy.
pub(super) struct Forebay {
    policy: Policy,
    loads: Vec<Arc<Load>>,
    /// In rotation, in order.
    ready: Vec<Known>,
    report_ttl: Duration,
    slow_start: Duration,
    hop: Duration,
    turn: Arc<Picks>,
    /// Of those in rotation, if the policy needs it.
    ring: Ring,
    rng: Rng,
    /// When anything last happened here.
    now: u64,
    /// Requests that wait, and where each was sent already.
    line: Line<(Key, Vec<u32>)>,
    hedges: Option<Hedges>,
    /// By the request's place in memory.
    states: Vec<State>,
}

/// What becomes of a request.
enum State {
    Gone,
    Waits(Place),
    Runs(Run),
}

/// A request that is under way.
struct Run {
    began: u64,
    /// When it may have a second attempt.
    due: u64,
    first: (usize, InFlight),
    second: Option<(usize, InFlight)>,
}

/// What the proxy knows of an endpoint.
struct Known {
    endpoint: usize,
    /// Since when it has been in rotation.
    since: Time,
    load: Arc<Load>,
}

impl Candidate for Known {
    fn load(&self) -> &Load {
        &self.load
    }
}

impl Known {
    fn new(endpoint: usize, load: &Arc<Load>, since: Time) -> Self {
        Self { endpoint, since, load: Arc::clone(load) }
    }

    fn is_among(&self, tried: &[u32]) -> bool {
        tried.iter().any(|tried| *tried as usize == self.endpoint)
    }
}

impl Forebay {
    pub(super) fn new(policy: Policy, setting: &SimPlan, seed: u64) -> Self {
        let load = |_| Arc::new(Load::new(setting.sim.slots));
        let loads: Vec<Arc<Load>> = (0..setting.endpoints()).map(load).collect();
        // Those that are there from the start were there before.
        let since = Time::default();
        let known = |(endpoint, load): (usize, &Arc<Load>)| Known::new(endpoint, load, since);
        let keyed = if policy == Policy::Sticky { loads.len() as u64 } else { 0 };
        Self {
            policy,
            ready: loads.iter().enumerate().map(known).collect(),
            loads,
            report_ttl: setting.sim.reports.ttl.0,
            slow_start: setting.sim.slow_start.0,
            hop: setting.sim.queue.hop.0,
            turn: Arc::default(),
            ring: Ring::new(0..keyed),
            rng: Rng::new(seed),
            now: 0,
            line: Line::new(setting.sim.queue.size),
            hedges: setting.sim.hedge.as_ref().map(Hedges::new),
            states: Vec::new(),
        }
    }

    fn view<'a>(&'a self, freed: Option<usize>, now: u64) -> View<'a, Known> {
        let context = Context {
            now: time(now),
            report_ttl: self.report_ttl,
            turn: &self.turn,
            key: None,
            ring: Some(&self.ring),
        };
        View {
            policy: self.policy,
            endpoints: &self.ready,
            freed,
            hop: self.hop,
            context,
            terms: None,
        }
    }

    fn state(&mut self, request: Key) -> &mut State {
        let slot = request.slot();
        if self.states.len() <= slot {
            self.states.resize_with(slot + 1, || State::Gone);
        }
        &mut self.states[slot]
    }

    /// The request goes to the one in rotation with this `index`.
    fn send(&mut self, request: Key, index: usize, out: &mut Vec<Decision>) {
        let known = &self.ready[index];
        let (endpoint, guard) = (known.endpoint, known.load.enter());
        bind(request, Some(endpoint), out);
        let after = self.hedges.as_ref().and_then(Hedges::after);
        let due = after.map_or(u64::MAX, |after| self.now.saturating_add(nanos(after)));
        if after.is_some() {
            out.push(Decision::Wake { request, at: due });
        }
        let run = Run { began: self.now, due, first: (endpoint, guard), second: None };
        *self.state(request) = State::Runs(run);
    }

    fn refuse(&mut self, request: Key, reason: Reason, out: &mut Vec<Decision>) {
        *self.state(request) = State::Gone;
        out.push(Decision::Refuse { request, reason });
    }

    fn join(&mut self, ask: &Ask<'_>, out: &mut Vec<Decision>) {
        let claim = Claim {
            class: ask.class,
            since: time(ask.now),
            deadline: time(ask.deadline),
            caller: u64::from(ask.caller),
            key: Some(ask.key),
            weight: Weight::default(),
        };
        let mut rng = self.rng.clone();
        let hope = self.view(None, ask.now).hope(&self.line, &claim, &mut rng);
        self.rng = rng;
        if ask.tried.is_empty() && hope.is_err() {
            return self.refuse(ask.request, Reason::DeadlineUnreachable, out);
        }
        match self.line.join(&claim, (ask.request, ask.tried.to_vec())) {
            Joined::Full(_) => self.refuse(ask.request, Reason::QueueFull, out),
            Joined::Waits(place) => *self.state(ask.request) = State::Waits(place),
            Joined::Displaced(place, (other, _)) => {
                *self.state(ask.request) = State::Waits(place);
                self.refuse(other, Reason::Displaced, out);
            }
        }
    }

    /// Something has changed: whoever can go goes.
    fn dispatch(&mut self, mut freed: Option<usize>, now: u64, out: &mut Vec<Decision>) {
        let mut rng = self.rng.clone();
        loop {
            let tried = |waits: &(Key, Vec<u32>), known: &Known| known.is_among(&waits.1);
            let next = self.view(freed.take(), now).next(&self.line, tried, &mut rng);
            let Some((place, next)) = next else { break };
            let taken = match next {
                Next::Goes(_) => self.line.serve(&place),
                Next::Nowhere | Next::TooLate => self.line.leave(&place),
            };
            let Some((request, _)) = taken else { break };
            match next {
                Next::Goes(index) => self.send(request, index, out),
                Next::Nowhere => self.refuse(request, Reason::NoEndpoint, out),
                Next::TooLate => self.refuse(request, Reason::DeadlineExceeded, out),
            }
        }
        self.rng = rng;
    }

    fn place_of(&self, endpoint: usize) -> Result<usize, usize> {
        self.ready.binary_search_by_key(&endpoint, |known| known.endpoint)
    }
}

impl Balancer for Forebay {
    fn arrive(&mut self, ask: &Ask<'_>, _: &Fleet, out: &mut Vec<Decision>) {
        self.now = ask.now;
        if let Some(hedges) = self.hedges.as_ref().filter(|_| ask.tried.is_empty()) {
            hedges.budget.earn(time(ask.now));
        }
        if self.line.is_empty() {
            let mut rng = self.rng.clone();
            let tried = |known: &Known| known.is_among(ask.tried);
            let binding = self.view(None, ask.now).keyed(Some(ask.key)).at_once_gently(
                (self.slow_start, |known: &Known| known.since),
                (time(ask.deadline), Weight::default()),
                tried,
                &mut rng,
            );
            self.rng = rng;
            match binding {
                Binding::Bind(index) => return self.send(ask.request, index, out),
                Binding::Nowhere => return self.refuse(ask.request, Reason::NoEndpoint, out),
                Binding::Wait => {}
            }
        }
        self.join(ask, out);
        self.dispatch(None, ask.now, out);
    }

    fn finished(&mut self, done: &Done, _: &Fleet, out: &mut Vec<Decision>) {
        self.now = done.now;
        let state = std::mem::replace(self.state(done.request), State::Gone);
        let State::Runs(run) = state else { return };
        let began = run.began;
        let (guard, rest) = run.without(done.endpoint);
        let was_last = rest.is_none();
        if let Some(rest) = rest {
            *self.state(done.request) = State::Runs(rest);
        }
        let tells = match done.ending {
            Ending::Answered => true,
            Ending::Abandoned => was_last,
            Ending::Beaten | Ending::Failed | Ending::Lost => false,
        };
        if let Some(hedges) = self.hedges.as_ref().filter(|_| tells) {
            hedges.latencies.observe(Duration::from_nanos(done.now - began), time(done.now));
        }
        match done.ending {
            // It took at least so long.
            Ending::Answered | Ending::Beaten => {
                guard.answered(Duration::from_nanos(done.took), time(done.now));
                drop(guard);
            }
            Ending::Abandoned => guard.late(Duration::from_nanos(done.took), time(done.now)),
            Ending::Failed | Ending::Lost => {
                self.loads[done.endpoint].failed(time(done.now));
                drop(guard);
            }
        }
        let freed = self.place_of(done.endpoint).ok();
        self.dispatch(freed, done.now, out);
    }

    fn woken(&mut self, ask: &Ask<'_>, out: &mut Vec<Decision>) {
        self.now = ask.now;
        let State::Runs(run) = self.state(ask.request) else { return };
        if run.due != ask.now || run.second.is_some() {
            return;
        }
        let first = run.first.0;
        let mut rng = self.rng.clone();
        let tried = |known: &Known| known.endpoint == first || known.is_among(ask.tried);
        let index = self.view(None, ask.now).beside(self.line.len(), tried, &mut rng);
        self.rng = rng;
        let Some(known) = index.map(|index| &self.ready[index]) else { return };
        let (endpoint, load) = (known.endpoint, Arc::clone(&known.load));
        let paid = |hedges: &Hedges| hedges.budget.try_retry(time(ask.now));
        if !self.hedges.as_ref().is_some_and(paid) {
            return;
        }
        if let State::Runs(run) = self.state(ask.request) {
            run.second = Some((endpoint, load.enter()));
            bind(ask.request, Some(endpoint), out);
        }
    }

    fn left(&mut self, request: Key, _: &mut Vec<Decision>) {
        if let State::Waits(place) = std::mem::replace(self.state(request), State::Gone) {
            self.line.leave(&place);
        }
    }

    fn health(&mut self, endpoint: usize, ready: bool, _: &Fleet, out: &mut Vec<Decision>) {
        match (self.place_of(endpoint), ready) {
            (Ok(at), false) => drop(self.ready.remove(at)),
            (Err(at), true) => {
                let since = time(self.now);
                self.loads[endpoint].came_back();
                self.ready.insert(at, Known::new(endpoint, &self.loads[endpoint], since));
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

impl Run {
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
