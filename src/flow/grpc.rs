//! What gRPC needs before a request can be routed: an inference names its model in its message.
//!
//! gRPC states no length, and its callers rarely do. So the message is received first, as far as
//! the limits allow, and is then held and sent on like any other inference that is held.

use crate::config::Limits;
use crate::error::Refusal;
use crate::flow::admit::body_too_large;
use crate::flow::identify::MAX_NAME;
use crate::request::Request;
use crate::server::Lifecycle;
use bytes::{Bytes, BytesMut};
use forebay_protocol::Reason;
use forebay_protocol::grpc::{self, Method, text_field};
use pingora::proxy::Session;
use std::sync::Arc;
use std::time::Instant;
use tokio::time::timeout;

/// Receives the one message of a call, in its frame.
///
/// # Errors
/// It is too long, too slow or breaks off, or all bodies together would be more than may be held.
pub async fn receive(
    session: &mut Session,
    request: &mut Request,
    limits: &Limits,
    lifecycle: &Arc<Lifecycle>,
) -> Result<Bytes, Refusal> {
    let started = Instant::now();
    let mut held = lifecycle.hold(0, u64::MAX);
    let mut body = BytesMut::new();
    let downstream = &mut session.downstream_session;
    let read = async {
        while let Some(chunk) = downstream.read_request_body().await.map_err(|_| broken_off())? {
            if (body.len() + chunk.len()) as u64 > limits.body {
                return Err(body_too_large(limits.body, None));
            }
            let fits = held.as_mut().is_some_and(|h| h.grow(chunk.len() as u64, limits.memory));
            if !fits {
                let text = "bodies that are held have taken all the memory that they may";
                return Err(Refusal::new(Reason::QueueFull, text));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(())
    };
    let read = timeout(limits.body_timeout, read).await;
    request.bytes_in = body.len() as u64;
    request.times.receive = started.elapsed();
    match read {
        Ok(Ok(())) => {
            request.held = held;
            Ok(body.freeze())
        }
        Ok(Err(refusal)) => Err(refusal),
        Err(_) => {
            let message = format!("expected the body within {:?}", limits.body_timeout);
            Err(Refusal::new(Reason::RequestTimeout, message))
        }
    }
}

fn broken_off() -> Refusal {
    Refusal::new(Reason::ClientClosed, "the caller left before its message was complete")
}

/// The message in its frame; of an inference, the model and the version that it names are noted, and how
/// urgent it says that it is.
///
/// # Errors
/// Its frame is broken, or its fields.
pub fn identify(request: &mut Request, body: &Bytes) -> Result<Bytes, Refusal> {
    let (compressed, message) = grpc::only_message(body)
        .map_err(|error| Refusal::new(error.reason(), error.to_string()))?;
    // What is inside is the endpoint's to find out: such a call is routed by its path alone.
    if compressed || !request.identity.grpc.is_some_and(Method::is_infer) {
        return Ok(message);
    }
    for (field, what) in [(1, "model"), (2, "version")] {
        let name = text_field(&message, field).map_err(|error| {
            Refusal::new(Reason::InvalidRequest, format!("invalid protobuf: {error}"))
        })?;
        let name = name.filter(|name| !name.is_empty());
        if let Some(found) = name.map(str::len).filter(|&length| length > MAX_NAME) {
            let expected = format!("expected a {what} name of at most {MAX_NAME} bytes");
            return Err(Refusal::new(Reason::InvalidRequest, format!("{expected}, found {found}")));
        }
        let name = name.map(str::to_owned);
        if field == 1 {
            request.identity.model = name;
        } else {
            request.identity.version = name;
        }
    }
    request.wishes(grpc::wishes(&message));
    Ok(message)
}
