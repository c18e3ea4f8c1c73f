//! The fixed pool of threads that runs models.
//!
//! As many as there are cores by default: more would only take turns, and each would hold the
//! memory of its run. They never touch a socket, and the I/O threads never run a model.

use crate::app::App;
use crate::refusal::Refusal;
use crate::repository::Version;
use forebay_protocol::Reason;
use forebay_protocol::oip::Tensor;
use forebay_tract::RunError;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Stack of an executor: tract recurses little, its kernels keep tiles on the stack.
const STACK: usize = 8 << 20;

/// One inference that waits or runs.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) version: Arc<Version>,
    pub(crate) inputs: Vec<Tensor>,
    /// Set when nobody waits for the outputs any more.
    pub(crate) cancelled: Arc<AtomicBool>,
    /// Not to be started after this.
    pub(crate) deadline: Option<Instant>,
    /// When it was put in line.
    pub(crate) queued: Instant,
    pub(crate) reply: oneshot::Sender<Result<Vec<Tensor>, Refusal>>,
}

impl Job {
    fn is_pointless(&self) -> bool {
        self.cancelled.load(Relaxed) || self.deadline.is_some_and(|at| Instant::now() >= at)
    }
}

/// Starts the pool; its threads end when the queue is closed.
///
/// # Errors
/// A thread can't be started.
pub(crate) fn start(app: &Arc<App>) -> std::io::Result<()> {
    for index in 0..app.options.executors {
        let app = Arc::clone(app);
        let work = move || {
            while let Some(job) = app.queue.pop(|| app.load.started()) {
                let served = serve(&job);
                // Before the reply: whoever has the answer finds it counted as done.
                app.load.finished(served.as_ref().and_then(|served| served.took));
                if let Some(served) = served {
                    // Fails if the caller has gone: then nobody is there to tell.
                    drop(job.reply.send(served.result));
                }
            }
        };
        std::thread::Builder::new()
            .name(format!("executor-{index}"))
            .stack_size(STACK)
            .spawn(work)?;
    }
    Ok(())
}

/// What became of a job that was started.
struct Served {
    result: Result<Vec<Tensor>, Refusal>,
    /// Time in the engine, if it was completed.
    took: Option<Duration>,
}

/// Runs one job. `None`: whoever waited has gone, or is answered by its own timer.
fn serve(job: &Job) -> Option<Served> {
    if job.is_pointless() {
        return None;
    }
    let started = Instant::now();
    let version = &job.version;
    version.queue_seconds.record(started.duration_since(job.queued).as_secs_f64());
    let result = run(job);
    let took = result.is_ok().then(|| started.elapsed());
    if let Some(took) = took {
        version.execute_seconds.record(took.as_secs_f64());
    }
    Some(Served { result, took })
}

fn run(job: &Job) -> Result<Vec<Tensor>, Refusal> {
    let version = &job.version;
    let outputs = version
        .engine
        .run(&job.inputs, &|| job.is_pointless())
        .map_err(|error| refusal(&error, version))?;
    if !version.config.allow_non_finite {
        refuse_non_finite(&outputs, version)?;
    }
    Ok(outputs)
}

fn refusal(error: &RunError, version: &Version) -> Refusal {
    let reason = match error {
        RunError::Input(_) | RunError::Shape(_) => Reason::InvalidInput,
        // If the caller had gone instead, nobody reads it.
        RunError::Cancelled => return Refusal::late(),
        RunError::Engine(_) | RunError::Panic(_) => Reason::InferenceFailed,
    };
    Refusal::new(reason, format!("model \"{}\": {error}", version.model))
}

fn refuse_non_finite(outputs: &[Tensor], version: &Version) -> Result<(), Refusal> {
    let found = outputs.iter().find_map(|output| Some((output, output.data.first_non_finite()?)));
    let Some((output, index)) = found else { return Ok(()) };
    let (model, name) = (&version.model, &output.name);
    Err(Refusal::new(
        Reason::InferenceFailed,
        format!(
            "model \"{model}\" gave NaN or an infinity in output \"{name}\" at element {index}; \
             allow_non_finite in its model.toml lets them through"
        ),
    ))
}
