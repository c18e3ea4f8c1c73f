//! One connection to a shared store, on which requests go out one behind the other and answers come back in order.
//!
//! It is made again when it ends, with growing pauses. Requests that come meanwhile fail at once. So do all that wait when
//! the store sends what is no answer, or nothing for a while: what comes after that could be the answer to another
//! question.

use super::wire::{Due, NoAnswer, Protocol, Reply};
use bytes::BytesMut;
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// Requests that wait to be sent.
const MAX_CALLS: usize = 1024;
/// Requests that wait for their answers.
const MAX_DUE: usize = 4096;
/// Bytes to send from which no further requests are taken.
const MAX_OUT: usize = 1024 * 1024;
/// Time for a connection and what is said first on it.
const MAX_CONNECT: Duration = Duration::from_secs(1);
/// Time after which an answer that has not come ends the connection.
const STALLED: Duration = Duration::from_secs(1);
/// Pause before the next connection; it doubles while none holds.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// A connection that held this long begins with the first pause.
const HELD: Duration = Duration::from_secs(10);

/// A connection of any kind.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection that is being made.
pub type Dialling = Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send>>;
/// Makes connections to the store.
pub type Dial = Box<dyn Fn() -> Dialling + Send + Sync>;

/// A shared store, as a connection needs to know it.
pub(super) struct Store {
    pub(super) protocol: Protocol,
    pub(super) login: Option<(String, String)>,
    pub(super) database: u32,
    /// Bytes of the longest value that is taken.
    pub(super) max_value: usize,
    pub(super) dial: Dial,
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// There is no connection.
    Away,
    /// Too many requests wait.
    Busy,
}

/// Takes the answer.
pub(super) type Answer = Box<dyn FnOnce(Result<Reply, Failure>) + Send>;

/// A request.
pub(super) struct Call {
    pub(super) bytes: Vec<u8>,
    pub(super) due: Due,
    pub(super) answer: Answer,
}

impl Call {
    fn fail(self, why: Failure) {
        (self.answer)(Err(why));
    }
}

/// An answer that is due.
struct Waiting {
    due: Due,
    answer: Answer,
    since: Instant,
}

/// A connection, as those see it that ask.
pub(super) struct Lane {
    calls: mpsc::Sender<Call>,
    incoming: tokio::sync::Mutex<mpsc::Receiver<Call>>,
    is_up: AtomicBool,
    /// Why there is no connection.
    trouble: Mutex<Option<String>>,
}

impl Lane {
    pub(super) fn new() -> Self {
        let (calls, incoming) = mpsc::channel(MAX_CALLS);
        let incoming = tokio::sync::Mutex::new(incoming);
        Self { calls, incoming, is_up: AtomicBool::new(false), trouble: Mutex::default() }
    }

    /// Sends a request, or fails it at once.
    pub(super) fn call(&self, call: Call) {
        if !self.is_up.load(Relaxed) {
            return call.fail(Failure::Away);
        }
        match self.calls.try_send(call) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(call)) => call.fail(Failure::Busy),
            Err(mpsc::error::TrySendError::Closed(call)) => call.fail(Failure::Away),
        }
    }

    /// Sends a request when there is room.
    pub(super) async fn call_later(&self, call: Call) {
        if let Err(mpsc::error::SendError(call)) = self.calls.send(call).await {
            call.fail(Failure::Away);
        }
    }

    /// Whether there is a connection.
    pub(super) fn is_up(&self) -> bool {
        self.is_up.load(Relaxed)
    }

    /// Why there is no connection, or why the last one ended.
    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keeps the connection up.
    pub(super) async fn run(&self, store: &Store) {
        let mut calls = self.incoming.lock().await;
        let mut pause = FIRST_PAUSE;
        loop {
            let connected = beside(&mut calls, connect(store)).await;
            let began = Instant::now();
            let ended = match connected {
                Ok((stream, input)) => {
                    self.is_up.store(true, Relaxed);
                    let ended = converse(store, stream, input, &mut calls).await;
                    self.is_up.store(false, Relaxed);
                    ended
                }
                Err(error) => error,
            };
            *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(ended);
            if began.elapsed() >= HELD {
                pause = FIRST_PAUSE;
            }
            beside(&mut calls, sleep(pause)).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }
}

/// Waits for `work`, and fails what comes meanwhile.
async fn beside<T>(calls: &mut mpsc::Receiver<Call>, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            Some(call) = calls.recv() => call.fail(Failure::Away),
        }
    }
}

/// A connection on which everything is said that comes first.
async fn connect(store: &Store) -> Result<(Box<dyn Stream>, BytesMut), String> {
    let ready = timeout(MAX_CONNECT, greeted(store)).await;
    ready.unwrap_or_else(|_| Err(format!("no connection within {MAX_CONNECT:?}")))
}

async fn greeted(store: &Store) -> Result<(Box<dyn Stream>, BytesMut), String> {
    let words = |error: io::Error| error.to_string();
    let mut stream = (store.dial)().await.map_err(words)?;
    let mut greeting = Vec::new();
    let login = store.login.as_ref().map(|(user, password)| (user.as_str(), password.as_str()));
    let mut due = store.protocol.greet(&mut greeting, login, store.database);
    stream.write_all(&greeting).await.map_err(words)?;
    stream.flush().await.map_err(words)?;
    let mut input = BytesMut::new();
    while due > 0 {
        match store.protocol.reply(&mut input, Due::Word, 0) {
            Ok(Some(Reply::Done(_))) => due -= 1,
            Ok(Some(Reply::Refused(why))) => return Err(why),
            Ok(Some(_)) | Err(NoAnswer) => return Err("it does not speak the protocol".to_owned()),
            Ok(None) => {
                if stream.read_buf(&mut input).await.map_err(words)? == 0 {
                    return Err("it closed the connection".to_owned());
                }
            }
        }
    }
    Ok((stream, input))
}

/// Sends what comes and gives the answers, until the connection ends; returns why.
async fn converse(
    store: &Store,
    stream: Box<dyn Stream>,
    input: BytesMut,
    calls: &mut mpsc::Receiver<Call>,
) -> String {
    let (reader, writer) = split(stream);
    let out = BytesMut::new();
    let mut talk =
        Talk { store, reader, writer, input, out, is_flushed: true, due: VecDeque::new() };
    let ended = loop {
        if let Err(ended) = talk.step(calls).await {
            break ended;
        }
    };
    for waiting in talk.due {
        (waiting.answer)(Err(Failure::Away));
    }
    ended
}

/// The state of a connection.
struct Talk<'a> {
    store: &'a Store,
    reader: ReadHalf<Box<dyn Stream>>,
    writer: WriteHalf<Box<dyn Stream>>,
    input: BytesMut,
    out: BytesMut,
    is_flushed: bool,
    due: VecDeque<Waiting>,
}

impl Talk<'_> {
    /// Waits for the next thing to happen.
    async fn step(&mut self, calls: &mut mpsc::Receiver<Call>) -> Result<(), String> {
        let stalled = self.due.front().map(|waiting| waiting.since + STALLED);
        let takes = self.out.len() < MAX_OUT && self.due.len() < MAX_DUE;
        let is_sending = !self.out.is_empty() || !self.is_flushed;
        tokio::select! {
            Some(call) = calls.recv(), if takes => {
                self.take(call);
                while self.out.len() < MAX_OUT && self.due.len() < MAX_DUE {
                    let Ok(call) = calls.try_recv() else { break };
                    self.take(call);
                }
            }
            sent = send(&mut self.writer, &mut self.out), if is_sending => {
                self.is_flushed = sent.map_err(|error| error.to_string())?;
            }
            read = self.reader.read_buf(&mut self.input) => {
                if read.map_err(|error| error.to_string())? == 0 {
                    return Err("it closed the connection".to_owned());
                }
                self.give()?;
            }
            () = until(stalled) => return Err(format!("no answer within {STALLED:?}")),
        }
        Ok(())
    }

    fn take(&mut self, call: Call) {
        self.out.extend_from_slice(&call.bytes);
        let (due, answer) = (call.due, call.answer);
        self.due.push_back(Waiting { due, answer, since: Instant::now() });
    }

    /// Gives the answers that have come.
    fn give(&mut self) -> Result<(), String> {
        while !self.input.is_empty() {
            let lie = || "it sent what is no answer".to_owned();
            let due = self.due.front().ok_or_else(lie)?.due;
            let reply = self.store.protocol.reply(&mut self.input, due, self.store.max_value);
            let Some(reply) = reply.map_err(|NoAnswer| lie())? else { return Ok(()) };
            if let Some(waiting) = self.due.pop_front() {
                (waiting.answer)(Ok(reply));
            }
        }
        Ok(())
    }
}

/// Sends some of the bytes, or flushes where there are none; returns whether all has gone. Nothing is lost where it is given
/// up.
async fn send(writer: &mut WriteHalf<Box<dyn Stream>>, out: &mut BytesMut) -> io::Result<bool> {
    if out.is_empty() {
        writer.flush().await?;
        return Ok(true);
    }
    writer.write_buf(out).await?;
    Ok(false)
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
