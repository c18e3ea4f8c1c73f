//! Standard output and standard error whose readers are gone, stand still, or have no room.

use crate::client::{get, post, raw};
use crate::endpoint::{Behaviour, Endpoint};
use crate::harness::{Folder, MAX_WAIT, Process, Proxy, eventually, pool_of};
use command_fds::{CommandFdExt, FdMapping};
use rustix::process::Signal;
use std::io::{PipeReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const INFER: &str = "/v2/models/m/infer";

/// A stream that takes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    /// Nothing reads the pipe any more.
    Gone,
    /// Every write fails for want of room.
    Full,
    /// The pipe is full, and its reader stands still.
    Still,
    /// There is no stream at all.
    Closed,
}

impl Broken {
    const ALL: [Self; 4] = [Self::Gone, Self::Full, Self::Still, Self::Closed];

    /// The stream of a child, and an object that has to live as long as the child.
    fn stream(self) -> (Stdio, Option<PipeReader>) {
        let (read, mut write) = std::io::pipe().unwrap();
        match self {
            Self::Gone => (write.into(), None),
            Self::Full => {
                let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
                (full.into(), None)
            }
            Self::Still => {
                // As much as a pipe takes before it blocks.
                write.write_all(&[b'-'; 64 * 1024]).unwrap();
                (write.into(), Some(read))
            }
            // The shell closes it.
            Self::Closed => (Stdio::null(), None),
        }
    }

    /// Whether lines can be lost.
    fn loses(self) -> bool {
        matches!(self, Self::Gone | Self::Full)
    }
}

/// A proxy that cannot say where it listens: its sockets are passed to it.
struct Mute {
    address: SocketAddr,
    admin: SocketAddr,
    config: std::path::PathBuf,
    process: Process,
    _held: [Option<PipeReader>; 2],
    _folder: Folder,
}

impl Mute {
    fn start(stdout: Broken, stderr: Broken, server: &str, pool: &str) -> Self {
        let sockets = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [address, admin] = [0, 1].map(|place| sockets[place].local_addr().unwrap());
        let folder = Folder::new();
        let config = folder.0.join("forebay.toml");
        let text = format!(
            "[server]\nadmin = \"{admin}\"\nthreads = 2\ndrain_delay = \"100ms\"\n{server}\n\
             [[listener]]\naddress = \"{address}\"\n{pool}"
        );
        std::fs::write(&config, text).unwrap();
        let closed = |stream: Broken, what| if stream == Broken::Closed { what } else { "" };
        let script = format!(
            "export LISTEN_PID=$$; exec \"$0\" \"$@\" {} {}",
            closed(stdout, ">&-"),
            closed(stderr, "2>&-")
        );
        let mut command = Command::new("sh");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_forebay")]);
        command.args(["--log-format", "json", "serve", "--config"]).arg(&config);
        command.env("LISTEN_FDS", "2");
        let passed = sockets.iter().zip(3..).map(|(socket, child_fd)| FdMapping {
            parent_fd: socket.as_fd().try_clone_to_owned().unwrap(),
            child_fd,
        });
        command.fd_mappings(passed.collect()).unwrap();
        let ((out, out_held), (err, err_held)) = (stdout.stream(), stderr.stream());
        command.stdout(out).stderr(err);
        let process = Process(command.spawn().unwrap());
        Self { address, admin, config, process, _held: [out_held, err_held], _folder: folder }
    }

    async fn wait_ready(&self) {
        eventually("readiness", async || {
            (get(self.admin, "/readyz").await.status == 200).then_some(())
        })
        .await;
    }

    async fn metric(&self, name: &str) -> f64 {
        let text = get(self.admin, "/metrics").await.text();
        let lines = text.lines().filter(|line| line.starts_with(name));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Everything that a proxy does while it runs, and a stop in order.
    async fn lives_and_ends(mut self, case: &str) {
        let good = std::fs::read_to_string(&self.config).unwrap();
        for round in 0..3 {
            for _ in 0..20 {
                assert_eq!(post(self.address, INFER, "x").await.status, 200, "{case}");
            }
            std::fs::write(&self.config, &good).unwrap();
            assert_eq!(post(self.admin, "/reload", "").await.status, 200, "{case}");
            std::fs::write(&self.config, "[").unwrap();
            assert_eq!(post(self.admin, "/reload", "").await.status, 422, "{case}");
            self.process.signal(Signal::HUP);
            eventually("the reload by signal", async || {
                let refused = self.metric("forebay_reloads_total{outcome=\"refused\"}").await;
                (refused >= f64::from(2 * (round + 1))).then_some(())
            })
            .await;
        }
        self.process.signal(Signal::TERM);
        let stopped = Instant::now();
        let process = &mut self.process;
        let status = eventually("the end", async || process.0.try_wait().unwrap()).await;
        assert_eq!(status.code(), Some(0), "{case}");
        assert!(stopped.elapsed() < MAX_WAIT / 2, "{case}: {:?}", stopped.elapsed());
    }
}

#[tokio::test]
async fn a_broken_standard_error_costs_lines_only() {
    let endpoint = Endpoint::start(Behaviour::Echo).await;
    for broken in Broken::ALL {
        let case = format!("standard error: {broken:?}");
        let pool = pool_of(&[endpoint.address], "");
        let proxy = Mute::start(Broken::Closed, broken, "access_log = \"off\"", &pool);
        proxy.wait_ready().await;
        if broken.loses() {
            eventually("lines that are counted as dropped", async || {
                (proxy.metric("forebay_log_lines_dropped_total").await > 0.0).then_some(())
            })
            .await;
        }
        proxy.lives_and_ends(&case).await;
    }
}

#[tokio::test]
async fn a_broken_standard_output_costs_lines_only() {
    let endpoint = Endpoint::start(Behaviour::Echo).await;
    for broken in Broken::ALL {
        let case = format!("standard output: {broken:?}");
        let pool = pool_of(&[endpoint.address], "");
        let proxy = Mute::start(broken, broken, "access_log = \"stdout\"", &pool);
        proxy.wait_ready().await;
        assert_eq!(post(proxy.address, INFER, "x").await.status, 200, "{case}");
        if broken.loses() {
            eventually("lines that are counted as dropped", async || {
                (proxy.metric("forebay_access_log_dropped_total").await > 0.0).then_some(())
            })
            .await;
        }
        proxy.lives_and_ends(&case).await;
    }
}

#[tokio::test]
async fn a_fifo_for_the_access_log_needs_no_reader() {
    let endpoint = Endpoint::start(Behaviour::Echo).await;
    let folder = Folder::new();
    let fifo = folder.0.join("access.fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let server = format!("access_log = {fifo:?}");
    let mut proxy = Proxy::start_with(&server, &pool_of(&[endpoint.address], "")).await;
    proxy.wait_ready(1).await;
    // More than a pipe takes.
    for _ in 0..300 {
        assert_eq!(post(proxy.address, INFER, "x").await.status, 200);
    }
    let read = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        let reader = std::fs::File::open(fifo).unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(reader), &mut line).unwrap();
        line
    });
    let line = read.await.unwrap();
    assert!(line.contains("\"reason\":\"ok\""), "a reader that comes late gets lines: {line}");
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.ended().await.code(), Some(0));
}

#[test]
fn a_command_keeps_its_exit_status_whatever_becomes_of_its_words() {
    let folder = Folder::new();
    let (good, bad) = (folder.0.join("good.toml"), folder.0.join("bad.toml"));
    std::fs::write(&good, Proxy::text("", &pool_of(&[([127, 0, 0, 1], 9).into()], ""))).unwrap();
    std::fs::write(&bad, "[").unwrap();
    for broken in [Broken::Gone, Broken::Full, Broken::Closed] {
        for (file, expected) in [(&good, 0), (&bad, 1)] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
            command.arg("check").arg(file);
            command.stdout(broken.stream().0).stderr(broken.stream().0);
            let status = command.status().unwrap();
            assert_eq!(status.code(), Some(expected), "{broken:?} {}", file.display());
        }
    }
    // An address that is taken ends a start, even if it cannot be said.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let text = std::fs::read_to_string(&good).unwrap();
    let address = format!("address = \"{}\"", taken.local_addr().unwrap());
    std::fs::write(&good, text.replace("address = \"127.0.0.1:0\"", &address)).unwrap();
    for broken in Broken::ALL {
        let (stream, _held) = broken.stream();
        let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
        command.args(["serve", "--config"]).arg(&good).stdout(Stdio::null()).stderr(stream);
        assert_eq!(command.status().unwrap().code(), Some(1), "{broken:?}");
    }
}

#[tokio::test]
async fn lines_that_clients_cause_are_limited_and_their_number_is_said() {
    // The preface, SETTINGS, and acknowledgements of a PING that was never sent: a line each.
    let mut flood = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    for _ in 0..5 {
        flood.extend_from_slice(b"\0\0\x08\x06\x01\0\0\0\x0012345678");
    }
    let endpoint = Endpoint::start(Behaviour::Echo).await;
    let proxy = Proxy::in_front_of(&[endpoint.address], 1, "").await;
    for _ in 0..20 {
        raw(proxy.address, &flood, Duration::from_millis(100)).await;
    }
    let suppressed = "forebay_log_lines_dropped_total";
    eventually("suppressed lines", async || {
        let count = proxy.metric(suppressed, &["cause=\"rate_limited\""]).await;
        (count >= 50.0).then_some(())
    })
    .await;
    eventually("the line that says so", async || {
        proxy.messages().contains("similar messages were suppressed").then_some(())
    })
    .await;
    let lines = proxy.messages().matches("PING ack that we never sent").count();
    // Ten in each window, of which a slow machine may need some.
    assert!((1..=50).contains(&lines), "{lines} lines");
}
