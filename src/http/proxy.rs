//! The stages on Pingora's phases: one call a phase, nothing decided here.

use crate::body_memory::Account;
use crate::downstream::request_head;
use crate::http::admit::admit;
use crate::http::forward::{self, buffered, streamed};
use crate::http::grpc;
use crate::http::receive::{self, Received};
use crate::http::request::{ForwardMode, Request};
use crate::http::respond;
use crate::http::{identify, route::route, variant};
use crate::lifecycle::Lifecycle;
use crate::pool::Snapshot;
use crate::refusal::Refusal;
use crate::telemetry::observe::{Observer, observe};
use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use forebay_protocol::Reason;
use forebay_protocol::oip::Call;
use http::{HeaderMap, Method, Version};
use pingora::connectors::http::Connector;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Digest;
use pingora::proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, Result};
use std::ops::ControlFlow;
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
    /// The present picture of configuration and fleet.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// Connections to endpoints, for requests that are held.
    pub connector: Arc<Connector>,
    /// Whether the process is on its way out, and what is in flight.
    pub lifecycle: Arc<Lifecycle>,
    /// Metrics and access log.
    pub observer: Arc<Observer>,
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = Request;

    fn new_ctx(&self) -> Request {
        Request::new(self.snapshot.load_full())
    }

    async fn early_request_filter(
        &self,
        session: &mut Session,
        request: &mut Request,
    ) -> Result<()> {
        request.in_flight = Some(self.lifecycle.enter());
        prepare(session, &self.lifecycle);
        Ok(())
    }

    async fn request_filter(&self, session: &mut Session, request: &mut Request) -> Result<bool> {
        let snapshot = Arc::clone(&request.snapshot);
        if self.stages(session, request, &snapshot).await?.is_continue() {
            return Ok(false);
        }
        if let Some(refusal) = request.refusal.clone() {
            let refused = respond::refuse(session, request, &refusal);
            // A client that does not read its refusal learns it from the end of the connection.
            return match timeout(snapshot.config.limits.stall_timeout, refused).await {
                Ok(refused) => refused.map(|()| true),
                Err(_) => Error::e_explain(ErrorType::WriteTimedout, "a refusal is not read"),
            };
        }
        Ok(true)
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
        session: &mut Session,
        reused: bool,
        peer: &HttpPeer,
        socket: RawFd,
        _: Option<&Digest>,
        request: &mut Request,
    ) -> Result<()> {
        streamed::connected(session, request, reused, peer, socket)
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
        _: &mut Option<Bytes>,
        end: bool,
        request: &mut Request,
    ) -> Result<Option<Duration>> {
        streamed::response_body(request, end).map(|()| None)
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

impl Proxy {
    /// Everything before the pipe. `Continue`: go on into it. `Break`: the request is answered, or
    /// refused in `request.refusal`.
    async fn stages(
        &self,
        session: &mut Session,
        request: &mut Request,
        snapshot: &Snapshot,
    ) -> Result<ControlFlow<()>> {
        let head = session.req_header();
        let path = head.uri.path();
        let (method, version) = (&head.method, head.version);
        if let Err(message) = request.identity.read(method, version, path, &head.headers) {
            request.refusal = Some(Refusal::new(Reason::InvalidRequest, message));
            return Ok(ControlFlow::Break(()));
        }
        if version == Version::HTTP_2
            && let Err(refusal) = request_head::check_http2(head)
        {
            request.refusal = Some(refusal);
            // It may be long, and the answer may be waited for.
            forget_fields(session.req_header_mut());
            return Ok(ControlFlow::Break(()));
        }
        if let Some(Call::ServerLive | Call::ServerReady) = request.identity.call {
            let ready = self.lifecycle.is_ready(snapshot);
            respond::health(session, request, ready).await?;
            return Ok(ControlFlow::Break(()));
        }
        let address = session.client_addr().and_then(|address| address.as_inet());
        let limits = &snapshot.config.limits;
        let header = limits.client_header.as_ref();
        let headers = &session.req_header().headers;
        request.identity.client = identify::client(address, headers, header);
        let account = Account::new(self.lifecycle.memory(), request.identity.client, limits);
        let received = match self.message(session, request, snapshot, &account).await? {
            ControlFlow::Continue(received) => received,
            ControlFlow::Break(()) => return Ok(ControlFlow::Break(())),
        };
        let head = session.req_header();
        let path = head.uri.path();
        let Some(route) = route(&snapshot.config, &request.identity, path) else {
            request.refusal = Some(no_route(request, path));
            return Ok(ControlFlow::Break(()));
        };
        let draw = fastrand::u32(..);
        let target = match variant::choose(snapshot, route, &request.identity, draw) {
            Ok(target) => target,
            Err(refusal) => {
                request.refusal = Some(refusal);
                return Ok(ControlFlow::Break(()));
            }
        };
        request.priority = request.identity.priority.unwrap_or(target.route.priority);
        request.key = identify::key(&target.pool.config, &request.identity, &head.headers);
        request.target = Some(target.clone());
        let mode = match admit(request, limits, target.route.deadline, &account) {
            Ok(mode) => mode,
            Err(refusal) => {
                request.refusal = Some(refusal);
                return Ok(ControlFlow::Break(()));
            }
        };
        request.mode = Some(mode);
        if mode == ForwardMode::Streamed {
            session.downstream_session.set_read_timeout(Some(limits.body_timeout));
            if request.identity.upgrade {
                session.downstream_session.set_write_timeout(Some(limits.stall_timeout));
            }
            return Ok(ControlFlow::Continue(()));
        }
        let with = (&*self.connector, limits);
        buffered::forward(session, request, &target, with, &account, received).await?;
        Ok(ControlFlow::Break(()))
    }

    /// Receives the message of a gRPC call that the proxy has to look into. `Break`: that was all,
    /// the call is answered, or refused in `request.refusal`.
    async fn message(
        &self,
        session: &mut Session,
        request: &mut Request,
        snapshot: &Snapshot,
        account: &Account,
    ) -> Result<ControlFlow<(), Option<Bytes>>> {
        let method = request.identity.grpc;
        let Some(method) = method.filter(|method| method.is_infer() || method.is_health()) else {
            return Ok(ControlFlow::Continue(None));
        };
        let limits = &snapshot.config.limits;
        let received = if method.is_health() {
            receive::health_message(session, request, limits, account).await
        } else {
            receive::receive(session, request, limits, account).await.map(Received::whole)
        };
        let identified = received.and_then(|body| {
            let message = grpc::identify(request, &body)?;
            Ok((body, message))
        });
        match identified {
            Ok((body, _)) if method.is_infer() => Ok(ControlFlow::Continue(Some(body))),
            Ok((_, message)) => {
                request.deadline = request.identity.deadline.map(|asked| request.arrived + asked);
                let state = (&*self.lifecycle, &*self.snapshot);
                respond::grpc::health(session, request, &message, state).await?;
                Ok(ControlFlow::Break(()))
            }
            Err(refusal) => {
                request.refusal = Some(refusal);
                Ok(ControlFlow::Break(()))
            }
        }
    }
}

/// Sets what holds for every request.
fn prepare(session: &mut Session, lifecycle: &Lifecycle) {
    let downstream = &mut session.downstream_session;
    if lifecycle.is_draining() {
        // Each connection is told before it closes: no request is lost on the way out.
        downstream.set_keepalive(None);
    } else if downstream.get_keepalive().is_some() {
        // Pingora takes a client's wish to be kept for a wish to be kept for ever.
        downstream.set_keepalive(Some(KEEPALIVE_SECONDS));
    }
    downstream.set_write_timeout(Some(MAX_WRITE_STALL));
}

fn forget_fields(head: &mut RequestHeader) {
    let names: Vec<_> = head.headers.keys().cloned().collect();
    for name in &names {
        head.remove_header(name);
    }
}

fn no_route(request: &Request, path: &str) -> Refusal {
    /// The client knows its own path; a long one need not come back whole.
    const MAX_SHOWN: usize = 200;
    let path: String = path.chars().take(MAX_SHOWN).collect();
    let message = match &request.identity.model {
        Some(model) => format!("no route for model {model:?} at {path:?}"),
        None => format!("no route for {path:?}"),
    };
    Refusal { retry_after: None::<Duration>, ..Refusal::new(Reason::NoRoute, message) }
}
