//! The verdict on each attempt, and on errors of which it is not clear whose fault they are.

use super::blame::Blame;
use super::event::{Answer, Context, Effect, Effects, End, RefusalCause};
use super::policy::RetryOn;
use super::race::Running;
use super::{Attempts, Failure, MAX_ACCUSED, Success};
use crate::Outcome;
use std::time::Duration;

impl<R: RefusalCause> Attempts<R> {
    /// The verdict on an attempt that is over, and what that means for the request.
    pub(super) fn settle(
        &mut self,
        running: &Running,
        end: End<R>,
        context: &Context<'_>,
        effects: &mut Effects,
    ) -> Result<Success, Failure<R>> {
        let attempt = running.attempt;
        let failed = |trouble, refusal| Err(Failure { trouble, refusal, answer: None });
        match end {
            End::Answered(answer, refusal) => {
                self.answered(running, &answer, refusal, context, effects)
            }
            End::Connected => {
                effects.push(Effect::Settle(attempt, Blame::HandedOver));
                effects.push(Effect::Took(attempt));
                Ok(Success { attempt, earns: true })
            }
            End::Broke(trouble, refusal) => {
                effects.push(Effect::Settle(attempt, Blame::Failed));
                effects.push(Effect::Note(attempt, Outcome::Failed));
                failed(Some(trouble), refusal)
            }
            End::Unsent(refusal) => {
                effects.push(Effect::Settle(attempt, Blame::Answered { counts: false }));
                failed(None, refusal)
            }
            End::Silent(refusal) => {
                self.has_moved = true;
                effects.push(Effect::Settle(attempt, Blame::Late { cut_short: false }));
                failed(Some(RetryOn::Timeout), refusal)
            }
            End::TimedOut { unheard } => {
                let is_late = self.is_late(context.now);
                let cut_short = running.cut_short && !is_late;
                effects.push(Effect::Settle(attempt, Blame::Late { cut_short }));
                if running.cut_short || !self.had_little_time(running) {
                    let outcome = if unheard { Outcome::Failed } else { Outcome::Late };
                    effects.push(Effect::Note(attempt, outcome));
                }
                if cut_short {
                    failed(Some(RetryOn::Timeout), R::attempt_timed_out())
                } else {
                    failed(None, R::deadline_passed())
                }
            }
        }
    }

    /// Little time says nothing about the endpoint, whether the client gave little or most of it had passed
    /// in the queue.
    fn had_little_time(&self, running: &Running) -> bool {
        let had = running.until.map_or(Duration::MAX, |until| until.since(running.since));
        self.terms.is_hurried || had < self.terms.usual_time / 2
    }

    fn answered(
        &mut self,
        running: &Running,
        answer: &Answer,
        refusal: Option<R>,
        context: &Context<'_>,
        effects: &mut Effects,
    ) -> Result<Success, Failure<R>> {
        let attempt = running.attempt;
        let trouble = RetryOn::Status(answer.status);
        let refusal = refusal.filter(|_| {
            self.terms.is_replayable && answer.status >= 400 && context.policy.retries(trouble)
        });
        let says_elsewhere = matches!(answer.status, 429 | 500..) && answer.status != 504;
        let blame = if says_elsewhere && self.terms.is_replayable {
            Blame::Refused
        } else if answer.is_whole || refusal.is_some() {
            Blame::Answered { counts: answer.is_success }
        } else {
            Blame::HandedOver
        };
        effects.push(Effect::Settle(attempt, blame));
        let took = context.now.since(running.since);
        match self.outcome(attempt, answer, took) {
            Some(outcome) => effects.push(Effect::Note(attempt, outcome)),
            None => self.accuse(attempt),
        }
        if let Some(refusal) = refusal {
            return Err(Failure { trouble: Some(trouble), refusal, answer: Some(attempt) });
        }
        effects.push(Effect::Took(attempt));
        Ok(Success { attempt, earns: answer.status < 500 })
    }

    /// The evidence of an answer about the endpoint; `None`: another endpoint has to show whose fault the
    /// error is.
    fn outcome(&self, attempt: usize, answer: &Answer, took: Duration) -> Option<Outcome> {
        debug_assert!(attempt < self.begun, "an attempt that was not begun");
        if !self.terms.is_replayable {
            return Some(answer.alone());
        }
        Some(match answer.status {
            500 | 502 => return None,
            // Its word that there was too little time says nothing against it.
            504 => Outcome::Understood,
            429 => Outcome::Busy,
            503 if answer.is_busy => Outcome::Busy,
            503.. => Outcome::Failed,
            _ if answer.is_success => Outcome::Answered(took),
            _ => Outcome::Understood,
        })
    }

    fn accuse(&mut self, attempt: usize) {
        if let Some(place) = self.accused.get_mut(self.accusations) {
            *place = attempt;
            self.accusations += 1;
        }
    }

    /// Decides whose fault the errors were that endpoints answered with.
    pub(super) fn judge(&mut self, another_answered: bool, effects: &mut Effects) {
        let outcome = match self.accusations {
            0 => return,
            // It may be the request. Where one endpoint is at fault, there are retries that show it.
            1 if self.is_unpaid => return,
            MAX_ACCUSED.. if !another_answered => Outcome::Understood,
            _ => Outcome::Failed,
        };
        for attempt in &self.accused[..self.accusations] {
            effects.push(Effect::Note(*attempt, outcome));
        }
        self.accusations = 0;
    }
}
