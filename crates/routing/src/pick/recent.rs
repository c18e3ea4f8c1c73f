//! The memory that the picks of one pool share: the next turn, and where a request of ours just ended.
//!
//! A pick that looks at a few endpoints out of thousands sees mostly strangers: what it knows of them
//! is old, and with every pick the load goes somewhere else, so that no report is true for long. An
//! endpoint where a request of ours has just ended is known better than any other: its answer brought
//! its latest report, and one more request there leaves the load as it was. So the last of those are
//! remembered, each with what it cost then, and the cheapest are among those that the next pick looks
//! at, however large the pool.

use crate::float::{Float, narrow};
use crate::load::{MAX_RATIO, Peers};
use crate::queue::odds::Odds;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// Endpoints that are remembered: a pick reads them all, which is a walk through two lines of the
/// cache.
const MAX_RECENT: usize = 16;
/// Weight of a first answer in the mean of them.
const FIRST_ANSWER_WEIGHT: f32 = 0.02;
/// Answers from which the variation is learnt, and as many as which it counts that it is 1 before.
const VARIATION_ANSWERS: f32 = 512.0;
const PRIOR_ANSWERS: f32 = 16.0;
/// Weight of one answer in the mean over endpoints.
const MEAN_WEIGHT: f32 = 1.0 / 64.0;
/// Weight of one that waits in what they find.
const CONGESTION_WEIGHT: f32 = 1.0 / 128.0;
/// No index in a pool.
pub(crate) const NO_INDEX: u32 = u32::MAX;
/// Nothing is remembered here.
const NONE: u64 = u64::MAX;

/// See above. Nothing in it is believed: an index may be another endpoint's by now.
#[derive(Debug)]
pub struct PickMemory {
    next_turn: AtomicUsize,
    newest: AtomicUsize,
    /// Mean of what first answers took, in seconds; 0: there was none.
    first: Float,
    /// Cost as the bits of an `f32`, which order as the numbers do, and index in the pool.
    recent: [AtomicU64; MAX_RECENT],
    /// Mean of the endpoints' mean service times, in seconds, weighted by answers; 0: not known.
    mean: Float,
    /// Variance of service times as a multiple of their squared mean, and the number of answers behind it.
    variation: Float,
    varied: Float,
    /// Number of requests that wait when a request has to wait, itself included; 0: not known.
    congestion: Float,
    /// The distribution of service times.
    pub(crate) odds: Odds,
}

impl Default for PickMemory {
    fn default() -> Self {
        Self {
            next_turn: AtomicUsize::new(0),
            newest: AtomicUsize::new(0),
            first: Float::default(),
            recent: [const { AtomicU64::new(NONE) }; MAX_RECENT],
            mean: Float::default(),
            variation: Float::default(),
            varied: Float::default(),
            congestion: Float::default(),
            odds: Odds::default(),
        }
    }
}

/// An endpoint where a request of ours ended of late.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RecentEndpoint {
    entry: u64,
    slot: usize,
}

impl PickMemory {
    /// The next turn.
    pub(crate) fn next_turn(&self) -> usize {
        self.next_turn.fetch_add(1, Relaxed)
    }

    /// An endpoint's first answer took so long to serve.
    pub(crate) fn learn_first_answer(&self, seconds: f32) {
        let weight = if self.first.get() > 0.0 { FIRST_ANSWER_WEIGHT } else { 1.0 };
        self.first.draw(seconds, weight);
    }

    /// The expected service time of an endpoint that has not answered yet, in seconds. Not the best one:
    /// where most are unknown, every request would go to one, and a third of them may be slow.
    pub(crate) fn first_answer_seconds(&self) -> Option<f64> {
        let first = self.first.get();
        (first > 0.0).then_some(f64::from(first))
    }

    /// The service times of this pool, as far as they are known.
    pub(crate) fn peers(&self) -> Peers {
        let known = self.varied.get();
        let variation = (self.variation.get() * known + PRIOR_ANSWERS) / (known + PRIOR_ANSWERS);
        Peers { mean: self.mean.get(), variation }
    }

    /// An endpoint answered after so many of its mean services, of which `samples` are known.
    pub(crate) fn learn_variation(&self, ratio: f32, samples: f32) {
        let count = (self.varied.get() + 1.0).min(VARIATION_ANSWERS);
        self.varied.set(count);
        let off = ratio.min(MAX_RATIO) - 1.0;
        // The mean is off as well, by as many answers as it is made of.
        self.variation.draw(off * off * samples / (samples + 1.0), 1.0 / count);
    }

    /// One endpoint takes so many seconds on average.
    pub(crate) fn learn_mean(&self, seconds: f32) {
        let weight = if self.mean.get() > 0.0 { MEAN_WEIGHT } else { 1.0 };
        self.mean.draw(seconds, weight);
    }

    /// A request has to wait as one of so many.
    pub(crate) fn waits(&self, among: f64) {
        let weight = if self.congestion.get() > 0.0 { CONGESTION_WEIGHT } else { 1.0 };
        self.congestion.draw(narrow(among), weight);
    }

    /// The share of the pool's time that is asked for. Where arrivals are random, one that has to wait finds
    /// `1 / (1 - share)` waiting, itself counted in.
    pub(crate) fn utilisation(&self) -> f64 {
        1.0 - 1.0 / f64::from(self.congestion.get()).max(1.05)
    }

    /// A request ended at the endpoint with this index, which costs so much now.
    pub(crate) fn remember(&self, index: u32, cost: f32) {
        let entry = u64::from(cost.to_bits()) << 32 | u64::from(index);
        // The worse of two makes way: the good ones stay longer than all others.
        let first = self.newest.fetch_add(1, Relaxed) % MAX_RECENT;
        let second = (first + MAX_RECENT / 2 - 1) % MAX_RECENT;
        let [one, other] = [first, second].map(|slot| &self.recent[slot]);
        let worse = if other.load(Relaxed) > one.load(Relaxed) { other } else { one };
        worse.store(entry, Relaxed);
    }

    /// The cheapest that are remembered and not `excluded`, different ones, as many as fit.
    pub(crate) fn cheapest(
        &self,
        best: &mut [RecentEndpoint],
        excluded: impl Fn(usize) -> bool,
    ) -> usize {
        let mut found = 0;
        for (slot, entry) in self.recent.iter().enumerate() {
            let entry = entry.load(Relaxed);
            let freed = RecentEndpoint { entry, slot };
            let too_much = found == best.len() && entry >= best[found - 1].entry;
            if entry == NONE || too_much || excluded(freed.index()) {
                continue;
            }
            if let Some(same) = best[..found].iter().position(|it| it.index() == freed.index()) {
                // The cheaper of two statements is the one with fewer of ours: the later one.
                if entry >= best[same].entry {
                    continue;
                }
                best.copy_within(same + 1..found, same);
                found -= 1;
            }
            found = (found + 1).min(best.len());
            let at = best[..found - 1].partition_point(|it| it.entry < entry);
            best.copy_within(at..found - 1, at + 1);
            best[at] = freed;
        }
        found
    }

    /// It was picked: somebody else may be next.
    pub(crate) fn forget(&self, freed: RecentEndpoint) {
        self.recent[freed.slot].store(NONE, Relaxed);
    }

    /// It was not picked, and costs so much by now.
    pub(crate) fn update(&self, freed: RecentEndpoint, cost: f64) {
        let cost = narrow(cost);
        let entry = u64::from(cost.to_bits()) << 32 | freed.index() as u64;
        self.recent[freed.slot].store(entry, Relaxed);
    }
}

impl RecentEndpoint {
    /// A slot to write one into.
    pub(crate) const VACANT: Self = Self { entry: NONE, slot: 0 };

    #[allow(clippy::cast_possible_truncation, reason = "the lower half is the index")]
    pub(crate) fn index(self) -> usize {
        self.entry as u32 as usize
    }
}
