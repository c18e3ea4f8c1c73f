//! The proxy's own answers to clients that speak gRPC.
//!
//! gRPC has a status of its own, in trailers, and every answer is a 200; a refusal in plain HTTP would reach
//! the client as "unknown", without its message.

use crate::http::request::Request;
use crate::http::stage::Stop;
use crate::lifecycle::Lifecycle;
use crate::pool::Snapshot;
use crate::refusal::Refusal;
use arc_swap::ArcSwap;
use bytes::Bytes;
use forebay_protocol::grpc::{self, CONTENT_TYPE, Code, INFERENCE_SERVICE, Method, text_field};
use forebay_protocol::{Reason, header};
use http::{HeaderMap, HeaderValue, StatusCode};
use pingora::Result;
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::proxy::Session;
use std::time::Duration;
use tokio::time::sleep;

/// Interval at which a watcher's status is checked.
const WATCH_STEP: Duration = Duration::from_millis(50);
/// `HealthCheckResponse` with each status, and `{live: true}` of the other health calls: field 1.
const SERVING: &[u8] = &[8, 1];
const NOT_SERVING: &[u8] = &[8, 2];
const SERVICE_UNKNOWN: &[u8] = &[8, 3];
/// `{ready: false}`: what is not set is not sent.
const FALSE: &[u8] = &[];

/// Ends a call with a refusal: alone in the header, or behind what was answered before.
///
/// # Errors
/// The connection to the client broke.
pub async fn refuse(session: &mut Session, request: &Request, refusal: &Refusal) -> Result<()> {
    let status = trailers(refusal.reason.grpc(), Some(refusal));
    if session.response_written().is_some() {
        return session.downstream_session.write_response_trailers(status).await;
    }
    let mut head = head(request)?;
    for (name, value) in &status {
        head.insert_header(name, value)?;
    }
    header_alone(session, Box::new(head)).await
}

/// Writes a header that is the whole answer, its status included. Pingora's own way would end it
/// with a frame of its own, and then the status in the header is no gRPC status any more.
///
/// # Errors
/// The connection to the client broke.
pub async fn header_alone(session: &mut Session, head: Box<ResponseHeader>) -> Result<()> {
    match &mut *session.downstream_session {
        ServerSession::H2(stream) => stream.write_response_header(head, true),
        other => other.write_response_header(head).await,
    }
}

/// Answers the health calls for the proxy itself; `message` is the client's.
///
/// # Errors
/// The call is refused, or the connection to the client broke.
pub async fn health(
    session: &mut Session,
    request: &Request,
    message: &[u8],
    (lifecycle, snapshot): (&Lifecycle, &ArcSwap<Snapshot>),
) -> Result<(), Stop> {
    let ready = || lifecycle.is_ready(&snapshot.load());
    let service = text_field(message, 1).ok().flatten().unwrap_or_default();
    let known = matches!(service, "" | INFERENCE_SERVICE);
    let answer = match request.identity.grpc {
        Some(Method::HealthWatch) => {
            return watch(session, request, known, (lifecycle, snapshot)).await;
        }
        Some(Method::HealthCheck) if !known => {
            return Err(Refusal::new(Reason::ModelNotFound, "unknown service").into());
        }
        Some(Method::HealthCheck) if !ready() => NOT_SERVING,
        Some(Method::ServerReady) if !ready() => FALSE,
        _ => SERVING,
    };
    session.write_response_header(Box::new(head(request)?), false).await?;
    session.write_response_body(Some(framed(answer)), false).await?;
    session.downstream_session.write_response_trailers(trailers(Code::Ok, None)).await?;
    Ok(())
}

/// The status now and whenever it changes, until the client leaves or the proxy does.
async fn watch(
    session: &mut Session,
    request: &Request,
    known: bool,
    (lifecycle, snapshot): (&Lifecycle, &ArcSwap<Snapshot>),
) -> Result<(), Stop> {
    session.write_response_header(Box::new(head(request)?), false).await?;
    let mut last = None;
    loop {
        let ready = lifecycle.is_ready(&snapshot.load());
        if last != Some(ready) && (known || last.is_none()) {
            let status = if ready { SERVING } else { NOT_SERVING };
            let status = if known { status } else { SERVICE_UNKNOWN };
            session.write_response_body(Some(framed(status)), false).await?;
            last = Some(ready);
        }
        let late = request.time_left().is_some_and(|left| left.is_zero());
        if late || lifecycle.is_draining() {
            return Err(Stop::Refused(if late {
                Refusal::new(Reason::DeadlineExceeded, "the call's own deadline")
            } else {
                Refusal::new(Reason::Draining, "the proxy is shutting down")
            }));
        }
        let step = request.time_left().map_or(WATCH_STEP, |left| left.min(WATCH_STEP));
        tokio::select! {
            () = sleep(step) => {}
            // With the message complete this resolves only if the client leaves.
            left = session.downstream_session.read_body_or_idle(true) => return Ok(left.map(|_| ())?),
        }
    }
}

fn head(request: &Request) -> Result<ResponseHeader> {
    let mut head = ResponseHeader::build(StatusCode::OK, Some(6))?;
    head.insert_header(http::header::CONTENT_TYPE, CONTENT_TYPE)?;
    head.insert_header(header::REQUEST_ID, request.identity.request_id.as_str())?;
    Ok(head)
}

fn trailers(code: Code, refusal: Option<&Refusal>) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(3);
    trailers.insert(header::GRPC_STATUS, code.value());
    if let Some(refusal) = refusal {
        trailers.insert(header::GRPC_MESSAGE, grpc::encode_message(&refusal.message));
        trailers.insert(header::REASON, HeaderValue::from_static(refusal.reason.code()));
    }
    trailers
}

fn framed(message: &[u8]) -> Bytes {
    grpc::frame(message.len(), |out| out.extend_from_slice(message))
}
