//! The events of a request's attempts, and the steps that follow.
//!
//! Attempts are named by their place among all that were begun for the request, from 0.

use super::blame::Blame;
pub use super::fallback::StandIn;
use super::policy::{RetryOn, RetryPolicy};
use crate::{Outcome, RetryBudget, Time};
use std::time::Duration;

/// Why a request was refused, in the driver's words.
pub trait RefusalCause: Clone {
    /// There was no answer before the deadline.
    fn deadline_passed() -> Self;

    /// An endpoint did not answer in the time that one attempt may take.
    fn attempt_timed_out() -> Self;

    /// Whether another variant may do better.
    fn lets_another_stand_in(&self) -> bool;
}

/// The properties of a request that its attempts depend on.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// Time after which its client no longer waits.
    pub deadline: Option<Time>,
    /// The time that requests of its kind usually have.
    pub usual_time: Duration,
    /// Whether what it took says nothing of an endpoint: its client left it less time than usual, or takes
    /// of that time itself.
    pub is_hurried: bool,
    /// Whether its answer is held, so that it can be replaced by another endpoint's, which may come
    /// from an attempt at the same time.
    pub is_replayable: bool,
}

/// The facts that a decision depends on beside the request: the pool that it is at now, and the moment.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The present.
    pub now: Time,
    /// The pool's conditions.
    pub policy: &'a RetryPolicy,
    /// The account of the pool's retries.
    pub budget: &'a RetryBudget,
    /// The account of its hedges, if it has any.
    pub hedge_budget: Option<&'a RetryBudget>,
    /// Whether it has an endpoint in rotation that the request was not sent to.
    pub has_untried: bool,
    /// Whether the request may be sent again although an endpoint may have received it: it has no effect
    /// but its answer, and all of it is at hand.
    pub is_repeatable: bool,
    /// The variant that stands in next, if there is one.
    pub stand_in: Option<StandIn>,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event<R> {
    /// The request is there.
    Began,
    /// It was bound to an endpoint that it was not sent to before. `hedge_after`: the time after which a
    /// second attempt beside this one is worth its cost, if that is known.
    Bound {
        /// From now on.
        hedge_after: Option<Duration>,
        /// Time at which it gives way to the variant that stands in, if it does: see
        /// [`runs_until`](crate::PoolView::runs_until).
        gives_way_at: Option<Time>,
    },
    /// It was not bound.
    Rejected(R),
    /// The time that was named for a hedge has come. `has_room`: whether an endpoint was found that has
    /// room for it at once.
    HedgeDue {
        /// At an endpoint that the request was not sent to before.
        has_room: bool,
    },
    /// An attempt is over.
    Ended(usize, End<R>),
    /// The request is ready for the variant that stands in.
    StandsIn,
    /// The variant can't stand in: the request can't be made one for it.
    CannotStandIn,
    /// The client left, or is at fault itself.
    ClientLeft,
}

/// The end of an attempt.
#[derive(Debug, Clone, PartialEq)]
pub enum End<R> {
    /// With an answer. The refusal is what it amounts to if it is an error.
    Answered(Answer, Option<R>),
    /// The endpoint has taken what lasts: what comes of it is not an attempt's matter any more.
    Connected,
    /// By the endpoint's fault.
    Broke(RetryOn, R),
    /// It was not made: the proxy itself lacks something, and another endpoint would fare no better.
    Unsent(R),
    /// The endpoint answers neither it nor probes.
    Silent(R),
    /// Its time is up. `unheard`: the endpoint has answered nothing since the attempt began.
    TimedOut {
        /// Whether it may be gone, then, instead of slow.
        unheard: bool,
    },
}

/// An answer, as far as it decides anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// Whether it is what was asked for.
    pub is_success: bool,
    /// Whether it says that there is too much to do, or not yet, or no more.
    pub is_busy: bool,
    /// Whether it states a reason of its own for an error.
    pub states_reason: bool,
    /// Whether it was read to its end.
    pub is_whole: bool,
}

impl Answer {
    /// Its evidence about the endpoint if no other one is asked. The time of the answer is no evidence: it
    /// may be the beginning of a long answer, or the end of long work. An error that states its reason
    /// concerns this request, such as a model that can't be loaded.
    pub(super) fn alone(&self) -> Outcome {
        match self.status {
            500 | 502 if self.states_reason => Outcome::Understood,
            500 | 502 => Outcome::Failed,
            429 => Outcome::Busy,
            503 if self.is_busy => Outcome::Busy,
            503 => Outcome::Failed,
            _ => Outcome::Understood,
        }
    }
}

/// The reaction to an event.
#[derive(Debug, Clone, PartialEq)]
pub struct Step<R> {
    /// Effects to record, in this order.
    pub effects: Effects,
    /// The next step.
    pub next: Next<R>,
}

/// The next step.
#[derive(Debug, Clone, PartialEq)]
pub enum Next<R> {
    /// The request is to be bound to an endpoint that it was not sent to: [`Event::Bound`] or
    /// [`Event::Rejected`] follows.
    Bind,
    /// The attempt that was bound last is to be sent.
    Send(Sending),
    /// Nothing is to be done until something happens.
    Wait,
    /// The variant that stands in next is to be made ready, since the present one failed like this:
    /// [`Event::StandsIn`] or [`Event::CannotStandIn`] follows.
    FallBack(R),
    /// The request is done; attempts under way are dropped.
    Finish(Ending<R>),
}

/// An attempt that is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sending {
    /// Its number.
    pub attempt: usize,
    /// Time at which it is given up.
    pub until: Option<Time>,
    /// When it is ended at an endpoint that goes silent.
    pub on_silence: SilencePolicy,
    /// Time at which a hedge is due.
    pub hedge_at: Option<Time>,
}

/// When an attempt is ended at an endpoint that answers neither it nor probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SilencePolicy {
    /// When its work is overdue: the request can be sent elsewhere.
    WhenOverdue,
    /// When its work is overdue and other endpoints answer probes: the request can't be sent elsewhere, and is
    /// given up.
    WhenSilentAlone,
    /// Not before its time is up.
    Never,
}

impl SilencePolicy {
    /// How long an attempt is left at a silent endpoint in any case, by the time that its work is expected to
    /// take; `None`: as long as it has time. An endpoint that gives probes no answer in time may be at work on
    /// just this one, so that it is left in peace for twice that time.
    pub fn at_least(self, expected: Duration) -> Option<Duration> {
        match self {
            Self::WhenOverdue | Self::WhenSilentAlone => Some(expected * 2),
            Self::Never => None,
        }
    }

    /// Whether other endpoints must answer probes meanwhile: if all are silent, they may well be at work.
    pub fn takes_another(self) -> bool {
        self == Self::WhenSilentAlone
    }
}

/// The end of the request.
#[derive(Debug, Clone, PartialEq)]
pub enum Ending<R> {
    /// The client gets the answer of this attempt.
    Answer(usize),
    /// The client gets the error that this attempt was answered with, since no other did better. It comes
    /// from the variant that was asked for.
    PassOn(usize),
    /// It is refused.
    Refuse(R),
    /// Its client has left.
    Left,
}

/// Something that is to be noted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Effect {
    /// An attempt is over, in this way.
    Settle(usize, Blame),
    /// The outcome at an attempt's endpoint, for the detection of outliers.
    Note(usize, Outcome),
    /// The answer of this attempt is taken.
    Took(usize),
    /// The time of this attempt so far is a sample of first attempts.
    FirstTook(usize),
    /// Its endpoint may be slow or gone: a probe finds out.
    Probe(usize),
    /// One retry was wanted. `false`: the budget did not pay for it.
    Retry(bool),
    /// A hedge was due and not made.
    HedgeRefused(HedgeRefusal),
    /// The outcome of a hedge.
    Hedged(Hedged),
}

/// Why a hedge was not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HedgeRefusal {
    /// No endpoint had room at once.
    Busy,
    /// The budget did not pay for it.
    Budget,
}

impl HedgeRefusal {
    /// The word in metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Budget => "budget",
        }
    }
}

/// The outcome of a second attempt beside a slow first one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hedged {
    /// It answered first.
    Won,
    /// The first one did.
    Lost,
    /// It failed, or both did.
    Failed,
}

impl Hedged {
    /// The word in the log and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Won => "won",
            Self::Lost => "lost",
            Self::Failed => "failed",
        }
    }
}

/// Effects of one event, of which there are few.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Effects {
    list: [Option<Effect>; MAX_EFFECTS],
    len: usize,
}

/// Most effects of one event: two attempts that are settled, noted and counted, and three that are judged.
const MAX_EFFECTS: usize = 12;

impl Effects {
    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = Effect> + '_ {
        self.list.iter().flatten().copied()
    }

    pub(super) fn push(&mut self, effect: Effect) {
        debug_assert!(self.len < MAX_EFFECTS, "one event has more effects than expected");
        if let Some(place) = self.list.get_mut(self.len) {
            *place = Some(effect);
            self.len += 1;
        }
    }
}
