//! Sends a request whose body was received: completely, or followed by its rest as it arrives.

use super::attempts::AttemptAnswer;
use super::buffered::{self, Length};
use super::exchange::{Answer, Rest, classify, exchange, message_of};
use super::{count_unsolicited, upload};
use crate::body_memory::Account;
use crate::exhausted;
use crate::http::receive::Received;
use crate::http::request::{ForwardMode, Request};
use crate::http::response::BufferedResponse;
use crate::http::stage::Stop;
use crate::pool::Endpoint;
use crate::pool::connector::{Connector, NO_SOCKET};
use crate::pool::queue::Bound;
use crate::refusal::Refusal;
use bytes::Bytes;
use forebay_cache::Entry;
use forebay_cache::flight::Leader;
use forebay_protocol::Reason;
use pingora::http::RequestHeader;
use pingora::proxy::Session;
use std::sync::Arc;
use std::sync::atomic::AtomicI32;
use tokio::time::timeout_at;

/// The part of an answer that its endpoint has not given yet.
pub(in crate::http) struct Unread {
    /// The rest of the answer.
    pub rest: Rest,
    /// The endpoint that sends it.
    pub endpoint: Arc<Endpoint>,
    /// Place of that attempt among the request's.
    pub index: usize,
}

/// Sends a request whose body was received, as far as it can be held, until an endpoint answers. Others may
/// wait for the answer, too, if it is a `leader`.
///
/// # Errors
/// The client is refused, or has left.
pub(in crate::http) async fn send(
    session: &mut Session,
    request: &mut Request,
    received: Received,
    (connector, account, leader): (&Connector, &Account, Option<&Leader<Arc<Entry>>>),
) -> Result<(BufferedResponse, Option<Unread>), Stop> {
    let Some(target) = request.target.clone() else {
        return Err(Refusal::new(Reason::Internal, "a request without a route").into());
    };
    let taken = match received {
        Received::Whole(body) => {
            buffered::send(session, request, target, body, (connector, account, leader)).await?
        }
        Received::Partial(begun) => {
            request.mode = Some(ForwardMode::Streamed);
            let head = buffered::request_head(session.req_header(), Length::AsStated)?;
            // Few bodies are so long.
            Box::pin(upload::upload(session, request, &target, (head, begun), (connector, account)))
                .await?
        }
    };
    Ok(taken.parts())
}

/// Sends a request that no client waits for, until an endpoint has answered.
///
/// # Errors
/// The refusal of the last attempt.
pub(in crate::http) async fn send_detached(
    head: &RequestHeader,
    request: &mut Request,
    body: Bytes,
    to: (&Connector, &Account),
) -> Result<(BufferedResponse, Option<Unread>), Stop> {
    let Some(target) = request.target.clone() else {
        return Err(Refusal::new(Reason::Internal, "a request without a route").into());
    };
    Ok(buffered::send_detached(head, request, &target, body, to).await?.parts())
}

/// The reason for which there is no answer to a request that was sent once.
pub(in crate::http) enum NotAnswered {
    /// It is longer than is held.
    Long,
    /// No answer came.
    Failed(Refusal),
}

impl NotAnswered {
    fn failed(reason: Reason, message: &'static str) -> Self {
        Self::Failed(Refusal::new(reason, message))
    }
}

/// Sends a request once, to the endpoint that it is bound to, until its deadline. Nothing is learnt from the
/// end: neither of the endpoint, nor of the model, nor of the budgets of others.
///
/// # Errors
/// There is no answer, or none that is held.
pub(in crate::http) async fn send_once(
    (head, body): (&RequestHeader, Bytes),
    request: &Request,
    bound: Bound,
    (connector, account): (&Connector, &Account),
) -> Result<BufferedResponse, NotAnswered> {
    let internal = || NotAnswered::failed(Reason::Internal, "the request can't be written");
    let (Some(target), Some(deadline)) = (&request.target, request.deadline) else {
        return Err(internal());
    };
    let message = buffered::message(head, request, account, body).map_err(|_| internal())?;
    let message = Arc::new(message).asking_for(&target.variant).ok_or_else(internal)?;
    let held = message.account.hold_for_answer().ok_or_else(|| {
        NotAnswered::failed(Reason::MemoryLimit, "there is no memory for an answer")
    })?;
    let endpoint = &bound.endpoint;
    let unsolicited = || count_unsolicited(&target.pool.config.name, &endpoint.state);
    let socket = AtomicI32::new(NO_SOCKET);
    let exchange = exchange((&message, held), connector, (&**endpoint, &socket), unsolicited);
    match timeout_at(deadline.into(), exchange).await {
        Err(_) => Err(NotAnswered::failed(
            Reason::DeadlineExceeded,
            "the endpoint did not answer before the deadline",
        )),
        Ok(Err(error)) => {
            let refusal = exhausted::behind(&error).map_or_else(
                || {
                    let reason = classify(&error).1;
                    Refusal::new(reason, message_of(reason))
                },
                exhausted::refusal,
            );
            Err(NotAnswered::Failed(refusal))
        }
        Ok(Ok(answer)) if answer.rest.is_some() => Err(NotAnswered::Long),
        Ok(Ok(Answer { head, body, trailers, held, .. })) => {
            Ok(BufferedResponse { head, body, trailers, held })
        }
    }
}

impl AttemptAnswer {
    fn parts(self) -> (BufferedResponse, Option<Unread>) {
        let Self { answer: Answer { head, body, trailers, rest, held }, endpoint, index } = self;
        let unread = rest.map(|rest| Unread { rest, endpoint, index });
        (BufferedResponse { head, body, trailers, held }, unread)
    }
}
