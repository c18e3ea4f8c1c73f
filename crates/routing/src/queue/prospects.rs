//! What chance a request that waits still has, and which of a client's requests had better go next.
//!
//! While endpoints keep up, the earliest deadline goes first. Under overload that order is the worst:
//! the first in line is always the one that has waited longest, with hardly enough time left or none,
//! and the next one has waited as long by the time that its turn comes (the domino effect of
//! earliest-deadline-first). So the earliest deadline goes first among those whose chance has not
//! suffered from waiting; if there is none, the one with the best chance goes. Those that have lost
//! most of theirs are refused while others want the slot.

use super::capacity::FRESH;
use super::odds::{Odds, Terms};
use crate::{Candidate, Line, Load, Outlook, Place, Rng, Time, View, Weight};
use std::time::Duration;

/// Share of its first chance that a request may lose and still count as in time.
pub(crate) const PROMISED: f64 = 0.99;
/// Share of its first chance without which it is not worth a slot that others want.
const LOST: f64 = 0.5;
/// A chance below it is none: what is known may be out of date, and the fresher the better.
const NONE: f64 = 0.05;
/// Requests of one client that are looked at for one that is in time, from the earliest deadline on,
/// and from the latest one back.
const LOOKED_AT: usize = 64;
const LATEST: usize = 8;

/// What is known of a pool's speed at a moment.
#[derive(Debug)]
pub(crate) struct Prospects<'a> {
    odds: &'a Odds,
    outlook: Outlook,
    now: Time,
}

impl<C: Candidate> View<'_, C> {
    /// What can be said of requests now; of one that has so many seconds for a service of the mean
    /// weight, only endpoints count that may be done with it in time.
    pub(crate) fn prospects(&self, seconds: Option<f64>, rng: &mut Rng) -> Prospects<'_> {
        let outlook = self.outlook_for(seconds, rng);
        Prospects { odds: &self.context.turn.odds, outlook, now: self.context.now }
    }

    /// The same pool for a request with these terms.
    #[must_use = "the view itself is for requests that have time"]
    pub(crate) fn on(&self, terms: Option<Terms>) -> Self {
        Self { terms, ..*self }
    }

    /// Is there a chance that a request is done in time at this endpoint, and is it as good as it would
    /// be alone there? Who has no time to spare waits in the proxy rather than behind another there.
    pub(crate) fn suits(&self, load: &Load) -> bool {
        let Some(terms) = self.terms else { return true };
        let (Some(service), Some(slots)) = (load.service_seconds(), load.known_slots()) else {
            return true;
        };
        let there = load.occupancy(self.context.now, self.context.report_ttl);
        let queue = f64::from((there + 1).saturating_sub(slots));
        let chance = |wait: f64| {
            let seconds = service * terms.weight + service * wait;
            self.context.turn.odds.within(terms.left / seconds.max(f64::MIN_POSITIVE))
        };
        let behind = chance(queue / f64::from(slots.max(1)));
        behind >= terms.floor && (queue == 0.0 || behind >= PROMISED * chance(0.0))
    }
}

impl Prospects<'_> {
    /// Is enough known to judge by?
    pub(crate) fn are_known(&self) -> bool {
        self.odds.is_known() && self.outlook.fastest > 0.0
    }

    pub(crate) fn outlook(&self) -> Outlook {
        self.outlook
    }

    /// Has waiting cost requests their chance of late?
    pub(crate) fn is_strained(&self) -> bool {
        self.odds.is_strained(self.now, self.outlook.service)
    }

    /// Waiting has cost a request its chance.
    pub(crate) fn strain(&self) {
        self.odds.strain(self.now);
    }

    /// Is it time to try what seems to have no chance?
    pub(crate) fn may_be_wrong(&self) -> bool {
        self.are_known()
            && self.is_strained()
            && self.odds.is_doubt_due(self.now, self.outlook.per_second)
    }

    /// May one that seems to have no chance be given one?
    pub(crate) fn may_doubt(&self) -> bool {
        self.odds.may_doubt(self.now, self.outlook.per_second)
    }

    /// The chance of a request with so much time at the fastest endpoint.
    pub(crate) fn chance(&self, left: Duration, weight: Weight) -> f64 {
        self.odds.within(left.as_secs_f64() / (self.outlook.fastest * weight.get()))
    }

    /// Is there any chance for one with so much time?
    pub(crate) fn has_chance(&self, left: Duration, weight: Weight) -> bool {
        self.chance(left, weight) >= NONE
    }

    /// The least time with which a request of this patience counts as in time.
    pub(crate) fn reserve(&self, patience: Duration, weight: Weight) -> Duration {
        if !self.are_known() {
            return self.outlook.weighing(weight).reserve(patience);
        }
        let fresh = self.chance(patience, weight);
        if fresh < NONE {
            return patience.mul_f64(FRESH);
        }
        let means = self.odds.quantile(PROMISED * fresh);
        let seconds = means * self.outlook.fastest * weight.get();
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX).min(patience)
    }

    /// A request came: is its chance so much less than that of others that a slot had better go to one
    /// of them? Only where slots are scarce, and never without exception.
    pub(crate) fn is_outclassed(&self, patience: Duration, weight: Weight) -> bool {
        let chance = self.chance(patience, weight);
        self.odds.came(chance);
        self.is_strained() && chance < LOST * self.odds.usual() && !self.may_doubt()
    }

    /// Has it lost so much of its chance that others, of which some wait or will soon come, had better
    /// have the slot?
    pub(crate) fn is_lost(&self, place: &Place, others_wait: bool) -> bool {
        let (patience, left) = self.times(place);
        if !self.are_known() {
            let outlook = self.outlook.weighing(place.weight());
            return others_wait && outlook.is_too_late(place.since(), place.deadline(), self.now);
        }
        if !others_wait && !self.is_strained() {
            return false;
        }
        let (fresh, here) =
            (self.chance(patience, place.weight()), self.chance(left, place.weight()));
        if fresh < NONE {
            return left < patience / 2;
        }
        here < LOST * fresh
            || (others_wait && left < self.reserve(patience, place.weight()).min(patience / 2))
    }

    /// Which of the requests of the client whose turn it is goes: `first` is its earliest deadline.
    pub(crate) fn choose<'l, T>(&self, line: &'l Line<T>, first: (Place, &'l T)) -> (Place, &'l T) {
        if !self.are_known() || self.is_in_time(&first.0) {
            return first;
        }
        if line.len() > 1 {
            self.strain();
        }
        let in_time = line.alike(&first.0).take(LOOKED_AT).find(|place| self.is_in_time(place));
        let best = || {
            let all = line.alike(&first.0).take(LOOKED_AT);
            let all = all.chain(line.alike(&first.0).rev().take(LATEST));
            let rank = |place: &Place| {
                let (patience, left) = self.times(place);
                let chance = self.chance(left, place.weight());
                (chance, left.as_secs_f64() / patience.as_secs_f64().max(f64::MIN_POSITIVE))
            };
            all.max_by(|one, other| {
                let ((a, b), (c, d)) = (rank(one), rank(other));
                a.total_cmp(&c).then(b.total_cmp(&d))
            })
        };
        in_time.or_else(best).and_then(|place| line.get(&place)).unwrap_or(first)
    }

    /// What a request asks of endpoints.
    pub(crate) fn terms(&self, deadline: Time, since: Time, weight: Weight) -> Option<Terms> {
        if !self.are_known() {
            return None;
        }
        let fresh = self.chance(deadline.since(since), weight);
        let floor = if self.is_strained() && fresh >= NONE { LOST * fresh } else { 0.0 };
        let left = deadline.since(self.now).as_secs_f64();
        Some(Terms { left, weight: weight.get(), floor })
    }

    fn is_in_time(&self, place: &Place) -> bool {
        let (patience, left) = self.times(place);
        left >= self.reserve(patience, place.weight())
    }

    /// What it had when it came, and what it has left.
    fn times(&self, place: &Place) -> (Duration, Duration) {
        (place.deadline().since(place.since()), place.deadline().since(self.now))
    }
}
