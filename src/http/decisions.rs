//! State for the decisions on the attempts of a request.

use crate::http::variant::Target;
use crate::refusal::Refusal;
use forebay_protocol::Reason;
use forebay_routing::Attempts;
use forebay_routing::attempt::event::RefusalCause;

impl RefusalCause for Refusal {
    fn deadline_passed() -> Self {
        Self::new(Reason::DeadlineExceeded, "no answer before the deadline")
    }

    fn attempt_timed_out() -> Self {
        Self::new(Reason::AttemptTimeout, "the endpoint did not answer in time")
    }

    fn lets_another_stand_in(&self) -> bool {
        self.reason == Reason::DeadlineExceeded || self.reason.retryable()
    }
}

/// The decisions on a request's attempts.
pub struct Decisions {
    pub(super) attempts: Attempts<Refusal>,
    /// The request's first destination.
    pub(super) asked: Target,
}

impl Decisions {
    /// The request's first destination.
    pub const fn asked(&self) -> &Target {
        &self.asked
    }

    /// Whether the answer of this attempt, which was an error, may still be passed on.
    pub fn keeps(&self, attempt: usize) -> bool {
        self.attempts.keeps(attempt)
    }

    /// Whether there is nothing more to decide.
    pub fn are_over(&self) -> bool {
        self.attempts.is_over()
    }
}
