//! The decisions on the way of one request, for the access log.
//!
//! A request is bound where it comes, or by whichever request frees an endpoint later. Both add to the same list, which
//! exists only for the sampled share of requests (`decisions` of the pool).

use forebay_routing::decision::Decision;
use serde::Serialize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Decisions of one request that are kept: as many as its attempts can need.
const MAX_STEPS: usize = 32;

/// The decisions on a request so far. Clones share them.
#[derive(Debug, Clone)]
pub struct Steps {
    since: Instant,
    steps: Arc<Mutex<StepLog>>,
}

/// Decisions in order.
pub type StepLog = Vec<Step>;

/// A decision.
#[derive(Debug, Clone, Serialize)]
pub struct Step {
    /// Microseconds since the request came.
    after_us: u64,
    #[serde(flatten)]
    decision: Decision,
}

impl Steps {
    /// None yet, for a request that came at `since`.
    pub fn begin(since: Instant) -> Self {
        Self { since, steps: Arc::default() }
    }

    /// Adds decisions that were made just now.
    pub(super) fn add(&self, decisions: impl IntoIterator<Item = Decision>) {
        let after = self.since.elapsed().as_micros();
        let after_us = u64::try_from(after).unwrap_or(u64::MAX);
        let mut steps = self.lock();
        for decision in decisions {
            if steps.len() < MAX_STEPS {
                steps.push(Step { after_us, decision });
            }
        }
    }

    /// Takes them out, in order.
    pub fn take(&self) -> StepLog {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, StepLog> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
