//! Statistics of each model of a pool, apart from the others.
//!
//! A pool may serve one model in a millisecond and another in a hundred. A hedge after a quantile of
//! both would be made for the slow one always or for the fast one never; an endpoint that happened to
//! get the slow one would seem slow itself; and the fast one would be refused because of the time that
//! the slow one takes. So each model has its own latencies and its [`RelativeCost`].
//!
//! Names come from requests. So only models that have answered are remembered, and no more than
//! [`MAX_MODELS`]: the one that was asked for longest ago makes way.

use super::hedge::Latencies;
use crate::float::{Float, narrow};
use crate::{RelativeCost, Time};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// Models that are remembered: more than anybody loads at once, at 2 KiB each where hedges are made.
pub const MAX_MODELS: usize = 256;
/// Nanoseconds to which it is known when a model was asked for last.
const ASKED_AT_PRECISION: u64 = 1_000_000_000;
/// Answers that a mean is made of, at most.
const MAX_ANSWERS: f32 = 500.0;
/// The models of one pool. Shared; locked for writing only when a model is new.
#[derive(Debug)]
pub struct ModelStats {
    /// Of latencies, where anybody asks for it.
    quantile: Option<f64>,
    /// The mean over all models.
    all: Mean,
    known: RwLock<HashMap<u64, Arc<Model>>>,
}

/// Statistics of one model.
#[derive(Debug)]
struct Model {
    latencies: Option<Latencies>,
    service: Mean,
    /// Time of the last request for it, in nanoseconds on the clock of [`Time`].
    asked_at: AtomicU64,
}

/// A mean of what requests took, in seconds. Of two answers at once one may be lost.
#[derive(Debug, Default)]
struct Mean {
    seconds: Float,
    answers: Float,
}

impl Mean {
    fn learn(&self, seconds: f32) {
        let answers = (self.answers.get() + 1.0).min(MAX_ANSWERS);
        self.answers.set(answers);
        self.seconds.draw(seconds, 1.0 / answers);
    }
}

impl ModelStats {
    /// Knows none yet; learns this `quantile` of each one's latencies, between 0 and 1, if there is one.
    pub fn new(quantile: Option<f64>) -> Self {
        Self { quantile, all: Mean::default(), known: RwLock::default() }
    }

    /// Number of known models.
    pub fn len(&self) -> usize {
        self.known.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether no model is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A request asks for the model with this number, at `now`.
    pub fn handle(self: &Arc<Self>, model: u64, now: Time) -> ModelHandle {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let known = known.get(&model).map(Arc::clone);
        if let Some(known) = &known {
            let asked_at = known.asked_at.load(Relaxed);
            // All threads share it: written only as often as matters.
            if now.nanos().saturating_sub(asked_at) > ASKED_AT_PRECISION {
                known.asked_at.store(now.nanos(), Relaxed);
            }
        }
        ModelHandle { models: Arc::clone(self), model, known }
    }

    /// The model with this number, known from now on.
    fn learn(&self, model: u64, now: Time) -> Arc<Model> {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if !known.contains_key(&model) && known.len() >= MAX_MODELS {
            let oldest = known.iter().min_by_key(|(_, model)| model.asked_at.load(Relaxed));
            if let Some(oldest) = oldest.map(|(number, _)| *number) {
                known.remove(&oldest);
            }
        }
        let new = || Model {
            latencies: self.quantile.map(Latencies::new),
            service: Mean::default(),
            asked_at: AtomicU64::new(now.nanos()),
        };
        Arc::clone(known.entry(model).or_insert_with(|| Arc::new(new())))
    }
}

/// A model that a request asks for, and what its pool knows of it.
#[derive(Debug, Clone)]
pub struct ModelHandle {
    models: Arc<ModelStats>,
    model: u64,
    known: Option<Arc<Model>>,
}

impl ModelHandle {
    /// The work that it is; that of the mean while nothing is known.
    pub fn relative_cost(&self) -> RelativeCost {
        let (Some(known), all) = (&self.known, self.models.all.seconds.get()) else {
            return RelativeCost::default();
        };
        RelativeCost::new(known.service.seconds.get() / all)
    }

    /// The quantile of what its requests took lately; `None` while too few are known.
    pub fn estimate(&self) -> Option<Duration> {
        self.known.as_ref()?.latencies.as_ref()?.estimate()
    }

    /// Takes in that it was answered, as asked for, `took` after it was sent. Returns what a mean request
    /// would have taken, which is what speaks of the endpoint.
    pub fn answered(&mut self, took: Duration, now: Time) -> Duration {
        let (models, model) = (&self.models, self.model);
        let known = self.known.get_or_insert_with(|| models.learn(model, now));
        let seconds = narrow(took.as_secs_f64());
        // Both learn in the same way, so that a model that is alone weighs exactly 1; and both do before
        // they are asked, so that the first answer says nothing of the endpoint that gave it.
        models.all.learn(seconds);
        known.service.learn(seconds);
        self.given_up(took)
    }

    /// Takes in that it was given up after this time: that is an endpoint's doing, not the model's.
    /// Returns the same.
    pub fn given_up(&self, took: Duration) -> Duration {
        self.relative_cost().normalize(took)
    }

    /// Takes in what a first attempt took, or that it was given up after so long: it would have been
    /// above the quantile in any case.
    pub fn first_took(&self, took: Duration, now: Time) {
        if let Some(latencies) = self.known.as_ref().and_then(|known| known.latencies.as_ref()) {
            latencies.observe(took, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::new(Duration::from_secs(seconds))
    }

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_model_that_is_alone_weighs_one() {
        let models = Arc::new(ModelStats::new(None));
        for took in [3, 50, 1, 700, 20] {
            let found = models.handle(1, at(1)).answered(millis(took), at(1));
            assert_eq!(found, millis(took));
            assert_eq!(models.handle(1, at(1)).relative_cost(), RelativeCost::default());
        }
        assert_eq!(
            models.handle(2, at(1)).relative_cost(),
            RelativeCost::default(),
            "nothing is known"
        );
    }

    #[test]
    fn times_of_a_light_and_a_heavy_model_speak_of_the_endpoint_alike() {
        let models = Arc::new(ModelStats::new(None));
        for _ in 0..400 {
            models.handle(1, at(1)).answered(millis(2), at(1));
            models.handle(2, at(1)).answered(millis(100), at(1));
        }
        let near = |found: Duration, expected: f64| {
            let found = found.as_secs_f64() * 1e3;
            assert!((found / expected - 1.0).abs() < 0.02, "{found} ms, expected {expected}");
        };
        near(models.handle(1, at(1)).given_up(millis(2)), 51.0);
        near(models.handle(2, at(1)).given_up(millis(100)), 51.0);
        near(models.handle(2, at(1)).given_up(millis(300)), 153.0);
        assert!(
            (models.handle(2, at(1)).relative_cost().get()
                / models.handle(1, at(1)).relative_cost().get()
                - 50.0)
                .abs()
                < 0.1
        );
    }

    #[test]
    fn each_has_a_quantile_of_its_own() {
        let models = Arc::new(ModelStats::new(Some(0.95)));
        for number in 0..1000 {
            let (model, took) = if number % 20 == 0 { (2, 100) } else { (1, 1) };
            let mut asked = models.handle(model, at(1));
            asked.answered(millis(took), at(1));
            asked.first_took(millis(took), at(1));
        }
        let estimate = |model| models.handle(model, at(1)).estimate();
        assert!(estimate(1).is_some_and(|it| it < millis(2)), "{:?}", estimate(1));
        assert_eq!(estimate(2), None, "50 are too few");
        for _ in 0..100 {
            models.handle(2, at(1)).first_took(millis(100), at(1));
        }
        assert!(estimate(2).is_some_and(|it| it >= millis(100)), "{:?}", estimate(2));
    }

    #[test]
    fn what_was_never_answered_is_not_remembered_and_what_was_only_up_to_a_bound() {
        let models = Arc::new(ModelStats::new(Some(0.95)));
        for model in 0..1000 {
            let asked = models.handle(model, at(1));
            asked.first_took(millis(1), at(1));
            assert_eq!(asked.given_up(millis(1)), millis(1));
        }
        assert!(models.is_empty());
        for model in 0..MAX_MODELS as u64 + 100 {
            models.handle(0, at(model));
            models.handle(model, at(model)).answered(millis(1), at(model));
        }
        assert_eq!(models.len(), MAX_MODELS);
        let known = |model| models.handle(model, at(1)).known.is_some();
        assert!(known(0) && known(MAX_MODELS as u64 + 99), "asked for lately");
        assert!(!known(1), "asked for longest ago");
    }

    #[test]
    fn odd_times_do_no_harm() {
        let models = Arc::new(ModelStats::new(Some(0.5)));
        for took in [Duration::ZERO, Duration::MAX, Duration::ZERO, millis(1)] {
            let mut asked = models.handle(1, at(1));
            asked.answered(took, at(1));
            asked.first_took(took, at(1));
            assert!(asked.relative_cost().get() > 0.0);
        }
        assert_eq!(RelativeCost::new(f32::NAN), RelativeCost::default());
        assert!(RelativeCost::new(0.0).get() > 0.0 && RelativeCost::new(f32::INFINITY).get() < 1e5);
    }
}
