//! Which endpoint of the pool gets the request, and the count that goes with it.

use crate::clock;
use crate::error::Refusal;
use crate::flow::route::Target;
use crate::pool::{Endpoint, Pool, report};
use crate::request::Request;
use forebay_protocol::Reason;
use forebay_routing::{InFlight, Rng, pick};
use std::cell::RefCell;
use std::sync::Arc;
use std::time::Instant;

thread_local! {
    static RNG: RefCell<Rng> = RefCell::new(Rng::new(fastrand::u64(..)));
}

/// An endpoint that was picked for a request.
pub struct Picked {
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// Counts as in flight there until dropped.
    pub guard: Option<InFlight>,
    /// When it was picked.
    pub at: Instant,
}

impl Picked {
    /// The attempt is over without an answer.
    pub fn failed(&mut self) {
        self.refused();
        self.endpoint.state.suspect();
    }

    /// The attempt is over with an answer that says to ask elsewhere.
    pub fn refused(&mut self) {
        self.guard = None;
        self.endpoint.state.load.failed(clock::now());
    }

    /// The attempt is over with an answer, which began after the time since the pick.
    pub fn answered(&mut self, counts: bool) {
        if let Some(guard) = self.guard.take()
            && counts
        {
            guard.answered(self.at.elapsed(), clock::now());
        }
    }
}

/// Picks an endpoint that this request has not tried yet and counts the request in there.
///
/// # Errors
/// No endpoint is in rotation, or all that are were tried.
pub fn balance(request: &mut Request, target: &Target) -> Result<Arc<Endpoint>, Refusal> {
    let picked = pick(&target.pool, &request.attempts)?;
    let endpoint = Arc::clone(&picked.endpoint);
    request.times.balance += picked.at.elapsed();
    request.attempts.push(picked);
    Ok(endpoint)
}

/// Picks an endpoint that is not among those `tried`, and counts in there what it was picked for.
///
/// # Errors
/// No endpoint is in rotation, or all that are were tried.
pub fn pick(pool: &Pool, tried: &[Picked]) -> Result<Picked, Refusal> {
    let at = Instant::now();
    let now = clock::at(at);
    report::refresh_stale(pool, now);
    let context = pick::Context { now, report_ttl: pool.config.report_ttl, turn: &pool.state.turn };
    let excluded = |candidate: &Arc<Endpoint>| was_tried(tried, candidate);
    let chosen = RNG.with_borrow_mut(|rng| {
        pick::pick(pool.config.policy, &pool.ready, excluded, &context, rng)
    });
    let Some(index) = chosen else {
        let (all, ready) = (pool.endpoints.len(), pool.ready.len());
        let name = &pool.config.name;
        let message = match tried.len() {
            0 => format!("no endpoint of pool {name} is ready ({ready} of {all})"),
            tried => format!("no endpoint of pool {name} answered ({tried} of {ready} were tried)"),
        };
        return Err(Refusal::new(Reason::NoEndpoint, message));
    };
    let endpoint = Arc::clone(&pool.ready[index]);
    let guard = Some(endpoint.state.load.enter());
    Ok(Picked { endpoint, guard, at })
}

fn was_tried(tried: &[Picked], candidate: &Endpoint) -> bool {
    tried.iter().any(|tried| Arc::ptr_eq(&tried.endpoint.state, &candidate.state))
}

/// May the request be sent once more? If so, the pool's budget has paid for it.
pub fn may_retry(request: &Request, target: &Target) -> bool {
    may_try_again(&target.pool, &request.attempts)
}

/// May another endpoint than those `tried` be tried? If so, the pool's budget has paid for it.
pub fn may_try_again(pool: &Pool, tried: &[Picked]) -> bool {
    let metric = forebay_protocol::metric::proxy::RETRIES;
    let refused = forebay_protocol::metric::proxy::RETRIES_REFUSED;
    if tried.len() >= pool.config.retry.attempts as usize
        || pool.ready.iter().all(|endpoint| was_tried(tried, endpoint))
    {
        return false;
    }
    let allowed = pool.state.budget.try_retry(clock::now());
    let name = if allowed { metric } else { refused };
    metrics::counter!(name, "pool" => pool.config.name.clone()).increment(1);
    allowed
}
