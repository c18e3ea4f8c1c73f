//! The fixed pool of threads that runs models.
//!
//! As many as there are cores by default: more would only take turns, and each would hold the
//! memory of its run. They never touch a socket, and the I/O threads never run a model.
//!
//! A fault of a model must not cost more than its own batch. A panic is caught; a run beyond the model's
//! `max_execution` is stopped between two nodes of its graph; and if a single node never ends, the
//! [watchdog](crate::scheduler::watchdog) gives the thread up, answers its clients and starts another.
//! Requests that fail together are tried again alone, once, so that one bad row does not spoil its
//! neighbours.

use crate::allocator::{give_back, share};
use crate::refusal::Refusal;
use crate::repository::Repository;
use crate::repository::command::Command;
use crate::repository::version::Version;
use crate::scheduler::job::{Client, Job};
use crate::scheduler::queue::{Account, Batch, Queue};
use crate::scheduler::watchdog::{Entry, Seat, Watchdog};
use crate::telemetry::load_report::LoadMonitor;
use forebay_engine::{Remote, RunError, Watch};
use forebay_process::limit::CLIENT;
use forebay_protocol::Reason;
use forebay_protocol::oip::Tensor;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Stack of an executor: engines recurse little, their kernels keep tiles on the stack; a run that is
/// lent the executor stands on top of another.
const STACK: usize = 8 << 20;
/// Minimum time between two checks of a run whether another job needs its executor.
const LEND_PAUSE: Duration = Duration::from_micros(100);

/// The pool, and the parts of the worker that its threads use.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) queue: Arc<Queue<Job>>,
    pub(crate) watchdog: Arc<Watchdog>,
    pub(crate) load: Arc<LoadMonitor>,
    pub(crate) repository: Arc<Repository>,
    /// Threads that it has.
    pub(crate) executors: usize,
    /// Whether each thread keeps to one core.
    pub(crate) pin_executors: bool,
    /// Bytes that all models may take; `None`: no bound.
    pub(crate) models_memory: Option<u64>,
}

impl Pool {
    /// Starts all threads, which end when the queue is closed.
    ///
    /// # Errors
    /// A thread can't be started.
    pub(crate) fn start(self: &Arc<Self>) -> std::io::Result<()> {
        (0..self.executors).try_for_each(|index| self.start_one(index))
    }

    /// Starts one thread.
    ///
    /// # Errors
    /// It can't be started.
    pub(crate) fn start_one(self: &Arc<Self>, index: usize) -> std::io::Result<()> {
        let pool = Arc::clone(self);
        let work = move || {
            if pool.pin_executors {
                pin(index);
            }
            let seat = Arc::new(Seat::new(index));
            while !seat.is_lost() {
                // Only a mistake of ours could panic out here; the thread is worth more than the batch.
                let turn = || {
                    let batch = pool.queue.pop(give_back)?;
                    serve(&pool, &seat, batch, true);
                    share();
                    Some(())
                };
                match catch_unwind(AssertUnwindSafe(turn)) {
                    Ok(Some(())) => {}
                    Ok(None) => break,
                    Err(_) => tracing::error!(executor = index, "batch lost to a panic"),
                }
            }
        };
        let name = format!("executor-{index}");
        std::thread::Builder::new().name(name).stack_size(STACK).spawn(work).map(drop)
    }
}

/// Binds this thread to one of the cores that the process may use.
fn pin(index: usize) {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let pinned = sched_getaffinity(None).and_then(|allowed| {
        let cores = (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core)).collect::<Vec<_>>();
        let mut one = CpuSet::new();
        if let Some(&core) = cores.get(index % cores.len().max(1)) {
            one.set(core);
        }
        sched_setaffinity(None, &one)
    });
    if let Err(error) = pinned {
        tracing::warn!(executor = index, %error, "can't pin executor to a core");
    }
}

/// Runs a batch and answers who waits for it. Time that was lent to others is not its own.
fn serve(pool: &Pool, seat: &Arc<Seat>, batch: Batch<Job>, may_lend: bool) {
    let Batch { mut jobs, most, account } = batch;
    let started = Instant::now();
    let clients = jobs.iter().map(|job| Arc::clone(&job.client)).collect();
    let version = match jobs.first() {
        Some(job) => Arc::clone(&job.version),
        None => return,
    };
    let limit = version.config.max_execution;
    let entry = pool.watchdog.enter(seat, clients, account, limit);
    jobs.retain(|job| !job.is_pointless(started));
    for job in &jobs {
        job.client.started.store(true, Relaxed);
        version.stats.queued(started.duration_since(job.queued));
    }
    let run = Run { pool, seat, version: &version, entry: &entry, account, may_lend, most };
    let counts = pool.queue.counts();
    let (results, took) = run.all(&jobs);
    // Before the replies: a client that has the answer finds it counted as done.
    let mine = pool.watchdog.leave(&entry);
    if mine {
        pool.queue.finished(&account, took.as_secs_f64());
        if results.iter().any(Result::is_ok) {
            let best = version.loaded.curve().best();
            pool.load.served(took, counts.waiting + counts.executing, best);
        }
    }
    // The model is already free, if it was the last.
    let replies: Vec<_> = jobs.into_iter().map(|job| job.reply).collect();
    drop(version);
    for (reply, result) in replies.into_iter().zip(results) {
        // Fails if the client has gone.
        drop(reply.send(result));
    }
}

/// One batch on one executor.
struct Run<'a> {
    pool: &'a Pool,
    seat: &'a Arc<Seat>,
    version: &'a Arc<Version>,
    entry: &'a Entry,
    account: Account,
    may_lend: bool,
    most: usize,
}

type Outcome = Result<Vec<Tensor>, Refusal>;

impl Run<'_> {
    /// Outcomes in the order of the jobs, and the time in the engine.
    fn all(&self, jobs: &[Job]) -> (Vec<Outcome>, Duration) {
        let together: Vec<_> = jobs.iter().collect();
        match self.engine(&together) {
            (Ok(outcomes), took) => (outcomes, took),
            (Err(error), took) if jobs.len() == 1 || error == Failure::Stopped => {
                (jobs.iter().map(|_| Err(error.refusal(self.version))).collect(), took)
            }
            (Err(error), mut took) => {
                let (model, count) = (&self.version.model, jobs.len());
                tracing::warn!(
                    target: CLIENT,
                    model, count, %error,
                    "batch failed, trying each of its requests alone"
                );
                self.version.stats.retried(count);
                let alone = jobs.iter().map(|job| {
                    if job.is_pointless(Instant::now()) {
                        return Err(Refusal::late());
                    }
                    let (outcome, own) = self.engine(&[job]);
                    took += own;
                    let outcome = outcome.map(|mut outcomes| outcomes.swap_remove(0));
                    outcome.unwrap_or_else(|error| Err(error.refusal(self.version)))
                });
                (alone.collect(), took)
            }
        }
    }

    /// Says once for each version that some shapes do not run in its own build; the rest is counted.
    fn tell_of_fallback(&self) {
        let Some(fallback) = self.version.loaded.take_fallback() else { return };
        let (model, version) = (&self.version.model, &self.version.number);
        let (shapes, why) = (fallback.shapes, fallback.why);
        let build = self.version.loaded.build();
        tracing::warn!(model, version, build, ?shapes, why, "shapes run in the plain build");
    }

    /// Accounts for plans that were compiled. Where models now take too much together, this one forgets
    /// plans; if that is not enough, others have to go.
    fn recount(&self) {
        let (pool, version) = (self.pool, self.version);
        version.recount();
        let excess = |bound| pool.repository.memory().saturating_sub(bound);
        let excess = || pool.models_memory.map_or(0, excess);
        if excess() > 0 {
            version.loaded.release(usize::try_from(excess()).unwrap_or(usize::MAX));
            version.recount();
        }
        if excess() > 0 {
            let (model, number) = (version.model.clone(), version.number.clone());
            // If the loader has too much to do, the next plan tells it again.
            drop(pool.repository.ask(Command::Grown { model, number }));
        }
        give_back();
    }

    fn engine(&self, jobs: &[&Job]) -> (Result<Vec<Outcome>, Failure>, Duration) {
        if jobs.is_empty() {
            return (Ok(Vec::new()), Duration::ZERO);
        }
        let watch = BatchWatch {
            run: self,
            jobs,
            started: Instant::now(),
            lent: Cell::new(Duration::ZERO),
            asked: Cell::new(None),
            is_over: Arc::default(),
        };
        let inputs: Vec<&[Tensor]> = jobs.iter().map(|job| job.inputs.as_slice()).collect();
        let loaded = &self.version.loaded;
        let before = loaded.memory_changes();
        let result = loaded.run(&inputs, self.most, &watch);
        let took = watch.took(Instant::now());
        if loaded.memory_changes() != before {
            self.recount();
        }
        self.tell_of_fallback();
        let rows = jobs.iter().map(|job| job.rows).sum();
        let result = match result {
            Ok(outputs) => {
                self.version.stats.executed(rows, jobs.len(), took);
                let check = |outputs| refuse_non_finite(outputs, self.version);
                Ok(outputs.into_iter().map(check).collect())
            }
            Err(RunError::Cancelled) if watch.is_over.load(Relaxed) => {
                self.version.stats.overran();
                Err(Failure::Overrun)
            }
            Err(RunError::Cancelled) => Err(Failure::Stopped),
            Err(error) => Err(Failure::Engine(error)),
        };
        (result, took)
    }
}

/// Why a run gave nothing.
#[derive(Debug, PartialEq, thiserror::Error)]
enum Failure {
    /// No client waits for it any more.
    #[error("its client no longer waits")]
    Stopped,
    #[error("it ran longer than max_execution")]
    Overrun,
    #[error("{0}")]
    Engine(RunError),
}

impl Failure {
    fn refusal(&self, version: &Version) -> Refusal {
        let reason = match self {
            // If the clients had gone instead, the text is not read.
            Self::Stopped => return Refusal::late(),
            Self::Engine(RunError::Input(_) | RunError::Shape(_)) => Reason::InvalidInput,
            Self::Overrun | Self::Engine(_) => Reason::InferenceFailed,
        };
        Refusal::new(reason, format!("model \"{}\": {self}", version.model))
    }
}

/// Asked between the nodes of a batch's graph.
struct BatchWatch<'a> {
    run: &'a Run<'a>,
    jobs: &'a [&'a Job],
    started: Instant,
    /// Time that the executor was lent to others.
    lent: Cell<Duration>,
    /// Time of the last check whether another job needs it.
    asked: Cell<Option<Instant>>,
    /// Stopped because it took too long.
    is_over: Arc<AtomicBool>,
}

impl BatchWatch<'_> {
    fn took(&self, now: Instant) -> Duration {
        now.duration_since(self.started).saturating_sub(self.lent.get())
    }

    /// Runs what is short and behind its share, if there is any.
    fn lend(&self, now: Instant) {
        let run = self.run;
        if !run.may_lend || self.asked.get().is_some_and(|asked| now - asked < LEND_PAUSE) {
            return;
        }
        self.asked.set(Some(now));
        let Some(batch) = run.pool.queue.preempt(&run.account) else { return };
        run.version.stats.lent();
        serve(run.pool, run.seat, batch, false);
        let away = now.elapsed();
        self.lent.set(self.lent.get() + away);
        run.pool.watchdog.extend(run.entry, away);
    }
}

impl Watch for BatchWatch<'_> {
    fn stop(&self) -> bool {
        let now = Instant::now();
        if self.took(now) > self.run.version.config.max_execution {
            self.is_over.store(true, Relaxed);
        }
        if self.is_over.load(Relaxed) || self.jobs.iter().all(|job| job.is_pointless(now)) {
            return true;
        }
        self.lend(now);
        false
    }

    fn elsewhere(&self) -> Duration {
        self.lent.get()
    }

    fn remote(&self) -> Option<Remote> {
        let until = self.started + self.lent.get() + self.run.version.config.max_execution;
        let is_over = Arc::clone(&self.is_over);
        let clients = self.jobs.iter().map(|job| (Arc::clone(&job.client), job.deadline));
        let clients: Vec<_> = clients.collect();
        Some(Arc::new(move || {
            let now = Instant::now();
            if now > until {
                is_over.store(true, Relaxed);
            }
            let is_pointless = |(client, deadline): &(Arc<Client>, Option<Instant>)| {
                client.has_no_use(*deadline, now)
            };
            is_over.load(Relaxed) || clients.iter().all(is_pointless)
        }))
    }
}

fn refuse_non_finite(outputs: Vec<Tensor>, version: &Version) -> Outcome {
    if version.config.allow_non_finite {
        return Ok(outputs);
    }
    let found = outputs.iter().find_map(|output| Some((output, output.data.first_non_finite()?)));
    let Some((output, index)) = found else { return Ok(outputs) };
    let (model, name) = (&version.model, &output.name);
    Err(Refusal::new(
        Reason::InferenceFailed,
        format!(
            "model \"{model}\" gave NaN or an infinity in output \"{name}\" at element {index}; \
             allow_non_finite in its model.toml lets them through"
        ),
    ))
}
