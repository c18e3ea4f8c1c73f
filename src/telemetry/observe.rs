//! The record of a finished request: counts, times, and one line in the access log.

use crate::http::cache::outcome::Outcome;
use crate::http::identify::Identity;
use crate::http::request::{ForwardMode, Request};
use crate::pool::steps::Steps;
use crate::refusal::Refusal;
use crate::split::{Assignment, Sample};
use crate::telemetry::access_log::{self, AccessLogger, shortened};
use forebay_framing::request_head;
use forebay_protocol::{Priority, Reason, header, metric};
use forebay_routing::attempt::event::Hedged;
use pingora::Error;
use pingora::proxy::Session;

/// The access log of a process; its metrics are the recorder's.
pub struct Observer {
    log: AccessLogger,
}

impl Observer {
    /// An observer that writes its lines to `log`.
    pub fn new(log: AccessLogger) -> Self {
        Self { log }
    }

    /// The log, to reopen or flush it.
    pub fn log(&self) -> &AccessLogger {
        &self.log
    }
}

/// Records the end of a request.
pub fn observe(
    observer: &Observer,
    session: &mut Session,
    request: &mut Request,
    error: Option<&Error>,
) {
    let status = session.response_written().map_or(0, |head| head.status.as_u16());
    for attempt in &mut request.attempts {
        // A streamed answer ends here; one that was held has ended before.
        let well = (200..300).contains(&status) && request.grpc_status.is_none_or(|code| code == 0);
        attempt.answered(error.is_none() && well);
    }
    if error.is_some() && request.refusal.is_none() {
        let left = Refusal::new(Reason::ClientClosed, "the client left");
        request.refusal = Some(left);
    }
    let reason = reason(session, request);
    count(request, status, reason);
    inform(request, status, reason);
    write_line(observer, session, request, status, reason);
    request.in_flight = None;
}

/// The connection of something that is not a request, or not yet.
pub struct RejectedConnection<'a> {
    /// Address of the client.
    pub client: Option<String>,
    /// Version of TLS that it speaks.
    pub tls: Option<&'a str>,
    /// The bytes of a request's header so far, as HTTP/1.1 has it.
    pub head: &'a [u8],
}

/// Records a request that was refused before it was one: its head is not complete, or wrong. Returns
/// the id that it is given.
pub fn record_rejected_connection(
    observer: &Observer,
    from: &RejectedConnection<'_>,
    refusal: &Refusal,
) -> String {
    let status = refusal.reason.status().as_u16();
    metric::proxy::REQUESTS.with(["", "", &status.to_string(), refusal.reason.code()]).increment(1);
    let identity = Identity::anonymous();
    // A flood of connections must not become a flood of lines: those are counted.
    let is_counted_only =
        matches!(refusal.reason, Reason::ConnectionLimit | Reason::ProxyExhausted);
    if observer.log.is_on() && !is_counted_only {
        let (method, path) = request_head::request_line(from.head);
        observer.log.write(&access_log::Entry {
            time: access_log::timestamp(std::time::SystemTime::now()),
            request_id: &identity.request_id,
            trace_id: identity.trace_id(),
            client: from.client.clone(),
            tls: from.tls,
            method: shortened(&method),
            path: shortened(&path),
            status,
            reason: refusal.reason.code(),
            priority: Priority::default().as_str(),
            error: Some(&refusal.message),
            ..Default::default()
        });
    }
    identity.request_id
}

/// The refusal's reason, or the one that the endpoint gave; `ok` without either.
fn reason(session: &Session, request: &Request) -> &'static str {
    if let Some(refusal) = &request.refusal {
        return refusal.reason.code();
    }
    if let Some(stated) = request.endpoint_reason {
        return stated.code();
    }
    let stated = session.response_written().and_then(|head| head.headers.get(header::REASON));
    let stated = stated.and_then(|value| value.to_str().ok()).and_then(Reason::from_code);
    stated.map_or("ok", Reason::code)
}

fn count(request: &Request, status: u16, reason: &'static str) {
    let elapsed = request.took();
    let Some(target) = &request.target else {
        metric::proxy::REQUESTS.with(["", "", &status.to_string(), reason]).increment(1);
        return;
    };
    let (route, variant) = (target.route.name.as_str(), target.variant.name.as_str());
    if let Some(outcome) = request.cache {
        metric::proxy::CACHE_REQUESTS.with([route, outcome.as_str()]).increment(1);
        if let Outcome::Bypassed(why) = outcome {
            metric::proxy::CACHE_BYPASSES.with([route, why.as_str()]).increment(1);
        }
    }
    let handles = request.snapshot.metrics.of(&target.variant);
    if let Some(handles) = handles {
        handles.assigned(target.assignment);
        handles.seconds.record(elapsed);
    }
    if let Some(handles) = handles.filter(|_| status == 200 && reason == "ok") {
        handles.answered.increment(1);
        return;
    }
    metric::proxy::REQUESTS.with([route, variant, &status.to_string(), reason]).increment(1);
}

/// Tells those that gather evidence about the variants of a route that is split.
fn inform(request: &Request, status: u16, reason: &'static str) {
    let Some(target) = &request.target else { return };
    let Some(split) = request.snapshot.splits.of(&target.route) else { return };
    let first = request.decisions.as_ref().map_or(target, |decisions| decisions.asked());
    split.finished(&Sample {
        variant: &target.variant.name,
        drawn: &first.instead_of.as_ref().unwrap_or(&first.variant).name,
        place: target.client_place,
        instead_of: target.instead_of.as_ref().map(|it| it.name.as_str()),
        assignment: target.assignment,
        client: request.identity.client,
        status,
        reason: Reason::from_code(reason),
        took: request.took(),
        attempts: request.attempts.len(),
        is_hedged: request.hedged.is_some(),
        is_from_cache: request.cache.is_some_and(Outcome::is_from_memory),
        is_degraded: request.degraded.is_some(),
    });
}

fn write_line(
    observer: &Observer,
    session: &Session,
    request: &Request,
    status: u16,
    reason: &'static str,
) {
    if !observer.log.is_on() {
        return;
    }
    let head = session.req_header();
    let identity = &request.identity;
    let target = request.target.as_ref();
    let split = target.filter(|target| target.route.variants.len() > 1);
    let assignment = split.map(|target| target.assignment);
    let micros = |d: std::time::Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
    observer.log.write(&access_log::Entry {
        time: access_log::timestamp(std::time::SystemTime::now()),
        request_id: &identity.request_id,
        trace_id: identity.trace_id(),
        client: session.client_addr().map(ToString::to_string),
        tls: session.digest().and_then(|digest| Some(&*digest.ssl_digest.as_ref()?.version)),
        method: head.method.as_str(),
        path: shortened(head.uri.path()),
        status,
        grpc_status: grpc_status(request),
        reason,
        route: target.map(|target| target.route.name.as_str()),
        variant: target.map(|target| target.variant.name.as_str()),
        assignment: assignment.map(Assignment::as_str),
        weight: assignment.and_then(Assignment::weight),
        pool: target.map(|target| target.pool.config.name.as_str()),
        model: identity.model.as_deref().map(shortened),
        version: identity.version.as_deref().map(shortened),
        priority: request.priority.as_str(),
        mode: request.mode.map(ForwardMode::as_str),
        endpoint: request.answering().map(|picked| &*picked.endpoint.state.name),
        slots: request.answering().and_then(|picked| picked.endpoint.state.load.known_slots()),
        attempts: request.attempts.len(),
        hedged: request.hedged.map(Hedged::as_str),
        degraded: request.degraded.map(Reason::code),
        cache: request.cache.map(Outcome::logged),
        bytes_in: request.bytes_in.max(session.body_bytes_read() as u64),
        bytes_out: session.body_bytes_sent() as u64,
        deadline_us: request.deadline.map(|at| micros(at.duration_since(request.arrived))),
        total_us: micros(request.took()),
        receive_us: micros(request.times.receive),
        balance_us: micros(request.times.balance),
        forward_us: micros(request.times.forward),
        error: request.refusal.as_ref().map(|refusal| &*refusal.message),
        decisions: request.steps.as_ref().map(Steps::take),
        shadow: None,
    });
}

/// The gRPC status that the client saw.
fn grpc_status(request: &Request) -> Option<u8> {
    request.identity.grpc?;
    let refused = request.refusal.as_ref().map(|refusal| refusal.reason.grpc().number());
    refused.or(request.grpc_status)
}
