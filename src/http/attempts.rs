//! The attempts of an HTTP request, however it is forwarded.
//!
//! Buffered, streamed and piped requests raise the same questions: may it be sent again, may a variant stand
//! in, whose fault was it? [`forebay_routing::attempt`] answers them. This module reports events to it, in the
//! terms of requests and endpoints, and records the results in the request, the metrics and the log.

use crate::clock;
use crate::http::balance::{balance, gives_way_at};
use crate::http::decisions::Decisions;
use crate::http::fallback;
use crate::http::forward::{count_answer, count_attempt};
use crate::http::request::Request;
use crate::http::variant::Target;
use crate::pool::attempt::{EndpointAttempt, carry_out, context};
use crate::refusal::Refusal;
use forebay_protocol::Reason;
use forebay_routing::attempt::event::{Effect, End, Ending, Event, Next, Sending, StandIn, Terms};
use forebay_routing::{Attempts, Blame};
use std::sync::Arc;
use std::time::Duration;

/// Of an endpoint that is silent.
pub const NO_SIGN: &str = "the endpoint answers neither the request nor probes";

/// The treatment of the request's answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handling {
    /// They are held, so that they can be replaced.
    Held,
    /// They are passed on as they come.
    PassedOn,
    /// The same, and how long one takes to come is in the client's hands.
    AtTheClientsPace,
}

/// The first thing to be done for a request that was routed.
pub fn begin(request: &mut Request, handling: Handling, is_repeatable: bool) -> Next<Refusal> {
    let Some(asked) = request.target.clone() else { return unrouted() };
    let usual = asked.route.deadline;
    // Little time says nothing about an endpoint.
    let is_hurried = request.identity.deadline.is_some_and(|asked| asked < usual);
    let terms = Terms {
        deadline: request.deadline.map(clock::at),
        usual_time: usual,
        is_hurried: is_hurried || handling == Handling::AtTheClientsPace,
        is_replayable: handling == Handling::Held,
    };
    request.decisions = Some(Box::new(Decisions { attempts: Attempts::new(terms), asked }));
    on(request, Event::Began, is_repeatable)
}

/// Takes in what has happened. `is_repeatable`: as things stand, the request may be sent again although an
/// endpoint may have received it.
pub fn on(request: &mut Request, event: Event<Refusal>, is_repeatable: bool) -> Next<Refusal> {
    let Some(target) = request.target.clone() else { return unrouted() };
    let stand_in = target.fallback(&request.snapshot, &request.identity);
    let Request { decisions: Some(decisions), attempts, .. } = request else { return unrouted() };
    let kind = stand_in.as_ref().map(|next| {
        StandIn::between(&Arc::as_ptr(&target.pool.state), &Arc::as_ptr(&next.pool.state))
    });
    let mut failed = match &event {
        Event::Ended(attempt, end) => Some((*attempt, reason_of(end))),
        _ => None,
    };
    let context = context(&target.pool, attempts, is_repeatable, kind);
    let step = decisions.attempts.on(event, &context);
    carry_out(&step.effects, attempts, &target.pool);
    let mut is_over = false;
    for effect in step.effects.iter() {
        match effect {
            Effect::Took(place) => {
                failed = None;
                request.answering_attempt = Some(place);
                count_answer(&target, &attempts[place].endpoint.state);
            }
            Effect::Hedged(hedged) => request.hedged = Some(hedged),
            Effect::Settle(place, blame) => {
                is_over |= failed.is_some_and(|(attempt, _)| attempt == place);
                if let (Blame::Late { cut_short: true }, Some((_, reason))) = (blame, &mut failed) {
                    *reason = Reason::AttemptTimeout;
                }
            }
            _ => {}
        }
    }
    if let Some((place, reason)) = failed.filter(|_| is_over) {
        count_attempt(&target, &attempts[place].endpoint.state, reason.code());
    }
    match &step.next {
        Next::FallBack(refusal) => fallback::stand_in(request, &target, stand_in, refusal.reason),
        Next::Finish(Ending::PassOn(place)) => {
            request.answering_attempt = Some(*place);
            go_back(request);
        }
        Next::Finish(Ending::Refuse(_)) => go_back(request),
        _ => {}
    }
    step.next
}

/// Abandons a request whose client no longer waits: its attempts are over, and no endpoint is to blame.
pub fn abandon(request: &mut Request) {
    if request.decisions.as_ref().is_some_and(|decisions| !decisions.are_over()) {
        on(request, Event::ClientLeft, false);
    }
    // Of those whose answer had begun, the rest is not read.
    request.attempts.iter_mut().for_each(EndpointAttempt::abandoned);
}

/// The reason that an end is counted as, if the attempt failed.
fn reason_of(end: &End<Refusal>) -> Reason {
    match end {
        End::Answered(_, Some(refusal))
        | End::Broke(_, refusal)
        | End::Unsent(refusal)
        | End::Silent(refusal) => refusal.reason,
        // Those without a refusal are taken.
        End::Answered(_, None) | End::Connected | End::TimedOut { .. } => Reason::DeadlineExceeded,
    }
}

/// No variant answers: what was wrong with the one that was asked for says more than what a lesser one lacked.
fn go_back(request: &mut Request) {
    if request.degraded.take().is_some()
        && let Some(decisions) = &request.decisions
    {
        request.target = Some(decisions.asked.clone());
    }
}

fn unrouted() -> Next<Refusal> {
    Next::Finish(Ending::Refuse(Refusal::new(Reason::Internal, "a request without a route")))
}

/// Binds a request whose attempts may go on with `next` to an endpoint, at the first variant that has one
/// for it, and returns the attempt that begins there.
///
/// # Errors
/// No endpoint, or no time left.
pub async fn bind(
    request: &mut Request,
    mut next: Next<Refusal>,
    is_repeatable: bool,
) -> Result<Sending, Refusal> {
    loop {
        next = match next {
            Next::Bind => bound(request, is_repeatable).await,
            Next::FallBack(_) => on(request, Event::StandsIn, is_repeatable),
            Next::Send(sending) => return Ok(sending),
            Next::Finish(Ending::Refuse(refusal)) => return Err(refusal),
            Next::Wait | Next::Finish(_) => {
                return Err(Refusal::new(Reason::Internal, "an attempt that was not to be made"));
            }
        };
    }
}

/// Waits for an endpoint for the next attempt.
pub async fn bound(request: &mut Request, is_repeatable: bool) -> Next<Refusal> {
    let Some(target) = request.target.clone() else { return unrouted() };
    let event = match balance(request, &target).await {
        Ok(()) => Event::Bound {
            hedge_after: hedge_after(request, &target),
            gives_way_at: gives_way_at(request, &target),
        },
        Err(refusal) => Event::Rejected(refusal),
    };
    on(request, event, is_repeatable)
}

/// The time after which a second attempt beside the one that was bound last is worth its cost.
fn hedge_after(request: &Request, target: &Target) -> Option<Duration> {
    let hedges = target.pool.state.hedges.as_ref()?;
    hedges.after(request.attempts.last()?.asked.as_ref()?)
}
