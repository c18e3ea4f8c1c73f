//! Bodies that are held ready, and the room that they may take.

use bytes::Bytes;
use http::HeaderMap;

/// Maximum number of bytes of bodies that are held ready.
pub(super) const MAX_CORPUS: u64 = 512 << 20;

/// The bodies of one batch size, and the headers that go with them.
#[derive(Debug)]
pub(super) struct Size {
    /// Headers of requests with any of the bodies.
    pub headers: HeaderMap,
    /// The bodies; at least one.
    pub bodies: Vec<Body>,
}

/// One body, and the name that it gives to its request.
#[derive(Debug, Clone, Default)]
pub(super) struct Body {
    /// The bytes to send.
    pub bytes: Bytes,
    /// The answer must repeat it; empty: it has none.
    pub id: String,
}

/// The bodies would not fit.
#[derive(Debug, thiserror::Error)]
#[error("expected at most {MAX_CORPUS} bytes of bodies, found {0}; ask for fewer distinct ones")]
pub struct TooLarge(u64);

/// Takes `bytes` from what is left of [`MAX_CORPUS`].
pub(super) fn take_room(bytes: u64, room: &mut u64) -> Result<(), TooLarge> {
    *room = room.checked_sub(bytes).ok_or(TooLarge(MAX_CORPUS - *room + bytes))?;
    Ok(())
}
