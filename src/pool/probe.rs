//! Active health checks: one task per endpoint.
//!
//! A probe sends a request as a client would, on a connection of its own: a kept-alive one would hide that
//! the server no longer listens. When a request meets trouble, or a change is under way, the next probe
//! comes at once and then at short intervals, so that an endpoint that died leaves rotation within a
//! fraction of the interval, while a settled fleet is left alone.

use super::message::Message;
use super::poll::{self, Poller};
use super::report::{self, history::Origin};
use super::{EndpointState, STANDSTILL};
use crate::config::{self, ProbeKind};
use crate::exhausted;
use crate::side_request::{Connection, SideRequest};
use forebay_process::resources::Exhausted;
use forebay_process::supervise::{Importance, Pulse, Supervisor, fault_point, hang_point};
use forebay_protocol::metric::proxy as metric;
use forebay_routing::{Health, HealthCheck, ProbeOutcome};
use http::Method;
use pingora::ErrorType;
use pingora::upstreams::peer::HttpPeer;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::timeout;

/// Most bytes of a probe's answer that are read; the status is what counts.
const MAX_ANSWER: usize = 64 * 1024;

/// A running prober; dropping it stops it.
pub struct Prober {
    state: Arc<EndpointState>,
    settings: config::Probe,
    poll: Option<config::Poll>,
    task: AbortHandle,
    /// BindRequest for its load beside its health, if the pool says so.
    _poller: Option<Poller>,
}

impl Prober {
    /// The endpoint that is probed.
    pub fn state(&self) -> &Arc<EndpointState> {
        &self.state
    }

    /// Whether it probes and polls with the settings of `pool`.
    pub fn follows(&self, pool: &config::Pool) -> bool {
        self.settings == pool.probe && self.poll == pool.poll
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Probes `state` until the prober is dropped; changes of its health are sent to `changes`.
pub fn start(
    state: Arc<EndpointState>,
    pool: &config::Pool,
    changes: mpsc::Sender<Message>,
    tasks: &Supervisor,
) -> Prober {
    let settings = pool.probe.clone();
    let poller =
        pool.poll.clone().map(|poll| poll::start(Arc::clone(&state), poll, &pool.name, tasks));
    let task = ProbeTask {
        state: Arc::clone(&state),
        settings: settings.clone(),
        pool: pool.name.clone(),
        refreshes: poller.is_none(),
        pulse: tasks
            .pulse("probe", settings.schedule.interval + settings.schedule.timeout + STANDSTILL),
    };
    let task =
        tasks.spawn("probe", Importance::Helpful, move || run(task.clone(), changes.clone()));
    Prober { state, settings, poll: pool.poll.clone(), task, _poller: poller }
}

/// The parts that a prober's task needs.
#[derive(Clone)]
struct ProbeTask {
    state: Arc<EndpointState>,
    settings: config::Probe,
    pool: String,
    /// Whether a stale report is worth a probe: no poll would renew it, and probes' answers may bear
    /// reports.
    refreshes: bool,
    pulse: Pulse,
}

async fn run(watch: ProbeTask, changes: mpsc::Sender<Message>) {
    let ProbeTask { state, settings, pool, refreshes, pulse } = watch;
    let (rise, fall) = (settings.schedule.rise, settings.schedule.fall);
    let mut check = HealthCheck::resume(rise, fall, state.probed(), state.is_silent());
    let mut peer = HttpPeer::new(state.address, false, String::new());
    peer.options.connection_timeout = Some(settings.schedule.timeout);
    peer.options.total_connection_timeout = Some(settings.schedule.timeout);
    loop {
        fault_point("probe");
        hang_point("probe").await;
        pulse.beat();
        let heard = state.heard_so_far();
        let outcome =
            timeout(settings.schedule.timeout, probe(&peer, &settings.kind, &pool, &state))
                .await
                .unwrap_or(Ok(ProbeOutcome::Silent));
        let outcome = match outcome {
            Ok(ProbeOutcome::Silent) if state.heard_so_far() != heard => ProbeOutcome::Working,
            Ok(outcome) => outcome,
            Err(resource) => {
                // It says nothing about the endpoint.
                exhausted::count(resource, "probe");
                tokio::time::sleep(settings.schedule.fast_interval).await;
                continue;
            }
        };
        let word = match outcome {
            ProbeOutcome::Ready => "ready",
            ProbeOutcome::NotReady => "not_ready",
            ProbeOutcome::Failed => "failed",
            ProbeOutcome::Silent => "silent",
            ProbeOutcome::Working => "working",
        };
        metric::PROBES.with([&pool, &state.name, word]).increment(1);
        if matches!(outcome, ProbeOutcome::Failed | ProbeOutcome::Silent) {
            state.reports.forget_order();
        }
        check.probed(outcome);
        // Said again until it is so: a change may have crossed a reload.
        let (health, silent) = (check.health(), check.is_silent());
        if silent && !state.is_silent() {
            state.falls_silent();
        }
        if outcome == ProbeOutcome::Ready {
            state.answered_probe();
        }
        if outcome == ProbeOutcome::Silent {
            state.has_not_answered();
        }
        if health != state.probed() || silent != state.is_silent() {
            let message = Message::Probed { state: Arc::clone(&state), health, silent };
            if changes.send(message).await.is_err() {
                return;
            }
        }
        let pause = if check.unsettled() || health == Health::Probing {
            settings.schedule.fast_interval
        } else {
            settings.schedule.interval
        };
        // Probers that were started together must not stay in step.
        let jitter = Duration::from_secs_f64(pause.as_secs_f64() * 0.1 * fastrand::f64());
        // However many requests meet trouble, probes keep their distance.
        let least = settings.schedule.fast_interval.min(pause - jitter);
        tokio::time::sleep(least).await;
        tokio::select! {
            () = tokio::time::sleep(pause - jitter - least) => {}
            () = state.suspected.notified() => {}
            () = state.reports.wanted(), if refreshes => {}
        }
    }
}

/// One question on a fresh connection.
///
/// # Errors
/// It could not be asked for want of a resource.
async fn probe(
    peer: &HttpPeer,
    kind: &ProbeKind,
    pool: &str,
    state: &EndpointState,
) -> Result<ProbeOutcome, Exhausted> {
    match kind {
        ProbeKind::Http(path) => get(peer, path, pool, state).await,
        // The answers of such an endpoint are unknown; that it listens is the only evidence.
        ProbeKind::Tcp => match TcpStream::connect(state.address).await {
            Ok(_) => Ok(ProbeOutcome::Ready),
            Err(error) => {
                tracing::debug!(endpoint = &*state.name, %error, "probe failed");
                Exhausted::of(&error).map_or(Ok(ProbeOutcome::Failed), Err)
            }
        },
    }
}

/// One GET; 200 is ready.
async fn get(
    peer: &HttpPeer,
    path: &str,
    pool: &str,
    state: &EndpointState,
) -> Result<ProbeOutcome, Exhausted> {
    let request = SideRequest {
        method: Method::GET,
        path,
        host: &state.name,
        body: &[],
        max_body: MAX_ANSWER,
        connection: Connection::New,
    };
    match request.send(peer).await {
        Ok(response) => {
            report::take_in(&response.head.headers, pool, state, Origin::Probe, 0);
            Ok(if response.is_ok() { ProbeOutcome::Ready } else { ProbeOutcome::NotReady })
        }
        Err(error) => {
            tracing::debug!(endpoint = &*state.name, %error, "probe failed");
            match (exhausted::behind(&error), error.etype()) {
                (Some(resource), _) => Err(resource),
                (None, ErrorType::ConnectTimedout | ErrorType::ReadTimedout) => {
                    Ok(ProbeOutcome::Silent)
                }
                (None, _) => Ok(ProbeOutcome::Failed),
            }
        }
    }
}
