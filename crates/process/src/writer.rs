//! Lines that are written without making their authors wait.
//!
//! A write to a pipe blocks when its reader stands still, and fails when the reader is gone or the
//! disk is full. Neither may slow down or end a request. So lines go through a bounded queue to a
//! thread of their own. Lines that do not fit into the queue and lines that cannot be written are
//! dropped and counted.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Bytes that gather before they are written in any case.
const CHUNK: usize = 64 * 1024;
/// Pause before a write is tried again where the descriptor takes nothing at present.
const RETRY: Duration = Duration::from_millis(10);
/// A reader of a pipe or terminal that has taken nothing for so long gets no further lines until it
/// takes some: it would find them late, and those that wait are lost when the process ends. Files are
/// slow for other reasons, and have no reader that waits for the newest line.
const STALL_MILLIS: u64 = 1000;
/// Time between two reports of lines that were dropped.
const REPORT: Duration = Duration::from_secs(10);
/// Pause after a panic of the writer, so that one that repeats does not take a core.
const AFTER_PANIC: Duration = Duration::from_millis(100);

/// The destination of lines.
#[derive(Debug)]
pub enum Target {
    /// A duplicate of standard output or standard error.
    Stream(File),
    /// A file that can be opened again under its name.
    File(File, PathBuf),
}

impl Target {
    /// Standard output. The duplicate needs none of the standard library's locks: a thread that is
    /// blocked in a write holds up no other.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn stdout() -> io::Result<Self> {
        Ok(Self::Stream(io::stdout().as_fd().try_clone_to_owned()?.into()))
    }

    /// Standard error, in the same way.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn stderr() -> io::Result<Self> {
        Ok(Self::Stream(io::stderr().as_fd().try_clone_to_owned()?.into()))
    }

    /// A file that lines are appended to, or a FIFO.
    ///
    /// # Errors
    /// It cannot be opened for writing.
    pub fn file(path: &Path) -> io::Result<Self> {
        Ok(Self::File(open(path)?, path.to_owned()))
    }
}

/// Opens for appending. A FIFO is opened for reading too: otherwise opening would wait for a reader,
/// and each reader that leaves would break it for the next.
fn open(path: &Path) -> io::Result<File> {
    let is_fifo = std::fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo());
    let mut options = File::options();
    if is_fifo {
        options.read(true).write(true);
    } else {
        options.create(true).append(true);
    }
    options.custom_flags(libc::O_NONBLOCK).open(path)
}

/// The behaviour of a [`LineWriter`].
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Its name in messages and as a thread.
    pub name: &'static str,
    /// Lines that may wait.
    pub lines: usize,
    /// Bytes of lines that may wait.
    pub bytes: usize,
    /// Time that lines gather after the first one, so that each does not wake the writer.
    pub gather: Duration,
    /// Called at these intervals, and whenever the queue has run empty.
    pub tick: Option<(Duration, fn())>,
}

/// Takes lines and never waits.
#[derive(Debug)]
pub struct LineWriter {
    /// An empty line only wakes the writer.
    queue: SyncSender<Vec<u8>>,
    most_bytes: usize,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Bytes in the queue.
    waiting: AtomicUsize,
    /// Since when a stream takes nothing, in milliseconds from `epoch`; 0: it is not written to.
    blocked_since: AtomicU64,
    epoch: OnceLock<Instant>,
    overflowed: AtomicU64,
    stalled: AtomicU64,
    failed: AtomicU64,
    panics: AtomicU64,
    reopen: AtomicBool,
    closing: AtomicBool,
    finished: Mutex<bool>,
    end: Condvar,
}

/// Lines that were not written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lost {
    /// The queue was full.
    pub queue_full: u64,
    /// The reader stood still.
    pub stalled: u64,
    /// The write failed.
    pub write_error: u64,
}

impl Lost {
    /// All of them.
    pub fn total(self) -> u64 {
        self.queue_full + self.stalled + self.write_error
    }
}

impl LineWriter {
    /// Starts the writer's thread.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(target: Target, settings: Settings) -> io::Result<Self> {
        let (sender, queue) = sync_channel(settings.lines);
        let shared = Arc::new(Shared::default());
        let writer =
            Writer { queue, sink: Sink::new(target), settings, shared: Arc::clone(&shared) };
        std::thread::Builder::new().name(settings.name.to_owned()).spawn(move || writer.run())?;
        Ok(Self { queue: sender, most_bytes: settings.bytes, shared })
    }

    /// Writes a line that ends in a line feed, soon; drops it if too much waits.
    pub fn write(&self, line: Vec<u8>) {
        if self.shared.is_stalled() {
            self.shared.stalled.fetch_add(1, Relaxed);
            return;
        }
        let length = line.len();
        let before = self.shared.waiting.fetch_add(length, Relaxed);
        if before.saturating_add(length) > self.most_bytes || self.queue.try_send(line).is_err() {
            self.shared.waiting.fetch_sub(length, Relaxed);
            self.shared.overflowed.fetch_add(1, Relaxed);
        }
    }

    /// Opens a file again under its name, because a rotation has moved it.
    pub fn reopen(&self) {
        self.shared.reopen.store(true, Relaxed);
        self.wake();
    }

    /// Lines that were not written so far.
    pub fn lost(&self) -> Lost {
        Lost {
            queue_full: self.shared.overflowed.load(Relaxed),
            stalled: self.shared.stalled.load(Relaxed),
            write_error: self.shared.failed.load(Relaxed),
        }
    }

    /// Number of panics of the writer; it continues after each.
    pub fn panics(&self) -> u64 {
        self.shared.panics.load(Relaxed)
    }

    /// Lets the writer write the lines that wait, for at most `patience`: a reader that stands still
    /// must not keep the process. `false`: not all was written in time.
    pub fn close(&self, patience: Duration) -> bool {
        self.shared.closing.store(true, Relaxed);
        self.wake();
        // A reader that stands still is hardly waiting for the end.
        let patience = if self.shared.is_stalled() { patience.min(RETRY) } else { patience };
        let finished = self.shared.finished.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.shared.end.wait_timeout_while(finished, patience, |finished| !*finished);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn wake(&self) {
        // If the queue is full, the writer is awake.
        let _ = self.queue.try_send(Vec::new());
    }
}

impl Shared {
    fn is_stalled(&self) -> bool {
        let since = self.blocked_since.load(Relaxed);
        since != 0 && self.now().saturating_sub(since) > STALL_MILLIS
    }

    /// Milliseconds, never 0.
    fn now(&self) -> u64 {
        let passed = self.epoch.get_or_init(Instant::now).elapsed().as_millis();
        u64::try_from(passed).unwrap_or(u64::MAX).saturating_add(1)
    }
}

/// The thread.
struct Writer {
    queue: Receiver<Vec<u8>>,
    sink: Sink,
    settings: Settings,
    shared: Arc<Shared>,
}

impl Writer {
    fn run(mut self) {
        // A bug here must cost lines, not the log.
        while catch_unwind(AssertUnwindSafe(|| self.write_lines())).is_err() {
            self.shared.panics.fetch_add(1, Relaxed);
            self.shared.failed.fetch_add(lines(&self.sink.gathered), Relaxed);
            self.sink.gathered.clear();
            std::thread::sleep(AFTER_PANIC);
        }
        *self.shared.finished.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.shared.end.notify_all();
    }

    /// Until it is closed.
    fn write_lines(&mut self) {
        let mut health = Health::default();
        loop {
            if self.shared.reopen.swap(false, Relaxed) {
                let reopened = self.sink.reopen(&self.shared);
                self.note(reopened, &mut health);
            }
            let line = match self.queue.try_recv() {
                Ok(line) => line,
                Err(TryRecvError::Disconnected) => break,
                Err(TryRecvError::Empty) => {
                    self.flush(&mut health);
                    if self.shared.closing.load(Relaxed) {
                        break;
                    }
                    match self.wait(&mut health) {
                        Some(line) => line,
                        None => break,
                    }
                }
            };
            self.shared.waiting.fetch_sub(line.len(), Relaxed);
            self.sink.gathered.extend_from_slice(&line);
            if self.sink.gathered.len() >= CHUNK {
                self.flush(&mut health);
            }
        }
        self.flush(&mut health);
    }

    /// For the next line. `None`: there will be none.
    fn wait(&self, health: &mut Health) -> Option<Vec<u8>> {
        let Some((interval, tick)) = self.settings.tick else {
            self.report(health);
            let line = self.queue.recv().ok()?;
            return Some(self.gather(line));
        };
        loop {
            self.report(health);
            tick();
            match self.queue.recv_timeout(interval) {
                Ok(line) => return Some(self.gather(line)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    /// Waking this thread for each line would cost each author a switch of threads: after the first
    /// line others gather, and are written together.
    fn gather(&self, line: Vec<u8>) -> Vec<u8> {
        if !line.is_empty() && !self.shared.closing.load(Relaxed) {
            std::thread::sleep(self.settings.gather);
        }
        line
    }

    fn flush(&mut self, health: &mut Health) {
        let flushed = self.sink.flush(&self.shared);
        self.note(flushed, health);
    }

    /// Says once that writing fails, and once that it works again; counts the lines that were lost.
    fn note(&mut self, result: io::Result<()>, health: &mut Health) {
        self.shared.failed.fetch_add(std::mem::take(&mut self.sink.lost), Relaxed);
        let wrote = std::mem::take(&mut self.sink.wrote);
        let name = self.settings.name;
        match result {
            Ok(()) => {
                if wrote && std::mem::replace(&mut health.failing, false) {
                    let lost = self.shared.failed.load(Relaxed);
                    tracing::warn!(log = name, lost, "log can be written again");
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut health.failing, true) {
                    tracing::error!(log = name, %error, "can't write the log, dropping lines");
                }
            }
        }
    }

    /// Says how many lines never came into the queue, at long intervals.
    fn report(&self, health: &mut Health) {
        let overflowed = self.shared.overflowed.load(Relaxed) + self.shared.stalled.load(Relaxed);
        let is_due = health.reported.is_none_or(|(at, _)| at.elapsed() >= REPORT);
        let known = health.reported.map_or(0, |(_, known)| known);
        if overflowed > known && is_due {
            health.reported = Some((Instant::now(), overflowed));
            let (log, dropped) = (self.settings.name, overflowed - known);
            tracing::warn!(log, dropped, "log lines dropped: they could not be written in time");
        }
    }
}

/// The writer's account of itself.
#[derive(Default)]
struct Health {
    failing: bool,
    /// Time of the last report of dropped lines, and their number by then.
    reported: Option<(Instant, u64)>,
}

/// The target, and the lines that gather for it.
struct Sink {
    target: Target,
    /// Whole lines.
    gathered: Vec<u8>,
    /// Lines that could not be written, since this was last looked at.
    lost: u64,
    /// Whether anything was written since then.
    wrote: bool,
}

impl Sink {
    fn new(target: Target) -> Self {
        Self { target, gathered: Vec::with_capacity(2 * CHUNK), lost: 0, wrote: false }
    }

    /// Writes what has gathered. If that fails, every line that is not there as a whole is lost,
    /// and the next one begins on a line of its own.
    fn flush(&mut self, shared: &Shared) -> io::Result<()> {
        let mut written = 0;
        let result = loop {
            let rest = &self.gathered[written..];
            if rest.is_empty() {
                break Ok(());
            }
            let result = match &mut self.target {
                Target::File(file, _) => file.write(rest),
                Target::Stream(stream) => {
                    // Since the first try, where it is tried again.
                    let _ =
                        shared.blocked_since.compare_exchange(0, shared.now(), Relaxed, Relaxed);
                    let result = stream.write(rest);
                    if !matches!(&result, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
                        shared.blocked_since.store(0, Relaxed);
                    }
                    result
                }
            };
            match result {
                Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                Ok(more) => written += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A descriptor that does not block takes nothing at present: lines wait in the queue
                // meanwhile. They can be dropped when another file is due.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if shared.reopen.load(Relaxed) {
                        break Err(error);
                    }
                    std::thread::sleep(RETRY);
                }
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
        result
    }

    fn reopen(&mut self, shared: &Shared) -> io::Result<()> {
        let flushed = self.flush(shared);
        if let Target::File(file, path) = &mut self.target {
            *file = open(path)?;
        }
        flushed
    }
}

fn lines(bytes: &[u8]) -> u64 {
    bytes.split(|byte| *byte == b'\n').map(|line| u64::from(!line.is_empty())).sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
    use super::*;
    use std::io::Read;

    const SETTINGS: Settings =
        Settings { name: "test", lines: 8, bytes: 1024, gather: Duration::ZERO, tick: None };
    const MAX_WAIT: Duration = Duration::from_secs(20);

    #[test]
    fn every_line_that_a_failed_flush_takes_with_it_is_counted() {
        let shared = Shared::default();
        let mut sink = Sink::new(Target::file(Path::new("/dev/full")).unwrap());
        sink.gathered.extend_from_slice(&b"{}\n".repeat(7));
        assert!(sink.flush(&shared).is_err());
        assert_eq!((sink.lost, sink.gathered.len()), (7, 0));
        assert!(sink.flush(&shared).is_ok() && !sink.wrote, "nothing is left to write");
    }

    #[test]
    fn lines_arrive_whole_and_in_order_before_the_writer_is_closed() {
        let (mut read, write) = io::pipe().unwrap();
        let target = Target::Stream(std::os::fd::OwnedFd::from(write).into());
        let writer = LineWriter::start(target, Settings { lines: 100, ..SETTINGS }).unwrap();
        (0..100).for_each(|number| writer.write(format!("{number}\n").into_bytes()));
        assert!(writer.close(MAX_WAIT));
        drop(writer);
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        assert_eq!(text, (0..100).map(|number| format!("{number}\n")).collect::<String>());
    }

    #[test]
    fn a_reader_that_stands_still_costs_lines_and_not_time() {
        let (_read, mut write) = io::pipe().unwrap();
        // As much as a pipe takes before it blocks.
        write.write_all(&[b'-'; 64 * 1024]).unwrap();
        let target = Target::Stream(std::os::fd::OwnedFd::from(write).into());
        let writer = LineWriter::start(target, SETTINGS).unwrap();
        let line = [vec![b'x'; 100], vec![b'\n']].concat();
        let started = Instant::now();
        while writer.lost().queue_full < 10 || writer.lost().stalled == 0 {
            writer.write(line.clone());
            assert!(started.elapsed() < MAX_WAIT, "nothing is dropped");
        }
        writer.write(vec![b'y'; 2 * SETTINGS.bytes]);
        assert!(!writer.close(Duration::from_millis(50)), "the pipe is full");
    }

    #[test]
    fn a_reader_that_has_gone_costs_lines_only() {
        let (read, write) = io::pipe().unwrap();
        drop(read);
        let target = Target::Stream(std::os::fd::OwnedFd::from(write).into());
        let writer = LineWriter::start(target, SETTINGS).unwrap();
        writer.write(b"1\n".to_vec());
        writer.write(b"2\n".to_vec());
        assert!(writer.close(MAX_WAIT));
        assert_eq!(writer.lost(), Lost { write_error: 2, ..Lost::default() });
    }
}
