//! An HTTP/1 endpoint whose every byte is written by its test, and which keeps what it is sent.

use crate::harness::anywhere;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

/// A step of an endpoint after it has read a request.
#[derive(Debug, Clone)]
pub enum Step {
    /// Writes these bytes; `TAG` stands for the request's `x-tag`.
    Send(String),
    /// Waits.
    Pause(Duration),
    /// Closes the connection.
    Close,
}

pub use Step::{Close, Pause, Send};

/// The time at which an endpoint answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answers {
    /// To a whole request.
    Requests,
    /// To the header of a request, before its body; then it reads the body.
    Headers,
}

/// The behaviour of an endpoint towards probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Probes {
    /// Says that it is ready.
    #[default]
    Ready,
    /// Reads them and says nothing.
    Silent,
    /// Says that it is not ready.
    NotReady,
}

#[derive(Default)]
struct Seen {
    probes: Mutex<Probes>,
    /// All that came on each connection that was no probe's.
    bytes: Mutex<Vec<Vec<u8>>>,
    connections: AtomicUsize,
    /// Scripts that were played to their end.
    played: AtomicUsize,
}

/// The endpoint; dropping it closes it.
pub struct Scripted {
    pub address: SocketAddr,
    seen: Arc<Seen>,
    task: AbortHandle,
}

impl Scripted {
    /// Plays `script` for every request but probes, which it answers well.
    pub async fn start(answers: Answers, script: Vec<Step>) -> Self {
        Self::start_many(answers, vec![script]).await
    }

    /// Plays the script whose place the request states in `x-script`, or the first.
    pub async fn start_many(answers: Answers, scripts: Vec<Vec<Step>>) -> Self {
        let listener = TcpListener::bind(anywhere()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::<Seen>::default();
        let kept = Arc::clone(&seen);
        let scripts = Arc::new(scripts);
        let task = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let connection =
                    Connection { stream, buffer: Vec::new(), place: None, seen: Arc::clone(&kept) };
                let scripts = Arc::clone(&scripts);
                tokio::spawn(async move { connection.serve(answers, &scripts).await });
            }
        });
        Self { address, seen, task: task.abort_handle() }
    }

    /// Sets its behaviour towards probes from now on.
    pub fn answers_probes(&self, probes: Probes) {
        *self.seen.probes.lock().unwrap() = probes;
    }

    /// Connections on which requests came.
    pub fn connections(&self) -> usize {
        self.seen.connections.load(SeqCst)
    }

    /// Number of times that the script was played to its end.
    pub fn played(&self) -> usize {
        self.seen.played.load(SeqCst)
    }

    /// All that came on a connection.
    pub fn bytes(&self, connection: usize) -> String {
        let bytes = self.seen.bytes.lock().unwrap();
        bytes.get(connection).map(|b| String::from_utf8_lossy(b).into_owned()).unwrap_or_default()
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    place: Option<usize>,
    seen: Arc<Seen>,
}

impl Connection {
    async fn serve(mut self, answers: Answers, scripts: &[Vec<Step>]) -> Option<()> {
        loop {
            let end = self.read_until(b"\r\n\r\n").await?;
            let head = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
            self.buffer.drain(..end);
            if head.contains("/health/") {
                let probes = *self.seen.probes.lock().unwrap();
                let status = match probes {
                    Probes::Ready => "200 OK",
                    Probes::NotReady => "503 Service Unavailable",
                    // Until the proxy has given up.
                    Probes::Silent => return self.fill().await,
                };
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\n{{}}");
                self.write(answer.as_bytes()).await?;
                return None;
            }
            self.keep(head.as_bytes());
            let script = field(&head, "x-script").map_or(0, |place| place.parse().unwrap());
            let script = &scripts[script];
            let tag = field(&head, "x-tag").unwrap_or_default().to_owned();
            if answers == Answers::Headers {
                self.play(script, &tag).await?;
            }
            if field(&head, "expect").is_some() {
                self.write(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
            }
            self.body(&head).await?;
            if answers == Answers::Requests {
                self.play(script, &tag).await?;
            }
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        let mut all = self.seen.bytes.lock().unwrap();
        let place = *self.place.get_or_insert_with(|| {
            all.push(Vec::new());
            self.seen.connections.fetch_add(1, SeqCst);
            all.len() - 1
        });
        all[place].extend_from_slice(bytes);
    }

    async fn play(&mut self, script: &[Step], tag: &str) -> Option<()> {
        for step in script {
            match step {
                Send(text) => self.write(text.replace("TAG", tag).as_bytes()).await?,
                Pause(time) => tokio::time::sleep(*time).await,
                Close => {
                    self.stream.shutdown().await.ok()?;
                    self.seen.played.fetch_add(1, SeqCst);
                    return None;
                }
            }
        }
        self.seen.played.fetch_add(1, SeqCst);
        Some(())
    }

    async fn write(&mut self, bytes: &[u8]) -> Option<()> {
        self.stream.write_all(bytes).await.ok()
    }

    /// Reads a body to its end, as its header states it.
    async fn body(&mut self, head: &str) -> Option<()> {
        if field(head, "transfer-encoding").is_some() {
            loop {
                let end = self.read_until(b"\r\n").await?;
                let line = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
                let length = usize::from_str_radix(line.trim(), 16).unwrap();
                let rest = if length == 0 { 2 } else { length + 2 };
                self.take(end + rest).await?;
                if length == 0 {
                    return Some(());
                }
            }
        }
        let length = field(head, "content-length").map_or(0, |length| length.parse().unwrap());
        self.take(length).await
    }

    async fn take(&mut self, length: usize) -> Option<()> {
        while self.buffer.len() < length {
            self.fill().await?;
        }
        let bytes: Vec<u8> = self.buffer.drain(..length).collect();
        self.keep(&bytes);
        Some(())
    }

    async fn read_until(&mut self, end: &[u8]) -> Option<usize> {
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|window| window == end) {
                return Some(at + end.len());
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> Option<()> {
        (self.stream.read_buf(&mut self.buffer).await.ok()? > 0).then_some(())
    }
}

fn field<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    head.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then_some(value.trim())
    })
}
