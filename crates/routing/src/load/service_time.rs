//! The time that an endpoint takes for one request, learnt from its answers.
//!
//! A mean over few answers is noise, and noise is expensive: of two equal endpoints the one that
//! seems 20% faster gets the queue. A mean over many answers is late: an endpoint whose neighbour
//! took the processor must be known in a moment. So the mean is a long one, and beside it two sums
//! watch whether the answers still fit it (Page's CUSUM test, by the likelihood of times that are
//! [`CHANGE_FACTOR`] times as long or as short and vary as those of the pool do: of a gamma distribution
//! with that variance). When they do not, what was known is dropped for what the answers say since the
//! change.
//!
//! Beside what an endpoint's answers say stands what is believed of it: they say little where they are few
//! or vary much, and most endpoints of a pool are alike. See [`Peers`].
//!
//! All fields are relaxed atomics. Two answers at once may lose one of the two: one sample less.

use crate::float::Float;

/// Answers that the mean is made of, at most: it is then within 7% for exponential times.
const MAX_ANSWERS: f32 = 200.0;
/// Answers that the mean deviation is made of, at most.
const MAX_DEVIATION_ANSWERS: f32 = 20.0;
/// The change that is watched for: 3 times as long or as short.
const CHANGE_FACTOR: f32 = 3.0;
/// Evidence, as the logarithm of a likelihood ratio, that makes a change certain: reached by 4
/// answers that take 5 times as long or 10 that take a fifth; by chance once in thousands. Where only
/// a few answers speak for the mean, less is enough: so much and a share for each.
const MAX_CERTAIN_EVIDENCE: f32 = 7.0;
const MIN_CERTAIN_EVIDENCE: f32 = 1.0;
const EVIDENCE_PER_ANSWER: f32 = 0.5;
/// Evidence of having become faster that is worth another look.
const PROMISING_EVIDENCE: f32 = 0.5;
/// The most that one answer can say: one that hangs is no change of speed.
pub(crate) const MAX_RATIO: f32 = 6.0;

/// The variation below which no evidence counts for more: what is taken for a service is never exact.
const MIN_VARIATION: f32 = 0.5;
/// The difference to be expected between two endpoints that are not alike, as a logarithm: twice as fast.
const USUAL_DIFFERENCE: f32 = std::f32::consts::LN_2;

/// Seconds that one request takes: what a pick reads.
#[derive(Debug, Default)]
pub(crate) struct ServiceTime {
    /// The estimate.
    believed: Float,
    mean: Float,
    /// Answers that the mean is made of.
    samples: Float,
    /// Evidence that it takes less by now.
    faster: Float,
}

/// The service times of a whole pool, as far as they are known.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Peers {
    /// The mean over its endpoints, in seconds; 0: not known.
    pub(crate) mean: f32,
    /// The variance of services of one endpoint, as a multiple of their squared mean: 1 if they are exponential.
    pub(crate) variation: f32,
}

impl Default for Peers {
    fn default() -> Self {
        Self { mean: 0.0, variation: 1.0 }
    }
}

impl Peers {
    /// The estimate for an endpoint whose `samples` answers have this mean. The endpoint is like the others or it is
    /// not, and before anything is known both are as likely (a prior of a spike and a slab). The less its mean is off the
    /// others' beside how far it may be by chance, the likelier it is like them, and the more it is drawn there.
    fn believe(self, mean: f32, samples: f32) -> f32 {
        if self.mean <= 0.0 || mean <= 0.0 {
            return mean;
        }
        let off = (mean / self.mean).ln();
        let chance = (self.variation / samples.max(1.0)).max(1e-6);
        let width = USUAL_DIFFERENCE * USUAL_DIFFERENCE / chance;
        let certain = width / (1.0 + width);
        let alike = (1.0 + width).sqrt() * (-0.5 * off * off / chance * certain).exp();
        self.mean * (off * certain / (1.0 + alike)).exp()
    }
}

/// Detects that service times have changed: what only an answer reads.
#[derive(Debug, Default)]
pub(crate) struct ChangeDetector {
    slower: Float,
    deviation: Float,
    since_faster: AnswersSince,
    since_slower: AnswersSince,
}

/// The answers since a change may have begun.
#[derive(Debug, Default)]
struct AnswersSince {
    sum: Float,
    count: Float,
}

impl ServiceTime {
    /// The mean, and how many answers it is worth.
    #[inline]
    pub(crate) fn mean(&self) -> (f32, f32) {
        (self.mean.get(), self.samples.get())
    }

    /// The mean that is believed, and how many answers it is worth.
    #[inline]
    pub(crate) fn believed(&self) -> (f32, f32) {
        (self.believed.get(), self.samples.get())
    }

    /// Whether the last answers hint that it is faster than its mean.
    pub(crate) fn is_promising(&self) -> bool {
        self.faster.get() > PROMISING_EVIDENCE
    }

    /// Limits the weight of what is known to this many answers from now on.
    pub(crate) fn forget(&self, samples: f32) {
        self.samples.set(self.samples.get().min(samples));
    }

    /// Takes in one answer; what was known before is worth `samples` answers by now. So many requests were
    /// there `together`: of one event all of them tell, and so a change that they show is known from fewer.
    pub(crate) fn learn(
        &self,
        change: &ChangeDetector,
        (sample, together): (f32, f32),
        samples: f32,
        peers: Peers,
    ) {
        self.learn_mean(change, (sample, together), samples, peers.variation);
        let (mean, samples) = self.mean();
        self.believed.set(peers.believe(mean, samples));
    }

    fn learn_mean(
        &self,
        change: &ChangeDetector,
        (sample, together): (f32, f32),
        samples: f32,
        variation: f32,
    ) {
        if samples < 0.5 {
            return self.start(change, sample, 1.0);
        }
        let mean = self.mean.get();
        let count = (samples + 1.0).min(MAX_ANSWERS);
        change.deviation.draw((sample - mean).abs(), 1.0 / count.min(MAX_DEVIATION_ANSWERS));
        let ratio = (sample / mean.max(f32::MIN_POSITIVE)).min(MAX_RATIO);
        let weight = 1.0 / variation.max(MIN_VARIATION);
        let is_faster = weight * (CHANGE_FACTOR.ln() - (CHANGE_FACTOR - 1.0) * ratio);
        let is_slower = weight * ((1.0 - 1.0 / CHANGE_FACTOR) * ratio - CHANGE_FACTOR.ln());
        let faster = (self.faster.get() + is_faster).max(0.0);
        let slower = (change.slower.get() + is_slower).max(0.0);
        change.since_faster.add(sample, faster);
        change.since_slower.add(sample, slower);
        let certain =
            MAX_CERTAIN_EVIDENCE.min(MIN_CERTAIN_EVIDENCE + EVIDENCE_PER_ANSWER * samples);
        if faster > certain {
            let since = &change.since_faster;
            return self.start(change, since.mean(), since.count.get() / together);
        }
        if slower > certain {
            let since = &change.since_slower;
            return self.start(change, since.mean(), since.count.get() / together);
        }
        self.faster.set(faster);
        change.slower.set(slower);
        self.samples.set(count);
        self.mean.draw(sample, 1.0 / count);
    }

    fn start(&self, change: &ChangeDetector, mean: f32, samples: f32) {
        self.mean.set(mean);
        self.samples.set(samples.max(1.0));
        self.faster.set(0.0);
        change.slower.set(0.0);
        change.since_faster.add(mean, 0.0);
        change.since_slower.add(mean, 0.0);
    }
}

impl ChangeDetector {
    /// Mean deviation of answers from the mean.
    pub(crate) fn deviation(&self) -> f32 {
        self.deviation.get()
    }
}

impl AnswersSince {
    /// One more, unless there is no `evidence` of a change any more.
    fn add(&self, sample: f32, evidence: f32) {
        let goes_on = evidence > 0.0;
        self.sum.set(if goes_on { self.sum.get() + sample } else { 0.0 });
        self.count.set(if goes_on { self.count.get() + 1.0 } else { 0.0 });
    }

    fn mean(&self) -> f32 {
        self.sum.get() / self.count.get().max(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rng;

    const EXPONENTIAL: Peers = Peers { mean: 0.01, variation: 1.0 };

    #[test]
    fn an_endpoint_is_taken_for_one_like_the_others_until_its_answers_say_otherwise() {
        let off = |mean: f32, samples: f32| EXPONENTIAL.believe(mean, samples) / 0.01;
        // 15% off is what 50 answers are by chance.
        assert!((off(0.0115, 50.0) - 1.0).abs() < 0.05, "{}", off(0.0115, 50.0));
        assert!(off(0.0115, 2000.0) > 1.13, "{}", off(0.0115, 2000.0));
        assert!(off(0.03, 1.0) < 2.0, "{}", off(0.03, 1.0));
        assert!(off(0.03, 20.0) > 2.5, "{}", off(0.03, 20.0));
        assert!(off(0.004, 50.0) < 0.45, "{}", off(0.004, 50.0));
        assert_eq!(Peers::default().believe(0.02, 1.0), 0.02, "nothing is known of others");
    }

    #[test]
    fn rare_long_services_are_no_change_of_speed() {
        // One in ten takes ten times as long as the others.
        let peers = Peers { mean: 0.01, variation: 2.0 };
        let restarts = |variation: f32| {
            let (time, change, mut rng) =
                (ServiceTime::default(), ChangeDetector::default(), Rng::new(3));
            let (mut restarts, mut known) = (0, 0.0);
            for _ in 0..20_000 {
                let sample = if rng.below(10) == 0 { 0.0526 } else { 0.00526 };
                time.learn(&change, (sample, 1.0), known, Peers { variation, ..peers });
                restarts += u32::from(time.mean().1 < known);
                known = time.mean().1;
            }
            restarts
        };
        let (seen, exponential) = (restarts(2.0), restarts(1.0));
        assert!(seen * 5 < exponential && seen <= 10, "{seen}, {exponential}");
    }

    #[test]
    fn a_change_that_requests_show_together_is_known_from_fewer_answers() {
        for (together, expected) in [(1.0, 2.0..5.0), (16.0, 1.0..1.5)] {
            let (time, change) = (ServiceTime::default(), ChangeDetector::default());
            for known in 0..100_u8 {
                time.learn(&change, (0.01, together), f32::from(known), EXPONENTIAL);
            }
            let mut known = 100.0;
            while time.mean().1 >= known {
                time.learn(&change, (0.3, together), known, EXPONENTIAL);
                known = known.min(99.0);
            }
            assert!(expected.contains(&time.mean().1), "{together}: {:?}", time.mean());
            assert!(time.mean().0 > 0.2);
        }
    }
}
