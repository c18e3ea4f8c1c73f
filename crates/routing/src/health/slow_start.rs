//! Slow start: an endpoint that has just come into rotation gets its share gradually.
//!
//! It looks idle and would draw a burst, while its caches are cold and its threads still start. So for a
//! while it is considered for a growing part of the requests only, whatever the policy: it is passed
//! over by chance, and of all endpoints that are in the same state none is.

use crate::{Rng, Time};
use std::time::Duration;

/// Share that it begins with: enough to warm up by.
const MIN_SHARE: f64 = 0.1;
/// Steps of chance.
const STEPS: usize = 1 << 20;

/// The random draw for one request.
#[derive(Debug, Clone, Copy)]
pub struct SlowStart {
    window: Duration,
    now: Time,
    chance: f64,
}

impl SlowStart {
    /// Draws for a request at `now`; `None` if there is no slow start, which is no time for one.
    #[allow(clippy::cast_precision_loss, reason = "below 2^52")]
    pub fn draw(window: Duration, now: Time, rng: &mut Rng) -> Option<Self> {
        let chance = || rng.below(STEPS) as f64 / STEPS as f64;
        (!window.is_zero()).then(chance).map(|chance| Self { window, now, chance })
    }

    /// Whether an endpoint is passed over that has been in rotation since `began`.
    pub fn passes_over(&self, began: Time) -> bool {
        self.chance >= share(self.now.since(began), self.window)
    }
}

/// Part of the requests for which an endpoint is considered, so long after it came into rotation.
pub fn share(since: Duration, window: Duration) -> f64 {
    if since >= window {
        return 1.0;
    }
    MIN_SHARE + (1.0 - MIN_SHARE) * since.as_secs_f64() / window.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(10);

    #[test]
    fn the_share_grows_from_a_tenth_to_all() {
        for (millis, expected) in
            [(0, 0.1), (5000, 0.55), (9999, 1.0), (10_000, 1.0), (99_000, 1.0)]
        {
            let found = share(Duration::from_millis(millis), WINDOW);
            assert!((found - expected).abs() < 1e-3, "{millis}: {found}");
        }
    }

    #[test]
    fn an_endpoint_is_considered_as_often_as_its_share_says() {
        let mut rng = Rng::new(1);
        for (millis, expected) in [(0, 1000), (5000, 5500), (10_000, 10_000)] {
            let now = Time::new(Duration::from_millis(millis));
            let mut considered = || {
                SlowStart::draw(WINDOW, now, &mut rng)
                    .is_some_and(|it| !it.passes_over(Time::default()))
            };
            let count = (0..10_000).filter(|_| considered()).count();
            assert!(count.abs_diff(expected) < 200, "{millis}: {count}");
        }
    }

    #[test]
    fn without_a_window_there_is_nothing_to_draw() {
        let mut rng = Rng::new(1);
        assert!(SlowStart::draw(Duration::ZERO, Time::default(), &mut rng).is_none());
    }
}
