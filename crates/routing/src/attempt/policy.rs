//! A pool's conditions: which failures are worth another attempt, and how many attempts there may be.

use std::time::Duration;

/// The conditions of retries.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    /// Attempts of one request, the first included.
    pub attempts: u32,
    /// Time that one attempt may take to answer; `None`: the deadline alone bounds it.
    pub attempt_timeout: Option<Duration>,
    /// The failures that are worth another attempt.
    pub on: Vec<RetryOn>,
}

impl RetryPolicy {
    /// Whether an attempt that ended like this is worth another one.
    pub fn retries(&self, trouble: RetryOn) -> bool {
        self.on.contains(&trouble)
    }
}

/// The failures of an attempt that may go better elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryOn {
    /// No connection.
    Connect,
    /// The connection broke before the answer was complete.
    Reset,
    /// The attempt took longer than an attempt may.
    Timeout,
    /// The answer is not HTTP.
    Invalid,
    /// An answer with this status; of gRPC, with the code that stands for it.
    Status(u16),
}

impl RetryOn {
    /// Every kind by its name in the configuration.
    pub const NAMES: &'static [(&'static str, Self)] = &[
        ("connect", Self::Connect),
        ("reset", Self::Reset),
        ("timeout", Self::Timeout),
        ("invalid", Self::Invalid),
        ("429", Self::Status(429)),
        ("500", Self::Status(500)),
        ("502", Self::Status(502)),
        ("503", Self::Status(503)),
        ("504", Self::Status(504)),
    ];
    /// The failures that are worth another attempt by default.
    pub const DEFAULT: [Self; 7] = [
        Self::Connect,
        Self::Reset,
        Self::Timeout,
        Self::Invalid,
        Self::Status(500),
        Self::Status(502),
        Self::Status(503),
    ];
}
