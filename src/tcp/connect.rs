//! Connecting to an endpoint for what lasts.
//!
//! Once an endpoint has taken a connection, it stays there. Until then another one may be tried, by the
//! same rules as for requests ([`forebay_routing::attempt`]).

use crate::exhausted;
use crate::http::balance::pick_long_lived;
use crate::pool::attempt::{EndpointAttempt, carry_out, context};
use crate::pool::{EndpointState, Pool, awaited};
use crate::refusal::Refusal;
use forebay_process::resources::Exhausted;
use forebay_protocol::{Reason, metric};
use forebay_routing::attempt::event::{End, Ending, Event, Next, Terms};
use forebay_routing::{Attempts, RetryOn};
use pingora::protocols::l4::ext::set_tcp_keepalive;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A connection to an endpoint, of the first that takes one.
///
/// # Errors
/// None is in rotation, or none that may be tried took it.
pub(super) async fn connect(
    pool: &Pool,
    attempts: &mut Vec<EndpointAttempt>,
    key: Option<u64>,
) -> Result<TcpStream, Refusal> {
    // It waits for no answer, so nothing but connecting is an attempt's matter.
    let terms = Terms {
        deadline: None,
        usual_time: Duration::ZERO,
        is_hurried: true,
        is_replayable: false,
    };
    let mut decisions = Attempts::new(terms);
    let mut event = Event::Began;
    let mut connected = None;
    loop {
        let step = decisions.on(event, &context(pool, attempts, false, None));
        carry_out(&step.effects, attempts, pool);
        event = match step.next {
            Next::Bind => match pick_long_lived(pool, attempts, key) {
                Ok(picked) => {
                    attempts.push(picked);
                    Event::Bound { hedge_after: None, gives_way_at: None }
                }
                Err(refusal) => Event::Rejected(refusal),
            },
            Next::Send(sending) => {
                let end = match connect_to(pool, &attempts[sending.attempt]).await {
                    Ok(stream) => {
                        connected = Some(stream);
                        End::Connected
                    }
                    Err(end) => end,
                };
                Event::Ended(sending.attempt, end)
            }
            Next::Finish(Ending::Refuse(refusal)) => return Err(refusal),
            Next::Finish(_) | Next::FallBack(_) | Next::Wait => {
                return connected.ok_or_else(no_connection);
            }
        };
    }
}

/// A connection to this endpoint.
///
/// # Errors
/// How the attempt ended.
async fn connect_to(pool: &Pool, picked: &EndpointAttempt) -> Result<TcpStream, End<Refusal>> {
    let state = &picked.endpoint.state;
    let connected = timeout(pool.config.connect_timeout, exhausted::connect(state.address)).await;
    if let Ok(Ok(stream)) = connected {
        // Without it a machine that is gone is noticed late.
        let _ = set_tcp_keepalive(&stream, &awaited::keepalive(&pool.config));
        count_attempt(pool, state, "connected");
        return Ok(stream);
    }
    if let Ok(Err(error)) = &connected
        && let Some(resource) = Exhausted::of(error)
    {
        exhausted::count(resource, "connect");
        count_attempt(pool, state, Reason::ProxyExhausted.code());
        return Err(End::Unsent(exhausted::refusal(resource)));
    }
    count_attempt(pool, state, Reason::ConnectFailed.code());
    Err(End::Broke(RetryOn::Connect, no_connection()))
}

fn no_connection() -> Refusal {
    Refusal::new(Reason::ConnectFailed, "no connection to an endpoint")
}

fn count_attempt(pool: &Pool, endpoint: &EndpointState, outcome: &'static str) {
    metric::proxy::ATTEMPTS.with([pool.config.name.as_str(), &endpoint.name, outcome]).increment(1);
}
