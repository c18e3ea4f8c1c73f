//! Graceful degradation: a cheaper variant answers where the one that was asked for can't.
//!
//! A worse answer in time is mostly worth more than none. A route names the variants that may stand in;
//! they are asked in that order while nothing has been answered: if the pool has no endpoint, if its
//! queue is full, if the deadline can't be met there, or if all that was tried failed. The client is
//! told, in a header, and so are metrics and the log. Whether one may is decided with everything else
//! about attempts ([`forebay_routing::attempt`]).

use crate::http::request::Request;
use crate::http::variant::Target;
use forebay_protocol::{Reason, metric};

/// Goes on to the next variant, since the present one failed for this reason.
pub fn stand_in(request: &mut Request, present: &Target, next: Option<Target>, reason: Reason) {
    let Some(next) = next else { return };
    metric::proxy::DEGRADED
        .with([
            present.route.name.as_str(),
            present.variant.name.as_str(),
            next.variant.name.as_str(),
            reason.code(),
        ])
        .increment(1);
    request.degraded.get_or_insert(reason);
    request.target = Some(next);
}
