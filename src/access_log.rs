//! The access log: one JSON line a request, written without making a request wait.
//!
//! A disk that is full or slow must not slow down inference. Lines go through a bounded queue to a
//! thread of their own; if the queue is full or the file can't be written, lines are dropped and
//! counted, never waited for.

use crate::config::AccessLog;
use forebay_protocol::metric;
use serde::Serialize;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

/// Lines that may wait for the disk: some megabytes at most.
const QUEUE: usize = 16 * 1024;
/// Time that lines gather before they are written: far below what anyone watches a log with, and
/// the queue holds what comes meanwhile.
const GATHER: Duration = Duration::from_millis(20);

/// Bytes that gather before they are written in any case.
const CHUNK: usize = 64 * 1024;

/// One finished request. Times are microseconds, sizes bytes.
#[derive(Debug, Serialize)]
pub struct Line<'a> {
    /// When it ended, UTC.
    pub time: String,
    /// `x-request-id`.
    pub request_id: &'a str,
    /// Trace id of `traceparent`.
    pub trace_id: &'a str,
    /// Address of the caller.
    pub client: Option<String>,
    /// Version of TLS that it came in, such as `1.3`.
    pub tls: Option<&'a str>,
    /// HTTP method.
    pub method: &'a str,
    /// Path without the query.
    pub path: &'a str,
    /// HTTP status; 0 if no answer was given.
    pub status: u16,
    /// Status of a gRPC call, whose HTTP status is always 200.
    pub grpc_status: Option<u8>,
    /// `ok`, or the code of the refusal.
    pub reason: &'static str,
    /// Name of the route.
    pub route: Option<&'a str>,
    /// Name of the variant.
    pub variant: Option<&'a str>,
    /// Model in the path.
    pub model: Option<&'a str>,
    /// Version in the path.
    pub version: Option<&'a str>,
    /// How urgent it was: `high`, `normal` or `batch`.
    pub priority: &'static str,
    /// `unary` (held in memory) or `stream`.
    pub way: Option<&'static str>,
    /// The endpoint that was tried last.
    pub endpoint: Option<&'a str>,
    /// How many were tried.
    pub attempts: usize,
    /// What became of a second attempt beside a slow first one: `won`, `lost` or `failed`.
    pub hedged: Option<&'static str>,
    /// Why another variant answered than the one that was asked for.
    pub degraded: Option<&'static str>,
    /// Body that came in.
    pub bytes_in: u64,
    /// Body that went out.
    pub bytes_out: u64,
    /// From the header's arrival to the end.
    pub total_us: u64,
    /// Receiving the body, if it was held.
    pub receive_us: u64,
    /// Until it was bound to an endpoint, the wait in the queue included.
    pub balance_us: u64,
    /// Waiting for endpoints.
    pub forward_us: u64,
    /// The refusal in words.
    pub error: Option<&'a str>,
}

/// One ended connection at Layer 4. Times are microseconds, sizes bytes.
#[derive(Debug, Serialize)]
pub struct ConnectionLine<'a> {
    /// When it ended, UTC.
    pub time: String,
    /// `tcp`; lines of requests have no such field.
    pub protocol: &'static str,
    /// Where it came in.
    pub listener: &'a str,
    /// Address of the caller.
    pub client: String,
    /// Version of TLS that ends here, such as `1.3`.
    pub tls: Option<&'static str>,
    /// `ok`, or why it ended otherwise.
    pub reason: &'static str,
    /// Name of the pool.
    pub pool: &'a str,
    /// The endpoint that was tried last.
    pub endpoint: Option<&'a str>,
    /// How many were tried.
    pub attempts: usize,
    /// From the caller to the endpoint.
    pub bytes_in: u64,
    /// From the endpoint to the caller.
    pub bytes_out: u64,
    /// From its arrival to its end.
    pub total_us: u64,
    /// From its arrival until an endpoint had taken it.
    pub connect_us: u64,
    /// The reason in words.
    pub error: Option<&'a str>,
}

enum Command {
    Line(Vec<u8>),
    /// Opens the file again under its name: a log rotation has moved it.
    Reopen,
    Stop,
}

/// Takes lines.
pub struct AccessLogger {
    commands: Option<SyncSender<Command>>,
    writer: std::sync::Mutex<Option<JoinHandle<()>>>,
}

impl AccessLogger {
    /// Starts the writer.
    ///
    /// # Errors
    /// The file can't be opened, or no thread started.
    pub fn start(target: &AccessLog) -> io::Result<Self> {
        let mut sink = match target {
            AccessLog::Off => return Ok(Self { commands: None, writer: None.into() }),
            AccessLog::Stdout => Sink::new(Target::Stdout),
            AccessLog::File(path) => Sink::new(Target::File(open(path)?, path.clone())),
        };
        let (commands, queue) = sync_channel(QUEUE);
        let run = move || write_lines(&queue, &mut sink);
        let writer = std::thread::Builder::new().name("access-log".to_owned()).spawn(run)?;
        Ok(Self { commands: Some(commands), writer: Some(writer).into() })
    }

    /// Are lines wanted at all?
    pub fn is_on(&self) -> bool {
        self.commands.is_some()
    }

    /// Writes a line, soon; drops it if too many wait.
    pub fn write(&self, line: &impl Serialize) {
        let mut text = Vec::with_capacity(512);
        // Writing JSON to memory does not fail: there are no maps with odd keys in a line.
        if serde_json::to_writer(&mut text, line).is_ok() {
            text.push(b'\n');
            self.send(Command::Line(text));
        }
    }

    /// Opens the file again under its name.
    pub fn reopen(&self) {
        self.send(Command::Reopen);
    }

    /// Lets the writer write what waits, but not for longer than `patience`: a reader of standard
    /// output that stands still must not keep the process.
    pub async fn stop(&self, patience: Duration) {
        self.send(Command::Stop);
        let writer = self.writer.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let Some(writer) = writer else { return };
        let started = Instant::now();
        while !writer.is_finished() && started.elapsed() < patience {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn send(&self, command: Command) {
        if let Some(commands) = &self.commands
            && commands.try_send(command).is_err()
        {
            dropped(1);
        }
    }
}

/// `2026-01-31T12:00:00.000Z`, as Elasticsearch and CloudWatch read it.
pub fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let millis = since.subsec_millis();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// Year, month and day of a day since 1970-01-01
/// (<https://howardhinnant.github.io/date_algorithms.html#civil_from_days>).
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// Where lines go, and those that gather for it.
struct Sink {
    target: Target,
    /// Whole lines.
    gathered: Vec<u8>,
    /// Lines that could not be written, since this was last looked at.
    lost: u64,
    /// Whether anything was written since then.
    wrote: bool,
}

enum Target {
    Stdout,
    File(File, PathBuf),
}

impl Sink {
    fn new(target: Target) -> Self {
        Self { target, gathered: Vec::with_capacity(2 * CHUNK), lost: 0, wrote: false }
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        self.gathered.extend_from_slice(line);
        if self.gathered.len() < CHUNK { Ok(()) } else { self.flush() }
    }

    /// Writes what has gathered. If that fails, every line that is not there as a whole is lost,
    /// and the next one begins on a line of its own.
    fn flush(&mut self) -> io::Result<()> {
        let mut written = 0;
        let result = loop {
            let rest = &self.gathered[written..];
            if rest.is_empty() {
                break Ok(());
            }
            let result = match &mut self.target {
                Target::Stdout => io::stdout().write(rest),
                Target::File(file, _) => file.write(rest),
            };
            match result {
                Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                Ok(more) => written += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        self.lost += lines(&self.gathered[written..]);
        self.wrote |= written > 0 && result.is_ok();
        let torn = written > 0 && self.gathered[written - 1] != b'\n';
        self.gathered.clear();
        if torn {
            self.gathered.push(b'\n');
        }
        // Standard output gathers too.
        match &self.target {
            Target::Stdout => result.and(io::stdout().flush()),
            Target::File(..) => result,
        }
    }

    fn reopen(&mut self) -> io::Result<()> {
        let flushed = self.flush();
        if let Target::File(file, path) = &mut self.target {
            *file = open(path)?;
        }
        flushed
    }
}

fn lines(bytes: &[u8]) -> u64 {
    bytes.split(|byte| *byte == b'\n').map(|line| u64::from(!line.is_empty())).sum()
}

fn open(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).open(path)
}

fn write_lines(queue: &Receiver<Command>, sink: &mut Sink) {
    let mut failing = false;
    loop {
        // Waking this thread for each line would cost each request a switch of threads: after the
        // first it lets others gather, and writes them together.
        let command = match queue.try_recv() {
            Ok(command) => command,
            Err(TryRecvError::Disconnected) => break,
            Err(TryRecvError::Empty) => {
                note(sink.flush(), &mut failing, sink);
                let Ok(command) = queue.recv() else { break };
                if matches!(command, Command::Line(_)) {
                    std::thread::sleep(GATHER);
                }
                command
            }
        };
        let result = match command {
            Command::Line(line) => sink.write(&line),
            Command::Reopen => sink.reopen(),
            Command::Stop => break,
        };
        note(result, &mut failing, sink);
    }
    note(sink.flush(), &mut failing, sink);
}

/// Says once that writing fails, and once that it works again; counts what was lost.
fn note(result: io::Result<()>, failing: &mut bool, sink: &mut Sink) {
    dropped(std::mem::take(&mut sink.lost));
    let wrote = std::mem::take(&mut sink.wrote);
    match result {
        Ok(()) => {
            if wrote && std::mem::replace(failing, false) {
                tracing::info!("the access log can be written again");
            }
        }
        Err(error) => {
            if !std::mem::replace(failing, true) {
                tracing::error!(%error, "the access log can't be written, lines are dropped");
            }
        }
    }
}

fn dropped(lines: u64) {
    if lines > 0 {
        metrics::counter!(metric::proxy::LOG_DROPPED).increment(lines);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
    use super::*;

    #[test]
    fn every_line_that_a_failed_flush_takes_with_it_is_counted() {
        let full = Path::new("/dev/full");
        let mut sink = Sink::new(Target::File(open(full).unwrap(), full.to_owned()));
        for _ in 0..7 {
            sink.write(b"{}\n").unwrap();
        }
        assert!(sink.flush().is_err());
        assert_eq!((sink.lost, sink.gathered.len()), (7, 0));
        assert!(sink.flush().is_ok() && !sink.wrote, "nothing is left to write");
    }

    #[test]
    fn timestamps_are_right_over_leap_years() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(timestamp(time), expected);
        }
    }
}
