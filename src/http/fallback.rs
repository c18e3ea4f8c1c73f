//! Graceful degradation: a cheaper variant answers where the one that was asked for can't.
//!
//! A worse answer in time is mostly worth more than none. A route names the variants that may stand in;
//! they are asked in that order while nothing has been answered: if the pool has no endpoint, if its
//! queue is full, if the deadline can't be met there, or if all that was tried failed. The client is
//! told, in a header, and so are metrics and the log.

use crate::clock;
use crate::http::request::Request;
use crate::http::variant::Target;
use crate::refusal::Refusal;
use forebay_protocol::{Reason, metric};
use std::sync::Arc;

/// Goes on to the next variant that may stand in, if `refusal` is a reason to and there is one.
pub fn next(request: &mut Request, target: &Target, refusal: &Refusal) -> Option<Target> {
    let late = refusal.reason == Reason::DeadlineExceeded;
    if !(late || refusal.reason.retryable())
        || request.time_left().is_some_and(|left| left.is_zero())
    {
        return None;
    }
    let next = target.fallback(&request.snapshot, &request.identity)?;
    // Another model at the same endpoints is one more attempt for them: it is paid for as a retry is.
    let again = Arc::ptr_eq(&next.pool.state, &target.pool.state) && !request.attempts.is_empty();
    if again && !next.pool.state.budget.try_retry(clock::now()) {
        return None;
    }
    metrics::counter!(
        metric::proxy::DEGRADED,
        "route" => target.route.name.clone(),
        "from" => target.variant.name.clone(),
        "to" => next.variant.name.clone(),
        "reason" => refusal.reason.code(),
    )
    .increment(1);
    request.degraded.get_or_insert(refusal.reason);
    request.target = Some(next.clone());
    Some(next)
}
