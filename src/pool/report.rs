//! Load reports, wherever they come from: on answers, on probes' answers, or polled.
//!
//! All become one type and are believed by one rule, here. A doubtful report is dropped whole and
//! counted; the answer that bore it is untouched. Reports travel on many connections and may cross:
//! a numbered one that is older than what is known is dropped too, or an endpoint would seem to
//! jump back in time just when its queue moves fastest.

pub mod history;

use super::{EndpointState, Pool};
use crate::clock;
use forebay_protocol::{LoadReport, metric};
use forebay_routing::{Report, Time};
use history::Origin;
use http::HeaderMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Least time between two looks for stale reports in a pool.
const MIN_STALE_CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// Takes in the load report among the headers of an answer, if there is one.
///
/// `answered` is how many of our requests, still counted as in flight, the endpoint had finished
/// when it wrote the report: 1 for a complete answer to a request, else 0.
pub fn take_in(
    headers: &HeaderMap,
    pool: &str,
    endpoint: &EndpointState,
    origin: Origin,
    answered: u32,
) {
    match LoadReport::from_headers(headers) {
        Ok(None) => {}
        Ok(Some(report)) => accept(&report, pool, endpoint, origin, answered),
        Err(error) => dropped(pool, origin, error.cause()),
    }
}

/// Takes in a report; `answered` as for [`take_in`].
pub fn accept(
    report: &LoadReport,
    pool: &str,
    endpoint: &EndpointState,
    origin: Origin,
    answered: u32,
) {
    let now = clock::now();
    if !endpoint.reports.in_order(report.seq, now) {
        dropped(pool, origin, "out_of_order");
        return;
    }
    if let Some(generation) = report.generation {
        endpoint.reports.generation.store(generation, Relaxed);
    }
    let load = &endpoint.load;
    let ours = load.in_flight().saturating_sub(answered);
    // A server that states its queue alone runs something too: no more of it is certain than what
    // we sent, as far as it can run at once.
    let all = |queue: u32| ours.max(queue.saturating_add(ours.min(load.slots())));
    let report = Report {
        in_flight: report.rif.or_else(|| report.queue.map(all)),
        queue: report.queue,
        slots: report.slots,
        batch: report.batch,
        service_time: report
            .lat_at_rif_ms
            .and_then(|millis| Duration::try_from_secs_f64(millis / 1e3).ok()),
        answered,
    };
    load.report(&report, now);
    if report.in_flight.is_some() {
        endpoint.reports.origin.store(origin as u8, Relaxed);
    }
}

/// Counts a report that was not believed.
pub(super) fn dropped(pool: &str, origin: Origin, cause: &'static str) {
    metric::proxy::REPORTS_DROPPED.with([pool, origin.as_str(), cause]).increment(1);
}

/// Requests new reports from endpoints in rotation whose reports have become stale. Checks all of them, but
/// at most once in [`MIN_STALE_CHECK_INTERVAL`], and only while requests come.
pub fn refresh_stale(pool: &Pool, now: Time) {
    let looked = &pool.state.looked_for_stale;
    let last = looked.load(Relaxed);
    let due = now.since(Time::new(Duration::from_nanos(last))) >= MIN_STALE_CHECK_INTERVAL;
    if !due || looked.compare_exchange(last, now.nanos(), Relaxed, Relaxed).is_err() {
        return;
    }
    let ttl = pool.config.report_ttl;
    for endpoint in &pool.rotation.ready {
        let state = &endpoint.state;
        if state.load.reported_at().is_some_and(|at| now.since(at) > ttl) {
            state.reports.wanted.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(slots: u32) -> EndpointState {
        EndpointState::new(([127, 0, 0, 1], 1).into(), slots, std::sync::Arc::default())
    }

    #[test]
    fn a_queue_alone_is_completed_by_what_we_sent() {
        let state = endpoint(2);
        let queue = |depth| LoadReport { queue: Some(depth), ..LoadReport::default() };
        let in_flight = || state.load.reported_in_flight();
        accept(&queue(5), "p", &state, Origin::Polled, 0);
        assert_eq!(in_flight(), Some(5), "others' requests wait");
        let _guards: Vec<_> = (0..4).map(|_| state.load.enter()).collect();
        accept(&queue(2), "p", &state, Origin::Polled, 0);
        assert_eq!(in_flight(), Some(4), "two of ours run, two wait");
        accept(&queue(0), "p", &state, Origin::Polled, 0);
        assert_eq!((in_flight(), state.reports.origin()), (Some(4), Some(Origin::Polled)));
    }

    #[test]
    fn a_report_that_says_nothing_of_requests_leaves_no_trace() {
        let state = endpoint(1);
        let report = LoadReport { cpu_utilization: Some(0.5), ..LoadReport::default() };
        accept(&report, "p", &state, Origin::InBand, 1);
        assert_eq!((state.reports.origin(), state.load.reported_at()), (None, None));
    }
}
