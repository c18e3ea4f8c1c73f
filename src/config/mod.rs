//! What the operator wrote becomes what runs, once.
//!
//! A value that is checked here and checked again where it is used is a value that two places
//! disagree about. [`Config::parse`] turns TOML into a [`Config`] that can't be wrong: names
//! are resolved, ranges are checked, units are gone. Nothing after it validates. Whatever is wrong
//! is reported at once, with line and column, by `forebay check`, at start and at reload alike.
//!
//! Every key, its default and the reason for it stand in `conf/reference.toml`.

mod check;
mod limits;
mod listener;
mod load;
mod poll;
mod read;
mod route;
mod tls;

pub(crate) use check::MAX_MODEL_NAME;
pub use forebay_config::pool::{Hedge, ProbeSchedule, Queue, Retry, RetryOn};
pub use limits::Limits;
pub use listener::{Listener, Protocol, Tcp};
pub use load::ConfigError;
pub use poll::{Poll, PollSource};
pub use tls::{Certificate, Tls};

use forebay_protocol::Priority;
use forebay_routing::{Ejection, Policy};
use http::HeaderName;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Everything that runs, as one immutable value.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Of the process; changes need a restart.
    pub server: Server,
    /// Where requests come in; changes need a restart.
    pub listeners: Vec<Listener>,
    /// Bounds of one request.
    pub limits: Limits,
    /// Interchangeable endpoints, by name in alphabetical order.
    pub pools: Vec<Arc<Pool>>,
    /// First match wins.
    pub routes: Vec<Arc<Route>>,
}

/// Of the process.
#[derive(Debug, Clone, PartialEq)]
pub struct Server {
    /// I/O threads.
    pub threads: usize,
    /// Metrics, status and reload; `None`: no admin listener.
    pub admin: Option<SocketAddr>,
    /// Hosts by which operators and scrapers name the admin listener, beside its address and loopback.
    pub admin_hosts: Vec<String>,
    /// Not ready, but still listening: the time that clients and probes get to notice.
    pub drain_delay: Duration,
    /// Then listeners are closed, and requests in flight get this long to finish.
    pub drain_timeout: Duration,
    /// Idle connections to endpoints that are kept open, over all pools.
    pub idle_connections: usize,
    /// Bytes of bodies that a client may send ahead of the proxy on one connection of HTTP/2.
    pub http2_window: u32,
    /// Where access log lines go.
    pub access_log: AccessLog,
}

/// Where access log lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessLog {
    /// Nowhere.
    Off,
    /// Standard output.
    Stdout,
    /// Appended to a file, which is reopened on reload (for log rotation).
    File(PathBuf),
}

/// A pool of interchangeable endpoints.
#[derive(Debug, Clone, PartialEq)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// Where its endpoints come from.
    pub source: Source,
    /// What its endpoints are asked in; gRPC goes in HTTP/2 whatever stands here.
    pub protocol: EndpointProtocol,
    /// How an endpoint is picked.
    pub policy: Policy,
    /// For the policy `sticky`: the header whose value, beside the model, is the key.
    pub sticky: Option<HeaderName>,
    /// Requests that an endpoint can run at once, until it reports its own figure; 0: as many as
    /// come.
    pub slots: u32,
    /// Requests that wait for an endpoint.
    pub queue: Queue,
    /// A load report older than this is not believed.
    pub report_ttl: Duration,
    /// Time to open a connection.
    pub connect_timeout: Duration,
    /// Time that an idle connection is kept.
    pub idle_timeout: Duration,
    /// Time after which a connection is given up whose other end acknowledges nothing.
    pub tcp_keepalive: Duration,
    /// What TCP_USER_TIMEOUT is set to; `None`: the system's own.
    pub tcp_user_timeout: Option<Duration>,
    /// How often an HTTP/2 connection is asked with a PING whether it is still there; `None`: never.
    pub http2_ping_interval: Option<Duration>,
    /// How health is found out.
    pub probe: Probe,
    /// Where its load is asked for, beside what answers and probes bring.
    pub poll: Option<Poll>,
    /// When a second attempt is made beside a slow first one; `None`: never.
    pub hedge: Option<Hedge>,
    /// Time in which an endpoint that has become ready comes to its share; zero: at once.
    pub slow_start: Duration,
    /// When an endpoint is taken out for what its answers are like.
    pub ejection: Ejection,
    /// What is sent again.
    pub retry: Retry,
}

/// What an endpoint is asked in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EndpointProtocol {
    /// HTTP/1.1, as many connections as requests at once.
    #[default]
    Http1,
    /// HTTP/2 without TLS, many requests on each connection.
    H2,
}

impl EndpointProtocol {
    /// Names in the configuration.
    pub const NAMES: &'static [(&'static str, Self)] =
        &[("http/1.1", Self::Http1), ("h2", Self::H2)];
}

/// Where a pool's endpoints come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Addresses in the file.
    Static(Vec<SocketAddr>),
    /// Workers that this process starts, watches and restarts on the same machine.
    Fleet(Fleet),
}

/// Workers on the same machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fleet {
    /// How many.
    pub workers: usize,
    /// The model repository that they serve.
    pub models: PathBuf,
    /// Executor threads of each.
    pub executors: usize,
}

/// Active health checks.
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    /// What is asked.
    pub kind: ProbeKind,
    /// Time that a probe may take.
    pub timeout: Duration,
    /// When it is asked, and what follows.
    pub schedule: ProbeSchedule,
}

/// What a probe asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeKind {
    /// GET of this path; 200 is ready.
    Http(String),
    /// A connection; one that is taken is ready.
    Tcp,
}

/// Which requests go to which pool.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// Its name in logs and metrics.
    pub name: String,
    /// Models that it takes, each a name or a prefix ending in `*`; empty: any or none.
    pub models: Vec<Pattern>,
    /// Prefixes of the path that it takes; empty: any.
    pub paths: Vec<String>,
    /// What may answer, at least one: the weights say how often which does.
    pub variants: Vec<Arc<Variant>>,
    /// Cheaper variants that answer if the chosen one can't, in this order.
    pub fallback: Vec<Arc<Variant>>,
    /// Time that a request may take; a client can ask for less, not for more.
    pub deadline: Duration,
    /// How urgent a request is that does not say.
    pub priority: Priority,
    /// Whether the answer names the endpoint that gave it.
    pub expose_endpoint: bool,
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
    /// Share of the route's requests, in thousandths. That of a fallback is not used.
    pub weight: u32,
}

impl Variant {
    /// Whole of the weights of a route's variants.
    pub const WHOLE: u32 = 1000;

    /// Is another model or version asked for than the client's?
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
    /// Does `name` match?
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exact(exact) => name == exact,
            Self::Prefix(prefix) => name.starts_with(prefix.as_str()),
        }
    }
}
