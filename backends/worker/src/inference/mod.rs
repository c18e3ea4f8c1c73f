//! One inference, from the request to the answer, over any protocol.
//!
//! Every transport calls [`infer`] and brings two functions of its own: one reads the request once it is
//! known that the model can take it, and one writes the answer. All between is here and the same for all:
//! the version, the deadline, the priority, the checks, the queue, the count.
//!
//! Two guards make sure that nothing is lost on any way out, a client's disappearance included,
//! which merely drops this future: [`Ticket`] takes the job out of the line or stops it, and
//! [`Tally`] counts the outcome.

pub(crate) mod blocking;
pub(crate) mod embedding;
pub(crate) mod validate;

use crate::inference::blocking::{INLINE, INLINE_BINARY, bounded, off_io};
use crate::memory::Share;
use crate::refusal::Refusal;
use crate::repository::version::Version;
use crate::scheduler::job::{Client, Job};
use crate::scheduler::queue::Rank;
use crate::state::App;
use crate::telemetry::metrics::NO_MODEL;
use crate::telemetry::stats::Stage;
use forebay_protocol::oip::{InferRequest, InferResponse, SchedulingParameters, Tensor, classify};
use forebay_protocol::{ModelContent, Priority, Reason, header};
use http::{HeaderMap, HeaderValue};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Longest deadline that is kept; a longer one is as good as none.
const MAX_DEADLINE: Duration = Duration::from_secs(24 * 3600);

/// The terms that a transport knows before it has read the tensors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// Arrival of the request; times are counted from here.
    pub(crate) arrived: Instant,
    /// After this, the client waits no longer.
    pub(crate) deadline: Option<Instant>,
    /// The priority that the client or the proxy stated in a header; it overrules the request's own
    /// parameter.
    pub(crate) priority: Option<Priority>,
}

impl Terms {
    /// A request that came now, without any terms.
    pub(crate) fn new() -> Self {
        Self { arrived: Instant::now(), deadline: None, priority: None }
    }

    /// The earlier of the present deadline and `timeout` after the arrival.
    pub(crate) fn within(&mut self, timeout: Duration) {
        let at = self.arrived + timeout.min(MAX_DEADLINE);
        self.deadline = Some(self.deadline.map_or(at, |deadline| deadline.min(at)));
    }
}

/// A request as it was read.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) request: InferRequest,
    /// The memory that it holds, given back once the outputs are there.
    pub(crate) share: Share,
    /// Time that reading took, once all of it had come.
    pub(crate) took: Duration,
}

/// The answer to be written.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The request without its inputs: the form of the outputs follows from it.
    pub(crate) request: InferRequest,
    /// The outputs that were asked for, in that order.
    pub(crate) response: InferResponse,
    /// The content of the model that has given them.
    pub(crate) content: ModelContent,
}

impl Answer {
    /// States the content of the model among the headers of the answer.
    pub(crate) fn state_content(content: ModelContent, headers: &mut HeaderMap) {
        // Hexadecimal digits: always a header value.
        if let Ok(value) = HeaderValue::try_from(content.to_string()) {
            headers.insert(header::MODEL_CONTENT, value);
        }
    }
}

/// Runs one inference of `model`, and counts it.
///
/// `terms` are what the transport's headers said, or why they make no sense, which is counted like
/// any other refusal. `read` is called once the version is known to be ready and to have a place in
/// its queue; `write` makes the transport's answer. Both end with the deadline.
///
/// # Errors
/// Everything that a client is told instead of an answer.
pub(crate) async fn infer<R, W, T>(
    app: &Arc<App>,
    (model, asked): (&str, Option<&str>),
    terms: Result<Terms, Refusal>,
    read: impl FnOnce(Arc<Version>) -> R,
    write: impl FnOnce(Answer) -> W,
) -> Result<T, Refusal>
where
    R: Future<Output = Result<Received, Refusal>>,
    W: Future<Output = Result<T, Refusal>>,
{
    let mut tally = Tally::new(app);
    let work = async {
        let version = &app.repository.acquire(model, asked).await?;
        tally.version = Some(Arc::clone(version));
        let terms = terms?;
        tally.arrived = terms.arrived;
        // One timer for all that follows: what has not started when it rings never will.
        bounded(terms.deadline, async {
            if app.queue.is_full(version.line.id()) {
                return Err(queue_full(version, &"the queue is full"));
            }
            let received = read(Arc::clone(version)).await?;
            let (request, response, input) = run(app, version, terms, received).await?;
            let begun = Instant::now();
            let content = app.repository.content(model, asked, version);
            let written = write(Answer { request, response, content }).await?;
            tally.spent = [input, begun.elapsed()];
            Ok(written)
        })
        .await
    };
    let result = work.await;
    tally.reason = result.as_ref().map_or_else(|refusal| refusal.reason.code(), |_| "ok");
    result
}

/// Runs tensors that the worker has made itself, and counts that like any inference.
///
/// # Errors
/// As of [`infer`].
pub(crate) async fn infer_rows(
    app: &Arc<App>,
    version: &Arc<Version>,
    terms: Terms,
    request: InferRequest,
) -> Result<Vec<Tensor>, Refusal> {
    let mut tally = Tally::new(app);
    tally.version = Some(Arc::clone(version));
    let share = Share::new(&app.memory);
    let received = Received { request, share, took: Duration::ZERO };
    let result = run(app, version, terms, received).await;
    tally.reason = result.as_ref().map_or_else(|refusal| refusal.reason.code(), |_| "ok");
    result.map(|(_, response, input)| {
        tally.spent[0] = input;
        response.outputs
    })
}

/// The request without its inputs, its answer, and the time that reading and checking took.
async fn run(
    app: &Arc<App>,
    version: &Arc<Version>,
    mut terms: Terms,
    received: Received,
) -> Result<(InferRequest, InferResponse, Duration), Refusal> {
    let Received { request, share, took } = received;
    let (request, check) = checked(version, request).await?;
    let own = SchedulingParameters::of(&request.parameters)?;
    if let Some(timeout) = own.timeout {
        terms.within(timeout);
    }
    terms.priority = terms.priority.or(own.priority);
    let (inputs, request) = take_inputs(request);
    let outputs = bounded(terms.deadline, submit(app, version, inputs, terms)).await?;
    drop(share);
    let response = classified(version, &request, respond(version, &request, outputs)).await?;
    Ok((request, response, took + check))
}

/// The request again, and the time that checking took.
async fn checked(
    version: &Arc<Version>,
    request: InferRequest,
) -> Result<(InferRequest, Duration), Refusal> {
    let size: usize = request.inputs.iter().map(|input| input.data.binary_len()).sum();
    let version = Arc::clone(version);
    let check = move || {
        let begun = Instant::now();
        validate::request(&request, &*version.loaded, &version)?;
        Ok((request, begun.elapsed()))
    };
    if size <= INLINE_BINARY { check() } else { off_io(check).await }
}

/// The inputs go to the executor; the rest is needed for the answer.
fn take_inputs(mut request: InferRequest) -> (Vec<Tensor>, InferRequest) {
    (std::mem::take(&mut request.inputs), request)
}

/// Puts the job in line and waits for its outputs.
async fn submit(
    app: &Arc<App>,
    version: &Arc<Version>,
    inputs: Vec<Tensor>,
    terms: Terms,
) -> Result<Vec<Tensor>, Refusal> {
    let (reply, mut outputs) = oneshot::channel();
    let (rows, form) = version.loaded.form(&inputs).map_err(|e| Refusal::input(e.to_string()))?;
    let least = version.loaded.least(&form);
    let client = Arc::new(Client::default());
    let job = Job {
        version: Arc::clone(version),
        inputs,
        rows,
        form,
        deadline: terms.deadline,
        queued: Instant::now(),
        client: Arc::clone(&client),
        reply,
    };
    let priority = terms.priority.unwrap_or_default();
    let pushed = app.queue.push(version.line.id(), priority, job);
    let rank = pushed.map_err(|error| queue_full(version, &error))?;
    let mut ticket = Ticket { app, version, rank, deadline: terms.deadline, client: Some(client) };
    // From then on even the fastest run would be too late: a job that still waits in line is withdrawn.
    let hopeless = terms.deadline.and_then(|at| at.checked_sub(least));
    let result = tokio::select! {
        biased;
        // The executor drops the job unanswered only if the deadline has passed.
        result = &mut outputs => result.unwrap_or_else(|_| Err(Refusal::late())),
        () = ticket.lost() => Err(Refusal::new(
            Reason::InferenceFailed,
            format!("model \"{}\": the run did not end and was given up", version.model),
        )),
        () = sleep_until(hopeless) => match app.queue.withdraw(version.line.id(), &rank) {
            Some(_) => return Err(Refusal::late()),
            None => tokio::select! {
                result = &mut outputs => result.unwrap_or_else(|_| Err(Refusal::late())),
                () = ticket.lost() => Err(Refusal::late()),
            },
        },
    };
    ticket.client = None;
    result
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

fn respond(version: &Version, request: &InferRequest, mut outputs: Vec<Tensor>) -> InferResponse {
    if !request.outputs.is_empty() {
        let wanted = |output: &Tensor| request.outputs.iter().position(|o| o.name == output.name);
        outputs.retain(|output| wanted(output).is_some());
        outputs.sort_by_key(wanted);
    }
    InferResponse {
        model_name: version.model.clone(),
        model_version: Some(version.number.clone()),
        id: request.id.clone(),
        outputs,
        ..InferResponse::default()
    }
}

/// The outputs, each as its largest elements where the client wants those.
async fn classified(
    version: &Arc<Version>,
    request: &InferRequest,
    mut response: InferResponse,
) -> Result<InferResponse, Refusal> {
    let mut wanted = Vec::new();
    for (index, output) in response.outputs.iter().enumerate() {
        wanted.extend(request.classes(&output.name)?.map(|most| (index, most)));
    }
    if wanted.is_empty() {
        return Ok(response);
    }
    let size: usize = wanted.iter().map(|&(i, _)| response.outputs[i].data.binary_len()).sum();
    let version = Arc::clone(version);
    let work = move || {
        let is_batch = version.loaded.max_batch().is_some();
        for (index, most) in wanted {
            let output = &mut response.outputs[index];
            let labels = version.labels.get(&output.name).map_or(&[][..], |labels| labels);
            *output = classify(output, is_batch, most, labels).ok_or_else(|| {
                let (name, shape) = (&output.name, &output.shape);
                let text =
                    format!("expected rows to classify in output \"{name}\", found {shape:?}");
                Refusal::input(text)
            })?;
        }
        Ok(response)
    };
    if size <= INLINE { work() } else { off_io(work).await }
}

fn queue_full(version: &Version, why: &dyn std::fmt::Display) -> Refusal {
    Refusal::new(Reason::QueueFull, format!("model \"{}\": {why}", version.model))
}

/// Takes the job out of the line, or stops it between two nodes of the graph, when its client has left.
struct Ticket<'a> {
    app: &'a App,
    version: &'a Version,
    rank: Rank,
    deadline: Option<Instant>,
    /// `None` once the executor has answered.
    client: Option<Arc<Client>>,
}

impl Ticket<'_> {
    /// Waits until the run is given up.
    async fn lost(&self) {
        match &self.client {
            Some(client) => client.lost.notified().await,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let Some(client) = &self.client else { return };
        client.left.store(true, Relaxed);
        drop(self.app.queue.withdraw(self.version.line.id(), &self.rank));
        let stage = if client.started.load(Relaxed) { Stage::Engine } else { Stage::Queue };
        let is_late = self.deadline.is_some_and(|at| Instant::now() >= at);
        self.version.stats.abandoned(stage, is_late);
    }
}

/// Counts the request when it is over, however it ends.
struct Tally<'a> {
    app: &'a App,
    version: Option<Arc<Version>>,
    arrived: Instant,
    /// On reading and checking, and on writing.
    spent: [Duration; 2],
    reason: &'static str,
}

impl<'a> Tally<'a> {
    fn new(app: &'a App) -> Self {
        let reason = Reason::ClientClosed.code();
        Self { app, version: None, arrived: Instant::now(), spent: Default::default(), reason }
    }
}

impl Drop for Tally<'_> {
    fn drop(&mut self) {
        match &self.version {
            Some(version) if self.reason == "ok" => {
                version.stats.answered(self.arrived.elapsed(), self.spent);
            }
            Some(version) => {
                version.stats.failed(self.arrived.elapsed());
                self.app.metrics.inference(&version.model, &version.number, self.reason);
            }
            None => self.app.metrics.inference(NO_MODEL, NO_MODEL, self.reason),
        }
    }
}
