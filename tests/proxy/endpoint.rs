//! Endpoints that behave as told: well, slowly, or badly.

use crate::harness::anywhere;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

/// The time of the model `slow` under [`Behaviour::Paced`].
pub const SLOW: Duration = Duration::from_secs(1);
/// Time that each request takes of an endpoint that serves one after the other.
pub const ITS_TURN: Duration = Duration::from_millis(3);

/// The behaviour of an endpoint towards inferences. Probes are always answered well.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// Answers with the length and a checksum of what it got.
    Echo,
    /// Reads and never answers.
    Silent,
    /// Reads and closes.
    Reset,
    /// Begins an answer and closes in the middle.
    Truncated,
    /// Answers something that is not HTTP.
    Garbage,
    /// Says 503, as a worker whose queue is full.
    Busy,
    /// Says 500 at once.
    Failing,
    /// Says 404 at once.
    Missing,
    /// Answers with 40 MB.
    Huge,
    /// Echoes, and closes the connection when a second request comes on it.
    OnePerConnection,
    /// Refuses with 413 after the header, and closes.
    Early413,
    /// Echoes, what the model `slow` is asked for after [`SLOW`], and reports nothing.
    Paced,
    /// Echoes, one request after the other and each for [`ITS_TURN`], and reports nothing.
    InTurn,
    /// Echoes, each time that it is let: see [`Endpoint::let_go`].
    Gated,
}

/// Its current behaviour, and the gate that holds answers back.
struct Gate {
    behaviour: Mutex<Behaviour>,
    open: Semaphore,
    turn: tokio::sync::Mutex<()>,
    /// Bodies in the order in which they came.
    came: Mutex<Vec<String>>,
}

/// A fake endpoint; dropping it closes it.
pub struct Endpoint {
    pub address: SocketAddr,
    pub served: Arc<AtomicUsize>,
    /// Inferences whose connection was closed by the proxy before an answer.
    pub abandoned: Arc<AtomicUsize>,
    gate: Arc<Gate>,
    task: AbortHandle,
}

impl Endpoint {
    pub async fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind(anywhere()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (served, abandoned) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let counts = (Arc::clone(&served), Arc::clone(&abandoned));
        let (open, came) = (Semaphore::new(0), Mutex::default());
        let gate = Arc::new(Gate {
            behaviour: Mutex::new(behaviour),
            open,
            turn: Default::default(),
            came,
        });
        let held = Arc::clone(&gate);
        let task = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let (served, abandoned) = (Arc::clone(&counts.0), Arc::clone(&counts.1));
                let gate = Arc::clone(&held);
                tokio::spawn(async move { serve(stream, &served, &abandoned, &gate).await });
            }
        });
        Self { address, served, abandoned, gate, task: task.abort_handle() }
    }

    /// Lets so many more answers go.
    pub fn let_go(&self, answers: usize) {
        self.gate.open.add_permits(answers);
    }

    /// Bodies of inferences, in the order in which they came.
    pub fn came(&self) -> Vec<String> {
        self.gate.came.lock().unwrap().clone()
    }

    /// From now on it behaves like this.
    pub fn becomes(&self, behaviour: Behaviour) {
        *self.gate.behaviour.lock().unwrap() = behaviour;
    }

    pub fn served(&self) -> usize {
        self.served.load(Relaxed)
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The answer of `Echo` to a body.
pub fn echo(body: &[u8]) -> String {
    let sum = body.iter().fold(7_u64, |sum, b| sum.wrapping_mul(31).wrapping_add(u64::from(*b)));
    format!("{{\"length\":{},\"sum\":{sum}}}", body.len())
}

async fn serve(
    mut stream: TcpStream,
    served: &AtomicUsize,
    abandoned: &AtomicUsize,
    gate: &Gate,
) -> Option<()> {
    let mut buffer = Vec::new();
    let mut on_this_connection = 0;
    loop {
        let end = read_until(&mut stream, &mut buffer, b"\r\n\r\n").await?;
        let head = String::from_utf8_lossy(&buffer[..end]).to_lowercase();
        buffer.drain(..end);
        let behaviour = *gate.behaviour.lock().unwrap();
        if behaviour == Behaviour::Early413 && head.starts_with("post") {
            answer(&mut stream, "413 Payload Too Large", "", "{\"error\":\"too long\"}").await?;
            return None;
        }
        let body = if head.contains("transfer-encoding: chunked") {
            read_chunks(&mut stream, &mut buffer).await?
        } else {
            let length = head.lines().find_map(|l| l.strip_prefix("content-length: "));
            let length = length.map_or(0, |l| l.trim().parse().unwrap());
            read_exactly(&mut stream, &mut buffer, length).await?
        };
        if head.starts_with("get") {
            answer(&mut stream, "200 OK", "", "{}").await?;
            continue;
        }
        served.fetch_add(1, Relaxed);
        on_this_connection += 1;
        match behaviour {
            Behaviour::Gated => {
                gate.came.lock().unwrap().push(String::from_utf8_lossy(&body).into_owned());
                let mut rest = [0; 1];
                tokio::select! {
                    open = gate.open.acquire() => open.unwrap().forget(),
                    _ = stream.read(&mut rest) => {
                        abandoned.fetch_add(1, Relaxed);
                        return None;
                    }
                }
                answer(&mut stream, "200 OK", "", &echo(&body)).await?;
            }
            Behaviour::InTurn => {
                let turn = gate.turn.lock().await;
                tokio::time::sleep(ITS_TURN).await;
                drop(turn);
                answer(&mut stream, "200 OK", "", &echo(&body)).await?;
            }
            Behaviour::Paced => {
                if head.contains("/models/slow/") {
                    tokio::time::sleep(SLOW).await;
                }
                answer(&mut stream, "200 OK", "", &echo(&body)).await?;
            }
            Behaviour::OnePerConnection if on_this_connection > 1 => return None,
            Behaviour::Echo | Behaviour::OnePerConnection => {
                let seen = format!(
                    "x-seen-deadline: {}\r\nx-seen-trace: {}\r\nx-seen-state: {}\r\nx-seen-secret: {}\r\nconnection: \
                     keep-alive, x-inner\r\nx-inner: 1\r\nendpoint-load-metrics: TEXT \
                     named_metrics.rif=3, named_metrics.slots=4, named_metrics.lat_at_rif_ms=5\r\n",
                    value(&head, "x-request-deadline"),
                    value(&head, "traceparent"),
                    value(&head, "tracestate"),
                    value(&head, "x-secret"),
                );
                answer(&mut stream, "200 OK", &seen, &echo(&body)).await?;
            }
            Behaviour::Silent => {
                let mut rest = [0; 1];
                let _ = stream.read(&mut rest).await;
                abandoned.fetch_add(1, Relaxed);
                return None;
            }
            Behaviour::Reset => return None,
            Behaviour::Truncated => {
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
                    .await
                    .ok()?;
                return None;
            }
            Behaviour::Garbage => {
                stream.write_all(b"\x00\x01\x02 not http at all\r\n\r\n").await.ok()?;
                return None;
            }
            Behaviour::Busy => {
                let full = "x-forebay-reason: queue_full\r\nretry-after: 1\r\n";
                answer(&mut stream, "503 Service Unavailable", full, "{\"error\":\"full\"}")
                    .await?;
            }
            Behaviour::Failing => {
                answer(&mut stream, "500 Internal Server Error", "", "{\"error\":\"mine\"}")
                    .await?;
            }
            Behaviour::Missing => {
                answer(&mut stream, "404 Not Found", "", "{\"error\":\"none\"}").await?;
            }
            // Answered above.
            Behaviour::Early413 => return None,
            Behaviour::Huge => {
                answer(&mut stream, "200 OK", "", &"x".repeat(40_000_000)).await?;
            }
        }
    }
}

fn value<'a>(head: &'a str, name: &str) -> &'a str {
    let found = head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    found.unwrap_or("")
}

async fn answer(stream: &mut TcpStream, status: &str, headers: &str, body: &str) -> Option<()> {
    let length = body.len();
    let text = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n{headers}\r\n{body}");
    stream.write_all(text.as_bytes()).await.ok()
}

async fn fill(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<()> {
    (stream.read_buf(buffer).await.ok()? > 0).then_some(())
}

async fn read_until(stream: &mut TcpStream, buffer: &mut Vec<u8>, end: &[u8]) -> Option<usize> {
    loop {
        if let Some(at) = buffer.windows(end.len()).position(|window| window == end) {
            return Some(at + end.len());
        }
        fill(stream, buffer).await?;
    }
}

async fn read_exactly(s: &mut TcpStream, buffer: &mut Vec<u8>, length: usize) -> Option<Vec<u8>> {
    while buffer.len() < length {
        fill(s, buffer).await?;
    }
    Some(buffer.drain(..length).collect())
}

async fn read_chunks(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = read_until(stream, buffer, b"\r\n").await?;
        let line = String::from_utf8_lossy(&buffer[..end - 2]).into_owned();
        buffer.drain(..end);
        let length = usize::from_str_radix(line.trim(), 16).unwrap();
        let chunk = read_exactly(stream, buffer, length + 2).await?;
        if length == 0 {
            return Some(body);
        }
        body.extend_from_slice(&chunk[..length]);
    }
}
