//! Concurrency limit: the number of requests that an endpoint can run at once, learnt where no report states
//! it.
//!
//! Without a limit every request is sent at once, and those that an endpoint can't run wait there, where
//! they can neither go elsewhere nor be refused in time. The limit shows in latency by the number of
//! requests that are there: it is constant up to the slots, and beyond them in proportion to the number,
//! because then the rate of answers stays the same (Little's law). So the slots are the least latency times
//! the highest rate: the bandwidth-delay product that BBR keeps in flight (Cardwell et al., "BBR:
//! Congestion-Based Congestion Control", 2016). Nothing is limited before the latency has doubled.
//!
//! Samples for numbers that no longer occur may be out of date. Samples of others correct them: too high a
//! limit brings samples of the buckets above, too low a limit of those below, and [the
//! limit](crate::queue::bind::limit) leaves room for more than is known.
//!
//! A mean alone may double by chance where few requests take most of the time. Queueing delays all requests, the
//! shortest as well: so the endpoint counts as full only if those take twice as long, too. And one that says
//! itself that nothing waits there is not full.

use crate::Time;
use crate::float::Float;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Buckets by the number of requests, two for each doubling: up to 8,191, and what is beyond that.
const BUCKETS: usize = 26;
/// Answers that the mean of a bucket is made of, at most, and below which it is not believed.
const MAX_SAMPLES: f32 = 100.0;
const MIN_SAMPLES: f32 = 30.0;
/// Growth of the latency at which the endpoint counts as full.
const FULL_FACTOR: f32 = 2.0;
/// Factor by which one bucket may contradict another: more than their means differ by chance.
const MAX_CONTRADICTION: f32 = 1.6;
/// Factor within which two buckets count as equal.
const MAX_ALIKE_FACTOR: f32 = 1.25;
/// The share of answers that are the short ones, and how fast what they take is learnt: after `n` answers their
/// logarithm moves by this over `n` for each, which is a few times as much as that of a service is spread.
const SHORT_SHARE: f32 = 0.25;
const SHORT_STEP: f32 = 4.0;
/// One answer in this many renews the limit.
const RENEWAL_PERIOD: u32 = 8;
/// A deadline is tight that leaves less than so many times the least that requests take.
const TIGHT_FACTOR: f32 = 5.0;
/// Minimum factor by which a late request is taken to need longer than it was waited for.
const LATE_FACTOR: f32 = 1.1;
/// Minimum number of requests there for which lateness counts as a flood.
const MIN_FLOOD: u32 = 16;
/// Evidence that requests wait for each other at which it is believed where nothing is known of slots: odds of
/// twenty. An answer after a common time speaks against it by so much, and none for it by more than one that is so
/// rare.
const MIN_EVIDENCE: f32 = 3.0;
const EVIDENCE_OF_COMMON: f32 = 0.5;
const RARE_SHARE: f32 = 0.1;
const MIN_SHARE: f32 = 0.1;
/// One of so many services may find out whether one more runs at once than is known: where there is no time to
/// wait behind others nothing else would ever tell.
const PROBE_PERIOD: f64 = 16.0;
/// An answer after a common time speaks for one more slot by so much, and the slots are then more by this part.
const EVIDENCE_OF_SLOT: f32 = 1.5;
const SLOTS_PER_STEP: u32 = 8;
/// Seconds below which nothing is told apart.
const MIN_SECONDS: f32 = 1e-6;

/// See above.
#[derive(Debug, Default)]
pub(crate) struct ConcurrencyLimit {
    buckets: [Bucket; BUCKETS],
    /// 0: not known.
    slots: AtomicU32,
    answers: AtomicU32,
    /// Logarithm of the odds: before slots are known, that requests wait for each other; then, that one more
    /// finds a slot.
    evidence: Float,
    /// End of the last request that counted for that, in nanoseconds on the clock of [`Time`]; once slots
    /// are known, of one that exceeded them by one.
    weighed_at: AtomicU64,
    /// It says that nothing waits there.
    has_room: AtomicBool,
}

/// The end of a request, for what it says of whether it had to wait for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    /// It was answered.
    Answered,
    /// It was not by its deadline.
    Late,
}

/// Answers to requests that found about as many there.
#[derive(Debug, Default)]
struct Bucket {
    count: Float,
    /// Requests that were there, the one that was answered among them.
    there: Float,
    /// Seconds.
    took: Float,
    /// The quantile of what they took that is exceeded by all but the short ones, as the logarithm of seconds.
    short: Float,
}

/// Over all buckets with enough answers.
#[derive(Debug, Clone, Copy, Default)]
struct Summary {
    /// The least and the most that requests took on average, in seconds.
    least: f32,
    most: f32,
    /// The least that the short ones took, and what they took where all took the most, in seconds.
    least_short: f32,
    most_short: f32,
    /// The most answers in a second.
    rate: f32,
    /// The most requests that were there.
    there: f32,
}

impl Summary {
    fn is_full(self) -> bool {
        self.most >= self.least * FULL_FACTOR && self.most_short >= self.least_short * FULL_FACTOR
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
    fn slots(self) -> u32 {
        (self.least * self.rate).round() as u32
    }
}

impl ConcurrencyLimit {
    /// Number of requests that the endpoint can run at once, as far as is known.
    #[inline]
    pub(crate) fn slots(&self) -> Option<u32> {
        Some(self.slots.load(Relaxed)).filter(|slots| *slots > 0)
    }

    /// Takes in that a request took so many seconds that was one of so many there when it came.
    pub(crate) fn learn(&self, there: u32, took: f32) {
        let bucket = &self.buckets[bucket(there)];
        bucket.learn(there, took);
        if !self.answers.fetch_add(1, Relaxed).is_multiple_of(RENEWAL_PERIOD) {
            return;
        }
        self.clamp_stale(bucket);
        let Some(summary) = self.summary() else { return };
        match self.slots() {
            _ if summary.is_full() && !self.has_room.load(Relaxed) => self.limit(summary.slots()),
            // It can do that at least.
            Some(slots) => self.limit(summary.slots().max(slots)),
            None => {}
        }
    }

    /// Takes in that the endpoint says whether requests wait there, when `there` were there.
    pub(crate) fn states_queue(&self, queue: u32, there: u32) {
        self.has_room.store(queue == 0, Relaxed);
        // It runs all that are there, and so at least one more may be tried.
        if queue == 0 && self.slots().is_some_and(|slots| slots <= there) {
            self.limit(there.saturating_add(1 + there / SLOTS_PER_STEP));
        }
    }

    /// Takes in how one of so many ended, for an endpoint of whose slots nothing is known yet: of services alone
    /// `longer` is the share that takes longer than that one did. Few endpoints are asked so often under
    /// overload that means tell anything before every request is late; that those are late of which alone hardly
    /// any would be tells it by two or three. Those that are there at the same time count as one: an endpoint
    /// that stands still for a moment is no fuller for that.
    pub(crate) fn weigh(&self, there: u32, (seen, longer): (Seen, f32), took: Duration, now: Time) {
        if let Some(slots) = self.slots() {
            return self.weigh_one_more(slots, there, (seen, longer), now);
        }
        if there < 2 || now.since(self.weighed_at()) < took {
            return;
        }
        self.weighed_at.store(now.nanos(), Relaxed);
        let step = match seen {
            Seen::Answered if longer >= RARE_SHARE => -EVIDENCE_OF_COMMON,
            _ => (0.5 / longer.max(MIN_SHARE)).ln().max(0.0),
        };
        let evidence = (self.evidence.get() + step).max(0.0);
        self.evidence.set(evidence);
        if evidence > MIN_EVIDENCE {
            self.evidence.set(0.0);
            self.limit(there / 2);
        }
    }

    /// The same where slots are known, of a request that was one more than those.
    fn weigh_one_more(&self, slots: u32, there: u32, (seen, longer): (Seen, f32), now: Time) {
        if there <= slots {
            return;
        }
        self.weighed_at.store(now.nanos(), Relaxed);
        if seen == Seen::Late || longer < RARE_SHARE {
            return self.evidence.set(0.0);
        }
        self.evidence.set(self.evidence.get() + EVIDENCE_OF_SLOT);
        if self.evidence.get() >= MIN_EVIDENCE {
            self.evidence.set(0.0);
            self.limit(slots.saturating_add(1 + slots / SLOTS_PER_STEP));
        }
    }

    fn weighed_at(&self) -> Time {
        Time::new(Duration::from_nanos(self.weighed_at.load(Relaxed)))
    }

    /// Whether one more may be sent than is known to run at once, to find out whether it does.
    pub(crate) fn is_probe_due(&self, service: f64, now: Time) -> bool {
        let since = now.since(self.weighed_at());
        self.slots()
            .is_some_and(|slots| since.as_secs_f64() * f64::from(slots) >= PROBE_PERIOD * service)
    }

    /// Records that a client stopped waiting, after this many seconds, for a request that was one of `there`
    /// when it came. A flood may leave no answer in time to learn from. One request that hangs is no flood,
    /// nor are a few that came before the service time was known.
    pub(crate) fn learn_late(&self, there: u32, waited: f32) {
        let half = there / 2;
        if let Some(summary) = self.summary()
            && there > 1
            && (summary.least..summary.least * TIGHT_FACTOR).contains(&waited)
        {
            self.learn_tight(there, waited, summary);
        }
        match (self.summary(), self.slots()) {
            (None, None) if there >= MIN_FLOOD => self.limit(half),
            (None, Some(slots)) if there >= MIN_FLOOD => self.limit(half.min(slots)),
            (None, _) => {}
            (Some(summary), _) if waited < summary.least * FULL_FACTOR => {}
            (Some(summary), None) if there >= MIN_FLOOD && float(half) > summary.there => {
                self.limit(half.max(summary.slots()));
            }
            (Some(_), Some(slots)) if there > slots => self.limit(half.min(slots)),
            (Some(_), _) => {}
        }
    }

    /// Where deadlines are tight no answer is ever seen to take twice as long. A request that is late beside
    /// others would have been in time alone, so it counts as a sample of a full endpoint; and where most are
    /// late, more of them would take longer in proportion.
    fn learn_tight(&self, there: u32, waited: f32, summary: Summary) {
        self.learn(there, waited.max(summary.least * FULL_FACTOR) * LATE_FACTOR);
        let Some((took, rate)) = self.buckets[bucket(there)].mean() else { return };
        if took < summary.least * FULL_FACTOR {
            return;
        }
        for more in self.buckets.iter().skip(bucket(there) + 1) {
            if more.mean().is_some() {
                more.took.set(more.took.get().max(more.there.get() / rate));
                more.short.set(more.short.get().max(self.buckets[bucket(there)].short.get()));
            }
        }
    }

    /// Latency must not fall with concurrency and may grow at most in proportion to it. Buckets that
    /// contradict the one that was just sampled are stale, and are clamped to that.
    fn clamp_stale(&self, sampled: &Bucket) {
        let Some((took, rate)) = sampled.mean() else { return };
        for bucket in &self.buckets {
            let Some((was, _)) = bucket.mean() else { continue };
            let in_proportion = bucket.there.get() / rate;
            let (least, most) = (took.min(in_proportion), took.max(in_proportion));
            if was * MAX_CONTRADICTION < least || was > most * MAX_CONTRADICTION {
                bucket.took.set(was.clamp(least, most));
            }
            bucket.short_beside(sampled);
        }
    }

    fn limit(&self, slots: u32) {
        self.slots.store(slots.max(1), Relaxed);
    }

    /// The summary of all buckets with enough answers.
    fn summary(&self) -> Option<Summary> {
        let buckets = || self.buckets.iter().filter_map(|bucket| Some((bucket, bucket.mean()?)));
        let mut summary = Summary { least_short: f32::INFINITY, ..Summary::default() };
        let mut fastest = f32::INFINITY;
        for (bucket, (took, rate)) in buckets() {
            fastest = fastest.min(took);
            let short = bucket.short.get().exp();
            summary.least_short = summary.least_short.min(short);
            if took > summary.most {
                (summary.most, summary.most_short) = (took, short);
            }
            summary.rate = summary.rate.max(rate);
            summary.there = summary.there.max(bucket.there.get());
        }
        // The least of several means is too little. Those that are as good as it are taken together.
        let (mut sum, mut count) = (0.0, 0.0);
        for (bucket, (took, _)) in
            buckets().filter(|(_, (took, _))| *took <= fastest * MAX_ALIKE_FACTOR)
        {
            sum += took * bucket.count.get();
            count += bucket.count.get();
        }
        summary.least = sum / count;
        (count > 0.0).then_some(summary)
    }
}

impl Bucket {
    fn learn(&self, there: u32, took: f32) {
        let count = (self.count.get() + 1.0).min(MAX_SAMPLES);
        self.count.set(count);
        self.there.draw(float(there), 1.0 / count);
        self.took.draw(took.max(MIN_SECONDS), 1.0 / count);
        let log = took.max(MIN_SECONDS).ln();
        if count <= 1.0 {
            return self.short.set(log);
        }
        let short = self.short.get();
        let below = if log < short { 1.0 } else { 0.0 };
        self.short.set(short + SHORT_STEP / count * (SHORT_SHARE - below));
    }

    /// The short ones take no less where more are there, and no more where fewer are.
    fn short_beside(&self, sampled: &Self) {
        let (here, there) = (self.short.get(), sampled.short.get());
        let (factor, is_more) = (MAX_CONTRADICTION.ln(), self.there.get() > sampled.there.get());
        if (is_more && here + factor < there) || (!is_more && here - factor > there) {
            self.short.set(there);
        }
    }

    /// Mean latency of requests in seconds, and the rate of answers per second, if there were enough of
    /// them.
    fn mean(&self) -> Option<(f32, f32)> {
        let took = self.took.get();
        (self.count.get() >= MIN_SAMPLES).then(|| (took, self.there.get() / took))
    }
}

#[allow(clippy::cast_precision_loss, reason = "six digits of a count do")]
fn float(count: u32) -> f32 {
    count as f32
}

/// 1, 2, 3, 4-5, 6-7, 8-11, 12-15 and so on.
fn bucket(there: u32) -> usize {
    let there = there.max(1);
    let doublings = there.ilog2();
    let half = if doublings > 0 { there >> (doublings - 1) & 1 } else { 0 };
    ((2 * doublings + half) as usize).min(BUCKETS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rng;

    /// Answers of an endpoint with so many slots that serves in 20 ms on average, exponentially, to
    /// `there` requests at a time.
    fn serve(limit: &ConcurrencyLimit, slots: u32, there: u32, answers: usize, rng: &mut Rng) {
        let stretch = (f64::from(there) / f64::from(slots)).max(1.0);
        for _ in 0..answers {
            let service = -0.02 * (1.0 - rng.share()).ln();
            let waited = 0.02 * (stretch - 1.0);
            #[allow(clippy::cast_possible_truncation, reason = "six digits do")]
            limit.learn(there, (service + waited) as f32);
        }
    }

    #[test]
    fn a_few_that_are_late_one_after_the_other_tell_that_requests_wait() {
        let at = |millis| Time::new(Duration::from_millis(millis));
        let late = |limit: &ConcurrencyLimit, millis| {
            limit.weigh(6, (Seen::Late, 0.02), Duration::from_millis(24), at(millis));
        };
        let limit = ConcurrencyLimit::default();
        // Those of one moment, as of an endpoint that stood still.
        (1000..1010).for_each(|millis| late(&limit, millis));
        assert_eq!(limit.slots(), None);
        for millis in (1100..2000).step_by(100) {
            limit.weigh(6, (Seen::Answered, 0.5), Duration::from_millis(20), at(millis));
        }
        late(&limit, 2100);
        assert_eq!(limit.slots(), None, "most are answered");
        late(&limit, 2200);
        assert_eq!(limit.slots(), Some(3), "half of those that were there");
    }

    #[test]
    fn one_more_at_times_finds_further_slots() {
        let at = |millis| Time::new(Duration::from_millis(millis));
        let limit = ConcurrencyLimit::default();
        limit.limit(3);
        assert!(!limit.is_probe_due(0.02, at(100)) && limit.is_probe_due(0.02, at(107)));
        for millis in [200, 400] {
            assert_eq!(limit.slots(), Some(3));
            limit.weigh(4, (Seen::Answered, 0.5), Duration::from_millis(20), at(millis));
        }
        assert_eq!(limit.slots(), Some(4));
        for millis in [600, 800, 1000] {
            limit.weigh(5, (Seen::Answered, 0.5), Duration::from_millis(20), at(millis));
            limit.weigh(5, (Seen::Late, 0.1), Duration::from_millis(24), at(millis + 100));
        }
        assert_eq!(limit.slots(), Some(4), "one more is late half of the time");
    }

    #[test]
    fn steps_are_two_for_each_doubling() {
        let buckets = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 8191, 8192, u32::MAX].map(bucket);
        assert_eq!(buckets, [0, 0, 2, 3, 4, 4, 5, 5, 6, 7, 8, 25, 25, 25]);
    }

    #[test]
    fn slots_are_found_within_a_third() {
        for slots in [1, 4, 16, 100] {
            let (limit, mut rng) = (ConcurrencyLimit::default(), Rng::new(u64::from(slots)));
            for there in (1..=4 * slots).step_by((slots as usize).div_ceil(4)) {
                serve(&limit, slots, there, 100, &mut rng);
            }
            let found = f64::from(limit.slots().unwrap_or(0)) / f64::from(slots);
            assert!((0.65..1.4).contains(&found), "{slots} slots: {found} of them");
        }
    }

    #[test]
    fn nothing_is_limited_whose_latency_does_not_grow() {
        let (limit, mut rng) = (ConcurrencyLimit::default(), Rng::new(1));
        for there in 1..100 {
            serve(&limit, 200, there, 50, &mut rng);
        }
        assert_eq!(limit.slots(), None);
    }

    #[test]
    fn answers_of_mixed_lengths_are_no_queue() {
        for seed in 0..20 {
            let (limit, mut rng) = (ConcurrencyLimit::default(), Rng::new(seed));
            for _ in 0..20_000 {
                let there = 20 + u32::try_from(rng.below(20)).unwrap_or(0);
                limit.learn(there, if rng.below(5) == 0 { 3.0 } else { 0.05 });
            }
            assert_eq!(limit.slots(), None, "seed {seed}");
            // Were they queued, the short ones would wait as well.
            for there in (20..80).cycle().take(20_000) {
                let wait = if there > 40 { 0.64 * float(there - 40) / 40.0 } else { 0.0 };
                limit.learn(there, wait + if rng.below(5) == 0 { 3.0 } else { 0.05 });
            }
            let slots = limit.slots();
            assert!(slots.is_none_or(|slots| slots >= 20), "seed {seed}: {slots:?}");
        }
    }

    #[test]
    fn an_endpoint_that_says_that_nothing_waits_is_not_full() {
        let (limit, mut rng) = (ConcurrencyLimit::default(), Rng::new(5));
        (1..16).for_each(|there| serve(&limit, 4, there, 60, &mut rng));
        let full = limit.slots().unwrap_or(0);
        assert!((3..6).contains(&full), "{full}");
        limit.states_queue(0, 12);
        assert_eq!(limit.slots(), Some(14));
        (1..16).for_each(|there| serve(&limit, 4, there, 60, &mut rng));
        assert!(limit.slots() >= Some(14));
        limit.states_queue(3, 12);
        (1..16).for_each(|there| serve(&limit, 4, there, 60, &mut rng));
        let full = limit.slots().unwrap_or(0);
        assert!((3..6).contains(&full), "{full}");
    }

    #[test]
    fn a_limit_follows_an_endpoint_that_gets_slower_or_larger() {
        let (limit, mut rng) = (ConcurrencyLimit::default(), Rng::new(2));
        for there in 1..16 {
            serve(&limit, 4, there, 60, &mut rng);
        }
        // As the limit has it: somewhat more than is known.
        for _ in 0..40 {
            let there = limit.slots().map_or(1, |slots| slots + slots / 8 + 1);
            serve(&limit, 16, there, 60, &mut rng);
        }
        let found = limit.slots().unwrap_or(0);
        assert!((11..24).contains(&found), "{found} of 16");
        for _ in 0..40 {
            let there = limit.slots().map_or(1, |slots| slots + slots / 8 + 1);
            serve(&limit, 2, there, 60, &mut rng);
        }
        let found = limit.slots().unwrap_or(0);
        assert!((1..=5).contains(&found), "{found} of 2");
    }

    #[test]
    fn a_flood_that_leaves_no_answers_is_limited_too() {
        let (limit, mut rng) = (ConcurrencyLimit::default(), Rng::new(4));
        for there in 1..16 {
            limit.learn_late(there, 0.25);
        }
        assert_eq!(limit.slots(), None, "a few that came before the service time was known");
        // Cold: all that is known is how few were there already.
        for there in 40..100 {
            limit.learn_late(there, 0.25);
        }
        assert_eq!(limit.slots(), Some(20));
        let limit = ConcurrencyLimit::default();
        for there in 1..6 {
            serve(&limit, 4, there, 60, &mut rng);
        }
        limit.learn_late(15, 0.25);
        assert_eq!(limit.slots(), None, "one that hangs is no flood");
        limit.learn_late(50, 0.03);
        assert_eq!(limit.slots(), None, "nor is one that had hardly any time");
        limit.learn_late(50, 0.25);
        assert_eq!(limit.slots(), Some(25), "half at first");
        serve(&limit, 4, 25, 60, &mut rng);
        let found = limit.slots().unwrap_or(0);
        assert!((3..6).contains(&found), "{found} of 4");
    }
}
