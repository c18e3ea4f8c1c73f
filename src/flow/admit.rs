//! May the request go on? Its size and its time are checked before anything is spent on it.

use crate::config::Limits;
use crate::error::Refusal;
use crate::request::Request;
use crate::server::Lifecycle;
use forebay_config::ByteSize;
use forebay_protocol::oip::Call;
use forebay_protocol::{Reason, grpc};
use http::Method;
use std::sync::Arc;
use std::time::Duration;

/// How an admitted request is sent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Held in memory, so that it can be sent again.
    Unary,
    /// Piped through as it comes.
    Stream,
}

impl Way {
    /// The word in the access log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unary => "unary",
            Self::Stream => "stream",
        }
    }
}

/// Checks size and deadline; sets the request's deadline.
///
/// # Errors
/// The refusal, if the body is too large.
pub fn admit(
    request: &mut Request,
    method: &Method,
    limits: &Limits,
    route_deadline: Duration,
    lifecycle: &Arc<Lifecycle>,
) -> Result<Way, Refusal> {
    if let Some(length) = request.identity.content_length
        && length > limits.body
    {
        return Err(body_too_large(limits.body, Some(length)));
    }
    // A stream lasts as long as its caller says, and else as long as it is not silent.
    if request.identity.grpc.is_some_and(grpc::Method::is_stream) {
        request.deadline = request.identity.deadline.map(|asked| request.arrived + asked);
        return Ok(Way::Stream);
    }
    within(request, route_deadline);
    if request.identity.call != Some(Call::Infer) || method != Method::POST {
        return Ok(Way::Stream);
    }
    // A call of gRPC was received before it was routed.
    if request.held.is_some() {
        return Ok(Way::Unary);
    }
    // Without a stated length nobody knows whether it can be held. One that finds the memory full
    // is streamed too: it loses its retries, not its answer.
    let length = request.identity.content_length.filter(|length| *length <= limits.buffer);
    request.held = length.and_then(|length| lifecycle.hold(length, limits.memory));
    Ok(if request.held.is_some() { Way::Unary } else { Way::Stream })
}

/// Sets the deadline of what is no stream: the caller's, if that is sooner than the route's.
pub fn within(request: &mut Request, route_deadline: Duration) {
    let asked = request.identity.deadline.unwrap_or(route_deadline);
    request.deadline = Some(request.arrived + asked.min(route_deadline));
}

/// The refusal of a body that is too large, whether the header says so or the bytes do.
pub fn body_too_large(limit: u64, found: Option<u64>) -> Refusal {
    let limit = ByteSize(limit).to_string();
    let limit = limit.trim_matches('"');
    let message = match found {
        Some(found) => format!("expected a body of at most {limit}, found {found} bytes"),
        None => format!("expected a body of at most {limit}, found more"),
    };
    Refusal::new(Reason::BodyTooLarge, message)
}
