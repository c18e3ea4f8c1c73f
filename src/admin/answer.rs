//! Answers to operators.

use http::{Response, StatusCode, header};
use serde::Serialize;

/// An answer of this content type.
pub(super) fn answer(
    status: StatusCode,
    kind: &str,
    body: impl Into<Vec<u8>>,
) -> Response<Vec<u8>> {
    let body = body.into();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let length = response.body().len();
    let headers = response.headers_mut();
    if let Ok(kind) = kind.parse() {
        headers.insert(header::CONTENT_TYPE, kind);
    }
    headers.insert(header::CONTENT_LENGTH, length.into());
    response
}

/// An answer in JSON.
pub(super) fn json_answer(status: StatusCode, value: &impl Serialize) -> Response<Vec<u8>> {
    // Only maps with keys other than strings could fail, and there are none.
    let mut body = serde_json::to_vec_pretty(value).unwrap_or_default();
    body.push(b'\n');
    answer(status, "application/json", body)
}
