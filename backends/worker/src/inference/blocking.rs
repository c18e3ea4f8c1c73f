//! Work that takes CPU time, kept off the threads that serve sockets.

use crate::refusal::Refusal;
use forebay_protocol::Reason;
use std::time::Instant;

/// Tensors and bodies up to this many bytes are handled on the I/O thread: about 0.3 ms of work.
pub(crate) const INLINE: usize = 64 << 10;

/// The same for values in the form in which they are kept: they are copied or looked at, not parsed. Each
/// change of threads costs more than that.
pub(crate) const INLINE_BINARY: usize = 2 << 20;

/// Runs CPU-heavy work on the runtime's blocking pool.
pub(crate) async fn off_io<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Refusal::new(Reason::Internal, error.to_string())))
}

/// Runs `work` until `deadline`.
pub(crate) async fn bounded<T>(
    deadline: Option<Instant>,
    work: impl Future<Output = Result<T, Refusal>>,
) -> Result<T, Refusal> {
    let Some(deadline) = deadline else { return work.await };
    tokio::time::timeout_at(deadline.into(), work).await.unwrap_or_else(|_| Err(Refusal::late()))
}
