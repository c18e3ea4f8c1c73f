//! A refusal: the reason, in words, as an answer that every client of the protocol understands.

use bytes::Bytes;
use forebay_framing::Violation;
use forebay_protocol::{Reason, header};
use pingora::http::ResponseHeader;
use std::borrow::Cow;
use std::time::Duration;

/// Why a request is not answered by an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The stable code; status, blame and retryability follow from it.
    pub reason: Reason,
    /// The expected and the found value, for the client.
    pub message: Cow<'static, str>,
    /// Time after which a retry may be worthwhile.
    pub retry_after: Option<Duration>,
}

impl From<Violation> for Refusal {
    fn from(Violation { reason, message }: Violation) -> Self {
        Self::new(reason, message)
    }
}

impl Refusal {
    /// A refusal with a message.
    pub fn new(reason: Reason, message: impl Into<Cow<'static, str>>) -> Self {
        // A probe may bring any missing endpoint back within a second.
        let retry_after = matches!(
            reason,
            Reason::NoEndpoint
                | Reason::ConnectFailed
                | Reason::QueueFull
                | Reason::MemoryLimit
                | Reason::ConnectionLimit
                | Reason::ProxyExhausted
                | Reason::Draining
        )
        .then_some(Duration::from_secs(1));
        Self { reason, message: message.into(), retry_after }
    }

    /// The answer: `{"error": "…"}` with the status and the headers of the reason.
    ///
    /// # Errors
    /// None in practice: all header values are made here.
    pub fn answer(&self, request_id: &str) -> pingora::Result<(ResponseHeader, Bytes)> {
        let body = serde_json::json!({ "error": self.message }).to_string();
        let mut answer = ResponseHeader::build(self.reason.status(), Some(6))?;
        answer.insert_header(http::header::CONTENT_TYPE, "application/json")?;
        answer.insert_header(http::header::CONTENT_LENGTH, body.len())?;
        answer.insert_header(header::REASON, self.reason.code())?;
        if !request_id.is_empty() {
            answer.insert_header(header::REQUEST_ID, request_id)?;
        }
        if let Some(after) = self.retry_after {
            answer.insert_header(http::header::RETRY_AFTER, after.as_secs().max(1))?;
        }
        Ok((answer, body.into()))
    }
}
