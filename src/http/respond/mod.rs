//! Answering the client: with what an endpoint said ([`answer`](answer())), and with what the proxy says itself: its
//! refusals, and its own health.

mod answer;
pub mod grpc;

pub(in crate::http) use answer::answer;

use crate::http::request::Request;
use crate::refusal::Refusal;
use bytes::Bytes;
use forebay_protocol::oip::Call;
use forebay_protocol::{Reason, header};
use http::StatusCode;
use pingora::Result;
use pingora::http::ResponseHeader;
use pingora::proxy::Session;
use std::time::Duration;
use tokio::time::timeout;

/// Maximum number of bytes that are still read of a refused body: closing while the client sends would reset
/// the connection and destroy the answer with the reason.
const MAX_LINGER_BYTES: usize = 4 * 1024 * 1024;
const MAX_LINGER_TIME: Duration = Duration::from_secs(2);

/// Answers with a refusal.
///
/// # Errors
/// The connection to the client broke.
pub async fn refuse(session: &mut Session, request: &mut Request, refusal: &Refusal) -> Result<()> {
    if refusal.reason == Reason::ClientClosed {
        session.downstream_session.set_keepalive(None);
        return Ok(());
    }
    // No lingering where there is no room, except for bytes that are here.
    let is_full = refusal.reason == Reason::ConnectionLimit;
    let patience = if is_full { Duration::ZERO } else { MAX_LINGER_TIME };
    if request.identity.grpc.is_some() {
        grpc::refuse(session, request, refusal).await?;
        // A stream that is dropped before its client has said all is reset, and clients may forget
        // the answer over that.
        if !session.downstream_session.is_body_done() {
            linger_for(session, request, patience).await;
        }
        return Ok(());
    }
    let unread = !session.downstream_session.is_body_done();
    if unread {
        session.downstream_session.set_keepalive(None);
    }
    let (mut head, body) = refusal.answer(&request.identity.request_id)?;
    if request.identity.asks_by_get {
        head.insert_header(http::header::CACHE_CONTROL, "no-store")?;
    }
    if let Some(outcome) = request.cache {
        head.append_header(header::CACHE_STATUS, &*outcome.cache_status())?;
    }
    session.write_response_header(Box::new(head), false).await?;
    session.write_response_body(Some(body), true).await?;
    if unread {
        linger_for(session, request, patience).await;
    }
    Ok(())
}

/// Answers the protocol's health calls for the proxy itself.
///
/// # Errors
/// The connection to the client broke.
pub async fn health(session: &mut Session, request: &Request, ready: bool) -> Result<()> {
    let (word, good) = match request.identity.call {
        Some(Call::ServerReady) => ("ready", ready),
        _ => ("live", true),
    };
    let status = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = Bytes::from(format!("{{\"{word}\":{good}}}"));
    let mut head = ResponseHeader::build(status, Some(3))?;
    head.insert_header(http::header::CONTENT_TYPE, "application/json")?;
    head.insert_header(http::header::CONTENT_LENGTH, body.len())?;
    head.insert_header(header::REQUEST_ID, request.identity.request_id.as_str())?;
    session.write_response_header(Box::new(head), false).await?;
    session.write_response_body(Some(body), true).await
}

/// Reads the rest of a refused body for a while.
pub(crate) async fn linger(session: &mut Session, request: &mut Request) {
    linger_for(session, request, MAX_LINGER_TIME).await;
}

async fn linger_for(session: &mut Session, request: &mut Request, patience: Duration) {
    // It is answered; what is waited for now is only the client's last words.
    request.answered_after = Some(request.arrived.elapsed());
    request.attempts.iter_mut().for_each(|attempt| attempt.answered(false));
    let downstream = &mut session.downstream_session;
    let discard = async {
        let mut left = MAX_LINGER_BYTES;
        while let Ok(Some(chunk)) = downstream.read_request_body().await {
            left = left.saturating_sub(chunk.len());
            if left == 0 {
                break;
            }
        }
    };
    // Running out of time is one of the ways to be done with it.
    let _ = timeout(patience, discard).await;
}
