//! Differences of blocks of time.
//!
//! Errors come in bursts: an endpoint that fails takes a row of requests with it. So requests are no
//! independent observations, but blocks of ten seconds nearly are. In each, both variants see the same
//! conditions, and the difference of their shares of bad requests is one observation, whatever the weights were.

/// Blocks before the first bound below the difference.
pub const MIN_BLOCKS: f64 = 20.0;
/// The same above it: a difference that comes of rare bursts looks small until they come.
const MIN_BLOCKS_ABOVE: f64 = 60.0;
/// Number of blocks at which the bound is tightest.
const TIGHTEST_AT: f64 = 60.0;

/// The half width, in standard errors of `t` observations, of a one-sided bound that holds at all times.
///
/// Waudby-Smith et al., theorem 2.2 and section 2.4, with the boundary tightest at [`TIGHTEST_AT`].
pub(crate) fn half_width(t: f64, alpha: f64) -> f64 {
    let log = -2.0 * (2.0 * alpha).ln();
    let rho2 = (log + log.ln() + 1.0) / TIGHTEST_AT;
    let grown = t * rho2 + 1.0;
    (2.0 * grown / (t * rho2) * (1.0 + grown.sqrt() / (2.0 * alpha)).ln()).sqrt()
}

/// The sums of one block.
#[derive(Debug, Clone, PartialEq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Block {
    /// Requests of both variants.
    requests: f64,
    /// Bad ones, weighted by the inverse of the probability of their variant, the stable's negative.
    difference: f64,
    /// The largest inverse probability that was seen.
    most: f64,
}

impl Block {
    /// Takes in a request that was sent to the canary with the probability `weight`.
    pub fn add(&mut self, is_canarys: bool, is_bad: bool, weight: f64) {
        self.add_many(is_canarys, 1.0, f64::from(u8::from(is_bad)), weight);
    }

    /// Takes in many requests of one variant, of which `bad` were bad.
    pub fn add_many(&mut self, is_canarys: bool, requests: f64, bad: f64, weight: f64) {
        if !(weight > 0.0 && weight < 1.0) {
            return;
        }
        self.requests += requests;
        let inverse = if is_canarys { 1.0 / weight } else { -1.0 / (1.0 - weight) };
        self.most = self.most.max(inverse.abs());
        self.difference += inverse * bad;
    }
}

/// The blocks that are over.
#[derive(Debug, Clone, PartialEq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct BlockTest {
    blocks: f64,
    mean: f64,
    /// Sum of the squared deviations.
    squares: f64,
    /// The largest of them.
    largest: f64,
}

impl BlockTest {
    /// Takes in a block that is over; one without requests is none.
    pub fn add(&mut self, block: &Block) {
        if block.requests < 1.0 {
            return;
        }
        // Where no bad request was seen, that is no proof that there are none: as if one had been.
        self.largest = self.largest.max((block.most / block.requests).powi(2));
        self.blocks += 1.0;
        let observed = block.difference / block.requests;
        let before = observed - self.mean;
        self.mean += before / self.blocks;
        self.squares += before * (observed - self.mean);
        self.largest = self.largest.max((observed - self.mean).powi(2));
    }

    /// Number of blocks.
    pub const fn blocks(&self) -> f64 {
        self.blocks
    }

    /// The difference of the shares of bad requests, canary's minus stable's.
    pub const fn mean(&self) -> f64 {
        self.mean
    }

    /// A bound below the difference that holds at all times with probability `1 - alpha`. `None`: too few
    /// blocks.
    pub fn lower(&self, alpha: f64) -> Option<f64> {
        (self.blocks >= MIN_BLOCKS).then(|| self.mean - self.half_width(alpha))
    }

    /// The same above it.
    pub fn upper(&self, alpha: f64) -> Option<f64> {
        (self.blocks >= MIN_BLOCKS_ABOVE).then(|| self.mean + self.half_width(alpha))
    }

    fn half_width(&self, alpha: f64) -> f64 {
        // As if the largest deviation had been seen once more: of rare bursts, one is easily missing.
        let error = ((self.squares + self.largest) / self.blocks).sqrt() / self.blocks.sqrt();
        error * half_width(self.blocks, alpha)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(canary: (u32, u32), stable: (u32, u32), weight: f64) -> Block {
        let mut block = Block::default();
        for (is_canarys, (requests, bad)) in [(true, canary), (false, stable)] {
            (0..requests).for_each(|number| block.add(is_canarys, number < bad, weight));
        }
        block
    }

    #[test]
    fn the_mean_is_the_difference_of_the_shares_also_when_weights_change() {
        let mut test = BlockTest::default();
        for number in 0..30 {
            let even = number % 2 == 0;
            test.add(&if even {
                block((100, 4), (900, 9), 0.1)
            } else {
                block((500, 20), (500, 5), 0.5)
            });
        }
        assert!((test.mean() - 0.03).abs() < 1e-9, "{}", test.mean());
        assert!(test.lower(0.05).is_some_and(|lower| lower > 0.02));
    }

    #[test]
    fn few_blocks_give_no_bounds_and_silence_is_no_block() {
        let mut test = BlockTest::default();
        (0..19).for_each(|_| test.add(&block((10, 0), (90, 0), 0.1)));
        (0..100).for_each(|_| test.add(&Block::default()));
        assert_eq!(test.lower(0.05), None);
        test.add(&block((10, 0), (90, 0), 0.1));
        assert!(test.lower(0.05).is_some() && test.upper(0.05).is_none());
        (0..40).for_each(|_| test.add(&block((10, 0), (90, 0), 0.1)));
        let upper = test.upper(0.05).unwrap_or_default();
        assert!(upper > 0.001, "no bad request is no certainty: {upper}");
    }
}
