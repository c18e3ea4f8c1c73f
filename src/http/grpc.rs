//! Reads the message of a gRPC inference before it is routed: the message names the model.
//!
//! gRPC states no length, and its clients rarely do. So the message is received first, as far as the limits
//! allow, and is then held and sent on like any other inference that is held.

use crate::body_memory::Account;
use crate::config::{Limits, MAX_MODEL_NAME};
use crate::http::receive;
use crate::http::request::Request;
use crate::refusal::Refusal;
use bytes::Bytes;
use forebay_protocol::Reason;
use forebay_protocol::grpc::{self, Method, text_field};
use pingora::proxy::Session;

/// A message that the proxy has looked into.
pub enum Received {
    /// Of an inference, in its frame: it is sent on.
    Infer(Bytes),
    /// Of a call that asks for the proxy's own health.
    Health(Bytes),
}

/// Receives the message of a call that the proxy has to look into. `None`: there is none.
///
/// # Errors
/// The message is too long, too slow or malformed, or finds no memory.
pub async fn receive(
    session: &mut Session,
    request: &mut Request,
    limits: &Limits,
    account: &Account,
) -> Result<Option<Received>, Refusal> {
    let Some(method) = request.identity.grpc else { return Ok(None) };
    if method.is_infer() {
        let body = receive::receive(session, request, limits, account).await?.whole();
        identify(request, &body)?;
        return Ok(Some(Received::Infer(body)));
    }
    if method.is_health() {
        let body = receive::health_message(session, request, limits, account).await?;
        let message = identify(request, &body)?;
        request.deadline = request.identity.deadline.map(|asked| request.arrived + asked);
        return Ok(Some(Received::Health(message)));
    }
    Ok(None)
}

/// The message in its frame; of an inference, the model and the version that it names are noted, and how
/// urgent it says that it is.
///
/// # Errors
/// Its frame is broken, or its fields.
fn identify(request: &mut Request, body: &Bytes) -> Result<Bytes, Refusal> {
    let (compressed, message) = grpc::only_message(body)
        .map_err(|error| Refusal::new(error.reason(), error.to_string()))?;
    // The endpoint reads the content: such a call is routed by its path alone.
    if compressed || !request.identity.grpc.is_some_and(Method::is_infer) {
        return Ok(message);
    }
    for (field, what) in [(1, "model"), (2, "version")] {
        let name = text_field(&message, field).map_err(|error| {
            Refusal::new(Reason::InvalidRequest, format!("invalid protobuf: {error}"))
        })?;
        let name = name.filter(|name| !name.is_empty());
        if let Some(found) = name.map(str::len).filter(|&length| length > MAX_MODEL_NAME) {
            let expected = format!("expected a {what} name of at most {MAX_MODEL_NAME} bytes");
            return Err(Refusal::new(Reason::InvalidRequest, format!("{expected}, found {found}")));
        }
        let name = name.map(str::to_owned);
        if field == 1 {
            request.identity.model = name;
        } else {
            request.identity.version = name;
        }
    }
    request.apply_parameters(grpc::scheduling_parameters(&message));
    Ok(message)
}
