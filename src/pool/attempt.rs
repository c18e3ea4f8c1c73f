//! One sending of a request to one endpoint, and what its end says of the endpoint.
//!
//! The endpoint counts it as in flight until it is over, however it ends. Each end is told apart, since each
//! says something else: an answer how fast the endpoint is, a failure that it had better be avoided, and
//! one that was given up nothing but how long it took at least.

use super::Endpoint;
use super::queue::Bound;
use crate::clock;
use forebay_routing::ModelHandle;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An endpoint that did not answer for this long had time to: a probe is worth its cost.
const FAIR_WAIT: Duration = Duration::from_millis(50);

/// An endpoint that was picked for a request.
pub struct EndpointAttempt {
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// Counts as in flight there until dropped.
    pub guard: Option<Bound>,
    /// The model that is to work for it, if one is; nothing lasting is known to be for one.
    pub asked: Option<ModelHandle>,
    /// When it was picked.
    pub at: Instant,
}

impl EndpointAttempt {
    /// Begins now.
    pub fn new(bound: Bound, asked: Option<ModelHandle>) -> Self {
        let endpoint = Arc::clone(&bound.endpoint);
        Self { endpoint, guard: Some(bound), asked, at: Instant::now() }
    }

    /// How long the work is expected to take there; zero if nothing is known.
    pub fn expected(&self, endpoint: &Endpoint) -> Duration {
        let mean = endpoint.state.load.service_seconds().unwrap_or_default();
        let weight = self.asked.as_ref().map_or(1.0, |asked| asked.relative_cost().get());
        Duration::try_from_secs_f64(mean * weight).unwrap_or_default()
    }

    /// The attempt is over without an answer.
    pub fn failed(&mut self) {
        self.refused();
        self.endpoint.state.suspect();
    }

    /// The attempt is over with an answer that says to ask elsewhere.
    pub fn refused(&mut self) {
        // Before the guard is gone: whoever is bound next must know.
        self.endpoint.state.failed(clock::now());
        self.guard = None;
    }

    /// The attempt is over since there was no answer in time.
    pub fn late(&mut self) {
        let was_fair = self.at.elapsed() >= FAIR_WAIT;
        if was_fair {
            self.endpoint.state.failed(clock::now());
        }
        self.abandoned();
        if was_fair {
            self.endpoint.state.suspect();
        }
    }

    /// The attempt is over since nobody waits for its answer any more, for which nobody is to blame.
    pub fn abandoned(&mut self) {
        let waited = self.at.elapsed();
        let latency = self.normalized_latency(waited);
        match self.guard.take() {
            Some(guard) if waited >= FAIR_WAIT => guard.late(latency),
            // Whether a model worked for it is known of what is bound to one only.
            Some(guard) if self.asked.is_some() => guard.cut_short(latency),
            _ => {}
        }
    }

    /// What it would have taken for the mean of all models.
    fn normalized_latency(&self, took: Duration) -> Duration {
        self.asked.as_ref().map_or(took, |asked| asked.given_up(took))
    }

    /// The attempt was dropped since another has answered. It took at least so long.
    pub fn given_up(&mut self) {
        if let Some(guard) = self.guard.take() {
            guard.answered(self.normalized_latency(self.at.elapsed()));
        }
    }

    /// The attempt is over with an answer. `counts`: it is what was asked for, so that, where a model
    /// worked for it, the time since the pick says how fast model and endpoint are.
    pub fn answered(&mut self, counts: bool) {
        if let Some(guard) = self.guard.take()
            && let Some(asked) = self.asked.as_mut().filter(|_| counts)
        {
            guard.answered(asked.answered(self.at.elapsed(), clock::now()));
        }
    }
}
