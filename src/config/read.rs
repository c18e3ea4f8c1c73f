//! From TOML to [`Config`]: one function a section, in the order of the reference file.

use super::check::{
    Names, absolute_path, at_least, header_name, millis, positive, secs, timeout_within,
};
use super::{
    AccessLog, Config, EndpointProtocol, Fleet, Hedge, Limits, Pool, Probe, ProbeKind,
    ProbeSchedule, Protocol, Queue, Retry, Server, Source, listener, route,
};
use forebay_config::pool::Ejection;
use forebay_config::{ByteSize, Diagnostics, Document, Section, Table};
use forebay_routing::Policy;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Of an HTTP/2 connection, where nothing is said: about what the protocol begins with.
const DEFAULT_HTTP2_WINDOW: u32 = 64 * 1024;

/// Bounds that no sensible fleet reaches; they keep a typing error from becoming an outage.
const MAX_THREADS: usize = 1024;
const MAX_POOL: usize = 10_000;
const MAX_WORKERS: usize = 256;

pub(super) fn config(source: &str, base: &Path) -> Result<Config, Diagnostics> {
    let document = Document::parse(source);
    let config = read(&document.root(), base);
    document.finish()?;
    Ok(config)
}

pub(super) fn keys_missing_from(source: &str) -> Vec<String> {
    let document = Document::parse(source);
    read(&document.root(), Path::new(""));
    document.keys_asked().difference(&document.keys_present()).cloned().collect()
}

fn read(root: &Table<'_, '_>, base: &Path) -> Config {
    let server = server(&root.table_or_empty("server"), base);
    let limits = Limits::checked(&root.table_or_empty("limits"));
    let pool = |(name, table): (String, Table<'_, '_>)| {
        if name.is_empty() {
            root.note(table.span(), "pool", "expected a name, found \"\"");
        }
        pool(name, &table, base)
    };
    let pools: Vec<_> = root.named("pool").into_iter().map(pool).collect();
    let pool_names: Vec<_> = pools.iter().map(|pool| pool.name.clone()).collect();
    let mut names = Names::default();
    let listener = |table: &Table<'_, '_>| listener::read(table, base, &pool_names, &mut names);
    let listeners: Vec<_> = root.tables("listener").iter().filter_map(listener).collect();
    // A proxy at Layer 4 alone has nothing to route.
    let only_tcp = !listeners.is_empty()
        && listeners.iter().all(|listener| matches!(listener.protocol, Protocol::Tcp(_)));
    let mut names = Names::default();
    let route = |table: &Table<'_, '_>| route::read(table, &pool_names, &mut names);
    let routes: Vec<_> = root.tables("route").iter().map(route).collect();
    for (missing, key, form) in [
        (listeners.is_empty(), "listener", "[[listener]]"),
        (pools.is_empty(), "pool", "[pool.NAME]"),
        (routes.is_empty() && !only_tcp, "route", "[[route]]"),
    ] {
        if missing && !root.has(key) {
            root.note(0..0, key, format!("expected at least one {form}, found none"));
        }
    }
    let pools = pools.into_iter().map(Arc::new).collect();
    let routes = routes.into_iter().map(Arc::new).collect();
    Config { server, listeners, limits, pools, routes }
}

fn server(table: &Table<'_, '_>, base: &Path) -> Server {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let admin = table.spanned::<String>("admin").and_then(|(text, span)| {
        if text == "off" {
            return None;
        }
        let address = text.parse().ok();
        if address.is_none() {
            let expected = "expected an address and a port such as \"127.0.0.1:9090\", or \"off\"";
            table.note(span, "admin", format!("{expected}, found {text:?}"));
        }
        address
    });
    Server {
        threads: table.within("threads", 1..=MAX_THREADS, cores),
        admin,
        admin_hosts: table.or("admin_hosts", Vec::new()),
        drain_delay: table.or("drain_delay", secs(1)),
        drain_timeout: table.or("drain_timeout", secs(30)),
        idle_connections: table.within("idle_connections", 1..=1_000_000, 1024),
        http2_window: http2_window(table),
        access_log: match table.get::<String>("access_log").as_deref() {
            None | Some("stdout") => AccessLog::Stdout,
            Some("off") => AccessLog::Off,
            Some(file) => AccessLog::File(base.join(file)),
        },
    }
}

/// Bytes that a client may send ahead on a connection of HTTP/2: at least what the protocol begins with.
fn http2_window(table: &Table<'_, '_>) -> u32 {
    let (least, most) = (u64::from(DEFAULT_HTTP2_WINDOW), 16 * 1024 * 1024);
    let Some((ByteSize(window), span)) = table.spanned::<ByteSize>("http2_window") else {
        return DEFAULT_HTTP2_WINDOW;
    };
    if !(least..=most).contains(&window) {
        let bound = format!("expected {} to {}", ByteSize(least), ByteSize(most));
        table.note(span, "http2_window", format!("{bound}, found {}", ByteSize(window)));
    }
    u32::try_from(window).unwrap_or(DEFAULT_HTTP2_WINDOW)
}

fn pool(name: String, table: &Table<'_, '_>, base: &Path) -> Pool {
    Pool {
        source: source(table, base),
        protocol: table.choice("protocol", EndpointProtocol::NAMES, EndpointProtocol::default()),
        policy: table.choice("policy", Policy::NAMES, Policy::default()),
        sticky: table.table("sticky").and_then(|table| header_name(&table, "header")),
        slots: table.within("slots", 1..=1_000_000, 0),
        queue: Queue::read(&table.table_or_empty("queue")),
        report_ttl: table.or("report_ttl", secs(2)),
        connect_timeout: positive(table, "connect_timeout", secs(1)),
        idle_timeout: positive(table, "idle_timeout", secs(50)),
        tcp_keepalive: at_least(table, "tcp_keepalive", secs(3)).unwrap_or(secs(3)),
        tcp_user_timeout: at_least(table, "tcp_user_timeout", millis(100)),
        http2_ping_interval: at_least(table, "http2_ping_interval", secs(1)),
        probe: probe(&table.table_or_empty("probe")),
        poll: table.table("poll").map(|table| super::poll::poll(&table)),
        hedge: table.table("hedge").map(|table| Hedge::read(&table)),
        slow_start: table.or("slow_start", Duration::ZERO),
        ejection: Ejection::read(&table.table_or_empty("ejection")).rules(),
        retry: Retry::read(&table.table_or_empty("retry")),
        name,
    }
}

fn source(table: &Table<'_, '_>, base: &Path) -> Source {
    let endpoints = table.items::<SocketAddr>("endpoints");
    match (endpoints, table.table("fleet")) {
        (Some((_, span)), Some(_)) => {
            table.note(span, "endpoints", "expected either endpoints or a fleet, found both");
            Source::Static(Vec::new())
        }
        (Some((endpoints, span)), None) => {
            if endpoints.is_empty() || endpoints.len() > MAX_POOL {
                let found = endpoints.len();
                table.note(span, "endpoints", format!("expected 1 to {MAX_POOL}, found {found}"));
            }
            let mut seen = BTreeSet::new();
            for (address, span) in endpoints.iter().flatten() {
                if address.port() == 0 {
                    let expected = "expected a port from 1 to 65535";
                    table.note(span.clone(), "endpoints", format!("{expected}, found {address}"));
                } else if !seen.insert(*address) {
                    let twice = format!("expected each once, found {address} again");
                    table.note(span.clone(), "endpoints", twice);
                }
            }
            Source::Static(endpoints.into_iter().flatten().map(|(address, _)| address).collect())
        }
        (None, Some(fleet)) => Source::Fleet(Fleet {
            workers: fleet.within("workers", 1..=MAX_WORKERS, 1),
            models: base.join(fleet.required::<PathBuf>("models").unwrap_or_default()),
            executors: fleet.within("executors", 1..=MAX_THREADS, 1),
        }),
        (None, None) => {
            if !table.has("endpoints") && !table.has("fleet") {
                table.note(
                    table.span(),
                    "endpoints",
                    "expected endpoints or a fleet, found neither",
                );
            }
            Source::Static(Vec::new())
        }
    }
}

fn probe(table: &Table<'_, '_>) -> Probe {
    let kinds = [("http", false), ("tcp", true)];
    let is_tcp = table.choice("kind", &kinds, false);
    if is_tcp && let Some((_, span)) = table.spanned::<String>("path") {
        table.note(span, "path", "expected kind = \"http\" beside it");
    }
    let path = absolute_path(table, "path", "/v2/health/ready");
    let schedule = ProbeSchedule::checked(table);
    let interval = schedule.interval;
    Probe {
        kind: if is_tcp { ProbeKind::Tcp } else { ProbeKind::Http(path) },
        timeout: timeout_within(table, "timeout", interval.min(millis(800)), interval),
        schedule,
    }
}
