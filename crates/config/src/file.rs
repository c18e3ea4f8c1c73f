//! Reads a file that an operator names, safely for any content.
//!
//! A wrong path may name a FIFO, a device, a directory or a file that never ends, and a wrong text may
//! find a mistake in a parser. A process that runs must survive all of them, with what it has. So
//! files are opened without waiting and read up to a bound, and the work on them is done in a thread
//! of its own: with a stack for the deepest nesting that the parser allows, and so that a panic
//! becomes an error.

use crate::Diagnostics;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering::AcqRel, Ordering::Relaxed};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

/// Longest file that is read: no operator writes a longer one.
pub const MAX_BYTES: u64 = 4 * 1024 * 1024;
/// The parser allows 80 levels of arrays and inline tables, and 80 parts in each dotted key of them.
/// Pages of a stack that are never used cost nothing.
const STACK: usize = 128 * 1024 * 1024;
/// Work that was given up and still goes on, such as on a file system that does not answer.
const MAX_LOST: usize = 2;

const RUNNING: u8 = 0;
const GIVEN_UP: u8 = 1;
const ENDED: u8 = 2;

/// Why nothing came of a file.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It cannot be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Reading it did not end in order.
    #[error("{0}")]
    Failed(#[from] Failure),
    /// It can be read, and this is wrong with it.
    #[error("{0}")]
    Invalid(#[from] Diagnostics),
}

impl LoadError {
    /// The whole report about the file `name`, as a person reads it on a terminal.
    pub fn render(&self, name: &str) -> String {
        match self {
            Self::Io(error) => format!("can't read {name}: {error}\n"),
            Self::Failed(failure) => format!("can't read {name}: {failure}\n"),
            Self::Invalid(diagnostics) => diagnostics.render(name),
        }
    }
}

/// Reads a file and has `parse` make something of its text; nothing that the file does to its reader
/// goes beyond that. Both take no longer than `limit`.
///
/// # Errors
/// Why nothing came of it.
pub fn load<T: Send + 'static>(
    path: &Path,
    limit: Duration,
    parse: impl FnOnce(&str) -> Result<T, Diagnostics> + Send + 'static,
) -> Result<T, LoadError> {
    let path = path.to_owned();
    contained(limit, move || parse(&read(&path)?).map_err(LoadError::from))?
}

/// The text of a file of at most [`MAX_BYTES`].
///
/// # Errors
/// It is no file, is too long, cannot be read, or is not UTF-8.
fn read(path: &Path) -> Result<String, LoadError> {
    String::from_utf8(read_bytes(path)?).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let found = error.as_bytes().get(at).copied().unwrap_or_default();
        let message = format!("expected text in UTF-8, found the byte 0x{found:02x}");
        let shown = String::from_utf8_lossy(error.as_bytes());
        LoadError::Invalid(Diagnostics::one(&shown, &(at..at + 1), &message))
    })
}

/// The bytes of a file of at most [`MAX_BYTES`].
///
/// # Errors
/// It is no file, is too long, or cannot be read.
pub fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let is_file = |found: std::fs::Metadata| {
        if found.is_file() { Ok(()) } else { Err(io::Error::other("expected a file")) }
    };
    // Opening some devices already does something.
    is_file(std::fs::metadata(path)?)?;
    // It may have become a FIFO meanwhile, which must not be waited for.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    is_file(file.metadata()?)?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(io::Error::other(format!("expected at most {MAX_BYTES} bytes")));
    }
    Ok(bytes)
}

/// Why work came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It panicked, which is a mistake of this program.
    #[error("this program failed while reading it: {0}")]
    Panicked(String),
    /// It did not end.
    #[error("reading it did not end within {0:?}")]
    TimedOut(Duration),
    /// Earlier work still goes on.
    #[error("{0} earlier attempts to read a file have not ended")]
    Busy(usize),
    /// There is no thread for it.
    #[error("cannot start a thread to read it: {0}")]
    NoThread(io::Error),
}

/// Runs `work` in a thread of its own, and waits no longer than `limit` for it.
///
/// # Errors
/// It panicked, did not end in time, or could not begin.
pub fn contained<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    static LOST: AtomicUsize = AtomicUsize::new(0);
    let lost = LOST.load(Relaxed);
    if lost >= MAX_LOST {
        return Err(Failure::Busy(lost));
    }
    let state = Arc::new(AtomicU8::new(RUNNING));
    let ending = Arc::clone(&state);
    let (sender, receiver) = sync_channel(1);
    let run = move || {
        let result = catch_unwind(AssertUnwindSafe(work));
        let result = result.map_err(|payload| Failure::Panicked(words(&*payload)));
        // Nothing receives it once it was given up.
        let _ = sender.send(result);
        if ending.swap(ENDED, AcqRel) == GIVEN_UP {
            LOST.fetch_sub(1, Relaxed);
        }
    };
    let thread = thread::Builder::new().name("read-file".to_owned()).stack_size(STACK);
    thread.spawn(run).map_err(Failure::NoThread)?;
    match receiver.recv_timeout(limit) {
        Ok(result) => result,
        Err(RecvTimeoutError::Disconnected) => Err(Failure::Panicked("no words".to_owned())),
        Err(RecvTimeoutError::Timeout) => {
            LOST.fetch_add(1, Relaxed);
            if state.swap(GIVEN_UP, AcqRel) == ENDED {
                // At the last moment.
                LOST.fetch_sub(1, Relaxed);
            }
            Err(Failure::TimedOut(limit))
        }
    }
}

fn words(payload: &(dyn std::any::Any + Send)) -> String {
    let text: Option<&dyn Display> = match payload.downcast_ref::<String>() {
        Some(text) => Some(text),
        None => payload.downcast_ref::<&str>().map(|text| text as &dyn Display),
    };
    text.map_or_else(|| "no words".to_owned(), ToString::to_string)
}
