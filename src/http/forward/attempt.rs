//! One attempt of a request that is held in memory, at one endpoint.
//!
//! It ends with an answer, with an error, with its time, or when the endpoint is found to answer nothing at
//! all: then there is nothing to wait for.

use super::count_unsolicited;
use super::exchange::{Answer, Message, exchange};
use crate::clock;
use crate::http::request::Request;
use crate::pool::awaited::SilenceTimeout;
use crate::pool::connector::{Connector, NO_SOCKET};
use crate::pool::liveness::{self, Lost};
use crate::pool::{Endpoint, Pool};
use forebay_routing::attempt::event::Sending;
use pingora::{Error, ErrorType};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::time::timeout_at;

/// Time of an attempt whose request has no deadline.
const NO_DEADLINE: Duration = Duration::from_secs(3600);

/// An attempt that is under way.
pub(super) struct Attempt {
    /// Its place among the request's attempts.
    pub(super) index: usize,
    pub(super) endpoint: Arc<Endpoint>,
    /// Number of the endpoint's answers when it began.
    pub(super) heard: u32,
    pool: Arc<Pool>,
    /// Time at which it is given up.
    until: Instant,
    /// Time that it waits once the endpoint is silent.
    silence_timeout: SilenceTimeout,
}

/// The error of a connection whose other end is gone.
pub(super) fn acknowledges_nothing() -> Box<Error> {
    Error::explain(ErrorType::ConnectionClosed, "the endpoint acknowledges no data")
}

/// The end of an attempt.
pub(super) enum AttemptEnd {
    Answered(Answer),
    Broke(Box<Error>),
    TooLate,
    /// The endpoint answers neither it nor probes.
    Lost,
    /// There is no memory for an answer, since the client does not read those that it has: it would only keep a
    /// slot. Nothing was sent.
    NoMemory,
}

impl Attempt {
    /// The attempt that was bound last, as it is to be sent.
    pub(super) fn new(request: &Request, sending: &Sending) -> Option<Self> {
        let picked = request.attempts.get(sending.attempt)?;
        let until = sending.until.map_or_else(|| Instant::now() + NO_DEADLINE, clock::instant);
        let target = request.target.as_ref()?;
        let stand_in = target.fallback(&request.snapshot, &request.identity).is_some();
        let silence_timeout = SilenceTimeout::of(sending.on_silence, picked.expected());
        Some(Self {
            index: sending.attempt,
            endpoint: Arc::clone(&picked.endpoint),
            heard: picked.endpoint.state.answers_so_far(),
            pool: Arc::clone(&target.pool),
            until,
            silence_timeout: silence_timeout.with_stand_in(stand_in),
        })
    }

    pub(super) async fn send(&self, message: &Message, connector: &Connector) -> AttemptEnd {
        let Some(held) = message.account.hold_for_answer() else { return AttemptEnd::NoMemory };
        let unsolicited = || count_unsolicited(&self.pool.config.name, &self.endpoint.state);
        let socket = AtomicI32::new(NO_SOCKET);
        let exchange =
            exchange((message, held), connector, (&*self.endpoint, &socket), unsolicited);
        tokio::select! {
            ended = timeout_at(self.until.into(), exchange) => match ended {
                Ok(Ok(answer)) => AttemptEnd::Answered(answer),
                Ok(Err(error)) => AttemptEnd::Broke(error),
                Err(_) => AttemptEnd::TooLate,
            },
            why = self.until_lost(&socket) => match why {
                Lost::Silent { is_paid } => {
                    if is_paid {
                        // The decision about the retry pays for it.
                        self.pool.state.budget.refund();
                    }
                    AttemptEnd::Lost
                }
                Lost::Unreachable => AttemptEnd::Broke(acknowledges_nothing()),
            },
        }
    }

    /// Until it is clear that the endpoint does not answer.
    async fn until_lost(&self, socket: &AtomicI32) -> Lost {
        let socket = || Some(socket.load(Relaxed)).filter(|socket| *socket != NO_SOCKET);
        liveness::until_lost((&self.endpoint.state, &self.pool), socket, self.silence_timeout).await
    }
}
