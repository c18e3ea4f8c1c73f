//! Looks for the answer before the model is asked.

use super::answers::Cache;
use super::ask::{self, Ask, is_embeddings};
use super::give::{From, give, has_form, memory};
use super::keep;
use super::message::{Message, control};
use super::outcome::{Bypass, Outcome};
use super::stale::{Use, in_place_of, permitted, renew};
use super::time::now;
use crate::body_memory::Account;
use crate::clock;
use crate::http::identify;
use crate::http::receive::{Received, client_left};
use crate::http::request::Request;
use crate::http::response::BufferedResponse;
use crate::http::services::Services;
use crate::http::stage::Stop;
use crate::http::variant::Target;
use crate::pool::report;
use crate::refusal::Refusal;
use forebay_cache::flight::{Follower, Part};
use forebay_cache::memo::{Known, MAX_ANSWER, Written};
use forebay_cache::{CacheControl, Entry};
use forebay_protocol::{Reason, header};
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

/// Looks up the rows of a batch.
async fn find_rows(cache: &Cache, target: &Target, ask: &mut Ask) {
    let Some(rows) = &mut ask.rows else { return };
    for fact in cache.facts(target, ask.model) {
        // Each input is embedded by itself, whatever the model does with the rows of a batch.
        if fact.has_rows != Some(false) || ask.request.is_embeddings() {
            rows.look_up(cache, fact.content, ask.control.max_age);
            if cache.shared.is_some() && !cache.fetch(&rows.unknown(fact.content)).await.is_empty()
            {
                rows.look_up(cache, fact.content, ask.control.max_age);
            }
        }
    }
    if rows.kept() > 0 {
        report::refresh_stale(&target.pool, clock::now());
    }
}

/// Looks for the answer, and waits for it where an equal request is under way.
///
/// # Errors
/// The client takes only a kept answer and there is none, or it left while it waited, or its time was up; or
/// the model is known not to be there.
pub async fn look_up(
    services: &Services,
    session: &mut Session,
    request: &mut Request,
    received: &Received,
    account: &Account,
) -> Result<Lookup, Stop> {
    let cache = &*services.cache;
    let Some(target) = request.target.clone() else { return Ok(Lookup::Ask(None)) };
    let Some(settings) = &target.route.cache else { return Ok(Lookup::Ask(None)) };
    let head = session.req_header();
    if !request.is_inference(&head.method) && !is_embeddings(head, &request.identity) {
        return Ok(Lookup::Ask(None));
    }
    let wishes = control(&head.headers);
    if settings.negative_ttl > Duration::ZERO && !wishes.no_cache {
        refuse_absent(cache, request, &target)?;
    }
    cache.resize(request.snapshot.config.cache.memory);
    let mut ask = match ask::ask(cache, session, request, (&target, settings), received).await {
        Ok(ask) => Box::new(ask),
        Err(why) => {
            request.cache = Some(Outcome::Bypassed(why));
            return if wishes.only_if_cached {
                Err(not_cached().into())
            } else {
                Ok(Lookup::Ask(None))
            };
        }
    };
    request.cache = Some(Outcome::Missed { kept_for: None });
    if !wishes.no_cache
        && let Some(entry) = cache.find(&target, (ask.question, ask.model), ask.control.max_age)
    {
        match permitted(&entry, settings, now()) {
            Use::Fresh => {
                let given = hit(request, &ask, &entry, account, From::Store)?;
                if let Lookup::Answered(response) = &given {
                    remember(cache, &ask, &entry, response);
                }
                return Ok(given);
            }
            Use::WhileRenewing => {
                let given = hit(request, &ask, &entry, account, From::Stale)?;
                // Such a client wants nothing kept, or no inference.
                let may_renew = !wishes.no_store && !wishes.only_if_cached;
                if let Received::Whole(body) = received
                    && may_renew
                {
                    renew(services, session.req_header(), request, (body, account), ask);
                }
                return Ok(given);
            }
            Use::OnError if has_form(request, &ask, &entry.answer) => ask.stale = Some(entry),
            Use::OnError | Use::None => {}
        }
    }
    if !wishes.no_cache {
        find_rows(cache, &target, &mut ask).await;
        if let Some(entry) = whole_batch(request, &ask, account).await? {
            keep::count_rows(request, &ask);
            return hit(request, &ask, &entry, account, From::Store);
        }
    }
    ask_or_wait(cache, session, (request, &target), ask, account).await
}

/// Has the model asked, or waits for the answer of an equal request that is under way.
async fn ask_or_wait(
    cache: &Cache,
    session: &mut Session,
    (request, target): (&mut Request, &Target),
    mut ask: Box<Ask>,
    account: &Account,
) -> Result<Lookup, Stop> {
    let CacheControl { no_cache, no_store, only_if_cached, max_age, .. } = ask.control;
    let asked = (ask.question, ask.model);
    // Such a client leads no others, for whom the store would be asked once below.
    let is_alone = only_if_cached || max_age.is_some();
    if is_alone
        && !no_cache
        && ask.rows.is_none()
        && let Some(entry) = cache.find_shared(target, asked, max_age).await
    {
        return hit(request, &ask, &entry, account, From::Shared);
    }
    if only_if_cached {
        return Err(not_cached().into());
    }
    if no_store {
        request.cache = Some(Outcome::Bypassed(Bypass::NoStore));
        return Ok(Lookup::Ask(None));
    }
    if ask.stale.is_some() {
        // The old answer is better than that of another variant.
        request.target = Some(target.clone().without_fallback());
    }
    // An answer that is under way may be older than what such a client takes.
    if no_cache || max_age.is_some() {
        return Ok(Lookup::Ask(Some(ask)));
    }
    match cache.flights.join(ask.question, request.priority as u8) {
        Part::Lead(leader) => {
            // It may have been answered since it was looked for.
            if let Some(entry) =
                cache.find(target, asked, max_age).filter(|entry| entry.is_fresh(now()))
            {
                leader.land(Arc::clone(&entry));
                return hit(request, &ask, &entry, account, From::Store);
            }
            // The rows of a batch have been looked for by themselves.
            if ask.rows.is_none()
                && let Some(entry) = cache.find_shared(target, asked, None).await
            {
                leader.land(Arc::clone(&entry));
                return hit(request, &ask, &entry, account, From::Shared);
            }
            ask.leader = Some(leader);
            Ok(Lookup::Ask(Some(ask)))
        }
        Part::Follow(follower) => match wait(session, request, follower).await {
            Ok(Some(entry)) => hit(request, &ask, &entry, account, From::Flight),
            Ok(None) => Ok(Lookup::Ask(Some(ask))),
            Err(refusal) => {
                let stop = Stop::Refused(refusal);
                let old = in_place_of(Err(&stop), &ask, request, account);
                old.map(Lookup::Answered).ok_or(stop)
            }
        },
    }
}

/// Refuses a request for a model that is known not to be there.
fn refuse_absent(cache: &Cache, request: &mut Request, target: &Target) -> Result<(), Refusal> {
    let (name, version) = request.model();
    let number = identify::model(name, version);
    let Some(left) = cache.is_absent(target, number) else { return Ok(()) };
    let name = name.unwrap_or_default().to_owned();
    request.cache = Some(Outcome::Absent { left });
    let message = format!("the endpoints have no such model: {name:?}");
    Err(Refusal::new(Reason::ModelNotFound, message))
}

/// The answer to a batch all rows of which are known.
///
/// # Errors
/// It finds no memory.
async fn whole_batch(
    request: &Request,
    ask: &Ask,
    account: &Account,
) -> Result<Option<Entry>, Refusal> {
    let Some(rows) = ask.rows.as_ref().filter(|rows| rows.kept() == rows.count()) else {
        return Ok(None);
    };
    let _while_it_is_made = memory(account, rows.bytes())?;
    let Some(answer) = rows.whole(&ask.request).await else { return Ok(None) };
    let (born, expires, took) = rows.times();
    let entry = keep::entry(request, ask, answer, (String::new(), None));
    Ok(Some(Entry { born, expires, took, ..entry }))
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

/// Notes the answer to a request that may come again in the same bytes, unless that is noted already.
fn remember(cache: &Cache, ask: &Ask, entry: &Arc<Entry>, response: &BufferedResponse) {
    let (Some(seen), Message::Infer(request)) = (ask.seen, &ask.request) else { return };
    // With an id of its own, each request has other bytes.
    if request.id.is_some() || ask.written_from(entry).is_some() {
        return;
    }
    let headers = &response.head.headers;
    let written = match (&response.body[..], headers.get(http::header::CONTENT_TYPE)) {
        ([body], Some(kind)) if body.len() <= MAX_ANSWER && response.trailers.is_none() => {
            let length = headers.get(header::INFERENCE_HEADER_CONTENT_LENGTH).cloned();
            Some(Written::new(entry, (kind.clone(), length), body))
        }
        // Of gRPC, writing costs no more than finding what was written.
        _ if response.trailers.is_some() && ask.known.is_none() => None,
        _ => return,
    };
    let known = Known { question: ask.question, request: request.clone(), written };
    cache.memo.insert(seen, known);
}

/// Answers from memory, or has the model asked if the kept answer has no such form as the client asked for.
fn hit(
    request: &mut Request,
    ask: &Ask,
    entry: &Entry,
    account: &Account,
    from: From,
) -> Result<Lookup, Stop> {
    Ok(match give(request, ask, entry, (account, from))? {
        Some(response) => Lookup::Answered(response),
        None => {
            request.cache = Some(Outcome::Bypassed(Bypass::Form));
            Lookup::Ask(None)
        }
    })
}
