//! The generator: slots that each carry one request at a time, and a clock that feeds them.
//!
//! In an open loop the arrivals decide. A *slot* is a connection (or one of the streams of an HTTP/2
//! connection); an arrival goes to an idle slot, to a new one while there may be more, or waits in a
//! bounded queue. In a closed loop every slot feeds itself. Each generating thread has its own
//! single-threaded runtime, its own slots, its own share of the arrivals and its own [`Record`]:
//! nothing is shared while the clock runs but the index of closed-loop requests.

use super::connection_slot::{ConnectionSlot, Job};
use crate::connection::ask::code_of;
use crate::connection::{Answer, Connection, Connections};
use crate::corpus::check::Check;
use crate::corpus::{Corpus, Draw};
use crate::plan::arrivals::Arrivals;
use crate::plan::{Loop, Plan};
use crate::report::fault_window::FaultWindows;
use crate::report::outcome::{Failure, Finished, Outcome};
use crate::report::record::{Interval, Record};
use crate::timer::Timer;
use forebay_protocol::grpc::Code;
use forebay_protocol::header::{ENDPOINT, REASON, VARIANT};
use http::HeaderName;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Arrivals that may wait for a connection, in one thread. Further ones are lost, and the run says so.
pub const MAX_QUEUED: usize = 100_000;
/// Arrivals that are dispatched before answers are looked at again.
const BURST: usize = 64;
/// Pause of a closed-loop slot that got no connection, so that it does not spin.
const CONNECT_PAUSE: Duration = Duration::from_millis(10);
/// Interval at which a thread's figures go into the progress line.
const LIVE_PERIOD: Duration = Duration::from_millis(200);
/// Bounds of the time between two looks at the deadlines of requests under way.
const MIN_WATCH_INTERVAL: Duration = Duration::from_millis(1);
const MAX_WATCH_INTERVAL: Duration = Duration::from_millis(20);
/// Tasks that run between two looks at the sockets and the timer. tokio's default of 61 would let
/// a due arrival wait for 61 answers to be handled.
const EVENT_INTERVAL: u32 = 8;

/// The part of a run that all threads share.
#[derive(Debug)]
pub struct ActiveRun {
    /// The plan.
    pub plan: Arc<Plan>,
    /// The requests.
    pub corpus: Arc<Corpus>,
    /// Moment 0.
    pub start: Instant,
    /// True: start nothing new.
    pub stop: watch::Receiver<bool>,
    /// Index of the next closed-loop request.
    pub index: AtomicU64,
    /// Figures for the progress line, where there is one.
    pub live: Option<Mutex<Interval>>,
}

/// Generates load in this thread until the run is over; `thread` counts from 0.
///
/// # Errors
/// The thread's runtime or timer can't be made: out of file descriptors.
pub fn generate(run: Arc<ActiveRun>, thread: usize) -> io::Result<Record> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .event_interval(EVENT_INTERVAL)
        .build_local(tokio::runtime::LocalOptions::default())?;
    runtime.block_on(async move {
        let engine = Rc::new(Engine::new(run, thread));
        tokio::task::spawn_local(watch_deadlines(Rc::clone(&engine)));
        match &engine.run.plan.load {
            Loop::Open(source) => {
                let arrivals = source.arrivals(engine.run.plan.seed);
                engine.dispatch.borrow_mut().feed = Some(Feed::new(&engine.run, thread, arrivals));
                pace(&engine).await?;
            }
            Loop::Closed => {
                for _ in 0..engine.max_slots {
                    engine.add_slot(None);
                }
            }
        }
        engine.finished().await;
        Ok(engine.into_record())
    })
}

/// One thread's generator.
struct Engine {
    run: Arc<ActiveRun>,
    max_slots: usize,
    dispatch: RefCell<Dispatch>,
    record: RefCell<Record>,
    /// For the progress line: what has not been shown yet, and when it was last shown.
    live: RefCell<(Interval, Instant)>,
    slots: RefCell<Vec<Rc<ConnectionSlot>>>,
    opened: Cell<u64>,
    in_flight: Cell<u64>,
    /// Set when all slots are gone.
    done: tokio::sync::Notify,
}

/// Arrivals, idle slots and the queue between them.
struct Dispatch {
    /// Arrivals still to come; `None` in a closed loop and after the last one.
    feed: Option<Feed>,
    connections: Connections,
    idle: Vec<Rc<ConnectionSlot>>,
    slots: usize,
    queue: VecDeque<Job>,
}

/// This thread's share of the arrivals: every n-th.
struct Feed {
    arrivals: Arrivals,
    index: u64,
    skip: u64,
    limit: u64,
    next: Option<Job>,
}

impl Feed {
    fn new(run: &ActiveRun, thread: usize, arrivals: Arrivals) -> Self {
        let skip = run.plan.threads as u64;
        let limit = run.plan.limit.unwrap_or(u64::MAX);
        let mut feed = Self { arrivals, index: 0, skip, limit, next: None };
        feed.advance_to(thread as u64);
        feed
    }

    /// Makes the arrival with this index the next one.
    fn advance_to(&mut self, index: u64) {
        let skipped = index - self.index;
        let at = (0..skipped).try_for_each(|_| self.arrivals.next().map(|_| ()));
        let at = at.and_then(|()| self.arrivals.next()).filter(|_| index < self.limit);
        self.index = index + 1;
        let intended = at.map(Duration::from_nanos);
        self.next = intended.map(|intended| Job { index, intended, taken: None });
    }

    /// Takes the next arrival if it is due.
    fn due(&mut self, now: Duration) -> Option<Job> {
        let job = self.next.filter(|job| job.intended <= now)?;
        self.advance_to(job.index + self.skip);
        Some(job)
    }
}

/// Feeds an open loop: sleeps to the next arrival, to a few ten microseconds.
async fn pace(engine: &Rc<Engine>) -> io::Result<()> {
    let mut timer = Timer::new()?;
    let mut stop = engine.run.stop.clone();
    while !*stop.borrow() {
        let next = engine.dispatch_due();
        let Some(next) = next else { break };
        if next <= engine.now() || engine.run.plan.busy {
            // Late, or meant to be never late: the sockets get their turn, then go on.
            tokio::task::yield_now().await;
            continue;
        }
        tokio::select! {
            biased;
            waited = timer.wait_until(engine.run.start + next) => waited?,
            _ = stop.wait_for(|stop| *stop) => break,
        }
    }
    engine.end_of_arrivals();
    Ok(())
}

impl Engine {
    fn new(run: Arc<ActiveRun>, thread: usize) -> Self {
        let plan = &run.plan;
        let share =
            |total: usize| total / plan.threads + usize::from(thread < total % plan.threads);
        let connections = share(plan.connections);
        let dispatch = Dispatch {
            feed: None,
            connections: Connections::new(plan.target.protocol, connections),
            idle: Vec::new(),
            slots: 0,
            queue: VecDeque::new(),
        };
        Self {
            max_slots: connections * plan.streams,
            dispatch: RefCell::new(dispatch),
            record: RefCell::new(Record {
                fault_windows: FaultWindows::new(&plan.borders()),
                ..Record::default()
            }),
            live: RefCell::new((Interval::default(), run.start)),
            slots: RefCell::default(),
            opened: Cell::new(0),
            in_flight: Cell::new(0),
            done: tokio::sync::Notify::new(),
            run,
        }
    }

    /// Time since the start of the run, 0 before it.
    fn now(&self) -> Duration {
        Instant::now().saturating_duration_since(self.run.start)
    }

    /// Hands out the arrivals that are due, a burst at most; says when the next one is.
    fn dispatch_due(self: &Rc<Self>) -> Option<Duration> {
        for _ in 0..BURST {
            let now = self.now();
            let mut dispatch = self.dispatch.borrow_mut();
            let feed = dispatch.feed.as_mut()?;
            let Some(mut job) = feed.due(now) else {
                return feed.next.map(|job| job.intended);
            };
            if let Some(slot) = dispatch.idle.pop() {
                drop(dispatch);
                slot.assign(job);
            } else if dispatch.slots < self.max_slots {
                drop(dispatch);
                self.add_slot(Some(job));
            } else if dispatch.queue.len() < MAX_QUEUED {
                job.taken = Some(now);
                dispatch.queue.push_back(job);
            } else {
                drop(dispatch);
                let (intended, outcome) = (job.intended, Outcome::Unsent);
                let (taken, sent, done) = (now, now, now);
                let (bytes_out, bytes_in) = (0, 0);
                self.finish(&Finished {
                    intended,
                    taken,
                    sent,
                    done,
                    outcome,
                    bytes_out,
                    bytes_in,
                });
            }
        }
        self.dispatch.borrow().feed.as_ref()?.next.map(|job| job.intended)
    }

    /// Nothing comes any more: idle slots go home, busy ones when the queue is empty.
    fn end_of_arrivals(&self) {
        let mut dispatch = self.dispatch.borrow_mut();
        dispatch.feed = None;
        let idle = std::mem::take(&mut dispatch.idle);
        drop(dispatch);
        for slot in idle {
            slot.close();
        }
    }

    fn add_slot(self: &Rc<Self>, first: Option<Job>) {
        let mut dispatch = self.dispatch.borrow_mut();
        dispatch.slots += 1;
        let connection = dispatch.connections.make();
        let engine = Rc::clone(self);
        tokio::task::spawn_local(async move {
            engine.slot(connection, first).await;
            engine.dispatch.borrow_mut().slots -= 1;
            engine.done.notify_one();
        });
    }

    /// The life of a slot: one job after the other.
    async fn slot(self: &Rc<Self>, mut connection: Connection, first: Option<Job>) {
        let mut job = first;
        let slot = Rc::new(ConnectionSlot::default());
        self.slots.borrow_mut().push(Rc::clone(&slot));
        loop {
            let next = match (job.take(), &self.run.plan.load) {
                (Some(job), _) => Some(job),
                (None, Loop::Open(_)) => self.next_job(&slot, &mut connection).await,
                (None, Loop::Closed) => self.own_job().await,
            };
            let Some(next) = next else { return };
            let failed = self.perform(&slot, &mut connection, next).await;
            if failed && matches!(self.run.plan.load, Loop::Closed) {
                tokio::time::sleep(CONNECT_PAUSE).await;
            }
        }
    }

    /// The open loop's next job for a slot that has become free.
    async fn next_job(
        &self,
        slot: &Rc<ConnectionSlot>,
        connection: &mut Connection,
    ) -> Option<Job> {
        {
            let mut dispatch = self.dispatch.borrow_mut();
            if let Some(job) = dispatch.queue.pop_front() {
                return Some(job);
            }
            // Without arrivals to come there is nothing to wait for.
            dispatch.feed.as_ref()?;
            dispatch.idle.push(Rc::clone(slot));
        }
        connection.idle(slot.next()).await
    }

    /// The closed loop's next job, until the time is up.
    async fn own_job(&self) -> Option<Job> {
        let early = self.run.start.saturating_duration_since(Instant::now());
        if !early.is_zero() {
            tokio::time::sleep(early).await;
        }
        let plan = &self.run.plan;
        let intended = self.now();
        if intended >= plan.length() || *self.run.stop.borrow() {
            return None;
        }
        let index = self.run.index.fetch_add(1, Ordering::Relaxed);
        (index < plan.limit.unwrap_or(u64::MAX)).then_some(Job { index, intended, taken: None })
    }

    /// Makes one request and records how it went; says whether there was no connection.
    async fn perform(
        self: &Rc<Self>,
        slot: &ConnectionSlot,
        connection: &mut Connection,
        job: Job,
    ) -> bool {
        let sent = self.now();
        let draw = self.run.corpus.draw(job.index);
        self.began();
        let deadline = self.run.plan.timeout + job.intended;
        let result = match () {
            // Nothing is sent for a request whose time was up while it waited for a connection.
            () if deadline <= sent => Err(Failure::Timeout),
            () => self.exchange(slot, connection, draw, deadline).await,
        };
        let done = self.now();
        self.in_flight.set(self.in_flight.get() - 1);
        let bytes_in = result.as_ref().map_or(0, |answer| answer.length);
        let outcome = match result {
            Ok(answer) => self.judge(draw, &answer),
            Err(failure) => {
                connection.reset();
                Outcome::Failed(failure)
            }
        };
        self.finish(&Finished {
            intended: job.intended,
            taken: job.taken.unwrap_or(sent),
            sent,
            done,
            outcome,
            bytes_out: draw.length(),
            bytes_in,
        });
        // Answers that come in thick must not keep due arrivals waiting.
        self.dispatch_due();
        matches!(outcome, Outcome::Failed(failure) if failure.is_of_connect())
    }

    async fn exchange(
        &self,
        slot: &ConnectionSlot,
        connection: &mut Connection,
        draw: Draw<'_>,
        deadline: Duration,
    ) -> Result<Answer, Failure> {
        let target = &self.run.plan.target;
        match slot.until(deadline, connection.connect(target, &self.opened)).await {
            Some(connected) => connected?,
            None => return Err(Failure::ConnectTimeout),
        }
        let keep = draw.kind.check.keep();
        let exchange = connection.exchange(target, &self.opened, draw.request(), keep);
        slot.until(deadline, exchange).await.unwrap_or(Err(Failure::Timeout))
    }

    fn judge(&self, draw: Draw<'_>, answer: &Answer) -> Outcome {
        let header =
            |name: HeaderName| answer.headers.get(name).and_then(|value| value.to_str().ok());
        self.record.borrow_mut().share(header(VARIANT), header(ENDPOINT));
        let checked = || match draw.check(answer) {
            Ok(()) => Outcome::Ok(answer.status),
            Err(what) => Outcome::Wrong(answer.status, what),
        };
        match answer.status {
            200..=299 if draw.kind.check == Check::Grpc => match code_of(answer) {
                Some(Code::Ok) => checked(),
                Some(code) => Outcome::refused_call(code, header(REASON)),
                None => Outcome::Wrong(answer.status, "wrong_answer_no_grpc_status"),
            },
            200..=299 => checked(),
            status => Outcome::refused(status, header(REASON)),
        }
    }

    fn began(&self) {
        let in_flight = self.in_flight.get() + 1;
        self.in_flight.set(in_flight);
        let mut record = self.record.borrow_mut();
        record.max_in_flight = record.max_in_flight.max(in_flight);
    }

    fn finish(&self, finished: &Finished) {
        self.record.borrow_mut().finish(self.run.plan.timeline, finished);
        let Some(shared) = &self.run.live else { return };
        let (live, shown) = &mut *self.live.borrow_mut();
        live.finish(finished);
        if shown.elapsed() >= LIVE_PERIOD
            && let Ok(mut shared) = shared.try_lock()
        {
            shared.merge(live);
            *live = Interval::default();
            *shown = Instant::now();
        }
    }

    async fn finished(&self) {
        while self.dispatch.borrow().slots > 0 {
            self.done.notified().await;
        }
    }

    fn into_record(self: Rc<Self>) -> Record {
        let mut record = self.record.take();
        record.connections = self.opened.get();
        record
    }
}

/// Tells slots when their time is up. A timer of its own for every request would cost a system call
/// each; a look at all slots every few milliseconds is enough for time-outs.
async fn watch_deadlines(engine: Rc<Engine>) {
    let step = (engine.run.plan.timeout / 20).clamp(MIN_WATCH_INTERVAL, MAX_WATCH_INTERVAL);
    loop {
        tokio::time::sleep(step).await;
        let now = engine.now();
        for slot in engine.slots.borrow().iter() {
            slot.check(now);
        }
    }
}
