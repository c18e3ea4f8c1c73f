//! Graceful degradation: a cheaper variant answers where the one that was asked for can't.
//!
//! A worse answer in time is mostly worth more than none. A route names the variants that may stand in;
//! they are asked in that order while nothing has been answered: if the pool has no endpoint, if its
//! queue is full, if the deadline can't be met there, or if all that was tried failed. The client is
//! told, in a header, and so are metrics and the log. Whether one may is decided with everything else
//! about attempts ([`forebay_routing::attempt`]).

use crate::config::Variant;
use crate::http::request::Request;
use crate::http::variant::Target;
use forebay_protocol::{Reason, metric};

/// Goes on to the next variant, since the present one failed for this reason.
pub fn stand_in(request: &mut Request, present: &Target, next: Option<Target>, reason: Reason) {
    let Some(next) = next else { return };
    note(request, &next, &present.variant, reason);
    request.target = Some(next);
}

/// Takes the variant that was drawn, for one that has no endpoint if need be.
pub fn begin(request: &mut Request, target: Target) {
    if let Some(first) = &target.instead_of {
        note(request, &target, first, Reason::NoEndpoint);
    }
    request.target = Some(target);
}

/// Counts that `target` answers for `missed`.
fn note(request: &mut Request, target: &Target, missed: &Variant, reason: Reason) {
    let (route, from) = (target.route.name.as_str(), missed.name.as_str());
    let to = target.variant.name.as_str();
    metric::proxy::DEGRADED.with([route, from, to, reason.code()]).increment(1);
    request.degraded.get_or_insert(reason);
}
