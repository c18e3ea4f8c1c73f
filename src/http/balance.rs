//! Picks the endpoint of the pool that gets the request, and counts the request there.
//!
//! A request is bound when an endpoint has room for it and waits in the pool's queue until then; a
//! connection at Layer 4 lasts, so an endpoint is picked at once, however many others are there.

use crate::clock;
use crate::http::identify;
use crate::http::request::Request;
use crate::http::variant::Target;
use crate::pool::attempt::{EndpointAttempt, was_tried};
use crate::pool::queue::{BindRequest, Bound, Rejected, with_rng};
use crate::pool::steps::Steps;
use crate::pool::{LongLived, Pool};
use crate::refusal::Refusal;
use forebay_protocol::grpc::Method;
use forebay_protocol::{Reason, metric};
use forebay_routing::{Health, ModelHandle, SlowStart, StandInTime, Time, pick};
use std::sync::Arc;
use std::time::Instant;

/// Binds the request to an endpoint that it has not tried yet; waits until one has room for it, unless
/// it is a stream.
///
/// # Errors
/// No endpoint is in rotation, all that are were tried, or too much waits before it.
pub async fn balance(request: &mut Request, target: &Target) -> Result<(), Refusal> {
    let started = Instant::now();
    if request.identity.grpc.is_some_and(Method::is_stream) {
        let picked = pick_long_lived(&target.pool, &request.attempts, request.key)?;
        request.attempts.push(picked);
        return Ok(());
    }
    let asked = ask(request, &target.pool);
    let share = target.pool.config.decisions;
    if share > 0.0 && request.attempts.is_empty() && fastrand::f64() < share {
        request.steps = Some(Steps::begin(request.arrived));
    }
    let tried = request.attempts.iter().map(|tried| Arc::clone(&tried.endpoint.state)).collect();
    let asks = BindRequest {
        priority: request.priority,
        client: request.identity.client,
        deadline: request.deadline.unwrap_or(started + target.route.deadline),
        key: request.key,
        relative_cost: asked.as_ref().map(ModelHandle::relative_cost).unwrap_or_default(),
        tried,
        steps: request.steps.clone(),
        stand_in: stand_in_time(request, target),
    };
    let bound = target.pool.bind(asks).await;
    request.times.balance += started.elapsed();
    let bound = bound.map_err(|rejected| refusal(rejected, request, &target.pool))?;
    request.attempts.push(EndpointAttempt::new(bound, asked));
    Ok(())
}

/// The time that the variant needs which stands in for the present one, if one does and that is known.
fn stand_in_time(request: &Request, target: &Target) -> Option<StandInTime> {
    let next = target.fallback(&request.snapshot, &request.identity)?;
    let (model, version) = request.identity.model_of(Some(&next.variant));
    let asked = request.identity.infers.then(|| {
        let key = identify::model(model, version);
        next.pool.state.models.handle(key, clock::now())
    });
    next.pool.stand_in_time(asked.as_ref().map(ModelHandle::relative_cost).unwrap_or_default())
}

/// The time at which the attempt that was bound last gives way to the variant that stands in, if it does.
pub fn gives_way_at(request: &Request, target: &Target) -> Option<Time> {
    let (stand_in, picked) = (stand_in_time(request, target)?, request.attempts.last()?);
    let relative_cost = picked.asked.as_ref().map(ModelHandle::relative_cost)?;
    target.pool.runs_until((request.deadline?, relative_cost), stand_in, &picked.endpoint)
}

/// The pool's statistics of the model that works for the request, if one does. The time of a metadata call
/// says nothing about the weight of the model, nor about the number of inferences that an endpoint can run
/// at once.
fn ask(request: &Request, pool: &Pool) -> Option<ModelHandle> {
    let (model, version) = request.model();
    let key = identify::model(model, version);
    request.identity.infers.then(|| pool.state.models.handle(key, clock::now()))
}

fn refusal(rejected: Rejected, request: &Request, pool: &Pool) -> Refusal {
    let (reason, after, message) = match rejected {
        Rejected::NoEndpoint => return no_endpoint(pool, request.attempts.len()),
        Rejected::Full(after) => (Reason::QueueFull, Some(after), "the queue is full"),
        Rejected::Displaced(after) => {
            (Reason::Displaced, Some(after), "the queue is full of more urgent requests")
        }
        Rejected::DeadlineUnreachable(after) => {
            let message = "too much work is queued to answer this request before its deadline";
            (Reason::DeadlineUnreachable, Some(after), message)
        }
        Rejected::DeadlinePassed => {
            (Reason::DeadlineExceeded, None, "no endpoint was free before the deadline")
        }
    };
    metric::proxy::SHED
        .with([pool.config.name.as_str(), request.priority.as_str(), reason.code()])
        .increment(1);
    Refusal { retry_after: after, ..Refusal::new(reason, message) }
}

fn no_endpoint(pool: &Pool, tried: usize) -> Refusal {
    let (all, ready) = (pool.endpoints.len(), pool.ready_count());
    for endpoint in pool.endpoints.iter().filter(|it| it.state.health() == Health::Down) {
        // It may be back: a probe says so sooner than its turn would.
        endpoint.state.suspect();
    }
    let name = &pool.config.name;
    let message = match tried {
        0 => format!("no endpoint of pool {name} is ready ({ready} of {all})"),
        tried => format!("no endpoint of pool {name} answered ({tried} of {ready} were tried)"),
    };
    Refusal::new(Reason::NoEndpoint, message)
}

/// Picks an endpoint that is not among those `tried` for a long-lived use, such as a connection or a stream:
/// it is counted there at once, however many others are there. Uses with the same `key` go to the same
/// endpoint, if the pool is sticky.
///
/// # Errors
/// No endpoint is in rotation, or all that are were tried.
pub fn pick_long_lived(
    pool: &Pool,
    tried: &[EndpointAttempt],
    key: Option<u64>,
) -> Result<EndpointAttempt, Refusal> {
    let now = clock::now();
    let context = pick::Context {
        now,
        report_ttl: pool.config.report_ttl,
        memory: &pool.rotation.pick_memory,
        key,
        ring: Some(&pool.rotation.ring),
        trace: None,
    };
    let (policy, endpoints) = (pool.config.policy, &pool.rotation.long_lived);
    let excluded = |candidate: &LongLived| was_tried(tried, &candidate.0);
    let chosen = with_rng(|rng| {
        let slow_start = SlowStart::draw(pool.config.slow_start, now, rng);
        let shut = |it: &LongLived| {
            excluded(it)
                || slow_start
                    .is_some_and(|slow_start| slow_start.passes_over(it.0.state.ready_since()))
        };
        // A pick takes a turn, so it is not tried with those that are not there.
        if endpoints.iter().all(shut) {
            return pick::pick(policy, endpoints, excluded, &context, rng);
        }
        pick::pick(policy, endpoints, shut, &context, rng)
    });
    let index = chosen.ok_or_else(|| no_endpoint(pool, tried.len()))?;
    Ok(EndpointAttempt::new(Bound::long_lived(&endpoints[index].0), None))
}

/// Picks an endpoint that the request has not tried and that has room at once, if no request waits for it.
pub fn pick_free(pool: &Pool, request: &Request) -> Option<EndpointAttempt> {
    let bound = pool.bind_free(|endpoint| was_tried(&request.attempts, endpoint))?;
    Some(EndpointAttempt::new(bound, ask(request, pool)))
}
