//! Binding requests of a pool to its endpoints, now or when one is free.
//!
//! The [queue](super::queue) knows the endpoints in rotation; the pool beside it knows whose reports have
//! grown old, and has those endpoints asked again while requests come or wait.

use super::queue::{BindRequest, Bound, Rejected};
use super::{Endpoint, Pool, report};
use crate::clock;
use forebay_process::supervise::fault_point;
use forebay_routing::{RelativeCost, StandInTime, Time};
use std::sync::Arc;
use std::time::{Duration, Instant};
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

    /// The time that a request needs which comes now because the variant before this pool's does not answer it.
    /// `None`: too little is known.
    pub fn stand_in_time(&self, relative_cost: RelativeCost) -> Option<StandInTime> {
        self.state.queue.stand_in_time(&self.rotation, relative_cost)
    }

    /// The time at which a request with this deadline, which begins now at this endpoint, gives way to the variant
    /// that stands in, if it does.
    pub fn runs_until(
        &self,
        terms: (Instant, RelativeCost),
        stand_in: StandInTime,
        endpoint: &Endpoint,
    ) -> Option<Time> {
        let terms = (clock::at(terms.0), terms.1);
        self.rotation.view(None, None).runs_until(terms, stand_in, &endpoint.state.load)
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
