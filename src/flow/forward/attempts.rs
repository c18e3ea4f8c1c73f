//! The attempts of a request that is held in memory: sent until an endpoint answers.
//!
//! Pingora's own pipe can send a body again only up to 64 KiB, and only if the connection failed
//! before anything was sent. An inference has no effect but its answer, so it may be sent again as
//! long as the caller has not seen a byte of one: a worker that is killed half way costs a retry,
//! not an error. What attempts may cost is bounded by the deadline, by their number and by the pool's
//! retry budget; all of them are dropped at once when the caller leaves.
//!
//! An endpoint that says that it failed (500) is asked no more, another one is, once: if that answers,
//! the first one was at fault, and that counts against it; if both say the same, it is the request that
//! makes them fail, and one caller's bad request must not take endpoints out of rotation.

use super::exchange::{Answer, Message, exchange, message_of, trouble_of};
use super::{count_answer, count_attempt, take_in_report};
use crate::config::Trouble;
use crate::error::Refusal;
use crate::flow::balance::{balance, may_retry};
use crate::flow::route::Target;
use crate::pool::Endpoint;
use crate::request::Request;
use forebay_protocol::Reason;
use forebay_routing::Outcome;
use pingora::connectors::http::Connector;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::timeout_at;

/// An endpoint that did not answer for this long is worth a probe.
const FAIR: Duration = Duration::from_millis(50);
/// How often one request may be answered with an error of the endpoint's own: once more shows whose
/// fault it is.
const MOST_ACCUSED: usize = 2;

/// The answer that the caller gets, and who gave it.
pub(super) struct Won {
    pub(super) answer: Answer,
    pub(super) endpoint: Arc<Endpoint>,
}

/// How an attempt failed.
struct Failure {
    trouble: Option<Trouble>,
    refusal: Refusal,
    /// The answer that said so, to be passed on if there is no other.
    answer: Option<Box<Won>>,
}

impl Failure {
    fn new(trouble: Option<Trouble>, reason: Reason, message: &'static str) -> Self {
        Self { trouble, refusal: Refusal::new(reason, message), answer: None }
    }
}

/// An attempt that is under way.
struct Attempt {
    /// Its place among the request's attempts.
    index: usize,
    endpoint: Arc<Endpoint>,
    started: Instant,
    /// When it is given up.
    until: Instant,
}

/// How an attempt ended.
enum Ended {
    Answered(Answer),
    Broke(Box<pingora::Error>),
    TooLate,
}

impl Attempt {
    async fn send(&self, message: &Message, connector: &Connector) -> Ended {
        let peer = self.endpoint.peer(message.is_grpc);
        match timeout_at(self.until.into(), exchange(peer, message, connector)).await {
            Ok(Ok(answer)) => Ended::Answered(answer),
            Ok(Err(error)) => Ended::Broke(error),
            Err(_) => Ended::TooLate,
        }
    }
}

/// The engine, for one request.
pub(super) struct Attempts<'a> {
    pub(super) request: &'a mut Request,
    pub(super) target: &'a Target,
    pub(super) message: &'a Message,
    pub(super) connector: &'a Connector,
    /// Places of attempts that were answered with an error of the endpoint's own.
    accused: Vec<usize>,
}

impl<'a> Attempts<'a> {
    pub(super) fn new(
        request: &'a mut Request,
        target: &'a Target,
        message: &'a Message,
        connector: &'a Connector,
    ) -> Self {
        Self { request, target, message, connector, accused: Vec::new() }
    }

    /// Attempts until one answers, the deadline passes, or no more are allowed.
    ///
    /// # Errors
    /// What the caller is told if nobody has answered.
    pub(super) async fn run(mut self) -> Result<Won, Refusal> {
        self.target.pool.state.budget.request();
        let ended = self.until_one_answers().await;
        self.judge(ended.is_ok());
        // Nothing better came than what an endpoint said of its failure.
        ended.or_else(|failure| failure.answer.map_or(Err(failure.refusal), |won| Ok(*won)))
    }

    async fn until_one_answers(&mut self) -> Result<Won, Failure> {
        let mut last: Option<Failure> = None;
        loop {
            if self.request.time_left().is_some_and(|left| left.is_zero()) {
                return Err(last.unwrap_or_else(late));
            }
            let attempt = match self.begin().await {
                Ok(attempt) => attempt,
                // All that are ready were tried: the last failure says more than that.
                Err(refusal) => {
                    let none = Failure { trouble: None, refusal, answer: None };
                    return Err(last.unwrap_or(none));
                }
            };
            let ended = attempt.send(self.message, self.connector).await;
            self.request.times.forward += attempt.started.elapsed();
            let mut failure = match self.settle(&attempt, ended) {
                Ok(won) => return Ok(won),
                Err(failure) => failure,
            };
            // What an endpoint says is worth more to the caller than that another was silent.
            let said = last.take().and_then(|last| last.answer);
            failure.answer = failure.answer.or(said);
            if !self.may_follow(&failure) {
                return Err(failure);
            }
            last = Some(failure);
        }
    }

    /// Binds the request to an endpoint that it has not tried yet.
    async fn begin(&mut self) -> Result<Attempt, Refusal> {
        let endpoint = balance(self.request, self.target).await?;
        let started = Instant::now();
        let deadline = self.request.deadline.unwrap_or(started + Duration::from_secs(3600));
        let own = self.target.pool.config.retry.attempt_timeout.map(|own| started + own);
        let until = own.map_or(deadline, |own| own.min(deadline));
        Ok(Attempt { index: self.request.attempts.len() - 1, endpoint, started, until })
    }

    /// May the request be sent once more after this? If so, it is paid for.
    fn may_follow(&self, failure: &Failure) -> bool {
        let retry = &self.target.pool.config.retry;
        failure.trouble.is_some_and(|trouble| retry.on.contains(&trouble))
            && self.accused.len() < MOST_ACCUSED
            && may_retry(self.request, self.target)
    }

    /// Takes in how an attempt ended.
    fn settle(&mut self, attempt: &Attempt, ended: Ended) -> Result<Won, Failure> {
        match ended {
            Ended::Answered(answer) => self.answered(attempt, answer),
            Ended::Broke(error) => {
                let endpoint = &attempt.endpoint.state;
                tracing::debug!(endpoint = &*endpoint.name, %error, "attempt failed");
                self.request.attempts[attempt.index].failed();
                endpoint.note(Outcome::Failed);
                let (trouble, reason) = trouble_of(&error);
                let failure = Failure::new(Some(trouble), reason, message_of(reason));
                Err(self.counted(attempt, failure))
            }
            Ended::TooLate => {
                let failure = self.too_late(attempt);
                Err(self.counted(attempt, failure))
            }
        }
    }

    fn counted(&self, attempt: &Attempt, failure: Failure) -> Failure {
        count_attempt(self.target, &attempt.endpoint.state, failure.refusal.reason.code());
        failure
    }

    fn answered(&mut self, attempt: &Attempt, answer: Answer) -> Result<Won, Failure> {
        let state = &attempt.endpoint.state;
        if let Some(trailers) = &answer.trailers {
            take_in_report(trailers, self.target, state, true);
        }
        take_in_report(&answer.head.headers, self.target, state, true);
        let picked = &mut self.request.attempts[attempt.index];
        let status = answer.status();
        match status {
            429 | 500.. if status != 504 => picked.refused(),
            _ => picked.answered(answer.is_success()),
        }
        match status {
            500 | 502 => self.accused.push(attempt.index),
            // Its word that there was too little time says nothing against it.
            504 => state.note(Outcome::Understood),
            429 | 503 if status == 429 || answer.is_busy() => state.note(Outcome::Busy),
            503.. => state.note(Outcome::Failed),
            _ if answer.is_success() => state.note(Outcome::Answered(attempt.started.elapsed())),
            _ => state.note(Outcome::Understood),
        }
        let endpoint = Arc::clone(&attempt.endpoint);
        let trouble = Trouble::Status(status);
        if status < 400 || !self.target.pool.config.retry.on.contains(&trouble) {
            count_answer(self.target, state);
            return Ok(Won { answer, endpoint });
        }
        let usual = if status == 503 { Reason::QueueFull } else { Reason::InferenceFailed };
        let reason = answer.reason().unwrap_or(usual);
        let refusal = Refusal::new(reason, "the endpoint refused the request");
        let answer = Some(Box::new(Won { answer, endpoint }));
        Err(self.counted(attempt, Failure { trouble: Some(trouble), refusal, answer }))
    }

    fn too_late(&mut self, attempt: &Attempt) -> Failure {
        let own = self.target.pool.config.retry.attempt_timeout;
        let after_its_own = own.is_some_and(|own| attempt.started.elapsed() >= own);
        // A caller that gives little time says nothing about the endpoint.
        let asked = self.request.identity.deadline;
        let hurried = asked.is_some_and(|asked| asked < self.target.route.deadline);
        let picked = &mut self.request.attempts[attempt.index];
        if attempt.started.elapsed() >= FAIR {
            picked.failed();
        } else {
            picked.answered(false);
        }
        if after_its_own || !hurried {
            attempt.endpoint.state.note(Outcome::Failed);
        }
        if after_its_own && self.request.time_left().is_none_or(|left| !left.is_zero()) {
            let message = "the endpoint did not answer in time";
            return Failure::new(Some(Trouble::Timeout), Reason::AttemptTimeout, message);
        }
        late()
    }

    /// Whose fault were the errors that endpoints answered with?
    fn judge(&self, another_answered: bool) {
        let outcome = match self.accused.len() {
            0 => return,
            MOST_ACCUSED.. if !another_answered => Outcome::Understood,
            _ => Outcome::Failed,
        };
        for &index in &self.accused {
            self.request.attempts[index].endpoint.state.note(outcome);
        }
    }
}

fn late() -> Failure {
    Failure::new(None, Reason::DeadlineExceeded, "no answer before the deadline")
}
