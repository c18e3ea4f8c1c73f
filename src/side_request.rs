//! Requests that the proxy makes itself, beside those that it passes on: probes and polls of endpoints, the
//! demo's questions to its workers, an operator's commands to the admin listener.
//!
//! All of them are small and are answered in one piece, so an answer is read up to a bound and handed over whole.
//! The caller bounds the time.

use bytes::Bytes;
use http::{Method, StatusCode};
use pingora::connectors::ConnectorOptions;
use pingora::connectors::http::Connector;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType};
use std::sync::LazyLock;
use std::time::Duration;

/// Maximum number of idle connections that are kept, over all endpoints; further ones are opened for each
/// request.
const MAX_IDLE_CONNECTIONS: usize = 4096;
/// Time that an idle connection is kept: longer than most intervals, shorter than most servers keep
/// theirs.
const MAX_IDLE_TIME: Duration = Duration::from_secs(4);

/// A request over HTTP/1.1.
#[derive(Debug, Clone)]
pub struct SideRequest<'a> {
    /// Its method.
    pub method: Method,
    /// Path and query.
    pub path: &'a str,
    /// The value of the header `host`.
    pub host: &'a str,
    /// Its body.
    pub body: &'a [u8],
    /// Longest body of an answer that is read, in bytes.
    pub max_body: usize,
    /// The connection that it goes over.
    pub connection: Connection,
}

/// The connection that a request goes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connection {
    /// One of its own, which is closed afterwards: it shows whether anybody listens.
    New,
    /// One that is kept, if there is one: it costs the server less. If the server closed it meanwhile, the
    /// request is sent once more, so it must be one that may arrive twice.
    Pooled,
}

/// A whole answer.
#[derive(Debug)]
pub struct Response {
    /// Its status and headers.
    pub head: ResponseHeader,
    /// `None`: it is longer than the bound.
    pub body: Option<Vec<u8>>,
}

impl Response {
    /// Is its status 200?
    pub fn is_ok(&self) -> bool {
        self.head.status == StatusCode::OK
    }
}

impl SideRequest<'_> {
    /// Sends it to `peer`, whose options bound the time for the connection, and reads the answer.
    ///
    /// # Errors
    /// No connection, one that breaks, or an answer that is not HTTP.
    pub async fn send(&self, peer: &HttpPeer) -> pingora::Result<Response> {
        static CONNECTOR: LazyLock<Connector> =
            LazyLock::new(|| Connector::new(Some(ConnectorOptions::new(MAX_IDLE_CONNECTIONS))));
        let mut fresh = peer.clone();
        // A key of its own: no kept connection has it.
        fresh.group_key = u64::MAX;
        let chosen = if self.connection == Connection::New { &fresh } else { peer };
        let mut outcome = self.exchange(&CONNECTOR, chosen).await;
        if let Err((_, true)) = outcome {
            // The server closed a connection that was idle, which is its right.
            let again = SideRequest { connection: Connection::New, ..self.clone() };
            outcome = again.exchange(&CONNECTOR, &fresh).await;
        }
        outcome.map_err(|(error, _)| error)
    }

    /// Says beside an error whether the connection was a kept one.
    async fn exchange(
        &self,
        connector: &Connector,
        peer: &HttpPeer,
    ) -> Result<Response, (Box<Error>, bool)> {
        let (mut session, kept) =
            connector.get_http_session(peer).await.map_err(|error| (error, false))?;
        let exchange = async {
            session.write_request_header(Box::new(self.head()?)).await?;
            if !self.body.is_empty() {
                let body = Bytes::copy_from_slice(self.body);
                session.write_request_body(body, true).await?;
            }
            session.finish_request_body().await?;
            session.read_response_header().await?;
            let mut body = Some(Vec::new());
            while let Some(chunk) = session.read_response_body().await? {
                body = body.filter(|read| read.len() + chunk.len() <= self.max_body);
                let Some(body) = &mut body else { break };
                body.extend_from_slice(&chunk);
            }
            let head = session.response_header().cloned();
            let head = head
                .ok_or_else(|| Error::explain(ErrorType::ReadError, "the answer has no header"))?;
            Ok(Response { head, body })
        };
        let response = exchange.await.map_err(|error| (error, kept))?;
        if self.connection == Connection::Pooled && response.body.is_some() {
            connector.release_http_session(session, peer, Some(MAX_IDLE_TIME)).await;
        } else {
            session.shutdown().await;
        }
        Ok(response)
    }

    fn head(&self) -> pingora::Result<RequestHeader> {
        let mut head = RequestHeader::build(self.method.clone(), self.path.as_bytes(), Some(3))?;
        head.insert_header("host", self.host)?;
        // Without it, some servers expect a body of a POST.
        if self.method != Method::GET {
            head.insert_header("content-length", self.body.len())?;
        }
        if self.connection == Connection::New {
            head.insert_header("connection", "close")?;
        }
        Ok(head)
    }
}
