//! HTTP/2 from clients: held to a budget, and completely observed.
//!
//! Pingora hands over requests, and only those that its HTTP/2 library understands. Other frames of a client
//! cost CPU all the same, and the library's own answers and resets would be neither counted nor logged.
//! [`Http2`] is put in front of it: see [`forebay_http2guard`].

use crate::connections::Connection;
use crate::downstream::http1_reader::Http1Reader;
use crate::refusal::Refusal;
use crate::telemetry::observe::{Observer, RejectedConnection, record_rejected_connection};
use bytes::Bytes;
use forebay_http2guard::{Event, Guarded};
use forebay_process::limit::CLIENT;
use forebay_protocol::{Reason, metric};
use pingora::protocols::http::v2::server::{H2Options, default_h2_options};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, ReadBuf};

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
pub struct Ended(Arc<OnceLock<Reason>>);

impl Ended {
    /// Notes it where the connection is counted.
    pub fn note(&self, connection: &mut Connection) {
        if let Some(reason) = self.0.get() {
            connection.ended(*reason);
        }
    }
}

impl Http2 {
    /// A connection of which nothing has been given to the HTTP/2 library yet.
    pub fn new(
        mut reader: Box<Http1Reader>,
        connection: &Connection,
        observer: Arc<Observer>,
        header_timeout: Duration,
    ) -> (Self, Ended) {
        let listener = Arc::clone(&connection.listener().listener);
        let (client, tls) = (reader.address(), reader.tls());
        let ended = Ended::default();
        let note = ended.clone();
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
                let _ = note.0.set(refusal.reason);
            }
            let origin =
                RejectedConnection { client: client.clone(), tls: tls.as_deref(), head: &[] };
            record_rejected_connection(&observer, &origin, &refusal);
        };
        reader.opens();
        let guarded = Guarded::new(reader, Bytes::new(), Arc::new(told));
        (Self(guarded.with_header_timeout(header_timeout)), ended)
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

crate::downstream::io::forward_writes!(Http2, 0);
crate::downstream::io::forward_questions!(Http2);
