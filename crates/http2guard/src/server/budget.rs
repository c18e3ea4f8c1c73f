//! The budget of frames that bring no answer further, and how requests and data refill it.
//!
//! A server is charged for what asks for work and is neither an answer nor the acknowledgement of one: control
//! frames, types that are not defined, DATA without content, frames on streams that are not open. Requests
//! and the data that the client sends refill the account, because servers answer them with WINDOW_UPDATE and
//! measure the bandwidth with PING. The content of answers is free, in pieces of any size.
//!
//! Two things are exact, because the client has said what is allowed: the windows, and the bytes that a server
//! may still have under way on a stream that the client has reset. Data beyond a window end the
//! connection, and data beyond the late bytes are charged.

use crate::budget::{
    Account, CONTROL_BURST, CONTROL_PER_REQUEST, CONTROL_RATE, EMPTY_DATA, Flood, UNIT,
    UPLOAD_PER_CONTROL,
};
use crate::frame::{Frame, kind};
use std::time::{Duration, Instant};

/// The window of a stream and of the connection before anything is said of it (RFC 9113, section 6.9.2).
const FIRST_WINDOW: i64 = 65_535;
/// Header blocks of one stream: 16 interim answers (1xx), the final one and the trailers. The HTTP/2 library
/// queues them until the request's task looks, so they must not be many.
const MAX_BLOCKS: u8 = 18;
/// Bytes of all header blocks of one stream as they are sent: as many as a request's may have. One byte can
/// stand for a field of thousands, so they must not be many either.
const MAX_HEADER_BYTES: u32 = 64 * 1024;
/// A longer frame costs one unit more for each so many bytes.
const BYTES_PER_UNIT: u32 = 1024;
/// The flag ACK of SETTINGS and PING.
const ACK: u8 = 0x1;

/// An answer that has not ended.
#[derive(Debug)]
struct Open {
    stream: u32,
    /// Bytes that the server may still send on it.
    window: i64,
    /// Header blocks that came.
    blocks: u8,
    /// Bytes in them.
    header_bytes: u32,
}

/// The header block that came last, which may go on.
#[derive(Debug, Default)]
struct Block {
    /// Bytes of its stream's header blocks so far.
    header_bytes: u32,
    /// Whether its stream was open when it began.
    is_wanted: bool,
}

/// The budget of one connection.
#[derive(Debug)]
pub struct ServerBudget {
    control: Account,
    refilled: Instant,
    /// In the order of their numbers, which is that in which they began.
    open: Vec<Open>,
    last_stream: u32,
    stream_window: i64,
    /// Bytes that the server may still send on all streams.
    window: i64,
    /// The most that it was: no more can be under way at a time.
    widest: i64,
    /// Bytes that may still come on streams that the client has reset.
    late: i64,
    block: Block,
}

impl ServerBudget {
    /// The budget of a connection that begins. `window`: bytes that the client lets the server send ahead on
    /// one stream.
    pub fn new(window: u32, now: Instant) -> Self {
        Self {
            control: Account::new(CONTROL_BURST, CONTROL_RATE),
            refilled: now,
            open: Vec::new(),
            last_stream: 0,
            // Until the server knows of another window it uses the first one.
            stream_window: i64::from(window).max(FIRST_WINDOW),
            window: FIRST_WINDOW,
            widest: FIRST_WINDOW,
            late: 0,
            block: Block::default(),
        }
    }

    /// The server sent a frame.
    ///
    /// # Errors
    /// The kind of frame that the server has sent too much of.
    pub fn received(&mut self, frame: &Frame, now: Instant) -> Result<(), Flood> {
        let passed = now.saturating_duration_since(self.refilled);
        if passed >= Duration::from_millis(1) {
            self.refilled = now;
            self.control.refill(passed);
        }
        let flood = match frame.kind {
            kind::DATA => return self.data(frame),
            kind::HEADERS => return self.headers(frame),
            kind::CONTINUATION => return self.continuation(frame),
            kind::RST_STREAM => {
                if self.forget(frame.stream).is_some() {
                    return Ok(());
                }
                Flood::Reset
            }
            kind::PRIORITY => Flood::Priority,
            kind::SETTINGS => Flood::Settings,
            kind::PING => Flood::Ping,
            kind::WINDOW_UPDATE => Flood::WindowUpdate,
            _ => Flood::Other,
        };
        self.control.charge(units(frame), flood)
    }

    /// The client sent a frame.
    pub fn sent(&mut self, frame: &Frame) {
        match frame.kind {
            kind::HEADERS if frame.stream > self.last_stream => {
                self.last_stream = frame.stream;
                let (stream, window) = (frame.stream, self.stream_window);
                self.open.push(Open { stream, window, blocks: 0, header_bytes: 0 });
                self.control.earn(CONTROL_PER_REQUEST * UNIT);
            }
            kind::DATA => self.control.earn_by_data(frame.content()),
            kind::RST_STREAM => {
                if let Some(open) = self.forget(frame.stream) {
                    self.late = (self.late + open.window.max(0)).min(self.widest);
                }
            }
            // They are to be acknowledged.
            kind::SETTINGS | kind::PING if frame.flags & ACK == 0 => self.control.earn(UNIT),
            kind::WINDOW_UPDATE => self.widen(frame),
            _ => {}
        }
    }

    fn widen(&mut self, frame: &Frame) {
        let [a, b, c, d, ..] = frame.start;
        let more = i64::from(u32::from_be_bytes([a, b, c, d]) & 0x7fff_ffff);
        if frame.stream == 0 {
            self.window += more;
            self.widest = self.widest.max(self.window);
        } else if let Ok(place) = self.place(frame.stream) {
            self.open[place].window += more;
        }
    }

    fn data(&mut self, frame: &Frame) -> Result<(), Flood> {
        let length = i64::from(frame.length);
        self.window -= length;
        if self.window < 0 {
            return Err(Flood::FlowControl);
        }
        let Ok(place) = self.place(frame.stream) else {
            if length > 0 && length <= self.late {
                self.late -= length;
                return Ok(());
            }
            return self.control.charge(EMPTY_DATA + units(frame), Flood::Data);
        };
        self.open[place].window -= length;
        if self.open[place].window < 0 {
            return Err(Flood::FlowControl);
        }
        if frame.ends_stream() {
            self.forget(frame.stream);
            return Ok(());
        }
        if frame.content() == 0 {
            return self.control.charge(EMPTY_DATA, Flood::EmptyData);
        }
        self.control.earn(i64::from(frame.content()) * UNIT / UPLOAD_PER_CONTROL);
        Ok(())
    }

    fn headers(&mut self, frame: &Frame) -> Result<(), Flood> {
        let Ok(place) = self.place(frame.stream) else {
            self.block = Block { header_bytes: frame.length, is_wanted: false };
            return self.control.charge(units(frame), Flood::Headers);
        };
        let open = &mut self.open[place];
        open.blocks = open.blocks.saturating_add(1);
        open.header_bytes = open.header_bytes.saturating_add(frame.length);
        let is_too_much = open.blocks > MAX_BLOCKS || open.header_bytes > MAX_HEADER_BYTES;
        self.block = Block { header_bytes: open.header_bytes, is_wanted: true };
        if frame.ends_stream() {
            self.forget(frame.stream);
        }
        if is_too_much { Err(Flood::Headers) } else { Ok(()) }
    }

    fn continuation(&mut self, frame: &Frame) -> Result<(), Flood> {
        let block = &mut self.block;
        block.header_bytes = block.header_bytes.saturating_add(frame.length);
        if block.header_bytes > MAX_HEADER_BYTES {
            return Err(Flood::Headers);
        }
        let (header_bytes, is_wanted) = (block.header_bytes, block.is_wanted);
        if let Ok(place) = self.place(frame.stream) {
            self.open[place].header_bytes = header_bytes;
        }
        // A block is cut where it does not fit into one frame, so only its last part may be short.
        if is_wanted && (frame.length >= BYTES_PER_UNIT || frame.ends_headers()) {
            return Ok(());
        }
        self.control.charge(units(frame), Flood::Continuation)
    }

    fn place(&self, stream: u32) -> Result<usize, usize> {
        self.open.binary_search_by_key(&stream, |open| open.stream)
    }

    fn forget(&mut self, stream: u32) -> Option<Open> {
        let open = self.open.remove(self.place(stream).ok()?);
        if self.open.is_empty() {
            // An idle connection keeps nothing.
            self.open = Vec::new();
        }
        Some(open)
    }
}

/// The price of a frame: long ones cost more to read.
fn units(frame: &Frame) -> i64 {
    1 + i64::from(frame.length / BYTES_PER_UNIT)
}

#[cfg(test)]
mod tests;
