//! Turns the operator's file into settings, once.
//!
//! A value that is checked here and checked again where it is used is a value that two places
//! disagree about. [`Config::parse`] turns TOML into a [`Config`] that can't be wrong: names
//! are resolved, ranges are checked, units are gone. Nothing after it validates. Whatever is wrong
//! is reported at once, with line and column, by `forebay check`, at start and at reload alike.
//!
//! Every key is declared once, with its form, its default and the reason for it, in the file of its section:
//! what is read, `conf/reference.toml` and the page `docs/reference/configuration.md` come from there.

mod cache;
mod check;
mod limits;
mod listener;
mod load;
mod poll;
mod pool;
mod probe;
mod read;
mod reference;
mod rollout;
mod route;
mod server;
mod shadow;
mod shared_store;
mod split;
mod tls;

pub use cache::{CacheMemory, CacheScope, CacheSecret, RouteCache};
pub(crate) use check::MAX_MODEL_NAME;
pub use forebay_config::pool::{Hedge, ProbeSchedule, Queue, Retry, RetryOn};
pub use limits::Limits;
pub use listener::{Listener, Protocol, Tcp};
pub use load::ConfigError;
pub use poll::{Poll, PollSource};
pub use pool::{EndpointProtocol, Fleet, Pool, Source};
pub use probe::{Probe, ProbeKind};
pub use rollout::RouteRollout;
pub use server::{AccessLog, Server};
pub use shadow::Shadow;
pub use shared_store::SharedStore;
pub use split::SplitKey;
pub use tls::{Certificate, Tls};

use forebay_protocol::Priority;
use std::sync::Arc;
use std::time::Duration;

/// Everything that runs, as one immutable value.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Of the process; changes need a restart.
    pub server: Server,
    /// Addresses for clients; changes need a restart.
    pub listeners: Vec<Listener>,
    /// Bounds of one request.
    pub limits: Limits,
    /// Memory of the response cache.
    pub cache: CacheMemory,
    /// Interchangeable endpoints, by name in alphabetical order.
    pub pools: Vec<Arc<Pool>>,
    /// First match wins.
    pub routes: Vec<Arc<Route>>,
}

/// The requests of a route and their pool.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// Its name in logs and metrics.
    pub name: String,
    /// Models that it takes, each a name or a prefix ending in `*`; empty: any or none.
    pub models: Vec<Pattern>,
    /// Prefixes of the path that it takes; empty: any.
    pub paths: Vec<String>,
    /// The variants that may answer, at least one, with their weights.
    pub variants: Vec<Arc<Variant>>,
    /// The key by which a client stays with a variant; `None`: each request is drawn by itself.
    pub sticky: Option<SplitKey>,
    /// Whether a request may ask for one of the variants.
    pub allow_override: bool,
    /// Copies whose answers are compared; `None`: there are none.
    pub shadow: Option<Shadow>,
    /// Cheaper variants that answer if the chosen one can't, in this order.
    pub fallback: Vec<Arc<Variant>>,
    /// Time that a request may take; a client can ask for less, not for more.
    pub deadline: Duration,
    /// The priority of requests that state none.
    pub priority: Priority,
    /// Whether the answer names the endpoint that gave it.
    pub expose_endpoint: bool,
    /// How answers are kept; `None`: they are not.
    pub cache: Option<RouteCache>,
    /// How a canary gets its requests; `None`: the weights stay.
    pub rollout: Option<RouteRollout>,
}

/// One way to answer the requests of a route: where they go, and which model is asked for there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variant {
    /// Its name in headers, logs and metrics; the pool's unless the configuration says otherwise.
    pub name: String,
    /// Index into [`Config::pools`].
    pub pool: usize,
    /// The model that is asked for there; `None`: the one that the client names.
    pub model: Option<String>,
    /// The version that is asked for there. `None`: the client's, or the model's default where `model`
    /// names another one.
    pub version: Option<String>,
    /// Share of the route's requests, in thousandths, until it is changed while the process runs. That of a
    /// fallback is not used.
    pub weight: u32,
}

impl Variant {
    /// Whole of the weights of a route's variants.
    pub const WHOLE: u32 = forebay_routing::split::WHOLE;

    /// Whether another model or version is asked for than the client's.
    pub fn renames(&self) -> bool {
        self.model.is_some() || self.version.is_some()
    }
}

/// A name, or the beginning of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pattern {
    /// This name.
    Exact(String),
    /// Any name that begins so.
    Prefix(String),
}

impl Pattern {
    /// Whether `name` matches.
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exact(exact) => name == exact,
            Self::Prefix(prefix) => name.starts_with(prefix.as_str()),
        }
    }
}
