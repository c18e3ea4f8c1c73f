//! The history of an endpoint's load reports: their origin and their order.

use forebay_routing::Time;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::Notify;

/// Reports that cross on the way do so within this time. A lower number later than that comes from an
/// endpoint that was restarted, and starts a new count.
const CROSSING: Duration = Duration::from_secs(1);

/// The origin of a report.
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

/// Facts about an endpoint's reports beside the load that they state.
#[derive(Debug, Default)]
pub struct ReportHistory {
    /// [`Origin`] of the last one; 0: there was none.
    pub(super) origin: AtomicU8,
    /// Number of the last one that had a number.
    seq: AtomicU64,
    /// Time of its arrival, in nanoseconds on the clock of [`Time`].
    numbered_at: AtomicU64,
    /// The generation of the models that it serves, by its last report that states one; 0: none has.
    pub(super) generation: AtomicU64,
    /// Wakes the task that can ask the endpoint: its last report is stale and requests come.
    pub(super) wanted: Notify,
}

impl ReportHistory {
    /// Origin of the last report.
    pub fn origin(&self) -> Option<Origin> {
        let number = self.origin.load(Relaxed);
        Origin::ALL.into_iter().find(|origin| *origin as u8 == number)
    }

    /// The generation of the models that it serves, if it states one; 0 if not.
    pub fn generation(&self) -> u64 {
        self.generation.load(Relaxed)
    }

    /// Until a fresh report is wanted.
    pub(crate) async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Accepts a new count: the endpoint failed, and may have been restarted.
    pub(crate) fn forget_order(&self) {
        self.seq.store(0, Relaxed);
    }

    pub(super) fn in_order(&self, seq: Option<u64>, now: Time) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time::new(Duration::from_millis(millis))
    }

    #[test]
    fn an_older_report_is_not_believed_over_a_newer_one() {
        let reports = ReportHistory::default();
        assert!(reports.in_order(Some(7), at(0)));
        assert!(reports.in_order(None, at(0)), "one without a number is as new as it is");
        assert!(!reports.in_order(Some(6), at(10)));
        assert!(!reports.in_order(Some(7), at(10)), "twice the same");
        assert!(reports.in_order(Some(8), at(20)));
    }

    #[test]
    fn numbers_that_begin_again_are_believed_after_a_restart() {
        let reports = ReportHistory::default();
        assert!(reports.in_order(Some(900), at(0)));
        assert!(!reports.in_order(Some(1), at(999)));
        assert!(reports.in_order(Some(2), at(1000)), "nothing newer came for a second");
        assert!(reports.in_order(Some(3), at(1001)));
        reports.forget_order();
        assert!(reports.in_order(Some(1), at(1002)), "it failed meanwhile");
        assert!(reports.in_order(Some(2), at(1003)));
    }
}
