//! Requests whose body is received before an endpoint is picked.
//!
//! A body that can be held is there whole: it can be sent again ([`attempts`](super::attempts)), and
//! the answer of an inference is held too, up to a bound, so that one that breaks off half way can
//! still be replaced. Of a longer body the rest is streamed ([`upload`](super::upload)).

use super::attempts::Attempts;
use super::exchange::Message;
use super::headers::{HOP_BY_HOP, nominated, prepare_request};
use super::respond::respond;
use super::{grpc, is_repeatable, upload};
use crate::body_memory::Account;
use crate::config::Limits;
use crate::http::admit::within;
use crate::http::receive::{Received, client_left, receive};
use crate::http::request::{ForwardMode, Request};
use crate::http::variant::Target;
use crate::pool::attempt::EndpointAttempt;
use crate::refusal::Refusal;
use bytes::Bytes;
use forebay_protocol::oip::{Call, SchedulingParameters};
use forebay_protocol::{Reason, header};
use http::{Method, Version};
use pingora::connectors::http::Connector;
use pingora::http::RequestHeader;
use pingora::proxy::Session;

/// Receives the body, unless that was done for its routing, sends the request until an endpoint
/// answers, and answers the client.
///
/// # Errors
/// The answer could not be given whole. All else becomes a refusal in `request`, for the client of
/// this to answer with.
pub async fn forward(
    session: &mut Session,
    request: &mut Request,
    target: &Target,
    (connector, limits): (&Connector, &Limits),
    account: &Account,
    received: Option<Bytes>,
) -> pingora::Result<()> {
    let received = match received {
        Some(body) => Ok(Received::Whole(body)),
        None => receive(session, request, limits, account).await,
    };
    let outcome = match received {
        Ok(Received::Whole(body)) => {
            take_in_scheduling_parameters(session.req_header(), request, target, &body);
            let message = message(session, request, account, body)?;
            let attempts = Attempts::new(request, target.clone(), message, connector);
            // A request whose body is still to come need not have room for this.
            let attempts = Box::pin(attempts.run());
            tokio::select! {
                outcome = attempts => outcome,
                // With the body complete this resolves only if the client leaves.
                left = session.downstream_session.read_body_or_idle(true) => Err(gone(left)),
            }
        }
        Ok(Received::Begun(begun)) => {
            request.mode = Some(ForwardMode::Streamed);
            take_in_scheduling_parameters(session.req_header(), request, target, &begun.body);
            let head = request_head(session.req_header(), Length::AsStated)?;
            let upload = (head, begun, account);
            upload::upload(session, request, target, upload, (connector, limits)).await
        }
        Err(refusal) => Err(refusal),
    };
    // Its body is not needed any more, however long the client takes to read.
    request.body_memory = None;
    // A cheaper variant may have stood in.
    let target = request.target.clone().unwrap_or_else(|| target.clone());
    match outcome {
        Ok(won) => respond(session, request, &target, won, (connector, limits)).await,
        Err(refusal) => {
            // Attempts that were under way are over, and nobody is to blame for that.
            request.attempts.iter_mut().for_each(EndpointAttempt::abandoned);
            request.refusal = Some(refusal);
            Ok(())
        }
    }
}

fn gone(read: pingora::Result<Option<Bytes>>) -> Refusal {
    match read {
        Err(error) => client_left(&error),
        Ok(_) => {
            Refusal::new(Reason::ClientClosed, "the client sent more than one request at once")
        }
    }
}

/// What is sent to whichever endpoint.
fn message(
    session: &Session,
    request: &Request,
    account: &Account,
    body: Bytes,
) -> pingora::Result<Message> {
    let received = session.req_header();
    let is_grpc = request.identity.grpc.is_some();
    let mut head = if is_grpc {
        grpc::request_head(received)?
    } else {
        request_head(received, Length::Of(body.len()))?
    };
    prepare_request(&mut head, request)?;
    Ok(Message {
        head,
        body,
        is_grpc,
        deadline: request.deadline,
        is_replayable: is_inference(request, &received.method),
        is_repeatable: is_repeatable(request, received),
        account: account.for_answers(),
    })
}

fn is_inference(request: &Request, method: &Method) -> bool {
    request.identity.call == Some(Call::Infer) && method == Method::POST
}

/// What the body says of its urgency, where the header says nothing: that of gRPC was read for its
/// routing.
fn take_in_scheduling_parameters(
    head: &RequestHeader,
    request: &mut Request,
    target: &Target,
    body: &[u8],
) {
    if request.identity.grpc.is_some() || !is_inference(request, &head.method) {
        return;
    }
    let length = head.headers.get(header::INFERENCE_HEADER_CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
    let json = length.and_then(|length| body.get(..length)).unwrap_or(body);
    request.apply_parameters(SchedulingParameters::in_json(json));
    request.priority = request.identity.priority.unwrap_or(target.route.priority);
    within(request, target.route.deadline);
}

/// How long the body is.
#[derive(Clone, Copy)]
enum Length {
    /// As long as this, all of which is there.
    Of(usize),
    /// As long as the client states, if it does.
    AsStated,
}

/// The request as it is sent, whatever version and framing it came with.
fn request_head(received: &RequestHeader, length: Length) -> pingora::Result<RequestHeader> {
    let mut head = received.clone();
    if received.version == Version::HTTP_2 {
        if let Some(authority) = received.uri.authority() {
            head.insert_header(http::header::HOST, authority.as_str())?;
        }
        let path = received.uri.path_and_query().map_or("/", |path| path.as_str());
        head.set_raw_path(path.as_bytes())?;
    }
    head.set_version(Version::HTTP_11);
    for name in nominated(&received.headers) {
        head.remove_header(&name);
    }
    for name in HOP_BY_HOP.iter().chain([&http::header::EXPECT]) {
        head.remove_header(name);
    }
    match length {
        // A request without a body states none, unless its method leads one to expect it.
        Length::Of(0) if !matches!(head.method, Method::POST | Method::PUT | Method::PATCH) => {
            head.remove_header(&http::header::CONTENT_LENGTH);
        }
        Length::Of(length) => head.insert_header(http::header::CONTENT_LENGTH, length)?,
        Length::AsStated if head.headers.contains_key(http::header::CONTENT_LENGTH) => {}
        Length::AsStated => head.insert_header(http::header::TRANSFER_ENCODING, "chunked")?,
    }
    Ok(head)
}
