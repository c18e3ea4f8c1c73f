//! The standard health service, and load reports out of band.
//!
//! Both have calls that last as long as the client likes. They end when the worker closes, so that a mere
//! watcher does not keep it from ending.

use super::answer::{self, frame};
use super::call::Call;
use crate::api::body::Encoding;
use crate::api::metadata;
use crate::lifecycle::Phase;
use crate::refusal::Refusal;
use crate::state::App;
use axum::response::Response;
use bytes::Bytes;
use forebay_protocol::Reason;
use forebay_protocol::grpc::pb::health::health_check_response::ServingStatus;
use forebay_protocol::grpc::pb::health::{HealthCheckRequest, HealthCheckResponse};
use forebay_protocol::grpc::pb::orca::OrcaLoadReportRequest;
use forebay_protocol::grpc::{self, INFERENCE_SERVICE};
use futures_util::stream;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Interval at which a watcher's status is checked.
const WATCH_STEP: Duration = Duration::from_millis(50);
/// Time between two load reports if the client does not say, and the bounds of what it may say.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
const REPORT_INTERVALS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(60));

/// `Check`.
///
/// # Errors
/// There is no such service.
pub(crate) async fn check(call: Call) -> Result<Bytes, Refusal> {
    call.answer(async |app: Arc<App>, request: HealthCheckRequest| {
        let status = status(&app, &request.service).ok_or_else(|| {
            let service: String = request.service.chars().take(100).collect();
            let text = format!("unknown service \"{}\"", service.escape_debug());
            Refusal::new(Reason::ModelNotFound, text)
        })?;
        Ok(HealthCheckResponse { status: status.into() })
    })
    .await
}

/// `Watch`: the status now, and whenever it changes.
pub(crate) async fn watch(call: Call) -> Response {
    let (app, deadline) = (Arc::clone(&call.app), call.terms.deadline);
    let request: HealthCheckRequest = match call.small().await {
        Ok(request) => request,
        Err(refusal) => return answer::unary(&app, Err(refusal)),
    };
    let watched = Arc::clone(&app);
    let statuses = stream::try_unfold(None, move |last| {
        let (app, service) = (Arc::clone(&watched), request.service.clone());
        async move {
            loop {
                let status = status(&app, &service).unwrap_or(ServingStatus::ServiceUnknown);
                if last != Some(status) {
                    let message = frame(&HealthCheckResponse { status: status.into() });
                    return Ok(Some((message, Some(status))));
                }
                pause(&app, WATCH_STEP, deadline).await?;
            }
        }
    });
    answer::streamed(app, statuses, Encoding::Identity)
}

/// `StreamCoreMetrics`: a load report now, and one every interval.
pub(crate) async fn load_reports(call: Call) -> Response {
    let (app, deadline) = (Arc::clone(&call.app), call.terms.deadline);
    let request: OrcaLoadReportRequest = match call.small().await {
        Ok(request) => request,
        Err(refusal) => return answer::unary(&app, Err(refusal)),
    };
    let interval = interval(&request);
    let source = Arc::clone(&app);
    let reports = stream::try_unfold(true, move |first| {
        let app = Arc::clone(&source);
        async move {
            if !first {
                pause(&app, interval, deadline).await?;
            }
            let report = app.load_report().to_binary();
            let message = grpc::frame(report.len(), |out| out.extend_from_slice(&report));
            Ok(Some((message, false)))
        }
    });
    answer::streamed(app, reports, Encoding::Identity)
}

fn interval(request: &OrcaLoadReportRequest) -> Duration {
    let asked = request.report_interval.and_then(|asked| {
        let seconds = u64::try_from(asked.seconds).ok()?;
        let nanos = u32::try_from(asked.nanos).ok()?;
        Some(Duration::from_secs(seconds).saturating_add(Duration::from_nanos(nanos.into())))
    });
    let asked = asked.filter(|asked| !asked.is_zero()).unwrap_or(REPORT_INTERVAL);
    asked.clamp(REPORT_INTERVALS.0, REPORT_INTERVALS.1)
}

/// `None`: no such service.
fn status(app: &App, service: &str) -> Option<ServingStatus> {
    let serving = match service {
        "" | INFERENCE_SERVICE => metadata::readiness(app).is_ok(),
        _ => return None,
    };
    Some(if serving { ServingStatus::Serving } else { ServingStatus::NotServing })
}

/// Waits for `time`.
///
/// # Errors
/// The call's deadline has passed, or the worker closes.
async fn pause(app: &App, time: Duration, deadline: Option<Instant>) -> Result<(), Refusal> {
    let until = Instant::now() + time;
    let late = deadline.is_some_and(|deadline| deadline < until);
    let until = deadline.map_or(until, |deadline| deadline.min(until));
    tokio::select! {
        () = tokio::time::sleep_until(until.into()) => {}
        () = app.lifecycle.reached(Phase::Closing) => {
            return Err(Refusal::new(Reason::Draining, "the worker is shutting down"));
        }
    }
    if late { Err(Refusal::late()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_protocol::grpc::pb::orca::orca_load_report_request::Interval;

    #[test]
    fn an_interval_is_what_was_asked_for_within_bounds() {
        for (asked, expected) in [
            (None, REPORT_INTERVAL),
            (Some((0, 0)), REPORT_INTERVAL),
            (Some((-1, 5)), REPORT_INTERVAL),
            (Some((0, 250_000_000)), Duration::from_millis(250)),
            (Some((0, 1)), REPORT_INTERVALS.0),
            (Some((i64::MAX, i32::MAX)), REPORT_INTERVALS.1),
        ] {
            let report_interval = asked.map(|(seconds, nanos)| Interval { seconds, nanos });
            let request = OrcaLoadReportRequest { report_interval, ..Default::default() };
            assert_eq!(interval(&request), expected, "{asked:?}");
        }
    }
}
