//! OpenAI's embeddings over HTTP: `POST /v1/embeddings`, `GET /v1/models`.
//!
//! Each input is a request of its own to the engine, so that inputs of all clients form batches, the
//! executors are shared as always, and a client that leaves stops what has not begun. So many of one
//! call are in line at once that the executors stay busy, not so many that others find the line full.

use crate::api::{rest, terms};
use crate::inference::blocking::{INLINE, bounded, off_io};
use crate::inference::embedding::Embedder;
use crate::inference::{self, Answer, Terms};
use crate::memory::Share;
use crate::refusal::{Refusal, json};
use crate::repository::version::Version;
use crate::state::App;
use crate::telemetry::metrics::NO_MODEL;
use axum::extract::{Path, Request, State as Shared};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use forebay_protocol::Reason;
use forebay_protocol::header::ROW_TOKENS;
use forebay_protocol::metric::worker as metric;
use forebay_protocol::openai::{
    Embedding, EmbeddingsRequest, EmbeddingsResponse, EncodingFormat, ErrorBody, Input, ModelList,
    ModelObject, Numbers, Usage,
};
use futures_util::{StreamExt, TryStreamExt, stream};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use std::sync::Arc;

/// Bytes of text that are tokenized on the I/O thread: about 0.3 ms of work.
const INLINE_TEXT: usize = 1 << 10;
/// Inputs whose tokens are stated one by one: a header must not become long.
const MAX_STATED: usize = 512;

/// A refusal in OpenAI's form.
pub(crate) struct Refused(Refusal);

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self(refusal)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let Refusal { reason, message } = self.0.clone();
        // Headers and log as of any other refusal.
        let mut response = self.0.into_response();
        let body = serde_json::to_vec(&ErrorBody::new(reason, message)).unwrap_or_default();
        response.headers_mut().remove(header::CONTENT_LENGTH);
        *response.body_mut() = body.into();
        response
    }
}

/// `GET /v1/models`: those that embed and can answer.
pub(crate) async fn models(Shared(app): Shared<Arc<App>>) -> Response {
    let served = app.repository.served();
    let embedding = served.iter().filter(|(_, model)| {
        let mut versions = model.versions.values();
        model.config.embedding.is_some() && versions.any(|entry| entry.state.can_answer())
    });
    let data = embedding.map(|(name, _)| object(name)).collect();
    json(StatusCode::OK, &ModelList { object: "list".to_owned(), data })
}

/// `GET /v1/models/{model}`.
pub(crate) async fn model(
    Shared(app): Shared<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Response, Refused> {
    let (model, version) = named(&name);
    app.repository.ready(model, version)?;
    Ok(json(StatusCode::OK, &object(&name)))
}

/// The model and the version that a name means: `MODEL`, or `MODEL:VERSION` with a number or label,
/// since there is no other place for them. No model of a repository has a colon in its name.
fn named(name: &str) -> (&str, Option<&str>) {
    name.split_once(':').map_or((name, None), |(model, version)| (model, Some(version)))
}

fn object(name: &str) -> ModelObject {
    ModelObject {
        id: name.to_owned(),
        object: "model".to_owned(),
        created: 0,
        owned_by: "forebay".to_owned(),
    }
}

/// `POST /v1/embeddings`.
pub(crate) async fn embeddings(
    Shared(app): Shared<Arc<App>>,
    request: Request,
) -> Result<Response, Refused> {
    let (parts, body) = request.into_parts();
    let work = async {
        let terms = terms::of(&parts.headers)?;
        bounded(terms.deadline, answer(&app, terms, rest::body(&app, &parts, body))).await
    };
    Ok(work.await?)
}

async fn answer(
    app: &Arc<App>,
    terms: Terms,
    body: impl Future<Output = Result<(bytes::Bytes, Share), Refusal>>,
) -> Result<Response, Refusal> {
    let prepared = prepare(app, body).await.inspect_err(|(model, refusal)| {
        let (model, version) = match model {
            Some(version) => (version.model.as_str(), version.number.as_str()),
            None => (NO_MODEL, NO_MODEL),
        };
        app.metrics.inference(model, version, refusal.reason.code());
    });
    let Prepared { version, wish, tokens, share } = prepared.map_err(|(_, refusal)| refusal)?;
    let lengths: Vec<_> = tokens.iter().map(Vec::len).collect();
    let used: usize = lengths.iter().sum();
    let (name, number) = named(&wish.model);
    let content = app.repository.content(name, number, &version);
    let width = 2 * app.options.executors * version.loaded.curve().best();
    let (owner, version) = (Arc::clone(app), &version);
    let wanted = wish.dimensions;
    let runs = stream::iter(tokens).map(|tokens| embed(app, version, terms, tokens, wanted));
    let embeddings: Vec<Vec<f32>> = runs.buffered(width).try_collect().await?;
    drop(share);
    owner
        .metrics
        .counter(&metric::EMBEDDING_TOKENS, [version.model.as_str()])
        .increment(used as u64);
    let mut response = write(wish, embeddings, used).await?;
    Answer::state_content(content, response.headers_mut());
    state_tokens(&lengths, response.headers_mut());
    Ok(response)
}

/// States the tokens of each input, from which a cache makes the usage of other requests with some of them.
fn state_tokens(lengths: &[usize], headers: &mut HeaderMap) {
    if lengths.len() > MAX_STATED {
        return;
    }
    let lengths: Vec<_> = lengths.iter().map(usize::to_string).collect();
    // Digits and commas: always a header value.
    if let Ok(value) = HeaderValue::try_from(lengths.join(",")) {
        headers.insert(ROW_TOKENS, value);
    }
}

/// A call that was read, its inputs as tokens.
struct Prepared {
    version: Arc<Version>,
    wish: EmbeddingsRequest,
    tokens: Vec<Vec<u32>>,
    /// For the body.
    share: Share,
}

/// Reads the body and its inputs; a refusal comes with the version, once that is known.
async fn prepare(
    app: &Arc<App>,
    body: impl Future<Output = Result<(bytes::Bytes, Share), Refusal>>,
) -> Result<Prepared, (Option<Arc<Version>>, Refusal)> {
    let unknown = |refusal| (None, refusal);
    let (body, share) = body.await.map_err(unknown)?;
    let parse = |bytes: &[u8]| {
        serde_json::from_slice::<EmbeddingsRequest>(bytes)
            .map_err(|error| Refusal::request(format!("invalid JSON: {error}")))
    };
    let read = if body.len() <= INLINE { parse(&body) } else { off_io(move || parse(&body)).await };
    let mut wish = read.map_err(unknown)?;
    let (model, number) = named(&wish.model);
    let version = app.repository.acquire(model, number).await.map_err(unknown)?;
    let known = |refusal| (Some(Arc::clone(&version)), refusal);
    let Some(embedder) = &version.embedding else {
        let name = &version.model;
        let text = format!("model \"{name}\" gives no embeddings: its model.toml does not say how");
        return Err(known(Refusal::input(text)));
    };
    embedder.check_dimensions(wish.dimensions).map_err(known)?;
    let inputs = std::mem::take(&mut wish.input.0);
    let tokens = tokenize(&version, inputs).await.map_err(known)?;
    Ok(Prepared { version, wish, tokens, share })
}

async fn tokenize(version: &Arc<Version>, inputs: Vec<Input>) -> Result<Vec<Vec<u32>>, Refusal> {
    if inputs.is_empty() {
        return Err(Refusal::input("expected at least one input, found none"));
    }
    let size = |input: &Input| match input {
        Input::Text(text) => text.len(),
        Input::Tokens(_) => 0,
    };
    let size: usize = inputs.iter().map(size).sum();
    let version = Arc::clone(version);
    let work = move || {
        let embedder = embedder(&version)?;
        let read = |input| match input {
            Input::Text(text) if text.is_empty() => {
                Err(Refusal::input("expected no empty input, found one"))
            }
            Input::Text(text) => embedder.tokens(&text),
            Input::Tokens(tokens) => embedder.checked(tokens),
        };
        inputs.into_iter().map(read).collect()
    };
    if size <= INLINE_TEXT { work() } else { off_io(work).await }
}

async fn embed(
    app: &Arc<App>,
    version: &Arc<Version>,
    terms: Terms,
    tokens: Vec<u32>,
    wanted: Option<usize>,
) -> Result<Vec<f32>, Refusal> {
    let embedder = embedder(version)?;
    let outputs = inference::infer_rows(app, version, terms, embedder.request(&tokens)).await?;
    embedder.pool(&outputs, tokens.len(), wanted)
}

fn embedder(version: &Version) -> Result<&Embedder, Refusal> {
    let missing = || Refusal::new(Reason::Internal, "the model has no output for embeddings");
    version.embedding.as_ref().ok_or_else(missing)
}

async fn write(
    wish: EmbeddingsRequest,
    embeddings: Vec<Vec<f32>>,
    used: usize,
) -> Result<Response, Refusal> {
    let size = embeddings.first().map_or(0, Vec::len);
    let large = size * embeddings.len() * size_of::<f32>() > INLINE;
    let work = move || {
        let numbers = |embedding: Vec<f32>| match wish.encoding_format.unwrap_or_default() {
            EncodingFormat::Float => Numbers::Float(embedding),
            EncodingFormat::Base64 => {
                let bytes: Vec<u8> = embedding.iter().flat_map(|v| v.to_le_bytes()).collect();
                Numbers::Base64(STANDARD.encode(bytes))
            }
        };
        let entry = |(index, embedding)| Embedding {
            object: "embedding".to_owned(),
            index,
            embedding: numbers(embedding),
        };
        let response = EmbeddingsResponse {
            object: "list".to_owned(),
            data: embeddings.into_iter().enumerate().map(entry).collect(),
            model: wish.model,
            usage: Usage { prompt_tokens: used, total_tokens: used },
        };
        Ok(json(StatusCode::OK, &response))
    };
    if large { off_io(work).await } else { work() }
}
