//! The stage itself: looks for the answer before the model is asked, and keeps what it has answered.

use super::answers::{Cache, now};
use super::ask::{self, Ask};
use super::message::{self, control, off_io, written};
use super::outcome::{Bypass, Outcome};
use super::rows::{Replaced, Rows};
use crate::body_memory::{Account, cost};
use crate::clock;
use crate::http::admit::no_memory;
use crate::http::receive::{Received, client_left};
use crate::http::request::Request;
use crate::http::response::BufferedResponse;
use crate::http::stage::Stop;
use crate::http::variant::Target;
use crate::pool::report;
use crate::refusal::Refusal;
use bytes::Bytes;
use forebay_cache::flight::{Follower, Part};
use forebay_cache::{Answer, CacheControl, Content, Entry, Fact, store};
use forebay_protocol::oip::{Call, InferResponse};
use forebay_protocol::{ModelContent, Reason, header, metric};
use http::{HeaderMap, Method};
use pingora::http::RequestHeader;
use pingora::proxy::Session;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The result of a look into the cache.
pub enum Lookup {
    /// Its answer.
    Answered(BufferedResponse),
    /// Not all of it, so the model is to be asked; what the answer is kept for, if it is.
    Ask(Option<Box<Ask>>),
}

/// The kept answer to a question.
fn find(cache: &Cache, target: &Target, ask: &Ask) -> Option<Arc<Entry>> {
    let now = now();
    let is_young =
        |entry: &Arc<Entry>| ask.control.max_age.is_none_or(|most| entry.age(now) <= most);
    let found = cache
        .facts(target, ask.model)
        .into_iter()
        .find_map(|fact| cache.store.get(ask.question, fact.content, now).filter(is_young));
    if found.is_some() {
        // Where requests need no endpoint, nothing else would show that one serves otherwise now.
        report::refresh_stale(&target.pool, clock::now());
    }
    found
}

/// Looks up the rows of a batch.
fn find_rows(cache: &Cache, target: &Target, ask: &mut Ask) {
    let Some(rows) = &mut ask.rows else { return };
    for fact in cache.facts(target, ask.model) {
        if fact.has_rows != Some(false) {
            rows.look_up(cache, fact.content);
        }
    }
    if rows.kept() > 0 {
        report::refresh_stale(&target.pool, clock::now());
    }
}

/// Looks for the answer, and waits for it where an equal request is under way.
///
/// # Errors
/// The client takes only a kept answer and there is none, or it left while it waited, or its time was up.
pub async fn look_up(
    cache: &Cache,
    session: &mut Session,
    request: &mut Request,
    received: &Received,
    account: &Account,
) -> Result<Lookup, Stop> {
    let Some(target) = request.target.clone() else { return Ok(Lookup::Ask(None)) };
    let Some(settings) = &target.route.cache else { return Ok(Lookup::Ask(None)) };
    let is_inference =
        request.identity.call == Some(Call::Infer) && session.req_header().method == Method::POST;
    if !is_inference {
        return Ok(Lookup::Ask(None));
    }
    cache.store.resize(request.snapshot.config.cache.memory);
    let mut ask = match ask::ask(cache, session, request, (&target, settings), received).await {
        Ok(ask) => Box::new(ask),
        Err(why) => {
            request.cache = Some(Outcome::Bypassed(why));
            let only_kept = control(&session.req_header().headers).only_if_cached;
            return if only_kept { Err(not_cached().into()) } else { Ok(Lookup::Ask(None)) };
        }
    };
    request.cache = Some(Outcome::Missed { stored: false });
    let CacheControl { no_cache, no_store, only_if_cached, max_age, .. } = ask.control;
    if !no_cache && let Some(entry) = find(cache, &target, &ask) {
        return hit(request, &ask, &entry, account, false);
    }
    // The rows of a batch differ in age.
    if !no_cache && max_age.is_none() {
        find_rows(cache, &target, &mut ask);
        if let Some(answer) = ask.rows.as_ref().and_then(Rows::whole) {
            count_rows(request, &ask);
            let entry = entry(request, &ask, answer, (String::new(), None));
            let (born, expires, took) = ask.rows.as_ref().map(Rows::times).unwrap_or_default();
            let entry = Entry { born, expires, took, ..entry };
            return hit(request, &ask, &entry, account, false);
        }
    }
    if only_if_cached {
        return Err(not_cached().into());
    }
    if no_store {
        request.cache = Some(Outcome::Bypassed(Bypass::NoStore));
        return Ok(Lookup::Ask(None));
    }
    // An answer that is under way may be older than what such a client takes.
    if no_cache || max_age.is_some() {
        return Ok(Lookup::Ask(Some(ask)));
    }
    match cache.flights.join(ask.question, request.priority as u8) {
        Part::Lead(leader) => {
            // It may have been answered since it was looked for.
            if let Some(entry) = find(cache, &target, &ask) {
                leader.land(Arc::clone(&entry));
                return hit(request, &ask, &entry, account, false);
            }
            ask.leader = Some(leader);
            Ok(Lookup::Ask(Some(ask)))
        }
        Part::Follow(follower) => match wait(session, request, follower).await? {
            Some(entry) => hit(request, &ask, &entry, account, true),
            None => Ok(Lookup::Ask(Some(ask))),
        },
    }
}

/// Waits for the answer of an equal request, until the deadline or until the client leaves.
async fn wait(
    session: &mut Session,
    request: &Request,
    follower: Follower<Arc<Entry>>,
) -> Result<Option<Arc<Entry>>, Refusal> {
    tokio::select! {
        answer = follower.answer() => Ok(answer),
        () = until(request.deadline) => {
            Err(Refusal::new(Reason::DeadlineExceeded, "no answer before the deadline"))
        }
        left = session.downstream_session.read_body_or_idle(true) => Err(match left {
            Err(error) => client_left(&error),
            Ok(_) => {
                Refusal::new(Reason::ClientClosed, "the client sent more than one request at once")
            }
        }),
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

fn not_cached() -> Refusal {
    let message = "no kept answer, and the request takes no other (cache-control: only-if-cached)";
    Refusal::new(Reason::NotCached, message)
}

/// Answers from memory, in the form that the client asked for.
fn hit(
    request: &mut Request,
    ask: &Ask,
    entry: &Entry,
    account: &Account,
    joined: bool,
) -> Result<Lookup, Stop> {
    let Some(mut response) = response(request, ask, &entry.answer, account)? else {
        request.cache = Some(Outcome::Bypassed(Bypass::Form));
        return Ok(Lookup::Ask(None));
    };
    let now = now();
    request.cache = Some(if joined {
        Outcome::Joined
    } else {
        let age = entry.age(now);
        response.head.insert_header(http::header::AGE, age.as_secs())?;
        Outcome::Hit { age, left: entry.expires.saturating_sub(now) }
    });
    if let Some(target) = &request.target {
        let saved = metric::proxy::CACHE_SAVED.with([&target.route.name]);
        saved.increment(entry.took.as_secs_f64());
    }
    Ok(Lookup::Answered(response))
}

/// An answer in the form that the client asked for; `None`: it has no such form.
fn response(
    request: &Request,
    ask: &Ask,
    answer: &Answer,
    account: &Account,
) -> Result<Option<BufferedResponse>, Refusal> {
    let is_grpc = request.identity.grpc.is_some();
    let Some((head, body, trailers)) = written(answer, &ask.request, is_grpc) else {
        return Ok(None);
    };
    let held = account.for_answers().hold();
    held.grow(cost(body.len())).map_err(no_memory)?;
    Ok(Some(BufferedResponse { head, body: vec![body], trailers, held }))
}

/// An answer with what is known of it.
fn entry(
    request: &Request,
    ask: &Ask,
    answer: Answer,
    (model, version): (String, Option<String>),
) -> Entry {
    let (route, ttl) = request.target.as_ref().map_or(("", Duration::ZERO), |target| {
        let ttl = target.route.cache.as_ref().map_or(Duration::ZERO, |settings| settings.ttl);
        (target.route.name.as_str(), ttl)
    });
    let now = now();
    Entry {
        answer,
        route: route.into(),
        model: model.into(),
        version: version.map(Into::into),
        born: now,
        expires: now + store::lifetime(ttl, ask.question),
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
    let missing = rows.missing(&ask.request)?;
    let identity = &request.identity;
    let model = (identity.model.as_deref()?, identity.version.as_deref());
    Replaced::new(ask.wire, model, &missing)
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
    let bytes: Bytes = message::joined(&response.body);
    let read = off_io(bytes.len(), move || wire.response(&bytes).ok()).await;
    let Some(Some(found)) = read else { return Ok(lost(response)) };
    let content = content(cache, ask, request, &response.head.headers);
    let named = |found: &InferResponse| (found.model_name.clone(), found.model_version.clone());
    let whole = match &ask.rows {
        Some(rows) => {
            let one =
                |row: &InferResponse| entry(request, ask, Answer::new(row.clone()), named(row));
            let whole = rows.complete(cache, &found, content, one);
            match whole {
                Some(whole) if was_replaced => whole,
                None if was_replaced => return Ok(Kept::AskWhole),
                _ => found,
            }
        }
        None => found,
    };
    let name = named(&whole);
    let entry = Arc::new(entry(request, ask, Answer::new(whole), name));
    let stored = insert(cache, ask, request, (content, &entry));
    request.cache = Some(Outcome::Missed { stored });
    let answer = if was_replaced {
        count_rows(request, ask);
        self::response(request, ask, &entry.answer, account)?
    } else {
        Some(response)
    };
    let Some(answer) = answer else { return Ok(Kept::AskWhole) };
    if let Some(leader) = ask.leader.take() {
        leader.land(entry);
    }
    Ok(Kept::Answer(answer))
}

/// Stores the answer to the whole request, if it may be. The answers to the rows of a batch are enough.
fn insert(
    cache: &Cache,
    ask: &Ask,
    request: &Request,
    (content, entry): (Option<Content>, &Arc<Entry>),
) -> bool {
    let settings = request.target.as_ref().and_then(|target| target.route.cache.as_ref());
    let most = settings.map_or(0, |settings| settings.max_entry);
    let Some(content) = content.filter(|_| entry.answer.len() as u64 <= most) else { return false };
    if ask.rows.is_none() {
        cache.store.insert(ask.question, content, Arc::clone(entry));
    }
    true
}

/// Notes the rows that needed no inference.
fn count_rows(request: &mut Request, ask: &Ask) {
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
