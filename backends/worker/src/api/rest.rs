//! Inference over REST: from an HTTP request to [`infer`](crate::inference) and back.

use crate::api::body::{self, Encoding, ReadTimeout};
use crate::api::model_path::ModelPath;
use crate::api::pieces::Pieces;
use crate::api::terms;
use crate::inference::blocking::{INLINE, INLINE_BINARY, off_io};
use crate::inference::validate;
use crate::inference::{self, Answer, Received};
use crate::memory::OfConnection;
use crate::memory::Share;
use crate::refusal::Refusal;
use crate::repository::version::Version;
use crate::state::App;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use forebay_protocol::header as names;
use forebay_protocol::oip::InferRequest;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, header};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

/// `POST /v2/models/{model}[/versions/{version}]/infer`.
pub(crate) async fn infer(
    State(app): State<Arc<App>>,
    path: ModelPath,
    request: Request,
) -> Result<Response, Refusal> {
    let (parts, body) = request.into_parts();
    let terms = terms::of(&parts.headers);
    let name = (path.model.as_str(), path.version.as_deref());
    let read = |version| receive(&app, version, parts, body);
    inference::infer(&app, name, terms, read, respond).await
}

/// Reads, inflates and parses the request.
async fn receive(
    app: &Arc<App>,
    version: Arc<Version>,
    parts: Parts,
    body: Body,
) -> Result<Received, Refusal> {
    let encoding = Encoding::of(&parts.headers)?;
    let json_len = terms::number(&parts.headers, &names::INFERENCE_HEADER_CONTENT_LENGTH, "bytes")?;
    let limit = app.options.max_body;
    let mut share = Share::of(&app.memory, parts.extensions.get::<OfConnection>().cloned());
    // Binary tensors begin behind the JSON.
    let limits = (limit, json_len.unwrap_or(0));
    let body = body::read(body, limits, ReadTimeout::of(&app.options), &mut share).await?;
    // All of it is values if the header is announced to be empty.
    let parsed = json_len.unwrap_or(body.len()).min(body.len());
    let is_short = parsed <= INLINE && body.len() - parsed <= INLINE_BINARY;
    let inline = is_short && encoding == Encoding::Identity;
    let prepare = move || {
        let begun = Instant::now();
        let body = body::inflate(body, encoding, limit, &mut share)?;
        let request = parse(&body, json_len, &version)?;
        Ok(Received { request, share, took: begun.elapsed() })
    };
    if inline { prepare() } else { off_io(prepare).await }
}

/// Reads and inflates a body that is not to be parsed at once.
pub(crate) async fn body(app: &App, parts: &Parts, body: Body) -> Result<(Bytes, Share), Refusal> {
    let encoding = Encoding::of(&parts.headers)?;
    let limit = app.options.max_body;
    let mut share = Share::of(&app.memory, parts.extensions.get::<OfConnection>().cloned());
    let body = body::read(body, (limit, 0), ReadTimeout::of(&app.options), &mut share).await?;
    if encoding == Encoding::Identity {
        return Ok((body, share));
    }
    off_io(move || Ok((body::inflate(body, encoding, limit, &mut share)?, share))).await
}

fn parse(
    body: &Bytes,
    json_len: Option<usize>,
    version: &Version,
) -> Result<InferRequest, Refusal> {
    match json_len {
        Some(0) => validate::raw_request(&*version.loaded, body),
        _ => Ok(InferRequest::parse_shared(body, json_len)?),
    }
}

async fn respond(answer: Answer) -> Result<Response, Refusal> {
    let Answer { request, response, content } = answer;
    let mut binary = HashSet::new();
    for output in &response.outputs {
        if request.wants_binary(&output.name)? {
            binary.insert(output.name.clone());
        }
    }
    // Binary outputs are sent from where they lie.
    let written = response.outputs.iter().filter(|output| !binary.contains(&output.name));
    let written: usize = written.map(|output| output.data.binary_len()).sum();
    let is_short = written <= INLINE;
    let encode = move || Ok(response.into_pieces(|output| binary.contains(&output.name))?);
    let encoded = if is_short { encode() } else { off_io(encode).await }?;
    let mut headers = HeaderMap::new();
    Answer::state_content(content, &mut headers);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(encoded.content_type()));
    if let Some(length) = encoded.json_len {
        headers.insert(names::INFERENCE_HEADER_CONTENT_LENGTH, HeaderValue::from(length));
    }
    Ok((headers, Body::new(Pieces::new(encoded.body))).into_response())
}
