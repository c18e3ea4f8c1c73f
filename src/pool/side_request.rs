//! One bounded GET to an endpoint, out of band.

use http::StatusCode;
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

/// An answer in whole.
pub(super) struct Asked {
    pub(super) head: ResponseHeader,
    /// `None`: it is longer than the limit.
    pub(super) body: Option<Vec<u8>>,
}

/// Connection which connection to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Connection {
    /// One of its own: it shows whether anybody listens.
    New,
    /// One that is kept, if there is one: it costs the endpoint less.
    Pooled,
}

/// BindRequest `path`; reads at most `limit` bytes of the body.
pub(super) async fn get(
    peer: &HttpPeer,
    path: &str,
    host: &str,
    limit: usize,
    connection: Connection,
) -> pingora::Result<Asked> {
    static CONNECTOR: LazyLock<Connector> =
        LazyLock::new(|| Connector::new(Some(ConnectorOptions::new(MAX_IDLE_CONNECTIONS))));
    let mut fresh = peer.clone();
    // A key of its own: no kept connection has it.
    fresh.group_key = u64::MAX;
    let chosen = if connection == Connection::New { &fresh } else { peer };
    let mut asked = exchange(&CONNECTOR, chosen, path, host, limit, connection).await;
    if let Err((_, true)) = asked {
        // The endpoint closed a connection that was idle, which is its right.
        asked = exchange(&CONNECTOR, &fresh, path, host, limit, Connection::New).await;
    }
    asked.map_err(|(error, _)| error)
}

/// Says beside an error whether the connection was a kept one.
async fn exchange(
    connector: &Connector,
    peer: &HttpPeer,
    path: &str,
    host: &str,
    limit: usize,
    connection: Connection,
) -> Result<Asked, (Box<Error>, bool)> {
    let (mut session, kept) =
        connector.get_http_session(peer).await.map_err(|error| (error, false))?;
    let exchange = async {
        let mut request = RequestHeader::build("GET", path.as_bytes(), Some(2))?;
        request.insert_header("host", host)?;
        if connection == Connection::New {
            request.insert_header("connection", "close")?;
        }
        session.write_request_header(Box::new(request)).await?;
        session.finish_request_body().await?;
        session.read_response_header().await?;
        let mut body = Some(Vec::new());
        while let Some(chunk) = session.read_response_body().await? {
            body = body.filter(|read| read.len() + chunk.len() <= limit);
            let Some(body) = &mut body else { break };
            body.extend_from_slice(&chunk);
        }
        let head = session.response_header().cloned();
        let head =
            head.ok_or_else(|| Error::explain(ErrorType::ReadError, "the answer has no header"))?;
        Ok(Asked { head, body })
    };
    let asked = exchange.await.map_err(|error| (error, kept))?;
    if connection == Connection::Pooled && asked.body.is_some() {
        connector.release_http_session(session, peer, Some(MAX_IDLE_TIME)).await;
    } else {
        session.shutdown().await;
    }
    Ok(asked)
}

impl Asked {
    pub(super) fn is_ok(&self) -> bool {
        self.head.status == StatusCode::OK
    }
}
