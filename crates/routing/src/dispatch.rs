//! Who of those that wait goes next, and who need not wait at all.
//!
//! [`View::bind`] decides about one request; here stands what follows for a whole [`Line`], so that the
//! proxy and the simulator do the same: whether one that comes joins the line, and whose wait is over
//! when something has changed.

use crate::{Binding, Candidate, Claim, Line, Place, Policy, Rng, Time, View, Weight};
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
        let binding = self.bind(&excluded, 0, rng);
        let can_wait = |rng: &mut Rng| {
            self.outlook(rng).weighing(weight).can_meet(deadline, self.context.now, 0)
        };
        if binding != Binding::Wait || self.policy != Policy::Adaptive || can_wait(rng) {
            return binding;
        }
        self.with(Policy::LeastCost).bind(excluded, 0, rng)
    }

    /// Is there hope that a request is done in time that joins the line now?
    ///
    /// # Errors
    /// There is none; it may be worth coming back after this time.
    pub fn hope<T>(&self, line: &Line<T>, claim: &Claim, rng: &mut Rng) -> Result<(), Duration> {
        if line.is_empty() {
            return Ok(());
        }
        let outlook = self.outlook(rng).weighing(claim.weight);
        if outlook.can_meet(claim.deadline, self.context.now, line.ahead_of(claim)) {
            return Ok(());
        }
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
        // While others wait nothing is lost with one that is hardly done in time.
        if line.len() > 1
            && self.outlook(rng).weighing(first.0.weight()).is_too_late(
                first.0.since(),
                first.0.deadline(),
                self.context.now,
            )
        {
            return Some((first.0, Next::TooLate));
        }
        let others = line.iter().take(LOOKED_AT).filter(|(place, _)| *place != first.0);
        for (place, item) in std::iter::once(first).chain(others) {
            match self.keyed(place.key()).bind(|endpoint| tried(item, endpoint), 0, rng) {
                Binding::Bind(index) => return Some((place, Next::Goes(index))),
                Binding::Nowhere => return Some((place, Next::Nowhere)),
                // What is free it has tried, or had better not take; the next one may.
                Binding::Wait if self.endpoints.iter().any(|it| tried(item, it)) => {}
                Binding::Wait => break,
            }
        }
        // Who is first does better to wait; who is last may do better to take what is free.
        let (place, item) = line.last().filter(|_| line.len() > 1)?;
        if self.policy != Policy::Adaptive {
            return None;
        }
        match self.keyed(place.key()).bind(|endpoint| tried(item, endpoint), line.len() - 1, rng) {
            Binding::Bind(index) => Some((place, Next::Goes(index))),
            Binding::Wait | Binding::Nowhere => None,
        }
    }
}
