//! A request's body: bounded in bytes, in time and in the memory of all bodies together.
//!
//! A length in a header is a promise, not an allocation: what has come counts, against the memory of
//! all bodies and against the connection's share of it. A compressed body counts by what it becomes. A
//! body that comes by drops ends long before its time is up: each byte that came buys some time.

use crate::config::Options;
use crate::memory::Share;
use crate::refusal::Refusal;
use axum::body::{Body, HttpBody as _};
use bytes::{Bytes, BytesMut};
use flate2::bufread::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use forebay_process::memory::give_back;
use forebay_protocol::Reason;
use http::{HeaderMap, HeaderName, header};
use http_body_util::BodyExt;
use std::io::Read;
use std::time::{Duration, Instant};

/// Taken at once for a body whose length is announced; more only as it arrives.
const FIRST_ALLOCATION: usize = 16 << 10;
/// Time that a body has before it must have come at the least rate.
const GRACE: Duration = Duration::from_secs(5);
/// Memory is set aside for at most this many times the bytes that have arrived, whatever length is
/// announced.
const BELIEVED: usize = 8;
/// A refused body that inflated to this length gives its memory back to the system at once: a few short
/// requests can cause it, and no other may come soon that needs as much.
const MUCH: usize = 4 << 20;
/// The greatest alignment of an element: tensors whose data begin so can stay in the body.
const ALIGNMENT: usize = align_of::<u64>();
/// Step in which inflated data is read and accounted for.
const INFLATE_STEP: usize = 64 << 10;

/// The minimum speed of a body.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReadTimeout {
    /// For the whole body.
    pub(crate) whole: Duration,
    /// Least bytes a second, after the first seconds; 0: no such bound.
    pub(crate) rate: usize,
}

impl ReadTimeout {
    /// The limits of the configuration.
    pub(crate) fn of(options: &Options) -> Self {
        Self { whole: options.body_timeout, rate: options.min_body_rate }
    }

    /// By when more must have come of a body that began at `since` and has so many bytes now.
    pub(crate) fn due(&self, since: Instant, bytes: usize) -> Instant {
        let whole = since + self.whole;
        #[allow(clippy::cast_precision_loss, reason = "a time needs no precision")]
        let bought = bytes as f64 / self.rate as f64;
        match Duration::try_from_secs_f64(bought) {
            Ok(bought) if self.rate > 0 => whole.min(since + GRACE.saturating_add(bought)),
            _ => whole,
        }
    }
}

/// The compression of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    Identity,
    Gzip,
    Deflate,
}

impl Encoding {
    /// The name in a header; `None` for no compression.
    pub(crate) fn name(self) -> Option<&'static str> {
        match self {
            Self::Identity => None,
            Self::Gzip => Some("gzip"),
            Self::Deflate => Some("deflate"),
        }
    }

    /// Of a body.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        Self::named(headers, &header::CONTENT_ENCODING)
    }

    /// The encoding that the header `name` states.
    pub(crate) fn named(headers: &HeaderMap, name: &HeaderName) -> Result<Self, Refusal> {
        let mut values = headers.get_all(name).iter();
        let Some(value) = values.next() else { return Ok(Self::Identity) };
        let text = value.to_str().unwrap_or_default().trim().to_ascii_lowercase();
        match (text.as_str(), values.next()) {
            ("" | "identity", None) => Ok(Self::Identity),
            ("gzip" | "x-gzip", None) => Ok(Self::Gzip),
            ("deflate", None) => Ok(Self::Deflate),
            _ => Err(Refusal::new(
                Reason::UnsupportedEncoding,
                format!("expected {name} gzip, deflate or identity, found {value:?}"),
            )),
        }
    }
}

/// Reads the whole body as it is on the wire. Its byte `aligned` lies at an address that elements of any type can
/// have, unless the allocator moves the body to memory of another alignment.
///
/// # Errors
/// It is longer than `limit`, slower than `within`, broken off, or one too many for the memory.
pub(crate) async fn read(
    mut body: Body,
    (limit, aligned): (usize, usize),
    within: ReadTimeout,
    share: &mut Share,
) -> Result<Bytes, Refusal> {
    if let Some(length) = body.size_hint().exact()
        && length > limit as u64
    {
        return Err(too_large(limit, &format_args!("{length}")));
    }
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(limit);
    let mut whole = BytesMut::with_capacity(announced.min(FIRST_ALLOCATION) + ALIGNMENT);
    let before = whole.as_ptr().wrapping_add(aligned % ALIGNMENT).align_offset(ALIGNMENT);
    whole.resize(before.min(ALIGNMENT), 0);
    let before = whole.len();
    let began = Instant::now();
    loop {
        let come = whole.len() - before;
        let due = within.due(began, come);
        let Ok(frame) = tokio::time::timeout_at(due.into(), body.frame()).await else {
            return Err(too_slow(come, began.elapsed()));
        };
        let Some(frame) = frame else { return Ok(whole.freeze().slice(before..)) };
        let frame = frame.map_err(|error| broken_off(&error))?;
        let Ok(data) = frame.into_data() else { continue };
        if data.len() > limit - come {
            return Err(too_large(limit, &"more"));
        }
        share.grow(data.len())?;
        if whole.capacity() - whole.len() < data.len() {
            // The rest of what is announced, once a part of it has come: what is not written to is only
            // a range of addresses.
            let come = come + data.len();
            whole.reserve(announced.min(come * BELIEVED).max(come) + before - whole.len());
        }
        whole.extend_from_slice(&data);
    }
}

/// Undoes the compression. Takes CPU time: not for the I/O threads if the body is large.
///
/// # Errors
/// The body is damaged, or inflates beyond `limit`.
pub(crate) fn inflate(
    body: Bytes,
    encoding: Encoding,
    limit: usize,
    share: &mut Share,
) -> Result<Bytes, Refusal> {
    match encoding {
        Encoding::Identity => Ok(body),
        Encoding::Gzip => read_all(MultiGzDecoder::new(&*body), limit, share),
        // By the standard `deflate` is zlib's form, but some clients send the bare one.
        Encoding::Deflate if is_zlib(&body) => read_all(ZlibDecoder::new(&*body), limit, share),
        Encoding::Deflate => read_all(DeflateDecoder::new(&*body), limit, share),
    }
}

fn is_zlib(body: &[u8]) -> bool {
    matches!(body, [a, b, ..] if a & 0x0f == 8 && u16::from_be_bytes([*a, *b]) % 31 == 0)
}

fn read_all(mut decoder: impl Read, limit: usize, share: &mut Share) -> Result<Bytes, Refusal> {
    let mut whole = Vec::new();
    let read = read_into(&mut whole, &mut decoder, limit, share);
    if whole.len() >= MUCH {
        // The buffer that it outgrew, and a refused body, are of no further use.
        if read.is_err() {
            whole = Vec::new();
        }
        give_back();
    }
    read.map(|()| whole.into())
}

fn read_into(
    whole: &mut Vec<u8>,
    decoder: &mut impl Read,
    limit: usize,
    share: &mut Share,
) -> Result<(), Refusal> {
    loop {
        let left = limit - whole.len();
        if left > 0 && whole.capacity() - whole.len() < INFLATE_STEP.min(left) {
            // Twice as much, as a vector grows by itself, but nothing beyond the limit.
            whole.reserve_exact(whole.len().max(INFLATE_STEP).min(left));
        }
        let step = INFLATE_STEP.min(left) as u64;
        let read = decoder.by_ref().take(step).read_to_end(whole);
        let read = read.map_err(|error| damaged(&error))?;
        if read > 0 {
            share.grow(read)?;
            continue;
        }
        // At the limit nothing was asked for.
        let mut more = [0];
        if left > 0 || decoder.read(&mut more).map_err(|error| damaged(&error))? == 0 {
            return Ok(());
        }
        return Err(too_large(limit, &"more after inflating"));
    }
}

fn damaged(error: &std::io::Error) -> Refusal {
    Refusal::request(format!("the compressed body is damaged: {error}"))
}

/// The body did not come in time.
pub(crate) fn too_slow(bytes: usize, took: Duration) -> Refusal {
    let ms = took.as_millis();
    let text = format!("expected the complete body in time, found {bytes} bytes after {ms} ms");
    Refusal::new(Reason::RequestTimeout, text)
}

/// The client left, or its connection broke.
pub(crate) fn broken_off(error: &axum::Error) -> Refusal {
    Refusal::request(format!("the body ended early: {error}"))
}

/// More bytes than the limit.
pub(crate) fn too_large(limit: usize, found: &dyn std::fmt::Display) -> Refusal {
    let text = format!("expected a body of at most {limit} bytes, found {found}");
    Refusal::new(Reason::BodyTooLarge, text)
}
