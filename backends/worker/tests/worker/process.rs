//! The real process: signals, standard input, exit statuses, the words of the command line.

use crate::harness::*;
use forebay_protocol::header;
use http::Method;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

fn command() -> Command {
    command_of(Path::new(env!("CARGO_BIN_EXE_forebay-worker")))
}

/// The worker's program, in this file.
pub(crate) fn command_of(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.kill_on_drop(true).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

async fn spawn(arguments: &[&str]) -> (Child, SocketAddr) {
    spawn_on(fixtures().to_str().unwrap(), arguments).await
}

async fn spawn_on(models: &str, arguments: &[&str]) -> (Child, SocketAddr) {
    let mut command = command();
    command.args(["--models", models]).args(arguments);
    if arguments.contains(&"--stop-with-stdin") {
        command.stdin(Stdio::piped());
    }
    spawned(command).await
}

pub(crate) async fn spawned(mut command: Command) -> (Child, SocketAddr) {
    command.args(["--listen", "127.0.0.1:0"]).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let stdout = child.stdout.take().unwrap();
    let line = BufReader::new(stdout).lines().next_line().await.unwrap().unwrap();
    let address = line.strip_prefix("listening on http://").unwrap().parse().unwrap();
    eventually("it is ready", || async {
        try_send(address, request(Method::GET, "/v2/health/ready", ""))
            .await
            .is_ok_and(|answer| answer.status == 200)
    })
    .await;
    (child, address)
}

pub(crate) async fn signal(child: &Child, name: &str) {
    let pid = child.id().unwrap().to_string();
    assert!(Command::new("kill").args([name, &pid]).status().await.unwrap().success());
}

pub(crate) async fn exit_code(child: &mut Child) -> Option<i32> {
    let status = tokio::time::timeout(MAX_WAIT, child.wait()).await.expect("it should end");
    status.unwrap().code()
}

/// Exit status, standard output, standard error.
async fn output(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = command().args(arguments).output();
    let output = tokio::time::timeout(MAX_WAIT, output).await.unwrap().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[tokio::test]
async fn sigterm_is_not_ready_first_then_finishes_what_it_has_and_ends_with_0() {
    for name in ["-TERM", "-INT"] {
        let (mut child, address) = spawn(&["--drain-delay", "10m", "--executors", "1"]).await;
        let in_flight = tokio::spawn(try_send(address, slow_request()));
        let get = |path: &'static str| try_send(address, request(Method::GET, path, ""));
        eventually("the slow one runs", || async {
            get("/v2/health/live").await.unwrap().report().rif == Some(1)
        })
        .await;
        signal(&child, name).await;
        eventually("it is not ready", || async {
            get("/v2/health/ready").await.unwrap().reason() == "draining"
        })
        .await;
        // It still takes requests, and tells connections that they will be closed.
        let answer = get("/v2/models/arith").await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.header("connection")), (200, "close"));
        in_flight.abort();
        signal(&child, name).await;
        assert_eq!(exit_code(&mut child).await, Some(0), "{name}: a second signal ends it");
    }
}

#[tokio::test]
async fn a_drain_finishes_what_is_in_flight_and_closes_the_listener() {
    let (mut child, address) = spawn(&["--drain-delay", "0ms"]).await;
    // A request that is under way until we send the rest of its body.
    let mut stream = TcpStream::connect(address).await.unwrap();
    let body = arith_body(1.0, 1.0);
    let head = format!(
        "POST /v2/models/arith/infer HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut interim = vec![0; "HTTP/1.1 100 Continue\r\n\r\n".len()];
    stream.read_exact(&mut interim).await.unwrap();
    signal(&child, "-TERM").await;
    eventually("the listener is closed", || async { TcpStream::connect(address).await.is_err() })
        .await;
    stream.write_all(&body).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close"), "{answer}");
    assert_eq!(exit_code(&mut child).await, Some(0));
}

#[tokio::test]
async fn the_drain_timeout_ends_what_does_not_end() {
    let arguments = ["--drain-delay", "0ms", "--drain-timeout", "100ms", "--body-timeout", "1h"];
    let (mut child, address) = spawn(&arguments).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream
        .write_all(b"POST /v2/models/arith/infer HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 9\r\n\r\n")
        .await
        .unwrap();
    let mut interim = vec![0; "HTTP/1.1 100 Continue\r\n\r\n".len()];
    stream.read_exact(&mut interim).await.unwrap();
    let sent = Instant::now();
    signal(&child, "-TERM").await;
    assert_eq!(exit_code(&mut child).await, Some(0));
    assert!(sent.elapsed() < MAX_WAIT);
}

#[tokio::test]
async fn a_child_ends_with_its_parents_pipe() {
    let (mut child, _) = spawn(&["--stop-with-stdin", "--drain-delay", "0ms"]).await;
    drop(child.stdin.take());
    assert_eq!(exit_code(&mut child).await, Some(0));
}

#[tokio::test]
async fn sighup_loads_what_has_changed_in_the_repository() {
    let scratch = Scratch::new("sighup");
    scratch.write("m/1/model.onnx", Scratch::model("arith"));
    let models = scratch.path().to_str().unwrap().to_owned();
    let (mut child, address) = spawn_on(&models, &["--drain-delay", "0ms"]).await;
    scratch.write("n/1/model.onnx", Scratch::model("arith"));
    signal(&child, "-HUP").await;
    eventually("the new model is ready", || async {
        let sent = request(Method::GET, "/v2/models/n/ready", "");
        try_send(address, sent).await.is_ok_and(|answer| answer.status == 200)
    })
    .await;
    signal(&child, "-TERM").await;
    assert_eq!(exit_code(&mut child).await, Some(0));
}

#[tokio::test]
async fn the_command_line_explains_itself() {
    let (code, help, _) = output(&["--help"]).await;
    assert_eq!(code, Some(0));
    // However its lines are broken.
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in ["--models <DIR>", "[default: 127.0.0.1:8000]", "Exit codes", "curl"] {
        assert!(help.contains(part), "expected {part}, found\n{help}");
    }
    assert!(!help.contains("stop-with-stdin"), "hidden");
    assert_eq!(output(&["--version"]).await.0, Some(0));
}

#[tokio::test]
async fn mistakes_in_flags_and_file_end_with_2_and_say_what_was_expected() {
    let scratch = Scratch::new("config");
    scratch.write("unknown.toml", "quue = 5\n");
    scratch.write("unit.toml", "drain_delay = 5\n");
    scratch.write("broken.toml", "queue = \n");
    let file = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
    for (arguments, part) in [
        (["--executors", "0"], "expected 1 to 1024"),
        (["--drain-delay", "5"], "expected a duration such as"),
        (["--models", "/nowhere"], "model repository /nowhere"),
        (["--lisen", "127.0.0.1:0"], "--listen"),
        (["--models", "--try-model"], "unexpected argument '--try-model'"),
        (["--executors=1", "--try-model"], "unexpected argument '--try-model'"),
        (["--config", "/nowhere.toml"], "/nowhere.toml: No such file"),
        (["--config", &file("unknown.toml")], "unknown.toml:1:1: quue: unknown key, did you mean"),
        (["--config", &file("unit.toml")], "unit.toml:1:15: drain_delay: expected a duration"),
        (["--config", &file("broken.toml")], "broken.toml:1:"),
    ] {
        let (code, _, words) = output(&arguments).await;
        assert_eq!(code, Some(2), "{arguments:?}: {words}");
        assert!(words.contains(part), "{arguments:?}: expected \"{part}\", found \"{words}\"");
    }
}

#[tokio::test]
async fn an_address_that_is_taken_ends_with_1() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let models = fixtures();
    let (code, _, words) =
        output(&["--listen", &address, "--models", models.to_str().unwrap()]).await;
    assert_eq!(code, Some(1), "{words}");
    assert!(words.contains(&format!("can't listen on {address}")), "{words}");
}

#[tokio::test]
async fn a_file_sets_what_flags_do_not() {
    let scratch = Scratch::new("file");
    let models = fixtures();
    scratch.write(
        "worker.toml",
        format!("models = {models:?}\nlisten = \"127.0.0.1:0\"\nexecutors = 3\nlog = \"json\"\n"),
    );
    let file = scratch.path().join("worker.toml");
    let mut child = command().arg("--config").arg(&file).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = lines.next_line().await.unwrap().unwrap();
    let address = line.strip_prefix("listening on http://").unwrap().parse().unwrap();
    let answer = send(address, request(Method::GET, "/v2/health/live", "")).await;
    assert_eq!(answer.report().slots, Some(3));
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    let line = log.next_line().await.unwrap().unwrap();
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&line["message"], &line["executors"]), (&"listening".into(), &3.into()));
}

#[tokio::test]
async fn a_synthetic_worker_serves_by_the_clock_reports_its_load_and_drains() {
    let mut command = command();
    command.args(["--synthetic", "--service", "constant:30s", "--slots", "2", "--queue", "1"]);
    let (mut child, address) = spawned(command).await;
    let body = || json_body(vec![tensor("input", &[1, 1], vec![0.5])]);
    let infer = |demand: &'static str| {
        let mut request = request(Method::POST, "/v2/models/synthetic/infer", body());
        request.headers_mut().insert(header::SERVICE_DEMAND, demand.parse().unwrap());
        request
    };
    let started = Instant::now();
    let answer = send(address, infer("20000")).await;
    assert!(started.elapsed().as_millis() >= 20, "{:?}", started.elapsed());
    assert_eq!((answer.outputs()[0].name.as_str(), answer.report().slots), ("digest", Some(2)));
    let slow = send(address, request(Method::POST, "/slow", "10")).await;
    assert_eq!(slow.text(), r#"{"slow":10.0}"#);
    // Both slots and the line are taken; a fourth is refused.
    let taken: Vec<_> = (0..3).map(|_| tokio::spawn(send(address, infer("100000")))).collect();
    let load = || async {
        let report = send(address, request(Method::GET, "/v2", "")).await.report();
        (report.rif, report.queue)
    };
    eventually("all is taken", || async { load().await == (Some(3), Some(1)) }).await;
    send(address, infer("0")).await.refused(503, "queue_full", "full with 1 requests");
    signal(&child, "-TERM").await;
    eventually("the listener is closed", || async { TcpStream::connect(address).await.is_err() })
        .await;
    for taken in taken {
        assert_eq!(taken.await.unwrap().status, 200);
    }
    assert!(started.elapsed().as_secs_f64() >= 2.0, "two services of a second follow each other");
    assert_eq!(exit_code(&mut child).await, Some(0));
}

#[tokio::test]
async fn the_allocator_keeps_what_the_next_request_needs() {
    let environment = |child: &Child| {
        std::fs::read_to_string(format!("/proc/{}/environ", child.id().unwrap())).unwrap()
    };
    let (child, _) = spawn(&[]).await;
    assert!(environment(&child).contains("MIMALLOC_PURGE_DELAY=1000"));
    let mut other = command();
    other.args(["--synthetic"]).env("MIMALLOC_PURGE_DELAY", "7");
    let (other, _) = spawned(other).await;
    assert!(environment(&other).contains("MIMALLOC_PURGE_DELAY=7"));
}

/// Bytes that a line of the process's status says.
pub(crate) fn status_bytes(child: &Child, key: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id().unwrap())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Cores that each of the process's executors may use, as the system lists them.
fn cores_of_executors(child: &Child) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", child.id().unwrap())).unwrap();
    // Other threads may end meanwhile.
    let status =
        tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("status")).ok());
    let mut threads: Vec<(String, String)> = status
        .map(|status| {
            let line = |key: &str| {
                let found = status.lines().find_map(|line| line.strip_prefix(key));
                found.unwrap().trim().to_owned()
            };
            (line("Name:"), line("Cpus_allowed_list:"))
        })
        .filter(|(name, _)| name.starts_with("executor-"))
        .collect();
    threads.sort();
    threads.into_iter().map(|(_, cores)| cores).collect()
}

#[tokio::test]
async fn executors_keep_to_a_core_each_where_they_are_told_to() {
    let (free, _) = spawn(&["--executors", "3"]).await;
    // Each thread takes its name when it first runs.
    eventually("all are there", async || cores_of_executors(&free).len() == 3).await;
    let all = cores_of_executors(&free);
    assert_eq!(all, vec![all[0].clone(); 3], "they may use what the process may");
    let (pinned, _) = spawn(&["--executors", "3", "--pin-executors"]).await;
    let cores = || cores_of_executors(&pinned);
    // Each thread binds itself when it starts.
    let is_one = |cores: &String| cores.parse::<usize>().is_ok();
    eventually("each has a core", async || cores().len() == 3 && cores().iter().all(is_one)).await;
    let several = rustix::thread::sched_getaffinity(None).unwrap().count() as usize;
    let distinct: std::collections::BTreeSet<_> = cores().into_iter().collect();
    assert_eq!(distinct.len(), several.min(3), "{distinct:?} of {all:?}");
}

#[tokio::test]
async fn the_log_says_which_build_was_taken_and_what_each_was_measured_at() {
    let scratch = Scratch::new("builds");
    let silero = std::fs::read(bundled().join("silero-vad/1/model.onnx")).unwrap();
    scratch.write("m/1/model.onnx", silero);
    let models = scratch.path().to_str().unwrap();
    let mut worker = command();
    let mut child = worker
        .args(["--models", models, "--listen", "127.0.0.1:0", "--log", "json"])
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let ready = loop {
        let line = lines.next_line().await.unwrap().unwrap();
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        if line["message"] == "model ready" {
            break line;
        }
    };
    let (build, builds) = (ready["build"].as_str().unwrap(), ready["builds"].as_str().unwrap());
    let measured = |build: &str| {
        let mut each = builds.split(", ").filter_map(|each| each.strip_suffix(" ms"));
        let found = each.find_map(|each| each.strip_prefix(build)?.trim().parse::<f64>().ok());
        found.is_some_and(|found| found > 0.0)
    };
    assert!(measured(build) && measured("plain") && measured("own"), "{ready}");
}

#[tokio::test]
async fn a_model_that_takes_all_memory_to_load_is_refused_and_the_worker_never_holds_it() {
    let scratch = Scratch::new("eating");
    scratch.write("good/1/model.onnx", Scratch::model("arith"));
    let eating = fixtures().parent().unwrap().join("eating");
    for name in ["constantofshape-huge", "expand-huge"] {
        let model = std::fs::read(eating.join(name).join("1/model.onnx")).unwrap();
        scratch.write(&format!("{name}/1/model.onnx"), model);
    }
    let path = scratch.path().to_str().unwrap();
    let (child, address) = spawn_on(path, &["--load-memory", "512MiB"]).await;
    let index = send(address, request(Method::POST, "/v2/repository/index", "")).await.json();
    for entry in index.as_array().unwrap() {
        let (state, reason) = (entry["state"].as_str(), entry["reason"].as_str().unwrap());
        if entry["name"] == "good" {
            assert_eq!(state, Some("READY"), "{entry}");
            continue;
        }
        assert_eq!(state, Some("UNAVAILABLE"), "{entry}");
        let says_why = ["failed to allocate", "536870912 bytes of memory (load_memory)"];
        assert!(says_why.iter().any(|part| reason.contains(part)), "{entry}");
    }
    assert_eq!(index.as_array().unwrap().len(), 3);
    let sent = request(Method::POST, "/v2/models/good/infer", arith_body(1.0, 2.0));
    assert_eq!(send(address, sent).await.outputs()[0], tensor("sum", &[1, 4], vec![3.0; 4]));
    // Each of them fills 3 GiB where it may.
    let most = status_bytes(&child, "VmHWM:");
    assert!(most < 1 << 30, "{most}");
}

#[tokio::test]
async fn models_that_come_and_go_leave_no_memory_behind() {
    /// Memory that an allocator may keep; forty versions that were never freed would be 300 MiB.
    const SLACK: u64 = 32 << 20;
    let scratch = Scratch::new("leak");
    let silero = std::fs::read(bundled().join("silero-vad/1/model.onnx")).unwrap();
    scratch.write("m/1/model.onnx", silero);
    scratch.write("steady/1/model.onnx", Scratch::model("arith"));
    let path = scratch.path().to_str().unwrap();
    let (child, address) = spawn_on(path, &["--models-control", "--executors", "1"]).await;
    let call = async |path: &str, body: Vec<u8>| {
        let answer = send(address, request(Method::POST, path, body)).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    };
    let mut memory = Vec::new();
    for _ in 0..50 {
        call("/v2/repository/models/m/unload", Vec::new()).await;
        call("/v2/models/steady/infer", arith_body(1.0, 1.0)).await;
        call("/v2/repository/models/m/load", Vec::new()).await;
        memory.push(status_bytes(&child, "VmRSS:"));
    }
    let (before, after) = (memory[..10].iter().max().unwrap(), memory[40..].iter().min().unwrap());
    assert!(*after <= before + SLACK, "{} MiB became {}", before >> 20, after >> 20);
}

#[tokio::test]
async fn a_synthetic_worker_is_not_ready_before_it_closes_and_a_second_signal_ends_it() {
    let mut command = command();
    command.args(["--synthetic", "--drain-delay", "10m"]);
    let (mut child, address) = spawned(command).await;
    signal(&child, "-TERM").await;
    let get = |path: &'static str| try_send(address, request(Method::GET, path, ""));
    eventually("it is not ready", || async {
        get("/v2/health/ready").await.unwrap().reason() == "draining"
    })
    .await;
    let body = json_body(vec![tensor("input", &[1, 1], vec![0.5])]);
    let infer = request(Method::POST, "/v2/models/synthetic/infer", body);
    let answer = send(address, infer).await;
    assert_eq!((answer.status.as_u16(), answer.header("connection")), (200, "close"));
    signal(&child, "-TERM").await;
    assert_eq!(exit_code(&mut child).await, Some(0));
}

#[tokio::test]
async fn a_library_of_onnx_runtime_that_is_not_there_is_a_mistake_of_the_command_line() {
    let (status, _, errors) = output(&["--onnxruntime", "/nowhere/libonnxruntime.so"]).await;
    assert_eq!(status, Some(2), "{errors}");
    let words =
        "onnxruntime: expected libonnxruntime.so, or a folder with it, found none at /nowhere";
    assert!(errors.contains(words), "{errors}");
    let (status, said, _) = output(&["check", "--against", "tractor", "x"]).await;
    assert_eq!(status, Some(2), "{said}");
    let words = "--against: expected tract or onnxruntime, found \"tractor\"";
    assert!(said.contains(words), "{said}");
}
