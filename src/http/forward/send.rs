//! Sends a request whose body was received: completely, or followed by its rest as it arrives.

use super::attempts::AttemptAnswer;
use super::buffered::{self, Length};
use super::exchange::{Answer, Rest};
use super::upload;
use crate::body_memory::Account;
use crate::http::receive::Received;
use crate::http::request::{ForwardMode, Request};
use crate::http::response::BufferedResponse;
use crate::http::stage::Stop;
use crate::pool::Endpoint;
use crate::pool::connector::Connector;
use crate::refusal::Refusal;
use bytes::Bytes;
use forebay_cache::Entry;
use forebay_cache::flight::Leader;
use forebay_protocol::Reason;
use pingora::http::RequestHeader;
use pingora::proxy::Session;
use std::sync::Arc;

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

impl AttemptAnswer {
    fn parts(self) -> (BufferedResponse, Option<Unread>) {
        let Self { answer: Answer { head, body, trailers, rest, held }, endpoint, index } = self;
        let unread = rest.map(|rest| Unread { rest, endpoint, index });
        (BufferedResponse { head, body, trailers, held }, unread)
    }
}
