//! An attempt and the hedge beside it.

use crate::Time;

/// An attempt that is under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Running {
    pub(super) attempt: usize,
    pub(super) since: Time,
    pub(super) until: Option<Time>,
    /// Whether its time is up before the request's is, so that another can be made.
    pub(super) cut_short: bool,
    /// Time at which the variant that stands in takes over, if it does.
    pub(super) gives_way_at: Option<Time>,
}

/// An attempt and the hedge beside it, if there is one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Race {
    pub(super) first: Running,
    pub(super) second: Option<Running>,
    /// The one of both that is over.
    pub(super) over: Option<usize>,
    /// The one that was answered with an error, while the other goes on.
    pub(super) said: Option<usize>,
    pub(super) hedge_at: Option<Time>,
}

impl Race {
    /// The attempt with this name, if it is under way.
    pub(super) fn running(&self, attempt: usize) -> Option<Running> {
        let both = [Some(self.first), self.second].into_iter().flatten();
        both.filter(|it| self.over != Some(it.attempt)).find(|it| it.attempt == attempt)
    }

    /// The one beside it that is still under way.
    pub(super) fn other(&self, attempt: usize) -> Option<Running> {
        let both = [Some(self.first), self.second].into_iter().flatten();
        both.filter(|it| self.over != Some(it.attempt)).find(|it| it.attempt != attempt)
    }
}
