//! The chance that a waiting request still has, and the choice among a client's requests.
//!
//! While endpoints keep up, the earliest deadline goes first. Under overload that order is the worst:
//! the first in the queue is always the one that has waited longest, with hardly enough time left or none,
//! and the next one has waited as long by the time that its turn comes (the domino effect of
//! earliest-deadline-first). So the earliest deadline goes first among those whose chance has not
//! suffered from waiting; if there is none, the one with the best chance goes. Those that have lost
//! most of theirs are refused while others want the slot.

use super::capacity::FRESH_SHARE;
use super::odds::{Odds, TimeBudget};
use crate::{
    Candidate, CapacityEstimate, FairQueue, Load, PoolView, Position, RelativeCost, Rng, Time,
};
use std::time::Duration;

/// Share of its first chance that a request may lose and still count as in time.
pub(crate) const MIN_CHANCE_SHARE: f64 = 0.99;
/// Share of its first chance without which it is not worth a slot that others want.
const LOST_CHANCE_SHARE: f64 = 0.5;
/// A chance below it is none: what is known may be out of date, and the fresher the better.
const MIN_CHANCE: f64 = 0.05;
/// Requests of one client that are looked at for one that is in time, from the earliest deadline on,
/// and from the latest one back.
const MAX_EARLIEST_SCANNED: usize = 64;
const MAX_LATEST_SCANNED: usize = 8;

/// The estimate of a pool's speed at a moment.
#[derive(Debug)]
pub(crate) struct Prospects<'a> {
    odds: &'a Odds,
    capacity: CapacityEstimate,
    now: Time,
}

impl<C: Candidate> PoolView<'_, C> {
    /// The prospects of requests now; for a request that has `seconds` for a service of the mean weight,
    /// only endpoints count that may be done with it in time.
    pub(crate) fn prospects(&self, seconds: Option<f64>, rng: &mut Rng) -> Prospects<'_> {
        let capacity = self.capacity_for(seconds, rng);
        Prospects { odds: &self.context.memory.odds, capacity, now: self.context.now }
    }

    /// The same pool for a request with this time.
    #[must_use = "the view itself is for requests that have time"]
    pub(crate) fn on(&self, time_budget: Option<TimeBudget>) -> Self {
        Self { time_budget, ..*self }
    }

    /// Whether a request has a chance to be done in time at this endpoint, and one as good as it would have
    /// alone there. A request with no time to spare waits in the proxy rather than behind another there.
    pub(crate) fn suits(&self, load: &Load) -> bool {
        let Some(time_budget) = self.time_budget else { return true };
        let (Some(service), Some(slots)) = (load.service_seconds(), load.known_slots()) else {
            return true;
        };
        let there = load.occupancy(self.context.now, self.context.report_ttl);
        let queue = match load.may_probe(there, self.context.now) {
            true => 0.0,
            false => f64::from((there + 1).saturating_sub(slots)),
        };
        let chance = |wait: f64| {
            let seconds = service * time_budget.relative_cost + service * wait;
            self.context.memory.odds.within(time_budget.left / seconds.max(f64::MIN_POSITIVE))
        };
        let behind = chance(queue / f64::from(slots.max(1)));
        behind >= time_budget.floor && (queue == 0.0 || behind >= MIN_CHANCE_SHARE * chance(0.0))
    }
}

impl Prospects<'_> {
    /// Whether enough is known for a judgement.
    pub(crate) fn are_known(&self) -> bool {
        self.odds.is_known() && self.capacity.fastest > 0.0
    }

    pub(crate) fn capacity(&self) -> CapacityEstimate {
        self.capacity
    }

    /// Whether waiting has recently cost requests their chance.
    pub(crate) fn is_strained(&self) -> bool {
        self.odds.is_strained(self.now, self.capacity.service)
    }

    /// Waiting has cost a request its chance.
    pub(crate) fn strain(&self) {
        self.odds.strain(self.now);
    }

    /// Whether it is time to try a request that seems to have no chance.
    pub(crate) fn may_be_wrong(&self) -> bool {
        self.are_known()
            && self.is_strained()
            && self.odds.is_doubt_due(self.now, self.capacity.per_second)
    }

    /// Whether a request that seems to have no chance may be given one.
    pub(crate) fn may_doubt(&self) -> bool {
        self.odds.may_doubt(self.now, self.capacity.per_second)
    }

    /// The chance of a request with so much time at the fastest endpoint.
    pub(crate) fn chance(&self, left: Duration, relative_cost: RelativeCost) -> f64 {
        self.odds.within(left.as_secs_f64() / (self.capacity.fastest * relative_cost.get()))
    }

    /// Whether a request with this much time has any chance.
    pub(crate) fn has_chance(&self, left: Duration, relative_cost: RelativeCost) -> bool {
        self.chance(left, relative_cost) >= MIN_CHANCE
    }

    /// The least time with which a request of this patience counts as in time.
    pub(crate) fn reserve(&self, patience: Duration, relative_cost: RelativeCost) -> Duration {
        if !self.are_known() {
            return self.capacity.for_relative_cost(relative_cost).reserve(patience);
        }
        let fresh = self.chance(patience, relative_cost);
        if fresh < MIN_CHANCE {
            return patience.mul_f64(FRESH_SHARE);
        }
        let means = self.odds.quantile(MIN_CHANCE_SHARE * fresh);
        let seconds = means * self.capacity.fastest * relative_cost.get();
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX).min(patience)
    }

    /// A request came: is its chance so much less than that of others that a slot had better go to one
    /// of them? Only where slots are scarce, and never without exception.
    pub(crate) fn is_outclassed(&self, patience: Duration, relative_cost: RelativeCost) -> bool {
        let chance = self.chance(patience, relative_cost);
        self.odds.came(chance);
        self.is_strained() && chance < LOST_CHANCE_SHARE * self.odds.usual() && !self.may_doubt()
    }

    /// Whether it has lost so much of its chance that others, of which some wait or will soon come, had
    /// better have the slot.
    pub(crate) fn is_lost(&self, position: &Position, others_wait: bool) -> bool {
        let (patience, left) = self.times(position);
        if !self.are_known() {
            let capacity = self.capacity.for_relative_cost(position.relative_cost());
            return others_wait
                && capacity.is_too_late(position.since(), position.deadline(), self.now);
        }
        if !others_wait && !self.is_strained() {
            return false;
        }
        let (fresh, here) = (
            self.chance(patience, position.relative_cost()),
            self.chance(left, position.relative_cost()),
        );
        if fresh < MIN_CHANCE {
            return left < patience / 2;
        }
        here < LOST_CHANCE_SHARE * fresh
            || (others_wait
                && left < self.reserve(patience, position.relative_cost()).min(patience / 2))
    }

    /// The request that goes, of the client whose turn it is: `first` is its earliest deadline.
    pub(crate) fn choose<'l, T>(
        &self,
        queue: &'l FairQueue<T>,
        first: (Position, &'l T),
    ) -> (Position, &'l T) {
        if !self.are_known() || self.is_in_time(&first.0) {
            return first;
        }
        if queue.len() > 1 {
            self.strain();
        }
        let in_time = queue
            .same_client(&first.0)
            .take(MAX_EARLIEST_SCANNED)
            .find(|position| self.is_in_time(position));
        let best = || {
            let all = queue.same_client(&first.0).take(MAX_EARLIEST_SCANNED);
            let all = all.chain(queue.same_client(&first.0).rev().take(MAX_LATEST_SCANNED));
            let rank = |position: &Position| {
                let (patience, left) = self.times(position);
                let chance = self.chance(left, position.relative_cost());
                (chance, left.as_secs_f64() / patience.as_secs_f64().max(f64::MIN_POSITIVE))
            };
            all.max_by(|one, other| {
                let ((a, b), (c, d)) = (rank(one), rank(other));
                a.total_cmp(&c).then(b.total_cmp(&d))
            })
        };
        in_time.or_else(best).and_then(|position| queue.get(&position)).unwrap_or(first)
    }

    /// The time that a request needs at endpoints.
    pub(crate) fn time_budget(
        &self,
        deadline: Time,
        since: Time,
        relative_cost: RelativeCost,
    ) -> Option<TimeBudget> {
        if !self.are_known() {
            return None;
        }
        let fresh = self.chance(deadline.since(since), relative_cost);
        let floor =
            if self.is_strained() && fresh >= MIN_CHANCE { LOST_CHANCE_SHARE * fresh } else { 0.0 };
        let left = deadline.since(self.now).as_secs_f64();
        Some(TimeBudget { left, relative_cost: relative_cost.get(), floor })
    }

    fn is_in_time(&self, position: &Position) -> bool {
        let (patience, left) = self.times(position);
        left >= self.reserve(patience, position.relative_cost())
    }

    /// The time that it had when it came, and the time that it has left.
    fn times(&self, position: &Position) -> (Duration, Duration) {
        (position.deadline().since(position.since()), position.deadline().since(self.now))
    }
}
