//! From TOML to [`Config`]: one function a section, in the order of the reference file.

use super::check::{
    Names, absolute_path, at_least, header_name, interval, millis, positive, secs, share,
    timeout_within,
};
use super::{
    AccessLog, Config, EndpointProtocol, Fleet, Hedge, Limits, Pool, Probe, ProbeKind, Protocol,
    Queue, Retry, RetryOn, Server, Source, listener, route,
};
use forebay_config::{ByteRate, ByteSize, Diagnostics, Document, Ratio, Span, Table};
use forebay_routing::{Ejection, Policy};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

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
    let limits = limits(&root.table_or_empty("limits"));
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
        access_log: match table.get::<String>("access_log").as_deref() {
            None | Some("stdout") => AccessLog::Stdout,
            Some("off") => AccessLog::Off,
            Some(file) => AccessLog::File(base.join(file)),
        },
    }
}

fn limits(table: &Table<'_, '_>) -> Limits {
    const MIB: u64 = 1024 * 1024;
    let body = table.or("body", ByteSize(64 * MIB)).0;
    let buffer = match table.spanned::<ByteSize>("buffer") {
        Some((ByteSize(buffer), span)) if buffer > body => {
            let bound = format!("expected at most limits.body ({})", ByteSize(body));
            table.note(span, "buffer", format!("{bound}, found {}", ByteSize(buffer)));
            buffer
        }
        Some((ByteSize(buffer), _)) => buffer,
        None => body.min(16 * MIB),
    };
    let memory = table.or("memory", ByteSize(1024 * MIB)).0;
    Limits {
        body,
        buffer,
        memory,
        client_memory: table.or("client_memory", Ratio(0.5)).0,
        read_ahead: table.or("read_ahead", ByteSize(MIB)).0,
        body_timeout: positive(table, "body_timeout", secs(30)),
        min_rate: table.or("min_rate", ByteRate(16.0 * 1024.0)).0,
        stall_timeout: positive(table, "stall_timeout", secs(10)),
        stream_idle: positive(table, "stream_idle", secs(3600)),
        header_timeout: positive(table, "header_timeout", secs(10)),
        client_header: header_name(table, "client_header"),
    }
}

fn pool(name: String, table: &Table<'_, '_>, base: &Path) -> Pool {
    Pool {
        source: source(table, base),
        protocol: table.choice("protocol", EndpointProtocol::NAMES, EndpointProtocol::default()),
        policy: table.choice("policy", Policy::NAMES, Policy::default()),
        sticky: table.table("sticky").and_then(|table| header_name(&table, "header")),
        slots: table.within("slots", 1..=1_000_000, 0),
        queue: queue(&table.table_or_empty("queue")),
        report_ttl: table.or("report_ttl", secs(2)),
        connect_timeout: positive(table, "connect_timeout", secs(1)),
        idle_timeout: positive(table, "idle_timeout", secs(50)),
        tcp_keepalive: at_least(table, "tcp_keepalive", secs(3)).unwrap_or(secs(3)),
        tcp_user_timeout: at_least(table, "tcp_user_timeout", millis(100)),
        http2_ping_interval: at_least(table, "http2_ping_interval", secs(1)),
        probe: probe(&table.table_or_empty("probe")),
        poll: table.table("poll").map(|table| super::poll::poll(&table)),
        hedge: table.table("hedge").map(|table| hedge(&table)),
        slow_start: table.or("slow_start", Duration::ZERO),
        ejection: ejection(&table.table_or_empty("ejection")),
        retry: retry(&table.table_or_empty("retry")),
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
    let interval = interval(table, "interval", secs(1));
    Probe {
        kind: if is_tcp { ProbeKind::Tcp } else { ProbeKind::Http(path) },
        interval,
        fast_interval: fast_interval(table, interval),
        timeout: timeout_within(table, "timeout", interval.min(millis(800)), interval),
        rise: table.within("rise", 1..=100, 2),
        fall: table.within("fall", 1..=100, 2),
    }
}

fn fast_interval(table: &Table<'_, '_>, most: Duration) -> Duration {
    let fast = interval(table, "fast_interval", millis(100).min(most));
    if let Some((fast, span)) = table.spanned::<Duration>("fast_interval")
        && fast > most
    {
        let expected = format!("expected at most the interval ({most:?})");
        table.note(span, "fast_interval", format!("{expected}, found {fast:?}"));
    }
    fast
}

fn retry(table: &Table<'_, '_>) -> Retry {
    let attempt_timeout =
        table.get::<Duration>("attempt_timeout").map(|timeout| timeout.max(millis(1)));
    Retry {
        attempts: table.within("attempts", 1..=16, 3),
        budget: table.or("budget", Ratio(0.1)).0,
        min_per_second: table.within("min_per_second", 0.0..=1e6, 0.0),
        attempt_timeout,
        on: retry_on(table),
    }
}

fn queue(table: &Table<'_, '_>) -> Queue {
    Queue {
        size: table.within("size", 0..=1_000_000, 1024),
        handoff_delay: table.or("handoff_delay", Duration::from_micros(500)),
    }
}

fn retry_on(table: &Table<'_, '_>) -> Vec<RetryOn> {
    let Some((names, _)) = table.items::<String>("on") else { return RetryOn::DEFAULT.to_vec() };
    let known = |(name, span): (String, Span)| {
        let found = RetryOn::NAMES.iter().find(|(known, _)| *known == name);
        if found.is_none() {
            let names: Vec<_> =
                RetryOn::NAMES.iter().map(|(name, _)| format!("{name:?}")).collect();
            let expected = format!("expected some of {}", names.join(", "));
            table.note(span, "on", format!("{expected}, found {name:?}"));
        }
        found.map(|(_, trouble)| *trouble)
    };
    names.into_iter().flatten().filter_map(known).collect()
}

fn hedge(table: &Table<'_, '_>) -> Hedge {
    let quantile = table.within("quantile", 0.5..=0.9999, 0.95);
    let budget = share(table, "budget", 0.03);
    Hedge { quantile, budget, min_delay: table.or("min_delay", millis(5)) }
}

fn ejection(table: &Table<'_, '_>) -> Ejection {
    let base_time = positive(table, "base_time", secs(3));
    Ejection {
        consecutive_failures: table.within("consecutive_failures", 0..=1_000_000, 5),
        interval: interval(table, "interval", secs(2)),
        min_requests: table.within("min_requests", 1..=1_000_000, 20),
        success_rate: share(table, "success_rate", 0.8),
        latency_factor: table.spanned::<f64>("latency_factor").map(|(factor, span)| {
            if !(1.1..=1e6).contains(&factor) {
                table.note(span, "latency_factor", format!("expected 1.1 or more, found {factor}"));
            }
            factor
        }),
        base_time,
        max_time: positive(table, "max_time", secs(300)).max(base_time),
        max_share: share(table, "max_share", 0.5),
        panic_below: share(table, "panic_below", 0.5),
    }
}
