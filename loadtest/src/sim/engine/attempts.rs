//! The attempts of a request, decided on by the code that the proxy runs.
//!
//! [`forebay_routing::attempt`] gets events of the virtual clock instead of sockets. All simulated requests
//! are inferences that the proxy holds in memory, so they may be sent again after any end of the attempt
//! before.

use super::decisions::{Sent, Why};
use super::flow::{model_of, view_of};
use super::{Answer, Engine, InFlightAttempt};
use crate::report::outcome::Outcome;
use crate::sim::balancer::{Done, RequestView};
use crate::sim::clock::Event as Planned;
use crate::sim::fleet::times;
use crate::sim::keys::{AttemptKey, RequestKey};
use crate::sim::plan::{SimPlan, refused};
use crate::sim::pools::Variant;
use crate::units::nanos;
use forebay_protocol::Reason;
use forebay_routing::attempt::event::{
    self, Context, Effect, End, Ending, Event, Next, RefusalCause, Sending,
};
use forebay_routing::{Blame, RetryOn, StandInTime, Time};
use std::time::Duration;

/// The status of every good answer.
const OK: u16 = 200;

impl Engine<'_> {
    /// Takes in what has happened to a request, and does what follows from it.
    pub(super) fn on(&mut self, key: RequestKey, event: Event<Why>) {
        match self.decide_on(key, event) {
            Next::Finish(ending) => self.ended_as(key, &ending),
            Next::FallBack(_) => self.stand_in(key),
            Next::Bind | Next::Send(_) | Next::Wait => {}
        }
    }

    /// Goes on to the next variant, as the proxy does.
    fn stand_in(&mut self, key: RequestKey) {
        let Some(request) = self.requests.get_mut(key) else { return };
        let next = request.passed.next(&self.plan.pools.fallbacks, |_| true);
        let event = match next {
            None => Event::CannotStandIn,
            Some((variant, passed)) => {
                (request.variant, request.passed) = (*variant, passed);
                request.proxy = proxy_of(self.plan, request.proxy, *variant);
                Event::StandsIn
            }
        };
        self.on(key, event);
    }

    /// The same for what may have an attempt sent, which is left to the client.
    fn decide_on(&mut self, key: RequestKey, event: Event<Why>) -> Next<Why> {
        let Some(request) = self.requests.get_mut(key) else { return Next::Wait };
        let number = request.proxy;
        let proxy = &self.proxies[number];
        let untried = |at: usize| !request.tried.iter().any(|tried| *tried as usize == at);
        // The others have no fallbacks.
        let fallbacks = if self.is_forebay { &self.plan.pools.fallbacks[..] } else { &[] };
        let stand_in = request.passed.next(fallbacks, |_| true);
        let stand_in =
            stand_in.map(|(next, _)| event::StandIn::between(&request.variant.pool, &next.pool));
        let context = Context {
            now: time(self.now),
            policy: &proxy.policy,
            budget: &proxy.budget,
            hedge_budget: proxy.hedge_budget.as_ref(),
            has_untried: proxy.ready.iter().enumerate().any(|(at, ready)| *ready && untried(at)),
            is_repeatable: true,
            stand_in,
        };
        let step = request.decisions.on(event, &context);
        for effect in step.effects.iter() {
            self.carry_out(key, effect);
        }
        if self.proxies[number].is_called() {
            self.detect_outliers(number);
        }
        if step.next == Next::Bind {
            self.ask(key);
        }
        step.next
    }

    fn carry_out(&mut self, key: RequestKey, effect: Effect) {
        let Some(request) = self.requests.get(key) else { return };
        let proxy = request.proxy;
        let sent = |place: usize| request.sent.get(place).copied();
        match effect {
            Effect::Settle(place, blame) => {
                if let Some(attempt) = sent(place) {
                    self.settle(key, attempt, blame);
                }
            }
            Effect::Note(place, outcome) => {
                if let Some(attempt) = sent(place) {
                    self.proxies[proxy].note(attempt.endpoint, outcome);
                }
            }
            Effect::Probe(place) => {
                if let Some(attempt) = sent(place) {
                    self.suspect(proxy, attempt.endpoint);
                }
            }
            Effect::FirstTook(place) => {
                let Some(attempt) = sent(place) else { return };
                let took = Duration::from_nanos(self.now - attempt.at);
                let ask = view_of(self.plan, &self.proxies, self.now, (key, request));
                let number = self.balancer_of(proxy);
                self.balancers[number].first_took(&ask, took);
            }
            Effect::Took(_) | Effect::Retry(_) | Effect::HedgeRefused(_) | Effect::Hedged(_) => {}
        }
    }

    /// An attempt is over. One that was not answered is given up: its endpoint drops it if it has not begun.
    fn settle(&mut self, key: RequestKey, sent: Sent, blame: Blame) {
        let Some(request) = self.requests.get_mut(key) else { return };
        let proxy = request.proxy;
        if let Some(place) = request.running.iter().position(|it| *it == sent.key) {
            request.running.remove(place);
            if self.fleet.endpoints[sent.endpoint].leave(self.now, sent.key) {
                self.attempts.remove(sent.key);
            }
        }
        let took = self.now - sent.at;
        let done = Done { request: key, endpoint: sent.endpoint, now: self.now, took, blame };
        self.call_balancer(proxy, |balancer, fleet, outbox| {
            balancer.finished(&done, fleet, outbox);
        });
        // Only the balancer knows the usual time of a request. A surplus probe does no harm.
        if blame.consequences(Duration::from_nanos(took), Duration::ZERO, true).probe {
            self.suspect(proxy, sent.endpoint);
        }
    }

    /// A balancer has bound a request to an endpoint.
    pub(super) fn bind(&mut self, key: RequestKey, endpoint: usize) {
        let Some(request) = self.requests.get_mut(key) else { return };
        request.tried.push(u32::try_from(endpoint).unwrap_or(u32::MAX));
        let proxy = request.proxy;
        let number = self.balancer_of(proxy);
        let hedge_after = self.balancers[number].hedge_after(key);
        let gives_way_at = self.gives_way_at(key);
        let event = Event::Bound { hedge_after, gives_way_at };
        if let Next::Send(sending) = self.decide_on(key, event) {
            self.send(key, endpoint, &sending);
        }
    }

    /// The time of the variant that stands in next for this request, as its proxy knows it.
    pub(super) fn stand_in_time(&mut self, key: RequestKey) -> Option<StandInTime> {
        let request = self.requests.get(key).filter(|_| self.is_forebay)?;
        let (next, passed) = request.passed.next(&self.plan.pools.fallbacks, |_| true)?;
        let model = model_of(self.plan, request.kind, passed);
        let number = self.balancer_of(proxy_of(self.plan, request.proxy, *next));
        self.balancers[number].stand_in_time(model, self.now)
    }

    /// The time at which the attempt that was just bound gives way to that variant.
    fn gives_way_at(&mut self, key: RequestKey) -> Option<Time> {
        let stand_in = Some(self.stand_in_time(key)?);
        let request = self.requests.get(key)?;
        let ask = view_of(self.plan, &self.proxies, self.now, (key, request));
        self.balancers[self.balancer_of(request.proxy)].runs_until(&RequestView { stand_in, ..ask })
    }

    /// A second attempt beside a slow first one is due.
    pub(super) fn hedge(&mut self, key: RequestKey) {
        let Some(request) = self.requests.get(key).filter(|it| it.running.len() == 1) else {
            return;
        };
        let number = self.balancer_of(request.proxy);
        let ask = view_of(self.plan, &self.proxies, self.now, (key, request));
        if request.hedge_at != Some(self.now) {
            return;
        }
        let room = self.balancers[number].room(&ask);
        let tried = room.and_then(|endpoint| u32::try_from(endpoint).ok());
        if let Some(request) = self.requests.get_mut(key) {
            request.tried.extend(tried);
        }
        let next = self.decide_on(key, Event::HedgeDue { has_room: room.is_some() });
        match (room, next) {
            (Some(endpoint), Next::Send(sending)) => {
                let Some(request) = self.requests.get(key) else { return };
                let ask = view_of(self.plan, &self.proxies, self.now, (key, request));
                self.balancers[number].hedged(&ask, endpoint);
                self.send(key, endpoint, &sending);
            }
            (Some(_), _) => {
                if let Some(request) = self.requests.get_mut(key) {
                    request.tried.pop();
                }
            }
            (None, _) => {}
        }
    }

    /// How many nanoseconds an attempt is left at an endpoint that is silent. The others leave all that they have
    /// sent where it is.
    fn patience(&self, key: RequestKey, endpoint: usize, sending: &Sending) -> Option<u64> {
        let request = self.requests.get(key).filter(|_| self.is_forebay)?;
        let expected = self.balancers[self.balancer_of(request.proxy)].expected(key, endpoint);
        sending.on_silence.at_least(expected).map(nanos)
    }

    fn send(&mut self, key: RequestKey, endpoint: usize, sending: &Sending) {
        let patience = self.patience(key, endpoint, sending);
        let Some(request) = self.requests.get_mut(key) else { return };
        let is_hedge = !request.running.is_empty();
        self.tally.sent(self.plan, self.now, endpoint, is_hedge);
        let place = sending.attempt;
        let cost = request.variant.cost;
        let attempt =
            InFlightAttempt { request: key, place, endpoint, cost, answer: None, report: None };
        let attempt = self.attempts.insert(attempt);
        let heard = self.proxies[request.proxy].answers(endpoint);
        request.sent.push(Sent { key: attempt, endpoint, at: self.now, heard, patience });
        request.running.push(attempt);
        let at = self.now + self.plan.one_way;
        self.fleet.endpoints[endpoint].expect(at, times(request.demand.unwrap_or(0), cost));
        if !is_hedge {
            request.hedge_at = sending.hedge_at.map(Time::nanos);
        }
        if let Some(due) = sending.hedge_at {
            self.clock.plan(due.nanos(), Planned::Hedge(key));
        }
        // At the deadline the request as a whole expires.
        let deadline = request.intended.saturating_add(self.plan.timeouts[request.kind].0);
        if let Some(until) = sending.until.filter(|until| until.nanos() < deadline) {
            self.clock.plan(until.nanos(), Planned::AttemptTimeout(attempt));
        }
        match self.plan.one_way {
            0 => self.reach(attempt),
            _ => self.clock.plan(at, Planned::Reach(attempt)),
        }
    }

    /// The answer to an attempt has come, or it is known that there is none.
    pub(super) fn answered(&mut self, key: AttemptKey, attempt: &InFlightAttempt) {
        let end = match attempt.answer {
            Some(Answer::Good) => End::Answered(answer(OK, true, None), None),
            Some(Answer::Refused(reason)) => {
                let status = reason.status().as_u16();
                End::Answered(answer(status, false, Some(reason)), Some(Why(reason)))
            }
            Some(Answer::Lost(reason @ Reason::ConnectFailed)) => {
                End::Broke(RetryOn::Connect, Why(reason))
            }
            Some(Answer::Lost(reason)) => End::Broke(RetryOn::Reset, Why(reason)),
            None => End::Broke(RetryOn::Reset, Why(Reason::EndpointReset)),
        };
        if let Some(request) = self.requests.get_mut(attempt.request) {
            request.running.retain(|running| *running != key);
            if let Some(Answer::Refused(reason)) = attempt.answer {
                request.errors.push((attempt.place, reason));
            }
        }
        self.on(attempt.request, Event::Ended(attempt.place, end));
    }

    /// The time of an attempt is up.
    pub(super) fn time_out(&mut self, key: AttemptKey) {
        let Some(attempt) = self.attempts.get(key) else { return };
        let (request, place) = (attempt.request, attempt.place);
        let Some(found) = self.requests.get(request).filter(|it| it.running.contains(&key)) else {
            return;
        };
        let Some(sent) = found.sent.get(place) else { return };
        let unheard = self.proxies[found.proxy].answers(sent.endpoint) == sent.heard;
        self.on(request, Event::Ended(place, End::TimedOut { unheard }));
    }

    /// The time of a request is up.
    pub(super) fn expired(&mut self, key: RequestKey) {
        let Some(request) = self.requests.get(key) else { return };
        let running = request.running.clone();
        if !self.plan.states_deadline(request.kind) {
            return self.on(key, Event::ClientLeft);
        }
        if running.is_empty() {
            return self.on(key, Event::Rejected(Why::deadline_passed()));
        }
        for attempt in running {
            self.time_out(attempt);
        }
    }

    fn ended_as(&mut self, key: RequestKey, ending: &Ending<Why>) {
        let Some(request) = self.requests.get(key) else { return };
        if let Ending::Answer(place) | Ending::PassOn(place) = *ending
            && let Some(sent) = request.sent.get(place)
            && self.measured(key)
        {
            self.tally.answered(sent.endpoint, request.variant != Variant::OWN);
        }
        let outcome = match *ending {
            Ending::Answer(_) => Outcome::Ok(OK),
            Ending::PassOn(place) => {
                let error = request.errors.iter().find(|(attempt, _)| *attempt == place);
                refused(error.map_or(Reason::Internal, |(_, reason)| *reason))
            }
            Ending::Refuse(Why(reason)) => refused(reason),
            Ending::Left => self.plan.timeouts[request.kind].1,
        };
        self.finish(key, outcome);
    }
}

/// The number of the proxy with this number where it is that of the variant's pool.
fn proxy_of(plan: &SimPlan, proxy: usize, variant: Variant) -> usize {
    let proxies = plan.sim.proxies as usize;
    proxy % proxies + variant.pool * proxies
}

fn answer(status: u16, is_success: bool, reason: Option<Reason>) -> event::Answer {
    event::Answer {
        status,
        is_success,
        is_busy: reason.is_some_and(Reason::retryable),
        states_reason: reason.is_some(),
        is_whole: true,
    }
}

fn time(nanos: u64) -> Time {
    Time::new(Duration::from_nanos(nanos))
}
