//! Keeps what the model has answered, for those that ask the same later or wait for it now.

use super::answers::Cache;
use super::ask::Ask;
use super::give;
use super::message::{self, Found, Message, off_io};
use super::outcome::Outcome;
use super::rows::{Replaced, Rows};
use super::time::now;
use crate::body_memory::Account;
use crate::http::request::Request;
use crate::http::response::BufferedResponse;
use crate::refusal::Refusal;
use bytes::Bytes;
use forebay_cache::{Answer, Content, Entry, Fact, embeddings, store};
use forebay_protocol::{ModelContent, header, metric};
use http::HeaderMap;
use pingora::http::RequestHeader;
use std::sync::Arc;
use std::time::Duration;

/// An answer with what is known of it.
pub(super) fn entry(
    request: &Request,
    ask: &Ask,
    answer: Answer,
    (model, version): (String, Option<String>),
) -> Entry {
    let route = request.target.as_ref().map(|target| &*target.route);
    let settings = route.and_then(|route| route.cache.as_ref());
    let (ttl, stale) = settings.map_or_else(Default::default, |it| (it.ttl, it.stale()));
    let now = now();
    let expires = now + store::lifetime(ttl, ask.question);
    Entry {
        answer,
        route: route.map_or("", |route| &route.name).into(),
        model: model.into(),
        version: version.map(Into::into),
        born: now,
        expires,
        gone: expires + stale,
        took: ask.began.elapsed(),
    }
}

/// The fate of an answer.
pub enum Kept {
    /// It goes to the client, as it is or put together from rows.
    Answer(BufferedResponse),
    /// It does not fit the rows that were kept: the whole batch has to be asked.
    AskWhole,
}

/// The smaller request to send in place of a batch some of whose rows are known.
pub fn replacement(ask: &Ask, request: &Request) -> Option<Replaced> {
    let rows = ask.rows.as_ref().filter(|rows| rows.kept() > 0)?;
    let identity = &request.identity;
    let model = identity.model.as_deref().map(|model| (model, identity.version.as_deref()));
    rows.smaller(&ask.request, ask.wire, model)
}

/// Makes the header one of the smaller request, and returns its body.
///
/// # Errors
/// None in practice: all header values are made here.
pub fn replace(head: &mut RequestHeader, smaller: Replaced) -> pingora::Result<Bytes> {
    head.remove_header(&http::header::CONTENT_ENCODING);
    head.remove_header(&header::INFERENCE_HEADER_CONTENT_LENGTH);
    if let Some(length) = smaller.json_len {
        head.insert_header(header::INFERENCE_HEADER_CONTENT_LENGTH, length)?;
    }
    if head.headers.contains_key(http::header::CONTENT_LENGTH) {
        head.insert_header(http::header::CONTENT_LENGTH, smaller.body.len())?;
    }
    Ok(smaller.body)
}

/// Keeps the answer that the model has given, and gives it to those that wait for it. `is_whole`: nothing of
/// it is still to be read. `was_replaced`: it answers [`replacement`].
///
/// # Errors
/// The answer finds no memory.
pub async fn keep(
    cache: &Cache,
    ask: &mut Ask,
    request: &mut Request,
    (response, is_whole): (BufferedResponse, bool),
    (account, was_replaced): (&Account, bool),
) -> Result<Kept, Refusal> {
    let is_grpc = request.identity.grpc.is_some();
    let is_own = request.degraded.is_none() && request.refusal.is_none();
    let lost = |response| if was_replaced { Kept::AskWhole } else { Kept::Answer(response) };
    if !message::is_success(&response, is_grpc) {
        note_absence(cache, ask, request, &response);
        // A refusal of some rows is one of all.
        return Ok(Kept::Answer(response));
    }
    if !is_whole || !is_own || !message::may_be_kept(&response) {
        return Ok(lost(response));
    }
    let most = request.snapshot.config.limits.body;
    let Ok(wire) = message::Wire::of(&response.head.headers, is_grpc, most) else {
        return Ok(lost(response));
    };
    let Some(found) = read(ask, wire, &response).await else { return Ok(lost(response)) };
    let content = content(cache, ask, request, &response.head.headers);
    let one = |answer: Answer| {
        let named = named(&answer, ask.request.is_embeddings());
        entry(request, ask, answer, named)
    };
    let most = max_entry(request);
    let known = ask.rows.as_ref().map_or(0, Rows::bytes);
    let _while_it_is_made = (known > 0).then(|| give::memory(account, known)).transpose()?;
    let together = match &ask.rows {
        Some(rows) => rows.complete(cache, &found, (content, most), one).await,
        None => None,
    };
    let are_rows_kept = together.is_some() && content.is_some();
    let whole = match (together, found) {
        (Some(whole), _) => whole,
        (None, Found::Infer(found)) if !was_replaced => Answer::new(found),
        (None, _) => return Ok(lost(response)),
    };
    let entry = Arc::new(one(whole));
    let stored = match &ask.rows {
        // The answers to the rows of a batch are enough.
        Some(_) => are_rows_kept,
        None => insert(cache, ask, most, (content, &entry)),
    };
    let left = entry.expires.saturating_sub(entry.born);
    request.cache = Some(Outcome::Missed { kept_for: stored.then_some(left) });
    let answer = if was_replaced {
        count_rows(request, ask);
        give::response(request, ask, &entry.answer, account)?
    } else {
        Some(response)
    };
    let Some(answer) = answer else { return Ok(Kept::AskWhole) };
    if let Some(leader) = ask.leader.take() {
        leader.land(entry);
    }
    Ok(Kept::Answer(answer))
}

/// Reads what the model has answered.
async fn read(ask: &Ask, wire: message::Wire, response: &BufferedResponse) -> Option<Found> {
    let bytes: Bytes = message::joined(&response.body);
    let length = bytes.len();
    let Message::Embeddings(asked) = &ask.request else {
        let read = move || wire.response(&bytes).ok().map(Found::Infer);
        return off_io(length, read).await?;
    };
    let asked = Arc::clone(asked);
    let places = ask.rows.as_ref()?.asked().to_vec();
    let tokens = message::row_tokens(&response.head.headers);
    let read = move || {
        let of = (&places[..], tokens.as_deref());
        wire.found_embeddings(&bytes, &asked, of).map(Found::Embeddings)
    };
    off_io(length, read).await?
}

/// The model and the version that an answer names.
fn named(answer: &Answer, is_embeddings: bool) -> (String, Option<String>) {
    if is_embeddings {
        return (embeddings::model(answer).unwrap_or_default(), None);
    }
    let response = answer.response();
    response.map_or_else(|_| Default::default(), |it| (it.model_name, it.model_version))
}

/// Notes that the model is not there, if an endpoint has said so.
fn note_absence(cache: &Cache, ask: &Ask, request: &Request, response: &BufferedResponse) {
    let Some((target, attempt)) = request.target.as_ref().zip(request.answering()) else { return };
    let ttl = target.route.cache.as_ref().map_or(Duration::ZERO, |settings| settings.negative_ttl);
    if ttl > Duration::ZERO && request.degraded.is_none() && message::is_unknown_model(response) {
        cache.note_absence(ask.model, &attempt.endpoint, ttl);
    }
}

/// Bytes of the longest answer that the route keeps.
fn max_entry(request: &Request) -> u64 {
    let settings = request.target.as_ref().and_then(|target| target.route.cache.as_ref());
    settings.map_or(0, |settings| settings.max_entry)
}

/// Stores the answer to the whole request, if it may be.
fn insert(
    cache: &Cache,
    ask: &Ask,
    most: u64,
    (content, entry): (Option<Content>, &Arc<Entry>),
) -> bool {
    let Some(content) = content.filter(|_| entry.answer.len() as u64 <= most) else { return false };
    cache.insert(ask.question, content, Arc::clone(entry));
    true
}

/// Notes the rows that needed no inference.
pub(super) fn count_rows(request: &mut Request, ask: &Ask) {
    let Some(rows) = &ask.rows else { return };
    request.cache = Some(Outcome::Rows { kept: rows.kept(), all: rows.count() });
    if let Some(target) = &request.target {
        let saved = metric::proxy::CACHE_ROWS_SAVED.with([&target.route.name]);
        saved.increment(rows.kept() as u64);
    }
}

/// The content of the model that has answered, which is noted as the one of its endpoint. `None`: it is not
/// known, or was replaced meanwhile, so that no request would look for it.
fn content(cache: &Cache, ask: &Ask, request: &Request, headers: &HeaderMap) -> Option<Content> {
    let stated = headers.get(header::MODEL_CONTENT);
    let stated = stated.and_then(|value| value.to_str().ok()?.parse::<ModelContent>().ok());
    match stated {
        Some(ModelContent { content, generation, has_rows }) => {
            let content = Content(content);
            let fact = Fact { content, has_rows: Some(has_rows) };
            cache.contents.learn(ask.model, generation?, fact);
            Some(content)
        }
        None => {
            let endpoint = &request.answering()?.endpoint.state;
            (endpoint.reports.generation() == 0).then_some(Content::UNSTATED)
        }
    }
}
