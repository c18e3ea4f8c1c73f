//! How bad events divide among two variants.
//!
//! If the canary is no worse, a bad event is the canary's with the probability that any request is. Only the bad
//! events are looked at, so common drift of their rate does not matter, nor how often the weight changes. The
//! test is exact where each request is assigned at random and events are single. It is wrong where they come in
//! bursts, or where clients stay at their variant; [`crate::evidence`] knows when not to use it.

/// Ratios of the rates of bad events, canary's over stable's, that the alternatives assume.
const WORSE: [f64; 6] = [1.25, 1.5, 2.0, 3.0, 5.0, 10.0];
const NOT_WORSE: [f64; 4] = [0.25, 0.5, 0.75, 1.0];
/// Deviations of the canary's share of requests.
const OFF: [f64; 6] = [0.5, 0.8, 0.9, 1.1, 1.25, 2.0];

/// A bet against one ratio of rates. The wealth is a mean over the alternatives' likelihood ratios; under the
/// null hypothesis it exceeds `1/alpha` ever with a probability of at most `alpha` (Ville's inequality).
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct CountTest {
    null: f64,
    alternatives: Vec<f64>,
    /// Logarithms of the likelihood ratios, by alternative.
    logs: Vec<f64>,
    /// The amount that an event adds to them. Weights rarely change, and logarithms cost more than all else.
    #[cfg_attr(feature = "serde", serde(skip))]
    steps: Steps,
}

/// The amount that an event adds to each logarithm at one weight: one that is the canary's, and one that is not.
#[derive(Debug, Clone, PartialEq, Default)]
struct Steps {
    weight: f64,
    canary: Vec<f64>,
    stable: Vec<f64>,
}

impl Steps {
    fn at(weight: f64, null: f64, alternatives: &[f64]) -> Self {
        let share = |ratio: f64| weight * ratio / (weight * ratio + 1.0 - weight);
        let null = share(null);
        let each = |of: fn(f64, f64) -> f64| {
            alternatives.iter().map(|ratio| of(share(*ratio), null).ln()).collect()
        };
        Self {
            weight,
            canary: each(|share, null| share / null),
            stable: each(|share, null| (1.0 - share) / (1.0 - null)),
        }
    }
}

impl CountTest {
    /// Evidence that the canary's rate is above `null` times stable's.
    pub fn worse_than(null: f64) -> Self {
        Self::new(null, WORSE.iter().map(|ratio| ratio * null).collect())
    }

    /// Evidence that the canary's rate is below `null` times stable's. `null` is above 1.
    pub fn better_than(null: f64) -> Self {
        Self::new(null, NOT_WORSE.to_vec())
    }

    /// Evidence that the split is broken: fed with every request, bad or not.
    pub fn of_split() -> Self {
        Self::new(1.0, OFF.to_vec())
    }

    fn new(null: f64, alternatives: Vec<f64>) -> Self {
        let logs = vec![0.0; alternatives.len()];
        Self { null, alternatives, logs, steps: Steps::default() }
    }

    /// Takes in an event. `weight` is the probability with which its request was sent to the canary.
    pub fn add(&mut self, is_canarys: bool, weight: f64) {
        // A request that could not have gone either way says nothing.
        if !(weight > 0.0 && weight < 1.0) {
            return;
        }
        if self.steps.weight.to_bits() != weight.to_bits() {
            self.steps = Steps::at(weight, self.null, &self.alternatives);
        }
        let steps = if is_canarys { &self.steps.canary } else { &self.steps.stable };
        for (log, step) in self.logs.iter_mut().zip(steps) {
            *log += step;
        }
    }

    /// The logarithm of the wealth. `dispersion` (at least 1) is the mean size of a burst, by which the events
    /// are counted less.
    pub fn log_evidence(&self, dispersion: f64) -> f64 {
        let scaled = || self.logs.iter().map(|log| log / dispersion.max(1.0));
        let most = scaled().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scaled().map(|log| (log - most).exp()).sum();
        most + (sum / count(self.logs.len())).ln()
    }

    /// Whether the null hypothesis is rejected at this level.
    pub fn rejects(&self, alpha: f64, dispersion: f64) -> bool {
        self.log_evidence(dispersion) >= -alpha.ln()
    }
}

#[allow(clippy::cast_precision_loss, reason = "a handful")]
fn count(n: usize) -> f64 {
    n as f64
}

/// How much the numbers of bad events in short bins vary beyond what single events would.
///
/// The differences of neighbouring bins are looked at, so slow drift is not taken for bursts.
#[derive(Debug, Clone, PartialEq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Dispersion {
    bin: u64,
    present: f64,
    previous: f64,
    squares: f64,
    events: f64,
}

impl Dispersion {
    /// Events that are assumed to have been single before any was seen: against jumping to conclusions.
    const PRIOR: f64 = 5.0;

    /// Takes in a bad event in the bin of this number, which never decreases.
    pub fn add(&mut self, bin: u64) {
        self.advance(bin);
        self.present += 1.0;
        self.events += 1.0;
    }

    fn advance(&mut self, bin: u64) {
        if bin <= self.bin {
            return;
        }
        self.squares += (self.present - self.previous).powi(2) / 2.0;
        (self.previous, self.present) = (self.present, 0.0);
        if bin > self.bin + 1 {
            self.squares += self.previous.powi(2) / 2.0;
            self.previous = 0.0;
        }
        self.bin = bin;
    }

    /// About the mean size of a burst; 1 where events are single.
    pub fn get(&self) -> f64 {
        let last = (self.present - self.previous).powi(2) / 2.0;
        let rest = self.present.powi(2) / 2.0;
        let squares = self.squares + last + rest;
        ((squares + Self::PRIOR) / (self.events + Self::PRIOR)).max(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_at_the_canary_beyond_its_share_are_evidence_of_harm() {
        let mut test = CountTest::worse_than(1.0);
        for event in 0..60 {
            test.add(event % 3 == 0, 0.1);
        }
        assert!(test.rejects(0.001, 1.0), "{}", test.log_evidence(1.0));
        assert!(!test.rejects(0.001, 10.0), "as bursts of ten they are no evidence");
    }

    #[test]
    fn events_by_its_share_are_none_and_speak_for_it() {
        let (mut harm, mut fine) = (CountTest::worse_than(1.0), CountTest::better_than(2.0));
        for event in 0..600 {
            harm.add(event % 10 == 0, 0.1);
            fine.add(event % 10 == 0, 0.1);
        }
        assert!(!harm.rejects(0.05, 1.0));
        assert!(fine.rejects(0.05, 1.0), "{}", fine.log_evidence(1.0));
    }

    #[test]
    fn requests_that_had_no_choice_say_nothing() {
        let mut test = CountTest::worse_than(1.0);
        for weight in [0.0, 1.0, f64::NAN, -1.0, 2.0] {
            test.add(true, weight);
        }
        assert!(test.log_evidence(1.0).abs() < 1e-12);
    }

    #[test]
    fn bursts_are_told_from_single_events_and_from_drift() {
        let dispersion = |bins: &[u64]| {
            let mut found = Dispersion::default();
            for (bin, &events) in bins.iter().enumerate() {
                (0..events).for_each(|_| found.add(bin as u64));
            }
            found.get()
        };
        assert!(dispersion(&[2, 3, 2, 1, 2, 3, 2, 2, 1, 2]) < 1.5);
        assert!(dispersion(&[0, 0, 10, 0, 0, 10, 0, 0, 0, 10]) > 5.0);
        let drift: Vec<u64> = (0..100).collect();
        assert!(dispersion(&drift) < 2.5, "{}", dispersion(&drift));
    }
}
