//! The attempts of a request that is held in memory: sent until an endpoint answers.
//!
//! Pingora's own pipe can send a body again only up to 64 KiB, and only if the connection failed before
//! anything was sent. A request that is held can be sent again after any end of the attempt before, and two
//! attempts of it can be under way at once. [`forebay_routing::attempt`] decides which attempts are made;
//! here the decisions become futures, and the ends of those are reported back. An attempt that is no longer
//! wanted is dropped at once, and with its connection or stream the endpoint drops it, too, whether it is in
//! a queue or at work.

use super::attempt::{Attempt, AttemptEnd};
use super::exchange::{self, Message, classify, message_of};
use super::take_in_report;
use crate::clock;
use crate::exhausted;
use crate::http::attempts::{self, Handling, NO_SIGN};
use crate::http::balance::pick_free;
use crate::http::request::Request;
use crate::http::variant::Target;
use crate::pool::Endpoint;
use crate::pool::connector::Connector;
use crate::refusal::Refusal;
use forebay_protocol::Reason;
use forebay_routing::attempt::event::{Answer, End, Ending, Event, Next, Sending};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Instant;
use tokio::time::timeout_at;

/// The answer that the client gets, and who gave it.
pub(super) struct AttemptAnswer {
    pub(super) answer: exchange::Answer,
    pub(super) endpoint: Arc<Endpoint>,
    /// Its place among the request's attempts.
    pub(super) index: usize,
}

/// Carries out what is decided for one request.
pub(super) struct Attempts<'a> {
    request: &'a mut Request,
    /// The message as the client sent it.
    received: Arc<Message>,
    /// The message as the current variant is asked.
    message: Arc<Message>,
    connector: &'a Connector,
    /// Answers that may be passed on: mostly one, errors beside it while another may do better.
    answers: Vec<AttemptAnswer>,
}

impl<'a> Attempts<'a> {
    pub(super) fn new(
        request: &'a mut Request,
        target: &Target,
        received: Message,
        connector: &'a Connector,
    ) -> Self {
        let received = Arc::new(received);
        let message = received.asking_for(&target.variant).unwrap_or_else(|| Arc::clone(&received));
        Self { request, received, message, connector, answers: Vec::new() }
    }

    /// Attempts until one answers, the deadline passes, or no more are allowed; then the same at
    /// each of the variants that may stand in.
    ///
    /// # Errors
    /// The refusal for the client if no endpoint has answered.
    pub(super) async fn run(mut self) -> Result<AttemptAnswer, Refusal> {
        let is_repeatable = self.message.is_repeatable;
        let handling = if self.message.is_replayable { Handling::Held } else { Handling::PassedOn };
        let mut next = attempts::begin(self.request, handling, is_repeatable);
        loop {
            next = match next {
                Next::Bind => attempts::bound(self.request, is_repeatable).await,
                Next::FallBack(_) => self.fall_back(),
                Next::Send(sending) => {
                    let started = Instant::now();
                    let next = self.send(&sending).await;
                    self.request.times.forward += started.elapsed();
                    next
                }
                Next::Finish(Ending::Answer(place) | Ending::PassOn(place)) => {
                    return self.answer(place).ok_or_else(lost);
                }
                Next::Finish(Ending::Refuse(refusal)) => return Err(refusal),
                Next::Wait | Next::Finish(Ending::Left) => return Err(lost()),
            }
        }
    }

    fn on(&mut self, event: Event<Refusal>) -> Next<Refusal> {
        attempts::on(self.request, event, self.message.is_repeatable)
    }

    /// Makes the message one for the variant that stands in.
    fn fall_back(&mut self) -> Next<Refusal> {
        let target = self.request.target.as_ref();
        match target.and_then(|target| self.received.asking_for(&target.variant)) {
            Some(message) => {
                self.message = message;
                self.on(Event::StandsIn)
            }
            None => self.on(Event::CannotStandIn),
        }
    }

    fn answer(&mut self, place: usize) -> Option<AttemptAnswer> {
        let at = self.answers.iter().position(|held| held.index == place)?;
        Some(self.answers.swap_remove(at))
    }

    /// Sends an attempt, and a second one beside it if that is due before the first one is over.
    async fn send(&mut self, sending: &Sending) -> Next<Refusal> {
        let Some(first) = Attempt::new(self.request, sending) else { return Next::Wait };
        let (message, connector) = (Arc::clone(&self.message), self.connector);
        let mut sent = pin!(first.send(&message, connector));
        if let Some(at) = sending.hedge_at {
            let in_time = timeout_at(clock::instant(at).into(), &mut sent).await;
            if let Ok(ended) = in_time {
                return self.ended(&first, ended);
            }
            if let Some(second) = self.hedge() {
                // Two attempts take the room of two, which not every request need have.
                return Box::pin(self.both(&first, sent, &second)).await;
            }
        }
        let ended = sent.await;
        self.ended(&first, ended)
    }

    /// A second attempt, at an endpoint that has room for it at once.
    fn hedge(&mut self) -> Option<Sending> {
        let pool = Arc::clone(&self.request.target.as_ref()?.pool);
        let picked = pick_free(&pool, self.request);
        let has_room = picked.is_some();
        self.request.attempts.extend(picked);
        if let Next::Send(second) = self.on(Event::HedgeDue { has_room }) {
            return Some(second);
        }
        if has_room {
            self.request.attempts.pop();
        }
        None
    }

    /// Waits for two attempts until no more is to be waited for, and drops what is left of them.
    async fn both<A>(
        &mut self,
        first: &Attempt,
        mut sent: Pin<&mut A>,
        second: &Sending,
    ) -> Next<Refusal>
    where
        A: Future<Output = AttemptEnd>,
    {
        let Some(second) = Attempt::new(self.request, second) else { return Next::Wait };
        let (message, connector) = (Arc::clone(&self.message), self.connector);
        let mut other = pin!(second.send(&message, connector));
        let (is_first, ended) = tokio::select! {
            ended = &mut sent => (true, ended),
            ended = &mut other => (false, ended),
        };
        match self.ended(if is_first { first } else { &second }, ended) {
            Next::Wait if is_first => {
                let ended = other.await;
                self.ended(&second, ended)
            }
            Next::Wait => {
                let ended = sent.await;
                self.ended(first, ended)
            }
            next => next,
        }
    }

    /// Takes in how an attempt ended.
    fn ended(&mut self, attempt: &Attempt, ended: AttemptEnd) -> Next<Refusal> {
        let state = &attempt.endpoint.state;
        let end = match ended {
            AttemptEnd::Answered(answer) => self.answered(attempt, answer),
            AttemptEnd::Broke(error) => {
                tracing::debug!(endpoint = &*state.name, %error, "attempt failed");
                match exhausted::behind(&error) {
                    Some(resource) => {
                        exhausted::count(resource, "connect");
                        End::Unsent(exhausted::refusal(resource))
                    }
                    None => {
                        let (trouble, reason) = classify(&error);
                        End::Broke(trouble, Refusal::new(reason, message_of(reason)))
                    }
                }
            }
            AttemptEnd::NoMemory => {
                let message =
                    "the answers that are not read on this connection leave no memory for another";
                End::Unsent(Refusal::new(Reason::MemoryLimit, message))
            }
            AttemptEnd::Lost => End::Silent(Refusal::new(Reason::EndpointSilent, NO_SIGN)),
            AttemptEnd::TooLate => {
                End::TimedOut { unheard: state.answers_so_far() == attempt.heard }
            }
        };
        let next = self.on(Event::Ended(attempt.index, end));
        let decisions = self.request.decisions.as_ref();
        let is_taken = |place: usize| matches!(next, Next::Finish(Ending::Answer(it) | Ending::PassOn(it)) if it == place);
        self.answers.retain(|held| {
            is_taken(held.index) || decisions.is_some_and(|decisions| decisions.keeps(held.index))
        });
        next
    }

    /// Takes in an answer, which may be replaced by another one.
    fn answered(&mut self, attempt: &Attempt, answer: exchange::Answer) -> End<Refusal> {
        let is_whole = answer.rest.is_none();
        if let Some(target) = &self.request.target {
            let state = &attempt.endpoint.state;
            if let Some(trailers) = &answer.trailers {
                take_in_report(trailers, target, state, true);
            }
            // One whose length is known when it begins has been made; any other may still be being made.
            let is_made =
                is_whole || answer.head.headers.contains_key(http::header::CONTENT_LENGTH);
            take_in_report(&answer.head.headers, target, state, is_made);
        }
        // The code of a call is no word of ours where another endpoint is not asked about it.
        let is_replayable = self.message.is_replayable;
        let status = if is_replayable { answer.status() } else { answer.head.status.as_u16() };
        let reason = answer.reason();
        let found = Answer {
            status,
            is_success: answer.is_success(),
            is_busy: answer.is_busy(),
            states_reason: reason.is_some(),
            is_whole,
        };
        let refusal = (status >= 400).then(|| {
            let usual = if status == 503 { Reason::QueueFull } else { Reason::InferenceFailed };
            Refusal::new(reason.unwrap_or(usual), "the endpoint refused the request")
        });
        let (endpoint, index) = (Arc::clone(&attempt.endpoint), attempt.index);
        self.answers.push(AttemptAnswer { answer, endpoint, index });
        End::Answered(found, refusal)
    }
}

/// Of a decision that does not go with those before it.
fn lost() -> Refusal {
    Refusal::new(Reason::Internal, "the request's attempts did not end")
}
