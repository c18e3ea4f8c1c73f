//! The operator's settings, from the command line or a file.
//!
//! Each key is declared once: it is a field, a key of the file, and a flag of the same name, which overrules
//! the file. Both read their values with the same code. Units are part of the value: a bare number is
//! refused where a unit is due, because a reader can't tell whether `drain_delay = 5` means seconds.

pub(crate) mod model;
pub(crate) mod triton;

use crate::engines;
use crate::host::machine_memory;
use forebay_config::file::{self, LoadError};
use forebay_config::flags::Flags;
use forebay_config::form::{any, bytes, called, one_of, optional, within};
use forebay_config::{ByteSize, Diagnostics, Document, Section};
use forebay_engine::Engines;
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Time that reading the file may take.
const READING: Duration = Duration::from_secs(30);

/// More threads than this is a slip of the pen, not a machine.
const MAX_EXECUTORS: usize = 1024;
/// Places in a queue and connections: far beyond use, and within what their counters hold.
const MAX_COUNT: usize = 1 << 20;
/// Looking more often than this would be all that the loader does.
const MIN_POLL: Duration = Duration::from_millis(50);

/// The first lines of `conf/worker.toml`.
const REFERENCE_HEADER: &str = "\
# All keys of forebay-worker with their defaults, or with an example. Each key is also a flag of the same name
# (max_body: --max-body), which overrides the file: forebay-worker --config FILE. Values have a unit.
";

forebay_config::section! {
    /// The settings of a worker.
    pub struct Options {
        /// Model repository: DIR/<model>/<version>/model.onnx, or another file that an engine reads.
        models: PathBuf = PathBuf::from("models"), called("DIR", any());
        /// Memory for models. The models that were used last stay loaded, and the others are loaded on demand.
        /// Default: no bound.
        models_memory: Option<u64> = None, optional(bytes()), shown "\"2GiB\"";
        /// Interval at which the repository is searched for changed models. Default: only on SIGHUP.
        models_poll: Option<Duration> = None, optional(any()), shown "\"10s\"";
        /// Allow clients to load and unload models.
        models_control: bool = false, any();
        /// Maximum size of a model file. Protobuf's own limit is 2 GiB.
        max_model: u64 = 2 << 30, bytes();
        /// Maximum time to load and warm a model. A child process loads each model for the first time, and has
        /// the same time for it. The largest models take a minute.
        load_timeout: Duration = Duration::from_secs(300), any();
        /// Maximum memory of the child process that loads a model for the first time. Default: half of the
        /// memory of the machine or the control group, so that the other half is left to the models in use.
        load_memory: u64 = machine_memory() / 2, bytes(), shown "\"4GiB\"";
        /// Time after the start at which the worker becomes ready although some models are still loading. It
        /// should exceed the loading time of all healthy models, and stay below the timeout of a rollout.
        ready_timeout: Duration = Duration::from_secs(30), any();
        /// Shared library of ONNX Runtime (libonnxruntime.so, version 1.17 or newer), or a folder with one. Models that
        /// tract can't run then run there. "auto" looks in ORT_DYLIB_PATH, LD_LIBRARY_PATH and the system's folders.
        onnxruntime: PathBuf = PathBuf::from("off"), called("PATH|auto|off", any());
        /// Address to listen on. With port 0, the operating system chooses a free port.
        listen: SocketAddr = SocketAddr::from((Ipv4Addr::LOCALHOST, 8000)), any();
        /// Number of threads that run models. Default: the number of cores.
        executors: usize = cores(), within(1..=MAX_EXECUTORS), shown "4";
        /// Pin each executor thread to one of the cores that the process may use.
        pin_executors: bool = false, any();
        /// Maximum number of queued requests per model. The `queue` of a model.toml overrides it.
        queue: usize = 128, within(1..=MAX_COUNT);
        /// Maximum size of a request body after decompression.
        max_body: usize = 64 << 20, bytes();
        /// Maximum memory for all request bodies together.
        max_body_memory: usize = 512 << 20, bytes();
        /// Maximum memory for all answers that clients have not read yet.
        max_answer_memory: usize = 512 << 20, bytes();
        /// Maximum number of open connections. At the limit, an idle connection is closed for a new one.
        max_connections: usize = 4096, within(1..=MAX_COUNT);
        /// Maximum number of requests in flight, over HTTP/2 up to 256 on each connection. One client may have half
        /// of them. Calls that ask for the worker's health find a place beyond them.
        max_requests: usize = 8192, within(1..=MAX_COUNT);
        /// Maximum time until the header of a connection's first request has arrived.
        header_timeout: Duration = Duration::from_secs(10), any();
        /// Maximum time that a connection may be idle between requests.
        idle_timeout: Duration = Duration::from_secs(75), any();
        /// Maximum time until a request body has arrived.
        body_timeout: Duration = Duration::from_secs(30), any();
        /// Minimum bytes per second of a request body, after its first 5 s. "0B" allows any rate.
        min_body_rate: usize = 1 << 10, bytes();
        /// On SIGTERM: time between becoming not ready and closing the listener.
        drain_delay: Duration = Duration::from_secs(1), any();
        /// On SIGTERM: maximum time after that to finish the requests in flight.
        drain_timeout: Duration = Duration::from_secs(30), any();
        /// Format of the log on standard error: "text" or "json".
        log: LogForm = LogForm::Text, called("FORMAT", one_of(LogForm::NAMES));
    }
    beside {
        /// The engines that run models, the preferred first. A child that loads a model for the first time
        /// has those of its program.
        engines: Engines = engines::default();
        /// The words that start this program: a model is loaded for the first time in a process of its
        /// own. None: in this one, without a bound on its memory.
        program: Vec<OsString> = Vec::new();
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogForm {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl LogForm {
    /// Each by its name in the configuration.
    const NAMES: &'static [(&'static str, Self)] = &[("text", Self::Text), ("json", Self::Json)];
}

/// Why the settings can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("{path}: {error}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: LoadError,
    },
    /// Everything that is wrong in the file.
    #[error("{} in the configuration\n{}", errors(.found), .found.render(&.path.to_string_lossy()))]
    File {
        /// The file.
        path: PathBuf,
        /// The place, the expected and the found value of each.
        found: Diagnostics,
    },
    /// There is no library of ONNX Runtime where it is said to be.
    #[error("onnxruntime: {0}")]
    OnnxRuntime(String),
    /// Bodies that may be longer than all bodies together.
    #[error("expected max_body_memory of at least max_body, {max_body}, found {found}")]
    BodyMemory {
        /// Longest body.
        max_body: ByteSize,
        /// Memory for all.
        found: ByteSize,
    },
}

impl Options {
    /// The value of each flag that is given, otherwise the file's, otherwise the default.
    ///
    /// # Errors
    /// The file can't be read or understood, in which case every mistake in it is listed, or one body
    /// could be longer than all together.
    pub fn from_flags(flags: &Flags<Self>, file: Option<&Path>) -> Result<Self, ConfigError> {
        let file = file.map(Self::from_file).transpose()?;
        let options = flags.over(file.unwrap_or_default());
        if options.max_body_memory < options.max_body {
            let size = |bytes: usize| ByteSize(bytes as u64);
            let (max_body, found) = (size(options.max_body), size(options.max_body_memory));
            return Err(ConfigError::BodyMemory { max_body, found });
        }
        let models_poll = options.models_poll.map(|poll| poll.max(MIN_POLL));
        let engines = engines::with(&options.onnxruntime).map_err(ConfigError::OnnxRuntime)?;
        Ok(Self { models_poll, engines, ..options })
    }

    /// All keys with their documentation and their defaults, as a file: `conf/worker.toml`.
    pub fn reference_file() -> String {
        let keys = <Self as Section>::reference("[options]");
        // The keys stand at the top level of the file.
        let keys = keys.split_once("[options]\n").map_or(keys.as_str(), |(_, keys)| keys);
        format!("{REFERENCE_HEADER}\n{keys}")
    }

    fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let path = path.to_owned();
        file::load(&path, READING, Self::parse).map_err(|error| match error {
            LoadError::Invalid(found) => ConfigError::File { path, found },
            error => ConfigError::Read { path, error },
        })
    }

    fn parse(text: &str) -> Result<Self, Diagnostics> {
        let document = Document::parse(text);
        let options = Self::read(&document.root());
        document.finish().map(|()| options)
    }
}

fn errors(found: &Diagnostics) -> String {
    match found.iter().len() {
        1 => "1 error".to_owned(),
        count => format!("{count} errors"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Cli {
        #[command(flatten)]
        flags: Flags<Options>,
    }

    fn flags(words: &[&str]) -> Flags<Options> {
        let words = [&["worker"], words].concat();
        <Cli as clap::Parser>::try_parse_from(words).unwrap().flags
    }

    #[test]
    fn a_flag_overrules_the_file_and_the_file_the_default() {
        let file = "queue = 7\nexecutors = 3\nmax_body = \"1MiB\"\nlog = \"json\"";
        let options = flags(&["--queue", "9"]).over(Options::parse(file).unwrap());
        assert_eq!((options.queue, options.executors, options.max_body), (9, 3, 1 << 20));
        assert_eq!(options.drain_delay, Options::default().drain_delay);
        assert_eq!(options.log, LogForm::Json);
    }

    #[test]
    fn every_mistake_in_a_file_is_reported_at_once() {
        let file = "quue = 1\ndrain_delay = 5\nexecutors = 0\nlisten = \"here\"\nlog = \"xml\"\n\
                    max_body = \"-1\"\nmodels = 3\nidle_timeout = \"5\"";
        let found = Options::parse(file).unwrap_err();
        let lines: Vec<_> = found.iter().map(|error| error.line).collect();
        assert_eq!(lines, [1, 2, 3, 4, 5, 6, 7, 8], "{found}");
        for part in
            ["did you mean \"queue\"?", "expected a duration", "expected 1 to 1024, found 0"]
        {
            assert!(found.to_string().contains(part), "expected {part}, found {found}");
        }
    }

    #[test]
    fn the_reference_file_is_what_the_keys_say() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../conf/worker.toml");
        let found = std::fs::read_to_string(path).unwrap();
        assert_eq!(found, Options::reference_file(), "run .ci/generate");
        Options::parse(&found).unwrap();
    }

    #[test]
    fn one_body_can_not_be_longer_than_all() {
        let error = Options::from_flags(&flags(&["--max-body", "1024GiB"]), None).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("at least max_body, \"1024GiB\", found \"512MiB\""), "{error}");
    }
}
