//! What the picks of one pool share: whose turn it is, and where a request of ours just ended.
//!
//! A pick that looks at a few endpoints out of thousands sees mostly strangers: what it knows of them
//! is old, and with every pick the load goes somewhere else, so that no report is true for long. An
//! endpoint where a request of ours has just ended is known better than any other: its answer brought
//! its latest report, and one more request there leaves the load as it was. So the last of those are
//! remembered, each with what it cost then, and the cheapest are among those that the next pick looks
//! at, however large the pool.

use crate::float::{Float, narrow};
use crate::queue::odds::Odds;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// Endpoints that are remembered: a pick reads them all, which is a walk through two lines of the
/// cache.
const REMEMBERED: usize = 16;
/// Weight of a first answer in the mean of them.
const FIRST_WEIGHT: f32 = 0.02;
/// No place in a pool.
pub(crate) const NOWHERE: u32 = u32::MAX;
/// Nothing is remembered here.
const NONE: u64 = u64::MAX;

/// See above. Nothing in it is believed: a place may be another endpoint's by now.
#[derive(Debug)]
pub struct Picks {
    turn: AtomicUsize,
    newest: AtomicUsize,
    /// Mean of what first answers took, in seconds; 0: there was none.
    first: Float,
    /// Cost as the bits of an `f32`, which order as the numbers do, and place.
    freed: [AtomicU64; REMEMBERED],
    /// How service times are distributed.
    pub(crate) odds: Odds,
}

impl Default for Picks {
    fn default() -> Self {
        Self {
            turn: AtomicUsize::new(0),
            newest: AtomicUsize::new(0),
            first: Float::default(),
            freed: [const { AtomicU64::new(NONE) }; REMEMBERED],
            odds: Odds::default(),
        }
    }
}

/// One that was remembered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Freed {
    entry: u64,
    slot: usize,
}

impl Picks {
    /// The next turn.
    pub(crate) fn turn(&self) -> usize {
        self.turn.fetch_add(1, Relaxed)
    }

    /// An endpoint's first answer took so long to serve.
    pub(crate) fn met(&self, seconds: f32) {
        let weight = if self.first.get() > 0.0 { FIRST_WEIGHT } else { 1.0 };
        self.first.draw(seconds, weight);
    }

    /// What is to be expected of an endpoint that has not answered yet, in seconds. Not the best: where
    /// most are strangers, every request would go to one, and a third of them may be slow.
    pub(crate) fn stranger(&self) -> Option<f64> {
        let first = self.first.get();
        (first > 0.0).then_some(f64::from(first))
    }

    /// A request ended at the endpoint in this place, which costs so much now.
    pub(crate) fn freed(&self, place: u32, cost: f32) {
        let entry = u64::from(cost.to_bits()) << 32 | u64::from(place);
        // The worse of two makes way: the good ones stay longer than all others.
        let first = self.newest.fetch_add(1, Relaxed) % REMEMBERED;
        let second = (first + REMEMBERED / 2 - 1) % REMEMBERED;
        let [one, other] = [first, second].map(|slot| &self.freed[slot]);
        let worse = if other.load(Relaxed) > one.load(Relaxed) { other } else { one };
        worse.store(entry, Relaxed);
    }

    /// The cheapest that are remembered and not `excluded`, different ones, as many as fit.
    pub(crate) fn cheapest(&self, best: &mut [Freed], excluded: impl Fn(usize) -> bool) -> usize {
        let mut found = 0;
        for (slot, entry) in self.freed.iter().enumerate() {
            let entry = entry.load(Relaxed);
            let freed = Freed { entry, slot };
            let too_much = found == best.len() && entry >= best[found - 1].entry;
            if entry == NONE || too_much || excluded(freed.place()) {
                continue;
            }
            if let Some(same) = best[..found].iter().position(|it| it.place() == freed.place()) {
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
    pub(crate) fn taken(&self, freed: Freed) {
        self.freed[freed.slot].store(NONE, Relaxed);
    }

    /// It was not picked, and costs so much by now.
    pub(crate) fn left(&self, freed: Freed, cost: f64) {
        let cost = narrow(cost);
        let entry = u64::from(cost.to_bits()) << 32 | freed.place() as u64;
        self.freed[freed.slot].store(entry, Relaxed);
    }
}

impl Freed {
    /// A place to write one into.
    pub(crate) const VACANT: Self = Self { entry: NONE, slot: 0 };

    #[allow(clippy::cast_possible_truncation, reason = "the lower half is the place")]
    pub(crate) fn place(self) -> usize {
        self.entry as u32 as usize
    }
}
