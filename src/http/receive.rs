//! Receiving a body before an endpoint is picked for it.
//!
//! An endpoint that is picked first waits for the client: twenty uploads at a byte per second would
//! take every slot of a pool for as long as bodies may take. So a body is collected here, however it
//! is framed, until it is complete or as long as may be held. Only then does the request queue for an
//! endpoint.

use crate::body_memory::{Account, Held, MemoryFull};
use crate::config::Limits;
use crate::downstream::http1_reader::is_malformed;
use crate::http::admit::{body_too_large, no_memory};
use crate::http::request::Request;
use crate::refusal::Refusal;
use bytes::{Bytes, BytesMut};
use forebay_protocol::Reason;
use pingora::ErrorType;
use pingora::protocols::http::ServerSession;
use pingora::proxy::Session;
use std::time::Instant;
use tokio::time::timeout;

/// Maximum length of a health call's message, which names a service at most. It is held without an account,
/// so that health checks pass even when memory is full.
const MAX_HEALTH_MESSAGE: u64 = 4096;

/// The received part of a body.
pub enum Received {
    /// All of it.
    Whole(Bytes),
    /// Its beginning: it is longer than may be held, or finds no memory.
    Partial(PartialBody),
}

impl Received {
    /// The bytes of the body that have arrived.
    pub fn at_hand(&self) -> &[u8] {
        match self {
            Self::Whole(body) => body,
            Self::Partial(begun) => &begun.body,
        }
    }

    /// The received bytes, which of a message are all of it.
    pub fn whole(self) -> Bytes {
        match self {
            Self::Whole(body) => body,
            Self::Partial(begun) => begun.body.freeze(),
        }
    }
}

/// The beginning of a body that can't be held whole.
pub struct PartialBody {
    /// The bytes that have arrived.
    pub body: BytesMut,
    /// The memory that it takes.
    pub held: Held,
}

/// Why collecting ended.
enum Collected {
    Whole,
    Long,
    Full(MemoryFull),
}

/// Collects the body: an HTTP body up to `limits.buffer`, the one message of a gRPC call whole.
///
/// # Errors
/// The body is too long, too slow, malformed or breaks off, or a message finds no memory.
pub async fn receive(
    session: &mut Session,
    request: &mut Request,
    limits: &Limits,
    account: &Account,
) -> Result<Received, Refusal> {
    let is_grpc = request.identity.grpc.is_some();
    let most = if is_grpc { limits.body } else { limits.buffer };
    let held = account.hold();
    let mut body = BytesMut::new();
    let collect = collect(&mut session.downstream_session, &mut body, most, &held);
    let collected = within(request, limits, collect).await;
    request.bytes_in = body.len() as u64;
    match collected? {
        Collected::Whole => {
            request.body_memory = Some(held);
            Ok(Received::Whole(body.freeze()))
        }
        Collected::Long if body.len() as u64 > limits.body => {
            Err(body_too_large(limits.body, None))
        }
        Collected::Full(full) if is_grpc => Err(no_memory(full)),
        Collected::Long | Collected::Full(_) => Ok(Received::Partial(PartialBody { body, held })),
    }
}

/// Receives the message of a call that asks for health.
///
/// # Errors
/// The message is too long, too slow or breaks off.
pub async fn health_message(
    session: &mut Session,
    request: &mut Request,
    limits: &Limits,
    account: &Account,
) -> Result<Bytes, Refusal> {
    let (mut body, unbounded) = (BytesMut::new(), account.without_bounds().hold());
    let most = MAX_HEALTH_MESSAGE;
    let collect = collect(&mut session.downstream_session, &mut body, most, &unbounded);
    let collected = within(request, limits, collect).await;
    request.bytes_in = body.len() as u64;
    match collected? {
        Collected::Whole => Ok(body.freeze()),
        Collected::Long | Collected::Full(_) => Err(body_too_large(most, None)),
    }
}

/// Bounds and measures the time that a body takes.
async fn within(
    request: &mut Request,
    limits: &Limits,
    collect: impl Future<Output = Result<Collected, Refusal>>,
) -> Result<Collected, Refusal> {
    let started = Instant::now();
    let collected = timeout(limits.body_timeout, collect).await;
    request.times.receive = started.elapsed();
    collected.unwrap_or_else(|_| Err(too_late(limits)))
}

async fn collect(
    downstream: &mut ServerSession,
    body: &mut BytesMut,
    most: u64,
    held: &Held,
) -> Result<Collected, Refusal> {
    if downstream.is_body_done() {
        return Ok(Collected::Whole);
    }
    if downstream.get_header(http::header::EXPECT).is_some() {
        downstream.write_continue_response().await.map_err(broken_off)?;
    }
    while let Some(chunk) = downstream.read_request_body().await.map_err(broken_off)? {
        let taken = held.grow(chunk.len());
        if body.is_empty() {
            // A body that arrives in one piece is not copied.
            *body = BytesMut::from(chunk);
        } else {
            body.extend_from_slice(&chunk);
        }
        if body.len() as u64 > most {
            return Ok(Collected::Long);
        }
        if let Err(full) = taken {
            return Ok(Collected::Full(full));
        }
        if downstream.is_body_done() {
            break;
        }
    }
    Ok(Collected::Whole)
}

/// The refusal of a body that did not arrive in time.
pub fn too_late(limits: &Limits) -> Refusal {
    let message = format!("expected the body within {:?}", limits.body_timeout);
    Refusal::new(Reason::RequestTimeout, message)
}

/// A body that ends too early or is malformed, or a client that is gone.
#[allow(clippy::needless_pass_by_value, reason = "the form that map_err takes")]
pub fn broken_off(error: Box<pingora::Error>) -> Refusal {
    if is_malformed(&error) {
        return Refusal::new(Reason::InvalidRequest, "the body's chunks are malformed");
    }
    match error.etype() {
        ErrorType::ReadError | ErrorType::WriteError => client_left(&error),
        _ => Refusal::new(Reason::InvalidRequest, "the body ended before its stated length"),
    }
}

/// The client closed its connection or reset its stream.
pub fn client_left(error: &pingora::Error) -> Refusal {
    let message = format!("the client left: {}", error.etype().as_str());
    Refusal::new(Reason::ClientClosed, message)
}
