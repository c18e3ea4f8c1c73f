//! What goes out: framed messages, and trailers that say how the call ended.
//!
//! The load report stands in the trailers, where gRPC's clients and proxies read it, and not in the
//! header too: at the end of a stream it is the present one.

use crate::app::App;
use crate::refusal::Refusal;
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

/// How messages may be compressed that come in; none that go out are.
const ACCEPTED: HeaderValue = HeaderValue::from_static("identity,gzip,deflate");

/// A message as it stands in a body.
pub(crate) fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    // Fails only without room, and the buffer grows.
    grpc::frame(length, |out| message.encode(out).unwrap_or_default())
}

/// The answer to a unary call: one framed message, or a refusal.
pub(crate) fn unary(app: &App, result: Result<Bytes, Refusal>) -> Response {
    match result {
        Ok(message) => {
            let trailers = trailers(app, None);
            let body = Full::new(message).with_trailers(std::future::ready(Some(Ok(trailers))));
            respond(HeaderMap::new(), Body::new(body))
        }
        Err(refusal) => respond(trailers(app, Some(&refusal)), Body::empty()),
    }
}

/// A stream of framed messages; a refusal ends it.
pub(crate) fn streamed(
    app: Arc<App>,
    messages: impl Stream<Item = Result<Bytes, Refusal>> + Send + 'static,
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
    respond(HeaderMap::new(), Body::new(StreamBody::new(frames.map(Ok::<_, Infallible>))))
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
