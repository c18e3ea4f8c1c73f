//! The stages of a request, in order: from its header to its answer.
//!
//! A request meets each stage once, and the stage's file has all of its behaviour. It gets the facts that
//! are known by then and lets the request pass, answers it, or refuses it. Checks of the header alone stand
//! before the first stage that reads a body, so that nothing is received for a request that may not be
//! answered.

use crate::body_memory::{Account, StreamMemory};
use crate::http::admit::take_in_parameters;
use crate::http::attempts;
use crate::http::cache::{self, Ask, Kept, Lookup};
use crate::http::forward::send::{Unread, send};
use crate::http::receive::{Received, receive};
use crate::http::request::{ForwardMode, Request};
use crate::http::response::BufferedResponse;
use crate::http::services::Services;
use crate::http::stage::Stop;
use crate::http::{
    admit, assign, fallback, forward, get_infer, grpc, identify, repository, respond, route,
    shadow, variant,
};
use forebay_protocol::grpc::Method;
use forebay_protocol::oip::Call;
use pingora::proxy::Session;
use std::sync::Arc;

/// The way in which a request left the stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passed {
    /// It is answered.
    Answered,
    /// It goes on into Pingora's pipe, which carries streams.
    Piped,
}

/// Sends a request whose answer is kept, or a smaller one where a part of the answer is known.
async fn ask_model(
    services: &Services,
    session: &mut Session,
    request: &mut Request,
    (received, mut ask): (Received, Box<Ask>),
    account: &Account,
) -> Result<(BufferedResponse, Option<Unread>), Stop> {
    let whole = received.whole();
    let original = session.req_header().clone();
    let mut replaced = cache::replacement(&ask, request);
    loop {
        let was_replaced = replaced.is_some();
        let body = match replaced.take() {
            Some(smaller) => cache::replace(session.req_header_mut(), smaller)?,
            None => whole.clone(),
        };
        let to = (&*services.connector, account, ask.leader.as_ref());
        let sent = Box::pin(send(session, request, Received::Whole(body), to)).await;
        if was_replaced {
            *session.req_header_mut() = original.clone();
        }
        let answered = sent.as_ref().map(|(response, _)| response);
        if let Some(old) = cache::in_place_of(answered, &ask, request, account) {
            attempts::abandon(request);
            return Ok((old, None));
        }
        let (response, rest) = sent?;
        let given = (response, rest.is_none());
        let kept = cache::keep(&services.cache, &mut ask, request, given, (account, was_replaced));
        match kept.await? {
            Kept::Answer(response) => return Ok((response, rest)),
            Kept::AskWhole => {
                // Of the answer that does not fit, the rest is not read.
                attempts::abandon(request);
                request.attempts.clear();
                ask.forget_rows();
            }
        }
    }
}

/// Takes the request through the stages.
///
/// # Errors
/// It is refused by one of them, or its client has left.
pub async fn run(
    services: &Services,
    session: &mut Session,
    request: &mut Request,
) -> Result<Passed, Stop> {
    let snapshot = Arc::clone(&request.snapshot);
    let limits = &snapshot.config.limits;
    identify::identify(session, &mut request.identity, limits)?;
    if let Some(Call::ServerLive | Call::ServerReady) = request.identity.call {
        let ready = services.lifecycle.is_ready(&snapshot);
        respond::health(session, request, ready).await?;
        return Ok(Passed::Answered);
    }
    let is_health = request.identity.grpc.is_some_and(Method::is_health);
    admit::place(request, limits, &services.lifecycle, is_health)?;
    let account = Account::new(services.lifecycle.memory(), request.identity.client, limits);
    let message = match grpc::receive(session, request, limits, &account).await? {
        Some(grpc::Received::Health(message)) => {
            let state = (&*services.lifecycle, &*services.present);
            respond::grpc::health(session, request, &message, state).await?;
            return Ok(Passed::Answered);
        }
        Some(grpc::Received::Infer(message)) => Some(message),
        None => None,
    };

    let head = session.req_header();
    let route = route::route(&snapshot.config, &request.identity, head.uri.path())?;
    let wish = assign::wish(session, request, route, limits);
    let target = variant::choose(&snapshot, route, &request.identity, &wish)?;
    let head = session.req_header();
    request.priority = request.identity.priority.unwrap_or(route.priority);
    request.key = identify::key(&target.pool.config, &request.identity, &head.headers);
    fallback::begin(request, target);
    let mode = admit::admit(request, limits, route.deadline, &account)?;
    request.mode = Some(mode);
    if mode == ForwardMode::Streamed {
        if session.downstream_session.is_http2() {
            request.stream_memory = Some(StreamMemory::new(&account));
        }
        admit::stream(request, limits, services.lifecycle.streams())?;
        forward::streamed::begin(session, request, limits);
        return Ok(Passed::Piped);
    }

    let received = match message {
        Some(message) => Received::Whole(message),
        None => receive(session, request, limits, &account).await?,
    };
    let received = match request.identity.asks_by_get {
        true => get_infer::question(session.req_header(), request, &received)?,
        false => received,
    };
    if repository::is_change(session.req_header(), request) {
        let whole = (received, &account);
        let change = repository::to_all(services, session.req_header(), request, whole);
        let response = Box::pin(change).await?;
        request.body_memory = None;
        Box::pin(respond::answer(session, request, response, None, &services.connector)).await?;
        return Ok(Passed::Answered);
    }
    take_in_parameters(session.req_header(), request, route, received.at_hand());
    let shadow = shadow::begin(services, session.req_header(), request, &received);
    request.holds_answer = shadow.is_some();
    // A request whose body is still to come need not have room for this, nor for what follows.
    let is_cached = request.target.as_ref().is_some_and(|target| target.route.cache.is_some());
    let found = if is_cached {
        Box::pin(cache::look_up(services, session, request, &received, &account)).await?
    } else {
        Lookup::Ask(None)
    };
    let (mut response, rest) = match found {
        Lookup::Answered(response) => (response, None),
        Lookup::Ask(None) => {
            let to = (&*services.connector, &account, None);
            Box::pin(send(session, request, received, to)).await?
        }
        Lookup::Ask(Some(ask)) => {
            Box::pin(ask_model(services, session, request, (received, ask), &account)).await?
        }
    };
    let shadow = shadow.and_then(|it| it.answered(request, &response, rest.is_none()));
    if request.identity.asks_by_get {
        let asked = &session.req_header().headers;
        cache::conditional::complete(asked, request, &mut response, rest.is_none())?;
    }
    // Its body is not needed any more, however long the client takes to read.
    request.body_memory = None;
    Box::pin(respond::answer(session, request, response, rest, &services.connector)).await?;
    if let Some(shadow) = shadow {
        shadow.send(services, request);
    }
    Ok(Passed::Answered)
}
