//! Relays bytes between two connections, until either side is done.
//!
//! Each direction ends by itself: a side that has sent everything may still listen (half-close), and the
//! other side must learn of that end without losing the bytes that it has yet to send. A pair of connections
//! that neither side uses nor closes must not remain, so both are closed when neither moved a byte for a
//! while.

use crate::pool::Endpoint;
use metrics::Counter;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes};
use tokio::time::{Instant, sleep};

/// Bytes that may be under way in each direction, beside what the kernel holds: enough for few
/// system calls, and little beside the kernel's own buffers.
const BUFFER: usize = 16 * 1024;

/// The end of a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Both sides said that they were done.
    Orderly,
    /// Neither moved a byte for too long.
    Idle,
    /// The client's connection broke.
    ClientBroke,
    /// The endpoint's connection broke.
    EndpointBroke,
}

/// The relayed bytes. Shared with the reporter, also if the relay is dropped midway.
#[derive(Debug)]
pub struct Traffic {
    /// From the client.
    pub from_client: Flow,
    /// From the endpoint.
    pub from_endpoint: Flow,
    since: Instant,
    /// Microseconds from `since` to the last byte that moved.
    moved_at: AtomicU64,
}

/// The bytes of one direction.
#[derive(Debug)]
pub struct Flow {
    bytes: AtomicU64,
    counter: Counter,
    broke: AtomicBool,
    /// The endpoint whose bytes they are.
    endpoint: Option<Arc<Endpoint>>,
}

impl Flow {
    fn new(counter: Counter, endpoint: Option<Arc<Endpoint>>) -> Self {
        Self { bytes: AtomicU64::new(0), counter, broke: AtomicBool::new(false), endpoint }
    }

    /// Number of bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    fn passed(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Relaxed);
        self.counter.increment(bytes as u64);
        if bytes > 0
            && let Some(endpoint) = &self.endpoint
        {
            endpoint.state.heard();
        }
    }
}

impl Traffic {
    /// Nothing yet; the counters are told of every byte as it comes.
    pub fn new(
        from_client: Counter,
        from_endpoint: Counter,
        endpoint: Option<Arc<Endpoint>>,
    ) -> Self {
        Self {
            from_client: Flow::new(from_client, None),
            from_endpoint: Flow::new(from_endpoint, endpoint),
            since: Instant::now(),
            moved_at: AtomicU64::new(0),
        }
    }

    /// Takes in bytes of the client that were read before the relay began.
    pub fn read_before(&self, bytes: usize) {
        self.from_client.passed(bytes);
    }

    fn moved(&self) {
        let micros = u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.moved_at.store(micros, Relaxed);
    }

    fn quiet(&self) -> Duration {
        self.since.elapsed().saturating_sub(Duration::from_micros(self.moved_at.load(Relaxed)))
    }

    /// Until nothing has moved for `limit`.
    async fn idle(&self, limit: Duration) {
        loop {
            let left = limit.saturating_sub(self.quiet());
            if left.is_zero() {
                return;
            }
            sleep(left).await;
        }
    }
}

/// Relays until both sides are done, one of them breaks, or neither moves for `idle`.
pub async fn relay<C, E>(client: &mut C, endpoint: &mut E, traffic: &Traffic, idle: Duration) -> End
where
    C: AsyncRead + AsyncWrite + Unpin,
    E: AsyncRead + AsyncWrite + Unpin,
{
    let mut client = Watched { stream: client, flow: &traffic.from_client, traffic };
    let mut endpoint = Watched { stream: endpoint, flow: &traffic.from_endpoint, traffic };
    traffic.moved();
    tokio::select! {
        copied = copy_bidirectional_with_sizes(&mut client, &mut endpoint, BUFFER, BUFFER) => {
            match copied {
                Ok(_) => End::Orderly,
                Err(_) if traffic.from_endpoint.broke.load(Relaxed) => End::EndpointBroke,
                Err(_) => End::ClientBroke,
            }
        }
        () = traffic.idle(idle) => End::Idle,
    }
}

/// A connection whose moves are noted.
struct Watched<'a, S> {
    stream: &'a mut S,
    /// Counts the bytes read from it.
    flow: &'a Flow,
    traffic: &'a Traffic,
}

impl<S> Watched<'_, S> {
    fn note<T>(&self, result: io::Result<T>) -> Poll<io::Result<T>> {
        match &result {
            Ok(_) => self.traffic.moved(),
            Err(_) => self.flow.broke.store(true, Relaxed),
        }
        Poll::Ready(result)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<'_, S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = ready!(Pin::new(&mut *self.stream).poll_read(cx, buffer));
        self.flow.passed(buffer.filled().len() - before);
        self.note(result)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<'_, S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut *self.stream).poll_write(cx, bytes));
        self.note(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut *self.stream).poll_shutdown(cx));
        // A side that has gone altogether needs no end of stream.
        let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotConnected;
        self.note(if result.as_ref().is_err_and(gone) { Ok(()) } else { result })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::JoinHandle;

    const LONG: Duration = Duration::from_secs(60);

    /// The far ends of a relay: the client's and the endpoint's, and the relay between them.
    async fn between(idle: Duration) -> (TcpStream, TcpStream, JoinHandle<(End, u64, u64)>) {
        let (far_client, mut client) = pair().await;
        let (far_endpoint, mut endpoint) = pair().await;
        let task = tokio::spawn(async move {
            let traffic = Traffic::new(Counter::noop(), Counter::noop(), None);
            let end = relay(&mut client, &mut endpoint, &traffic, idle).await;
            (end, traffic.from_client.bytes(), traffic.from_endpoint.bytes())
        });
        (far_client, far_endpoint, task)
    }

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (far, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn each_direction_ends_by_itself() {
        for client_first in [true, false] {
            let (client, endpoint, task) = between(LONG).await;
            let (mut first, mut second) =
                if client_first { (client, endpoint) } else { (endpoint, client) };
            first.write_all(b"question").await.unwrap();
            first.shutdown().await.unwrap();
            let mut heard = String::new();
            second.read_to_string(&mut heard).await.unwrap();
            assert_eq!(heard, "question");
            second.write_all(b"a longer answer").await.unwrap();
            drop(second);
            let mut answer = String::new();
            first.read_to_string(&mut answer).await.unwrap();
            assert_eq!(answer, "a longer answer");
            let (end, from_client, from_endpoint) = task.await.unwrap();
            assert_eq!(end, End::Orderly);
            let counts = if client_first { (8, 15) } else { (15, 8) };
            assert_eq!((from_client, from_endpoint), counts);
        }
    }

    #[tokio::test]
    async fn it_is_said_who_broke() {
        for (client_breaks, expected) in [(true, End::ClientBroke), (false, End::EndpointBroke)] {
            let (client, endpoint, task) = between(LONG).await;
            let (breaks, _stays) =
                if client_breaks { (client, endpoint) } else { (endpoint, client) };
            breaks.set_zero_linger().unwrap();
            drop(breaks);
            assert_eq!(task.await.unwrap().0, expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn quiet_on_both_sides_is_an_end_and_a_byte_on_one_is_not() {
        let idle = Duration::from_secs(10);
        let (mut far_client, mut client) = tokio::io::duplex(8);
        let (mut far_endpoint, mut endpoint) = tokio::io::duplex(8);
        let task = tokio::spawn(async move {
            let traffic = Traffic::new(Counter::noop(), Counter::noop(), None);
            let end = relay(&mut client, &mut endpoint, &traffic, idle).await;
            (end, traffic.from_endpoint.bytes())
        });
        let started = Instant::now();
        // Only the endpoint speaks, just often enough.
        for _ in 0..5 {
            sleep(idle - Duration::from_secs(1)).await;
            far_endpoint.write_all(b".").await.unwrap();
            far_client.read_exact(&mut [0]).await.unwrap();
        }
        assert_eq!(task.await.unwrap(), (End::Idle, 5));
        let rounded = (started.elapsed().as_secs_f64() * 10.0).round() / 10.0;
        assert_eq!(rounded, 5.0 * 9.0 + 10.0);
    }
}
