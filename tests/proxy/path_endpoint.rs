//! An endpoint whose answers follow from the path, among them such as never end.

use crate::harness::{anywhere, pool_of};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::sleep;

/// Metadata of a model, as long as they usually are.
pub const SMALL: &str = "/v2/models/small";
/// An answer that is read ahead whole, and that few of fill the buffers of a connection.
pub const MEDIUM: &str = "/v1/medium";
/// The same without a stated length.
pub const MEDIUM_CHUNKS: &str = "/v1/medium/chunks";
/// An answer of [`LARGE_BYTES`].
pub const LARGE: &str = "/v1/large";
/// The same without a stated length.
pub const LARGE_CHUNKS: &str = "/v1/large/chunks";
/// Answered once the endpoint is let: see [`PathEndpoint::let_go`].
pub const GATED: &str = "/v1/gated";
/// Answered with the length of the body.
pub const LENGTH: &str = "/v1/length";
/// An answer that begins before the request is complete, and repeats it as it comes, in chunks.
pub const DUPLEX: &str = "/v1/duplex";
/// A header that comes a byte at a time and never ends.
pub const DRIP_HEADER: &str = "/v1/drip/header";
/// A body of a stated length that comes a byte at a time.
pub const DRIP_BODY: &str = "/v1/drip/body";
/// A body in chunks of a byte, without an end.
pub const DRIP_CHUNKS: &str = "/v1/drip/chunks";
/// [`EVENTS_COUNT`] events, one every [`BETWEEN`].
pub const EVENTS: &str = "/v1/events";
/// One event, and then nothing.
pub const ONE_EVENT: &str = "/v1/event";
/// The first half of an answer, and the second once the endpoint is let.
pub const HALVES: &str = "/v1/halves";

pub const MEDIUM_BYTES: usize = 900_000;
pub const LARGE_BYTES: usize = 20_000_000;
pub const EVENTS_COUNT: usize = 25;
pub const BETWEEN: Duration = Duration::from_millis(40);

/// A fake endpoint; dropping it closes it.
pub struct PathEndpoint {
    pub address: SocketAddr,
    state: Arc<State>,
    task: AbortHandle,
}

#[derive(Debug)]
struct State {
    /// Request lines, as they came.
    begun: Mutex<Vec<String>>,
    gate: Semaphore,
}

impl PathEndpoint {
    pub async fn start() -> Self {
        let listener = TcpListener::bind(anywhere()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State { begun: Mutex::default(), gate: Semaphore::new(0) });
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let state = Arc::clone(&shared);
                tokio::spawn(async move { serve(stream, &state).await });
            }
        });
        Self { address, state, task: task.abort_handle() }
    }

    /// `[pool.test]` with this endpoint, and a route to it. Its probes have time: it runs in the thread
    /// of its test.
    pub fn pool(&self, more: &str) -> String {
        let pool = pool_of(&[self.address], more);
        pool.replace("interval = \"300ms\"", "interval = \"10s\", timeout = \"10s\"")
    }

    /// Paths of the requests whose header has arrived, probes left out.
    pub fn begun(&self) -> Vec<String> {
        self.state.begun.lock().unwrap().clone()
    }

    /// Lets so many more answers go.
    pub fn let_go(&self, answers: usize) {
        self.state.gate.add_permits(answers);
    }
}

impl Drop for PathEndpoint {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: TcpStream, state: &State) -> Option<()> {
    let mut buffer = Vec::new();
    loop {
        let end = until(&mut stream, &mut buffer, b"\r\n\r\n").await?;
        let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
        buffer.drain(..end);
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        if path == "/v2/health/ready" {
            whole(&mut stream, "{}").await?;
            continue;
        }
        state.begun.lock().unwrap().push(path.clone());
        if path == DUPLEX {
            duplex(&mut stream, &mut buffer).await?;
            continue;
        }
        let length = body(&mut stream, &mut buffer, &head.to_lowercase()).await?;
        answer(&mut stream, state, &path, length).await?;
    }
}

/// Repeats a chunked body.
async fn duplex(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<()> {
    stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.ok()?;
    loop {
        let end = until(stream, buffer, b"\r\n").await?;
        let line = String::from_utf8_lossy(&buffer[..end - 2]).into_owned();
        let length = usize::from_str_radix(line.trim(), 16).ok()?;
        while buffer.len() < end + length + 2 {
            (stream.read_buf(buffer).await.ok()? > 0).then_some(())?;
        }
        stream.write_all(&buffer[..end + length + 2]).await.ok()?;
        buffer.drain(..end + length + 2);
        if length == 0 {
            return Some(());
        }
    }
}

/// Reads the body; returns how long it was.
async fn body(stream: &mut TcpStream, buffer: &mut Vec<u8>, head: &str) -> Option<usize> {
    if head.contains("transfer-encoding: chunked") {
        let mut all = 0;
        loop {
            let end = until(stream, buffer, b"\r\n").await?;
            let line = String::from_utf8_lossy(&buffer[..end - 2]).into_owned();
            buffer.drain(..end);
            let length = usize::from_str_radix(line.trim(), 16).ok()?;
            skip(stream, buffer, length + 2).await?;
            if length == 0 {
                return Some(all);
            }
            all += length;
        }
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length = length.map_or(0, |length| length.trim().parse().unwrap());
    skip(stream, buffer, length).await?;
    Some(length)
}

async fn answer(s: &mut TcpStream, state: &State, path: &str, length: usize) -> Option<()> {
    match path {
        SMALL => whole(s, &"x".repeat(3000)).await,
        MEDIUM => whole(s, &"x".repeat(MEDIUM_BYTES)).await,
        MEDIUM_CHUNKS => in_chunks(s, MEDIUM_BYTES).await,
        LARGE => whole(s, &"x".repeat(LARGE_BYTES)).await,
        LARGE_CHUNKS => in_chunks(s, LARGE_BYTES).await,
        GATED => {
            let mut rest = [0; 1];
            tokio::select! {
                open = state.gate.acquire() => open.unwrap().forget(),
                // The proxy gave the request up.
                _ = s.read(&mut rest) => return None,
            }
            whole(s, "{}").await
        }
        DRIP_HEADER => {
            s.write_all(b"HTTP/1.1 200 OK\r\nx-drip: ").await.ok()?;
            drip(s, b"y").await
        }
        DRIP_BODY => {
            s.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n").await.ok()?;
            drip(s, b"y").await
        }
        DRIP_CHUNKS => {
            let head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\
                         transfer-encoding: chunked\r\n\r\n";
            s.write_all(head).await.ok()?;
            drip(s, b"1\r\ny\r\n").await
        }
        EVENTS | ONE_EVENT => {
            let head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n\
                         transfer-encoding: chunked\r\n\r\n";
            s.write_all(head).await.ok()?;
            for number in 0..if path == EVENTS { EVENTS_COUNT } else { 1 } {
                let event = format!("data: {number:02}\n\n");
                s.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).await.ok()?;
                sleep(BETWEEN).await;
            }
            if path == ONE_EVENT {
                // Until the proxy gives it up.
                let _ = s.read(&mut [0; 1]).await;
                return None;
            }
            s.write_all(b"0\r\n\r\n").await.ok()
        }
        HALVES => {
            s.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nfirst").await.ok()?;
            state.gate.acquire().await.unwrap().forget();
            s.write_all(b"other").await.ok()
        }
        _ => whole(s, &length.to_string()).await,
    }
}

async fn drip(stream: &mut TcpStream, bytes: &[u8]) -> Option<()> {
    loop {
        sleep(Duration::from_millis(20)).await;
        stream.write_all(bytes).await.ok()?;
    }
}

/// A body of so many bytes, in chunks of up to 50,000.
async fn in_chunks(stream: &mut TcpStream, bytes: usize) -> Option<()> {
    stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.ok()?;
    let mut left = bytes;
    while left > 0 {
        let length = left.min(50_000);
        let chunk = format!("{length:x}\r\n{}\r\n", "x".repeat(length));
        stream.write_all(chunk.as_bytes()).await.ok()?;
        left -= length;
    }
    stream.write_all(b"0\r\n\r\n").await.ok()
}

async fn whole(stream: &mut TcpStream, body: &str) -> Option<()> {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await.ok()?;
    stream.write_all(body.as_bytes()).await.ok()
}

async fn until(stream: &mut TcpStream, buffer: &mut Vec<u8>, end: &[u8]) -> Option<usize> {
    loop {
        if let Some(at) = buffer.windows(end.len()).position(|window| window == end) {
            return Some(at + end.len());
        }
        (stream.read_buf(buffer).await.ok()? > 0).then_some(())?;
    }
}

async fn skip(stream: &mut TcpStream, buffer: &mut Vec<u8>, mut length: usize) -> Option<()> {
    loop {
        let here = length.min(buffer.len());
        buffer.drain(..here);
        length -= here;
        if length == 0 {
            return Some(());
        }
        (stream.read_buf(buffer).await.ok()? > 0).then_some(())?;
    }
}
