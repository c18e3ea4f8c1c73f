//! The attempts of one request: retries, hedges, fallback to another variant, and the blame.
//!
//! An inference has no effect but its answer, so it may be sent again as long as the client has not seen
//! a byte of one: a worker that is killed half way costs a retry, not an error. But each rule for that
//! has a cost if it is applied too often, or to the wrong endpoint: retries multiply the load of a pool that
//! fails, a hedge is paid for by everybody else, and blame for a client's mistake takes healthy endpoints
//! out of rotation. Rules of that kind are trusted only if each order of events can be tried. So they are
//! one state machine, [`Attempts`]: events go in, actions come out, time is an argument, and the sockets of
//! the proxy and the events of the simulator drive the same code.
//!
//! - Attempts are bounded by the deadline, by their number and by the pool's retry budget.
//! - An attempt that is slower than nearly all before it may get a second one beside it (a hedge), at an
//!   endpoint that has room for it at once. The answer that comes first is taken, the other attempt is
//!   given up. Until both have failed, the request has not failed.
//! - An endpoint that says that it failed (500, 502) is asked no more, another one is, once: if that
//!   answers, the first one was at fault, and that counts against it; if both say the same, it is the request
//!   that makes them fail, and one client's bad request must not take endpoints out of rotation.
//! - If a pool fails, the variants that may stand in are tried in their order. If none of them answers, the
//!   client is told what was wrong with the one that it asked for: that says more than what a lesser one
//!   lacked.
//! - Each attempt gets one verdict ([`Blame`]), however it ends.

pub mod blame;
pub mod event;
pub mod fallback;
pub mod policy;
mod race;
mod verdict;

use crate::Time;
use blame::Blame;
use event::{
    Context, Effect, Effects, End, Ending, Event, HedgeRefusal, Hedged, Next, RefusalCause,
    Sending, SilencePolicy, StandIn, Step, Terms,
};
use policy::RetryOn;
use race::{Race, Running};
use std::time::Duration;

/// Maximum number of endpoints whose own error answers one request: once more shows whose fault it is.
const MAX_ACCUSED: usize = 2;

/// The attempts of one request.
#[derive(Debug, Clone)]
pub struct Attempts<R> {
    terms: Terms,
    phase: Phase,
    /// Attempts that were begun, and where those at the present pool begin.
    begun: usize,
    from: usize,
    /// Attempts at this pool that were answered with an error of the endpoint's own. Before a hedged
    /// attempt there may have been one less than the most, and then both of it are accused.
    accused: [usize; MAX_ACCUSED + 1],
    accusations: usize,
    /// Whether the budget has refused a second opinion.
    is_unpaid: bool,
    /// Whether it was sent elsewhere since an endpoint was silent.
    has_moved: bool,
    /// The failure of the last attempt at this pool.
    last: Option<Failure<R>>,
    /// The failure of the variant that was asked for.
    first: Option<Failure<R>>,
    /// The failure of the variant for which another is to stand in.
    lacking: Option<R>,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    New,
    Binding,
    Sent(Race),
    FallingBack,
    Over,
}

/// A failure of an attempt.
#[derive(Debug, Clone)]
struct Failure<R> {
    trouble: Option<RetryOn>,
    refusal: R,
    /// The attempt whose answer said so: it is passed on if there is no other.
    answer: Option<usize>,
}

/// An attempt whose answer is taken. `earns`: it pays for retries.
struct Success {
    attempt: usize,
    earns: bool,
}

impl<R: RefusalCause> Attempts<R> {
    /// None yet.
    pub fn new(terms: Terms) -> Self {
        Self {
            terms,
            phase: Phase::New,
            begun: 0,
            from: 0,
            accused: [0; MAX_ACCUSED + 1],
            accusations: 0,
            is_unpaid: false,
            has_moved: false,
            last: None,
            first: None,
            lacking: None,
        }
    }

    /// Applies an event. An event that can't happen now, such as the end of an attempt that was given up,
    /// changes nothing.
    pub fn on(&mut self, event: Event<R>, context: &Context<'_>) -> Step<R> {
        let mut effects = Effects::default();
        let next = match (event, self.phase) {
            (_, Phase::Over) => Next::Wait,
            (Event::ClientLeft, _) => self.abandon(&mut effects),
            (Event::Began, Phase::New) => self.enter_pool(context, &mut effects),
            (Event::Bound { hedge_after, gives_way_at }, Phase::Binding) => {
                self.send(hedge_after, gives_way_at, context)
            }
            (Event::Rejected(refusal), Phase::Binding) => {
                // That all which are ready were tried says less than how the last one failed.
                let failure = self.last.take().unwrap_or_else(|| Failure::unsent(refusal));
                self.pool_failed(failure, context, &mut effects)
            }
            (Event::HedgeDue { has_room }, Phase::Sent(race)) => {
                self.hedge(race, has_room, context, &mut effects)
            }
            (Event::Ended(attempt, end), Phase::Sent(race)) => match race.running(attempt) {
                Some(running) => self.ended((race, running), end, context, &mut effects),
                None => Next::Wait,
            },
            (Event::StandsIn, Phase::FallingBack) => {
                self.from = self.begun;
                self.accusations = 0;
                self.is_unpaid = false;
                self.enter_pool(context, &mut effects)
            }
            (Event::CannotStandIn, Phase::FallingBack) => {
                match self.lacking.clone().filter(|_| self.pays_for_stand_in(context)) {
                    Some(refusal) => Next::FallBack(refusal),
                    None => self.give_up(),
                }
            }
            _ => Next::Wait,
        };
        Step { effects, next }
    }

    /// Whether the answer of this attempt, which was an error, may still be passed on.
    pub fn keeps(&self, attempt: usize) -> bool {
        let answers = |failure: &Option<Failure<R>>| {
            failure.as_ref().is_some_and(|failure| failure.answer == Some(attempt))
        };
        let said = matches!(self.phase, Phase::Sent(race) if race.said == Some(attempt));
        said || answers(&self.last) || answers(&self.first)
    }

    /// Whether there is nothing more to do.
    pub fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over)
    }

    fn enter_pool(&mut self, context: &Context<'_>, effects: &mut Effects) -> Next<R> {
        if let Some(hedges) = context.hedge_budget {
            hedges.earn(context.now);
        }
        if self.is_late(context.now) {
            return self.pool_failed(Failure::unsent(R::deadline_passed()), context, effects);
        }
        self.phase = Phase::Binding;
        Next::Bind
    }

    fn send(
        &mut self,
        hedge_after: Option<Duration>,
        gives_way_at: Option<Time>,
        context: &Context<'_>,
    ) -> Next<R> {
        // An answer that is passed on as it comes may have begun. The same endpoints are no better a moment later.
        let gives_way = self.terms.is_replayable
            && context.is_repeatable
            && context.stand_in == Some(StandIn::OtherPool);
        let first = self.begin(gives_way_at.filter(|_| gives_way), context);
        let on_silence = self.on_silence(context);
        let hedge_after = hedge_after.filter(|_| self.terms.is_replayable);
        let hedge_at = hedge_after.map(|after| context.now + after);
        self.phase = Phase::Sent(Race { first, second: None, over: None, said: None, hedge_at });
        let Running { attempt, until, .. } = first;
        Next::Send(Sending { attempt, until, on_silence, hedge_at })
    }

    /// An attempt that begins now.
    fn begin(&mut self, gives_way_at: Option<Time>, context: &Context<'_>) -> Running {
        let attempt = self.begun;
        self.begun += 1;
        let (now, deadline) = (context.now, self.terms.deadline);
        // Cutting one short that no other can follow would only lose its answer.
        let can_be_cut = self.terms.is_replayable && self.others_can_follow(context);
        let own = context.policy.attempt_timeout.filter(|_| can_be_cut).map(|own| now + own);
        let gives_way_at = gives_way_at.filter(|at| *at > now);
        let last = gives_way_at.into_iter().chain(deadline).min();
        let own = own.filter(|own| last.is_none_or(|last| *own < last));
        Running { attempt, since: now, until: own.or(last), cut_short: own.is_some(), gives_way_at }
    }

    /// A request is sent elsewhere for an endpoint's silence but once: if the next one goes silent too, it
    /// may well be this request that they work on. One that can't be sent elsewhere is given up.
    fn on_silence(&self, context: &Context<'_>) -> SilencePolicy {
        if !context.is_repeatable {
            return SilencePolicy::WhenSilentAlone;
        }
        if self.has_moved || !self.others_can_follow(context) {
            return SilencePolicy::Never;
        }
        SilencePolicy::WhenOverdue
    }

    fn hedge(
        &mut self,
        mut race: Race,
        has_room: bool,
        context: &Context<'_>,
        effects: &mut Effects,
    ) -> Next<R> {
        let is_due = race.hedge_at.is_some_and(|at| at <= context.now);
        let Some(budget) = context.hedge_budget.filter(|_| is_due) else { return Next::Wait };
        race.hedge_at = None;
        self.phase = Phase::Sent(race);
        if self.is_late(context.now) {
            return Next::Wait;
        }
        let refused = if !has_room {
            Some(HedgeRefusal::Busy)
        } else if !budget.try_retry(context.now) {
            Some(HedgeRefusal::Budget)
        } else {
            None
        };
        if let Some(refused) = refused {
            effects.push(Effect::HedgeRefused(refused));
            return Next::Wait;
        }
        let second = self.begin(race.first.gives_way_at, context);
        let on_silence = self.on_silence(context);
        self.phase = Phase::Sent(Race { second: Some(second), ..race });
        let Running { attempt, until, .. } = second;
        Next::Send(Sending { attempt, until, on_silence, hedge_at: None })
    }

    /// Takes in that an attempt is over; if there is another beside it, that one may still answer.
    fn ended(
        &mut self,
        (mut race, running): (Race, Running),
        end: End<R>,
        context: &Context<'_>,
        effects: &mut Effects,
    ) -> Next<R> {
        let says_how_long = match &end {
            End::Answered(answer, _) => answer.is_success,
            End::Silent(_) | End::TimedOut { .. } => true,
            End::Connected | End::Broke(..) | End::Unsent(_) => false,
        };
        let mut result = self.settle(&running, end, context, effects);
        let Some(second) = race.second else {
            if says_how_long {
                self.first_took(&race, context, effects);
            }
            return self.raced(result, context, effects);
        };
        let other = race.other(running.attempt);
        if let Err(failure) = &mut result {
            failure.answer = failure.answer.or(race.said);
            if other.is_some() {
                (race.over, race.said) = (Some(running.attempt), failure.answer);
                self.phase = Phase::Sent(race);
                return Next::Wait;
            }
        } else if let Some(other) = other {
            effects.push(Effect::Settle(other.attempt, Blame::GivenUp));
        }
        let hedged = match &result {
            Ok(won) if won.attempt == second.attempt => Hedged::Won,
            Ok(_) => Hedged::Lost,
            Err(_) => Hedged::Failed,
        };
        self.first_took(&race, context, effects);
        effects.push(Effect::Hedged(hedged));
        if hedged == Hedged::Won {
            // It may be slow, or it may be gone.
            effects.push(Effect::Probe(race.first.attempt));
        }
        self.raced(result, context, effects)
    }

    /// An attempt is over, and no other is beside it.
    fn raced(
        &mut self,
        result: Result<Success, Failure<R>>,
        context: &Context<'_>,
        effects: &mut Effects,
    ) -> Next<R> {
        let mut failure = match result {
            Err(failure) => failure,
            Ok(won) => {
                if won.earns {
                    context.budget.earn(context.now);
                }
                self.judge(true, effects);
                self.phase = Phase::Over;
                return Next::Finish(Ending::Answer(won.attempt));
            }
        };
        if let Some(last) = self.last.take() {
            context.budget.retry_failed();
            // An answer is worth more to the client than that another endpoint was silent.
            failure.answer = failure.answer.or(last.answer);
        }
        if !self.is_late(context.now) && self.may_follow(&failure, context, effects) {
            self.last = Some(failure);
            self.phase = Phase::Binding;
            return Next::Bind;
        }
        self.pool_failed(failure, context, effects)
    }

    /// Whether the request may be sent once more after this. If so, it is paid for.
    fn may_follow(
        &mut self,
        failure: &Failure<R>,
        context: &Context<'_>,
        effects: &mut Effects,
    ) -> bool {
        let is_wanted = failure.trouble.is_some_and(|trouble| context.policy.retries(trouble))
            && failure.may_be_sent_after(context)
            && self.accusations < MAX_ACCUSED
            && self.others_can_follow(context);
        let is_allowed = is_wanted && context.budget.try_retry(context.now);
        if is_wanted {
            effects.push(Effect::Retry(is_allowed));
        }
        self.is_unpaid = is_wanted && !is_allowed;
        is_allowed
    }

    /// Whether more attempts are allowed at this pool, and there is an endpoint for them.
    fn others_can_follow(&self, context: &Context<'_>) -> bool {
        self.begun - self.from < context.policy.attempts as usize && context.has_untried
    }

    /// This pool does not answer; a variant may stand in.
    fn pool_failed(
        &mut self,
        failure: Failure<R>,
        context: &Context<'_>,
        effects: &mut Effects,
    ) -> Next<R> {
        self.judge(false, effects);
        self.last = None;
        let falls_back = failure.may_be_sent_after(context)
            && failure.refusal.lets_another_stand_in()
            && self.pays_for_stand_in(context);
        let refusal = failure.refusal.clone();
        self.first.get_or_insert(failure);
        if !falls_back {
            return self.give_up();
        }
        self.phase = Phase::FallingBack;
        self.lacking = Some(refusal.clone());
        Next::FallBack(refusal)
    }

    /// Whether there is a variant that stands in, and time for it. Another model at the same endpoints is
    /// one more attempt for them: it is paid for as a retry is.
    fn pays_for_stand_in(&self, context: &Context<'_>) -> bool {
        if self.is_late(context.now) {
            return false;
        }
        match context.stand_in {
            None => false,
            Some(StandIn::OtherPool) => true,
            Some(StandIn::SamePool) => self.begun == 0 || context.budget.try_retry(context.now),
        }
    }

    fn give_up(&mut self) -> Next<R> {
        self.phase = Phase::Over;
        let Some(first) = self.first.take() else {
            return Next::Finish(Ending::Refuse(R::deadline_passed()));
        };
        Next::Finish(match first.answer {
            Some(attempt) => Ending::PassOn(attempt),
            None => Ending::Refuse(first.refusal),
        })
    }

    fn abandon(&mut self, effects: &mut Effects) -> Next<R> {
        if let Phase::Sent(race) = self.phase {
            for running in [Some(race.first), race.second].into_iter().flatten() {
                if race.over != Some(running.attempt) {
                    effects.push(Effect::Settle(running.attempt, Blame::Abandoned));
                }
            }
        }
        self.phase = Phase::Over;
        Next::Finish(Ending::Left)
    }

    fn is_late(&self, now: Time) -> bool {
        self.terms.deadline.is_some_and(|deadline| deadline <= now)
    }

    fn first_took(&self, race: &Race, context: &Context<'_>, effects: &mut Effects) {
        if context.hedge_budget.is_some() && self.terms.is_replayable {
            effects.push(Effect::FirstTook(race.first.attempt));
        }
    }
}

impl<R> Failure<R> {
    /// No attempt was made.
    fn unsent(refusal: R) -> Self {
        Self { trouble: None, refusal, answer: None }
    }

    /// Whether the request may be sent once more, by what it is: one that may have an effect only if the
    /// attempt that failed can't have had it.
    fn may_be_sent_after(&self, context: &Context<'_>) -> bool {
        context.is_repeatable || matches!(self.trouble, None | Some(RetryOn::Connect))
    }
}
