//! The first load of a model, in a process of its own.
//!
//! A file of a hundred bytes may ask for more memory than the machine has, crash its reader in a way that no
//! thread survives, or never finish. So content that was never loaded before is first loaded by a child,
//! whose memory and time are bounded and which is the first to be killed when the machine runs out of
//! memory. The child's measurements are taken over, so that nothing is measured twice, and the worker loads
//! only content that has been loaded before.
//!
//! The child reads one line, an [`Order`], and behind it the model; it answers with one line. If it ends
//! without one, the way it ended tells the cause: an end of its own making will come again, an end from
//! outside (the kernel's lack of memory, an operator's signal) may pass.

use crate::config::Options;
use crate::engines;
use crate::host::status_bytes;
use crate::repository::command::Cancel;
use crate::repository::error::LoadError;
use crate::repository::guard::STACK;
use forebay_engine::{LoadError as EngineError, LoadOptions, ModelFile, Profile};
use rustix::process::{Resource, Rlimit, Signal, setrlimit};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::io::{self, BufRead, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

/// Makes the program such a child.
pub(crate) const FLAG: &str = "--try-model";
/// Within this time after the limit a child has gone.
pub(crate) const MARGIN: Duration = Duration::from_secs(10);

/// Bytes of the child's answer that are read: a profile has hundreds, a reason less.
const MAX_ANSWER: u64 = 1 << 20;
/// Bytes of what it says last on standard error that are kept.
const LAST_WORDS: usize = 400;
/// Exit status of a child that could not begin: the system had no thread for it.
const LATER: u8 = 75;
/// Seconds of processor time beyond the bound, at which the kernel lets no handler stand in its way.
const HARD: u64 = 5;
/// Ends that a process makes by itself.
const OWN_FAULTS: [Signal; 8] = [
    Signal::ABORT,
    Signal::BUS,
    Signal::FPE,
    Signal::ILL,
    Signal::SEGV,
    Signal::SYS,
    Signal::TRAP,
    Signal::XCPU,
];
/// KiB that the allocator reserves at a time: its own choice, 1 GiB, would count as taken.
const RESERVE: (&str, &str) = ("MIMALLOC_ARENA_RESERVE", "65536");

/// The order to the child.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    /// Bytes of memory beyond what the program takes by itself.
    memory: u64,
    /// Seconds of processor time.
    seconds: u64,
    /// Name of the engine.
    engine: String,
    /// Name of the model's file.
    file: String,
    /// The key of that name.
    onnxruntime: PathBuf,
    options: LoadOptions,
}

type Answer = Result<Profile, EngineError>;

/// A model that is to be tried.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate<'a> {
    /// Name of the engine.
    pub(crate) engine: &'a str,
    pub(crate) file: ModelFile<'a>,
}

/// The limits and the program of trial loads.
#[derive(Debug)]
pub(crate) struct Sandbox {
    program: Vec<OsString>,
    memory: u64,
    limit: Duration,
    onnxruntime: PathBuf,
}

impl Sandbox {
    pub(crate) fn of(options: &Options) -> Self {
        let program = options.program.clone();
        Self {
            program,
            memory: options.load_memory,
            limit: options.load_timeout,
            onnxruntime: options.onnxruntime.clone(),
        }
    }

    /// Loads a model once in a child; `None` if there is no program to do it with.
    ///
    /// # Errors
    /// Why it can't be loaded, how the child ended, that there was none, or that it was cancelled.
    pub(crate) fn profile(
        &self,
        candidate: Candidate<'_>,
        options: &LoadOptions,
        cancel: &Cancel,
    ) -> Result<Option<Profile>, LoadError> {
        let Some((program, arguments)) = self.program.split_first() else { return Ok(None) };
        let mut command = Command::new(program);
        command.args(arguments).arg(FLAG).env(RESERVE.0, RESERVE.1);
        let limit = self.limit;
        let seconds = limit.as_secs_f64().ceil();
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few minutes")]
        let order = Order {
            memory: self.memory,
            seconds: seconds as u64,
            engine: candidate.engine.to_owned(),
            file: candidate.file.name.to_owned(),
            onnxruntime: self.onnxruntime.clone(),
            options: options.clone(),
        };
        let order = serde_json::to_vec(&order).map_err(|error| error.to_string())?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let parts: [&[u8]; 3] = [&order, b"\n", candidate.file.bytes];
        let said = runtime
            .and_then(|runtime| runtime.block_on(ask(command, limit, &parts, cancel)))
            .map_err(|error| {
                LoadError::Passing(format!("can't start a process for its first load: {error}"))
            })?;
        if cancel.is_cancelled() {
            return Err(LoadError::cancelled());
        }
        let said = said.ok_or_else(|| {
            let text =
                format!("its first load, in a process of its own, did not end within {limit:?}");
            LoadError::Unsupported(text)
        })?;
        match serde_json::from_slice::<Answer>(&said.answer) {
            Ok(answer) => Ok(answer.map(Some)?),
            Err(_) => Err(self.end(&said)),
        }
    }

    /// The meaning of a child's end without an answer.
    fn end(&self, said: &Said) -> LoadError {
        let Self { memory, limit, .. } = self;
        let words = match said.words.as_str() {
            "" => String::new(),
            words => format!(", saying \"{words}\""),
        };
        let status = said.status;
        let is_own_fault = status.signal().map_or(status.code() != Some(LATER.into()), |signal| {
            OWN_FAULTS.iter().any(|fault| fault.as_raw() == signal)
        });
        if is_own_fault {
            LoadError::Unsupported(format!(
                "its first load ended the process of its own ({status}{words}), which may take {memory} \
                 bytes of memory (load_memory) and {limit:?} of processor time"
            ))
        } else {
            let text =
                format!("its first load, in a process of its own, was ended ({status}{words})");
            LoadError::Passing(text)
        }
    }
}

/// The output of a child, and its exit status.
struct Said {
    answer: Vec<u8>,
    /// The last on standard error, on one line.
    words: String,
    status: ExitStatus,
}

/// Starts a child and sends it these parts; `None` if it had to be killed, because its time was up or
/// because its answer is no longer wanted. It does not outlive the call.
async fn ask(
    mut command: Command,
    limit: Duration,
    parts: &[&[u8]],
    cancel: &Cancel,
) -> io::Result<Option<Said>> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn()?;
    let said = tokio::select! {
        said = tokio::time::timeout(limit, talk(&mut child, parts)) => said.ok().transpose(),
        () = cancel.cancelled() => Ok(None),
    };
    if !matches!(said, Ok(Some(_))) {
        child.kill().await?;
    }
    said
}

/// Tells the child all parts and hears it out, until it has ended.
async fn talk(child: &mut Child, parts: &[&[u8]]) -> io::Result<Said> {
    let (input, output, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let tell = async {
        let Some(mut input) = input else { return };
        for part in parts {
            // It may end before it has read everything; then how it ended tells.
            if input.write_all(part).await.is_err() {
                return;
            }
        }
    };
    let hear = async {
        let mut answer = Vec::new();
        if let Some(output) = output {
            output.take(MAX_ANSWER).read_to_end(&mut answer).await?;
        }
        io::Result::Ok(answer)
    };
    let ((), answer, words) = tokio::join!(tell, hear, last_words(errors));
    Ok(Said { answer: answer?, words, status: child.wait().await? })
}

/// The last of what comes until the end, without line breaks and other control characters.
async fn last_words(from: Option<impl AsyncRead + Unpin>) -> String {
    let (mut kept, mut chunk) = (Vec::new(), [0; 1024]);
    if let Some(mut from) = from {
        while let Ok(length @ 1..) = from.read(&mut chunk).await {
            kept.extend(&chunk[..length]);
            kept.drain(..kept.len().saturating_sub(LAST_WORDS));
        }
    }
    let text = String::from_utf8_lossy(&kept).replace(char::is_control, " ");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The child: reads from standard input, answers on standard output.
pub(crate) fn main() -> ExitCode {
    let work = || -> io::Result<()> {
        let mut input = io::stdin().lock();
        let mut order = Vec::new();
        input.read_until(b'\n', &mut order)?;
        let order: Order = serde_json::from_slice(&order)?;
        let mut bytes = Vec::new();
        input.read_to_end(&mut bytes)?;
        confine(&order);
        let answer = load(&order, &bytes);
        let mut output = io::stdout();
        output.write_all(&serde_json::to_vec(&answer)?)?;
        output.flush()
    };
    // A panic of the engine is part of the answer; of any other this is all that is left.
    std::panic::set_hook(Box::new(|panic| say(panic)));
    match std::thread::Builder::new().stack_size(STACK).spawn(work) {
        Ok(thread) => match thread.join() {
            Ok(Ok(())) => ExitCode::SUCCESS,
            Ok(Err(error)) => {
                say(&error);
                ExitCode::FAILURE
            }
            Err(_) => ExitCode::FAILURE,
        },
        Err(error) => {
            say(&error);
            ExitCode::from(LATER)
        }
    }
}

fn load(order: &Order, bytes: &[u8]) -> Answer {
    let engines = engines::with(&order.onnxruntime).map_err(EngineError::Refused)?;
    let engine = engines
        .get(&order.engine)
        .ok_or_else(|| EngineError::Refused(format!("unknown engine \"{}\"", order.engine)))?;
    let file = ModelFile { name: &order.file, bytes };
    // A load that is not wanted any more is killed from outside.
    Ok(engine.load(file, &order.options, &|| false)?.profile())
}

/// Prints last words: the parent reads them if there is no answer.
fn say(words: &dyn std::fmt::Display) {
    drop(writeln!(io::stderr(), "{words}"));
}

/// Takes from this process what it does not need. A sandbox may forbid some of it: what is left holds.
fn confine(order: &Order) {
    let limit = |resource, bound: u64, hard: u64| {
        let _ = setrlimit(resource, Rlimit { current: Some(bound), maximum: Some(hard) });
    };
    let memory = status_bytes("VmSize:").saturating_add(order.memory);
    limit(Resource::As, memory, memory);
    // At the soft bound it gets SIGXCPU; at the hard one SIGKILL, as if memory had run out.
    let seconds = order.seconds.max(1);
    limit(Resource::Cpu, seconds, seconds.saturating_add(HARD));
    limit(Resource::Core, 0, 0);
    // Independently of the bound: if memory runs out, the kernel kills this process first.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
    use super::*;
    use std::path::Path;

    /// Beyond what a pipe takes at once.
    const MODEL: Candidate<'_> =
        Candidate { engine: "any", file: ModelFile { name: "model", bytes: &[0; 1 << 20] } };

    /// The result of a child that runs the script.
    fn tried(script: &str, limit: Duration) -> LoadError {
        let script = format!("ulimit -c 0; {script}");
        let program = ["/bin/sh", "-c", &script].map(OsString::from).to_vec();
        let onnxruntime = PathBuf::from("off");
        let sandbox = Sandbox { program, memory: 1 << 30, limit, onnxruntime };
        sandbox.profile(MODEL, &LoadOptions::default(), &Cancel::new()).unwrap_err()
    }

    #[test]
    fn what_a_process_does_to_itself_is_the_models_fault_and_what_others_do_passes() {
        let limit = Duration::from_secs(60);
        for end in ["ABRT", "BUS", "FPE", "ILL", "SEGV", "SYS", "TRAP", "XCPU"] {
            let failure = tried(&format!("kill -{end} $$"), limit);
            assert!(
                matches!(&failure, LoadError::Unsupported(text) if text.contains(end)),
                "{failure:?}"
            );
        }
        for end in ["KILL", "TERM", "USR1"] {
            let failure = tried(&format!("kill -{end} $$"), limit);
            assert!(
                matches!(&failure, LoadError::Passing(text) if text.contains(end)),
                "{failure:?}"
            );
        }
        for status in [0, 1] {
            let failure = tried(&format!("exit {status}"), limit);
            assert!(matches!(failure, LoadError::Unsupported(_)), "{failure:?}");
        }
        let failure = tried("exit 75", limit);
        assert!(matches!(failure, LoadError::Passing(_)), "{failure:?}");
        let program = vec![OsString::from("/nowhere/to/be/found")];
        let onnxruntime = PathBuf::from("off");
        let none = Sandbox { program, memory: 0, limit, onnxruntime };
        let failure = none.profile(MODEL, &LoadOptions::default(), &Cancel::new()).unwrap_err();
        assert!(
            failure.to_string().contains("can't start a process for its first load: No such file"),
            "{failure}"
        );
        assert!(matches!(failure, LoadError::Passing(_)), "{failure:?}");
    }

    #[test]
    fn the_last_words_are_told_and_no_more_of_them_than_is_bearable() {
        let script = "yes | head -c 1000000 >&2; printf 'the\\033 last\\nwords' >&2; kill -ABRT $$";
        let text = tried(script, Duration::from_secs(60)).to_string();
        assert!(text.contains("y y the last words\")"), "{text}");
        assert!(text.len() < LAST_WORDS + 300, "{text}");
    }

    #[test]
    fn a_child_that_sleeps_is_killed_when_its_time_is_up() {
        let name = format!("forebay-sleeper-{}", std::process::id());
        let file = std::env::temp_dir().join(name);
        let script = format!("echo $$ > {}; exec sleep 1000", file.display());
        let failure = tried(&script, Duration::from_secs(1));
        let text = "its first load, in a process of its own, did not end within 1s";
        assert_eq!(failure, LoadError::Unsupported(text.to_owned()));
        // Where the machine is so busy that it had not begun, there is nothing to look for.
        if let Ok(child) = std::fs::read_to_string(&file) {
            assert!(child.is_empty() || !Path::new("/proc").join(child.trim()).exists(), "{child}");
            std::fs::remove_file(&file).unwrap();
        }
    }
}
