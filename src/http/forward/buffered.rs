//! Requests whose body is received before an endpoint is picked.
//!
//! A body that can be held is there whole: it can be sent again ([`attempts`](super::attempts)), and
//! the answer of an inference is held too, up to a bound, so that one that breaks off half way can
//! still be replaced. Of a longer body the rest is streamed ([`upload`](super::upload)).

use super::attempts::{AttemptAnswer, Attempts};
use super::exchange::{MAX_HELD_ANSWER, Message};
use super::headers::{HOP_BY_HOP, nominated, prepare_request};
use super::{grpc, is_repeatable};
use crate::body_memory::Account;
use crate::http::cache::outcome::Outcome as CacheOutcome;
use crate::http::get_infer;
use crate::http::receive::client_left;
use crate::http::request::Request;
use crate::http::stage::Stop;
use crate::http::variant::Target;
use crate::pool::connector::Connector;
use crate::refusal::Refusal;
use bytes::Bytes;
use forebay_cache::Entry;
use forebay_cache::flight::Leader;
use forebay_protocol::Reason;
use http::{Method, Version};
use pingora::http::RequestHeader;
use pingora::proxy::Session;
use std::sync::Arc;

/// Sends the request until an endpoint answers, or the client leaves and no other waits for the answer.
///
/// # Errors
/// The client is refused, or has left.
pub(super) async fn send(
    session: &mut Session,
    request: &mut Request,
    target: Target,
    body: Bytes,
    (connector, account, leader): (&Connector, &Account, Option<&Leader<Arc<Entry>>>),
) -> Result<AttemptAnswer, Stop> {
    let message = message(session.req_header(), request, account, body)?;
    let attempts = Attempts::new(request, &target, message, connector);
    // A request whose body is still to come need not have room for this.
    let mut attempts = Box::pin(attempts.run());
    let left = tokio::select! {
        outcome = &mut attempts => return outcome.map_err(Stop::Refused),
        // With the body complete this resolves only if the client leaves.
        left = session.downstream_session.read_body_or_idle(true) => left,
    };
    let gone = gone(left);
    if leader.is_some_and(Leader::has_followers) {
        // Bytes that the client has sent since then were taken for its end.
        session.downstream_session.set_keepalive(None);
        return attempts.await.map_err(Stop::Refused);
    }
    Err(gone.into())
}

/// Sends a request that no client waits for, until an endpoint answers.
///
/// # Errors
/// The refusal of the last attempt.
pub(super) async fn send_detached(
    head: &RequestHeader,
    request: &mut Request,
    target: &Target,
    body: Bytes,
    (connector, account): (&Connector, &Account),
) -> Result<AttemptAnswer, Stop> {
    let message = message(head, request, account, body)?;
    let attempts = Attempts::new(request, target, message, connector);
    Ok(Box::pin(attempts.run()).await?)
}

fn gone(read: pingora::Result<Option<Bytes>>) -> Refusal {
    match read {
        Err(error) => client_left(&error),
        Ok(_) => {
            Refusal::new(Reason::ClientClosed, "the client sent more than one request at once")
        }
    }
}

/// The message, for any endpoint.
pub(super) fn message(
    received: &RequestHeader,
    request: &Request,
    account: &Account,
    body: Bytes,
) -> pingora::Result<Message> {
    let received = &*get_infer::forwarded(received, &request.identity)?;
    let is_grpc = request.identity.grpc.is_some();
    let mut head = if is_grpc {
        grpc::request_head(received)?
    } else {
        request_head(received, Length::Of(body.len()))?
    };
    prepare_request(&mut head, request)?;
    if is_missed(request) {
        // Its answer is kept for all, and given without compression.
        head.remove_header(&http::header::ACCEPT_ENCODING);
    }
    Ok(Message {
        head,
        body,
        is_grpc,
        deadline: request.deadline,
        // An answer that may be kept is held, whatever it answers.
        is_replayable: request.is_inference(&received.method)
            || is_missed(request)
            || request.holds_answer,
        is_repeatable: is_repeatable(request, received),
        most_held: most_held(request),
        account: account.for_answers(),
    })
}

/// Whether its answer may be kept for others.
fn is_missed(request: &Request) -> bool {
    matches!(request.cache, Some(CacheOutcome::Missed { .. }))
}

/// Most bytes of an answer that are held: more where the whole of it may be kept.
fn most_held(request: &Request) -> usize {
    let settings = request.target.as_ref().and_then(|target| target.route.cache.as_ref());
    let kept = settings.filter(|_| is_missed(request)).map_or(0, |settings| settings.max_entry);
    usize::try_from(kept).unwrap_or(usize::MAX).max(MAX_HELD_ANSWER)
}

/// The length of the body.
#[derive(Clone, Copy)]
pub(super) enum Length {
    /// This many bytes, all of which are there.
    Of(usize),
    /// The length that the client states, if it does.
    AsStated,
}

/// The header of the request to an endpoint, independent of the client's version and framing.
pub(super) fn request_head(
    received: &RequestHeader,
    length: Length,
) -> pingora::Result<RequestHeader> {
    let mut head = received.clone();
    if received.version == Version::HTTP_2 {
        if let Some(authority) = received.uri.authority() {
            head.insert_header(http::header::HOST, authority.as_str())?;
        }
        let path = received.uri.path_and_query().map_or("/", |path| path.as_str());
        head.set_raw_path(path.as_bytes())?;
    }
    head.set_version(Version::HTTP_11);
    for name in nominated(&received.headers) {
        head.remove_header(&name);
    }
    for name in HOP_BY_HOP.iter().chain([&http::header::EXPECT]) {
        head.remove_header(name);
    }
    match length {
        // A request without a body states none, unless its method leads one to expect it.
        Length::Of(0) if !matches!(head.method, Method::POST | Method::PUT | Method::PATCH) => {
            head.remove_header(&http::header::CONTENT_LENGTH);
        }
        Length::Of(length) => head.insert_header(http::header::CONTENT_LENGTH, length)?,
        Length::AsStated if head.headers.contains_key(http::header::CONTENT_LENGTH) => {}
        Length::AsStated => head.insert_header(http::header::TRANSFER_ENCODING, "chunked")?,
    }
    Ok(head)
}
