//! Active health checks: one task an endpoint.
//!
//! A probe asks what a client would ask, on a connection of its own: a kept-alive one would hide
//! that nobody listens any more. When a request meets trouble, or a change is under way, the next
//! probe comes at once and then at short intervals, so that an endpoint that died leaves rotation
//! within a fraction of the interval, while a settled fleet is left alone.

use super::EndpointState;
use super::control::Message;
use super::report::{self, Origin};
use crate::config;
use forebay_protocol::metric::proxy as metric;
use forebay_routing::{HealthCheck, ProbeOutcome};
use pingora::connectors::http::Connector;
use pingora::http::RequestHeader;
use pingora::upstreams::peer::HttpPeer;
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::timeout;

/// Most bytes of a probe's answer that are read; the status is what counts.
const MAX_ANSWER: usize = 64 * 1024;

/// A running prober; dropping it stops it.
pub struct Prober {
    state: Arc<EndpointState>,
    settings: config::Probe,
    task: AbortHandle,
}

impl Prober {
    /// The endpoint that is probed.
    pub fn state(&self) -> &Arc<EndpointState> {
        &self.state
    }

    /// Does it probe as `settings` say?
    pub fn follows(&self, settings: &config::Probe) -> bool {
        self.settings == *settings
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
) -> Prober {
    let settings = pool.probe.clone();
    let task = tokio::spawn(run(Arc::clone(&state), settings.clone(), pool.name.clone(), changes));
    Prober { state, settings, task: task.abort_handle() }
}

async fn run(
    state: Arc<EndpointState>,
    settings: config::Probe,
    pool: String,
    changes: mpsc::Sender<Message>,
) {
    let mut check = HealthCheck::resume(settings.rise, settings.fall, state.health());
    let mut peer = HttpPeer::new(state.address, false, String::new());
    peer.options.connection_timeout = Some(settings.timeout);
    peer.options.total_connection_timeout = Some(settings.timeout);
    let labels = [("pool", pool), ("endpoint", state.name.to_string())];
    loop {
        let outcome = timeout(settings.timeout, probe(&peer, &settings.path, &labels[0].1, &state))
            .await
            .unwrap_or(ProbeOutcome::Failed);
        let word = match outcome {
            ProbeOutcome::Ready => "ready",
            ProbeOutcome::NotReady => "not_ready",
            ProbeOutcome::Failed => "failed",
        };
        let [pool, endpoint] = labels.clone();
        metrics::counter!(metric::PROBES, "pool" => pool.1, "endpoint" => endpoint.1, "outcome" => word)
            .increment(1);
        if outcome == ProbeOutcome::Failed {
            state.reports.forget_order();
        }
        check.probed(outcome);
        // Said again until it is so: a change may have crossed a reload.
        let health = check.health();
        if health != state.health()
            && changes.send(Message::Health(Arc::clone(&state), health)).await.is_err()
        {
            return;
        }
        let pause = if check.unsettled() || check.health() == forebay_routing::Health::Probing {
            settings.fast_interval
        } else {
            settings.interval
        };
        // Probers that were started together must not stay in step.
        let jitter = Duration::from_secs_f64(pause.as_secs_f64() * 0.1 * fastrand::f64());
        // However many requests meet trouble, probes keep their distance.
        let least = settings.fast_interval.min(pause - jitter);
        tokio::time::sleep(least).await;
        tokio::select! {
            () = tokio::time::sleep(pause - jitter - least) => {}
            () = state.suspected.notified() => {}
            () = state.reports.wanted() => {}
        }
    }
}

/// One GET on a fresh connection.
async fn probe(peer: &HttpPeer, path: &str, pool: &str, state: &EndpointState) -> ProbeOutcome {
    static CONNECTOR: LazyLock<Connector> = LazyLock::new(|| Connector::new(None));
    let exchange = async {
        let (mut session, _) = CONNECTOR.get_http_session(peer).await?;
        let mut request = RequestHeader::build("GET", path.as_bytes(), Some(2))?;
        request.insert_header("host", &*state.name)?;
        request.insert_header("connection", "close")?;
        session.write_request_header(Box::new(request)).await?;
        session.finish_request_body().await?;
        session.read_response_header().await?;
        let mut read = 0;
        while let Some(chunk) = session.read_response_body().await? {
            read += chunk.len();
            if read > MAX_ANSWER {
                break;
            }
        }
        let Some(header) = session.response_header() else { return Ok(ProbeOutcome::Failed) };
        report::take_in(&header.headers, pool, state, Origin::Probe, 0);
        let ready = header.status == http::StatusCode::OK;
        let outcome = if ready { ProbeOutcome::Ready } else { ProbeOutcome::NotReady };
        session.shutdown().await;
        Ok::<_, Box<pingora::Error>>(outcome)
    };
    exchange.await.unwrap_or_else(|error| {
        tracing::debug!(endpoint = &*state.name, %error, "probe failed");
        ProbeOutcome::Failed
    })
}
