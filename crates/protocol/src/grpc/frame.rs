//! The framing of messages in a body: a flag, a length in four bytes, and that many bytes.

use crate::Reason;
use bytes::{Bytes, BytesMut};

/// Bytes before each message.
pub const PREFIX_BYTES: usize = 5;

/// The prefix of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// Whether it is compressed, as the header `grpc-encoding` says.
    pub compressed: bool,
    /// Its length in bytes: a promise, not an allocation.
    pub length: usize,
}

/// Why a body is not framed as it has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The first byte is neither 0 nor 1.
    #[error("expected a gRPC message that begins with 0 or 1, found {0}")]
    Flag(u8),
    /// The body ends within a message.
    #[error("expected a gRPC message of {expected} bytes, found {found}")]
    Incomplete {
        /// Bytes of prefix and message.
        expected: usize,
        /// Bytes that are there.
        found: usize,
    },
    /// Another number of messages than one.
    #[error("expected one gRPC message, found {0}")]
    Count(&'static str),
}

impl FrameError {
    /// The reason code that goes with it.
    pub const fn reason(&self) -> Reason {
        Reason::InvalidRequest
    }
}

impl Prefix {
    /// Reads the beginning of `bytes`; `None` if there are fewer than [`PREFIX_BYTES`].
    ///
    /// # Errors
    /// The flag is neither 0 nor 1.
    pub fn read(bytes: &[u8]) -> Result<Option<Self>, FrameError> {
        let Some(&[flag, a, b, c, d]) = bytes.first_chunk::<PREFIX_BYTES>() else {
            return Ok(None);
        };
        if flag > 1 {
            return Err(FrameError::Flag(flag));
        }
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        Ok(Some(Self { compressed: flag == 1, length }))
    }
}

/// The one message of a unary body, and whether it is compressed.
///
/// # Errors
/// There is none, more than one, or less than a whole one.
pub fn only_message(body: &Bytes) -> Result<(bool, Bytes), FrameError> {
    let Some(prefix) = Prefix::read(body)? else {
        return Err(match body.len() {
            0 => FrameError::Count("none"),
            found => FrameError::Incomplete { expected: PREFIX_BYTES, found },
        });
    };
    let message = body.slice(PREFIX_BYTES..);
    match message.len() {
        found if found < prefix.length => {
            Err(FrameError::Incomplete { expected: prefix.length, found })
        }
        found if found > prefix.length => Err(FrameError::Count("more")),
        _ => Ok((prefix.compressed, message)),
    }
}

/// An uncompressed message of `length` bytes, which `write` appends.
pub fn frame(length: usize, write: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut bytes = BytesMut::with_capacity(PREFIX_BYTES + length);
    bytes.extend_from_slice(&[0; PREFIX_BYTES]);
    write(&mut bytes);
    // Messages beyond 4 GiB can't be framed; none that is made here comes near.
    let length = u32::try_from(bytes.len() - PREFIX_BYTES).unwrap_or(u32::MAX);
    bytes[1..PREFIX_BYTES].copy_from_slice(&length.to_be_bytes());
    bytes.freeze()
}

/// A message that was compressed, as the header `grpc-encoding` says.
pub fn frame_compressed(message: &[u8]) -> Bytes {
    let mut bytes = BytesMut::from(frame(message.len(), |out| out.extend_from_slice(message)));
    bytes[0] = 1;
    bytes.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_found_in_its_frame() {
        let framed = frame(3, |out| out.extend_from_slice(b"abc"));
        assert_eq!(&framed[..], b"\0\0\0\0\x03abc");
        assert_eq!(only_message(&framed), Ok((false, Bytes::from_static(b"abc"))));
        assert_eq!(only_message(&frame_compressed(b"xy")), Ok((true, Bytes::from_static(b"xy"))));
    }

    #[test]
    fn a_body_that_is_not_one_whole_message_is_refused() {
        use FrameError::{Count, Flag, Incomplete};
        for (body, error) in [
            (&b""[..], Count("none")),
            (b"\0\0", Incomplete { expected: 5, found: 2 }),
            (b"\0\xff\xff\xff\xffa", Incomplete { expected: 0xffff_ffff, found: 1 }),
            (b"\0\0\0\0\x01ab", Count("more")),
            (b"\x02\0\0\0\0", Flag(2)),
            (b"{\"in", Incomplete { expected: 5, found: 4 }),
            (b"{\"inputs\"", Flag(b'{')),
        ] {
            assert_eq!(only_message(&Bytes::from_static(body)), Err(error), "{body:?}");
        }
    }
}
