//! Admission: a request's size and time are checked before anything is spent on it.

use crate::body_memory::{Account, MemoryFull};
use crate::config::{Limits, Route};
use crate::http::request::{ForwardMode, Request};
use crate::lifecycle::Lifecycle;
use crate::refusal::Refusal;
use forebay_config::ByteSize;
use forebay_process::places::{Places, PlacesFull};
use forebay_protocol::oip::SchedulingParameters;
use forebay_protocol::{Reason, grpc, header};
use pingora::http::RequestHeader;
use std::sync::Arc;
use std::time::Duration;

/// Checks size, memory and deadline; sets the request's deadline.
///
/// # Errors
/// The body is too large, or the client holds its whole share of the memory.
pub fn admit(
    request: &mut Request,
    limits: &Limits,
    route_deadline: Duration,
    account: &Account,
) -> Result<ForwardMode, Refusal> {
    if let Some(length) = request.identity.content_length
        && length > limits.body
    {
        return Err(body_too_large(limits.body, Some(length)));
    }
    // A stream lasts as long as its client says, and else as long as it is not silent.
    if request.identity.grpc.is_some_and(grpc::Method::is_stream) {
        request.deadline = request.identity.deadline.map(|asked| request.arrived + asked);
        return Ok(ForwardMode::Streamed);
    }
    within(request, route_deadline);
    if request.identity.upgrade {
        return Ok(ForwardMode::Streamed);
    }
    // The bytes that are held already are the message of this call.
    if request.body_memory.is_none() && account.is_full() {
        return Err(no_memory(MemoryFull::Client));
    }
    Ok(ForwardMode::Buffered)
}

/// Counts a request in where many are in flight: the first half of the places goes to those that come first, so
/// that nothing is counted while there are few. Calls that ask for health find a place where others find none.
///
/// # Errors
/// There are as many as may be, of all or of this client.
pub fn place(
    request: &mut Request,
    limits: &Limits,
    lifecycle: &Lifecycle,
    is_health: bool,
) -> Result<(), Refusal> {
    let at_first = limits.requests / 2;
    let in_flight = lifecycle.in_flight();
    if in_flight <= at_first || is_of_first_half(in_flight, lifecycle.requests().taken(), at_first)
    {
        return Ok(());
    }
    let reserve = if is_health { limits.requests / 4 } else { 0 };
    let most = limits.requests - at_first + reserve;
    let place = lifecycle.requests().begin(request.identity.client, most);
    request.place = Some(place.map_err(|full| {
        let words = match full {
            PlacesFull::Client => "this client has reached its part of limits.requests",
            PlacesFull::Total => "the requests of all clients have reached limits.requests",
        };
        Refusal::new(Reason::ConnectionLimit, words)
    })?);
    Ok(())
}

/// Whether one of the places that are not counted is free, `in_flight` including this request: those that have a
/// place of their own must not keep others from these.
const fn is_of_first_half(in_flight: usize, with_place: usize, at_first: usize) -> bool {
    in_flight.saturating_sub(with_place) <= at_first
}

/// Counts a stream of gRPC in; what is none is bounded by its connection.
///
/// # Errors
/// There are as many as may be open.
pub fn stream(
    request: &mut Request,
    limits: &Limits,
    streams: &Arc<Places>,
) -> Result<(), Refusal> {
    if !request.identity.grpc.is_some_and(grpc::Method::is_stream) {
        return Ok(());
    }
    let begun = streams.begin(request.identity.client, limits.streams());
    request.stream = Some(begun.map_err(|full| {
        let words = match full {
            PlacesFull::Client => "this client has reached its half of limits.streams",
            PlacesFull::Total => "the streams of all clients have reached limits.streams",
        };
        Refusal::new(Reason::ConnectionLimit, words)
    })?);
    Ok(())
}

/// Sets the deadline of what is no stream: the client's, if that is sooner than the route's.
fn within(request: &mut Request, route_deadline: Duration) {
    let asked = request.identity.deadline.unwrap_or(route_deadline);
    request.deadline = Some(request.arrived + asked.min(route_deadline));
}

/// Takes in what the body says of the request's urgency, as far as its header says nothing. `body`: what
/// is there of it; a message of gRPC was read for its routing.
pub fn take_in_parameters(head: &RequestHeader, request: &mut Request, route: &Route, body: &[u8]) {
    if request.identity.grpc.is_some() || !request.is_inference(&head.method) {
        return;
    }
    let stated = head.headers.get(header::INFERENCE_HEADER_CONTENT_LENGTH);
    let length = stated.filter(|_| !request.identity.asks_by_get);
    let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
    let json = length.and_then(|length| body.get(..length)).unwrap_or(body);
    request.apply_parameters(SchedulingParameters::in_json(json));
    request.priority = request.identity.priority.unwrap_or(route.priority);
    within(request, route.deadline);
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

/// The refusal of what finds no memory.
pub fn no_memory(full: MemoryFull) -> Refusal {
    Refusal::new(
        Reason::MemoryLimit,
        match full {
            MemoryFull::Client => {
                "this client's bodies and answers have reached limits.client_memory"
            }
            MemoryFull::Total => "bodies and answers have reached limits.memory",
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_that_have_a_place_leave_the_first_half_to_others() {
        assert!(is_of_first_half(200, 0, 200));
        assert!(!is_of_first_half(201, 0, 200));
        // 200 came first and 100 got a place; then 100 of the first ended.
        assert!(is_of_first_half(201, 100, 200));
        assert!(is_of_first_half(300, 100, 200));
        assert!(!is_of_first_half(301, 100, 200));
    }
}
