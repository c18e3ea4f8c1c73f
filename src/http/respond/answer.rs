//! Sends the client its answer, without making an endpoint wait for the client.
//!
//! If each piece of an answer were read from the endpoint once the client has taken the one before, a client
//! that does not read would keep a slot of the pool for as long as writes may take, and a hundred streams
//! with a window of zero would keep a hundred. So an answer of up to `limits.read_ahead` is read to its end
//! however slowly the client reads, as far as the client's share of the memory goes, and the slot is given
//! back when the endpoint's answer is complete. Of a longer one only little is read ahead: its endpoint has
//! to wait, and then the client has to keep a pace ([`Pace`]).
//!
//! Each piece is passed on when it comes. An answer has the request's deadline in all; one that
//! consists of events may last, as long as it is not silent.

use super::{grpc, linger};
use crate::body_memory::{Held, cost};
use crate::config::Limits;
use crate::http::attempts;
use crate::http::forward::headers::{HOP_BY_HOP, nominated, prepare_answer};
use crate::http::forward::hurry::Hurry;
use crate::http::forward::read_ahead::too_slow_reader;
use crate::http::forward::read_ahead::{Bounds, Item, Reader, Room};
use crate::http::forward::send::Unread;
use crate::http::forward::{self, refused, upload};
use crate::http::pace::{Pace, TooSlow};
use crate::http::receive::{broken_off, client_left};
use crate::http::request::Request;
use crate::http::response::BufferedResponse;
use crate::pool::connector::Connector;
use crate::refusal::Refusal;
use bytes::Bytes;
use forebay_protocol::grpc::Code;
use forebay_protocol::{Reason, header};
use futures_util::future::try_join;
use http::{HeaderMap, Method, StatusCode, Version};
use pingora::ErrorType;
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::proxy::Session;
use std::sync::Arc;
use tokio::sync::mpsc::{Receiver, Sender, UnboundedReceiver, channel, unbounded_channel};

/// Gives the client the answer; from here on it can't be taken back.
///
/// # Errors
/// The answer could not be given whole. Why is in `request.refusal`.
pub(in crate::http) async fn answer(
    session: &mut Session,
    request: &mut Request,
    response: BufferedResponse,
    unread: Option<Unread>,
    connector: &Connector,
) -> pingora::Result<()> {
    let BufferedResponse { mut head, body, trailers, held } = response;
    let snapshot = Arc::clone(&request.snapshot);
    let limits = &snapshot.config.limits;
    let is_grpc = request.identity.grpc.is_some();
    prepare_answer(&mut head, request)?;
    for name in HOP_BY_HOP.iter().chain(&nominated(&head.headers)) {
        head.remove_header(name);
    }
    if is_grpc {
        forward::grpc::note(request, &head.headers);
        if body.is_empty() && unread.is_none() && trailers.is_none() {
            return grpc::header_alone(session, head).await;
        }
    } else {
        frame(&mut head, session, unread.is_none().then_some(&body[..]))?;
    }
    if !session.downstream_session.is_body_done() {
        // The endpoint answered before it had read all of the request.
        session.downstream_session.set_keepalive(None);
    }
    let mut writer = Writer::new(session, limits, is_grpc);
    let written = match unread {
        None => writer.whole(head, body, trailers.map(|trailers| *trailers), &held).await,
        Some(unread) => {
            let response = BufferedResponse { head, body, trailers, held };
            // Most answers are whole, and their requests need not have room for this.
            Box::pin(stream(writer, request, response, unread, (connector, limits))).await
        }
    };
    match written {
        Ok(Some(trailers)) => forward::grpc::note(request, &trailers),
        Ok(None) => {}
        Err(refusal) => {
            attempts::abandon(request);
            return Err(refused(request, refusal));
        }
    }
    if !session.downstream_session.is_body_done() {
        linger(session, request).await;
    }
    Ok(())
}

/// Writes an answer while its rest is read ahead; returns the trailers.
async fn stream(
    mut writer: Writer<'_>,
    request: &mut Request,
    response: BufferedResponse,
    unread: Unread,
    (connector, limits): (&Connector, &Limits),
) -> Result<Option<HeaderMap>, Refusal> {
    let BufferedResponse { head, body, held, .. } = response;
    let Unread { mut rest, endpoint, index } = unread;
    let Some(target) = request.target.clone() else {
        return Err(Refusal::new(Reason::Internal, "a request without a route"));
    };
    let uploads = rest.unsent.take().map(|pace| {
        let left = limits.body.saturating_sub(request.bytes_in);
        writer.goes_on_to_read(pace, left)
    });
    let (queue, coming) = unbounded_channel();
    let room = Room::new(&head, limits);
    let length = body.iter().map(Bytes::len).sum();
    for chunk in body {
        let _ = queue.send(room.chunk(chunk));
    }
    let mut reader = Reader {
        target: &target,
        endpoint: &endpoint,
        connector,
        is_grpc: writer.is_grpc,
        succeeds: head.status.is_success(),
        bounds: Bounds::new(request, &target, &head),
        picked: &mut request.attempts[index],
        uploads,
        size: room.size(),
        room: &room,
        stall_timeout: limits.stall_timeout,
        hurry: Hurry::new(&writer.session.downstream_session, limits),
        length,
    };
    let reading = async {
        reader.read(rest, queue, &held).await;
        Ok(())
    };
    let writing = writer.as_it_comes(head, coming, &room, &held);
    try_join(reading, writing).await.map(|((), written)| written)
}

/// The framing of the answer for the client, independent of the endpoint's. `body`: all of it, if it was
/// read to its end.
fn frame(
    head: &mut ResponseHeader,
    session: &Session,
    body: Option<&[Bytes]>,
) -> pingora::Result<()> {
    let asked = session.req_header();
    // The endpoint's protocol version stays between it and the proxy.
    head.set_version(Version::HTTP_11);
    if head.status == StatusCode::NO_CONTENT {
        head.remove_header(&http::header::CONTENT_LENGTH);
        return Ok(());
    }
    let length = body.map(|body| body.iter().map(Bytes::len).sum::<usize>());
    let is_head = asked.method == Method::HEAD;
    // An endpoint that answers HEAD states a length without a body; where GET was asked in its place, there is one.
    if let Some(length) = length.filter(|length| is_head && *length > 0) {
        return head.insert_header(http::header::CONTENT_LENGTH, length);
    }
    let has_no_body = is_head || head.status == StatusCode::NOT_MODIFIED;
    if has_no_body || head.headers.contains_key(http::header::CONTENT_LENGTH) && body.is_none() {
        return Ok(());
    }
    match length {
        Some(length) => head.insert_header(http::header::CONTENT_LENGTH, length),
        // A client that knows no chunks reads until the connection closes.
        None if asked.version == Version::HTTP_10 => Ok(()),
        None => head.insert_header(http::header::TRANSFER_ENCODING, "chunked"),
    }
}

/// The rest of a request that is read while its answer is written.
struct Uploading {
    pieces: Sender<Bytes>,
    pace: Pace,
    /// Bytes that may still come.
    left: u64,
}

/// Writes an answer to the client as it comes.
struct Writer<'a> {
    session: &'a mut Session,
    pace: Pace,
    is_grpc: bool,
    uploading: Option<Uploading>,
}

impl<'a> Writer<'a> {
    fn new(session: &'a mut Session, limits: &Limits, is_grpc: bool) -> Self {
        Self { session, pace: Pace::new(limits), is_grpc, uploading: None }
    }

    /// Starts reading the rest of the request; it comes through the channel.
    fn goes_on_to_read(&mut self, pace: Pace, left: u64) -> Receiver<Bytes> {
        let (pieces, uploads) = channel(1);
        self.uploading = Some(Uploading { pieces, pace, left });
        uploads
    }

    /// Writes an answer that is complete; returns the trailers.
    async fn whole(
        &mut self,
        head: Box<ResponseHeader>,
        body: Vec<Bytes>,
        trailers: Option<HeaderMap>,
        held: &Held,
    ) -> Result<Option<HeaderMap>, Refusal> {
        self.header(head).await?;
        let ends = !self.is_grpc && trailers.is_none() && !body.is_empty();
        let last = if ends { body.len() } else { usize::MAX };
        for (number, bytes) in body.into_iter().enumerate() {
            self.chunk(bytes, number + 1 == last, held).await?;
        }
        if ends { Ok(None) } else { self.end(trailers).await }
    }

    /// Writes an answer while it is read; returns the trailers.
    async fn as_it_comes(
        &mut self,
        head: Box<ResponseHeader>,
        mut coming: UnboundedReceiver<Item>,
        room: &Room,
        held: &Held,
    ) -> Result<Option<HeaderMap>, Refusal> {
        self.header(head).await?;
        let mut next = None;
        loop {
            let item = match next.take() {
                Some(item) => item,
                None => self.next(&mut coming).await?,
            };
            match item {
                Item::Chunk(bytes, takes) => {
                    next = coming.try_recv().ok();
                    let is_last = !self.is_grpc && matches!(next, Some(Item::End(None)));
                    self.chunk(bytes, is_last, held).await?;
                    room.give_back(takes);
                    if is_last {
                        return Ok(None);
                    }
                }
                Item::End(trailers) => return self.end(trailers).await,
                Item::Failed(refusal) => return Err(refusal),
            }
        }
    }

    /// The next item. While there is none, what was written is flushed, the rest of the request is read,
    /// and it is watched if the client leaves.
    async fn next(&mut self, coming: &mut UnboundedReceiver<Item>) -> Result<Item, Refusal> {
        let gone = || Refusal::new(Reason::Internal, "the reader of an answer is gone");
        while let Some(uploading) = &mut self.uploading {
            let downstream = &mut self.session.downstream_session;
            let goes_on = tokio::select! {
                biased;
                item = coming.recv() => return item.ok_or_else(gone),
                goes_on = uploading.piece(downstream) => goes_on?,
            };
            if !goes_on {
                self.uploading = None;
            }
        }
        if !self.session.downstream_session.is_body_done() {
            return coming.recv().await.ok_or_else(gone);
        }
        tokio::select! {
            biased;
            item = coming.recv() => item.ok_or_else(gone),
            left = self.session.downstream_session.read_body_or_idle(true) => Err(match left {
                Err(error) => client_left(&error),
                Ok(_) => Refusal::new(Reason::ClientClosed, "the client sent bytes that are no request"),
            }),
        }
    }

    async fn header(&mut self, head: Box<ResponseHeader>) -> Result<(), Refusal> {
        let written = self.session.write_response_header(head, false);
        taken(self.pace.wait(written).await)
    }

    async fn chunk(&mut self, bytes: Bytes, is_last: bool, held: &Held) -> Result<(), Refusal> {
        let length = bytes.len();
        if self.session.downstream_session.is_http2() && length > 0 {
            // The library keeps it until the client takes it.
            let charged = self.pace.wait(held.charge(bytes)).await;
            let written = match charged {
                Ok(charged) => {
                    let written = self.session.write_response_body(Some(charged), is_last);
                    self.pace.wait(written).await
                }
                Err(too_slow) => Err(too_slow),
            };
            taken(written)?;
            self.pace.moved(length);
            return Ok(());
        }
        let written = self.session.write_response_body(Some(bytes), is_last);
        taken(self.pace.wait(written).await)?;
        self.pace.moved(length);
        held.shrink(cost(length));
        Ok(())
    }

    async fn end(&mut self, trailers: Option<HeaderMap>) -> Result<Option<HeaderMap>, Refusal> {
        let unknown = || HeaderMap::from_iter([(header::GRPC_STATUS, Code::Unknown.value())]);
        let downstream = &mut self.session.downstream_session;
        let mut trailers = match trailers {
            // Without them the client would not know whether it has all.
            None if self.is_grpc => unknown(),
            Some(trailers) if downstream.is_http2() => trailers,
            _ => {
                let written = self.session.write_response_body(None, true);
                taken(self.pace.wait(written).await)?;
                return Ok(None);
            }
        };
        // The report speaks to this proxy, which has taken it in.
        trailers.remove(header::LOAD_REPORT);
        trailers.remove(header::LOAD_REPORT_BIN);
        taken(self.pace.wait(downstream.write_response_trailers(trailers.clone())).await)?;
        Ok(Some(trailers))
    }
}

impl Uploading {
    /// Reads one piece; whether more is to come.
    async fn piece(&mut self, downstream: &mut ServerSession) -> Result<bool, Refusal> {
        let Ok(permit) = self.pieces.reserve().await else {
            // The endpoint wants no more.
            return Ok(false);
        };
        let read = self.pace.wait(downstream.read_request_body()).await;
        let read = read.map_err(|TooSlow| upload::too_slow())?.map_err(broken_off)?;
        let Some(piece) = read else { return Ok(false) };
        let length = piece.len() as u64;
        self.left = self.left.checked_sub(length).ok_or_else(|| {
            Refusal::new(Reason::BodyTooLarge, "the rest of the body is longer than the limit")
        })?;
        self.pace.moved(piece.len());
        permit.send(piece);
        Ok(true)
    }
}

/// The result of a write to the client.
fn taken(written: Result<pingora::Result<()>, TooSlow>) -> Result<(), Refusal> {
    match written {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) if *error.etype() != ErrorType::WriteTimedout => Err(client_left(&error)),
        Ok(Err(_)) | Err(TooSlow) => Err(too_slow_reader()),
    }
}
