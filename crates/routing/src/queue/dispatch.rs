//! Who of those that wait goes next, and who need not wait at all.
//!
//! [`View::bind`] decides about one request; here stands what follows for a whole [`Line`], so that the
//! proxy and the simulator do the same: whether one that comes joins the line, and whose wait is over
//! when something has changed.

use super::bind::Visits;
use super::odds::Terms;
use crate::{Binding, Candidate, Claim, Line, Place, Policy, Ramp, Rng, Time, View, Weight};
use std::time::Duration;

/// How many of those that are first are looked at for one that may go to what is free: the others
/// have tried it already.
const LOOKED_AT: usize = 8;

/// What becomes of a request whose wait is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It goes to the endpoint with this index.
    Goes(usize),
    /// There is no endpoint any more that it may go to.
    Nowhere,
    /// It would most likely be late.
    TooLate,
}

impl<C: Candidate> View<'_, C> {
    /// Where a request goes at once that comes when nobody waits: if there is too little time to wait
    /// for what is better, to the best that is free.
    pub fn at_once(
        &self,
        (deadline, weight): (Time, Weight),
        excluded: impl Fn(&C) -> bool,
        rng: &mut Rng,
    ) -> Binding {
        let now = self.context.now;
        let odds = &self.context.turn.odds;
        // Without time to spare it does not go behind others, wherever there is room for that.
        let terms = odds.is_known().then(|| Terms::new(deadline.since(now), weight));
        let mut view = self.on(terms);
        // Where waiting has cost nobody anything, nothing else is to be judged: that would take time.
        if odds.is_known() && odds.has_been_strained() {
            let prospects = self.prospects(None, rng);
            if prospects.are_known() && prospects.is_outclassed(deadline.since(now), weight) {
                return Binding::Wait;
            }
            view.terms = prospects.terms(deadline, now, weight);
        }
        let binding = view.bind(&excluded, 0, rng);
        let can_wait = |rng: &mut Rng| {
            let prospects = view.prospects(None, rng);
            let patience = deadline.since(now);
            prospects.outlook().wait(0).saturating_add(prospects.reserve(patience, weight))
                <= patience
        };
        if binding != Binding::Wait || self.policy != Policy::Adaptive || can_wait(rng) {
            return binding;
        }
        view.with(Policy::LeastCost).bind(excluded, 0, rng)
    }

    /// [`View::at_once`] with a slow start over this `window`; `began` says since when an endpoint has been
    /// in rotation.
    pub fn at_once_gently(
        &self,
        (window, began): (Duration, impl Fn(&C) -> Time),
        terms: (Time, Weight),
        excluded: impl Fn(&C) -> bool,
        rng: &mut Rng,
    ) -> Binding {
        if let Some(ramp) = Ramp::draw(window, self.context.now, rng) {
            let shut = |it: &C| excluded(it) || ramp.passes_over(began(it));
            // A decision takes a turn, so it is not tried with those that are not there. With nobody
            // else free, the one that has just come does better than a wait.
            if !self.endpoints.iter().all(shut)
                && let Binding::Bind(index) = self.at_once(terms, shut, rng)
            {
                return Binding::Bind(index);
            }
        }
        self.at_once(terms, excluded, rng)
    }

    /// Where a second attempt goes that may not wait: to what is free and not `excluded`, unless some are
    /// `waiting` for it.
    pub fn beside(
        &self,
        waiting: usize,
        excluded: impl Fn(&C) -> bool,
        rng: &mut Rng,
    ) -> Option<usize> {
        if waiting > 0 {
            return None;
        }
        // What is best may be worth waiting for, and what is avoided worth a visit; this one is late.
        let binding = match self.policy {
            Policy::Adaptive | Policy::LeastCost => {
                self.with(Policy::LeastCost).compare(&excluded, 0, Visits::Unwelcome, rng)
            }
            _ => self.bind(excluded, 0, rng),
        };
        match binding {
            Binding::Bind(index) => Some(index),
            Binding::Wait | Binding::Nowhere => None,
        }
    }

    /// Is there hope that a request is done in time that joins the line now?
    ///
    /// # Errors
    /// There is none; it may be worth coming back after this time.
    pub fn hope<T>(&self, line: &Line<T>, claim: &Claim, rng: &mut Rng) -> Result<(), Duration> {
        let patience = claim.deadline.since(self.context.now);
        let seconds = patience.as_secs_f64() / claim.weight.get();
        let prospects = self.prospects(Some(seconds), rng);
        let outlook = prospects.outlook();
        if prospects.are_known() && prospects.is_outclassed(patience, claim.weight) {
            return Err(outlook.drained_in(line.len().max(1)));
        }
        if line.is_empty() {
            return Ok(());
        }
        let reserve = prospects.reserve(patience, claim.weight);
        let is_in_time = |ahead: usize| outlook.wait(ahead).saturating_add(reserve) <= patience;
        // Where not even the first in line can be sure, its place says nothing: one that comes later and
        // has more time left goes before it.
        let has_chance = || prospects.has_chance(patience, claim.weight) || prospects.may_doubt();
        if is_in_time(line.ahead_of(claim))
            || (prospects.are_known() && !is_in_time(0) && has_chance())
        {
            return Ok(());
        }
        prospects.strain();
        Err(outlook.drained_in(line.len()))
    }

    /// Whose wait is over, if anybody's is; `tried` says where each was sent already.
    pub fn next<T>(
        &self,
        line: &Line<T>,
        tried: impl Fn(&T, &C) -> bool,
        rng: &mut Rng,
    ) -> Option<(Place, Next)> {
        let first = line.first()?;
        let prospects = self.prospects(None, rng);
        if prospects.is_lost(&first.0, line.len() > 1) {
            prospects.strain();
            return Some((first.0, Next::TooLate));
        }
        let first = prospects.choose(line, first);
        let bind = |place: &Place, item: &T, ahead: usize, rng: &mut Rng| {
            let terms = prospects.terms(place.deadline(), place.since(), place.weight());
            let view = self.keyed(place.key());
            let binding = view.on(terms).bind(|endpoint| tried(item, endpoint), ahead, rng);
            // An endpoint that seems too slow for all that come would never be found to be faster.
            if binding != Binding::Wait || !prospects.may_be_wrong() {
                return binding;
            }
            let anyway = view.bind(|endpoint| tried(item, endpoint), ahead, rng);
            if matches!(anyway, Binding::Bind(_)) {
                prospects.may_doubt();
            }
            anyway
        };
        let others = line.iter().take(LOOKED_AT).filter(|(place, _)| *place != first.0);
        for (place, item) in std::iter::once(first).chain(others) {
            match bind(&place, item, 0, rng) {
                Binding::Bind(index) => return Some((place, Next::Goes(index))),
                Binding::Nowhere => return Some((place, Next::Nowhere)),
                // What is free it has tried, or it is of no use to it; the next one may take it.
                Binding::Wait if prospects.is_strained() => {}
                Binding::Wait if self.endpoints.iter().any(|it| tried(item, it)) => {}
                Binding::Wait => break,
            }
        }
        // Who is first does better to wait; who is last may do better to take what is free.
        let (place, item) = line.last().filter(|_| line.len() > 1)?;
        if self.policy != Policy::Adaptive {
            return None;
        }
        match bind(&place, item, line.len() - 1, rng) {
            Binding::Bind(index) => Some((place, Next::Goes(index))),
            Binding::Wait | Binding::Nowhere => None,
        }
    }
}
