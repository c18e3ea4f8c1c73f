//! A run from plan to report: bodies, threads, the progress line, Ctrl-C.

use super::engine::{self, ActiveRun};
use super::progress::{self, Progress};
use crate::connection::{self, ask};
use crate::corpus::{Corpus, RequestError};
use crate::fault::Processes;
use crate::plan::Plan;
use crate::report::record::{Interval, Record};
use crate::report::{Circumstances, FaultRecord, Report};
use crate::units::float;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use std::io;
use std::pin::pin;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

/// Between the start of the threads and moment 0, so that all are ready.
const START_DELAY: Duration = Duration::from_millis(20);
/// Between two looks whether the target answers.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Time that the target may take to accept the very first connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Time that a fault may go on after the last answer.
const FAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// Whether a run shows its progress, and how long it waits for the target.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Draw a progress line on standard error.
    pub progress: bool,
    /// Before the start, wait so long for the target to answer anything below status 500, and as long
    /// again for it to know the models.
    pub wait: Option<Duration>,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Threads, timers or descriptors could not be had.
    #[error("the generator could not start: {0}")]
    Start(#[from] io::Error),
    /// Requests could not be made.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// A program of the scenario does not run.
    #[error("{0}")]
    Process(String),
    /// The target accepts no connection.
    #[error("no connection to {0}: {1}")]
    Unreachable(String, String),
    /// Ctrl-C, twice.
    #[error("interrupted")]
    Interrupted,
    /// A fault of ours.
    #[error("a generating thread panicked")]
    Panicked,
}

/// Runs `plan` to its end (or to the first Ctrl-C) and reports.
///
/// # Errors
/// The target does not answer at all, the requests can't be made, or there are no threads to be had.
pub fn run(plan: Plan, options: Options) -> Result<Report, RunError> {
    raise_descriptor_limit();
    let plan = Arc::new(plan);
    let runtime: LocalRuntime =
        Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
    let (processes, corpus) = runtime.block_on(async {
        let processes = Processes::start(&plan.processes, &plan.base).await;
        let processes = processes.map_err(RunError::Process)?;
        reach(&plan, options.wait).await?;
        Ok::<_, RunError>((processes, corpus(&plan, options.wait).await?))
    })?;
    let (stop, stopped) = watch::channel(false);
    let run = Arc::new(ActiveRun {
        start: Instant::now() + START_DELAY,
        corpus: Arc::new(corpus),
        stop: stopped,
        index: AtomicU64::new(0),
        live: options.progress.then(Mutex::default),
        plan: Arc::clone(&plan),
    });
    let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (cpu, ticks) = (cpu_time(), Ticks::read());
    let (ended, ends) = mpsc::channel(plan.threads);
    let threads = spawn(&run, &ended)?;
    drop(ended);
    let (interrupted, faults) = runtime.block_on(async {
        let watched = watch_over(&run, &stop, ends, &processes).await;
        processes.end().await;
        watched
    })?;
    let mut record = Record::default();
    for thread in threads {
        record.merge(&thread.join().map_err(|_| RunError::Panicked)??);
    }
    let stolen = Ticks::read().stolen_since(ticks);
    let circumstances =
        Circumstances { started, cpu: cpu_time().saturating_sub(cpu), stolen, interrupted };
    Ok(Report::new(&plan, &record, &circumstances).with_faults(faults))
}

type Thread = JoinHandle<io::Result<Record>>;

fn spawn(run: &Arc<ActiveRun>, ended: &mpsc::Sender<()>) -> io::Result<Vec<Thread>> {
    (0..run.plan.threads)
        .map(|thread| {
            let run = Arc::clone(run);
            // Dropped when the thread ends, whichever way.
            let ended = ended.clone();
            std::thread::Builder::new().name(format!("load-{thread}")).spawn(move || {
                let _ended = ended;
                engine::generate(run, thread)
            })
        })
        .collect()
}

/// Moves the progress line, sees to the faults and listens for Ctrl-C until all threads have ended;
/// says whether it came, and what was done.
async fn watch_over(
    run: &ActiveRun,
    stop: &watch::Sender<bool>,
    mut ends: mpsc::Receiver<()>,
    processes: &Processes,
) -> Result<(bool, Vec<FaultRecord>), RunError> {
    let plan = &run.plan;
    let mut faults = pin!(processes.run_faults(&plan.faults, run.start + plan.timeline.warm_up));
    let mut done = None;
    let mut line = Progress::new(plan.timeline.warm_up, plan.length());
    let mut tick = tokio::time::interval(progress::PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut shown = Instant::now();
    let mut interrupted = false;
    loop {
        tokio::select! {
            _ = ends.recv() => break,
            all = &mut faults, if done.is_none() => done = Some(all),
            _ = tokio::signal::ctrl_c() => {
                if interrupted {
                    return Err(RunError::Interrupted);
                }
                interrupted = true;
                stop.send_replace(true);
            }
            _ = tick.tick(), if run.live.is_some() => {
                let last = run.live.as_ref().map(take).unwrap_or_default();
                line.show(run.start.elapsed(), &last, shown.elapsed());
                shown = Instant::now();
            }
        }
    }
    if run.live.is_some() {
        line.clear();
    }
    // The last fault may last as long as the run, and then needs a moment to be undone.
    if done.is_none() && !interrupted {
        done = tokio::time::timeout(FAULT_TIMEOUT, faults).await.ok();
    }
    Ok((interrupted, done.unwrap_or_default()))
}

fn take(live: &Mutex<Interval>) -> Interval {
    std::mem::take(&mut *live.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Fails now rather than with a report full of refused connections.
async fn reach(plan: &Plan, wait: Option<Duration>) -> Result<(), RunError> {
    let end = Instant::now() + wait.unwrap_or_default();
    loop {
        let what = match wait {
            None => connects(plan).await,
            Some(_) => answers(plan).await,
        };
        match what {
            Ok(()) => return Ok(()),
            Err(what) if Instant::now() >= end => {
                return Err(RunError::Unreachable(plan.target.to_string(), what));
            }
            Err(_) => tokio::time::sleep(POLL_INTERVAL).await,
        }
    }
}

/// Makes the requests; a model that is still being loaded is waited for, too.
async fn corpus(plan: &Plan, wait: Option<Duration>) -> Result<Corpus, RequestError> {
    let end = Instant::now() + wait.unwrap_or_default();
    loop {
        match Corpus::make(plan).await {
            Err(error) if error.is_of_metadata() && Instant::now() < end => {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            made => return made,
        }
    }
}

async fn connects(plan: &Plan) -> Result<(), String> {
    match tokio::time::timeout(CONNECT_TIMEOUT, connection::dial(&plan.target)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("timeout".to_owned()),
    }
}

async fn answers(plan: &Plan) -> Result<(), String> {
    ask::answers(&plan.target).await
}

/// A connection is a descriptor; the usual soft limit of 1,024 is not meant for servers and tools.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    // Where it is not allowed, the run says `connect_failed`.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

#[allow(clippy::cast_sign_loss, clippy::cast_possible_truncation, reason = "a clock from 0")]
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// CPU time of the whole machine in the kernel's ticks.
#[derive(Debug, Clone, Copy, Default)]
struct Ticks {
    all: u64,
    stolen: u64,
}

impl Ticks {
    /// The first line of `/proc/stat`; zeros where there is none.
    fn read() -> Self {
        let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let line = text.lines().next().unwrap_or_default();
        let ticks: Vec<u64> =
            line.split_whitespace().skip(1).take(8).map_while(|n| n.parse().ok()).collect();
        Self { all: ticks.iter().sum(), stolen: ticks.get(7).copied().unwrap_or(0) }
    }

    fn stolen_since(self, earlier: Self) -> f64 {
        match self.all.saturating_sub(earlier.all) {
            0 => 0.0,
            all => float(self.stolen.saturating_sub(earlier.stolen)) / float(all),
        }
    }
}
