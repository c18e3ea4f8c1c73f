//! Graceful degradation: a cheaper variant answers where the one that was asked for can't.
//!
//! A worse answer in time is mostly worth more than none. A route names the variants that may stand in;
//! they are asked in that order while nothing has been answered: if the pool has no endpoint, if its
//! queue is full, if the deadline can't be met there, or if all that was tried failed. The client is
//! told, in a header, and so are metrics and the log.

use crate::clock;
use crate::http::request::{Degraded, Request};
use crate::http::route::Target;
use crate::refusal::Refusal;
use bytes::Bytes;
use forebay_protocol::{Reason, grpc, metric, oip};
use pingora::http::RequestHeader;
use std::sync::Arc;

/// Goes on to the next variant that may stand in, if `refusal` is a reason to and there is one.
pub fn next(request: &mut Request, target: &Target, refusal: &Refusal) -> Option<Target> {
    let late = refusal.reason == Reason::DeadlineExceeded;
    if !(late || refusal.reason.retryable())
        || request.time_left().is_some_and(|left| left.is_zero())
    {
        return None;
    }
    let fallback = request.degraded.map_or(0, |degraded| degraded.fallback + 1);
    let pool = target.fallbacks.get(fallback)?;
    // Another model at the same endpoints is one more attempt for them: it is paid for as a retry is.
    let again = Arc::ptr_eq(&pool.state, &target.pool.state) && !request.attempts.is_empty();
    if again && !pool.state.budget.try_retry(clock::now()) {
        return None;
    }
    let reason = request.degraded.map_or(refusal.reason, |degraded| degraded.reason);
    let next = Target { pool: pool.clone(), ..target.clone() };
    metrics::counter!(
        metric::proxy::DEGRADED,
        "route" => target.route.name.clone(),
        "from" => target.variant().to_owned(),
        "to" => next.variant().to_owned(),
        "reason" => refusal.reason.code(),
    )
    .increment(1);
    request.degraded = Some(Degraded { reason, fallback });
    request.target = Some(next.clone());
    Some(next)
}

/// BindRequest for another model in the path.
///
/// # Errors
/// A path that can't be written; it was read before.
pub fn rename_path(head: &mut RequestHeader, model: &str) -> pingora::Result<()> {
    let Some(mut path) = oip::with_model(head.uri.path(), model) else { return Ok(()) };
    if let Some(query) = head.uri.query() {
        path.push('?');
        path.push_str(query);
    }
    head.set_raw_path(path.as_bytes())
}

/// BindRequest for another model in a message of gRPC. `None`: it is compressed, so what it says is between
/// the client and the endpoint.
pub fn rename_message(body: &Bytes, model: &str) -> Option<Bytes> {
    let (compressed, message) = grpc::only_message(body).ok()?;
    if compressed {
        return None;
    }
    let renamed = grpc::with_model(&message, model);
    Some(grpc::frame(renamed.len(), |frame| frame.extend_from_slice(&renamed)))
}
