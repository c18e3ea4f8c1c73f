//! Connections of the admin listener.
//!
//! It must answer when the listeners of clients can't: it has places of its own, and descriptors are
//! kept for it. Clients can often reach it, too, so its requests are read by the letter and in time as
//! theirs are, and its connections are bounded and make room for each other.

use crate::admin::Admin;
use crate::connections::{Connection, Connections};
use crate::downstream::accept::{say, socket};
use crate::downstream::http1_reader::{Arrival, Http1Reader};
use crate::refusal::Refusal;
use bytes::BytesMut;
use forebay_protocol::Reason;
use pingora::apps::HttpServerApp;
use pingora::protocols::http::ServerSession;
use pingora::server::ShutdownWatch;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Connections that may be open at once: scrapers, probes and some operators.
pub const MAX_CONNECTIONS: usize = 128;
/// Time that a header may take to arrive.
const HEADER: Duration = Duration::from_secs(10);
/// Time that a connection is kept without a request.
const IDLE: Duration = Duration::from_secs(60);
/// Time that a request may take with its answer. A reload reads files, and resolves nothing.
const IN_ALL: Duration = Duration::from_secs(60);
/// Time that one read or write may take.
const MAX_WRITE_STALL: Duration = Duration::from_secs(10);

/// Takes the connections of operators.
pub struct AdminListener {
    /// The handler of requests.
    pub admin: Arc<Admin>,
    /// Open connections.
    pub connections: Arc<Connections>,
}

impl AdminListener {
    /// Takes one connection, unless all that are open are busy.
    pub fn take(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr, stop: &ShutdownWatch) {
        let (listener, stop) = (Arc::clone(self), stop.clone());
        tokio::spawn(async move { listener.connection(stream, peer, stop).await });
    }

    async fn connection(&self, stream: TcpStream, peer: SocketAddr, stop: ShutdownWatch) {
        let Some(mut connection) = self.connections.enter() else { return };
        let reader = Http1Reader::new(Box::new(socket(stream, peer)), BytesMut::new());
        self.requests(Box::new(reader), &mut connection, stop).await;
    }

    /// One request after the other.
    async fn requests(
        &self,
        mut reader: Box<Http1Reader>,
        connection: &mut Connection,
        mut stop: ShutdownWatch,
    ) {
        let waiting = connection.waiting();
        let mut idle = HEADER;
        loop {
            waiting.begins();
            let arrival = tokio::select! {
                biased;
                arrival = reader.next(idle, HEADER) => arrival,
                _ = stop.wait_for(|stop| *stop) => Arrival::Ended,
                () = connection.room_is_wanted() => Arrival::Ended,
            };
            waiting.ends();
            let begun = match arrival {
                Arrival::Request(begun) => begun,
                Arrival::Ended => return reader.farewell().await,
                Arrival::Http2 => {
                    let words =
                        "expected HTTP/1.1, found HTTP/2, which this listener does not speak";
                    let refusal = Refusal::new(Reason::InvalidRequest, words);
                    return say(reader, &refusal, "", Duration::ZERO).await;
                }
                Arrival::Refused(refusal) => {
                    return say(reader, &refusal, "", Duration::from_secs(1)).await;
                }
            };
            let mut session = ServerSession::new_http1(reader);
            session.set_read_timeout(Some(MAX_WRITE_STALL));
            session.set_write_timeout(Some(MAX_WRITE_STALL));
            session.set_pipelined_prefix(begun);
            let answered = timeout(IN_ALL, self.admin.process_new_http(session, &stop)).await;
            let Ok(Some(next)) = answered else { return };
            let (stream, _) = next.consume();
            // The reader that was passed in comes back.
            let Ok(same) = stream.into_any().downcast::<Http1Reader>() else { return };
            reader = same;
            reader.rests();
            idle = IDLE;
        }
    }
}
