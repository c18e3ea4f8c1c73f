//! Every error that a client sees: a reason, its status, and words.

use axum::response::{IntoResponse, Response};
use forebay_process::limit::CLIENT;
use forebay_protocol::oip::{EncodeError, ErrorBody, ParseError};
use forebay_protocol::{Reason, header as names};
use http::{HeaderValue, StatusCode, header};

/// A request that was not answered with what it asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The stable code, from which the status follows.
    pub(crate) reason: Reason,
    /// The expected and the found value.
    pub(crate) message: String,
}

impl Refusal {
    pub(crate) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    /// The tensors do not fit.
    pub(crate) fn input(message: impl Into<String>) -> Self {
        Self::new(Reason::InvalidInput, message)
    }

    /// The request can't be understood.
    pub(crate) fn request(message: impl Into<String>) -> Self {
        Self::new(Reason::InvalidRequest, message)
    }

    /// The deadline has passed; the client's timer and the executor may both be the one to notice.
    pub(crate) fn late() -> Self {
        let text = "the deadline passed before the answer was there";
        Self::new(Reason::DeadlineExceeded, text)
    }
}

impl Refusal {
    /// Logs the refusal. Refusals that clients or overload can cause by the thousand are counted, not
    /// logged.
    pub(crate) fn log(&self) {
        let (reason, error) = (self.reason.code(), &self.message);
        match self.reason {
            Reason::InferenceFailed | Reason::Internal => {
                tracing::warn!(target: CLIENT, reason, error, "failed");
            }
            _ => tracing::debug!(reason, error, "refused"),
        }
    }
}

impl From<ParseError> for Refusal {
    fn from(error: ParseError) -> Self {
        Self::new(error.reason(), error.to_string())
    }
}

impl From<EncodeError> for Refusal {
    fn from(error: EncodeError) -> Self {
        Self::input(error.to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        self.log();
        let Self { reason, message: error } = self;
        let mut response = json(reason.status(), &ErrorBody { error });
        let headers = response.headers_mut();
        headers.insert(names::REASON, HeaderValue::from_static(reason.code()));
        if reason.status() == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// A JSON answer.
pub(crate) fn json(status: StatusCode, body: &impl serde::Serialize) -> Response {
    // Our own documents always have a JSON form.
    let body = serde_json::to_vec(body).unwrap_or_default();
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}
