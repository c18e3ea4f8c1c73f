//! Gives an answer from memory to a client, in the form that it asked for.

use super::ask::Ask;
use super::message::{self, written};
use super::outcome::Outcome;
use super::time::now;
use crate::body_memory::{Account, Held, cost};
use crate::http::admit::no_memory;
use crate::http::request::Request;
use crate::http::response::BufferedResponse;
use crate::http::stage::Stop;
use crate::refusal::Refusal;
use bytes::Bytes;
use forebay_cache::{Answer, Entry};
use forebay_protocol::metric;
use http::HeaderMap;
use pingora::http::ResponseHeader;

/// Bytes that are written to a client at once.
const PIECE: usize = 64 * 1024;

/// Why an answer from memory is given.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    /// It is fresh.
    Store,
    /// It is fresh, and was in the shared store only.
    Shared,
    /// An equal request has just been answered.
    Flight,
    /// It is stale, and is being renewed.
    Stale,
    /// It is stale, and the model has not answered.
    Error,
}

/// The answer of this entry, with what is noted of it in the request; `None`: it has no such form as the client
/// asked for.
///
/// # Errors
/// It finds no memory.
pub(super) fn give(
    request: &mut Request,
    ask: &Ask,
    entry: &Entry,
    (account, from): (&Account, From),
) -> Result<Option<BufferedResponse>, Stop> {
    let ready = ask.written_from(entry).and_then(message::written_before);
    let response = match ready {
        Some((head, body)) => {
            let held = memory(account, body.len())?;
            Some(in_pieces((head, body, None), held))
        }
        None => response(request, ask, &entry.answer, account)?,
    };
    let Some(mut response) = response else { return Ok(None) };
    let now = now();
    let (age, left) = (entry.age(now), entry.expires.saturating_sub(now));
    request.cache = Some(match from {
        From::Store | From::Shared => Outcome::Hit { age, left, is_shared: from == From::Shared },
        From::Flight => Outcome::Joined { left },
        From::Stale | From::Error => {
            let on_error = from == From::Error;
            Outcome::Stale { age, over: entry.stale_for(now), on_error }
        }
    });
    if from != From::Flight {
        response.head.insert_header(http::header::AGE, age.as_secs())?;
    }
    if let Some(target) = &request.target {
        let saved = metric::proxy::CACHE_SAVED.with([&target.route.name]);
        saved.increment(entry.took.as_secs_f64());
    }
    Ok(Some(response))
}

/// An answer in the form that the client asked for; `None`: it has no such form.
///
/// # Errors
/// It finds no memory.
pub(super) fn response(
    request: &Request,
    ask: &Ask,
    answer: &Answer,
    account: &Account,
) -> Result<Option<BufferedResponse>, Refusal> {
    let is_grpc = request.identity.grpc.is_some();
    let held = memory(account, answer.len())?;
    let Some(written) = written(answer, &ask.request, is_grpc) else { return Ok(None) };
    let response = in_pieces(written, held);
    let length: usize = response.body.iter().map(|piece| cost(piece.len())).sum();
    response.held.grow(length.saturating_sub(cost(answer.len()))).map_err(no_memory)?;
    Ok(Some(response))
}

/// An answer that holds memory.
fn in_pieces(
    (head, mut whole, trailers): (Box<ResponseHeader>, Bytes, Option<Box<HeaderMap>>),
    held: Held,
) -> BufferedResponse {
    // In pieces, so that a client that takes them one by one is seen to take them.
    let mut body = Vec::with_capacity(whole.len() / PIECE + 1);
    while whole.len() > PIECE {
        body.push(whole.split_to(PIECE));
    }
    body.push(whole);
    BufferedResponse { head, body, trailers, held }
}

/// Memory for an answer of about so many bytes.
///
/// # Errors
/// There is none. An answer that comes from an endpoint always finds memory for its first piece, since the
/// endpoint waits; one that is at hand need not be made.
pub(super) fn memory(account: &Account, bytes: usize) -> Result<Held, Refusal> {
    let held = account.for_answers().hold();
    held.grow(cost(0)).and_then(|()| held.grow(cost(bytes))).map_err(no_memory)?;
    Ok(held)
}

/// Whether an answer has the form that the client asked for.
pub(super) fn has_form(request: &Request, ask: &Ask, answer: &Answer) -> bool {
    written(answer, &ask.request, request.identity.grpc.is_some()).is_some()
}
