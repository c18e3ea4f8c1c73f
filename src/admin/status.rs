//! The proxy's current knowledge: `/status`, as a table for people and as JSON for programs.
//!
//! When requests are slow, the first question is which endpoint is busy and how old that knowledge is. Every
//! number that pick compares is here, with the age and the origin of the report behind it: elsewhere, a
//! queue depth that is ten seconds old looks like a fresh one.

use super::format::{long, millis, round, short};
use super::route_status::RouteStatus;
use super::wait_status::WaitStatus;
use crate::clock;
use crate::config;
use crate::connections::Connections;
use crate::http::cache::{self, Cache};
use crate::http::shadow::Shadows;
use crate::lifecycle::Lifecycle;
use crate::pool::readiness::Readiness;
use crate::pool::report::history::Origin;
use crate::pool::{Endpoint, Pool, Snapshot};
use crate::telemetry::access_log::timestamp;
use forebay_routing::{Policy, Time, pick};
use http::{HeaderMap, header};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::sync::Arc;

/// The whole of it. Times are milliseconds where their names say so.
#[derive(Debug, Serialize)]
pub struct Status<'a> {
    version: &'static str,
    uptime_seconds: u64,
    ready: bool,
    /// Pools without an endpoint that routes or listeners name: what they should answer is answered by
    /// others, or not at all.
    missing: Vec<&'a str>,
    draining: bool,
    /// Requests inside the proxy.
    in_flight: usize,
    /// Number of configurations that this process has run.
    generation: u64,
    config_loaded: String,
    listeners: Vec<ListenerStatus<'a>>,
    pools: BTreeMap<&'a str, PoolStatus<'a>>,
    routes: Vec<RouteStatus<'a>>,
    /// The response cache; null if no route has one.
    cache: Option<cache::operate::Status>,
}

#[derive(Debug, Serialize)]
struct ListenerStatus<'a> {
    address: &'a str,
    protocol: &'static str,
    /// Open now.
    connections: usize,
    max_connections: usize,
}

#[derive(Debug, Serialize)]
struct PoolStatus<'a> {
    policy: &'static str,
    /// In rotation.
    ready: usize,
    /// Whether so few endpoints are ready that ejected ones are in rotation, too.
    panic: bool,
    /// Whether none is ready, so that those are tried that do not answer probes.
    last_resort: bool,
    report_ttl_ms: f64,
    /// Requests that wait for an endpoint, by priority.
    queued: BTreeMap<&'static str, usize>,
    /// Mean times of a request over the last half minute; null while too little is known.
    waits: Option<WaitStatus>,
    endpoints: Vec<EndpointStatus<'a>>,
}

#[derive(Debug, Serialize)]
struct EndpointStatus<'a> {
    address: &'a str,
    health: &'static str,
    /// Why it is ejected.
    ejected_for: Option<&'static str>,
    /// Until it is back on trial.
    ejected_ms: Option<f64>,
    /// Number of its ejections, less those that good behaviour has cancelled.
    strikes: u32,
    /// Number of its connections that were closed because it flooded them with HTTP/2 frames.
    http2_floods: u64,
    /// Sent by this proxy and unfinished.
    in_flight: u32,
    /// Believed to be there, from everyone: the last report, corrected by what was done since.
    occupancy: u32,
    /// Requests that it can run at once, if known.
    slots: Option<u32>,
    /// Whether `slots` is learnt from latencies, because neither reports nor configuration state it.
    slots_learnt: bool,
    /// In flight there by the last report, from everyone.
    reported_in_flight: Option<u32>,
    /// Waiting there by the last report.
    queue: Option<u32>,
    report_age_ms: Option<f64>,
    /// Origin of the last report.
    origin: Option<&'static str>,
    /// Whether it is too old to be believed.
    stale: bool,
    service_ms: Option<f64>,
    cost_ms: f64,
}

/// In which form a status is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A table.
    Text,
    /// For programs.
    Json,
}

impl Form {
    /// The form that `?format=` asks for, otherwise `Accept`: JSON for clients that name it or send no such
    /// header, as small clients do; the table for curl and browsers.
    pub fn wanted(query: Option<&str>, headers: &HeaderMap) -> Self {
        let stated =
            query.and_then(|query| query.split('&').find_map(|q| q.strip_prefix("format=")));
        match stated {
            Some("json") => return Self::Json,
            Some("text") => return Self::Text,
            _ => {}
        }
        let mut accepted = headers.get_all(header::ACCEPT).iter().peekable();
        let silent = accepted.peek().is_none();
        let json = |value: &http::HeaderValue| {
            value.to_str().is_ok_and(|value| value.contains("application/json"))
        };
        if silent || accepted.any(json) { Self::Json } else { Self::Text }
    }
}

impl<'a> Status<'a> {
    /// The status at this moment.
    pub fn of(
        snapshot: &'a Snapshot,
        (lifecycle, shadows): (&Lifecycle, &Shadows),
        listeners: &'a [Arc<Connections>],
        cache: &Cache,
    ) -> Self {
        let now = clock::now();
        let pool = |pool: &'a Arc<Pool>| (pool.config.name.as_str(), PoolStatus::of(pool, now));
        let route = |route: &'a Arc<config::Route>| RouteStatus::of(snapshot, route, shadows);
        let listener = |listener: &'a Arc<Connections>| ListenerStatus {
            address: &listener.listener,
            protocol: listener.protocol,
            connections: listener.open(),
            max_connections: listener.most(),
        };
        let missing = Readiness::of(snapshot).missing.into_iter();
        let has_cache = snapshot.config.routes.iter().any(|route| route.cache.is_some());
        Self {
            version: forebay_cli::VERSION,
            uptime_seconds: now.since(Time::default()).as_secs(),
            ready: lifecycle.is_ready(snapshot),
            missing: missing.map(|pool| pool.config.name.as_str()).collect(),
            draining: lifecycle.is_draining(),
            in_flight: lifecycle.in_flight(),
            generation: snapshot.generation,
            config_loaded: timestamp(snapshot.loaded_at),
            listeners: listeners.iter().map(listener).collect(),
            pools: snapshot.pools.iter().map(pool).collect(),
            routes: snapshot.config.routes.iter().map(route).collect(),
            cache: has_cache.then(|| cache.status()),
        }
    }
}

impl<'a> PoolStatus<'a> {
    fn of(pool: &'a Pool, now: Time) -> Self {
        let named = Policy::NAMES.iter().find(|(_, policy)| *policy == pool.config.policy);
        let best = pick::best_service(pool.endpoints.iter());
        let counts = pool.state.queue.counts();
        let endpoint = |endpoint: &'a Arc<Endpoint>| EndpointStatus::of(pool, endpoint, best, now);
        Self {
            policy: named.map_or("", |(name, _)| name),
            ready: pool.ready_count(),
            panic: pool.rotation.panics,
            last_resort: pool.rotation.last_resort,
            report_ttl_ms: millis(pool.config.report_ttl),
            queued: counts.map(|(priority, count)| (priority.as_str(), count)).into(),
            waits: pool.waits().map(WaitStatus::of),
            endpoints: pool.endpoints.iter().map(endpoint).collect(),
        }
    }
}

impl<'a> EndpointStatus<'a> {
    fn of(pool: &Pool, endpoint: &'a Endpoint, best: f64, now: Time) -> Self {
        let (state, load, ttl) = (&endpoint.state, &endpoint.state.load, pool.config.report_ttl);
        let age = load.reported_at().map(|at| now.since(at));
        let record = state.record().clone();
        Self {
            address: &state.name,
            health: state.health().as_str(),
            ejected_for: record.out().map(|(cause, _)| cause.as_str()),
            ejected_ms: record.out().map(|(_, until)| millis(until.since(now))),
            strikes: record.multiplier(),
            http2_floods: state.floods(),
            in_flight: state.in_flight(),
            occupancy: load.occupancy(now, ttl),
            slots: load.known_slots(),
            slots_learnt: load.stated_slots().is_none() && load.learnt_slots().is_some(),
            reported_in_flight: load.reported_in_flight(),
            queue: load.reported_queue(),
            report_age_ms: age.map(millis),
            origin: age.and(state.reports.origin()).map(Origin::as_str),
            stale: age.is_some_and(|age| age > ttl),
            service_ms: load.service_seconds().map(|seconds| round(seconds * 1e3)),
            cost_ms: round(load.cost(now, ttl, best) * 1e3),
        }
    }

    fn health_cell(&self) -> String {
        let mut cell = self.health.to_owned();
        if let (Some(cause), Some(left)) = (self.ejected_for, self.ejected_ms) {
            cell += &format!(", {cause}, {}", short(left));
        }
        match self.http2_floods {
            0 => {}
            1 => cell += ", 1 flood",
            floods => cell += &format!(", {floods} floods"),
        }
        cell
    }

    /// The cells of its line in the table.
    fn cells(&self) -> [String; 9] {
        let or_none = |cell: Option<String>| cell.unwrap_or_else(|| "-".to_owned());
        let report = self.report_age_ms.map(|age| {
            let stale = if self.stale { ", stale" } else { "" };
            format!("{} ago, {}{stale}", short(age), self.origin.unwrap_or("-"))
        });
        [
            self.address.to_owned(),
            self.health_cell(),
            self.in_flight.to_string(),
            self.occupancy.to_string(),
            or_none(self.slots.map(|slots| {
                let about = if self.slots_learnt { "~" } else { "" };
                format!("{about}{slots}")
            })),
            or_none(self.queue.map(|queue| queue.to_string())),
            or_none(self.service_ms.map(short)),
            short(self.cost_ms),
            report.unwrap_or_else(|| "none".to_owned()),
        ]
    }
}

/// The table.
impl fmt::Display for Status<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match (self.draining, self.ready) {
            (true, _) => "draining",
            (false, true) => "ready",
            (false, false) => "not ready",
        };
        write!(f, "forebay {}, {state}", self.version)?;
        for (place, pool) in self.missing.iter().enumerate() {
            let separator = if place == 0 { " without pool" } else { " and" };
            write!(f, "{separator} {pool}")?;
        }
        writeln!(f, ", {} in flight, up {}", self.in_flight, long(self.uptime_seconds))?;
        writeln!(f, "configuration {}, loaded {}", self.generation, self.config_loaded)?;
        for listener in &self.listeners {
            let ListenerStatus { address, protocol, connections, max_connections } = listener;
            writeln!(
                f,
                "listener {address} ({protocol}): {connections} of {max_connections} open"
            )?;
        }
        if let Some(cache) = &self.cache {
            writeln!(f, "{cache}")?;
        }
        for (name, pool) in &self.pools {
            let (ready, all) = (pool.ready, pool.endpoints.len());
            let queued: usize = pool.queued.values().sum();
            let policy = pool.policy;
            let panic = match (pool.panic, pool.last_resort) {
                (true, _) => ", panic: ejected endpoints are used",
                (_, true) => ", last resort: endpoints that do not answer probes are used",
                _ => "",
            };
            writeln!(f, "\npool {name}: {policy}, {ready} of {all} ready, {queued} queued{panic}")?;
            if let Some(waits) = &pool.waits {
                writeln!(f, "  {waits}")?;
            }
            let heads = [
                "endpoint",
                "health",
                "in flight",
                "there",
                "slots",
                "queue",
                "service",
                "cost",
                "report",
            ];
            let mut lines = vec![heads.map(str::to_owned)];
            lines.extend(pool.endpoints.iter().map(EndpointStatus::cells));
            table(f, &lines)?;
        }
        f.write_char('\n')?;
        for route in &self.routes {
            writeln!(f, "{route}")?;
        }
        Ok(())
    }
}

/// Columns as wide as their widest cell; numbers to the right.
fn table<const N: usize>(f: &mut fmt::Formatter<'_>, lines: &[[String; N]]) -> fmt::Result {
    /// Columns from here to here hold numbers.
    const NUMBERS: std::ops::Range<usize> = 2..8;
    let width = |column: usize| lines.iter().map(|line| line[column].len()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    for line in lines {
        let mut text = String::new();
        for (column, (cell, width)) in line.iter().zip(widths).enumerate() {
            if NUMBERS.contains(&column) {
                write!(text, "  {cell:>width$}")?;
            } else {
                write!(text, "  {cell:<width$}")?;
            }
        }
        writeln!(f, "{}", text.trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
    use super::*;

    #[test]
    fn people_get_a_table_and_programs_json() {
        let form = |query: Option<&str>, accept: Option<&str>| {
            let mut headers = HeaderMap::new();
            if let Some(accept) = accept {
                headers.insert(header::ACCEPT, accept.parse().unwrap());
            }
            Form::wanted(query, &headers)
        };
        assert_eq!(form(None, Some("*/*")), Form::Text, "curl");
        assert_eq!(form(None, Some("text/html,application/xhtml+xml,*/*;q=0.8")), Form::Text);
        assert_eq!(form(None, Some("application/json, text/plain, */*")), Form::Json);
        assert_eq!(form(None, None), Form::Json, "urllib");
        assert_eq!(form(Some("a=b&format=json"), Some("*/*")), Form::Json);
        assert_eq!(form(Some("format=text"), None), Form::Text);
    }

    #[test]
    fn the_table_shows_who_is_busy_and_how_one_knows() {
        let endpoint = |address, queue: Option<u32>, report_age_ms| EndpointStatus {
            address,
            health: if queue.is_some() { "ready" } else { "ejected" },
            ejected_for: queue.is_none().then_some("recovery"),
            ejected_ms: queue.is_none().then_some(5900.0),
            strikes: 0,
            http2_floods: if queue.is_none() { 3 } else { 0 },
            in_flight: 3,
            occupancy: 12,
            slots: Some(4),
            slots_learnt: queue.is_none(),
            reported_in_flight: Some(11),
            queue,
            report_age_ms,
            origin: report_age_ms.map(|_| "polled"),
            stale: report_age_ms.is_some_and(|age: f64| age > 2000.0),
            service_ms: report_age_ms.map(|_| 19.245),
            cost_ms: 123.456,
        };
        let pool = PoolStatus {
            policy: "least_cost",
            ready: 2,
            panic: false,
            last_resort: false,
            report_ttl_ms: 2000.0,
            queued: [("high", 1), ("normal", 4)].into(),
            waits: None,
            endpoints: vec![
                endpoint("10.0.0.1:8000", Some(8), Some(0.4)),
                endpoint("10.0.0.2:8000", Some(8), Some(4200.0)),
                endpoint("[fd00::1]:8000", None, None),
            ],
        };
        let status = Status {
            version: "1.2.3",
            uptime_seconds: 93_784,
            ready: true,
            missing: vec!["canary", "small"],
            draining: false,
            in_flight: 9,
            generation: 2,
            config_loaded: "2026-01-31T12:00:00.000Z".to_owned(),
            listeners: vec![ListenerStatus {
                address: "0.0.0.0:8080",
                protocol: "http",
                connections: 17,
                max_connections: 20_000,
            }],
            pools: [("models", pool)].into(),
            routes: Vec::new(),
            cache: None,
        };
        let expected = "\
forebay 1.2.3, ready without pool canary and small, 9 in flight, up 1 d 2 h
configuration 2, loaded 2026-01-31T12:00:00.000Z
listener 0.0.0.0:8080 (http): 17 of 20000 open

pool models: least_cost, 2 of 3 ready, 5 queued
  endpoint        health                              in flight  there  slots  queue  service    cost  report
  10.0.0.1:8000   ready                                       3     12      4      8  19.2 ms  123 ms  0.40 ms ago, polled
  10.0.0.2:8000   ready                                       3     12      4      8  19.2 ms  123 ms  4.2 s ago, polled, stale
  [fd00::1]:8000  ejected, recovery, 5.9 s, 3 floods          3     12     ~4      -        -  123 ms  none

";
        assert_eq!(status.to_string(), expected);
    }
}
