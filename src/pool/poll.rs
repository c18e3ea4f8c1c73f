//! Polls for load: one task per endpoint that asks for its queue at short intervals.
//!
//! Most servers state their load only on their page of metrics, and a report on an answer is no help before
//! the first answer. The polled numbers become a load report like any other. If polling fails, nothing
//! stops: the last report goes stale and the proxy's own counts are used, which is logged once and counted
//! each time.

use super::EndpointState;
use super::report::{self, history::Origin};
use crate::config::{Poll, PollSource};
use crate::side_request::{Connection, SideRequest};
use forebay_process::supervise::{Importance, Supervisor, fault_point};
use forebay_protocol::LoadReport;
use forebay_protocol::metric::proxy as metric;
use forebay_protocol::prometheus::MAX_PAGE_BYTES;
use http::Method;
use pingora::upstreams::peer::HttpPeer;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until, timeout};

/// However many requests meet a stale report, polls of an endpoint keep this distance, or that of
/// the interval if it is less.
const MIN_PAUSE: Duration = Duration::from_millis(50);

/// A running poller; dropping it stops it.
pub(super) struct Poller(AbortHandle);

impl Drop for Poller {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Polls `state` until the poller is dropped.
pub(super) fn start(
    state: Arc<EndpointState>,
    poll: Poll,
    pool: &str,
    tasks: &Supervisor,
) -> Poller {
    let pool = pool.to_owned();
    let poll = move || run(Arc::clone(&state), poll.clone(), pool.clone());
    Poller(tasks.spawn("poll", Importance::Helpful, poll))
}

/// Why a poll brought no report.
enum PollError {
    /// No answer in time, or one without a report.
    Failed(String),
    /// An answer that is not believed.
    Doubtful(&'static str),
}

async fn run(state: Arc<EndpointState>, poll: Poll, pool: String) {
    let mut address = state.address;
    address.set_port(poll.port.unwrap_or(address.port()));
    let mut peer = HttpPeer::new(address, false, String::new());
    peer.options.connection_timeout = Some(poll.timeout);
    peer.options.total_connection_timeout = Some(poll.timeout);
    let mut failing = false;
    loop {
        fault_point("poll");
        let asked = Instant::now();
        let outcome = match timeout(poll.timeout, ask(&peer, address, &poll)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(PollError::Failed(format!("no answer within {:?}", poll.timeout))),
        };
        let (word, trouble) = match outcome {
            Ok(report) => {
                report::accept(&report, &pool, &state, Origin::Polled, 0);
                ("reported", None)
            }
            Err(PollError::Failed(what)) => ("failed", Some(what)),
            Err(PollError::Doubtful(cause)) => {
                report::dropped(&pool, Origin::Polled, cause);
                ("doubtful", Some(cause.to_owned()))
            }
        };
        metric::POLLS.with([pool.as_str(), &state.name, word]).increment(1);
        say_once(&mut failing, trouble, &state.name, &poll);
        // Pollers that were started together must not stay in step.
        let pause = poll.interval.mul_f64(0.9 + 0.1 * fastrand::f64());
        sleep_until(asked + pause.min(MIN_PAUSE)).await;
        tokio::select! {
            () = sleep_until(asked + pause) => {}
            () = state.reports.wanted() => {}
        }
    }
}

fn say_once(failing: &mut bool, trouble: Option<String>, endpoint: &str, poll: &Poll) {
    let fails = trouble.is_some();
    if std::mem::replace(failing, fails) == fails {
        return;
    }
    let (path, port) = (poll.path.as_str(), poll.port);
    match trouble {
        Some(error) => tracing::warn!(
            endpoint,
            path,
            port,
            error,
            "polling for load failed, using the proxy's own counts"
        ),
        None => tracing::info!(endpoint, path, port, "polling for load works again"),
    }
}

async fn ask(peer: &HttpPeer, address: SocketAddr, poll: &Poll) -> Result<LoadReport, PollError> {
    let request = SideRequest {
        method: Method::GET,
        path: &poll.path,
        host: &address.to_string(),
        body: &[],
        max_body: MAX_PAGE_BYTES,
        connection: Connection::Pooled,
    };
    let failed =
        |error: Box<pingora::Error>| PollError::Failed(error.to_string().trim().to_owned());
    let response = request.send(peer).await.map_err(failed)?;
    if !response.is_ok() {
        let found = response.head.status;
        return Err(PollError::Failed(format!("expected status 200, found {found}")));
    }
    match &poll.source {
        PollSource::Orca => match LoadReport::from_headers(&response.head.headers) {
            Ok(Some(report)) => Ok(report),
            Ok(None) => Err(PollError::Failed("expected a load report, found none".to_owned())),
            Err(error) => Err(PollError::Doubtful(error.cause())),
        },
        PollSource::Metrics(metrics) => {
            let page = response.body.ok_or(PollError::Doubtful("too_long"))?;
            metrics.read(&page).map_err(|error| PollError::Doubtful(error.cause()))
        }
    }
}
