//! The stages on Pingora's phases: one call a phase, nothing decided here.

use crate::http::attempts;
use crate::http::forward::{self, streamed};
use crate::http::pipeline::{self, Passed};
use crate::http::request::Request;
use crate::http::respond;
use crate::http::services::Services;
use crate::http::stage::Stop;
use crate::lifecycle::Lifecycle;
use crate::telemetry::observe::{Observer, observe};
use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, Method};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Digest;
use pingora::proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, Result};
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// Seconds that a client's idle connection is kept.
pub(crate) const KEEPALIVE_SECONDS: u64 = 60;
/// Time that one write to the client's connection may take.
pub(crate) const MAX_WRITE_STALL: Duration = Duration::from_secs(30);

/// The proxy of one process; every listener has a clone.
#[derive(Clone)]
pub struct Proxy {
    /// Parts of the process that stages use.
    pub services: Services,
    /// Metrics and access log.
    pub observer: Arc<Observer>,
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = Request;

    fn new_ctx(&self) -> Request {
        Request::new(self.services.present.load_full())
    }

    async fn early_request_filter(
        &self,
        session: &mut Session,
        request: &mut Request,
    ) -> Result<()> {
        request.in_flight = Some(self.services.lifecycle.enter());
        prepare(session, &self.services.lifecycle);
        Ok(())
    }

    async fn request_filter(&self, session: &mut Session, request: &mut Request) -> Result<bool> {
        let refusal = match pipeline::run(&self.services, session, request).await {
            Ok(Passed::Piped) => return Ok(false),
            Ok(Passed::Answered) => return Ok(true),
            Err(Stop::Broken(error)) => return Err(error),
            Err(Stop::Refused(refusal)) => refusal,
        };
        // Attempts that were under way are over, which is no endpoint's fault.
        attempts::abandon(request);
        request.refusal = Some(refusal.clone());
        let most = request.snapshot.config.limits.stall_timeout;
        // A client that does not read its refusal learns it from the end of the connection.
        match timeout(most, respond::refuse(session, request, &refusal)).await {
            Ok(refused) => refused.map(|()| true),
            Err(_) => Error::e_explain(ErrorType::WriteTimedout, "a refusal is not read"),
        }
    }

    async fn upstream_peer(
        &self,
        session: &mut Session,
        request: &mut Request,
    ) -> Result<Box<HttpPeer>> {
        let config = Arc::clone(&request.snapshot.config);
        streamed::peer(session, request, &config.limits).await
    }

    fn fail_to_connect(
        &self,
        _: &mut Session,
        _: &HttpPeer,
        request: &mut Request,
        error: Box<Error>,
    ) -> Box<Error> {
        streamed::connect_failed(request, error)
    }

    async fn upstream_request_filter(
        &self,
        _: &mut Session,
        head: &mut RequestHeader,
        request: &mut Request,
    ) -> Result<()> {
        streamed::request_header(request, head)
    }

    async fn request_body_filter(
        &self,
        _: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        request: &mut Request,
    ) -> Result<()> {
        let config = Arc::clone(&request.snapshot.config);
        let bytes = body.as_ref().map_or(0, Bytes::len);
        streamed::request_body(request, bytes, end, &config.limits)?;
        // Pingora would write an empty last piece as a chunk, and so end the body twice: an HTTP/2
        // client may send its end in a frame of its own.
        if end && body.as_ref().is_some_and(Bytes::is_empty) {
            *body = None;
        }
        Ok(())
    }

    async fn connected_to_upstream(
        &self,
        _: &mut Session,
        reused: bool,
        peer: &HttpPeer,
        socket: RawFd,
        _: Option<&Digest>,
        request: &mut Request,
    ) -> Result<()> {
        streamed::connected(request, reused, peer, socket)
    }

    fn error_while_proxy(
        &self,
        peer: &HttpPeer,
        session: &mut Session,
        error: Box<Error>,
        request: &mut Request,
        reused: bool,
    ) -> Box<Error> {
        streamed::broke_off(session, request, error.more_context(format!("Peer: {peer}")), reused)
    }

    fn upstream_response_body_filter(
        &self,
        _: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        request: &mut Request,
    ) -> Result<Option<Duration>> {
        streamed::response_body(request, body, end).map(|()| None)
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        head: &mut ResponseHeader,
        request: &mut Request,
    ) -> Result<()> {
        let is_head = session.req_header().method == Method::HEAD;
        streamed::response_header(request, head, is_head)
    }

    fn upstream_response_trailer_filter(
        &self,
        _: &mut Session,
        trailers: &mut HeaderMap,
        request: &mut Request,
    ) -> Result<()> {
        forward::grpc::trailers(request, trailers, true);
        Ok(())
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        request: &mut Request,
    ) -> FailToProxy {
        let mut error_code = 0;
        if let Some(refusal) = streamed::refusal(request, error) {
            error_code = refusal.reason.status().as_u16();
            request.refusal = Some(refusal.clone());
            // Pingora closes the connection after an error; the client must be told.
            session.downstream_session.set_keepalive(None);
            if (!streamed::has_answered(session) || request.identity.grpc.is_some())
                && let Err(error) = respond::refuse(session, request, &refusal).await
            {
                tracing::debug!(%error, "the client left before the refusal");
            }
        }
        FailToProxy { error_code, can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, request: &mut Request) {
        observe(&self.observer, session, request, error);
    }

    fn suppress_proxy_warn_log(
        &self,
        _: &Session,
        _: &Request,
        _: &Error,
        _: ProxyWarnLogContext,
    ) -> bool {
        true
    }

    fn suppress_error_log(&self, _: &Session, _: &Request, _: &Error) -> bool {
        true
    }
}

/// Sets what holds for every request.
fn prepare(session: &mut Session, lifecycle: &Lifecycle) {
    let downstream = &mut session.downstream_session;
    if lifecycle.is_draining() {
        // Each connection is told before it closes: no request is lost on the way out.
        downstream.set_keepalive(None);
    } else if downstream.get_keepalive().is_some() {
        // Pingora takes a client's keep-alive for permission to keep the connection forever.
        downstream.set_keepalive(Some(KEEPALIVE_SECONDS));
    }
    downstream.set_write_timeout(Some(MAX_WRITE_STALL));
}
