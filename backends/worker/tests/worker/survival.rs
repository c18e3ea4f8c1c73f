//! A worker whose surroundings or own parts fail: streams that take nothing, tasks that panic.

use crate::harness::*;
use crate::process::{command_of, exit_code, signal, spawned};
use http::Method;
use std::io::{PipeReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

/// A stream that takes nothing, and what has to live as long as its writer.
fn broken(kind: &str) -> (Stdio, Option<PipeReader>) {
    let (read, mut write) = std::io::pipe().unwrap();
    match kind {
        "gone" => (write.into(), None),
        "full" => (std::fs::File::options().write(true).open("/dev/full").unwrap().into(), None),
        _ => {
            // As much as a pipe takes before it blocks.
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

/// One more than the highest number of a file descriptor of the process.
fn descriptors(child: &Child) -> u64 {
    let folder = format!("/proc/{}/fd", child.id().unwrap());
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    let numbers = names.filter_map(|name| name.to_str()?.parse::<u64>().ok());
    numbers.max().unwrap() + 1
}

#[tokio::test]
async fn a_client_for_which_no_descriptor_is_left_is_told_so() {
    let (mut child, address) = spawned(command(&fixtures())).await;
    infers(address).await;
    let (pid, most) = (child.id().unwrap().to_string(), descriptors(&child) + 2);
    // The soft limit, which can be raised again.
    let limit = format!("--nofile={most}:");
    let status = Command::new("prlimit").args(["--pid", &pid, &limit]).status().await.unwrap();
    assert!(status.success());
    let mut held = Vec::new();
    let refused = loop {
        assert!(held.len() < 1000, "it takes as many as come");
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut begun = [0; 4096];
        let length = stream.read(&mut begun).await.unwrap();
        let answer = String::from_utf8_lossy(&begun[..length]).into_owned();
        if !answer.starts_with("HTTP/1.1 200 ") {
            let mut rest = String::new();
            stream.read_to_string(&mut rest).await.unwrap();
            break answer + &rest;
        }
        held.push(stream);
    };
    assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
    for words in ["x-forebay-reason: connection_limit", "retry-after: 1", "no file descriptor"] {
        assert!(refused.contains(words), "{words}: {refused}");
    }
    drop(held);
    // Of those that were held, some may still be open.
    eventually("it answers again", || async {
        let infer = request(Method::POST, "/v2/models/arith/infer", arith_body(1.0, 1.0));
        try_send(address, infer).await.is_ok_and(|answer| answer.status == 200)
    })
    .await;
    let limit = "--nofile=1024:";
    let status = Command::new("prlimit").args(["--pid", &pid, limit]).status().await.unwrap();
    assert!(status.success());
    eventually("it is counted", || async {
        // One that came just before there was room again may still be refused.
        let page = ask(address, "/metrics").await.map(|answer| answer.text()).unwrap_or_default();
        let count = page.lines().find_map(|line| {
            line.strip_prefix("forebay_worker_accept_errors_total ")?.parse::<f64>().ok()
        });
        count.is_some_and(|count| count >= 1.0)
    })
    .await;
    signal(&child, "-TERM").await;
    assert_eq!(exit_code(&mut child).await, Some(0));
}

#[tokio::test]
async fn an_accept_loop_that_panics_goes_on_and_one_that_keeps_panicking_ends_the_worker() {
    let (faults, mut child, address) = faulty("accept").await;
    let file = faults.join("accept");
    std::fs::write(&file, "").unwrap();
    // The loop looks when a connection comes, which waits until there is a loop again.
    let label = "task=\"accept\"";
    eventually("the loop is started again", || async {
        metric(address, "forebay_worker_task_restarts_total", label).await == 1.0
    })
    .await;
    infers(address).await;
    assert_eq!(child.try_wait().unwrap(), None);
    let ended = async {
        loop {
            std::fs::write(&file, "").unwrap();
            let _ = TcpStream::connect(address).await;
            if child.try_wait().unwrap().is_some() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), ended).await.unwrap();
    assert_eq!(exit_code(&mut child).await, Some(1));
    std::fs::remove_dir_all(faults).unwrap();
}
