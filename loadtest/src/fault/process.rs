//! A program that a run has started: its signals, and its end.
//!
//! No program may outlive the run that started it, however the run ends: a program is killed when its
//! handle is dropped, and its standard input ends with ours, for programs that watch it.

use crate::connection::ask;
use crate::plan::target::Target;
use crate::scenario::{Process as Spec, Protocol, Trust};
use crate::units;
use command_fds::{CommandFdExt, FdMapping};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::{self, Read as _};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};

/// Time that a program may take to answer at its URL.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two looks.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Time that a program may take to end after SIGTERM, at the end of the run.
const EXIT_TIMEOUT: Duration = Duration::from_secs(10);
/// The number of the first file descriptor that is passed (sd_listen_fds(3)).
const FIRST_PASSED_FD: i32 = 3;
/// Number of bytes of a failed program's output that are shown.
const MAX_EXCERPT: usize = 400;

/// A running program.
#[derive(Debug)]
pub(crate) struct Process {
    spec: Spec,
    log: PathBuf,
    /// The log is ours, and goes with the run.
    is_scratch: bool,
    /// Sockets that the generator opened for it.
    sockets: Vec<TcpListener>,
    child: Option<Child>,
}

impl Process {
    /// Starts it, and waits until it answers. `base` is where the scenario's paths begin.
    pub(crate) async fn start(spec: &Spec, base: &Path) -> Result<Self, String> {
        let scratch = || {
            static NUMBER: AtomicU64 = AtomicU64::new(0);
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            std::env::temp_dir().join(format!("forebay-load-{}-{number}.log", std::process::id()))
        };
        let log = spec.log.as_ref().map(|log| base.join(log));
        let bind = |address: &SocketAddr| {
            let fail = |error| format!("{}: can't listen on {address}: {error}", spec.name);
            TcpListener::bind(address).map_err(fail)
        };
        let sockets = spec.sockets.iter().map(bind).collect::<Result<_, _>>()?;
        let mut process = Self {
            is_scratch: log.is_none(),
            log: log.unwrap_or_else(scratch),
            spec: spec.clone(),
            sockets,
            child: None,
        };
        process.spawn(&spec.command)?;
        process.wait_until_ready().await?;
        Ok(process)
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.spec.name
    }

    /// The command that it was started with.
    pub(crate) fn command(&self) -> Vec<String> {
        self.spec.command.clone()
    }

    /// The URL that makes it slow.
    pub(crate) fn slow(&self) -> Option<&str> {
        self.spec.slow.as_deref()
    }

    /// Starts `command` in its place; returns the program that was there before.
    pub(crate) fn spawn(&mut self, command: &[String]) -> Result<Option<Child>, String> {
        let fail = |what: &dyn std::fmt::Display| format!("{}: {what}", self.spec.name);
        let (program, arguments) = command.split_first().ok_or_else(|| fail(&"no command"))?;
        let mut starting = self.command_for(program).map_err(|error| fail(&error))?;
        let open = File::options().create(true).append(true).open(&self.log);
        let log = open.map_err(|error| fail(&format!("{}: {error}", self.log.display())))?;
        let child = starting
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(log.try_clone().map_err(|error| fail(&error))?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn();
        let child = child.map_err(|error| fail(&format!("{program}: {error}")))?;
        Ok(self.child.replace(child))
    }

    /// The program, to which sockets are passed as systemd does it, if it has any.
    fn command_for(&self, program: &str) -> Result<Command, Box<dyn std::error::Error>> {
        if self.sockets.is_empty() {
            return Ok(Command::new(program));
        }
        let pass = |(socket, child_fd): (&TcpListener, _)| {
            let parent_fd = socket.try_clone()?.into();
            Ok(FdMapping { parent_fd, child_fd })
        };
        let passed: io::Result<_> = self.sockets.iter().zip(FIRST_PASSED_FD..).map(pass).collect();
        // The number of a process is known to itself alone before it runs.
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "export LISTEN_PID=$$; exec \"$0\" \"$@\"", program]);
        command.env("LISTEN_FDS", self.sockets.len().to_string());
        command.fd_mappings(passed?)?;
        Ok(command)
    }

    /// Waits until it answers at its URL, if it has one.
    pub(crate) async fn wait_until_ready(&mut self) -> Result<(), String> {
        self.wait_until_ready_at(None).await
    }

    /// Waits until it answers at `url`, or else at its own, if it has one.
    pub(crate) async fn wait_until_ready_at(&mut self, url: Option<&str>) -> Result<(), String> {
        let url = url.map(str::to_owned).or_else(|| self.spec.ready.clone());
        let Some(url) = url else { return Ok(()) };
        let target = Target::parse(&url, Protocol::Http1, &Trust { insecure: true, ca: None });
        let target = target.map_err(|error| format!("{}: {error}", self.spec.name))?;
        let start = Instant::now();
        loop {
            let answer = ask::answers(&target).await;
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().ok()?) {
                return Err(format!(
                    "{} has ended, {status}: {}",
                    self.spec.name,
                    self.log_excerpt()
                ));
            }
            match answer {
                Ok(()) => return Ok(()),
                Err(what) if start.elapsed() > READY_TIMEOUT => {
                    let (name, waited) =
                        (&self.spec.name, units::seconds(READY_TIMEOUT.as_secs_f64()));
                    return Err(format!("{name} is not ready after {waited}, {url}: {what}"));
                }
                Err(_) => tokio::time::sleep(POLL_INTERVAL).await,
            }
        }
    }

    /// Sends a signal.
    pub(crate) fn signal(&mut self, signal: Signal) -> Result<(), String> {
        let gone = || format!("{} is not running", self.spec.name);
        let child = self.child.as_mut().ok_or_else(gone)?;
        send(child, signal).map_err(|error| format!("{}: {error}", self.spec.name))
    }

    /// Waits until the program has ended, and sees to it at `latest`.
    pub(crate) async fn wait_for_exit(&mut self, latest: Instant) {
        if let Some(mut child) = self.child.take()
            && tokio::time::timeout_at(latest.into(), child.wait()).await.is_err()
        {
            let _ = child.kill().await;
        }
    }

    /// Ends it: politely, then not.
    pub(crate) async fn end(mut self) {
        if let Some(child) = self.child.take() {
            end(child).await;
        }
    }

    fn log_excerpt(&self) -> String {
        let mut text = Vec::new();
        // It may have said nothing.
        let _ = File::open(&self.log).and_then(|file| file.take(1 << 20).read_to_end(&mut text));
        let start = text.len().saturating_sub(MAX_EXCERPT);
        String::from_utf8_lossy(&text[start..]).trim().to_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_scratch {
            let _ = std::fs::remove_file(&self.log);
        }
    }
}

/// Ends a program: politely, then not.
pub(crate) async fn end(mut child: Child) {
    // One that was stopped could not hear the next signal.
    let _ = send(&mut child, Signal::CONT);
    let _ = send(&mut child, Signal::TERM);
    if tokio::time::timeout(EXIT_TIMEOUT, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

fn send(child: &mut Child, signal: Signal) -> Result<(), String> {
    // A signal to a program that has ended, but was not reaped yet, would be lost without an error.
    if let Ok(Some(status)) = child.try_wait() {
        return Err(format!("it has ended already, {status}"));
    }
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| "it has ended already".to_owned())?;
    kill_process(pid, signal).map_err(|error| error.to_string())
}
