//! The candidates of a decision: a sample of the endpoints in rotation.
//!
//! All of a small pool. Of a larger one a few, or a pick would cost more the larger the fleet is: the
//! cheapest of those where a request of ours just ended (see [`PickMemory`]), and some by
//! chance.

use super::recent::{PickMemory, RecentEndpoint};
use super::ring::Ring;
use crate::decision::{Trace, Wish, best_wish};
use crate::{Load, Rng, Time};
use std::sync::Arc;
use std::time::Duration;

/// Up to this many endpoints are all looked at.
pub const FULL_SCAN: usize = 16;
/// Number of endpoints that are considered in a larger pool, and the number of those that just became free.
const SAMPLE_SIZE: usize = 6;
const MAX_RECENT: usize = 3;
/// Most endpoints that are looked at for one decision: one that has just become free comes on top.
pub(crate) const MAX_SAMPLE: usize = FULL_SCAN + 1;
/// Service time in seconds if no endpoint has one yet; any value does, since it is common to all.
const UNKNOWN_SERVICE: f64 = 0.001;

/// Something that can be picked.
pub trait Candidate {
    /// The estimate of its load.
    fn load(&self) -> &Load;

    /// Its name in the records of decisions.
    fn name(&self) -> &str {
        ""
    }
}

impl<C: Candidate + ?Sized> Candidate for Arc<C> {
    fn load(&self) -> &Load {
        (**self).load()
    }

    fn name(&self) -> &str {
        (**self).name()
    }
}

/// The facts that a pick needs beside the endpoints.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The time of the pick.
    pub now: Time,
    /// A report older than this is not believed.
    pub report_ttl: Duration,
    /// The memory that the pool's picks share.
    pub memory: &'a Arc<PickMemory>,
    /// For [`Policy::Sticky`]: what is to go to the same endpoint, as a number.
    pub key: Option<u64>,
    /// For the same: the endpoints in a circle.
    pub ring: Option<&'a Ring>,
    /// Keeps the decisions, if any request wants them.
    pub trace: Option<&'a Trace>,
}

/// The endpoints that are looked at for one decision.
#[derive(Debug)]
pub(crate) struct Sample {
    indices: [usize; MAX_SAMPLE],
    len: usize,
    recent: [RecentEndpoint; MAX_RECENT],
    known: usize,
    is_part: bool,
}

impl Sample {
    /// Draws a sample; `freed` is in it in any case, if it is given.
    pub(crate) fn at<C: Candidate>(
        endpoints: &[C],
        excluded: &impl Fn(&C) -> bool,
        freed: Option<usize>,
        context: &Context<'_>,
        rng: &mut Rng,
    ) -> Self {
        let mut sample = Self {
            indices: [0; MAX_SAMPLE],
            len: 0,
            recent: [RecentEndpoint::VACANT; MAX_RECENT],
            known: 0,
            is_part: endpoints.len() > FULL_SCAN,
        };
        if sample.is_part {
            let out = |index: usize| endpoints.get(index).is_none_or(excluded);
            sample.known = context.memory.cheapest(&mut sample.recent, out);
            for (index, freed) in sample.indices.iter_mut().zip(&sample.recent[..sample.known]) {
                *index = freed.index();
            }
        }
        let buffer = &mut sample.indices[..if sample.is_part { SAMPLE_SIZE } else { FULL_SCAN }];
        sample.len = choose(buffer, sample.known, endpoints, excluded, rng).len();
        let is_new = |index: &usize| {
            endpoints.get(*index).is_some_and(|endpoint| !excluded(endpoint))
                && !sample.indices().contains(index)
        };
        if let Some(freed) = freed.filter(is_new) {
            sample.indices[sample.len] = freed;
            sample.len += 1;
        }
        if sample.is_part {
            sample.fetch(endpoints);
        }
        sample
    }

    /// Reads something of each at once. Of a large pool most are not in the cache, and a cost is computed
    /// from so much that the processor would wait for one after the other.
    fn fetch<C: Candidate>(&self, endpoints: &[C]) {
        let loads = self.indices().iter().map(|index| endpoints[*index].load());
        std::hint::black_box(loads.fold(0, |all, load| all ^ load.in_flight()));
    }

    /// The expected service time of an endpoint that has not answered yet, in seconds.
    pub(crate) fn new_endpoint_service<C: Candidate>(
        &self,
        endpoints: &[C],
        context: &Context<'_>,
    ) -> f64 {
        let best = || best_service(self.indices().iter().map(|index| &endpoints[*index]));
        context.memory.first_answer_seconds().unwrap_or_else(best)
    }

    /// Their indices in the pool.
    pub(crate) fn indices(&self) -> &[usize] {
        &self.indices[..self.len]
    }

    /// The cost of each.
    pub(crate) fn costs<C: Candidate>(
        &self,
        endpoints: &[C],
        cost: impl Fn(&Load) -> f64,
    ) -> [f64; MAX_SAMPLE] {
        let mut costs = [f64::INFINITY; MAX_SAMPLE];
        for (number, index) in costs.iter_mut().zip(self.indices()) {
            *number = cost(endpoints[*index].load());
        }
        costs
    }

    /// At times one that is due for exploration: the one that has not answered for the longest.
    pub(crate) fn explore<C: Candidate>(
        &self,
        endpoints: &[C],
        context: &Context<'_>,
        rng: &mut Rng,
    ) -> Option<usize> {
        let wish = best_wish(rng)?;
        let due = |at: usize| {
            let load = endpoints[self.indices[at]].load();
            Some((at, explorable(load, wish, context.now)?))
        };
        (0..self.len).filter_map(due).max_by_key(|(_, silence)| *silence).map(|(at, _)| at)
    }

    /// Number `at` was chosen: its index in the pool. `costs` is what each of them costs.
    pub(crate) fn take<C: Candidate>(
        &self,
        at: usize,
        costs: &[f64],
        endpoints: &[C],
        context: &Context<'_>,
    ) -> usize {
        let index = self.indices[at];
        if self.is_part {
            endpoints[index]
                .load()
                .picked(context.memory, u32::try_from(index).unwrap_or(u32::MAX));
            for (number, (freed, cost)) in self.recent[..self.known].iter().zip(costs).enumerate() {
                if number == at {
                    context.memory.forget(*freed);
                } else {
                    context.memory.update(*freed, *cost);
                }
            }
        }
        index
    }
}

/// Nanoseconds since the last answer of an endpoint that may be explored for this reason.
pub(crate) fn explorable(load: &Load, wish: Wish, now: Time) -> Option<u64> {
    let now = now.nanos();
    let wanted = |load: &Load| match wish {
        Wish::IsDue => load.is_due_for_exploration(now),
        Wish::IsUnsure => load.is_unsure(now),
    };
    (load.may_explore(now) && wanted(load)).then(|| load.silence(now))
}

/// Fills `buffer` behind the first `filled` with distinct indices of allowed endpoints: all of them
/// if they fit, else a random sample.
pub(crate) fn choose<'b, C>(
    buffer: &'b mut [usize],
    mut filled: usize,
    endpoints: &[C],
    excluded: &impl Fn(&C) -> bool,
    rng: &mut Rng,
) -> &'b [usize] {
    if endpoints.len() <= buffer.len() {
        for index in (0..endpoints.len()).filter(|&index| !excluded(&endpoints[index])) {
            buffer[filled] = index;
            filled += 1;
        }
        return &buffer[..filled];
    }
    // One that is drawn twice is looked at once.
    let mut chance = 0;
    for drawn in 0..buffer.len() - filled {
        chance = if drawn % 2 == 0 { rng.next_u64() } else { chance << 32 };
        let index = scale(chance, endpoints.len());
        if !buffer[..filled].contains(&index) && !excluded(&endpoints[index]) {
            buffer[filled] = index;
            filled += 1;
        }
    }
    if filled == 0
        && let Some(index) = allowed_from(rng.below(endpoints.len()), endpoints, excluded)
    {
        buffer[0] = index;
        filled = 1;
    }
    &buffer[..filled]
}

/// From the upper half of 64 random bits a number below `n`, which is far below 2^32.
#[allow(clippy::cast_possible_truncation, reason = "the result is below n")]
const fn scale(chance: u64, n: usize) -> usize {
    (((chance >> 32) * n as u64) >> 32) as usize
}

/// The least service time, in seconds, among endpoints that have one.
pub fn best_service<'a, C: Candidate + 'a>(endpoints: impl Iterator<Item = &'a C>) -> f64 {
    let known = endpoints.filter_map(|endpoint| endpoint.load().service_seconds());
    known.reduce(f64::min).unwrap_or(UNKNOWN_SERVICE)
}

/// The first allowed endpoint, counted from `first`.
pub(super) fn allowed_from<C>(
    first: usize,
    endpoints: &[C],
    excluded: impl Fn(&C) -> bool,
) -> Option<usize> {
    let first = first.checked_rem(endpoints.len())?;
    (first..endpoints.len()).chain(0..first).find(|&index| !excluded(&endpoints[index]))
}
