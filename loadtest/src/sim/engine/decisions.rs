//! State for the decisions on a request's attempts.

use crate::sim::keys::AttemptKey;
use crate::sim::plan::SimPlan;
use forebay_protocol::Reason;
use forebay_routing::attempt::event::{RefusalCause, Terms};
use forebay_routing::{Attempts, Time};
use std::time::Duration;

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Why(pub Reason);

impl RefusalCause for Why {
    fn deadline_passed() -> Self {
        Self(Reason::DeadlineExceeded)
    }

    fn attempt_timed_out() -> Self {
        Self(Reason::AttemptTimeout)
    }

    fn lets_another_stand_in(&self) -> bool {
        self.0 == Reason::DeadlineExceeded || self.0.retryable()
    }
}

/// The decisions on the attempts of a request of this kind that came at this moment.
pub(super) fn decisions(plan: &SimPlan, kind: usize, intended: u64) -> Attempts<Why> {
    let in_all = plan.timeouts[kind].0;
    Attempts::new(Terms {
        deadline: Some(time(intended.saturating_add(in_all))),
        usual_time: plan.run.timeout,
        is_hurried: plan.states_deadline(kind),
        is_replayable: true,
    })
}

/// An attempt that was sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    /// Its name.
    pub key: AttemptKey,
    /// The endpoint.
    pub endpoint: usize,
    /// Time of sending.
    pub at: u64,
    /// Number of the endpoint's answers by then.
    pub heard: u32,
    /// How many nanoseconds it is left at an endpoint that is silent; `None`: as long as it has time.
    pub patience: Option<u64>,
}

fn time(nanos: u64) -> Time {
    Time::new(Duration::from_nanos(nanos))
}
