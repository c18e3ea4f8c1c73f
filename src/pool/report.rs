//! Load reports, wherever they come from: on answers, on probes' answers, or polled.
//!
//! All become one type and are believed by one rule, here. A doubtful report is dropped whole and
//! counted; the answer that bore it is untouched. Reports travel on many connections and may cross:
//! a numbered one that is older than what is known is dropped too, or an endpoint would seem to
//! jump back in time just when its queue moves fastest.

use super::{EndpointState, Pool};
use crate::clock;
use forebay_protocol::{LoadReport, metric};
use forebay_routing::{Report, Time};
use http::HeaderMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::Notify;

/// Reports that cross on the way do so within this time. One whose number is lower later than that
/// comes from an endpoint that was started again, and counts anew.
const CROSSING: Duration = Duration::from_secs(1);
/// Least time between two looks for stale reports in a pool.
const LOOK: Duration = Duration::from_millis(50);

/// How a report reached the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Origin {
    /// On the answer to a request.
    InBand = 1,
    /// On the answer to a health probe.
    Probe = 2,
    /// By asking for it.
    Polled = 3,
}

impl Origin {
    const ALL: [Self; 3] = [Self::InBand, Self::Probe, Self::Polled];

    /// The word in status and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InBand => "in_band",
            Self::Probe => "probe",
            Self::Polled => "polled",
        }
    }
}

/// What is remembered of an endpoint's reports beside the load that they state.
#[derive(Debug, Default)]
pub struct Reports {
    /// [`Origin`] of the last one; 0: there was none.
    origin: AtomicU8,
    /// Number of the last one that had a number.
    seq: AtomicU64,
    /// When it came, in nanoseconds on the clock of [`Time`].
    numbered_at: AtomicU64,
    /// Wakes whoever can ask the endpoint: its last report is stale and requests come.
    wanted: Notify,
}

impl Reports {
    /// Where the last report came from.
    pub fn origin(&self) -> Option<Origin> {
        let number = self.origin.load(Relaxed);
        Origin::ALL.into_iter().find(|origin| *origin as u8 == number)
    }

    /// Until a fresh report is wanted.
    pub(super) async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Numbers may begin again: the endpoint failed, and may have been started anew.
    pub(super) fn forget_order(&self) {
        self.seq.store(0, Relaxed);
    }

    fn in_order(&self, seq: Option<u64>, now: Time) -> bool {
        let Some(seq) = seq else { return true };
        let last = self.seq.fetch_max(seq, Relaxed);
        let at = Time::new(Duration::from_nanos(self.numbered_at.load(Relaxed)));
        if seq <= last {
            if now.since(at) < CROSSING {
                return false;
            }
            self.seq.store(seq, Relaxed);
        }
        self.numbered_at.store(now.nanos(), Relaxed);
        true
    }
}

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
    metrics::counter!(
        metric::proxy::REPORTS_DROPPED,
        "pool" => pool.to_owned(), "origin" => origin.as_str(), "cause" => cause,
    )
    .increment(1);
}

/// Has endpoints in rotation asked at once whose reports were heard and are stale by now. Costs a
/// look at all of them, but at most once in [`LOOK`], and only while requests come.
pub fn refresh_stale(pool: &Pool, now: Time) {
    let looked = &pool.state.looked_for_stale;
    let last = looked.load(Relaxed);
    let due = now.since(Time::new(Duration::from_nanos(last))) >= LOOK;
    if !due || looked.compare_exchange(last, now.nanos(), Relaxed, Relaxed).is_err() {
        return;
    }
    let ttl = pool.config.report_ttl;
    for endpoint in &pool.ready {
        let state = &endpoint.state;
        if state.load.reported_at().is_some_and(|at| now.since(at) > ttl) {
            state.reports.wanted.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time::new(Duration::from_millis(millis))
    }

    fn endpoint(slots: u32) -> EndpointState {
        EndpointState::new(([127, 0, 0, 1], 1).into(), slots, std::sync::Arc::default())
    }

    #[test]
    fn an_older_report_is_not_believed_over_a_newer_one() {
        let reports = Reports::default();
        assert!(reports.in_order(Some(7), at(0)));
        assert!(reports.in_order(None, at(0)), "one without a number is as new as it is");
        assert!(!reports.in_order(Some(6), at(10)));
        assert!(!reports.in_order(Some(7), at(10)), "twice the same");
        assert!(reports.in_order(Some(8), at(20)));
    }

    #[test]
    fn numbers_that_begin_again_are_believed_after_a_restart() {
        let reports = Reports::default();
        assert!(reports.in_order(Some(900), at(0)));
        assert!(!reports.in_order(Some(1), at(999)));
        assert!(reports.in_order(Some(2), at(1000)), "nothing newer came for a second");
        assert!(reports.in_order(Some(3), at(1001)));
        reports.forget_order();
        assert!(reports.in_order(Some(1), at(1002)), "it failed meanwhile");
        assert!(reports.in_order(Some(2), at(1003)));
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
