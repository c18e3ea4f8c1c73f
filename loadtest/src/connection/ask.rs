//! One request outside of any measurement.

use super::{Answer, Connections, Outgoing};
use crate::plan::target::Target;
use crate::scenario::Protocol;
use bytes::Bytes;
use forebay_protocol::grpc::{self, Code, INFERENCE_SERVICE, pb};
use forebay_protocol::header::GRPC_STATUS;
use http::{HeaderMap, HeaderValue, Method, header};
use http_body_util::Full;
use prost::Message;
use std::cell::Cell;
use std::time::Duration;

/// Time that the target may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Sends `body` to the target's own path.
///
/// # Errors
/// In words, what went wrong.
pub async fn post(target: &Target, body: Bytes) -> Result<Answer, String> {
    let mut request = Outgoing::new(Full::new(body));
    *request.method_mut() = Method::POST;
    send(target, target.path.as_str(), request, 0).await
}

/// One request outside of any measurement: a `GET`, or with gRPC a call with this message.
pub(crate) async fn ask(
    target: &Target,
    path: &str,
    message: Bytes,
    keep: usize,
) -> Result<Answer, String> {
    let mut request = Outgoing::new(Full::new(message));
    if target.protocol == Protocol::Grpc {
        *request.method_mut() = Method::POST;
        call_headers(request.headers_mut());
    }
    send(target, path, request, keep).await
}

async fn send(
    target: &Target,
    path: &str,
    mut request: Outgoing,
    keep: usize,
) -> Result<Answer, String> {
    *request.uri_mut() = target.uri(path).map_err(|error| error.to_string())?;
    if target.protocol == Protocol::Http1 {
        let host = HeaderValue::from_str(&target.authority).map_err(|error| error.to_string())?;
        request.headers_mut().insert(header::HOST, host);
    }
    let mut connection = Connections::new(target.protocol, 1).make();
    let opened = Cell::new(0);
    let exchange = async {
        connection.connect(target, &opened).await?;
        connection.exchange(target, &opened, request, keep).await
    };
    match tokio::time::timeout(TIMEOUT, exchange).await {
        Ok(answer) => answer.map_err(|failure| failure.to_string()),
        Err(_) => Err("timeout".to_owned()),
    }
}

/// Whether the target answers with anything but a failure of its own.
///
/// # Errors
/// A description of the answer.
pub async fn answers(target: &Target) -> Result<(), String> {
    if target.protocol == Protocol::Grpc {
        let path = format!("{}/{INFERENCE_SERVICE}/ServerReady", target.base());
        let answer = ask(target, &path, frame(&pb::ServerReadyRequest {}), 0).await?;
        return match code_of(&answer) {
            None | Some(Code::Unavailable) => Err("not ready".to_owned()),
            Some(_) => Ok(()),
        };
    }
    let answer = ask(target, target.path.as_str(), Bytes::new(), 0).await?;
    if answer.status < 500 { Ok(()) } else { Err(format!("status {}", answer.status)) }
}

/// Inserts the headers that every gRPC call begins with.
pub(crate) fn call_headers(headers: &mut HeaderMap) {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(grpc::CONTENT_TYPE));
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
}

/// The status of a gRPC call; `None`: the answer does not state it.
pub(crate) fn code_of(answer: &Answer) -> Option<Code> {
    answer.headers.get(GRPC_STATUS).and_then(Code::parse)
}

/// A message with the prefix that gRPC wants.
pub(crate) fn frame(message: &impl Message) -> Bytes {
    // Fails only without room, and the buffer grows.
    grpc::frame(message.encoded_len(), |out| message.encode(out).unwrap_or_default())
}
