//! Differences between two answers to the same request.
//!
//! A shadow's answer is compared with the one that the client got. Each pair gives a difference from 0 to 1;
//! both tests are bets on its mean, without any assumption on how it is distributed.

/// Stakes of the bets that the mean is below the tolerance, and above it.
const BELOW: [f64; 4] = [0.2, 0.5, 0.8, 0.95];
const ABOVE: [f64; 5] = [0.01, 0.02, 0.05, 0.1, 0.3];

/// Both tests of one tolerance.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PairTest {
    tolerance: f64,
    below: [f64; BELOW.len()],
    above: [f64; ABOVE.len()],
    pairs: f64,
    sum: f64,
}

impl PairTest {
    /// `tolerance`: the mean difference that is accepted, above 0 and below 1.
    pub fn new(tolerance: f64) -> Self {
        let tolerance = tolerance.clamp(1e-6, 1.0 - 1e-6);
        Self {
            tolerance,
            below: [0.0; BELOW.len()],
            above: [0.0; ABOVE.len()],
            pairs: 0.0,
            sum: 0.0,
        }
    }

    /// Takes in the difference of a pair, from 0 to 1; one that is no number is the greatest. `noise`: the mean
    /// difference of the model from itself, by which the tolerance is greater, as an estimate from below and
    /// one from above: each bet is made against the one that makes it harder to win.
    pub fn add(&mut self, difference: f64, noise: (f64, f64)) {
        let difference = if difference.is_nan() { 1.0 } else { difference.clamp(0.0, 1.0) };
        let with = |noise: f64| (self.tolerance + noise.max(0.0)).min(0.99);
        let (least, most) = (with(noise.0), with(noise.1));
        self.pairs += 1.0;
        self.sum += difference;
        for (log, stake) in self.below.iter_mut().zip(BELOW) {
            *log += (1.0 + stake * (least - difference) / (1.0 - least)).ln();
        }
        for (log, stake) in self.above.iter_mut().zip(ABOVE) {
            *log += (1.0 + stake * (difference - most) / most).ln();
        }
    }

    /// Number of pairs.
    pub const fn pairs(&self) -> f64 {
        self.pairs
    }

    /// The mean difference; 0 without pairs.
    pub fn mean(&self) -> f64 {
        self.sum / self.pairs.max(1.0)
    }

    /// Whether the mean difference is below the tolerance, at this level.
    pub fn is_fine(&self, alpha: f64) -> bool {
        log_mean(&self.below) >= -alpha.ln()
    }

    /// Whether it is above.
    pub fn differs(&self, alpha: f64) -> bool {
        log_mean(&self.above) >= -alpha.ln()
    }
}

/// The logarithm of the mean of numbers that are given as logarithms.
#[allow(clippy::cast_precision_loss, reason = "a handful")]
fn log_mean(logs: &[f64]) -> f64 {
    let most = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    most + (logs.iter().map(|log| (log - most).exp()).sum::<f64>() / logs.len() as f64).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(pairs: u32, every: u32, difference: f64) -> PairTest {
        let mut test = PairTest::new(0.01);
        (0..pairs)
            .for_each(|n| test.add(if n % every == 0 { difference } else { 0.0 }, (0.0, 0.0)));
        test
    }

    #[test]
    fn equal_answers_are_fine_and_different_ones_are_not() {
        assert!(after(500, 501, 0.0).is_fine(0.05), "no difference in 500 pairs");
        assert!(!after(100, 101, 0.0).is_fine(0.05), "too few to say");
        let differs = after(200, 10, 1.0);
        assert!(differs.differs(0.05) && !differs.is_fine(0.05));
        assert!(!after(2000, 200, 1.0).differs(0.05), "within the tolerance");
    }

    #[test]
    fn a_model_that_differs_from_itself_is_not_blamed_for_that() {
        let mut test = PairTest::new(0.01);
        (0..2000).for_each(|n| test.add(if n % 10 == 0 { 0.5 } else { 0.0 }, (0.05, 0.05)));
        assert!(!test.differs(0.05));
    }

    #[test]
    fn what_is_no_number_differs() {
        let mut test = PairTest::new(0.01);
        (0..50).for_each(|_| test.add(f64::NAN, (0.0, 0.0)));
        assert!(test.differs(0.05) && (test.mean() - 1.0).abs() < 1e-12);
    }
}
