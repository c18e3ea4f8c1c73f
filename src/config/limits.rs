//! Bounds of one request, and of what clients may take.

use super::check::header;
use forebay_config::form::{byte_rate, bytes, positive, ratio, within};
use forebay_config::{ByteSize, Section, Table};
use forebay_process::resources::Descriptors;
use http::HeaderName;
use std::time::Duration;

const MIB: u64 = 1024 * 1024;

forebay_config::section! {
    /// Bounds of one request.
    pub struct Limits {
        /// A longer body is refused with 413, whether its header or its bytes show the length. The default
        /// has room for a batch of images; raise it for video.
        body: u64 = 64 * MIB, bytes();
        /// A body up to this size is held in memory before an endpoint is picked, so that a client that
        /// sends slowly takes no slot. A held inference can be sent again to another endpoint after any
        /// failure of the first; its answer is held up to 256 KiB. The rest of a longer body is streamed, in
        /// one attempt. At most `body`.
        buffer: u64 = 16 * MIB, bytes();
        /// Memory for bodies and answers of all requests, in bytes. Memory is taken as bytes arrive, never
        /// for a length that is only stated. An HTTP body that finds no room is streamed: it loses its
        /// retries, not its answer. A gRPC call, or a request of a client that has used its share, is
        /// refused with `memory_limit`, and so is one on a connection whose unread answers leave no memory
        /// for another; each connection may have 128 KiB of them all the same.
        memory: u64 = 1024 * MIB, bytes();
        /// Share of `memory` that one client may hold; at least one body. A client is an address, or the
        /// value of `client_header`. Set "100%" where all clients come through one load balancer that does
        /// not name them.
        client_memory: f64 = 0.5, ratio();
        /// An answer up to this size is read to its end ahead of its client, which frees the endpoint's slot
        /// however slowly the client reads. Answers take memory only while less than half of `memory`, and
        /// of the client's share, is held. Of a longer answer 64 KiB are read ahead, and its endpoint waits
        /// for the client.
        read_ahead: u64 = MIB, bytes();
        /// Time for the header of a request to arrive, from its first byte; on a new connection, from its
        /// beginning. A header has at most 64 KiB and 100 fields.
        header_timeout: Duration = Duration::from_secs(10), positive();
        /// Time for a body to arrive.
        body_timeout: Duration = Duration::from_secs(30), positive();
        /// A client that is slower than this for longer than `stall_timeout` is cut off if an endpoint or
        /// memory waits for it: an endpoint, for the rest of a body longer than `buffer`; memory, for a
        /// client that does not read its answer.
        min_rate: f64 = 16.0 * 1024.0, byte_rate();
        /// See `min_rate`. Where memory is short and others wait for the slot, a tenth of it, and the less
        /// the more wait, down to half a second.
        stall_timeout: Duration = Duration::from_secs(10), positive();
        /// gRPC: an inference states no length, so it is held in memory up to `body`, independently of
        /// `buffer`. A stream of messages without a client's deadline may be silent for this long. With a
        /// deadline it ends there, even while it moves. Each has its own connection to the endpoint, since
        /// ending one would end the others on that connection.
        stream_idle: Duration = Duration::from_secs(3600), positive();
        /// Requests that may be in flight at once, those that wait for their bodies or for a slot among them: each
        /// takes about 17 KiB beside its body. A further one is refused with `connection_limit`. One client
        /// may have three quarters of them.
        requests: usize = 32_768, within(2..=10_000_000);
        /// gRPC streams that may be open at once, each with its connection to an endpoint; half of them may be
        /// one client's. A further one is refused with `connection_limit`. No more than half of the file
        /// descriptors for clients in any case. 28,000 connections take all ports towards one endpoint.
        streams: usize = 8192, within(1..=1_000_000);
        /// The header that names the client, for fair queueing. Set it only where a component in front sets
        /// that header: otherwise a client with many names gets the most. Default: a client is an address.
        client_header: Option<HeaderName> = None, header(), shown "\"x-client\"";
    }
}

impl Limits {
    /// Reads the section, and checks its keys together.
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

    /// Streams of gRPC that may be open at once, as far as descriptors allow.
    pub fn streams(&self) -> usize {
        let most = Descriptors::of_this_process().for_clients / 2;
        self.streams.min(usize::try_from(most).unwrap_or(usize::MAX))
    }

    /// Bytes that one client may hold, and at least one body.
    pub fn client_share(&self) -> u64 {
        #[allow(clippy::cast_precision_loss, reason = "a share need not be exact")]
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to memory")]
        let share = (self.memory as f64 * self.client_memory) as u64;
        share.max(self.memory.min(self.body))
    }
}
