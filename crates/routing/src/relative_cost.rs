//! The work that a request is beside that of others.

use std::time::Duration;

/// Bounds of a model's cost relative to the mean.
const MIN_RELATIVE_COST: f32 = 1e-4;
const MAX_RELATIVE_COST: f32 = 1e4;

/// The work that a model is, in requests of the pool's mean: 1 if all are alike. Multiplied with what
/// a request takes on average, it says what one for this model does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RelativeCost {
    /// An `f32` above 0, whose bits order as the number does.
    bits: u32,
}

impl Default for RelativeCost {
    fn default() -> Self {
        Self::new(1.0)
    }
}

impl RelativeCost {
    /// Not a number counts as 1; others are brought within bounds.
    pub fn new(relative_cost: f32) -> Self {
        let relative_cost = if relative_cost.is_nan() {
            1.0
        } else {
            relative_cost.clamp(MIN_RELATIVE_COST, MAX_RELATIVE_COST)
        };
        Self { bits: relative_cost.to_bits() }
    }

    /// The number itself.
    pub fn get(self) -> f64 {
        f64::from(f32::from_bits(self.bits))
    }

    /// The time of a mean request, given the time of one with this cost.
    pub(crate) fn normalize(self, took: Duration) -> Duration {
        Duration::try_from_secs_f64(took.as_secs_f64() / self.get()).unwrap_or(Duration::MAX)
    }
}
