//! The attempts of a request that is held in memory: sent until an endpoint answers.
//!
//! Pingora's own pipe can send a body again only up to 64 KiB, and only if the connection failed
//! before anything was sent. An inference has no effect but its answer, so it may be sent again as
//! long as the client has not seen a byte of one: a worker that is killed half way costs a retry,
//! not an error. What attempts may cost is bounded by the deadline, by their number and by the pool's
//! retry budget; all of them are dropped at once when the client leaves.
//!
//! An attempt that is slower than nearly all before it may get a second one beside it (a hedge), at an
//! endpoint that has room for it at once. Whichever answers first is taken; the other is dropped, and
//! with its connection or stream the endpoint drops it too, be it in a queue or at work. Its samples
//! are not lost: an attempt that was given up took at least so long.
//!
//! An endpoint that says that it failed (500) is asked no more, another one is, once: if that answers,
//! the first one was at fault, and that counts against it; if both say the same, it is the request that
//! makes them fail, and one client's bad request must not take endpoints out of rotation.

use super::attempt::{Attempt, Ended};
use super::exchange::{Answer, Message, classify, message_of};
use super::{count_answer, count_attempt, note_answer, take_in_report};
use crate::clock;
use crate::config::RetryOn;
use crate::exhausted;
use crate::http::balance::{balance, can_try_again, may_try_again, pick_free};
use crate::http::fallback;
use crate::http::request::{Hedged, Request};
use crate::http::variant::Target;
use crate::pool::awaited::Patience;
use crate::pool::{Endpoint, Pool};
use crate::refusal::Refusal;
use forebay_protocol::Reason;
use forebay_protocol::metric::proxy as metric;
use forebay_routing::Outcome;
use pingora::connectors::http::Connector;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// How often one request may be answered with an error of the endpoint's own: once more shows whose
/// fault it is.
const MAX_ACCUSED: usize = 2;

/// Of an endpoint that is silent.
pub(super) const NO_SIGN: &str = "the endpoint answers neither the request nor probes";

/// The answer that the client gets, and who gave it.
pub(super) struct Won {
    pub(super) answer: Answer,
    pub(super) endpoint: Arc<Endpoint>,
    /// Its place among the request's attempts.
    pub(super) index: usize,
}

/// How an attempt failed.
struct Failure {
    trouble: Option<RetryOn>,
    refusal: Refusal,
    /// The answer that said so, to be passed on if there is no other.
    answer: Option<Box<Won>>,
}

impl Failure {
    fn new(trouble: Option<RetryOn>, reason: Reason, message: &'static str) -> Self {
        Self { trouble, refusal: Refusal::new(reason, message), answer: None }
    }
}

/// The engine, for one request.
pub(super) struct Attempts<'a> {
    request: &'a mut Request,
    target: Target,
    /// As the client sent it.
    received: Arc<Message>,
    /// As the present variant is asked.
    message: Arc<Message>,
    connector: &'a Connector,
    /// Places of attempts that were answered with an error of the endpoint's own.
    accused: Vec<usize>,
    /// Where the attempts at the present pool begin.
    from: usize,
    /// Whether the budget has refused a second opinion.
    unpaid: bool,
    /// Whether it was sent elsewhere since an endpoint was silent.
    moved: bool,
}

impl<'a> Attempts<'a> {
    pub(super) fn new(
        request: &'a mut Request,
        target: Target,
        received: Message,
        connector: &'a Connector,
    ) -> Self {
        let received = Arc::new(received);
        let message = received.asking_for(&target.variant).unwrap_or_else(|| Arc::clone(&received));
        Self {
            request,
            target,
            received,
            message,
            connector,
            accused: Vec::new(),
            from: 0,
            unpaid: false,
            moved: false,
        }
    }

    /// Attempts until one answers, the deadline passes, or no more are allowed; then the same at
    /// each of the variants that may stand in.
    ///
    /// # Errors
    /// What the client is told if nobody has answered.
    pub(super) async fn run(mut self) -> Result<Won, Refusal> {
        let asked = self.target.clone();
        let mut first: Option<Failure> = None;
        loop {
            let ended = self.at_this_pool().await;
            let failure = match ended {
                Ok(won) => return Ok(won),
                Err(failure) => failure,
            };
            let degraded = self.may_be_sent_after(&failure) && self.degrade(&failure.refusal);
            // What became of the variant that was asked for says more than what a lesser one lacked.
            let first = first.get_or_insert(failure);
            if !degraded {
                self.request.degraded = None;
                self.request.target = Some(asked);
                let refusal = first.refusal.clone();
                return first.answer.take().map_or(Err(refusal), |won| Ok(*won));
            }
        }
    }

    /// Goes on to the next variant that may stand in. `false`: there is none.
    fn degrade(&mut self, refusal: &Refusal) -> bool {
        while let Some(next) = fallback::next(self.request, &self.target, refusal) {
            self.target = next;
            if let Some(message) = self.received.asking_for(&self.target.variant) {
                self.message = message;
                return self.begin_anew();
            }
        }
        false
    }

    fn begin_anew(&mut self) -> bool {
        self.from = self.request.attempts.len();
        self.accused.clear();
        self.unpaid = false;
        true
    }

    async fn at_this_pool(&mut self) -> Result<Won, Failure> {
        if let Some(hedges) = &self.target.pool.state.hedges {
            hedges.budget.earn(clock::now());
        }
        let ended = self.until_one_answers().await;
        self.judge(ended.is_ok());
        ended
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
            let started = attempt.started;
            let ended = if self.target.pool.state.hedges.is_some() && self.message.is_replayable {
                // Two attempts take the room of two, which not every request need have.
                Box::pin(self.race(attempt)).await
            } else {
                let ended = attempt.send(&self.message, self.connector).await;
                self.settle(&attempt, ended)
            };
            self.request.times.forward += started.elapsed();
            let budget = &self.target.pool.state.budget;
            let mut failure = match ended {
                Ok(won) => {
                    if won.answer.status() < 500 {
                        budget.earn(clock::now());
                    }
                    return Ok(won);
                }
                Err(failure) => failure,
            };
            if last.is_some() {
                budget.retry_failed();
            }
            // What an endpoint says is worth more to the client than that another was silent.
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
        let endpoint = balance(self.request, &self.target).await?;
        Ok(self.attempt(endpoint))
    }

    /// The attempt that was bound last.
    fn attempt(&self, endpoint: Arc<Endpoint>) -> Attempt {
        let started = Instant::now();
        let deadline = self.request.deadline.unwrap_or(started + Duration::from_secs(3600));
        let own = self.target.pool.config.retry.attempt_timeout.map(|own| started + own);
        // Cutting one short that no other can follow would only lose its answer.
        let own = own.filter(|own| {
            *own < deadline && self.message.is_replayable && self.others_can_follow()
        });
        Attempt {
            index: self.request.attempts.len() - 1,
            heard: endpoint.state.answers_so_far(),
            pool: Arc::clone(&self.target.pool),
            started,
            until: own.unwrap_or(deadline),
            patience: self.patience(&endpoint),
            cut_short: own.is_some(),
            endpoint,
        }
    }

    /// A request is sent elsewhere for an endpoint's silence but once: if the next one goes silent too, it
    /// may well be this request that they work on. One that can't be sent elsewhere is given up.
    fn patience(&self, endpoint: &Endpoint) -> Patience {
        let last = self.request.attempts.last();
        let expected = last.map_or(Duration::ZERO, |last| last.expected(endpoint));
        if !self.message.is_repeatable {
            return Patience::until_silent_alone(expected);
        }
        if self.moved || !self.others_can_follow() {
            return Patience::endless();
        }
        Patience::until_overdue(expected)
    }

    /// Is there anywhere else that the request may be sent?
    fn others_can_follow(&self) -> bool {
        can_try_again(&self.target.pool, &self.request.attempts[self.from..])
    }

    /// Sends an attempt, and a second one beside it if the first is slow and that is allowed.
    async fn race(&mut self, first: Attempt) -> Result<Won, Failure> {
        let (message, connector) = (Arc::clone(&self.message), self.connector);
        let mut sent = pin!(first.send(&message, connector));
        let pool = Arc::clone(&self.target.pool);
        let hedges = pool.state.hedges.as_ref();
        let mut in_time = None;
        let asked = self.request.attempts[first.index].asked.as_ref();
        if let Some(after) = hedges.zip(asked).and_then(|(hedges, asked)| hedges.after(asked)) {
            in_time = timeout(after, &mut sent).await.ok();
            if in_time.is_none()
                && let Some(second) = self.hedge(&pool)
            {
                let other = pin!(second.send(&message, connector));
                return self.both((&first, sent), (&second, other)).await;
            }
        }
        let ended = match in_time {
            Some(ended) => ended,
            None => sent.await,
        };
        let counts = match &ended {
            Ended::Answered(answer) => answer.is_success(),
            Ended::Broke(_) => false,
            Ended::TooLate | Ended::InVain => true,
        };
        let result = self.settle(&first, ended);
        if counts {
            self.first_took(&first);
        }
        result
    }

    /// Takes in how long a first attempt took, or was waited for.
    fn first_took(&self, first: &Attempt) {
        if let Some(asked) = &self.request.attempts[first.index].asked {
            asked.first_took(first.started.elapsed(), clock::now());
        }
    }

    /// A second attempt, at an endpoint that has room for it at once, if the budget pays for it.
    fn hedge(&mut self, pool: &Pool) -> Option<Attempt> {
        let hedges = pool.state.hedges.as_ref()?;
        let refused = |cause: &'static str| {
            let pool = pool.config.name.clone();
            metrics::counter!(metric::HEDGES_REFUSED, "pool" => pool, "cause" => cause)
                .increment(1);
        };
        let Some(picked) = pick_free(pool, self.request) else {
            refused("busy");
            return None;
        };
        if !hedges.budget.try_retry(clock::now()) {
            refused("budget");
            return None;
        }
        let endpoint = Arc::clone(&picked.endpoint);
        self.request.attempts.push(picked);
        Some(self.attempt(endpoint))
    }

    /// Waits for whichever of two attempts answers first, and drops the other, which cancels it.
    async fn both<A, B>(
        &mut self,
        (first, mut sent): (&Attempt, Pin<&mut A>),
        (second, mut other): (&Attempt, Pin<&mut B>),
    ) -> Result<Won, Failure>
    where
        A: Future<Output = Ended>,
        B: Future<Output = Ended>,
    {
        let (hedge_is_first, ended) = tokio::select! {
            ended = &mut sent => (false, ended),
            ended = &mut other => (true, ended),
        };
        let (winner, loser) = if hedge_is_first { (second, first) } else { (first, second) };
        let mut result = self.settle(winner, ended);
        let mut by_hedge = hedge_is_first;
        match &mut result {
            Ok(_) => self.request.attempts[loser.index].given_up(),
            Err(failure) => {
                by_hedge = !hedge_is_first;
                let ended = if hedge_is_first { sent.await } else { other.await };
                let said = failure.answer.take();
                result = self.settle(loser, ended);
                if let Err(failure) = &mut result {
                    failure.answer = failure.answer.take().or(said);
                }
            }
        }
        let outcome = match (&result, by_hedge) {
            (Ok(_), true) => Hedged::Won,
            (Ok(_), false) => Hedged::Lost,
            (Err(_), _) => Hedged::Failed,
        };
        self.hedged(first, outcome);
        result
    }

    /// Takes in what became of a second attempt.
    fn hedged(&mut self, first: &Attempt, outcome: Hedged) {
        self.first_took(first);
        let name = self.target.pool.config.name.clone();
        metrics::counter!(metric::HEDGES, "pool" => name, "outcome" => outcome.as_str())
            .increment(1);
        if outcome == Hedged::Won {
            // It may be slow, or it may be gone: a probe finds out.
            first.endpoint.state.suspect();
        }
        self.request.hedged = Some(outcome);
    }

    /// May the request be sent once more after this? If so, it is paid for.
    fn may_follow(&mut self, failure: &Failure) -> bool {
        let retry = &self.target.pool.config.retry;
        let wanted = failure.trouble.is_some_and(|trouble| retry.on.contains(&trouble))
            && self.may_be_sent_after(failure)
            && self.accused.len() < MAX_ACCUSED
            && self.others_can_follow();
        let allowed =
            wanted && may_try_again(&self.target.pool, &self.request.attempts[self.from..]);
        self.unpaid = wanted && !allowed;
        allowed
    }

    /// Whether the request may be sent once more, by what it is: one that may have an effect only if the
    /// attempt that failed can't have had it.
    fn may_be_sent_after(&self, failure: &Failure) -> bool {
        self.message.is_repeatable || matches!(failure.trouble, None | Some(RetryOn::Connect))
    }

    /// Takes in how an attempt ended.
    fn settle(&mut self, attempt: &Attempt, ended: Ended) -> Result<Won, Failure> {
        match ended {
            Ended::Answered(answer) => self.answered(attempt, answer),
            Ended::Broke(error) => {
                let endpoint = &attempt.endpoint.state;
                tracing::debug!(endpoint = &*endpoint.name, %error, "attempt failed");
                if let Some(resource) = exhausted::behind(&error) {
                    // The endpoint has done nothing wrong, and another would fare no better.
                    self.request.attempts[attempt.index].answered(false);
                    exhausted::count(resource, "connect");
                    let refusal = exhausted::refusal(resource);
                    let failure = Failure { trouble: None, refusal, answer: None };
                    return Err(self.counted(attempt, failure));
                }
                self.request.attempts[attempt.index].failed();
                endpoint.note(Outcome::Failed);
                let (trouble, reason) = classify(&error);
                let failure = Failure::new(Some(trouble), reason, message_of(reason));
                Err(self.counted(attempt, failure))
            }
            Ended::InVain => {
                self.moved = true;
                self.request.attempts[attempt.index].late();
                let failure = Failure::new(Some(RetryOn::Timeout), Reason::EndpointSilent, NO_SIGN);
                Err(self.counted(attempt, failure))
            }
            Ended::TooLate => {
                let failure = self.too_late(attempt);
                Err(self.counted(attempt, failure))
            }
        }
    }

    fn counted(&self, attempt: &Attempt, failure: Failure) -> Failure {
        count_attempt(&self.target, &attempt.endpoint.state, failure.refusal.reason.code());
        failure
    }

    fn answered(&mut self, attempt: &Attempt, answer: Answer) -> Result<Won, Failure> {
        let state = &attempt.endpoint.state;
        if let Some(trailers) = &answer.trailers {
            take_in_report(trailers, &self.target, state, true);
        }
        // One whose length is known when it begins has been made; any other may still be being made.
        let is_whole = answer.rest.is_none();
        let is_made = is_whole || answer.head.headers.contains_key(http::header::CONTENT_LENGTH);
        take_in_report(&answer.head.headers, &self.target, state, is_made);
        let picked = &mut self.request.attempts[attempt.index];
        let status = answer.status();
        match status {
            429 | 500.. if status != 504 && self.message.is_replayable => picked.refused(),
            _ if is_whole => picked.answered(answer.is_success()),
            // It is in flight until its end has been read.
            _ => {}
        }
        if !self.message.is_replayable {
            note_answer(state, &answer.head);
            return Ok(self.won(attempt, answer));
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
        let trouble = RetryOn::Status(status);
        if status < 400 || !self.target.pool.config.retry.on.contains(&trouble) {
            return Ok(self.won(attempt, answer));
        }
        let usual = if status == 503 { Reason::QueueFull } else { Reason::InferenceFailed };
        let reason = answer.reason().unwrap_or(usual);
        let refusal = Refusal::new(reason, "the endpoint refused the request");
        // Unless another does better.
        self.request.answering_attempt = Some(attempt.index);
        let (endpoint, index) = (Arc::clone(&attempt.endpoint), attempt.index);
        let answer = Some(Box::new(Won { answer, endpoint, index }));
        Err(self.counted(attempt, Failure { trouble: Some(trouble), refusal, answer }))
    }

    fn won(&mut self, attempt: &Attempt, answer: Answer) -> Won {
        count_answer(&self.target, &attempt.endpoint.state);
        self.request.answering_attempt = Some(attempt.index);
        Won { answer, endpoint: Arc::clone(&attempt.endpoint), index: attempt.index }
    }

    fn too_late(&mut self, attempt: &Attempt) -> Failure {
        // Little time says nothing about the endpoint, be it that the client gave little or that most of it
        // had passed in the queue.
        let (asked, usual) = (self.request.identity.deadline, self.target.route.deadline);
        let had = attempt.until.saturating_duration_since(attempt.started);
        let hurried = asked.is_some_and(|asked| asked < usual) || had < usual / 2;
        self.request.attempts[attempt.index].late();
        if attempt.cut_short || !hurried {
            let endpoint = &attempt.endpoint.state;
            let silent = endpoint.answers_so_far() == attempt.heard;
            endpoint.note(if silent { Outcome::Failed } else { Outcome::Late });
        }
        if attempt.cut_short && self.request.time_left().is_none_or(|left| !left.is_zero()) {
            let message = "the endpoint did not answer in time";
            return Failure::new(Some(RetryOn::Timeout), Reason::AttemptTimeout, message);
        }
        late()
    }

    /// Whose fault were the errors that endpoints answered with?
    fn judge(&self, another_answered: bool) {
        let outcome = match self.accused.len() {
            0 => return,
            // It may be the request. Where one endpoint is at fault, there are retries that show it.
            1 if self.unpaid => return,
            MAX_ACCUSED.. if !another_answered => Outcome::Understood,
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
