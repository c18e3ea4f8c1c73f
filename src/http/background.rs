//! Requests that no client waits for.
//!
//! A kept answer whose time is up may be given once more while a new one is fetched; the client that got the
//! old one must not wait for that. Such a request is a copy of the client's with the lowest priority, no
//! fallback and the route's whole deadline. It counts as in flight, so that a drain waits for it.

use crate::body_memory::{Account, Held, cost};
use crate::http::attempts;
use crate::http::cache::outcome::Outcome;
use crate::http::forward::send::send_detached;
use crate::http::identify::Identity;
use crate::http::request::{ForwardMode, Request};
use crate::http::response::BufferedResponse;
use crate::http::services::Services;
use crate::http::stage::Stop;
use bytes::Bytes;
use forebay_protocol::{Priority, header};
use pingora::http::RequestHeader;
use std::sync::Arc;
use std::time::Instant;

/// A request that no client waits for.
pub struct Background {
    /// Its state.
    pub request: Request,
    /// The account of its memory, which is its client's.
    pub account: Account,
    head: RequestHeader,
    body: Bytes,
    /// The memory of its body.
    _held: Held,
}

impl Background {
    /// A copy of a request that has been received whole. `None`: it finds no memory.
    pub fn copy(
        services: &Services,
        head: &RequestHeader,
        request: &Request,
        (body, account): (&Bytes, &Account),
    ) -> Option<Self> {
        let held = account.hold();
        held.grow(cost(body.len())).ok()?;
        let target = request.target.clone()?.without_fallback();
        let mut head = head.clone();
        head.insert_header(header::REQUEST_PRIORITY, Priority::Batch.as_str()).ok()?;
        let copy = Request {
            identity: Identity {
                deadline: None,
                priority: Some(Priority::Batch),
                ..request.identity.clone()
            },
            priority: Priority::Batch,
            key: request.key,
            mode: Some(ForwardMode::Buffered),
            deadline: Some(Instant::now() + target.route.deadline),
            cache: Some(Outcome::Missed { kept_for: None }),
            in_flight: Some(services.lifecycle.enter()),
            target: Some(target),
            ..Request::new(Arc::clone(&request.snapshot))
        };
        let (body, account) = (body.clone(), account.clone());
        Some(Self { request: copy, account, head, body, _held: held })
    }

    /// Sends it until an endpoint has answered; `None`: the answer is longer than is held.
    ///
    /// # Errors
    /// The refusal of the last attempt.
    pub async fn send(&mut self, services: &Services) -> Result<Option<BufferedResponse>, Stop> {
        let to = (&*services.connector, &self.account);
        let sent = send_detached(&self.head, &mut self.request, self.body.clone(), to).await?;
        let (response, rest) = sent;
        if rest.is_none() {
            return Ok(Some(response));
        }
        attempts::abandon(&mut self.request);
        Ok(None)
    }
}
