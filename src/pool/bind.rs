//! Binding requests of a pool to its endpoints, now or when one is free.
//!
//! The [queue](super::queue) knows the endpoints in rotation; the pool beside it knows whose reports have
//! grown old, and has those endpoints asked again while requests come or wait.

use super::queue::{BindRequest, Bound, Rejected};
use super::{Endpoint, Pool, report};
use crate::clock;
use forebay_process::supervise::fault_point;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// Interval of the ticker while any request waits.
const TICK: Duration = Duration::from_millis(5);

impl Pool {
    /// Binds a request to an endpoint: at once if one is free, else as soon as one is. A client that
    /// goes away (drops this) leaves the queue.
    ///
    /// # Errors
    /// Why it is not bound.
    pub async fn bind(&self, request: BindRequest) -> Result<Bound, Rejected> {
        report::refresh_stale(self, clock::now());
        self.state.queue.bind(&self.rotation, request).await
    }

    /// Binds to an endpoint that is free and not among those `tried`, if there is one and nothing waits
    /// for it.
    pub fn bind_free(&self, tried: impl Fn(&Arc<Endpoint>) -> bool) -> Option<Bound> {
        self.state.queue.bind_free(&self.rotation, tried)
    }
}

/// Looks at the lines of all pools while anybody waits.
pub(super) async fn tick(joined: Arc<Notify>, pools: impl Fn() -> Vec<Arc<Pool>>) {
    loop {
        joined.notified().await;
        loop {
            tokio::time::sleep(TICK).await;
            fault_point("queue");
            let waiting = pools().into_iter().filter(|pool| pool.state.queue.count() > 0);
            let waiting: Vec<_> = waiting.collect();
            if waiting.is_empty() {
                break;
            }
            for pool in waiting {
                report::refresh_stale(&pool, clock::now());
                pool.state.queue.changed(None);
            }
        }
    }
}
