//! Late binding: requests wait here, in the proxy, until an endpoint can take them.
//!
//! Decisions live in `forebay_routing` ([`PoolView::bind`], [`FairQueue`]); this file applies them to
//! events: a request comes, an endpoint becomes free, a client leaves, health changes. Each of these may
//! change which request can be bound, and none may be missed, or a request would wait beside a free
//! endpoint. So a request that frees an endpoint checks the line at once (the guard [`Bound`] does so when
//! it is dropped), a request that joins checks once more after that, and while any request waits a ticker
//! checks for changes by time alone, such as a report that grew old.

use super::endpoint::{Endpoint, EndpointState};
use super::rotation::Rotation;
use super::steps::Steps;
use crate::clock;
use forebay_protocol::{Priority, metric};
use forebay_routing::decision::Trace;
use forebay_routing::pick::Context;
use forebay_routing::{
    Binding, Dispatch, Enqueued, Entry, FairQueue, InFlight, PoolView, Position, RelativeCost, Rng,
    StandInTime,
};
use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed, Ordering::SeqCst, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, oneshot};
use tokio::time::sleep_until;

/// A timer may be late by this part of the time left, or by [`MAX_TIMER_SLACK`].
const TIMER_SLACK_SHARE: u32 = 10;
const MAX_TIMER_SLACK: Duration = Duration::from_millis(250);

thread_local! {
    static RNG: RefCell<Rng> = RefCell::new(Rng::new(fastrand::u64(..)));
}

/// Runs `f` with this thread's random number generator.
pub fn with_rng<T>(f: impl FnOnce(&mut Rng) -> T) -> T {
    RNG.with_borrow_mut(f)
}

/// Requests from the front of the line among which the next one is looked for.
const MAX_NEXT: usize = 64;

/// The line of one pool. Outlives snapshots.
#[derive(Debug)]
pub struct Queue {
    line: Mutex<FairQueue<Ticket>>,
    /// The length of the line, to be read without the lock.
    count: AtomicUsize,
    /// The current endpoints, for requests that free one.
    current: Mutex<Weak<Rotation>>,
    /// Wakes the ticker.
    joined: Arc<Notify>,
    /// Number of waiting requests whose decisions are kept.
    traced: Arc<AtomicUsize>,
}

/// The record of a waiting request.
#[derive(Debug)]
struct Ticket {
    reply: oneshot::Sender<Result<Bound, Rejected>>,
    tried: Vec<Arc<EndpointState>>,
    /// The endpoints as they were when the request was routed, in case that its pool is in no snapshot
    /// any more.
    rotation: Arc<Rotation>,
    /// If its decisions are kept.
    traced: Option<Traced>,
}

/// Counts a waiting request whose decisions are kept until it is dropped.
#[derive(Debug)]
struct Traced {
    steps: Steps,
    count: Arc<AtomicUsize>,
}

impl Traced {
    fn new(steps: Steps, count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Relaxed);
        Self { steps, count: Arc::clone(count) }
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Relaxed);
    }
}

/// A request that is bound to an endpoint: it counts as in flight there until this is dropped.
#[derive(Debug)]
pub struct Bound {
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    guard: Option<InFlight>,
    queue: Option<Arc<Queue>>,
}

/// A request's demand on a pool.
#[derive(Debug)]
pub struct BindRequest {
    /// Its priority.
    pub priority: Priority,
    /// Its client, as a number.
    pub client: u64,
    /// Time by which it must be answered.
    pub deadline: Instant,
    /// The key of a sticky pool, as a number, if there is one.
    pub key: Option<u64>,
    /// The work that it is.
    pub relative_cost: RelativeCost,
    /// Endpoints that it was sent to already.
    pub tried: Vec<Arc<EndpointState>>,
    /// The decisions on it, if they are kept.
    pub steps: Option<Steps>,
    /// The variant that stands in for the one that it asks for, if one does.
    pub stand_in: Option<StandInTime>,
}

/// Why a request is not bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejected {
    /// No endpoint is in rotation that it was not sent to already.
    NoEndpoint,
    /// The queue is full of requests that are at least as urgent.
    Full(Duration),
    /// It made way for one that is more urgent.
    Displaced(Duration),
    /// It can't be answered in time: too many wait before it.
    DeadlineUnreachable(Duration),
    /// Its deadline came while it waited.
    DeadlinePassed,
}

impl Queue {
    pub(super) fn new(joined: Arc<Notify>) -> Self {
        Self {
            line: Mutex::new(FairQueue::new(0)),
            count: AtomicUsize::new(0),
            current: Mutex::default(),
            joined,
            traced: Arc::default(),
        }
    }

    /// Number of waiting requests.
    pub fn count(&self) -> usize {
        self.count.load(Relaxed)
    }

    /// Number of waiting requests of each priority.
    pub fn counts(&self) -> [(Priority, usize); 3] {
        let line = self.lock();
        Priority::ALL.map(|priority| (priority, line.len_of(class(priority))))
    }

    /// These are the endpoints from now on.
    pub(super) fn renew(&self, rotation: &Arc<Rotation>) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(rotation);
    }

    fn lock(&self) -> MutexGuard<'_, FairQueue<Ticket>> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something has changed: `freed` has room, or anything else if `None`. Binds who can be bound.
    pub fn changed(self: &Arc<Self>, freed: Option<&EndpointState>) {
        // A request that joins counts itself before it looks for room, and room is made before this check
        // for waiting requests: one of both sees the other.
        fence(SeqCst);
        if self.count.load(Relaxed) == 0 {
            return;
        }
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        let left_over = || self.lock().first().map(|(_, ticket)| Arc::clone(&ticket.rotation));
        let Some(rotation) = current.or_else(left_over) else { return };
        let mut freed = freed.and_then(|freed| rotation.place(freed));
        while let Some((ticket, outcome)) = self.next(&rotation, freed.take()) {
            // A request whose client has left gives its place to the next.
            if let Err(Ok(mut bound)) = ticket.reply.send(outcome) {
                bound.queue = None;
            }
        }
    }

    /// Takes one out of the line whose wait is over, and what becomes of it.
    fn next(
        self: &Arc<Self>,
        rotation: &Rotation,
        freed: Option<usize>,
    ) -> Option<(Ticket, Result<Bound, Rejected>)> {
        let mut line = self.lock();
        // Under load some request of a long line is always recorded; only these can be next.
        let is_traced = self.traced.load(Relaxed) > 0
            && line.iter().take(MAX_NEXT).any(|(_, ticket)| ticket.traced.is_some());
        let trace = is_traced.then(Trace::default);
        let view = rotation.view(freed, trace.as_ref());
        let (place, next) = with_rng(|rng| view.next(&line, Ticket::has_tried, rng))?;
        let outcome = match next {
            // A request that took the room meanwhile checks again when it leaves.
            Dispatch::Bind(index) => Ok(Bound::claim(self, &view, index)?),
            Dispatch::BindAhead(index) => Ok(Bound::claim_ahead(self, &view, index)?),
            Dispatch::NoEndpoint => Err(Rejected::NoEndpoint),
            Dispatch::TooLate => Err(Rejected::DeadlinePassed),
        };
        let ticket = match outcome {
            Err(_) => line.remove(&place),
            Ok(_) => line.serve(&place),
        }?;
        self.count.store(line.len(), Relaxed);
        if let (Some(trace), Some(traced)) = (trace, &ticket.traced) {
            // Others before it were looked at as well, and went nowhere.
            let last = trace.take().into_iter().rfind(|decision| decision.endpoint().is_some());
            traced.steps.add(last);
        }
        Some((ticket, outcome))
    }

    /// Leaves the line, if it is still there.
    fn leave(&self, place: &Position) -> bool {
        let mut line = self.lock();
        let was_there = line.remove(place).is_some();
        self.count.store(line.len(), Relaxed);
        was_there
    }
}

impl Ticket {
    fn has_tried(&self, endpoint: &Arc<Endpoint>) -> bool {
        self.tried.iter().any(|tried| Arc::ptr_eq(tried, &endpoint.state))
    }
}

impl Rotation {
    /// The pool as the routing core sees it now.
    pub(super) fn view<'a>(
        &'a self,
        freed: Option<usize>,
        trace: Option<&'a Trace>,
    ) -> PoolView<'a, Arc<Endpoint>> {
        let context = Context {
            now: clock::now(),
            report_ttl: self.config.report_ttl,
            memory: &self.pick_memory,
            key: None,
            ring: Some(&self.ring),
            trace,
        };
        let (policy, handoff_delay) = (self.config.policy, self.config.queue.handoff_delay);
        PoolView {
            policy,
            endpoints: &self.ready,
            freed,
            handoff_delay,
            context,
            time_budget: None,
        }
    }
}

impl Queue {
    /// Binds a request to an endpoint of `rotation`: at once if one is free, else as soon as one is. A
    /// client that goes away (drops this) leaves the line.
    ///
    /// # Errors
    /// Why it is not bound.
    pub async fn bind(
        self: &Arc<Self>,
        rotation: &Arc<Rotation>,
        asks: BindRequest,
    ) -> Result<Bound, Rejected> {
        if self.count() == 0
            && let Some(outcome) = self.bind_now(rotation, &asks)
        {
            return outcome;
        }
        let deadline = asks.deadline;
        let gives_way_at = self.gives_way_at(rotation, &asks);
        let (place, answer) = self.join(rotation, asks)?;
        let waiting =
            Waiting { queue: self, place, pool: &rotation.config.name, since: Instant::now() };
        // Room may have been made between the look at it and the count.
        self.changed(None);
        let outcome = tokio::select! {
            biased;
            outcome = answer => outcome.unwrap_or(Err(Rejected::NoEndpoint)),
            () = sleep_until(gives_way_at.unwrap_or(deadline).into()) => Err(match gives_way_at {
                Some(_) => Rejected::DeadlineUnreachable(self.drained_in(rotation)),
                None => Rejected::DeadlinePassed,
            }),
        };
        drop(waiting);
        outcome
    }

    /// Binds to an endpoint that is free and not among those `tried`, if there is one and no request waits
    /// for it.
    pub fn bind_free(
        self: &Arc<Self>,
        rotation: &Rotation,
        tried: impl Fn(&Arc<Endpoint>) -> bool,
    ) -> Option<Bound> {
        let (view, waiting) = (rotation.view(None, None), self.count());
        let index = with_rng(|rng| view.bind_hedge(waiting, tried, rng))?;
        Bound::claim(self, &view, index)
    }

    /// The time at which a request that joins the line now leaves it for the variant that stands in.
    fn gives_way_at(&self, rotation: &Rotation, asks: &BindRequest) -> Option<Instant> {
        let terms = (clock::at(asks.deadline), asks.relative_cost);
        let (view, stand_in) = (rotation.view(None, None), asks.stand_in?);
        let until = clock::instant(with_rng(|rng| view.waits_until(terms, stand_in, rng))?);
        // Timers are late on a busy machine, and a moment later not even the variant would be in time.
        let left = asks.deadline.saturating_duration_since(Instant::now());
        let slack = (left / TIMER_SLACK_SHARE).min(MAX_TIMER_SLACK);
        Some(until.checked_sub(slack).unwrap_or(until))
    }

    /// Time until those that wait now have been bound.
    fn drained_in(&self, rotation: &Rotation) -> Duration {
        with_rng(|rng| rotation.view(None, None).capacity(rng)).drained_in(self.count())
    }

    /// The time that a request needs which comes to this pool now. `None`: too little is known.
    pub fn stand_in_time(
        &self,
        rotation: &Rotation,
        relative_cost: RelativeCost,
    ) -> Option<StandInTime> {
        let view = rotation.view(None, None);
        with_rng(|rng| view.stand_in_time(self.count(), relative_cost, rng))
    }

    /// Binds a request that has no other before it, if that is the best for it.
    fn bind_now(
        self: &Arc<Self>,
        rotation: &Rotation,
        asks: &BindRequest,
    ) -> Option<Result<Bound, Rejected>> {
        let tried = |endpoint: &Arc<Endpoint>| {
            asks.tried.iter().any(|tried| Arc::ptr_eq(tried, &endpoint.state))
        };
        let trace = asks.steps.as_ref().map(|_| Trace::default());
        let view = rotation.view(None, trace.as_ref()).with_key(asks.key);
        let terms = (clock::at(asks.deadline), asks.relative_cost);
        let gently = (rotation.config.slow_start, |it: &Arc<Endpoint>| it.state.ready_since());
        let binding = with_rng(|rng| view.bind_now_with_slow_start(gently, terms, tried, rng));
        if let (Some(steps), Some(trace)) = (&asks.steps, &trace) {
            steps.add(trace.take());
        }
        match binding {
            Binding::Bind(index) => Bound::claim(self, &view, index).map(Ok),
            Binding::NoEndpoint => Some(Err(Rejected::NoEndpoint)),
            Binding::Wait => None,
        }
    }

    /// Joins the line, if there is hope.
    fn join(
        &self,
        rotation: &Arc<Rotation>,
        asks: BindRequest,
    ) -> Result<(Position, oneshot::Receiver<Result<Bound, Rejected>>), Rejected> {
        let class = class(asks.priority);
        let entry = Entry {
            class,
            since: clock::now(),
            deadline: clock::at(asks.deadline),
            client: asks.client,
            key: asks.key,
            relative_cost: asks.relative_cost,
        };
        let view = rotation.view(None, None);
        let (reply, answer) = oneshot::channel();
        let mut line = self.lock();
        line.resize(rotation.config.queue.size);
        // One that was sent already has waited before, and nothing else is known to be faster.
        if asks.tried.is_empty() {
            with_rng(|rng| view.can_meet_deadline(&line, &entry, rng))
                .map_err(Rejected::DeadlineUnreachable)?;
        }
        let after = with_rng(|rng| view.capacity(rng)).drained_in(line.len());
        let traced = asks.steps.map(|steps| Traced::new(steps, &self.traced));
        let rotation = Arc::clone(rotation);
        let joined = line.enqueue(&entry, Ticket { reply, tried: asks.tried, rotation, traced });
        let before = self.count.swap(line.len(), SeqCst);
        drop(line);
        if before == 0 {
            self.joined.notify_one();
        }
        match joined {
            Enqueued::Full(_) => Err(Rejected::Full(after)),
            Enqueued::Queued(place) => Ok((place, answer)),
            Enqueued::Displaced(place, other) => {
                // It may have left meanwhile.
                let _ = other.reply.send(Err(Rejected::Displaced(after)));
                Ok((place, answer))
            }
        }
    }
}

/// The class of a priority in the line.
const fn class(priority: Priority) -> u8 {
    match priority {
        Priority::High => 0,
        Priority::Normal => 1,
        Priority::Batch => 2,
    }
}

/// A request in the line; dropping it takes it out.
struct Waiting<'a> {
    queue: &'a Queue,
    place: Position,
    pool: &'a str,
    since: Instant,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.queue.leave(&self.place);
        metric::proxy::QUEUE_SECONDS.with([self.pool]).record(self.since.elapsed());
    }
}

impl Bound {
    /// Counts a request in at an endpoint in rotation, if the room that was found there is left.
    fn claim(queue: &Arc<Queue>, view: &PoolView<'_, Arc<Endpoint>>, index: usize) -> Option<Self> {
        let endpoint = Arc::clone(view.endpoints.get(index)?);
        let guard = view.enter(&endpoint.state.load)?;
        Some(Self { endpoint, guard: Some(guard), queue: Some(Arc::clone(queue)) })
    }

    /// The same at one that is busy and had better not idle.
    fn claim_ahead(
        queue: &Arc<Queue>,
        view: &PoolView<'_, Arc<Endpoint>>,
        index: usize,
    ) -> Option<Self> {
        let endpoint = Arc::clone(view.endpoints.get(index)?);
        let guard = view.enter_ahead(&endpoint.state.load)?;
        Some(Self { endpoint, guard: Some(guard), queue: Some(Arc::clone(queue)) })
    }

    /// Counts a long-lived use, such as a connection: it does not wait in the queue.
    pub fn long_lived(endpoint: &Arc<Endpoint>) -> Self {
        let guard = Some(endpoint.state.long_lived.enter());
        Self { endpoint: Arc::clone(endpoint), guard, queue: None }
    }

    /// Ends with an answer that came after `took` and tells how fast the endpoint is; how long
    /// something lasts tells nothing.
    pub fn answered(mut self, took: Duration) {
        if self.queue.is_some()
            && let Some(guard) = self.guard.take()
        {
            guard.answered(took, clock::now());
        }
    }

    /// Ends `after` it began, which was too soon to say anything of how much the endpoint can take.
    pub fn cut_short(mut self, after: Duration) {
        if self.queue.is_some()
            && let Some(guard) = self.guard.take()
        {
            guard.cut_short(after, clock::now());
        }
    }

    /// Ends `after` it began without an answer, since its client no longer waits.
    pub fn late(mut self, after: Duration) {
        if self.queue.is_some()
            && let Some(guard) = self.guard.take()
        {
            guard.late(after, clock::now());
        }
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        self.guard = None;
        if let Some(queue) = self.queue.take() {
            queue.changed(Some(&self.endpoint.state));
        }
    }
}

#[cfg(test)]
mod tests;
