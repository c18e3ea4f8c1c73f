//! A response's body until its client has read it.
//!
//! It is given out in pieces, and a piece only when the one before has found room with the client or
//! in the socket: so what a client leaves unread can be told and bounded.

use super::record::InFlight;
use crate::memory::Share;
use axum::body::Body;
use bytes::Bytes;
use forebay_process::places::Place;
use http_body::{Frame, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

/// Longest piece, in bytes.
const PIECE: usize = 64 << 10;

/// The body of a response.
pub(crate) struct Answer {
    body: Body,
    /// The rest of a frame that was longer than a piece.
    rest: Bytes,
    /// Identity in the connection's record.
    number: u64,
    in_flight: InFlight,
    /// Bytes that the record counts for it.
    counted: usize,
    _share: Share,
    _place: Place,
}

impl Answer {
    /// `share` accounts for the bytes that it has, as far as that is known; `place` is that of its request.
    pub(crate) fn new(
        body: Body,
        in_flight: InFlight,
        (counted, share): (usize, Share),
        place: Place,
    ) -> Self {
        let number = in_flight.record().answer(counted, Instant::now());
        let rest = Bytes::new();
        Self { body, rest, number, in_flight, counted, _share: share, _place: place }
    }

    fn took(&mut self, bytes: usize, waits: Option<Instant>) {
        let bytes = bytes.min(self.counted);
        self.counted -= bytes;
        self.in_flight.record().took(self.number, bytes, waits);
    }

    /// The first piece of what is left.
    fn piece(&mut self) -> Option<Frame<Bytes>> {
        let piece = self.rest.split_to(PIECE.min(self.rest.len()));
        (!piece.is_empty()).then(|| Frame::data(piece))
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.took(self.counted, None);
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        let mut next = this.piece();
        if next.is_none() {
            let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) else {
                // It is the worker that the client waits for.
                this.took(0, None);
                return Poll::Pending;
            };
            next = match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        this.rest = data;
                        // An empty frame is passed on as it is.
                        Some(this.piece().unwrap_or_else(|| Frame::data(Bytes::new())))
                    }
                    Err(frame) => Some(frame),
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => None,
            };
        }
        let length = next.as_ref().and_then(Frame::data_ref).map_or(0, Bytes::len);
        this.took(length, next.is_some().then(Instant::now));
        Poll::Ready(next.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, inner) = (self.rest.len() as u64, self.body.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower() + rest);
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}
