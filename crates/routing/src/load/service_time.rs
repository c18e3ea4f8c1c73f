//! The time that an endpoint takes for one request, learnt from its answers.
//!
//! A mean over few answers is noise, and noise is expensive: of two equal endpoints the one that
//! seems 20% faster gets the queue. A mean over many answers is late: an endpoint whose neighbour
//! took the processor must be known in a moment. So the mean is a long one, and beside it two sums
//! watch whether the answers still fit it (Page's CUSUM test, by the likelihood of exponential times
//! that are [`CHANGE_FACTOR`] times as long or as short). When they do not, what was known is dropped for
//! what the answers say since the change.
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
const MAX_RATIO: f32 = 6.0;

/// Seconds that one request takes: what a pick reads.
#[derive(Debug, Default)]
pub(crate) struct ServiceTime {
    mean: Float,
    /// Answers that the mean is made of.
    samples: Float,
    /// Evidence that it takes less by now.
    faster: Float,
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

    /// Whether the last answers hint that it is faster than its mean.
    pub(crate) fn is_promising(&self) -> bool {
        self.faster.get() > PROMISING_EVIDENCE
    }

    /// Limits the weight of what is known to this many answers from now on.
    pub(crate) fn forget(&self, samples: f32) {
        self.samples.set(self.samples.get().min(samples));
    }

    /// Takes in one answer; what was known before is worth `samples` answers by now.
    pub(crate) fn learn(&self, change: &ChangeDetector, sample: f32, samples: f32) {
        if samples < 0.5 {
            return self.start(change, sample, 1.0);
        }
        let mean = self.mean.get();
        let count = (samples + 1.0).min(MAX_ANSWERS);
        change.deviation.draw((sample - mean).abs(), 1.0 / count.min(MAX_DEVIATION_ANSWERS));
        let ratio = (sample / mean.max(f32::MIN_POSITIVE)).min(MAX_RATIO);
        let faster =
            (self.faster.get() + CHANGE_FACTOR.ln() - (CHANGE_FACTOR - 1.0) * ratio).max(0.0);
        let slower = (change.slower.get() - CHANGE_FACTOR.ln()
            + (1.0 - 1.0 / CHANGE_FACTOR) * ratio)
            .max(0.0);
        change.since_faster.add(sample, faster);
        change.since_slower.add(sample, slower);
        let certain =
            MAX_CERTAIN_EVIDENCE.min(MIN_CERTAIN_EVIDENCE + EVIDENCE_PER_ANSWER * samples);
        if faster > certain {
            return self.start(change, change.since_faster.mean(), change.since_faster.count.get());
        }
        if slower > certain {
            return self.start(change, change.since_slower.mean(), change.since_slower.count.get());
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
