//! How many requests an endpoint can run at once, learnt where nobody says.
//!
//! Without a limit everything is sent at once, and what an endpoint can't run waits there, where it can
//! neither go elsewhere nor be refused in time. What it can run shows in its latency by the number of
//! requests that are there: constant up to its slots, beyond them in proportion to the number, because
//! then the rate of answers stays as it is (Little's law). So the slots are the least latency times the
//! highest rate: the bandwidth-delay product that BBR keeps in flight (Cardwell et al., "BBR:
//! Congestion-Based Congestion Control", 2016). Nothing is limited before the latency has doubled.
//!
//! What is known of numbers that don't come up any more may be out of date. That is mended by what is
//! heard of others: too high a limit brings news of the steps above, too low a limit of those below, and
//! [the limit](crate::queue::bind::limit) leaves room for more than is known.

use crate::float::Float;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Steps in the number of requests, two for each doubling: up to 8,191, and what is beyond that.
const STEPS: usize = 26;
/// Answers that the mean of a step is made of, at most, and below which it is not believed.
const MEMORY: f32 = 100.0;
const ENOUGH: f32 = 30.0;
/// What the latency must have grown by for the endpoint to be full.
const FULL: f32 = 2.0;
/// How far one step may be off what another says: more than their means are off by chance.
const OFF: f32 = 1.6;
/// How far they may be off to be taken for the same.
const ALIKE: f32 = 1.25;
/// Of so many answers one has the limit computed anew.
const EVERY: u32 = 8;
/// A deadline is tight that leaves less than so many times the least that requests take.
const TIGHT: f32 = 5.0;
/// How much longer one that is late is taken to need, at least, than it was waited for.
const LATE: f32 = 1.1;
/// So many are there at least where many are late because they are many.
const FLOOD: u32 = 16;
/// Seconds below which nothing is told apart.
const SHORTEST: f32 = 1e-6;

/// See above.
#[derive(Debug, Default)]
pub(crate) struct Saturation {
    steps: [Step; STEPS],
    /// 0: not known.
    slots: AtomicU32,
    answers: AtomicU32,
}

/// Answers to requests that found about as many there.
#[derive(Debug, Default)]
struct Step {
    count: Float,
    /// Requests that were there, the one that was answered among them.
    there: Float,
    /// Seconds.
    took: Float,
}

/// Over all steps that are believed.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    /// The least and the most that requests took on average, in seconds.
    least: f32,
    most: f32,
    /// The most answers in a second.
    rate: f32,
    /// The most requests that were there.
    there: f32,
}

impl Known {
    fn is_full(self) -> bool {
        self.most >= self.least * FULL
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
    fn slots(self) -> u32 {
        (self.least * self.rate).round() as u32
    }
}

impl Saturation {
    /// What the endpoint can run at once, as far as is known.
    #[inline]
    pub(crate) fn slots(&self) -> Option<u32> {
        Some(self.slots.load(Relaxed)).filter(|slots| *slots > 0)
    }

    /// Takes in that a request took so many seconds that was one of so many there when it came.
    pub(crate) fn learn(&self, there: u32, took: f32) {
        let step = &self.steps[step(there)];
        step.learn(there, took);
        if !self.answers.fetch_add(1, Relaxed).is_multiple_of(EVERY) {
            return;
        }
        self.correct_what_is_old(step);
        let Some(known) = self.known() else { return };
        match self.slots() {
            _ if known.is_full() => self.limit(known.slots()),
            // It can do that at least.
            Some(slots) => self.limit(known.slots().max(slots)),
            None => {}
        }
    }

    /// Takes in that nobody waits any more, after so many seconds, for the answer to a request that was
    /// one of so many there when it came. A flood may leave no answer in time to learn from. One that
    /// hangs is no flood, nor are a few that came when nobody knew how long it takes.
    pub(crate) fn learn_late(&self, there: u32, waited: f32) {
        let half = there / 2;
        if let Some(known) = self.known()
            && there > 1
            && (known.least..known.least * TIGHT).contains(&waited)
        {
            self.learn_tight(there, waited, known);
        }
        match (self.known(), self.slots()) {
            (None, None) if there >= FLOOD => self.limit(half),
            (None, Some(slots)) if there >= FLOOD => self.limit(half.min(slots)),
            (None, _) => {}
            (Some(known), _) if waited < known.least * FULL => {}
            (Some(known), None) if there >= FLOOD && float(half) > known.there => {
                self.limit(half.max(known.slots()));
            }
            (Some(_), Some(slots)) if there > slots => self.limit(half.min(slots)),
            (Some(_), _) => {}
        }
    }

    /// Where deadlines are tight no answer is ever seen to take twice as long. What is late beside others
    /// would have been in time alone, so it counts for what a full endpoint takes; and where most are late,
    /// more of them would take longer in proportion.
    fn learn_tight(&self, there: u32, waited: f32, known: Known) {
        self.learn(there, waited.max(known.least * FULL) * LATE);
        let Some((took, rate)) = self.steps[step(there)].believed() else { return };
        if took < known.least * FULL {
            return;
        }
        for more in self.steps.iter().skip(step(there) + 1) {
            if more.believed().is_some() {
                more.took.set(more.took.get().max(more.there.get() / rate));
            }
        }
    }

    /// However many there are, they take no less than few and no more than in proportion. What says
    /// otherwise than the step that has just been heard of is from other times, and is brought up to
    /// date as far as that goes.
    fn correct_what_is_old(&self, heard: &Step) {
        let Some((took, rate)) = heard.believed() else { return };
        for step in &self.steps {
            let Some((was, _)) = step.believed() else { continue };
            let in_proportion = step.there.get() / rate;
            let (least, most) = (took.min(in_proportion), took.max(in_proportion));
            if was * OFF < least || was > most * OFF {
                step.took.set(was.clamp(least, most));
            }
        }
    }

    fn limit(&self, slots: u32) {
        self.slots.store(slots.max(1), Relaxed);
    }

    /// What the steps say that are believed.
    fn known(&self) -> Option<Known> {
        let steps = || self.steps.iter().filter_map(|step| Some((step, step.believed()?)));
        let (mut known, mut fastest) = (Known::default(), f32::INFINITY);
        for (step, (took, rate)) in steps() {
            fastest = fastest.min(took);
            known.most = known.most.max(took);
            known.rate = known.rate.max(rate);
            known.there = known.there.max(step.there.get());
        }
        // The least of several means is too little. Those that are as good as it are taken together.
        let (mut sum, mut count) = (0.0, 0.0);
        for (step, (took, _)) in steps().filter(|(_, (took, _))| *took <= fastest * ALIKE) {
            sum += took * step.count.get();
            count += step.count.get();
        }
        known.least = sum / count;
        (count > 0.0).then_some(known)
    }
}

impl Step {
    fn learn(&self, there: u32, took: f32) {
        let count = (self.count.get() + 1.0).min(MEMORY);
        self.count.set(count);
        self.there.draw(float(there), 1.0 / count);
        self.took.draw(took.max(SHORTEST), 1.0 / count);
    }

    /// What requests took on average, in seconds, and how many were answered in a second, if there were
    /// enough of them.
    fn believed(&self) -> Option<(f32, f32)> {
        let took = self.took.get();
        (self.count.get() >= ENOUGH).then(|| (took, self.there.get() / took))
    }
}

#[allow(clippy::cast_precision_loss, reason = "six digits of a count do")]
fn float(count: u32) -> f32 {
    count as f32
}

/// 1, 2, 3, 4-5, 6-7, 8-11, 12-15 and so on.
fn step(there: u32) -> usize {
    let there = there.max(1);
    let doublings = there.ilog2();
    let half = if doublings > 0 { there >> (doublings - 1) & 1 } else { 0 };
    ((2 * doublings + half) as usize).min(STEPS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rng;

    /// Answers of an endpoint with so many slots that serves in 20 ms on average, exponentially, to
    /// `there` requests at a time.
    fn serve(saturation: &Saturation, slots: u32, there: u32, answers: usize, rng: &mut Rng) {
        let stretch = (f64::from(there) / f64::from(slots)).max(1.0);
        for _ in 0..answers {
            let service = -0.02 * (1.0 - rng.share()).ln();
            let waited = 0.02 * (stretch - 1.0);
            #[allow(clippy::cast_possible_truncation, reason = "six digits do")]
            saturation.learn(there, (service + waited) as f32);
        }
    }

    #[test]
    fn steps_are_two_for_each_doubling() {
        let steps = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 8191, 8192, u32::MAX].map(step);
        assert_eq!(steps, [0, 0, 2, 3, 4, 4, 5, 5, 6, 7, 8, 25, 25, 25]);
    }

    #[test]
    fn slots_are_found_within_a_third() {
        for slots in [1, 4, 16, 100] {
            let (saturation, mut rng) = (Saturation::default(), Rng::new(u64::from(slots)));
            for there in (1..=4 * slots).step_by((slots as usize).div_ceil(4)) {
                serve(&saturation, slots, there, 100, &mut rng);
            }
            let found = f64::from(saturation.slots().unwrap_or(0)) / f64::from(slots);
            assert!((0.65..1.4).contains(&found), "{slots} slots: {found} of them");
        }
    }

    #[test]
    fn nothing_is_limited_whose_latency_does_not_grow() {
        let (saturation, mut rng) = (Saturation::default(), Rng::new(1));
        for there in 1..100 {
            serve(&saturation, 200, there, 50, &mut rng);
        }
        assert_eq!(saturation.slots(), None);
    }

    #[test]
    fn a_limit_follows_an_endpoint_that_gets_slower_or_larger() {
        let (saturation, mut rng) = (Saturation::default(), Rng::new(2));
        for there in 1..16 {
            serve(&saturation, 4, there, 60, &mut rng);
        }
        // As the limit has it: somewhat more than is known.
        for _ in 0..40 {
            let there = saturation.slots().map_or(1, |slots| slots + slots / 8 + 1);
            serve(&saturation, 16, there, 60, &mut rng);
        }
        let found = saturation.slots().unwrap_or(0);
        assert!((11..24).contains(&found), "{found} of 16");
        for _ in 0..40 {
            let there = saturation.slots().map_or(1, |slots| slots + slots / 8 + 1);
            serve(&saturation, 2, there, 60, &mut rng);
        }
        let found = saturation.slots().unwrap_or(0);
        assert!((1..=5).contains(&found), "{found} of 2");
    }

    #[test]
    fn a_flood_that_leaves_no_answers_is_limited_too() {
        let (saturation, mut rng) = (Saturation::default(), Rng::new(4));
        for there in 1..16 {
            saturation.learn_late(there, 0.25);
        }
        assert_eq!(saturation.slots(), None, "a few that came when nobody knew how long it takes");
        // Cold: all that is known is how few were there already.
        for there in 40..100 {
            saturation.learn_late(there, 0.25);
        }
        assert_eq!(saturation.slots(), Some(20));
        let saturation = Saturation::default();
        for there in 1..6 {
            serve(&saturation, 4, there, 60, &mut rng);
        }
        saturation.learn_late(15, 0.25);
        assert_eq!(saturation.slots(), None, "one that hangs is no flood");
        saturation.learn_late(50, 0.03);
        assert_eq!(saturation.slots(), None, "nor is one that had hardly any time");
        saturation.learn_late(50, 0.25);
        assert_eq!(saturation.slots(), Some(25), "half at first");
        serve(&saturation, 4, 25, 60, &mut rng);
        let found = saturation.slots().unwrap_or(0);
        assert!((3..6).contains(&found), "{found} of 4");
    }
}
