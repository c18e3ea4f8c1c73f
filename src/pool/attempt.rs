//! One sending of a request to one endpoint, and what its end says of the endpoint.
//!
//! The endpoint counts it as in flight until it is over, however it ends. [`forebay_routing::attempt`] decides
//! which side an end is blamed on, and whether another attempt follows. This module gathers the facts for these
//! decisions, and carries them out.

use super::queue::Bound;
use super::{Endpoint, Pool};
use crate::clock;
use forebay_protocol::metric::proxy as metric;
use forebay_routing::attempt::blame::Sample;
use forebay_routing::attempt::event::{Context, Effect, Effects, StandIn};
use forebay_routing::{Blame, ModelHandle};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An endpoint that was picked for a request.
pub struct EndpointAttempt {
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// Counts as in flight there until dropped.
    pub guard: Option<Bound>,
    /// The model that is to work for it, if one is; nothing lasting is known to be for one.
    pub asked: Option<ModelHandle>,
    /// Time of the pick.
    pub at: Instant,
}

impl EndpointAttempt {
    /// Begins now.
    pub fn new(bound: Bound, asked: Option<ModelHandle>) -> Self {
        let endpoint = Arc::clone(&bound.endpoint);
        Self { endpoint, guard: Some(bound), asked, at: Instant::now() }
    }

    /// Expected duration of the work there; zero if nothing is known.
    pub fn expected(&self) -> Duration {
        let mean = self.endpoint.state.load.service_seconds().unwrap_or_default();
        let weight = self.asked.as_ref().map_or(1.0, |asked| asked.relative_cost().get());
        Duration::try_from_secs_f64(mean * weight).unwrap_or_default()
    }

    /// The attempt is over. One that was over before stays as it was.
    pub fn settle(&mut self, blame: Blame) {
        if self.guard.is_none() {
            return;
        }
        let (waited, now) = (self.at.elapsed(), clock::now());
        let found = blame.consequences(waited, self.expected(), self.asked.is_some());
        if found.penalty {
            // Before the guard is gone: the next request to be bound must know.
            self.endpoint.state.failed(now);
        }
        if found.sample != Sample::Open
            && let Some(guard) = self.guard.take()
        {
            // The time that it would have taken for the mean of all models.
            let at_least = self.asked.as_ref().map_or(waited, |asked| asked.given_up(waited));
            match (found.sample, &mut self.asked) {
                (Sample::Answered, Some(asked)) => guard.answered(asked.answered(waited, now)),
                (Sample::AtLeast, _) => guard.answered(at_least),
                (Sample::Late, _) => guard.late(at_least),
                (Sample::CutShort, _) => guard.cut_short(at_least),
                (Sample::Answered | Sample::Nothing | Sample::Open, _) => drop(guard),
            }
        }
        if found.probe {
            self.endpoint.state.suspect();
        }
    }

    /// Ends the attempt because its client no longer waits, which is no endpoint's fault.
    pub fn abandoned(&mut self) {
        self.settle(Blame::Abandoned);
    }

    /// The attempt is over with an answer. `counts`: it is what was asked for, so that, where a model
    /// worked for it, the time since the pick says how fast model and endpoint are.
    pub fn answered(&mut self, counts: bool) {
        self.settle(Blame::Answered { counts });
    }
}

/// Whether this endpoint is among those `tried`.
pub fn was_tried(tried: &[EndpointAttempt], candidate: &Endpoint) -> bool {
    tried.iter().any(|tried| Arc::ptr_eq(&tried.endpoint.state, &candidate.state))
}

/// The facts that decisions depend on for a request that has made the attempts `tried` and is at this pool
/// now.
pub fn context<'a>(
    pool: &'a Pool,
    tried: &[EndpointAttempt],
    is_repeatable: bool,
    stand_in: Option<StandIn>,
) -> Context<'a> {
    Context {
        now: clock::now(),
        policy: &pool.state.retry_policy,
        budget: &pool.state.budget,
        hedge_budget: pool.state.hedges.as_ref().map(|hedges| &hedges.budget),
        has_untried: !pool.rotation.ready.iter().all(|endpoint| was_tried(tried, endpoint)),
        is_repeatable,
        stand_in,
    }
}

/// Notes what is to be noted of a request's attempts, the last of which are at this pool.
pub fn carry_out(effects: &Effects, attempts: &mut [EndpointAttempt], pool: &Pool) {
    let name = pool.config.name.as_str();
    for effect in effects.iter() {
        match effect {
            Effect::Retry(true) => {
                metric::RETRIES.with([name]).increment(1);
            }
            Effect::Retry(false) => {
                metric::RETRIES_REFUSED.with([name]).increment(1);
            }
            Effect::HedgeRefused(cause) => {
                let cause = cause.as_str();
                metric::HEDGES_REFUSED.with([name, cause]).increment(1);
            }
            Effect::Hedged(outcome) => {
                let outcome = outcome.as_str();
                metric::HEDGES.with([name, outcome]).increment(1);
            }
            Effect::Took(_) => {}
            Effect::Settle(place, blame) => {
                if let Some(attempt) = attempts.get_mut(place) {
                    attempt.settle(blame);
                }
            }
            Effect::Note(place, outcome) => {
                if let Some(attempt) = attempts.get(place) {
                    attempt.endpoint.state.note(outcome);
                }
            }
            Effect::Probe(place) => {
                if let Some(attempt) = attempts.get(place) {
                    attempt.endpoint.state.suspect();
                }
            }
            Effect::FirstTook(place) => {
                if let Some(attempt) = attempts.get(place)
                    && let Some(asked) = &attempt.asked
                {
                    asked.first_took(attempt.at.elapsed(), clock::now());
                }
            }
        }
    }
}
