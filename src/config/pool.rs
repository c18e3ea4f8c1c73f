//! `[pool.NAME]`: interchangeable endpoints, and how requests are spread over them.

use super::check::header_name;
use super::server::MAX_THREADS;
use super::{Poll, Probe, poll, probe};
use forebay_config::form::{
    any, at_least, list, one_of, optional, path_in_file, positive, required, share, within,
};
use forebay_config::pool::{Ejection, Hedge, Queue, Retry};
use forebay_config::{Form, FromToml, Section, Span, Table};
use forebay_routing::Policy;
use http::HeaderName;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Bounds that no sensible fleet reaches; they keep a typing error from becoming an outage.
const MAX_ENDPOINTS: usize = 10_000;
const MAX_WORKERS: usize = 256;
const MAX_SLOTS: u32 = 1_000_000;

forebay_config::section! {
    /// Interchangeable endpoints.
    pub struct Pool {
        /// Protocol towards endpoints: "http/1.1", or "h2" (without TLS) for fewer connections. gRPC always
        /// uses HTTP/2.
        protocol: EndpointProtocol = EndpointProtocol::default(), one_of(EndpointProtocol::NAMES);
        /// The policy that picks an endpoint:
        ///   adaptive        as least_cost, but a request waits in the proxy for a busy endpoint that is expected
        ///                   to finish it sooner than the best free one
        ///   least_cost      where the request is expected to finish first, by queue and learnt speed
        ///   least_inflight  the fewest requests in flight from this proxy
        ///   p2c             the better of two random ones by requests in flight
        ///   peak_ewma       the better of two random ones by requests in flight and recent peak latency
        ///   weighted        at random, more often the fewer requests wait there by its own report
        ///   round_robin     one after the other
        ///   random          at random
        ///   sticky          the same endpoint for the same key (see sticky below), unless it has 1.25 times as
        ///                   many requests in flight as the others, and more than its slots; for caches
        policy: Policy = Policy::default(), one_of(Policy::NAMES);
        /// For the policy sticky: the header whose value, together with the model's name, is the key.
        /// Requests without it go where they are expected to finish first. Default: the model's name alone
        /// is the key. At Layer 4 the key is always the client's address without its port.
        sticky: Option<HeaderName> = None, StickyKey, shown "{ header = \"x-session\" }";
        /// Number of requests that an endpoint can run at once, until its load reports state it. An endpoint
        /// gets no more than that at once; the others wait in the queue below, where they can still go to
        /// whichever endpoint is free first. Default: none. For an endpoint without reports the number is
        /// then learnt: it takes every request until latencies double, until many requests of a flood had no
        /// answer in time, or until requests are late that hardly ever would be alone. If deadlines are near
        /// the service time, learning costs the first requests of an overload: state the slots.
        slots: u32 = 0, within(1..=MAX_SLOTS), shown "4";
        /// A load report older than this is ignored, and the proxy's own counts are used. It should be
        /// longer than probe.interval, since probes bring reports, too.
        report_ttl: Duration = Duration::from_secs(2), any();
        /// Time in which an endpoint that has become ready grows from a tenth to its full share: for
        /// backends that are ready before they are warm. While requests wait because no other endpoint is
        /// free, it takes as many as it has slots. Default: at once, since Forebay's workers are warm when
        /// they report ready.
        slow_start: Duration = Duration::ZERO, any();
        /// Share of requests whose access log line has `decisions`: the candidates, what was known of each,
        /// what was chosen or waited for and why. `forebay-load sim --decisions` explains them and makes them
        /// again. A line has some 400 bytes more for each candidate of each decision: at most 16
        /// candidates and 32 decisions. "0%": none.
        decisions: f64 = 0.0, share();
        /// Time to open a connection. A machine that is there answers within its round trip. But its answer
        /// may get lost, and one that has too many connections to accept drops the first packet of a new
        /// one: the kernel sends that again after a second, so leave a little more.
        connect_timeout: Duration = Duration::from_millis(1500), positive();
        /// Time that an idle connection is kept: less than the endpoint keeps it, or requests meet
        /// connections that are closing.
        idle_timeout: Duration = Duration::from_secs(50), positive();
        /// A connection is given up after this time without an acknowledgement from the other end, as of a
        /// machine that lost its power: TCP keepalive probes a silent connection after a third of it, in
        /// whole seconds. The kernel acknowledges, however busy the endpoint is. At least 3s.
        tcp_keepalive: Duration = Duration::from_secs(3), at_least(Duration::from_secs(3));
        /// Value of TCP_USER_TIMEOUT on connections to endpoints. It bounds the time for which sent bytes
        /// may go unacknowledged, but also the time for which an endpoint may be too busy to read the rest
        /// of a long request, and it replaces tcp_keepalive. Default: none; while probes go unanswered, a
        /// connection whose bytes were sent three times without an acknowledgement is given up in any case.
        tcp_user_timeout: Option<Duration> = None, optional(at_least(Duration::from_millis(100))),
            shown "\"30s\"";
        /// Interval of PINGs on HTTP/2 connections. Servers built on grpc-core, such as Triton, close a
        /// connection that sends more than one in five minutes without data. Default: none, since
        /// tcp_keepalive detects dead connections without the server's help.
        http2_ping_interval: Option<Duration> = None, optional(at_least(Duration::from_secs(1))),
            shown "\"10m\"";
    }
    beside {
        /// Its name.
        name: String = String::new();
        /// The source of its endpoints.
        source: Source = Source::Static(Vec::new());
        /// Requests that wait for an endpoint.
        queue: Queue = Queue::default();
        /// Settings of health checks.
        probe: Probe = Probe::default();
        /// Polling for load, beside the reports of answers and probes.
        poll: Option<Poll> = None;
        /// Settings of hedges; `None`: none are sent.
        hedge: Option<Hedge> = None;
        /// The conditions of ejections.
        ejection: forebay_routing::Ejection = Ejection::default().rules();
        /// The conditions of retries.
        retry: Retry = Retry::default();
    }
}

forebay_config::section! {
    /// Endpoints with addresses in the file.
    pub(super) struct EndpointKeys {
        /// Addresses of the endpoints. This or `fleet` is required.
        endpoints: Vec<SocketAddr> = Vec::new(), Endpoints,
            shown "[\"127.0.0.1:8001\", \"127.0.0.1:8002\"]";
    }
}

forebay_config::section! {
    /// A pool whose workers the proxy starts, watches and restarts on the same machine. Each listens on a
    /// port of 127.0.0.1 that the operating system chooses. Changes need a restart.
    pub struct Fleet {
        /// Number of workers.
        workers: usize = 1, within(1..=MAX_WORKERS);
        /// Required. The model repository that they serve (relative to this file's folder).
        models: PathBuf = PathBuf::new(), required(path_in_file()), shown "\"../backends/models\"";
        /// Executor threads of each worker: the number of inferences that it runs at once.
        executors: usize = 1, within(1..=MAX_THREADS);
    }
}

/// The source of a pool's endpoints.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// Addresses in the file.
    Static(Vec<SocketAddr>),
    /// Workers that this process starts, watches and restarts on the same machine.
    Fleet(Fleet),
}

/// The protocol towards an endpoint.
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

/// Reads the table of the pool `name` with those in it.
pub(super) fn read(name: String, table: &Table<'_, '_>) -> Pool {
    Pool {
        name,
        source: source(table),
        queue: Queue::read(&table.table_or_empty("queue")),
        probe: probe::read(&table.table_or_empty("probe")),
        poll: table.table("poll").map(|table| poll::read(&table)),
        hedge: table.table("hedge").map(|table| Hedge::read(&table)),
        ejection: Ejection::read(&table.table_or_empty("ejection")).rules(),
        retry: Retry::read(&table.table_or_empty("retry")),
        ..Pool::read(table)
    }
}

fn source(table: &Table<'_, '_>) -> Source {
    let endpoints = EndpointKeys::read(table).endpoints;
    let fleet = table.table("fleet").map(|fleet| Fleet::read(&fleet));
    match (table.place_of("endpoints"), table.has("fleet")) {
        (Some(span), true) => {
            table.note(span, "endpoints", "expected either endpoints or a fleet, found both");
        }
        (None, false) => {
            let message = "expected endpoints or a fleet, found neither";
            table.note(table.span(), "endpoints", message);
        }
        _ => {}
    }
    fleet.map_or(Source::Static(endpoints), Source::Fleet)
}

/// Addresses that requests can be sent to.
struct Endpoints;

impl Form<Vec<SocketAddr>> for Endpoints {
    fn read(&self, table: &Table<'_, '_>, key: &str, default: Vec<SocketAddr>) -> Vec<SocketAddr> {
        let Some((items, span)) = table.items::<SocketAddr>(key) else { return default };
        if items.is_empty() || items.len() > MAX_ENDPOINTS {
            let found = items.len();
            table.note(span, key, format!("expected 1 to {MAX_ENDPOINTS}, found {found}"));
        }
        let mut seen = BTreeSet::new();
        let mut note = |address: SocketAddr, span: Span| {
            if address.port() == 0 {
                let expected = "expected a port from 1 to 65535";
                table.note(span, key, format!("{expected}, found {address}"));
            } else if !seen.insert(address) {
                table.note(span, key, format!("expected each once, found {address} again"));
            }
            address
        };
        items.into_iter().flatten().map(|(address, span)| note(address, span)).collect()
    }

    fn show(&self, value: &Vec<SocketAddr>) -> Option<String> {
        list().show(value)
    }

    fn expected(&self) -> String {
        format!("a list of 1 to {MAX_ENDPOINTS}, each {} and found once", SocketAddr::EXPECTED)
    }

    fn kind(&self) -> &'static str {
        "ADDR"
    }

    fn is_list(&self) -> bool {
        true
    }
}

/// The key of the policy `sticky`: a table that names a header.
struct StickyKey;

impl Form<Option<HeaderName>> for StickyKey {
    fn read(
        &self,
        table: &Table<'_, '_>,
        key: &str,
        default: Option<HeaderName>,
    ) -> Option<HeaderName> {
        table.table(key).map_or(default, |table| header_name(&table, "header"))
    }

    fn show(&self, value: &Option<HeaderName>) -> Option<String> {
        value.as_ref().map(|name| format!("{{ header = {:?} }}", name.as_str()))
    }

    fn expected(&self) -> String {
        "a table with the name of a `header`".to_owned()
    }

    fn kind(&self) -> &'static str {
        "TABLE"
    }
}
