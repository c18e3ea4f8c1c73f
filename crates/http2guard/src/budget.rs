//! The budget of frames that are not requests, and how useful work refills it.
//!
//! There are two accounts. *Control frames* are cheap one by one and are charged one each; a new request,
//! each DATA frame that the server sends and the bytes in it earn some, because clients send PRIORITY with
//! requests, and WINDOW_UPDATE and PING as they receive. *Cancelled requests* are expensive, because their
//! work is wasted; a reset is charged by how soon it comes, and each request that is answered in full earns
//! as much as the fastest reset costs.
//!
//! Both accounts refill slowly with time and are capped, so a long quiet connection holds no more than
//! a short burst.

use crate::frame::{Frame, kind};
use std::time::{Duration, Instant};

/// Control frames in a burst. About a millisecond of work; a client that opens a hundred streams at
/// once sends a few frames for each.
pub(crate) const CONTROL_BURST: i64 = 500;
/// Control frames a second that need no other cause: keepalive PINGs are at most one a second.
pub(crate) const CONTROL_RATE: i64 = 20;
/// Control frames that a new request pays for: PRIORITY, WINDOW_UPDATE, and one that is in use only
/// by some (PRIORITY_UPDATE, a reserved type).
pub(crate) const CONTROL_PER_REQUEST: i64 = 3;
/// Control frames that a DATA frame from the server pays for: WINDOW_UPDATE of the stream and of the
/// connection, and a PING that measures the bandwidth.
const CONTROL_PER_DATA: i64 = 3;
/// A shorter DATA frame pays in proportion: otherwise a window that opens byte by byte would pay for
/// itself.
const FULL_DATA: i64 = 16;
/// Content from the server that pays for one control frame more: clients that open the window with
/// each read do so for pieces of this size.
const BYTES_PER_CONTROL: i64 = 512;
/// Content from the client that pays for one control frame.
pub(crate) const UPLOAD_PER_CONTROL: i64 = 4096;

/// The cost of DATA without content. The `h2` crate ends a connection after 100 of them, whenever they
/// come.
pub(crate) const EMPTY_DATA: i64 = 8;

/// Points for cancelled requests in a burst.
const CANCEL_BURST: i64 = 5000;
/// Points a second. Requests that are given up after a while go on at this rate, as many as a client
/// has that holds a hundred open for a tenth of a second each.
const CANCEL_RATE: i64 = 1000;
/// Points that a request costs that is cancelled at once.
const CANCEL_AT_ONCE: i64 = 50;
/// Points that a request costs that is cancelled before its answer begins, but not at once.
const CANCEL_EARLY: i64 = 1;
/// Sooner than this no client can have lost interest in an answer.
const AT_ONCE: Duration = Duration::from_millis(5);
/// A client that has waited as long as this has a reason to leave.
const EARLY: Duration = Duration::from_secs(1);
/// Points that an answered request earns.
const ANSWERED: i64 = 50;

/// Streams whose beginning is remembered. More than may be open at once: servers refuse the rest.
const MAX_OPEN: usize = 256;

/// Accounts are kept in thousandths.
pub(crate) const UNIT: i64 = 1000;

/// The kind of frame that a peer sent too much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flood {
    /// PING, also as an acknowledgement of none.
    Ping,
    /// SETTINGS.
    Settings,
    /// WINDOW_UPDATE.
    WindowUpdate,
    /// PRIORITY.
    Priority,
    /// DATA without content.
    EmptyData,
    /// RST_STREAM: requests that are cancelled soon, or streams that are not open.
    Reset,
    /// Requests that the server had to reset: malformed ones, or more than may be open.
    Rejected,
    /// CONTINUATION.
    Continuation,
    /// GOAWAY, PUSH_PROMISE and types that are not defined.
    Other,
    /// HEADERS: more interim answers than a request can have, header blocks that are too long, or answers on
    /// streams that are not open. Only servers are charged for it.
    Headers,
    /// DATA on streams that are not open. Only servers are charged for it.
    Data,
    /// DATA beyond the window of its stream or of the connection (RFC 9113, section 5.2). Only servers are
    /// charged for it.
    FlowControl,
}

impl Flood {
    /// Every kind.
    pub const ALL: [Self; 12] = [
        Self::Ping,
        Self::Settings,
        Self::WindowUpdate,
        Self::Priority,
        Self::EmptyData,
        Self::Reset,
        Self::Rejected,
        Self::Continuation,
        Self::Other,
        Self::Headers,
        Self::Data,
        Self::FlowControl,
    ];

    /// The word in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Settings => "settings",
            Self::WindowUpdate => "window_update",
            Self::Priority => "priority",
            Self::EmptyData => "empty_data",
            Self::Reset => "reset",
            Self::Rejected => "rejected",
            Self::Continuation => "continuation",
            Self::Other => "other",
            Self::Headers => "headers",
            Self::Data => "data",
            Self::FlowControl => "flow_control",
        }
    }
}

/// A capped account that refills with time.
#[derive(Debug)]
pub(crate) struct Account {
    balance: i64,
    cap: i64,
    /// Units a second, which is thousandths a millisecond.
    rate: i64,
}

impl Account {
    pub(crate) const fn new(burst: i64, rate: i64) -> Self {
        Self { balance: burst * UNIT, cap: burst * UNIT, rate }
    }

    pub(crate) fn earn(&mut self, thousandths: i64) {
        self.balance = self.balance.saturating_add(thousandths).min(self.cap);
    }

    /// Adds what a frame of data earns for the control frames that answer it, of which it has `content`
    /// bytes.
    pub(crate) fn earn_by_data(&mut self, content: u32) {
        let content = i64::from(content);
        let share = content.min(FULL_DATA) * UNIT / FULL_DATA;
        self.earn(CONTROL_PER_DATA * share + content * UNIT / BYTES_PER_CONTROL);
    }

    /// Adds what comes with time.
    pub(crate) fn refill(&mut self, passed: Duration) {
        let passed = i64::try_from(passed.as_millis()).unwrap_or(i64::MAX);
        self.earn(passed.saturating_mul(self.rate));
    }

    pub(crate) fn charge(&mut self, units: i64, kind: Flood) -> Result<(), Flood> {
        self.balance -= units * UNIT;
        if self.balance < 0 { Err(kind) } else { Ok(()) }
    }
}

/// A request that has begun and not ended.
#[derive(Debug)]
struct Open {
    stream: u32,
    since: Instant,
    answering: bool,
}

/// The budget of one connection.
#[derive(Debug)]
pub struct Budget {
    control: Account,
    cancel: Account,
    refilled: Instant,
    open: Vec<Open>,
    last_stream: u32,
}

impl Budget {
    /// The budget of a connection that begins.
    pub fn new(now: Instant) -> Self {
        Self {
            control: Account::new(CONTROL_BURST, CONTROL_RATE),
            cancel: Account::new(CANCEL_BURST, CANCEL_RATE),
            refilled: now,
            open: Vec::new(),
            last_stream: 0,
        }
    }

    /// The highest stream that the client has opened.
    pub fn last_stream(&self) -> u32 {
        self.last_stream
    }

    /// Whether a request has begun and not ended.
    pub fn is_busy(&self) -> bool {
        !self.open.is_empty()
    }

    /// Whether this request has begun and nothing of its answer has been sent.
    pub fn is_unanswered(&self, stream: u32) -> bool {
        self.open.iter().any(|open| open.stream == stream && !open.answering)
    }

    /// The client sent a frame.
    ///
    /// # Errors
    /// The kind of frame that the client has sent too much of.
    pub fn received(&mut self, frame: &Frame, now: Instant) -> Result<(), Flood> {
        self.refill(now);
        let flood = match frame.kind {
            kind::HEADERS => {
                if frame.stream > self.last_stream {
                    self.begin(frame.stream, now);
                }
                return Ok(());
            }
            kind::DATA if frame.content() > 0 || frame.ends_stream() => {
                self.control.earn(i64::from(frame.content()) * UNIT / UPLOAD_PER_CONTROL);
                return Ok(());
            }
            kind::RST_STREAM => return self.reset(frame.stream, now),
            kind::DATA => return self.control.charge(EMPTY_DATA, Flood::EmptyData),
            kind::PRIORITY => Flood::Priority,
            kind::SETTINGS => Flood::Settings,
            kind::PING => Flood::Ping,
            kind::WINDOW_UPDATE => Flood::WindowUpdate,
            kind::CONTINUATION => Flood::Continuation,
            _ => Flood::Other,
        };
        self.control.charge(1, flood)
    }

    /// The server sent a frame.
    ///
    /// # Errors
    /// The kind of frame of which the client has sent too many, for the server's answer.
    pub fn sent(&mut self, frame: &Frame, now: Instant) -> Result<(), Flood> {
        match frame.kind {
            kind::HEADERS => {
                if let Some(open) = self.open.iter_mut().find(|open| open.stream == frame.stream) {
                    open.answering = true;
                }
            }
            kind::DATA => self.control.earn_by_data(frame.content()),
            kind::RST_STREAM => {
                self.refill(now);
                let known = self.forget(frame.stream).is_some();
                return match frame.error_code() {
                    // More requests at once than the server takes. A client that does not know the
                    // bound yet may open some in excess.
                    Some(error::REFUSED_STREAM) => {
                        self.control.charge(CONTROL_PER_REQUEST + 1, Flood::Rejected)
                    }
                    // Malformed, or the client has made the server reset its own stream.
                    Some(
                        error::PROTOCOL_ERROR | error::FLOW_CONTROL_ERROR | error::STREAM_CLOSED,
                    ) if known => self.cancel.charge(CANCEL_AT_ONCE, Flood::Rejected),
                    Some(
                        error::PROTOCOL_ERROR | error::FLOW_CONTROL_ERROR | error::STREAM_CLOSED,
                    ) => self.control.charge(1, Flood::Rejected),
                    _ => Ok(()),
                };
            }
            _ => {}
        }
        if frame.ends_stream() && self.forget(frame.stream).is_some() {
            self.cancel.earn(ANSWERED * UNIT);
        }
        Ok(())
    }

    fn begin(&mut self, stream: u32, now: Instant) {
        self.last_stream = stream;
        self.control.earn(CONTROL_PER_REQUEST * UNIT);
        if self.open.len() == MAX_OPEN {
            self.open.remove(0);
        }
        self.open.push(Open { stream, since: now, answering: false });
    }

    fn reset(&mut self, stream: u32, now: Instant) -> Result<(), Flood> {
        let Some(open) = self.forget(stream) else {
            // Answered already, or never opened.
            return self.control.charge(1, Flood::Reset);
        };
        match now.saturating_duration_since(open.since) {
            // The work for the refused answer may have been almost done; a client that stops a long answer
            // has received part of it.
            _ if open.answering => self.control.charge(1, Flood::Reset),
            age if age < AT_ONCE => self.cancel.charge(CANCEL_AT_ONCE, Flood::Reset),
            age if age < EARLY => self.cancel.charge(CANCEL_EARLY, Flood::Reset),
            _ => Ok(()),
        }
    }

    fn forget(&mut self, stream: u32) -> Option<Open> {
        let place = self.open.iter().position(|open| open.stream == stream)?;
        let open = self.open.swap_remove(place);
        if self.open.is_empty() {
            // An idle connection keeps nothing.
            self.open = Vec::new();
        }
        Some(open)
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.refilled);
        if passed >= Duration::from_millis(1) {
            self.refilled = now;
            self.control.refill(passed);
            self.cancel.refill(passed);
        }
    }
}

/// Error codes (RFC 9113, section 7).
pub(crate) mod error {
    pub(crate) const NO_ERROR: u32 = 0;
    pub(crate) const PROTOCOL_ERROR: u32 = 1;
    pub(crate) const FLOW_CONTROL_ERROR: u32 = 3;
    pub(crate) const STREAM_CLOSED: u32 = 5;
    pub(crate) const REFUSED_STREAM: u32 = 7;
    pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;
}

#[cfg(test)]
mod tests;
