//! The part that the cache had in a request, for the client, the log and the metrics.

use std::borrow::Cow;
use std::time::Duration;

/// Why a request passed the cache by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bypass {
    /// It has credentials that the key does not contain.
    Authorization,
    /// Its body is longer than is held in memory.
    Long,
    /// The cache does not read its compression.
    Encoding,
    /// Its path has a query, whose meaning the proxy does not know.
    Query,
    /// It says something that the cache does not read, or is malformed: the endpoint knows better.
    Unread,
    /// Its answer depends on requests before it.
    Stateful,
    /// Its client does not want the answer to be kept.
    NoStore,
    /// The kept answer has no such form as the client asks for.
    Form,
}

impl Bypass {
    /// The word in headers, metrics and the log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Authorization => "authorization",
            Self::Long => "long_body",
            Self::Encoding => "encoding",
            Self::Query => "query",
            Self::Unread => "unread",
            Self::Stateful => "stateful",
            Self::NoStore => "no_store",
            Self::Form => "form",
        }
    }
}

/// The part of the cache in a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The answer was kept.
    Hit {
        /// Since when.
        age: Duration,
        /// Time for which it is kept still.
        left: Duration,
    },
    /// Some rows of the batch were kept, the model was asked for the others.
    Rows {
        /// Rows that were kept.
        kept: usize,
        /// All of them.
        all: usize,
    },
    /// The answer of an equal request that was under way.
    Joined,
    /// The model was asked.
    Missed {
        /// Whether its answer is kept now.
        stored: bool,
    },
    /// The cache was not asked.
    Bypassed(Bypass),
}

impl Outcome {
    /// The word in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hit { .. } => "hit",
            Self::Rows { .. } => "rows",
            Self::Joined => "join",
            Self::Missed { .. } => "miss",
            Self::Bypassed(_) => "bypass",
        }
    }

    /// The field of the access log.
    pub fn logged(self) -> String {
        match self {
            Self::Bypassed(why) => format!("bypass:{}", why.as_str()),
            Self::Rows { kept, all } => format!("rows:{kept}/{all}"),
            other => other.as_str().to_owned(),
        }
    }

    /// The value of `Cache-Status` (RFC 9211).
    pub fn cache_status(self) -> Cow<'static, str> {
        match self {
            Self::Hit { left, .. } => format!("forebay; hit; ttl={}", left.as_secs()).into(),
            Self::Rows { kept, all } => {
                format!("forebay; fwd=partial; detail=\"{kept} of {all} rows\"").into()
            }
            Self::Joined => "forebay; fwd=miss; collapsed".into(),
            Self::Missed { stored: true } => "forebay; fwd=miss; stored".into(),
            Self::Missed { stored: false } => "forebay; fwd=miss".into(),
            Self::Bypassed(why) => format!("forebay; fwd=bypass; detail={}", why.as_str()).into(),
        }
    }
}
