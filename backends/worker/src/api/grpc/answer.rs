//! Outgoing messages: frames, and trailers with the status of the call.
//!
//! The load report is in the trailers, where gRPC's clients and proxies read it, and not in the header as
//! well: at the end of a stream it is up to date.

use crate::api::body::Encoding;
use crate::api::compress;
use crate::refusal::Refusal;
use crate::state::App;
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use forebay_protocol::grpc::{self, CONTENT_TYPE, Code};
use forebay_protocol::header as names;
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderMap, HeaderValue, header};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use prost::Message;
use std::convert::Infallible;
use std::sync::Arc;

/// Compressions accepted for incoming messages; outgoing ones use the client's.
const ACCEPTED: HeaderValue = HeaderValue::from_static("identity,gzip,deflate");

/// A message as it stands in a body.
pub(crate) fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    // Fails only without room, and the buffer grows.
    grpc::frame(length, |out| message.encode(out).unwrap_or_default())
}

/// The same, compressed where that saves something. Takes CPU time if the message is large.
pub(crate) fn frame_as(message: &impl Message, encoding: Encoding) -> Bytes {
    let framed = frame(message);
    let compressed = compress::compressed(&framed[grpc::PREFIX_BYTES..], encoding);
    compressed.map_or(framed, |compressed| grpc::frame_compressed(&compressed))
}

/// The answer to a unary call: one framed message, or a refusal.
pub(crate) fn unary(app: &App, result: Result<Bytes, Refusal>) -> Response {
    unary_as(app, result, Encoding::Identity)
}

/// The same, where the message may be compressed.
pub(crate) fn unary_as(app: &App, result: Result<Bytes, Refusal>, encoding: Encoding) -> Response {
    match result {
        Ok(message) => {
            let trailers = trailers(app, None);
            let body = Full::new(message).with_trailers(std::future::ready(Some(Ok(trailers))));
            respond(encoded(encoding), Body::new(body))
        }
        Err(refusal) => respond(trailers(app, Some(&refusal)), Body::empty()),
    }
}

/// A stream of framed messages; a refusal ends it.
pub(crate) fn streamed(
    app: Arc<App>,
    messages: impl Stream<Item = Result<Bytes, Refusal>> + Send + 'static,
    encoding: Encoding,
) -> Response {
    let start = Some((Box::pin(messages), app));
    let frames = stream::unfold(start, |state| async {
        let (mut messages, app) = state?;
        let end = match messages.next().await {
            Some(Ok(message)) => return Some((Frame::data(message), Some((messages, app)))),
            Some(Err(refusal)) => trailers(&app, Some(&refusal)),
            None => trailers(&app, None),
        };
        Some((Frame::trailers(end), None))
    });
    respond(encoded(encoding), Body::new(StreamBody::new(frames.map(Ok::<_, Infallible>))))
}

/// The header that says how messages are compressed, if they are.
fn encoded(encoding: Encoding) -> HeaderMap {
    let name = encoding.name().map(HeaderValue::from_static);
    name.map(|name| (names::GRPC_ENCODING, name)).into_iter().collect()
}

fn respond(mut headers: HeaderMap, body: Body) -> Response {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
    headers.insert(names::GRPC_ACCEPT_ENCODING, ACCEPTED);
    let mut response = Response::new(body);
    *response.headers_mut() = headers;
    response
}

fn trailers(app: &App, refusal: Option<&Refusal>) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(4);
    let code = refusal.map_or(Code::Ok, |refusal| refusal.reason.grpc());
    trailers.insert(names::GRPC_STATUS, code.value());
    if let Some(refusal) = refusal {
        refusal.log();
        trailers.insert(names::GRPC_MESSAGE, grpc::encode_message(&refusal.message));
        trailers.insert(names::REASON, HeaderValue::from_static(refusal.reason.code()));
    }
    // Base64 is always a header value.
    if let Ok(report) = HeaderValue::try_from(app.load_report().to_base64()) {
        trailers.insert(names::LOAD_REPORT_BIN, report);
    }
    trailers
}
