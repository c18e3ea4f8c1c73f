//! Bounds of one request, and of what clients may take.

use super::check::header;
use forebay_config::form::{byte_rate, bytes, positive, ratio};
use forebay_config::{ByteSize, Section, Table};
use http::HeaderName;
use std::time::Duration;

const MIB: u64 = 1024 * 1024;

forebay_config::section! {
    /// Bounds of one request.
    pub struct Limits {
        /// A longer body is refused with 413, whether its header says so or its bytes do. Room for a batch
        /// of images; raise it for video.
        body: u64 = 64 * MIB, bytes();
        /// A body is held in memory up to this size before an endpoint is picked: a client that sends slowly takes
        /// no slot. An inference that is held can be sent again to another endpoint whatever happens to the
        /// first; its answer is held up to 256 KiB. Of a longer body the rest is streamed, in one attempt. At
        /// most `body`.
        buffer: u64 = 16 * MIB, bytes();
        /// Bytes of bodies and answers that are held at once, over all requests. Memory is taken as bytes
        /// arrive, never for a length that is only stated. An HTTP body that finds no room is streamed: it loses
        /// its retries, not its answer. A gRPC call, or a request of a client whose whole share is taken, is
        /// refused with `memory_limit`.
        memory: u64 = 1024 * MIB, bytes();
        /// Share of that memory that one client may hold, which is an address, or what `client_header` says; at
        /// least one body. "100%" where all clients come through one load balancer that does not name them.
        client_memory: f64 = 0.5, ratio();
        /// An answer up to this size is read to its end ahead of its client, which frees the endpoint's slot however
        /// slowly the client reads; answers take memory only while less than half of `memory`, and of the client's
        /// share, is held. Of a longer answer 64 KiB are read ahead, and its endpoint waits for the client.
        read_ahead: u64 = MIB, bytes();
        /// Time that the header of a request may take to arrive, from its first byte; on a new connection, from
        /// its beginning. A header has at most 64 KiB and 100 fields.
        header_timeout: Duration = Duration::from_secs(10), positive();
        /// Time that a body may take to arrive.
        body_timeout: Duration = Duration::from_secs(30), positive();
        /// A client that is slower than this for longer than `stall_timeout` is cut off where something waits for
        /// it: an endpoint, for the rest of a body that is longer than `buffer`; or memory, for a client that does
        /// not read its answer.
        min_rate: f64 = 16.0 * 1024.0, byte_rate();
        /// See `min_rate`.
        stall_timeout: Duration = Duration::from_secs(10), positive();
        /// gRPC: an inference states no length, so it is held in memory up to `body`, whatever `buffer` says.
        /// A stream of messages may last; without a deadline of its client's it may be silent for this long. With one
        /// it ends there, however often something moves, and has a connection to its endpoint of its own: nothing else
        /// can be ended without those beside it.
        stream_idle: Duration = Duration::from_secs(3600), positive();
        /// The header that names the client, for the fairness of queues. Only where something in front sets it,
        /// or whoever asks under many names gets the most. Default: none, a client is an address.
        client_header: Option<HeaderName> = None, header(), shown "\"x-client\"";
    }
}

impl Limits {
    /// Reads the section, and checks what its keys say together.
    pub(super) fn checked(table: &Table<'_, '_>) -> Self {
        let limits = Self::read(table);
        if let Some((ByteSize(buffer), span)) = table.spanned::<ByteSize>("buffer")
            && buffer > limits.body
        {
            let bound = format!("expected at most limits.body ({})", ByteSize(limits.body));
            table.note(span, "buffer", format!("{bound}, found {}", ByteSize(buffer)));
        }
        Self { buffer: limits.buffer.min(limits.body), ..limits }
    }

    /// Bytes that one client may hold, and at least one body.
    pub fn client_share(&self) -> u64 {
        #[allow(clippy::cast_precision_loss, reason = "a share need not be exact")]
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to memory")]
        let share = (self.memory as f64 * self.client_memory) as u64;
        share.max(self.memory.min(self.body))
    }
}
