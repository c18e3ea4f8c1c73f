//! HTTP/2 from clients: held to a budget, and completely observed.
//!
//! Pingora hands over requests, and only those that its HTTP/2 library understands. Other frames of a client
//! cost CPU all the same, and the library's own answers and resets would be neither counted nor logged.
//! [`Http2`] is put in front of it: see [`forebay_http2guard`].
//!
//! [`serve`] does the work of Pingora's own loop in less memory: an idle connection holds its future, and
//! thousands may be idle at a time.

use crate::body_memory::Unread;
use crate::connections::Connection;
use crate::downstream::http1_reader::Http1Reader;
use crate::http::proxy::Proxy;
use crate::refusal::Refusal;
use crate::telemetry::observe::{Observer, RejectedConnection, record_rejected_connection};
use bytes::Bytes;
use forebay_http2guard::{Event, Guarded};
use forebay_process::limit::CLIENT;
use forebay_protocol::{Reason, metric};
use pingora::apps::HttpServerApp;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::{
    H2Accept, H2Options, HttpSession, default_h2_options, handshake,
};
use pingora::protocols::{Digest, GetProxyDigest, GetSocketDigest, GetTimingDigest, Ssl};
use pingora::proxy::HttpProxy;
use pingora::server::ShutdownWatch;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::Notify;

/// Header list that the library decodes. Eight times what a request may have, so that a longer one is still
/// refused in the usual form; the library's own refusal is a status without a word.
const MAX_HEADER_LIST: u32 = 512 * 1024;
/// Requests that were cancelled before Pingora took them. The library's own bound of 20 ends the
/// connection of a client that cancels what it has under way while the proxy is busy; the budget
/// stops those that do nothing else.
const MAX_CANCELLED: usize = 200;
/// Bytes of a stream that the library takes before they are written to the connection. They are counted no
/// more as held, so a client with a wide window that reads nothing must not make them many.
const MAX_SEND_BUFFER: usize = 64 * 1024;
/// The error code ENHANCE_YOUR_CALM (RFC 9113, section 7).
const ENHANCE_YOUR_CALM: u32 = 11;

/// Options of the HTTP/2 library; `window`: bytes that a client may send ahead.
pub fn options(window: u32) -> H2Options {
    // From Pingora's own defaults, which bound the number of streams.
    let mut options = default_h2_options();
    options.max_header_list_size(MAX_HEADER_LIST);
    options.max_pending_accept_reset_streams(MAX_CANCELLED);
    options.max_send_buffer_size(MAX_SEND_BUFFER);
    // One stream may have all of it, and all of them no more.
    options.initial_window_size(window);
    options.initial_connection_window_size(window);
    options
}

/// A client's connection that speaks HTTP/2.
#[derive(Debug)]
pub struct Http2(Guarded<Box<Http1Reader>>);

/// Why a connection was ended, if it was.
#[derive(Debug, Clone, Default)]
pub struct EndReason(Arc<OnceLock<Reason>>);

impl EndReason {
    /// Notes it where the connection is counted.
    pub fn note(&self, connection: &mut Connection) {
        if let Some(reason) = self.0.get() {
            connection.ended(*reason);
        }
    }
}

/// Requests of one connection that the library or Pingora refused before they became any, after which the
/// connection is closed.
const MAX_MALFORMED: usize = 32;

/// Takes the requests of a connection until it ends. After `leave` it is told to go away, and ends with its last
/// request. `stop`: whether the process does.
pub async fn serve(
    stream: Box<Http2>,
    proxy: &Arc<HttpProxy<Proxy>>,
    stop: &ShutdownWatch,
    leave: &Notify,
) {
    let digest = Arc::new(Digest {
        ssl_digest: stream.get_ssl_digest(),
        timing_digest: stream.get_timing_digest(),
        proxy_digest: stream.get_proxy_digest(),
        socket_digest: stream.get_socket_digest(),
    });
    // The handshake's room is needed for a moment alone, and a name for its outcome would take room to the end.
    let Ok(mut connection) = Box::pin(handshake(stream, proxy.h2_options())).await else {
        // The client has left, or does not speak HTTP/2 after all.
        return;
    };
    let (mut is_told, mut malformed, unread) = (false, 0, Unread::default());
    loop {
        let accepted = tokio::select! {
            biased;
            () = leave.notified(), if !is_told => {
                connection.graceful_shutdown();
                is_told = true;
                continue;
            }
            // All that it remembers between two looks is in the connection, and it has much room of its own.
            accepted = poll_fn(|cx| {
                let accepted = HttpSession::from_h2_conn(&mut connection, Arc::clone(&digest));
                pin!(accepted).poll(cx)
            }) => accepted,
        };
        match accepted {
            Ok(Some(H2Accept::Session(session))) => {
                let (proxy, stop) = (Arc::clone(proxy), stop.clone());
                tokio::spawn(unread.together(async move {
                    proxy.process_new_http(ServerSession::new_http2(session), &stop).await;
                }));
            }
            Ok(Some(H2Accept::Rejected)) => malformed += 1,
            Ok(None) | Err(_) => return,
        }
        if malformed >= MAX_MALFORMED {
            return;
        }
    }
}

impl Http2 {
    /// A connection of which nothing has been given to the HTTP/2 library yet. Why it ends is noted in `ended`.
    pub fn new(
        mut reader: Box<Http1Reader>,
        connection: &Connection,
        observer: Arc<Observer>,
        (ended, header_timeout): (EndReason, Duration),
    ) -> Self {
        let listener = Arc::clone(&connection.listener().listener);
        let (client, tls) = (reader.address(), reader.tls());
        let waiting = connection.waiting();
        waiting.begins();
        let told = move |event: Event| {
            let Some(refusal) = refusal(event) else {
                return if event == Event::Busy { waiting.ends() } else { waiting.begins() };
            };
            let kind = match event {
                Event::Flood(flood) => Some(flood.as_str()),
                Event::GoneAway(ENHANCE_YOUR_CALM) => Some("library"),
                _ => None,
            };
            if let Some(kind) = kind {
                metric::proxy::HTTP2_FLOODS.with([&listener, kind]).increment(1);
                let client = client.as_deref().unwrap_or_default();
                tracing::warn!(target: CLIENT, %listener, client, kind, "{}", forebay_http2guard::FLOODED);
            }
            if matches!(event, Event::Flood(_) | Event::GoneAway(_) | Event::Late) {
                // The first is the cause.
                let _ = ended.0.set(refusal.reason);
            }
            let origin =
                RejectedConnection { client: client.clone(), tls: tls.as_deref(), head: &[] };
            record_rejected_connection(&observer, &origin, &refusal);
        };
        reader.opens();
        let guarded = Guarded::new(reader, Bytes::new(), Arc::new(told));
        Self(guarded.with_header_timeout(header_timeout))
    }

    fn inner(&self) -> &Http1Reader {
        self.0.get_ref()
    }

    fn inner_mut(&mut self) -> &mut Http1Reader {
        self.0.get_mut()
    }
}

/// The refusal for an event; `None`: nothing is wrong.
fn refusal(event: Event) -> Option<Refusal> {
    Some(match event {
        Event::Busy | Event::Idle => return None,
        Event::Flood(flood) => {
            let message =
                format!("too many HTTP/2 frames other than requests ({})", flood.as_str());
            Refusal::new(Reason::ClientFlood, message)
        }
        Event::GoneAway(ENHANCE_YOUR_CALM) => {
            Refusal::new(Reason::ClientFlood, "more HTTP/2 frames than the HTTP/2 library accepts")
        }
        Event::GoneAway(code) => {
            let message = format!("HTTP/2 connection error with code {code}");
            Refusal::new(Reason::InvalidRequest, message)
        }
        Event::Late => Refusal::new(Reason::RequestTimeout, "expected a complete header in time"),
        Event::Malformed => {
            Refusal::new(Reason::InvalidRequest, "malformed HTTP/2 request, the stream was reset")
        }
        Event::Answered(431) => Refusal::new(
            Reason::HeadersTooLarge,
            format!("expected a header list of at most {MAX_HEADER_LIST} bytes, found more"),
        ),
        Event::Answered(_) => {
            Refusal::new(Reason::InvalidRequest, "expected one authority and a valid URL path")
        }
    })
}

impl AsyncRead for Http2 {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

crate::io::forward_writes!(Http2, 0);
crate::io::forward_questions!(Http2);
