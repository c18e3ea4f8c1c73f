//! The process log: events as lines on standard error.
//!
//! Standard error may be a pipe whose reader is gone or stands still, or a file on a full disk. A
//! subscriber that writes to it directly then blocks each thread that logs, or makes it panic. Here
//! an event becomes a line in the queue of a [`LineWriter`], and so does a panic.

use crate::limit::{self, Limit};
use crate::writer::{LineWriter, Lost, Settings, Target};
use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry};

/// Time that the last lines get when the process ends.
pub const LAST_WORDS: Duration = Duration::from_secs(1);

const STDERR: Settings = Settings {
    name: "process-log",
    lines: 8 * 1024,
    bytes: 4 * 1024 * 1024,
    gather: Duration::ZERO,
    tick: Some((Duration::from_secs(1), limit::report)),
};

const STDOUT: Settings =
    Settings { name: "announcements", lines: 64, bytes: 64 * 1024, tick: None, ..STDERR };

static LOG: OnceLock<LineWriter> = OnceLock::new();
static PANICS: AtomicU64 = AtomicU64::new(0);
static ANNOUNCEMENTS: OnceLock<LineWriter> = OnceLock::new();

/// The form of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// One JSON object a line, instead of text.
    pub json: bool,
    /// With the module that an event comes from, where the line is text.
    pub target: bool,
    /// With the spans around an event.
    pub spans: bool,
}

/// Logs from now on what `filter` lets through, and panics as events.
///
/// # Errors
/// No thread can be started, or a log is there already, which then serves as well.
pub fn init(form: Form, filter: EnvFilter) -> io::Result<()> {
    if LOG.get().is_none() {
        // If another thread was faster, its writer is used, and this one ends.
        let _ = LOG.set(LineWriter::start(Target::stderr()?, STDERR)?);
    }
    let layer = tracing_subscriber::fmt::layer().with_writer(Stderr).log_internal_errors(false);
    let layer = match form {
        Form { json: true, spans: true, .. } => layer.json().flatten_event(true).boxed(),
        Form { json: true, spans: false, .. } => {
            let layer = layer.json().flatten_event(true);
            layer.with_current_span(false).with_span_list(false).boxed()
        }
        Form { json: false, target, .. } => {
            layer.with_target(target).with_ansi(io::stderr().is_terminal()).boxed()
        }
    };
    let subscriber = Registry::default().with(filter).with(Limit).with(layer);
    subscriber.try_init().map_err(io::Error::other)?;
    std::panic::set_hook(Box::new(|panic| {
        PANICS.fetch_add(1, Relaxed);
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("unnamed");
        tracing::error!(thread, panic = %panic.to_string().replace('\n', " "), "panicked");
    }));
    Ok(())
}

/// Writes a line of plain text to standard error, behind the lines of the log that wait.
pub fn say(line: &str) {
    let line = format!("{line}\n").into_bytes();
    match LOG.get() {
        Some(log) => log.write(line),
        // A command that is not a server: as any other does it.
        None => drop(io::stderr().write_all(&line)),
    }
}

/// Writes text to standard output without waiting for its reader: a line that says where a server
/// listens must not keep it from serving.
pub fn announce(text: &str) {
    if ANNOUNCEMENTS.get().is_none()
        && let Ok(target) = Target::stdout()
        && let Ok(writer) = LineWriter::start(target, STDOUT)
    {
        let _ = ANNOUNCEMENTS.set(writer);
    }
    if let Some(writer) = ANNOUNCEMENTS.get() {
        writer.write(text.as_bytes().to_vec());
    }
}

/// Lets the last lines be written, for at most [`LAST_WORDS`]. Call it when the process ends.
pub fn finish() {
    for writer in [LOG.get(), ANNOUNCEMENTS.get()].into_iter().flatten() {
        writer.close(LAST_WORDS);
    }
}

/// Lines of the process log that were not written, by cause.
pub fn lost() -> [(&'static str, u64); 4] {
    let Lost { queue_full, stalled, write_error } =
        LOG.get().map(LineWriter::lost).unwrap_or_default();
    [
        ("queue_full", queue_full),
        ("stalled", stalled),
        ("write_error", write_error),
        ("rate_limited", limit::suppressed()),
    ]
}

/// Number of panics so far, of tasks and requests alike.
pub fn panics() -> u64 {
    PANICS.load(Relaxed)
}

/// Makes a line of each event.
#[derive(Debug, Clone, Copy)]
struct Stderr;

/// One line; the subscriber writes it at once.
struct StderrLine;

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = StderrLine;

    fn make_writer(&'a self) -> StderrLine {
        StderrLine
    }
}

impl Write for StderrLine {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Some(log) = LOG.get() {
            log.write(line.to_vec());
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
