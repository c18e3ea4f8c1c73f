//! Workers on the same machine, started and watched by the proxy.
//!
//! One machine is the default and must need nothing else installed: no process manager, no port
//! plan. A pool with a fleet gets its workers from here. Each listens on a port that the OS chose
//! at first start and keeps it over restarts, so that an endpoint's identity survives a crash. A
//! worker that dies is started again, after a pause that grows while it keeps dying. Workers hang
//! on a pipe from this process: if it is killed, they see the pipe close and leave.

use crate::config::{Config, Fleet, Source};
use anyhow::{Context, Result, bail};
use forebay_process::supervise::{Importance, Supervisor, fault_point};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, timeout};

/// Time that a worker gets to say where it listens; models are loaded after that.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest first line of a worker's output.
const MAX_LINE: u64 = 4096;
/// Pause before the first restart; doubles up to the most while the worker keeps dying.
const MIN_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// A worker that ran this long before it died starts again with the first pause.
const STABLE: Duration = Duration::from_secs(30);
/// Time that workers get to finish after they were asked to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// Log settings of workers, which write to the standard error of this process.
#[derive(Debug, Clone)]
pub struct WorkerLog {
    /// One JSON object a line instead of text.
    pub json: bool,
    /// The filter of messages.
    pub level: String,
}

/// A worker's process, and the pipe that it hangs on.
struct Worker {
    child: Child,
    /// Closed when this process ends, however it ends: the worker leaves then. Waiting for a child
    /// would close it, so it is kept apart.
    _lifeline: Option<ChildStdin>,
}

/// All fleets of the process.
#[derive(Default)]
pub struct Fleets {
    addresses: HashMap<String, Vec<SocketAddr>>,
}

/// Ends the fleets; without it they end with the process.
#[derive(Default)]
pub struct Supervisors {
    tasks: JoinSet<()>,
    stop: watch::Sender<bool>,
}

impl Fleets {
    /// Starts every fleet of `config` and learns where its workers listen.
    ///
    /// # Errors
    /// A worker that can't be started at all, or does not say where it listens.
    pub async fn start(
        config: &Config,
        log: &WorkerLog,
        tasks: &Supervisor,
    ) -> Result<(Self, Supervisors)> {
        let mut fleets = Self::default();
        let mut supervisors = Supervisors::default();
        for pool in &config.pools {
            let Source::Fleet(fleet) = &pool.source else { continue };
            if !fleet.models.is_dir() {
                bail!("pool {}: no model repository at {}", pool.name, fleet.models.display());
            }
            let mut addresses = Vec::with_capacity(fleet.workers);
            for number in 1..=fleet.workers {
                let name = format!("{}/{number}", pool.name);
                let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
                let (worker, address) =
                    spawn(fleet, anywhere, log).await.with_context(|| format!("worker {name}"))?;
                tracing::info!(worker = name, %address, pid = worker.child.id(), "worker started");
                addresses.push(address);
                let stop = supervisors.stop.subscribe();
                let watched =
                    SupervisedWorker { name, fleet: fleet.clone(), log: log.clone(), address };
                let mut first = Some(worker);
                let watch = move || supervise(watched.clone(), first.take(), stop.clone());
                let task = tasks.clone().keep_up("fleet", Importance::Helpful, watch);
                supervisors.tasks.spawn(task);
            }
            fleets.addresses.insert(pool.name.clone(), addresses);
        }
        Ok((fleets, supervisors))
    }

    /// Addresses of a pool's workers.
    pub fn addresses(&self, pool: &str) -> &[SocketAddr] {
        self.addresses.get(pool).map_or(&[], Vec::as_slice)
    }
}

impl Supervisors {
    /// BindRequest every worker to finish what it has, and waits for them; those that do not are killed.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        while self.tasks.join_next().await.is_some() {}
    }
}

/// The parts that a worker's supervisor needs.
#[derive(Clone)]
struct SupervisedWorker {
    name: String,
    fleet: Fleet,
    log: WorkerLog,
    address: SocketAddr,
}

/// Keeps a worker running until told to stop: `running`, or else one that it starts.
async fn supervise(
    watched: SupervisedWorker,
    mut running: Option<Worker>,
    mut stop: watch::Receiver<bool>,
) {
    let SupervisedWorker { name, fleet, log, address } = watched;
    let mut pause = MIN_PAUSE;
    loop {
        let started = Instant::now();
        if let Some(mut worker) = running.take() {
            tokio::select! {
                status = worker.child.wait() => {
                    let status = status.map_or_else(|error| error.to_string(), |s| s.to_string());
                    tracing::error!(worker = name, %address, status, "worker died, restarting it");
                }
                () = told(&mut stop) => return finish(&name, worker).await,
                () = fault() => {}
            }
        }
        if started.elapsed() > STABLE {
            pause = MIN_PAUSE;
        }
        running = Some(loop {
            tokio::select! {
                () = sleep(pause) => {}
                () = told(&mut stop) => return,
            }
            pause = (pause * 2).min(MAX_PAUSE);
            match spawn(&fleet, address, &log).await {
                Ok((worker, _)) => {
                    tracing::info!(worker = name, %address, pid = worker.child.id(), "worker started");
                    break worker;
                }
                Err(error) => {
                    tracing::error!(worker = name, error = format!("{error:#}"), "no start");
                }
            }
        });
    }
}

/// Never ends, but for a test.
async fn fault() {
    let mut looks = interval(MIN_PAUSE);
    while cfg!(debug_assertions) {
        looks.tick().await;
        fault_point("fleet");
    }
    std::future::pending::<()>().await;
}

/// Waits until workers are told to stop; returns also if the sender is gone.
async fn told(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn finish(name: &str, mut worker: Worker) {
    let child = &mut worker.child;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
        // It may have died this instant; waiting finds out.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    if timeout(STOP_TIMEOUT, child.wait()).await.is_err() {
        tracing::warn!(worker = name, "worker did not finish in time, killing it");
        let _ = child.kill().await;
    }
}

/// Starts one worker and reads where it listens.
async fn spawn(fleet: &Fleet, listen: SocketAddr, log: &WorkerLog) -> Result<(Worker, SocketAddr)> {
    let (program, first) = program()?;
    let mut child = Command::new(&program)
        .arg0("forebay")
        .args(first)
        .arg("--models")
        .arg(&fleet.models)
        .arg("--listen")
        .arg(listen.to_string())
        .arg("--executors")
        .arg(fleet.executors.to_string())
        .arg("--stop-with-stdin")
        .args(["--log", if log.json { "json" } else { "text" }])
        .env("FOREBAY_LOG", &log.level)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // Its own group: Ctrl-C reaches this process alone, which ends the workers last.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("can't start {}", program.display()))?;
    let Some(stdout) = child.stdout.take() else { bail!("no pipe from the worker") };
    let mut output = BufReader::new(stdout);
    let mut line = String::new();
    let mut limited = (&mut output).take(MAX_LINE);
    match timeout(START_TIMEOUT, limited.read_line(&mut line)).await {
        Ok(Ok(0)) => {
            let status = child.wait().await?;
            bail!("the worker ended before it listened: {status}");
        }
        Ok(read) => read.context("can't read the worker's output")?,
        Err(_) => bail!("the worker did not print its address within {START_TIMEOUT:?}"),
    };
    let address = line
        .trim()
        .strip_prefix("listening on http://")
        .and_then(|address| address.parse().ok())
        .with_context(|| format!("expected the worker's address, found {:?}", line.trim()))?;
    // Later output is dropped, but read, so that the pipe does not fill up.
    tokio::spawn(async move { tokio::io::copy(&mut output, &mut tokio::io::sink()).await });
    let lifeline = child.stdin.take();
    Ok((Worker { child, _lifeline: lifeline }, address))
}

/// The worker's program: this one, if the worker is built in, else the one installed beside it.
fn program() -> Result<(PathBuf, &'static [&'static str])> {
    if cfg!(feature = "demo") {
        // The very program that runs, even if its file was replaced or removed since.
        return Ok((PathBuf::from("/proc/self/exe"), &["worker"]));
    }
    let this = std::env::current_exe().context("can't find this program's own file")?;
    Ok((this.with_file_name("forebay-worker"), &[]))
}
