//! The admin listener: metrics, status, reload. It is separate from the clients' listeners, and on loopback
//! unless the operator chooses otherwise, since anyone who reaches it can reload.

mod answer;
mod format;
pub mod listener;
mod rollouts;
mod route_status;
pub mod status;
mod wait_status;
mod weights;

use crate::admin::answer::{answer, json_answer};
use crate::admin::status::{Form, Status};
use crate::clock;
use crate::config::Tls;
use crate::connections::Connections;
use crate::http::cache::Cache;
use crate::http::cache::operate::Purge;
use crate::http::identify;
use crate::http::shadow::Shadows;
use crate::lifecycle::Lifecycle;
use crate::pool::control::ControlHandle;
use crate::pool::message::{Drain, Unknown};
use crate::pool::readiness::{self, Readiness};
use crate::pool::{Endpoint, Pool, Snapshot};
use crate::reload::Reloader;
use crate::rollout::Rollouts;
use async_trait::async_trait;
use forebay_protocol::browser::{self, Foreign};
use forebay_protocol::metric::proxy as metric;
use forebay_routing::{Health, pick};
use http::{Method, Response, StatusCode, header};
use metrics_exporter_prometheus::PrometheusHandle;
use pingora::apps::http_app::ServeHttp;
use pingora::protocols::http::ServerSession;
use serde_json::json;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

/// The sources of the admin listener's answers.
pub struct Admin {
    /// The fleet.
    pub control: ControlHandle,
    /// Requests in flight.
    pub lifecycle: Arc<Lifecycle>,
    /// Kept answers.
    pub cache: Arc<Cache>,
    /// Copies of requests whose answers are compared.
    pub shadows: Arc<Shadows>,
    /// The clients' connections, listener by listener.
    pub listeners: Vec<Arc<Connections>>,
    /// Reloads.
    pub reloader: Reloader,
    /// Rollouts.
    pub rollouts: Arc<Rollouts>,
    /// Metrics.
    pub prometheus: PrometheusHandle,
    /// The address that it is bound to.
    pub bound: IpAddr,
    /// Hosts that it is known by.
    pub hosts: Vec<String>,
}

const HELP: &str = "\
forebay admin
GET  /metrics  Prometheus metrics
GET  /status   who is how busy, as a table; ?format=json for programs
GET  /livez    200 as long as the process runs
GET  /readyz   200 if requests can be served, and what is missing
GET  /cache    the response cache: its size, and what left it
POST /cache/purge    it forgets all answers; ?route=, ?model= and ?version= say which
POST /reload   read the configuration file again
GET  /routes/ROUTE/weights   the weights of its variants, in thousandths
POST /routes/ROUTE/weights   changes them, all at once, as a JSON object says: weights by variant
GET  /rollouts               all rollouts, with their evidence
GET  /routes/ROUTE/rollout   the rollout of a route
POST /routes/ROUTE/rollout/COMMAND   start, pause, resume, promote or abort it
POST /pools/POOL/endpoints/ADDRESS/drain    it gets nothing new and finishes what it has
POST /pools/POOL/endpoints/ADDRESS/undrain  it is used again
";

#[async_trait]
impl ServeHttp for Admin {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        if session.req_header().headers.get(header::TRANSFER_ENCODING).is_some()
            || session.req_header().headers.get(header::CONTENT_LENGTH).is_some_and(|l| l != "0")
        {
            // Hardly anything here has a body; one that drips would hold the connection.
            session.set_keepalive(None);
        }
        if let Some(foreign) = self.foreign(session) {
            return refuse_foreign(foreign);
        }
        let head = session.req_header();
        let (method, path) = (head.method.clone(), head.uri.path().to_owned());
        let form = Form::wanted(head.uri.query(), &head.headers);
        let snapshot = self.control.snapshot().load_full();
        match (&method, path.as_str()) {
            (&Method::GET, "/metrics") => {
                self.set_gauges(&snapshot);
                let text = self.prometheus.render();
                answer(StatusCode::OK, "text/plain; version=0.0.4", text)
            }
            (&Method::GET, "/status") => self.status(&snapshot, form),
            (&Method::GET, "/livez") => answer(StatusCode::OK, TEXT, "live\n"),
            (&Method::GET, "/readyz") => self.readiness(&snapshot),
            (&Method::POST, "/reload") => match self.reloader.reload().await {
                Ok(generation) => json_answer(StatusCode::OK, &json!({ "generation": generation })),
                Err(error) => {
                    json_answer(StatusCode::UNPROCESSABLE_ENTITY, &json!({ "error": error }))
                }
            },
            (&Method::GET, "/cache") => json_answer(StatusCode::OK, &self.cache.status()),
            (&Method::GET, "/rollouts") => {
                json_answer(StatusCode::OK, &json!({ "rollouts": self.rollouts.shown() }))
            }
            (&Method::POST, "/cache/purge") => {
                self.purge(head.uri.query().map(str::to_owned)).await
            }
            (
                _,
                "/metrics" | "/status" | "/livez" | "/readyz" | "/reload" | "/cache"
                | "/cache/purge" | "/rollouts",
            ) => {
                let error = format!("{method} is not supported; GET / lists the paths");
                json_answer(StatusCode::METHOD_NOT_ALLOWED, &json!({ "error": error }))
            }
            (&Method::GET, "/") => answer(StatusCode::OK, TEXT, HELP),
            (_, path) if path.starts_with("/routes/") && rollouts::is_about(path) => {
                rollouts::rollout(&self.rollouts, &self.control, (&method, path)).await
            }
            (_, path) if path.starts_with("/routes/") => {
                let to = (&self.control, &*self.rollouts);
                weights::weights(to, session, (&method, path)).await
            }
            (_, path) if path.starts_with("/pools/") => self.drain(&method, path).await,
            _ => {
                let error = "nothing is served at this path; GET / lists the paths";
                json_answer(StatusCode::NOT_FOUND, &json!({ "error": error }))
            }
        }
    }
}

const TEXT: &str = "text/plain; charset=utf-8";

/// Refuses what a page in a browser may have sent, and counts it.
fn refuse_foreign(foreign: Foreign) -> Response<Vec<u8>> {
    metric::ADMIN_REFUSED.with([foreign.as_str()]).increment(1);
    let (status, error) = match foreign {
        Foreign::CrossSite => (
            StatusCode::FORBIDDEN,
            "expected a request from a program or from this site's own page",
        ),
        Foreign::UnknownHost => (
            StatusCode::MISDIRECTED_REQUEST,
            "expected a host name of this listener, see server.admin_hosts",
        ),
    };
    json_answer(status, &json!({ "error": error }))
}

impl Admin {
    /// Forgets the kept answers that a query means.
    async fn purge(&self, query: Option<String>) -> Response<Vec<u8>> {
        match Purge::parse(&query.unwrap_or_default()) {
            Ok(purge) => {
                let purged = self.cache.purge(&purge).await;
                tracing::info!(?purged, ?purge, "kept answers forgotten");
                json_answer(StatusCode::OK, &purged)
            }
            Err(error) => json_answer(StatusCode::BAD_REQUEST, &json!({ "error": error })),
        }
    }

    fn foreign(&self, session: &ServerSession) -> Option<Foreign> {
        let local = session.server_addr().and_then(|address| address.as_inet()).map(SocketAddr::ip);
        let is_own = |host: &str| {
            let address = host.parse::<IpAddr>().ok().map(|address| address.to_canonical());
            let is = |own: IpAddr| address == Some(own.to_canonical());
            is(self.bound)
                || local.is_some_and(is)
                || self.hosts.iter().any(|known| known.eq_ignore_ascii_case(host))
        };
        browser::foreign(&session.req_header().headers, is_own)
    }

    fn status(&self, snapshot: &Snapshot, form: Form) -> Response<Vec<u8>> {
        let state = (&*self.lifecycle, &*self.shadows);
        let status = Status::of(snapshot, state, &self.listeners, &self.cache);
        match form {
            Form::Text => answer(StatusCode::OK, TEXT, status.to_string()),
            Form::Json => json_answer(StatusCode::OK, &status),
        }
    }

    /// `/pools/POOL/endpoints/ADDRESS/drain` and `/undrain`.
    async fn drain(&self, method: &Method, path: &str) -> Response<Vec<u8>> {
        let refused = |status, error: String| json_answer(status, &json!({ "error": error }));
        let drain = match drain_of(path) {
            Ok(drain) => drain,
            Err((status, error)) => return refused(status, error),
        };
        if *method != Method::POST {
            let error = format!("expected POST, found {method}");
            return refused(StatusCode::METHOD_NOT_ALLOWED, error);
        }
        let (pool, address) = (drain.pool.clone(), drain.address);
        match self.control.drain(drain).await {
            Ok(drained) => {
                let said = json!({
                    "pool": pool,
                    "endpoint": address.to_string(),
                    "health": drained.health.as_str(),
                    "in_flight": drained.in_flight,
                });
                json_answer(StatusCode::OK, &said)
            }
            Err(error @ (Unknown::Stopping | Unknown::Failed)) => {
                refused(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
            }
            Err(error) => refused(StatusCode::NOT_FOUND, error.to_string()),
        }
    }

    /// Whether requests can be served, and what is missing, also where they can.
    fn readiness(&self, snapshot: &Snapshot) -> Response<Vec<u8>> {
        let (status, word) = if self.lifecycle.is_ready(snapshot) {
            (StatusCode::OK, "ready\n")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
        };
        let mut text = word.to_owned();
        if self.lifecycle.is_draining() {
            text += "draining\n";
        }
        for (task, count) in self.lifecycle.tasks.stalled() {
            text += &format!("task {task}: {count} make no progress\n");
        }
        text += &Readiness::of(snapshot).to_string();
        answer(status, TEXT, text)
    }

    fn set_gauges(&self, snapshot: &Snapshot) {
        // Counted where a recorder may be missing: the first lines come before it.
        for (cause, count) in forebay_process::log::lost() {
            metric::LOG_DROPPED.with([cause]).absolute(count);
        }
        metric::PANICS.with([]).absolute(forebay_process::log::panics());
        for (task, count) in self.lifecycle.tasks.restarts() {
            metric::TASK_RESTARTS.with([task]).absolute(count);
        }
        let stalled = self.lifecycle.tasks.stalled();
        for task in ["control", "probe"] {
            let count = stalled.get(task).copied().unwrap_or_default();
            #[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
            metric::TASKS_STALLED.with([task]).set(count as f64);
        }
        let lost = self.reloader.access_log().lost().total();
        metric::ACCESS_LOG_DROPPED.with([]).absolute(lost);
        #[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
        metric::IN_FLIGHT.with([]).set(self.lifecycle.in_flight() as f64);
        #[allow(clippy::cast_precision_loss, reason = "bytes in memory are far below 2^52")]
        metric::MEMORY_HELD.with([]).set(self.lifecycle.memory().held() as f64);
        // A reload changes no listener, but may have brought other certificates.
        for (connections, listener) in self.listeners.iter().zip(&snapshot.config.listeners) {
            if let Some(ends) = listener.tls.as_ref().and_then(Tls::first_end) {
                let ends = ends.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                metric::TLS_EXPIRY.with([&connections.listener]).set(ends.as_secs_f64());
            }
            #[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
            metric::CONNECTIONS_OPEN.with([&connections.listener]).set(connections.open() as f64);
        }
        self.cache.set_gauges();
        let ready = self.lifecycle.is_ready(snapshot);
        metric::READY.with([]).set(f64::from(u8::from(ready)));
        for route in &snapshot.config.routes {
            let answered = readiness::is_answered(snapshot, route);
            metric::ROUTE_READY.with([&route.name]).set(f64::from(u8::from(answered)));
        }
        for split in snapshot.splits.iter() {
            for (variant, weight) in split.names().iter().zip(split.weights().iter()) {
                metric::VARIANT_WEIGHT.with([split.route(), variant]).set(f64::from(*weight));
            }
        }
        let loaded = snapshot.loaded_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        metric::CONFIG_LOADED.with([]).set(loaded.as_secs_f64());
        for pool in &snapshot.pools {
            for (priority, count) in pool.state.queue.counts() {
                let pool = pool.config.name.as_str();
                #[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
                metric::QUEUED.with([pool, priority.as_str()]).set(count as f64);
            }
            let name = pool.config.name.as_str();
            metric::POOL_PANIC.with([name]).set(f64::from(u8::from(pool.rotation.panics)));
            metric::POOL_LAST_RESORT
                .with([name])
                .set(f64::from(u8::from(pool.rotation.last_resort)));
            set_wait_gauges(pool);
            for endpoint in &pool.endpoints {
                set_endpoint_gauges(pool, endpoint);
            }
        }
    }
}

/// The drain or undrain that a path asks for. Its parts are separated before they are decoded, so that a
/// name may contain any character.
fn drain_of(path: &str) -> Result<Drain, (StatusCode, String)> {
    let parts: Vec<_> = path.split('/').collect();
    let (pool, address, drained) = match parts[..] {
        ["", "pools", pool, "endpoints", address, "drain"] => (pool, address, true),
        ["", "pools", pool, "endpoints", address, "undrain"] => (pool, address, false),
        _ => {
            let form = "/pools/POOL/endpoints/ADDRESS/drain or /undrain";
            let error = format!("expected {form} with names percent-encoded, found {path:?}");
            return Err((StatusCode::NOT_FOUND, error));
        }
    };
    let malformed = |error| (StatusCode::BAD_REQUEST, error);
    let pool = identify::decode("pool", pool).map_err(malformed)?;
    let address = identify::decode("endpoint", address).map_err(malformed)?;
    let address = address.parse().map_err(|_| {
        let form = "an endpoint's address such as 127.0.0.1:8001";
        malformed(format!("expected {form}, found {address:?}"))
    })?;
    Ok(Drain { pool, address, drained })
}

fn set_wait_gauges(pool: &Pool) {
    let (name, waits) = (pool.config.name.as_str(), pool.waits());
    // A figure of an hour ago must not stand there as one of now.
    let known = |figure: Option<f64>| figure.unwrap_or(f64::NAN);
    let part = |name: &'static str, figure| {
        metric::POOL_WAIT.with([pool.config.name.as_str(), name]).set(known(figure));
    };
    part("proxy", waits.as_ref().map(|it| it.in_proxy));
    part("endpoint", waits.as_ref().map(|it| it.at_endpoints));
    part("full", waits.as_ref().and_then(|it| it.while_full));
    let used = waits.as_ref().and_then(|it| it.utilisation);
    metric::POOL_UTILIZATION.with([name]).set(known(used));
}

fn set_endpoint_gauges(pool: &Pool, endpoint: &Endpoint) {
    let (state, load) = (&endpoint.state, &endpoint.state.load);
    let labels = [pool.config.name.as_str(), &*state.name];
    metric::ENDPOINT_IN_FLIGHT.with(labels).set(state.in_flight());
    metric::ENDPOINT_COST.with(labels).set(cost(pool, endpoint));
    if let Some(queue) = load.reported_queue() {
        metric::ENDPOINT_QUEUE.with(labels).set(queue);
    }
    if let Some(at) = load.reported_at() {
        let age = clock::now().since(at).as_secs_f64();
        metric::ENDPOINT_REPORT_AGE.with(labels).set(age);
    }
    let health = state.health();
    for one in Health::ALL {
        let [pool, endpoint] = labels;
        metric::ENDPOINT_HEALTH.with([pool, endpoint, one.as_str()]).set(if one == health {
            1.0
        } else {
            0.0
        });
    }
}

fn cost(pool: &Pool, endpoint: &Endpoint) -> f64 {
    let best = pick::best_service(pool.endpoints.iter());
    endpoint.state.load.cost(clock::now(), pool.config.report_ttl, best)
}
