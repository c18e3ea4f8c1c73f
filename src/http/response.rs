//! An answer at hand, from an endpoint or another source.
//!
//! It owns all that it consists of, so that a stage before the endpoints can answer as they do, and one
//! behind them can keep what they said. An answer that is too long to be held, or that comes as it happens,
//! has a rest beside it, which is still to be read.

use crate::body_memory::Held;
use bytes::Bytes;
use http::HeaderMap;
use pingora::http::ResponseHeader;

/// An answer, or the part of one that has been read.
pub struct BufferedResponse {
    /// Its header, as the endpoint gave it.
    pub head: Box<ResponseHeader>,
    /// Its body, in the pieces in which it came.
    pub body: Vec<Bytes>,
    /// The trailers behind the body; of gRPC, its status.
    pub trailers: Option<Box<HeaderMap>>,
    /// The memory that its body takes.
    pub held: Held,
}
