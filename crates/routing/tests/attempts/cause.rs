//! The words in which the tests refuse requests, and their times.

use forebay_routing::attempt::event::RefusalCause;
use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Why {
    Deadline,
    AttemptTimeout,
    Full,
    Broken,
    /// The request is at fault: no variant does better.
    Invalid,
}

impl RefusalCause for Why {
    fn deadline_passed() -> Self {
        Self::Deadline
    }
    fn attempt_timed_out() -> Self {
        Self::AttemptTimeout
    }
    fn lets_another_stand_in(&self) -> bool {
        *self != Self::Invalid
    }
}

pub(crate) fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}
