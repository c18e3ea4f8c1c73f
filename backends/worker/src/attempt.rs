//! The first load of a model, in a process of its own.
//!
//! A file of a hundred bytes may ask for more memory than the machine has, crash its reader in a way
//! that no thread survives, or never come to an end. So what was never loaded before is first loaded by
//! a child, whose memory and time are bounded and which is the first to go when the machine runs out of
//! memory. What it has found out of the model is taken over, so that nothing is measured twice, and the
//! worker loads only what has been loaded before.
//!
//! The child reads one line, an [`Order`], and behind it the model; it answers with one line.

use crate::config::Options;
use crate::trial::STACK;
use forebay_tract::{LoadOptions, Model, Profile};
use rustix::process::{Resource, Rlimit, Signal, setrlimit};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::io::{BufRead, Read, Write};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

/// Makes the program such a child.
pub(crate) const FLAG: &str = "--try-model";

/// Bytes of the child's answer that are read: a profile has hundreds, a reason less.
const MAX_ANSWER: u64 = 1 << 20;
/// KiB that the allocator reserves at a time: its own choice, 1 GiB, would count as taken.
const RESERVE: (&str, &str) = ("MIMALLOC_ARENA_RESERVE", "65536");

/// What the child is told.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    /// Bytes of memory beyond what the program takes by itself.
    memory: u64,
    /// Seconds of processor time.
    seconds: u64,
    options: LoadOptions,
}

type Answer = Result<Profile, String>;

/// How models are tried.
#[derive(Debug)]
pub(crate) struct Attempt {
    program: Vec<OsString>,
    memory: u64,
    limit: Duration,
}

impl Attempt {
    pub(crate) fn of(options: &Options) -> Self {
        let program = options.program.clone();
        Self { program, memory: options.load_memory, limit: options.load_timeout }
    }

    /// Loads a model once in a child; `None` if there is no program to do it with.
    ///
    /// # Errors
    /// In words: why it can't be loaded, or how the child ended.
    pub(crate) fn profile(
        &self,
        onnx: &[u8],
        options: &LoadOptions,
    ) -> Result<Option<Profile>, String> {
        let Some((program, arguments)) = self.program.split_first() else { return Ok(None) };
        let seconds = self.limit.as_secs_f64().ceil();
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few minutes")]
        let order =
            Order { memory: self.memory, seconds: seconds as u64, options: options.clone() };
        let order = serde_json::to_vec(&order).map_err(|error| error.to_string())?;
        let child = Command::new(program)
            .args(arguments)
            .arg(FLAG)
            .env(RESERVE.0, RESERVE.1)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let child = child.map_err(|error| format!("no process to try it in: {error}"))?;
        let answer = Killed(child).ask(&[&order, b"\n", onnx]);
        let answer = answer.map_err(|error| format!("the process to try it in: {error}"))?;
        serde_json::from_slice::<Answer>(&answer.said)
            .map_or_else(|_| Err(self.end(&answer)), |a| a.map(Some))
    }

    fn end(&self, answer: &Said) -> String {
        let Self { memory, limit, .. } = self;
        format!(
            "it broke the process that it was tried in ({}), which may take {memory} bytes of memory \
             (load_memory) and {limit:?} of processor time",
            answer.status
        )
    }
}

/// What a child has said, and how it ended.
struct Said {
    said: Vec<u8>,
    status: std::process::ExitStatus,
}

/// A child that does not outlive its use.
struct Killed(Child);

impl Killed {
    fn ask(mut self, parts: &[&[u8]]) -> std::io::Result<Said> {
        if let Some(mut input) = self.0.stdin.take() {
            // It may end before it has read everything; then how it ended tells.
            let _ = parts.iter().try_for_each(|part| input.write_all(part));
        }
        let mut said = Vec::new();
        if let Some(output) = self.0.stdout.take() {
            output.take(MAX_ANSWER).read_to_end(&mut said)?;
        }
        Ok(Said { said, status: self.0.wait()? })
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        // Fails if it has ended, as it should have.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The child: reads from standard input, answers on standard output.
pub(crate) fn main() -> ExitCode {
    let work = || -> std::io::Result<()> {
        let mut input = std::io::stdin().lock();
        let mut order = Vec::new();
        input.read_until(b'\n', &mut order)?;
        let order: Order = serde_json::from_slice(&order)?;
        let mut onnx = Vec::new();
        input.read_to_end(&mut onnx)?;
        confine(&order);
        let answer: Answer = Model::load(&onnx, &order.options)
            .map(|model| model.profile())
            .map_err(|error| error.to_string());
        let mut output = std::io::stdout();
        output.write_all(&serde_json::to_vec(&answer)?)?;
        output.flush()
    };
    // A panic of the engine is part of the answer.
    std::panic::set_hook(Box::new(|_| ()));
    let thread = std::thread::Builder::new().stack_size(STACK).spawn(work);
    match thread.map(std::thread::JoinHandle::join) {
        Ok(Ok(Ok(()))) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// Takes from this process what it does not need. A sandbox may forbid some of it: what is left holds.
fn confine(order: &Order) {
    let at_most = |bound: u64| Rlimit { current: Some(bound), maximum: Some(bound) };
    let memory = status_bytes("VmSize:").saturating_add(order.memory);
    let _ = setrlimit(Resource::As, at_most(memory));
    let _ = setrlimit(Resource::Cpu, at_most(order.seconds.max(1)));
    let _ = setrlimit(Resource::Core, at_most(0));
    // Whatever the bound: if memory runs out, this process is the one to go.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
}

/// Bytes that a line of this process's status says; 0 if the system does not say.
pub(crate) fn status_bytes(key: &str) -> u64 {
    kibibytes("/proc/self/status", key).unwrap_or(0) << 10
}

/// Bytes of memory of this machine, or of the control group if that may take less.
pub(crate) fn machine_memory() -> u64 {
    let machine = kibibytes("/proc/meminfo", "MemTotal:").map_or(u64::MAX, |found| found << 10);
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = groups.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    // Its own bound, or that of any group around it.
    let around = std::path::Path::new(group).ancestors();
    let bounds = around.filter_map(|group| {
        let group = group.strip_prefix("/").unwrap_or(group);
        let file = std::path::Path::new("/sys/fs/cgroup").join(group).join("memory.max");
        std::fs::read_to_string(file).ok()?.trim().parse().ok()
    });
    bounds.fold(machine, u64::min)
}

fn kibibytes(file: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}
