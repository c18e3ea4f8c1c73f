//! Looks at how many requests of each pool wait: see [`forebay_routing::waits`].

use super::{Pool, PoolState, Snapshot};
use crate::clock;
use forebay_routing::waits::{Counts, PoolWaits, WaitEstimate};
use std::sync::{MutexGuard, PoisonError};

/// Looks at all pools. To be called at even intervals.
pub(super) fn look(snapshot: &Snapshot) {
    let now = clock::now();
    for pool in &snapshot.pools {
        let mut counts = Counts { queued: count(pool.state.queue.count()), ..Counts::default() };
        for endpoint in &pool.rotation.ready {
            counts.add(&endpoint.state.load, now, pool.config.report_ttl);
        }
        let answers = pool.endpoints.iter().map(|endpoint| endpoint.state.counts.answers());
        let answers = answers.fold(0_u32, u32::wrapping_add);
        pool.state.waits().look(counts, answers, snapshot.generation, now);
    }
}

impl Pool {
    /// How long its requests wait; `None` while too little is known.
    pub fn waits(&self) -> Option<WaitEstimate> {
        self.state.waits().estimate()
    }
}

impl PoolState {
    fn waits(&self) -> MutexGuard<'_, PoolWaits> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn count(n: usize) -> f64 {
    n as f64
}
