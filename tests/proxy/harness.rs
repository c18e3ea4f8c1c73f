//! Starts programs, learns their addresses, and ends them in any case.

use crate::client;
use command_fds::{CommandFdExt, FdMapping};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Longest that any test waits for anything: far more than it takes on a loaded machine.
pub const MAX_WAIT: Duration = Duration::from_secs(60);

/// Waits until `condition` gives a value.
pub async fn eventually<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(started.elapsed() < MAX_WAIT, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A running proxy.
pub struct Proxy {
    /// The first listener.
    pub address: SocketAddr,
    /// All listeners, in the order of the configuration.
    pub listeners: Vec<SocketAddr>,
    pub admin: SocketAddr,
    pub config: PathBuf,
    process: Process,
    /// Everything it wrote to standard error, line by line.
    messages: Arc<Mutex<Vec<String>>>,
    lines: Mutex<Receiver<String>>,
    _folder: Folder,
}

impl Proxy {
    /// Starts a proxy with `config`, in which the listener, the admin listener and a short drain
    /// are added.
    pub async fn start(config: &str) -> Self {
        Self::start_with("", config).await
    }

    /// Like `start`, with more keys of the table `[server]`.
    pub async fn start_with(server: &str, config: &str) -> Self {
        Self::start_on(&[], &Self::text(server, config)).await
    }

    /// Starts a proxy with this whole text, to which sockets are passed as systemd does it.
    pub async fn start_on(sockets: &[&dyn AsFd], text: &str) -> Self {
        Self::start_under("", sockets, text).await
    }

    /// The same, after the shell has run `before`, such as `ulimit -n 100;`.
    pub async fn start_under(before: &str, sockets: &[&dyn AsFd], text: &str) -> Self {
        let folder = Folder::new();
        let path = folder.0.join("forebay.toml");
        std::fs::write(&path, text).unwrap();
        let program = env!("CARGO_BIN_EXE_forebay");
        let mut command = Command::new("sh");
        // Only the process itself knows its number.
        let script = format!("{before} export LISTEN_PID=$$; exec \"$0\" \"$@\"");
        command.args(["-c", &script, program]);
        if !sockets.is_empty() {
            command.env("LISTEN_FDS", sockets.len().to_string());
            let passed = sockets.iter().zip(3..).map(|(socket, child_fd)| FdMapping {
                parent_fd: socket.as_fd().try_clone_to_owned().unwrap(),
                child_fd,
            });
            command.fd_mappings(passed.collect()).unwrap();
        }
        command.args(["--log-format", "json", "serve", "--config"]).arg(&path);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = Process(command.spawn().unwrap());
        let messages = Arc::new(Mutex::new(Vec::new()));
        let (started, listening) = channel();
        let stderr = BufReader::new(process.0.stderr.take().unwrap());
        let kept = Arc::clone(&messages);
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let event: Value = serde_json::from_str(&line).unwrap_or_default();
                if event["message"] == "serving" {
                    let listeners = event["listeners"].as_str().unwrap_or_default().split(',');
                    let listeners: Vec<SocketAddr> =
                        listeners.filter_map(|address| address.parse().ok()).collect();
                    let admin = event["admin"].as_str().and_then(|a| a.parse().ok());
                    let _ = started.send((listeners, admin));
                }
                kept.lock().unwrap().push(line);
            }
        });
        let (written, lines) = channel();
        let stdout = BufReader::new(process.0.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = written.send(line);
            }
        });
        let (listeners, admin): (_, Option<SocketAddr>) =
            tokio::task::spawn_blocking(move || listening.recv_timeout(MAX_WAIT))
                .await
                .unwrap()
                .unwrap_or_else(|_| panic!("no start: {:?}", messages.lock().unwrap()));
        Self {
            address: listeners.first().copied().unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0))),
            listeners,
            admin: admin.unwrap(),
            config: path,
            process,
            messages,
            lines: lines.into(),
            _folder: folder,
        }
    }

    /// The whole text of a configuration.
    pub fn text(server: &str, config: &str) -> String {
        format!(
            "[server]\nadmin = \"127.0.0.1:0\"\nthreads = 2\ndrain_delay = \"200ms\"\n{server}\n\
             [[listener]]\naddress = \"127.0.0.1:0\"\n{config}"
        )
    }

    /// A proxy with one pool of `endpoints` and one route for everything; waits until as many
    /// endpoints as are `ready` are in rotation.
    pub async fn in_front_of(endpoints: &[SocketAddr], ready: usize, more: &str) -> Self {
        let proxy = Self::start(&pool_of(endpoints, more)).await;
        proxy.wait_ready(ready).await;
        proxy
    }

    /// Waits until `count` endpoints are in rotation.
    pub async fn wait_ready(&self, count: usize) {
        eventually(&format!("{count} ready endpoints"), async || {
            let status = self.status().await;
            let pools = status["pools"].as_object().unwrap();
            let ready: u64 = pools.values().map(|pool| pool["ready"].as_u64().unwrap()).sum();
            (ready == count as u64).then_some(())
        })
        .await;
    }

    /// All endpoints in `/status`.
    pub async fn endpoints(&self) -> Vec<Value> {
        let status = self.status().await;
        let pools = status["pools"].as_object().unwrap();
        pools.values().flat_map(|pool| pool["endpoints"].as_array().unwrap().clone()).collect()
    }

    pub async fn status(&self) -> Value {
        client::get(self.admin, "/status").await.json()
    }

    pub async fn metrics(&self) -> String {
        client::get(self.admin, "/metrics").await.text()
    }

    /// The sum of a metric over all series whose labels contain every one of `labels`.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = self.metrics().await;
        text.lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|l| l.starts_with(['{', ' '])))
            .filter(|line| labels.iter().all(|label| line.contains(label)))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// The next access log line.
    pub fn next_line(&self) -> Value {
        let line = self.lines.lock().unwrap().recv_timeout(MAX_WAIT).expect("an access log line");
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("not JSON: {line}"))
    }

    /// Its standard error so far.
    pub fn messages(&self) -> String {
        self.messages.lock().unwrap().join("\n")
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        self.process.signal(signal);
    }

    /// CPU time that the process has used, in ticks of the kernel: a hundred are a second.
    pub fn cpu_ticks(&self) -> u64 {
        let file = format!("/proc/{}/stat", self.process.0.id());
        let stat = std::fs::read_to_string(file).unwrap();
        // Behind the name, which may hold anything: user and system time are fields 14 and 15.
        let fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
        fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
    }

    /// Its exit status, if it has ended.
    pub fn try_ended(&mut self) -> Option<ExitStatus> {
        self.process.0.try_wait().unwrap()
    }

    /// Waits until the process has ended.
    pub async fn ended(&mut self) -> ExitStatus {
        let process = &mut self.process;
        eventually("the end of the proxy", async || process.0.try_wait().unwrap()).await
    }
}

/// `[pool.test]` and a route to it, with probes that do not make tests wait. `more` goes into the
/// pool's table.
pub fn pool_of(endpoints: &[SocketAddr], more: &str) -> String {
    let endpoints: Vec<_> = endpoints.iter().map(|e| format!("\"{e}\"")).collect();
    format!(
        "[pool.test]\nendpoints = [{}]\nprobe = {{ interval = \"300ms\", fast_interval = \"30ms\" }}\n\
         {more}\n[[route]]\nname = \"test\"\npool = \"test\"\nexpose_endpoint = true\n",
        endpoints.join(", ")
    )
}

/// A running worker with the small test models.
pub struct Worker {
    pub address: SocketAddr,
    process: Process,
}

impl Worker {
    /// Starts a worker; port 0 lets the OS choose.
    pub async fn start(listen: SocketAddr) -> Self {
        Self::start_serving(&test_models(), listen).await
    }

    /// Starts a worker that serves the models in this folder.
    pub async fn start_serving(models: &Path, listen: SocketAddr) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
        command.args(["worker", "--drain-delay", "100ms", "--executors", "1"]);
        command
            .args(["--models-control", "--models"])
            .arg(models)
            .args(["--listen", &listen.to_string()]);
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = Process(command.spawn().unwrap());
        let mut stdout = BufReader::new(process.0.stdout.take().unwrap());
        let line = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            stdout.read_line(&mut line).unwrap();
            line
        })
        .await
        .unwrap();
        let address = line.trim().strip_prefix("listening on http://").unwrap_or_else(|| {
            panic!("no address in {line:?}");
        });
        Self { address: address.parse().unwrap(), process }
    }

    pub async fn start_many(count: usize) -> Vec<Self> {
        let mut workers = Vec::new();
        for _ in 0..count {
            workers.push(Self::start(anywhere()).await);
        }
        workers
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        self.process.signal(signal);
    }

    /// Waits until the process has ended.
    pub async fn ended(&mut self) -> ExitStatus {
        let process = &mut self.process;
        eventually("the end of the worker", async || process.0.try_wait().unwrap()).await
    }
}

pub fn addresses(workers: &[Worker]) -> Vec<SocketAddr> {
    workers.iter().map(|worker| worker.address).collect()
}

/// A port that the OS chooses, on a loopback address of its own: a port that is given up for a
/// while, as by a worker that is started again, is not taken by another test.
pub fn anywhere() -> SocketAddr {
    let [a, b, c] = [(); 3].map(|()| fastrand::u8(1..=254));
    SocketAddr::from(([127, a, b, c], 0))
}

/// The repository of small models that the worker's own tests use.
pub fn test_models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("backends/worker/tests/models")
}

/// An inference of the model `arith`: sums and differences of two rows.
pub const ARITH: &str = r#"{"inputs":[{"name":"a","shape":[1,4],"datatype":"FP32","data":[1,2,3,4]},{"name":"b","shape":[1,4],"datatype":"FP32","data":[10,20,30,40]}]}"#;

/// A child process that does not outlive its test.
pub struct Process(pub Child);

impl Process {
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A folder that is removed with its test.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Self {
        let name = format!("forebay-test-{}-{:x}", std::process::id(), fastrand::u64(..));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
