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
        /// Whether it was in the shared store only.
        is_shared: bool,
    },
    /// The answer was kept, and its time is up.
    Stale {
        /// Since when it is kept.
        age: Duration,
        /// Time since it has become stale.
        over: Duration,
        /// Whether it stands in for a failure; otherwise it is being renewed.
        on_error: bool,
    },
    /// The model is known not to be there.
    Absent {
        /// Time for which that is believed still.
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
    Joined {
        /// Time for which it is kept still.
        left: Duration,
    },
    /// The model was asked.
    Missed {
        /// Time for which its answer is kept now, if it is.
        kept_for: Option<Duration>,
    },
    /// The cache was not asked.
    Bypassed(Bypass),
}

impl Outcome {
    /// Whether the answer, or a part of it, is not the model's to this request.
    pub const fn is_from_memory(self) -> bool {
        !matches!(self, Self::Missed { .. } | Self::Bypassed(_))
    }

    /// The word in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hit { .. } => "hit",
            Self::Stale { .. } => "stale",
            Self::Absent { .. } => "absent",
            Self::Rows { .. } => "rows",
            Self::Joined { .. } => "join",
            Self::Missed { .. } => "miss",
            Self::Bypassed(_) => "bypass",
        }
    }

    /// Time since the answer was given by the model, and time for which it is fresh in all; `None`: it is not for
    /// others.
    pub fn freshness(self) -> Option<(Duration, Duration)> {
        match self {
            Self::Hit { age, left, .. } => Some((age, age + left)),
            Self::Stale { age, over, .. } => Some((age, age.saturating_sub(over))),
            Self::Joined { left } => Some((Duration::ZERO, left)),
            Self::Missed { kept_for } => kept_for.map(|time| (Duration::ZERO, time)),
            Self::Absent { .. } | Self::Rows { .. } | Self::Bypassed(_) => None,
        }
    }

    /// The field of the access log.
    pub fn logged(self) -> String {
        match self {
            Self::Bypassed(why) => format!("bypass:{}", why.as_str()),
            Self::Rows { kept, all } => format!("rows:{kept}/{all}"),
            Self::Hit { is_shared: true, .. } => "hit:shared".to_owned(),
            other => other.as_str().to_owned(),
        }
    }

    /// The value of `Cache-Status` (RFC 9211).
    pub fn cache_status(self) -> Cow<'static, str> {
        match self {
            Self::Hit { left, is_shared: true, .. } => {
                format!("forebay; hit; ttl={}; detail=shared", left.as_secs()).into()
            }
            Self::Hit { left, .. } | Self::Absent { left } => {
                format!("forebay; hit; ttl={}", left.as_secs()).into()
            }
            Self::Stale { over, on_error: false, .. } => {
                format!("forebay; hit; ttl=-{}", over.as_secs().max(1)).into()
            }
            Self::Stale { over, on_error: true, .. } => {
                format!("forebay; hit; ttl=-{}; detail=error", over.as_secs().max(1)).into()
            }
            Self::Rows { kept, all } => {
                format!("forebay; fwd=partial; detail=\"{kept} of {all} rows\"").into()
            }
            Self::Joined { .. } => "forebay; fwd=miss; collapsed".into(),
            Self::Missed { kept_for: Some(_) } => "forebay; fwd=miss; stored".into(),
            Self::Missed { kept_for: None } => "forebay; fwd=miss".into(),
            Self::Bypassed(why) => format!("forebay; fwd=bypass; detail={}", why.as_str()).into(),
        }
    }
}
