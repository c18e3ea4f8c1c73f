//! The requests of a run, made before it starts.
//!
//! A generator that encodes tensors while the clock runs measures its encoder. All bodies are made once,
//! from the model's own metadata or from files, and a request under load is a choice among them: by
//! its index and the seed alone, so that every balancer under comparison gets the same sequence.

mod body;
pub mod check;
mod infer;
mod metadata;
mod tensor;

use crate::connection::ask::call_headers;
use crate::connection::{Answer, Outgoing};
use crate::plan::Plan;
use crate::plan::mix::{Mix, Weights};
use crate::scenario::{Http, Infer, Protocol, Request, RequestKind};
use body::{Body, MAX_CORPUS, Size, TooLarge, take_room};
use bytes::Bytes;
use check::Check;
use forebay_protocol::grpc::{MODEL_INFER, format_timeout};
use forebay_protocol::header::{GRPC_TIMEOUT, REQUEST_DEADLINE, REQUEST_PRIORITY, SERVICE_DEMAND};
use forebay_protocol::oip::{self, InferRequest};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use http_body_util::Full;
use infer::{InferError, Random, Writer};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Everything that a run can send.
#[derive(Debug)]
pub struct Corpus {
    kinds: Vec<RequestTemplate>,
    mix: Mix,
    client_header: Option<HeaderName>,
}

/// One kind of request, ready to send.
#[derive(Debug)]
pub struct RequestTemplate {
    /// In words, for reports.
    pub label: String,
    /// The check that an answer must pass.
    pub check: Check,
    method: Method,
    uri: Uri,
    sizes: Vec<Size>,
    size_weights: Weights,
    popularity: Option<Weights>,
}

/// One request, chosen.
#[derive(Debug, Clone, Copy)]
pub struct Draw<'a> {
    /// The kind of request that it is.
    pub kind: &'a RequestTemplate,
    size: &'a Size,
    body: &'a Body,
    demand: Option<Duration>,
    /// The header that names the client, and which one it is.
    client: Option<(&'a HeaderName, u32)>,
}

/// Why requests can't be made.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// A file can't be read.
    #[error("{path}: {error}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A file that is no inference request.
    #[error("{path}: expected an inference request in JSON, {error}")]
    Input {
        /// The file.
        path: PathBuf,
        /// The parser's words.
        error: oip::ParseError,
    },
    /// A file whose request can't be put into another form.
    #[error("{path}: {error}")]
    Encode {
        /// The file.
        path: PathBuf,
        /// Why.
        error: oip::EncodeError,
    },
    /// The bodies would not fit.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// A header, method or path that HTTP does not allow.
    #[error("{0}")]
    Http(#[from] http::Error),
    /// An inference that can't be made up.
    #[error("model \"{model}\": {error}")]
    Infer {
        /// The model.
        model: String,
        /// Why.
        error: InferError,
    },
}

impl RequestError {
    /// Whether the target would not say what a model is like, which may change.
    pub fn is_of_metadata(&self) -> bool {
        matches!(self, Self::Infer { error: InferError::Metadata(_), .. })
    }
}

impl Corpus {
    /// Makes all bodies; asks the target for the metadata of models whose inputs are to be random.
    ///
    /// Runs on a [`tokio::runtime::LocalRuntime`].
    ///
    /// # Errors
    /// A file that can't be read, a model that the target does not describe, bodies that would not
    /// fit into [`body::MAX_CORPUS`].
    pub async fn make(plan: &Plan) -> Result<Self, RequestError> {
        let mut kinds = Vec::with_capacity(plan.requests.len());
        let mut room = MAX_CORPUS;
        for request in &plan.requests {
            kinds.push(kind(plan, request, &mut room).await?);
        }
        let client_header = plan.clients.as_ref().map(|clients| clients.header.clone());
        Ok(Self { kinds, mix: Mix::new(plan), client_header })
    }

    /// The request with this index: always the same for the same seed.
    pub fn draw(&self, index: u64) -> Draw<'_> {
        let mut drawn = self.mix.draw(index);
        let kind = &self.kinds[drawn.kind];
        let size = &kind.sizes[kind.size_weights.draw(&mut drawn.rng)];
        let body = match &kind.popularity {
            Some(popularity) => popularity.draw(&mut drawn.rng),
            None => drawn.rng.usize(..size.bodies.len()),
        };
        let client = self.client_header.as_ref().map(|header| (header, drawn.client));
        Draw { kind, size, body: &size.bodies[body], demand: drawn.demand, client }
    }

    /// The kinds of requests, in the order of the scenario.
    pub fn kinds(&self) -> &[RequestTemplate] {
        &self.kinds
    }
}

impl RequestTemplate {
    /// Number of different bodies.
    pub fn distinct(&self) -> usize {
        self.sizes.iter().map(|size| size.bodies.len()).sum()
    }
}

impl Draw<'_> {
    /// The request, to be sent now with `left` until it is given up.
    pub fn request(&self) -> Outgoing {
        let mut request = Outgoing::new(Full::new(self.body.bytes.clone()));
        *request.method_mut() = self.kind.method.clone();
        *request.uri_mut() = self.kind.uri.clone();
        *request.headers_mut() = self.size.headers.clone();
        if let Some(demand) = self.demand {
            let micros = u64::try_from(demand.as_micros()).unwrap_or(u64::MAX);
            request.headers_mut().insert(SERVICE_DEMAND, HeaderValue::from(micros));
        }
        if let Some((header, number)) = self.client
            && !self.size.headers.contains_key(header)
            && let Ok(name) = HeaderValue::try_from(format!("client-{number}"))
        {
            request.headers_mut().insert(header, name);
        }
        request
    }

    /// Bytes of the body.
    pub fn length(&self) -> u64 {
        self.body.bytes.len() as u64
    }

    /// Says what is wrong with the answer to it.
    ///
    /// # Errors
    /// A few fixed words.
    pub fn check(&self, answer: &Answer) -> Result<(), &'static str> {
        self.kind.check.answer(answer, &self.body.id)
    }
}

async fn kind(
    plan: &Plan,
    request: &Request,
    room: &mut u64,
) -> Result<RequestTemplate, RequestError> {
    let base = headers(plan, request)?;
    let mut kind = RequestTemplate {
        label: String::new(),
        check: Check::Status,
        method: Method::POST,
        uri: Uri::default(),
        sizes: Vec::new(),
        size_weights: Weights::new(std::iter::empty()),
        popularity: None,
    };
    let path = match &request.kind {
        RequestKind::Http(Http { method, path, body }) => {
            kind.method = match (method, body) {
                (Some(method), _) => method.parse().map_err(http::Error::from)?,
                (None, Some(_)) => Method::POST,
                (None, None) => Method::GET,
            };
            kind.label = format!("{} {path}", kind.method);
            let body = match body {
                Some(path) => read(&plan.base.join(path), room)?,
                None => Bytes::new(),
            };
            let body = Body { bytes: body, ..Body::default() };
            kind.sizes = vec![Size { headers: base, bodies: vec![body] }];
            path.clone()
        }
        RequestKind::Infer(infer) => {
            kind.label = format!("infer {}", infer.model);
            bodies(plan, infer, base, room, &mut kind).await?;
            if plan.target.protocol == Protocol::Grpc {
                kind.check = Check::Grpc;
                format!("{}{MODEL_INFER}", plan.target.base())
            } else {
                kind.check = Check::Inference;
                metadata::path(plan.target.base(), &infer.model, infer.version.as_deref())
                    + "/infer"
            }
        }
    };
    kind.uri = plan.target.uri(&path)?;
    Ok(kind)
}

/// Makes the bodies of an inference, and how they are chosen.
async fn bodies(
    plan: &Plan,
    infer: &Infer,
    base: HeaderMap,
    room: &mut u64,
    kind: &mut RequestTemplate,
) -> Result<(), RequestError> {
    let distinct = if infer.input.is_empty() { infer.distinct } else { infer.input.len() };
    kind.popularity = (infer.zipf > 0.0).then(|| Weights::zipf(distinct, infer.zipf));
    if !infer.input.is_empty() {
        // Each has headers of its own: they say where a body's JSON ends.
        let writer = Writer::new(plan, infer);
        let files =
            infer.input.iter().map(|file| input(&plan.base.join(file), &writer, &base, room));
        kind.sizes = files.collect::<Result<_, _>>()?;
        kind.size_weights = match infer.zipf > 0.0 {
            true => Weights::zipf(distinct, infer.zipf),
            false => Weights::new(infer.input.iter().map(|_| 1.0)),
        };
        kind.popularity = None;
        return Ok(());
    }
    let fail = |error| RequestError::Infer { model: infer.model.clone(), error };
    let random = Random::new(plan, infer).await.map_err(fail)?;
    kind.size_weights = Weights::new(infer.batch.iter().map(|_| 1.0));
    let batches = if infer.batch.is_empty() { &[1][..] } else { &infer.batch };
    for batch in batches {
        kind.sizes.push(random.make(*batch, distinct, &base, room).map_err(fail)?);
    }
    Ok(())
}

fn headers(plan: &Plan, request: &Request) -> Result<HeaderMap, http::Error> {
    let mut headers = HeaderMap::new();
    let grpc = plan.target.protocol == Protocol::Grpc;
    if plan.target.protocol == Protocol::Http1 {
        headers.insert(header::HOST, HeaderValue::from_str(&plan.target.authority)?);
    }
    headers.insert(
        header::USER_AGENT,
        HeaderValue::from_static(concat!("forebay-load/", env!("CARGO_PKG_VERSION"))),
    );
    if grpc {
        call_headers(&mut headers);
    }
    if let Some(deadline) = request.deadline.filter(|_| grpc) {
        headers.insert(GRPC_TIMEOUT, HeaderValue::try_from(format_timeout(deadline))?);
    } else if let Some(deadline) = request.deadline {
        let millis = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
        headers.insert(REQUEST_DEADLINE, HeaderValue::from(millis));
    }
    if let Some(priority) = request.priority {
        headers.insert(REQUEST_PRIORITY, HeaderValue::from_static(priority.as_str()));
    }
    for header in &request.headers {
        headers.insert(HeaderName::try_from(&header.name)?, HeaderValue::try_from(&header.value)?);
    }
    Ok(headers)
}

/// A request from a file, JSON, in the form that the plan wants.
fn input(
    path: &Path,
    writer: &Writer,
    base: &HeaderMap,
    room: &mut u64,
) -> Result<Size, RequestError> {
    let bytes = read(path, room)?;
    let fail = |error| RequestError::Input { path: path.to_owned(), error };
    let request = InferRequest::parse(&bytes, None).map_err(fail)?;
    let mut headers = base.clone();
    let body = if writer.is_json() {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Body { bytes, id: request.id.unwrap_or_default() }
    } else {
        // Only JSON can't write everything, and this is not JSON.
        let fail = |error| RequestError::Encode { path: path.to_owned(), error };
        writer.write(request, &mut headers).map_err(fail)?
    };
    Ok(Size { headers, bodies: vec![body] })
}

fn read(path: &Path, room: &mut u64) -> Result<Bytes, RequestError> {
    let fail = |error| RequestError::Read { path: path.to_owned(), error };
    take_room(std::fs::metadata(path).map_err(fail)?.len(), room)?;
    Ok(std::fs::read(path).map_err(fail)?.into())
}
