//! Answers whose time is up: given while a new one is fetched, or where no new one can be had (RFC 5861).
//!
//! Without this, each time that a popular answer ends, its next clients wait for the model, and a model that is
//! away takes its popular answers with it. An old answer is given only within the times that the route allows,
//! and never to a client that asks for a newer one.

use super::ask::Ask;
use super::give::{From, give};
use super::keep::keep;
use super::message::is_success;
use super::outcome::Outcome;
use crate::body_memory::Account;
use crate::config::RouteCache;
use crate::http::background::Background;
use crate::http::request::Request;
use crate::http::response::BufferedResponse;
use crate::http::services::Services;
use crate::http::stage::Stop;
use bytes::Bytes;
use forebay_cache::Entry;
use forebay_cache::flight::Part;
use forebay_protocol::grpc::Code;
use forebay_protocol::{Priority, header, metric};
use pingora::http::RequestHeader;
use std::sync::Arc;
use std::time::Duration;

/// The use that may be made of a kept answer.
pub(super) enum Use {
    /// It may be given.
    Fresh,
    /// It may be given while it is renewed.
    WhileRenewing,
    /// It may be given if the model does not answer.
    OnError,
    /// Nothing.
    None,
}

/// The use of a kept answer that the route permits.
pub(super) fn permitted(entry: &Entry, settings: &RouteCache, now: Duration) -> Use {
    let over = entry.stale_for(now);
    match () {
        () if entry.is_fresh(now) => Use::Fresh,
        () if over < settings.stale_while_revalidate => Use::WhileRenewing,
        () if over < settings.stale_if_error => Use::OnError,
        () => Use::None,
    }
}

/// Asks the model for a new answer, beside the request that gets the old one, unless that is being done.
pub(super) fn renew(
    services: &Services,
    head: &RequestHeader,
    request: &Request,
    (body, account): (&Bytes, &Account),
    mut ask: Box<Ask>,
) {
    let Some(target) = request.target.clone() else { return };
    let cache = &services.cache;
    let Part::Lead(leader) = cache.flights.join(ask.question, Priority::Batch as u8) else {
        return;
    };
    let is_renewed = |entry: &Arc<Entry>| entry.is_fresh(super::time::now());
    if cache.find(&target, (ask.question, ask.model), None).is_some_and(|entry| is_renewed(&entry))
    {
        return;
    }
    ask.leader = Some(leader);
    let count = move |outcome: &'static str| {
        metric::proxy::CACHE_RENEWALS.with([target.route.name.as_str(), outcome]).increment(1);
    };
    let place = Arc::clone(&cache.renewals).try_acquire_owned();
    let copy = Background::copy(services, head, request, (body, account));
    let (Ok(place), Some(mut copy)) = (place, copy) else {
        count("skipped");
        return;
    };
    let services = services.clone();
    tokio::spawn(async move {
        let _place = place;
        let is_renewed = run(&services, &mut copy, &mut ask).await;
        count(if is_renewed { "renewed" } else { "failed" });
    });
}

/// Sends a renewal and keeps its answer; whether there is one to keep.
async fn run(services: &Services, copy: &mut Background, ask: &mut Ask) -> bool {
    let Ok(Some(response)) = copy.send(services).await else { return false };
    let is_grpc = copy.request.identity.grpc.is_some();
    if !is_success(&response, is_grpc) {
        return false;
    }
    let given = (response, true);
    let account = copy.account.clone();
    let kept = keep(&services.cache, ask, &mut copy.request, given, (&account, false)).await;
    kept.is_ok() && matches!(copy.request.cache, Some(Outcome::Missed { kept_for: Some(_) }))
}

/// The old answer, in place of a failure; `None`: there is none, or it is no failure that it may hide.
pub fn in_place_of(
    sent: Result<&BufferedResponse, &Stop>,
    ask: &Ask,
    request: &mut Request,
    account: &Account,
) -> Option<BufferedResponse> {
    let entry = Arc::clone(ask.stale.as_ref()?);
    let is_failure = match sent {
        Ok(response) => {
            let status = response.head.status;
            let is_refused = status == http::StatusCode::TOO_MANY_REQUESTS;
            status.is_server_error() || is_refused || is_failed_call(response)
        }
        Err(Stop::Refused(refusal)) => refusal.reason.status().is_server_error(),
        Err(Stop::Broken(_)) => false,
    };
    is_failure.then(|| give(request, ask, &entry, (account, From::Error)).ok().flatten()).flatten()
}

/// Whether a call of gRPC has failed through no fault of its client.
fn is_failed_call(response: &BufferedResponse) -> bool {
    let trailers = response.trailers.as_deref().unwrap_or(&response.head.headers);
    let code = trailers.get(header::GRPC_STATUS).and_then(Code::parse);
    matches!(
        code,
        Some(
            Code::Unknown
                | Code::DeadlineExceeded
                | Code::ResourceExhausted
                | Code::Internal
                | Code::Unavailable
        )
    )
}
