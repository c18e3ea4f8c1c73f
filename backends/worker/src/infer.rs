//! One inference, from the request to the answer.
//!
//! Two guards make sure that nothing is lost on any way out, a caller's disappearance included,
//! which merely drops this future: [`Ticket`] takes the job out of the line or stops it, and
//! [`Tally`] counts the outcome.

use crate::app::{App, ModelPath};
use crate::body::{self, Encoding, Share};
use crate::check;
use crate::executor::Job;
use crate::metrics::NO_MODEL;
use crate::refusal::Refusal;
use crate::repository::Version;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use forebay_protocol::oip::{InferRequest, InferResponse, Tensor};
use forebay_protocol::{Reason, header as names};
use http::{HeaderMap, HeaderValue, header};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Bodies up to this many bytes are read on the I/O thread: about 0.3 ms of parsing.
const INLINE: usize = 64 << 10;
/// Longest deadline that is kept; a longer one is as good as none.
const MAX_DEADLINE: Duration = Duration::from_secs(24 * 3600);

/// `POST /v2/models/{model}[/versions/{version}]/infer`.
pub(crate) async fn infer(
    State(app): State<Arc<App>>,
    path: ModelPath,
    request: Request,
) -> Response {
    let mut tally = Tally { app: &app, version: None, reason: Reason::ClientClosed.code() };
    let result = answer(&app, &path, request, &mut tally).await;
    tally.reason = result.as_ref().map_or_else(|refusal| refusal.reason.code(), |_| "ok");
    result.unwrap_or_else(IntoResponse::into_response)
}

async fn answer(
    app: &Arc<App>,
    path: &ModelPath,
    request: Request,
    tally: &mut Tally<'_>,
) -> Result<Response, Refusal> {
    let arrived = Instant::now();
    let version = app.repository.version(&path.model, path.version.as_deref())?;
    tally.version = Some(Arc::clone(version));
    version.ready()?;
    let deadline = header_deadline(request.headers(), arrived)?;
    // One timer for all that follows: what has not started when it rings never will.
    bounded(deadline, async {
        let (request, share) = receive(app, version, request).await?;
        let own = parameter_deadline(&request, arrived)?;
        let deadline = [deadline, own].into_iter().flatten().min();
        let (inputs, request) = take_inputs(request);
        let outputs = bounded(own, submit(app, version, inputs, deadline)).await?;
        drop(share);
        respond(version, &request, outputs).await
    })
    .await
}

/// Reads, inflates, parses and checks the request.
async fn receive(
    app: &Arc<App>,
    version: &Arc<Version>,
    request: Request,
) -> Result<(InferRequest, Share), Refusal> {
    if app.queue.is_full(version.line) {
        return Err(queue_full(version, &"the queue is full"));
    }
    let (parts, body) = request.into_parts();
    let encoding = Encoding::of(&parts.headers)?;
    let json_len = json_length(&parts.headers)?;
    let limit = app.options.max_body;
    let mut share = Share::new(&app.memory);
    let body = body::read(body, limit, app.options.body_timeout, &mut share).await?;
    let inline = body.len() <= INLINE && encoding == Encoding::Identity;
    let version = Arc::clone(version);
    let prepare = move || {
        let body = body::inflate(body, encoding, limit, &mut share)?;
        Ok((parse(&body, json_len, &version)?, share))
    };
    if inline { prepare() } else { off_io(prepare).await }
}

fn parse(
    body: &Bytes,
    json_len: Option<usize>,
    version: &Version,
) -> Result<InferRequest, Refusal> {
    let engine = version.ready()?;
    let request = match json_len {
        Some(0) => check::raw_request(engine, body)?,
        _ => InferRequest::parse(body, json_len)?,
    };
    check::check(&request, engine, version)?;
    Ok(request)
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
    deadline: Option<Instant>,
) -> Result<Vec<Tensor>, Refusal> {
    let (reply, outputs) = oneshot::channel();
    let cancelled = Arc::new(AtomicBool::new(false));
    let job = Job {
        version: Arc::clone(version),
        inputs,
        cancelled: Arc::clone(&cancelled),
        deadline,
        queued: Instant::now(),
        reply,
    };
    let id = app.queue.push(version.line, job).map_err(|error| queue_full(version, &error))?;
    let _ticket = Ticket { app, version, id, cancelled };
    // The executor drops the job unanswered only if the deadline has passed.
    outputs.await.unwrap_or_else(|_| Err(Refusal::late()))
}

async fn respond(
    version: &Version,
    request: &InferRequest,
    mut outputs: Vec<Tensor>,
) -> Result<Response, Refusal> {
    if !request.outputs.is_empty() {
        let wanted = |output: &Tensor| request.outputs.iter().position(|o| o.name == output.name);
        outputs.retain(|output| wanted(output).is_some());
        outputs.sort_by_key(wanted);
    }
    let mut binary = HashSet::new();
    for output in &outputs {
        if request.wants_binary(&output.name)? {
            binary.insert(output.name.clone());
        }
    }
    let size: usize = outputs.iter().map(|output| output.data.binary_len()).sum();
    let response = InferResponse {
        model_name: version.model.clone(),
        model_version: Some(version.number.clone()),
        id: request.id.clone(),
        outputs,
        ..InferResponse::default()
    };
    let encode = move || Ok(response.encode(|output| binary.contains(&output.name))?);
    let encoded = if size <= INLINE { encode() } else { off_io(encode).await }?;
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(encoded.content_type()));
    if let Some(length) = encoded.json_len {
        headers.insert(names::INFERENCE_HEADER_CONTENT_LENGTH, HeaderValue::from(length));
    }
    Ok((headers, encoded.body).into_response())
}

/// Runs CPU-heavy work on the runtime's blocking pool.
async fn off_io<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Refusal::new(Reason::Internal, error.to_string())))
}

async fn bounded<T>(
    deadline: Option<Instant>,
    work: impl Future<Output = Result<T, Refusal>>,
) -> Result<T, Refusal> {
    let Some(deadline) = deadline else { return work.await };
    tokio::time::timeout_at(deadline.into(), work).await.unwrap_or_else(|_| Err(Refusal::late()))
}

fn queue_full(version: &Version, why: &dyn std::fmt::Display) -> Refusal {
    Refusal::new(Reason::QueueFull, format!("model \"{}\": {why}", version.model))
}

fn header_deadline(headers: &HeaderMap, arrived: Instant) -> Result<Option<Instant>, Refusal> {
    let ms = header_number(headers, &names::REQUEST_DEADLINE, "milliseconds")?;
    Ok(ms.map(|ms| arrived + Duration::from_millis(ms as u64).min(MAX_DEADLINE)))
}

/// The protocol's own `timeout`, in microseconds; 0 means none.
fn parameter_deadline(
    request: &InferRequest,
    arrived: Instant,
) -> Result<Option<Instant>, Refusal> {
    let micros = request.parameters.count("timeout")?.filter(|&micros| micros > 0);
    Ok(micros.map(|micros| arrived + Duration::from_micros(micros).min(MAX_DEADLINE)))
}

fn json_length(headers: &HeaderMap) -> Result<Option<usize>, Refusal> {
    header_number(headers, &names::INFERENCE_HEADER_CONTENT_LENGTH, "bytes")
}

fn header_number(
    headers: &HeaderMap,
    name: &http::HeaderName,
    unit: &str,
) -> Result<Option<usize>, Refusal> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    let number = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    number.map(Some).ok_or_else(|| {
        Refusal::request(format!("expected header {name} in whole {unit}, found {value:?}"))
    })
}

/// Takes the job out of the line, or stops it between two nodes of the graph, when nobody waits.
struct Ticket<'a> {
    app: &'a App,
    version: &'a Version,
    id: u64,
    cancelled: Arc<AtomicBool>,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.cancelled.store(true, Relaxed);
        drop(self.app.queue.withdraw(self.version.line, self.id));
    }
}

/// Counts the request when it is over, however it ends.
struct Tally<'a> {
    app: &'a App,
    version: Option<Arc<Version>>,
    reason: &'static str,
}

impl Drop for Tally<'_> {
    fn drop(&mut self) {
        match &self.version {
            Some(version) if self.reason == "ok" => version.answered.increment(1),
            Some(version) => {
                self.app.metrics.inference(&version.model, &version.number, self.reason);
            }
            None => self.app.metrics.inference(NO_MODEL, NO_MODEL, self.reason),
        }
    }
}
