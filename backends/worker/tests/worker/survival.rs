//! A worker whose surroundings or own parts fail: streams that take nothing, tasks that panic.

use crate::harness::*;
use crate::process::{command_of, exit_code, signal, spawned};
use http::Method;
use std::io::{PipeReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::process::{Child, Command};

/// A stream that takes nothing, and what has to live as long as its writer.
fn broken(kind: &str) -> (Stdio, Option<PipeReader>) {
    let (read, mut write) = std::io::pipe().unwrap();
    match kind {
        "gone" => (write.into(), None),
        "full" => (std::fs::File::options().write(true).open("/dev/full").unwrap().into(), None),
        _ => {
            // What a pipe takes before it blocks.
            write.write_all(&[b'-'; 64 * 1024]).unwrap();
            (write.into(), Some(read))
        }
    }
}

fn command(models: &Path) -> Command {
    let mut command = command_of(Path::new(env!("CARGO_BIN_EXE_forebay-worker")));
    command.arg("--models").arg(models).args(["--drain-delay", "0ms"]);
    command
}

async fn ask(address: SocketAddr, path: &str) -> Option<Answer> {
    try_send(address, request(Method::GET, path, "")).await.ok()
}

async fn is_ready(address: SocketAddr) -> bool {
    ask(address, "/v2/health/ready").await.is_some_and(|answer| answer.status == 200)
}

/// The sum of the lines of a metric that contain `part`.
async fn metric(address: SocketAddr, name: &str, part: &str) -> f64 {
    let text = ask(address, "/metrics").await.unwrap().text();
    let lines = text.lines().filter(|line| line.starts_with(name) && line.contains(part));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

async fn infers(address: SocketAddr) {
    let infer = request(Method::POST, "/v2/models/arith/infer", arith_body(1.0, 1.0));
    assert_eq!(try_send(address, infer).await.unwrap().status, 200);
}

#[tokio::test]
async fn broken_standard_streams_cost_lines_only() {
    for (kind, host) in [("gone", 1), ("full", 2), ("still", 3)] {
        // It cannot say where it listens. Nothing else binds ports on this address.
        let own = SocketAddr::from(([127, 83, 117, host], 0));
        let free = TcpListener::bind(own).unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let ((out, _out), (err, _err)) = (broken(kind), broken(kind));
        let mut command = command(&fixtures());
        command.args(["--listen", &address.to_string()]).stdout(out).stderr(err);
        let mut child = command.spawn().unwrap();
        eventually("it is ready", || is_ready(address)).await;
        infers(address).await;
        if kind != "still" {
            let dropped = "forebay_worker_log_lines_dropped_total";
            eventually("dropped lines are counted", || async {
                metric(address, dropped, "write_error").await > 0.0
            })
            .await;
        }
        signal(&child, "-HUP").await;
        infers(address).await;
        signal(&child, "-TERM").await;
        assert_eq!(exit_code(&mut child).await, Some(0), "{kind}");
    }
}

/// A worker in which a task panics once for each file with its name in the folder.
async fn faulty(name: &str) -> (PathBuf, Child, SocketAddr) {
    let name = format!("forebay-faults-{}-{name}", std::process::id());
    let faults = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&faults).unwrap();
    let mut command = command(&fixtures());
    command.env("FOREBAY_TEST_FAULTS", &faults).args(["--models-poll", "100ms"]);
    let (child, address) = spawned(command).await;
    (faults, child, address)
}

#[tokio::test]
async fn tasks_that_panic_are_started_again() {
    let (faults, mut child, address) = faulty("tasks").await;
    for task in ["metrics", "overseer", "loader"] {
        std::fs::write(faults.join(task), "").unwrap();
        let label = format!("task=\"{task}\"");
        eventually("the task is started again", || async {
            metric(address, "forebay_worker_task_restarts_total", &label).await == 1.0
        })
        .await;
        infers(address).await;
    }
    assert_eq!(metric(address, "forebay_worker_panics_total", "").await, 3.0);
    eventually("it is ready", || is_ready(address)).await;
    signal(&child, "-TERM").await;
    assert_eq!(exit_code(&mut child).await, Some(0));
    std::fs::remove_dir_all(faults).unwrap();
}

#[tokio::test]
async fn a_panic_where_nothing_can_be_started_again_ends_the_worker_with_a_failure() {
    let (faults, mut child, address) = faulty("serve").await;
    std::fs::write(faults.join("serve"), "").unwrap();
    // The loop looks when a connection comes.
    let _ = ask(address, "/v2/health/live").await;
    assert_eq!(exit_code(&mut child).await, Some(1));
    std::fs::remove_dir_all(faults).unwrap();
}
