//! The framing of messages: finds where each one ends.
//!
//! Requests are smuggled, and addresses are forged, where two readers of the same bytes disagree on where a
//! message ends. Everything that draws such a line for the proxy is here, free of sockets, so that it can be
//! fuzzed by itself: [`request_head`] for the head of an HTTP/1 request, [`chunked`] for a chunked body,
//! [`proxy_protocol`] for the header in front of both.

pub mod chunked;
pub mod proxy_protocol;
pub mod request_head;

use forebay_protocol::Reason;
use std::borrow::Cow;

/// A request that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The reason with which it is refused.
    pub reason: Reason,
    /// The expected and the found value.
    pub message: Cow<'static, str>,
}

impl Violation {
    fn new(reason: Reason, message: impl Into<Cow<'static, str>>) -> Self {
        Self { reason, message: message.into() }
    }
}
