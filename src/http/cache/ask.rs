//! The question that a request asks.

use super::answers::Cache;
use super::message::{MAX_INLINE, Message, Wire, control, off_io};
use super::outcome::Bypass;
use super::rows::Rows;
use crate::config::{CacheScope, RouteCache};
use crate::http::get_infer;
use crate::http::identify::{self, Identity};
use crate::http::receive::Received;
use crate::http::request::Request;
use crate::http::variant::Target;
use bytes::Bytes;
use forebay_cache::flight::Leader;
use forebay_cache::memo::{Known, Written};
use forebay_cache::question::Seen;
use forebay_cache::{Asked, CacheControl, Entry, Question};
use forebay_protocol::oip::InferRequest;
use http::{HeaderMap, Method};
use pingora::http::RequestHeader;
use pingora::proxy::Session;
use std::sync::Arc;
use std::time::Instant;

/// A question that the model may have to be asked.
pub struct Ask {
    pub(super) question: Question,
    /// The request.
    pub(super) request: Message,
    /// The form of its bytes.
    pub(super) wire: Wire,
    /// Its client's wishes about caching.
    pub(super) control: CacheControl,
    /// The model and the version that is asked for, as a number.
    pub(super) model: u64,
    /// The rows of a batch that may be taken apart.
    pub(super) rows: Option<Rows>,
    /// A kept answer whose time is up, which is better than none.
    pub(super) stale: Option<Arc<Entry>>,
    /// The request in its bytes, if one of the same bytes may come again.
    pub(super) seen: Option<Seen>,
    /// One of the same bytes that had a hit.
    pub(super) known: Option<Arc<Known>>,
    /// Has to answer for the equal ones that wait.
    pub leader: Option<Leader<Arc<Entry>>>,
    pub(super) began: Instant,
}

impl Ask {
    /// Its answer as it was written before from this entry.
    pub(super) fn written_from(&self, entry: &Entry) -> Option<&Written> {
        self.known.as_ref()?.written.as_ref().filter(|written| written.is_of(entry))
    }

    /// Forgets the rows that were known: the whole batch is to be asked.
    pub fn forget_rows(&mut self) {
        if let Some(rows) = &mut self.rows {
            rows.forget();
        }
    }
}

/// The question that a request asks.
///
/// # Errors
/// It is none that the cache could answer.
pub(super) async fn ask(
    cache: &Cache,
    session: &Session,
    request: &Request,
    (target, settings): (&Target, &RouteCache),
    received: &Received,
) -> Result<Ask, Bypass> {
    let began = Instant::now();
    let head = &*get_infer::forwarded(session.req_header(), &request.identity)
        .map_err(|_| Bypass::Unread)?;
    let Received::Whole(body) = received else { return Err(Bypass::Long) };
    check(head, settings)?;
    let limits = &request.snapshot.config.limits;
    let wire = Wire::of(&head.headers, request.identity.grpc.is_some(), limits.body)?;
    let client = (settings.scope == CacheScope::Client)
        .then(|| identify::client_name(session, &head.headers, limits.client_header.as_ref()));
    let vary: Vec<_> =
        settings.vary.iter().map(|name| (name.as_str(), values(&head.headers, name))).collect();
    let is_embeddings = is_embeddings(head, &request.identity);
    let (model, version) = request.model();
    let mut asked = Asked {
        route: &target.route.name,
        variant: &target.variant.name,
        model: model.unwrap_or_default(),
        version,
        epoch: &settings.epoch,
        client: client.as_deref(),
        vary: &vary,
    };
    // Rows are found in the tensors alone, and hashing long bodies would hold up other requests.
    let may_be_known = !is_embeddings && !settings.rows && body.len() <= MAX_INLINE;
    let form = wire.form().filter(|_| may_be_known && model.is_some());
    let seen = form.map(|form| cache.hasher.seen(&asked, form, body));
    let known = seen.and_then(|seen| cache.memo.get(seen));
    let ask = |question, request, model, rows| Ask {
        question,
        request,
        wire,
        control: control(&head.headers),
        model,
        rows,
        stale: None,
        seen,
        known: known.clone(),
        leader: None,
        began,
    };
    if let Some(known) = &known {
        let request = Message::Infer(known.request.clone());
        return Ok(ask(known.question, request, identify::model(model, version), None));
    }
    let message = read(wire, body, is_embeddings).await?;
    let (model, version) = match &message {
        Message::Infer(_) => (model, version),
        Message::Embeddings(request) => (Some(request.model.as_str()), None),
    };
    (asked.model, asked.version) = (model.ok_or(Bypass::Unread)?, version);
    let (question, rows) = questions(cache, &asked, &message, settings.rows)?;
    let model = identify::model(model, version);
    let request = match message {
        Message::Infer(whole) if rows.is_none() => {
            Message::Infer(InferRequest { inputs: Vec::new(), ..whole })
        }
        message => message,
    };
    Ok(ask(question, request, model, rows))
}

/// # Errors
/// Its answer may depend on what no question contains.
fn check(head: &RequestHeader, settings: &RouteCache) -> Result<(), Bypass> {
    if head.uri.query().is_some() {
        return Err(Bypass::Query);
    }
    let has_own = settings.scope == CacheScope::Client
        || settings.vary.contains(&http::header::AUTHORIZATION);
    if head.headers.contains_key(http::header::AUTHORIZATION) && !has_own {
        return Err(Bypass::Authorization);
    }
    Ok(())
}

/// Whether it is a request for embeddings in OpenAI's form.
pub(in crate::http) fn is_embeddings(head: &RequestHeader, identity: &Identity) -> bool {
    identity.grpc.is_none() && head.method == Method::POST && head.uri.path() == "/v1/embeddings"
}

async fn read(wire: Wire, body: &Bytes, is_embeddings: bool) -> Result<Message, Bypass> {
    let bytes = body.clone();
    let read = move || match is_embeddings {
        true => wire.embeddings(&bytes).map(|asked| Message::Embeddings(Arc::new(asked))),
        false => wire.request(&bytes).map(Message::Infer),
    };
    // A compressed body may become far longer.
    let length = if wire.is_compressed() { usize::MAX } else { body.len() };
    off_io(length, read).await.unwrap_or(Err(Bypass::Unread))
}

/// The question of the whole message, and those of its rows if it may be taken apart. Embeddings always may.
fn questions(
    cache: &Cache,
    asked: &Asked<'_>,
    message: &Message,
    takes_rows: bool,
) -> Result<(Question, Option<Rows>), Bypass> {
    let request = match message {
        Message::Infer(request) => request,
        Message::Embeddings(request) => {
            let questions = cache.hasher.embeddings(asked, request);
            return Ok((cache.hasher.together(&questions), Some(Rows::new(questions))));
        }
    };
    let question = cache.hasher.question(asked, request).map_err(|_| Bypass::Stateful)?;
    let of_row = |row: &InferRequest| cache.hasher.question(asked, row).ok();
    Ok((question, if takes_rows { Rows::of(request, of_row) } else { None }))
}

/// All values of a header, told apart by their lengths.
fn values(headers: &HeaderMap, name: &http::HeaderName) -> Option<Vec<u8>> {
    let mut joined = Vec::new();
    for value in headers.get_all(name) {
        joined.extend_from_slice(&(value.len() as u64).to_le_bytes());
        joined.extend_from_slice(value.as_bytes());
    }
    (!joined.is_empty()).then_some(joined)
}
