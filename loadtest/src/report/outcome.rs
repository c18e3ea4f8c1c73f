//! The outcome of a request, and counts of outcomes.

use forebay_protocol::Reason;
use forebay_protocol::grpc::Code;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::time::Duration;

/// The end of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// An answer as it should be.
    Ok(u16),
    /// An answer with another status than 2xx, and the reason that it gave, if any.
    Refused(u16, Option<&'static str>),
    /// A call that gRPC says has failed: the number of its code, and the reason, if any.
    RefusedCall(u8, Option<&'static str>),
    /// A status of 2xx with a body that is wrong.
    Wrong(u16, &'static str),
    /// No (whole) answer.
    Failed(Failure),
    /// The generator had no room to keep it until a connection was free.
    Unsent,
}

/// The reason why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
pub enum Failure {
    /// No program listens at the target's address.
    #[error("connect_refused")]
    ConnectRefused,
    /// The connection was not there when the time was up.
    #[error("connect_timeout")]
    ConnectTimeout,
    /// Any other reason not to get a connection.
    #[error("connect_failed")]
    ConnectFailed,
    /// A connection, but no TLS over it: the certificate is not believed, or no TLS is spoken there.
    #[error("tls_failed")]
    TlsFailed,
    /// The connection (or the HTTP/2 stream) ended before the answer began.
    #[error("closed")]
    Closed,
    /// The connection (or the HTTP/2 stream) ended within the answer's body.
    #[error("truncated")]
    Truncated,
    /// The bytes that came are not HTTP.
    #[error("not_http")]
    NotHttp,
    /// The answer was not complete when the time was up.
    #[error("timeout")]
    Timeout,
}

/// One finished request, as a lane reports it. Times from the start of the run.
#[derive(Debug, Clone, Copy)]
pub struct Finished {
    /// Intended start.
    pub intended: Duration,
    /// Time at which the generator took it up: later than intended by the generator's own lag.
    pub taken: Duration,
    /// Time at which a connection was free for it.
    pub sent: Duration,
    /// Time of its end.
    pub done: Duration,
    /// Its outcome.
    pub outcome: Outcome,
    /// Bytes of the request's body.
    pub bytes_out: u64,
    /// Bytes of the answer's body.
    pub bytes_in: u64,
}

/// The number of requests with one outcome.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Count {
    /// `200`, `503 queue_full`, `connect_refused`, …
    pub class: String,
    /// Whether it is a success.
    pub ok: bool,
    /// Requests.
    pub count: u64,
}

impl Outcome {
    /// Whether it counts as a success.
    pub fn is_ok(self) -> bool {
        matches!(self, Self::Ok(_))
    }

    /// The status of a refusal and the reason in its header; reasons that are not ours are `other`.
    pub fn refused(status: u16, reason: Option<&str>) -> Self {
        Self::Refused(status, reason.map(known))
    }

    /// The same for gRPC.
    pub fn refused_call(code: Code, reason: Option<&str>) -> Self {
        Self::RefusedCall(code.number(), reason.map(known))
    }

    /// The words under which it is counted: `200`, `503 queue_full`, `connect_refused`.
    pub fn class(self) -> String {
        match self {
            Self::Ok(status) | Self::Refused(status, None) => status.to_string(),
            Self::Refused(status, Some(reason)) => format!("{status} {reason}"),
            Self::RefusedCall(number, reason) => {
                let code = Code::ALL.get(usize::from(number)).copied().unwrap_or(Code::Unknown);
                format!("grpc {code:?} {}", reason.unwrap_or_default()).trim_end().to_owned()
            }
            Self::Wrong(status, what) => format!("{status} {what}"),
            Self::Failed(failure) => failure.to_string(),
            Self::Unsent => "unsent".to_owned(),
        }
    }
}

impl Failure {
    /// Whether there was not even a connection.
    pub fn is_of_connect(self) -> bool {
        matches!(
            self,
            Self::ConnectRefused | Self::ConnectTimeout | Self::ConnectFailed | Self::TlsFailed
        )
    }
}

/// Counts of the outcomes, most frequent first.
pub(crate) fn counts(outcomes: &HashMap<Outcome, u64>) -> Vec<Count> {
    let mut outcomes: Vec<Count> = outcomes
        .iter()
        .map(|(outcome, count)| Count {
            class: outcome.class(),
            ok: outcome.is_ok(),
            count: *count,
        })
        .collect();
    outcomes.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.class.cmp(&b.class)));
    outcomes
}

fn known(reason: &str) -> &'static str {
    Reason::from_code(reason).map_or("other", Reason::code)
}
