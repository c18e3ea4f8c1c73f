//! Decides which waiting request goes next, and which requests need not wait at all.
//!
//! [`PoolView::bind`] decides on one request; this module applies it to a whole [`FairQueue`], so that the
//! proxy and the simulator do the same: whether a new request joins the queue, and whose wait is over when
//! something has changed.

use super::bind::Exploration;
use super::odds::TimeBudget;
use crate::pick::candidates::Sample;
use crate::{
    Binding, Candidate, Entry, FairQueue, Policy, PoolView, Position, RelativeCost, Rng, SlowStart,
    Time,
};
use std::time::Duration;

/// Number of requests at the head that are checked for one that may go to a free endpoint: the others have
/// tried it already.
const MAX_SCANNED: usize = 8;
/// Number of positions in the queue that are checked for the request that goes ahead.
const MAX_BEFORE: usize = 64;

/// The end of a request's wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dispatch {
    /// It goes to the endpoint with this index.
    Bind(usize),
    /// It goes to the endpoint with this index although all slots are taken there: it begins as soon as one frees.
    BindAhead(usize),
    /// There is no endpoint any more that it may go to.
    NoEndpoint,
    /// It would most likely be late.
    TooLate,
}

impl<C: Candidate> PoolView<'_, C> {
    /// Binds a request that comes when the queue is empty: if there is too little time to wait for a better
    /// endpoint, to the best free one.
    pub fn bind_now(
        &self,
        (deadline, relative_cost): (Time, RelativeCost),
        excluded: impl Fn(&C) -> bool,
        rng: &mut Rng,
    ) -> Binding {
        let now = self.context.now;
        let odds = &self.context.memory.odds;
        // Without time to spare it does not go behind others, wherever there is room for that.
        let time_budget =
            odds.is_known().then(|| TimeBudget::new(deadline.since(now), relative_cost));
        let mut view = self.on(time_budget);
        // Where waiting has cost no request anything, nothing else is checked: that would take time.
        if odds.is_known() && odds.has_been_strained() {
            let prospects = self.prospects(None, rng);
            if prospects.are_known() && prospects.is_outclassed(deadline.since(now), relative_cost)
            {
                return Binding::Wait;
            }
            view.time_budget = prospects.time_budget(deadline, now, relative_cost);
        }
        let binding = view.bind(&excluded, 0, rng);
        let can_wait = |rng: &mut Rng| {
            let prospects = view.prospects(None, rng);
            let patience = deadline.since(now);
            prospects.capacity().wait(0).saturating_add(prospects.reserve(patience, relative_cost))
                <= patience
        };
        if binding != Binding::Wait || self.policy != Policy::Adaptive || can_wait(rng) {
            return binding;
        }
        view.with(Policy::LeastCost).bind(excluded, 0, rng)
    }

    /// [`PoolView::bind_now`] with a slow start over this `window`; `began` says since when an endpoint has been
    /// in rotation.
    pub fn bind_now_with_slow_start(
        &self,
        (window, began): (Duration, impl Fn(&C) -> Time),
        time_budget: (Time, RelativeCost),
        excluded: impl Fn(&C) -> bool,
        rng: &mut Rng,
    ) -> Binding {
        if let Some(slow_start) = SlowStart::draw(window, self.context.now, rng) {
            let shut = |it: &C| excluded(it) || slow_start.passes_over(began(it));
            // A decision takes a turn, so it is not tried for endpoints that are not there. With no other
            // endpoint free, the new request does better than a wait.
            if !self.endpoints.iter().all(shut)
                && let Binding::Bind(index) = self.bind_now(time_budget, shut, rng)
            {
                return Binding::Bind(index);
            }
        }
        self.bind_now(time_budget, excluded, rng)
    }

    /// Binds a second attempt, which may not wait: to an endpoint that is free and not `excluded`, unless
    /// requests are `waiting` for it. Those that wait for a better endpoint do not want a free one.
    pub fn bind_hedge(
        &self,
        waiting: usize,
        excluded: impl Fn(&C) -> bool,
        rng: &mut Rng,
    ) -> Option<usize> {
        if waiting > 0 && self.policy != Policy::Adaptive {
            return None;
        }
        let excluded =
            |endpoint: &C| excluded(endpoint) || (waiting > 0 && !self.is_free(endpoint.load()));
        // The best endpoint may be worth waiting for, and an avoided one worth exploring; but this request
        // is late.
        let binding = match self.policy {
            Policy::Adaptive | Policy::LeastCost => {
                self.with(Policy::LeastCost).compare(&excluded, 0, Exploration::Forbidden, rng)
            }
            _ => self.bind(excluded, 0, rng),
        };
        match binding {
            Binding::Bind(index) => Some(index),
            Binding::Wait | Binding::NoEndpoint => None,
        }
    }

    /// Whether a request that joins the queue now can be done in time.
    ///
    /// # Errors
    /// It can't; a retry may be worthwhile after this time.
    pub fn can_meet_deadline<T>(
        &self,
        queue: &FairQueue<T>,
        entry: &Entry,
        rng: &mut Rng,
    ) -> Result<(), Duration> {
        let patience = entry.deadline.since(self.context.now);
        let seconds = patience.as_secs_f64() / entry.relative_cost.get();
        let prospects = self.prospects(Some(seconds), rng);
        let capacity = prospects.capacity();
        if prospects.are_known() && prospects.is_outclassed(patience, entry.relative_cost) {
            return Err(capacity.drained_in(queue.len().max(1)));
        }
        self.context.memory.waits(self.sent_ahead(rng) + queue.len() as f64 + 1.0);
        if queue.is_empty() {
            return Ok(());
        }
        let reserve = prospects.reserve(patience, entry.relative_cost);
        let is_in_time = |ahead: usize| capacity.wait(ahead).saturating_add(reserve) <= patience;
        // Where not even the first in the queue can be sure, its position says nothing: one that comes later and
        // has more time left goes before it.
        let has_chance =
            || prospects.has_chance(patience, entry.relative_cost) || prospects.may_doubt();
        let ahead = queue.ahead_of(entry);
        if is_in_time(ahead) || (prospects.are_known() && !is_in_time(0) && has_chance()) {
            return Ok(());
        }
        prospects.strain();
        if capacity.may_serve(ahead, patience.saturating_sub(reserve)) {
            return Ok(());
        }
        Err(capacity.drained_in(queue.len()))
    }

    /// The next request to be bound, if any; `tried` gives the endpoints that each was sent to already.
    pub fn next<T>(
        &self,
        queue: &FairQueue<T>,
        tried: impl Fn(&T, &C) -> bool,
        rng: &mut Rng,
    ) -> Option<(Position, Dispatch)> {
        let first = queue.first()?;
        let prospects = self.prospects(None, rng);
        if prospects.is_lost(&first.0, queue.len() > 1) {
            prospects.strain();
            return Some((first.0, Dispatch::TooLate));
        }
        let first = prospects.choose(queue, first);
        let bind = |position: &Position, item: &T, ahead: usize, rng: &mut Rng| {
            let time_budget = prospects.time_budget(
                position.deadline(),
                position.since(),
                position.relative_cost(),
            );
            let view = self.with_key(position.key());
            let binding = view.on(time_budget).bind(|endpoint| tried(item, endpoint), ahead, rng);
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
        let others = queue.iter().take(MAX_SCANNED).filter(|(position, _)| *position != first.0);
        for (position, item) in std::iter::once(first).chain(others) {
            match bind(&position, item, 0, rng) {
                Binding::Bind(index) => return Some((position, Dispatch::Bind(index))),
                Binding::NoEndpoint => return Some((position, Dispatch::NoEndpoint)),
                // It has tried the free endpoints, or they are of no use to it; the next one may take them.
                Binding::Wait if prospects.is_strained() => {}
                Binding::Wait if self.endpoints.iter().any(|it| tried(item, it)) => {}
                Binding::Wait => break,
            }
        }
        if self.policy != Policy::Adaptive {
            return None;
        }
        // The first request does better to wait; the last one may do better to take the free endpoint.
        if let Some((position, item)) = queue.last().filter(|_| queue.len() > 1)
            && let Binding::Bind(index) = bind(&position, item, queue.len() - 1, rng)
        {
            return Some((position, Dispatch::Bind(index)));
        }
        let budget = |position: &Position| {
            prospects.time_budget(position.deadline(), position.since(), position.relative_cost())
        };
        self.next_ahead(queue, first, tried, budget, rng)
    }

    /// Sends a request to a busy endpoint, where no useful one is free and an idle slot would cost more.
    fn next_ahead<T>(
        &self,
        queue: &FairQueue<T>,
        first: (Position, &T),
        tried: impl Fn(&T, &C) -> bool,
        budget: impl Fn(&Position) -> Option<TimeBudget>,
        rng: &mut Rng,
    ) -> Option<(Position, Dispatch)> {
        let sample = Sample::at(self.endpoints, &|_| false, self.freed, &self.context, rng);
        let ahead = self.ahead(sample.indices(), queue.len())?;
        let at = ahead.before.min(queue.len() - 1).min(MAX_BEFORE);
        let (position, item) = if at == 0 { first } else { queue.iter().nth(at)? };
        let endpoint = &self.endpoints[ahead.index];
        let goes = self.on(budget(&position)).suits(endpoint.load()) && !tried(item, endpoint);
        goes.then_some((position, Dispatch::BindAhead(ahead.index)))
    }
}
