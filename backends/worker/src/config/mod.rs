//! What the operator wrote, on the command line or in a file, and what it means.
//!
//! One structure serves both, so that every key is a flag of the same name and a flag overrules the
//! file. Both read their values with the same code. Units stand in the value: a bare number where a
//! unit is due is refused, because nobody remembers whether `drain_delay = 5` was seconds.

pub(crate) mod model;

use crate::engines;
use crate::host::machine_memory;
use forebay_config::file::{self, LoadError};
use forebay_config::{ByteSize, Diagnostics, Document, FromToml, Table};
use forebay_engine::Engines;
use std::borrow::Cow;
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::de::DeValue;

/// Time that reading the file may take.
const READING: Duration = Duration::from_secs(30);

/// What a worker runs with.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// The model repository: `<model>/<version>/model.onnx`, or another file that an engine reads.
    pub models: PathBuf,
    /// The engines that run models, the preferred first. A child that loads a model for the first time
    /// has those of its program.
    pub engines: Engines,
    /// Bytes of memory that all models may take; `None`: no bound.
    pub models_memory: Option<u64>,
    /// How often changes in the repository are looked for; `None`: only on SIGHUP.
    pub models_poll: Option<Duration>,
    /// Whether requests may load and unload models.
    pub models_control: bool,
    /// Longest model file, in bytes.
    pub max_model: u64,
    /// Until a version must have been loaded and warmed; before that, the same time for a process of
    /// its own that does it for the first time.
    pub load_timeout: Duration,
    /// Bytes of memory that a model may take while it is loaded for the first time.
    pub load_memory: u64,
    /// From the start until the worker is ready without the models that still load.
    pub ready_timeout: Duration,
    /// The words that start this program: a model is loaded for the first time in a process of its
    /// own. None: in this one, without a bound on its memory.
    pub program: Vec<OsString>,
    /// Address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Threads that run models.
    pub executors: usize,
    /// Whether each executor keeps to one core.
    pub pin_executors: bool,
    /// Requests that may wait for each model, unless its `model.toml` says otherwise.
    pub queue: usize,
    /// Longest body, in bytes, inflated.
    pub max_body: usize,
    /// Bytes of bodies held at once, over all requests.
    pub max_body_memory: usize,
    /// Bytes of answers held at once that clients have not read yet, over all requests.
    pub max_answer_memory: usize,
    /// Connections held at once.
    pub max_connections: usize,
    /// Until the first request's header must be there.
    pub header_timeout: Duration,
    /// Until the next request's header must be there, on a connection that served one.
    pub idle_timeout: Duration,
    /// Until a body must be there, from its first byte awaited to its last.
    pub body_timeout: Duration,
    /// Least bytes a second of a body, after its first seconds; 0: no such bound.
    pub min_body_rate: usize,
    /// Between "not ready" and the listener's closing.
    pub drain_delay: Duration,
    /// From the listener's closing until what is unfinished is dropped.
    pub drain_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            models: PathBuf::from("models"),
            engines: engines::all(),
            models_memory: None,
            models_poll: None,
            models_control: false,
            // Protobuf's own limit.
            max_model: 2 << 30,
            // The largest take a minute.
            load_timeout: Duration::from_secs(300),
            // The other half is for what is served meanwhile.
            load_memory: machine_memory() / 2,
            // Longer than healthy models take together, shorter than the patience of a rollout.
            ready_timeout: Duration::from_secs(30),
            program: Vec::new(),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8000)),
            executors: cores,
            pin_executors: false,
            queue: 128,
            max_body: 64 << 20,
            max_body_memory: 512 << 20,
            max_answer_memory: 512 << 20,
            max_connections: 4096,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            body_timeout: Duration::from_secs(30),
            min_body_rate: 1 << 10,
            drain_delay: Duration::from_secs(1),
            drain_timeout: Duration::from_secs(30),
        }
    }
}

/// More threads than this is a slip of the pen, not a machine.
const MAX_EXECUTORS: usize = 1024;
/// Places in a queue and connections: far beyond use, and within what their counters hold.
const MAX_COUNT: usize = 1 << 20;

/// Looking more often than this would be all that the loader does.
const MIN_POLL: Duration = Duration::from_millis(50);

/// Keys of the file and flags of the command line.
#[derive(Debug, Default, clap::Args)]
pub struct Settings {
    /// Model repository: DIR/<model>/<version>/model.onnx [default: models]
    #[arg(long, value_name = "DIR")]
    pub models: Option<PathBuf>,
    /// Memory for models: what was used last stays, the rest is loaded on demand [default: no bound]
    #[arg(long, value_name = "SIZE", value_parser = unit::<ByteSize>)]
    pub models_memory: Option<ByteSize>,
    /// How often to look for changed models [default: never, only on SIGHUP]
    #[arg(long, value_name = "TIME", value_parser = unit::<Duration>)]
    pub models_poll: Option<Duration>,
    /// Let requests load and unload models [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub models_control: Option<bool>,
    /// Longest model file [default: 2GiB]
    #[arg(long, value_name = "SIZE", value_parser = unit::<ByteSize>)]
    pub max_model: Option<ByteSize>,
    /// Time for a model to be loaded and warmed [default: 5m]
    #[arg(long, value_name = "TIME", value_parser = unit::<Duration>)]
    pub load_timeout: Option<Duration>,
    /// Memory for one model while it is loaded [default: half of the machine's or the group's]
    #[arg(long, value_name = "SIZE", value_parser = unit::<ByteSize>)]
    pub load_memory: Option<ByteSize>,
    /// Time from the start until the worker is ready without the models that still load [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = unit::<Duration>)]
    pub ready_timeout: Option<Duration>,
    /// Address to listen on; port 0 takes a free one [default: 127.0.0.1:8000]
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// Threads that run models [default: number of cores]
    #[arg(long, value_name = "N", value_parser = count::<MAX_EXECUTORS>)]
    pub executors: Option<usize>,
    /// Keep each executor on one core of those that the process may use [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub pin_executors: Option<bool>,
    /// Requests that may wait for each model [default: 128]
    #[arg(long, value_name = "N", value_parser = count::<MAX_COUNT>)]
    pub queue: Option<usize>,
    /// Longest request body, inflated [default: 64MiB]
    #[arg(long, value_name = "SIZE", value_parser = unit::<ByteSize>)]
    pub max_body: Option<ByteSize>,
    /// Bytes of request bodies held at once [default: 512MiB]
    #[arg(long, value_name = "SIZE", value_parser = unit::<ByteSize>)]
    pub max_body_memory: Option<ByteSize>,
    /// Bytes of answers held at once that clients have not read yet [default: 512MiB]
    #[arg(long, value_name = "SIZE", value_parser = unit::<ByteSize>)]
    pub max_answer_memory: Option<ByteSize>,
    /// Connections held at once; an idle one makes room for a new one [default: 4096]
    #[arg(long, value_name = "N", value_parser = count::<MAX_COUNT>)]
    pub max_connections: Option<usize>,
    /// Time for the first request's header to arrive [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = unit::<Duration>)]
    pub header_timeout: Option<Duration>,
    /// Time that a connection may be idle between requests [default: 75s]
    #[arg(long, value_name = "TIME", value_parser = unit::<Duration>)]
    pub idle_timeout: Option<Duration>,
    /// Time for a body to arrive [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = unit::<Duration>)]
    pub body_timeout: Option<Duration>,
    /// Least bytes of a body in a second, after its first 5 s; "0B": any rate [default: 1KiB]
    #[arg(long, value_name = "SIZE", value_parser = unit::<ByteSize>)]
    pub min_body_rate: Option<ByteSize>,
    /// On SIGTERM: time between "not ready" and closing the listener [default: 1s]
    #[arg(long, value_name = "TIME", value_parser = unit::<Duration>)]
    pub drain_delay: Option<Duration>,
    /// On SIGTERM: time for unfinished requests after that [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = unit::<Duration>)]
    pub drain_timeout: Option<Duration>,
    /// Form of the log on standard error [default: text]
    #[arg(long, value_name = "FORM")]
    pub log: Option<LogForm>,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum LogForm {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
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
        /// Where, what was expected and what was found.
        found: Diagnostics,
    },
    /// Bodies that may be longer than all bodies together.
    #[error("expected max_body_memory of at least max_body, {max_body}, found {found}")]
    BodyMemory {
        /// Longest body.
        max_body: ByteSize,
        /// Memory for all.
        found: ByteSize,
    },
}

impl Settings {
    /// Reads a file.
    ///
    /// # Errors
    /// The file can't be read or understood; every mistake in it is listed.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let path = path.to_owned();
        file::load(&path, READING, Self::parse).map_err(|error| match error {
            LoadError::Invalid(found) => ConfigError::File { path, found },
            error => ConfigError::Read { path, error },
        })
    }

    fn parse(text: &str) -> Result<Self, Diagnostics> {
        let document = Document::parse(text);
        let settings = {
            let file = document.root();
            Self {
                models: file.get("models"),
                models_memory: file.get("models_memory"),
                models_poll: file.get("models_poll"),
                models_control: file.get("models_control"),
                max_model: file.get("max_model"),
                load_timeout: file.get("load_timeout"),
                load_memory: file.get("load_memory"),
                ready_timeout: file.get("ready_timeout"),
                listen: file.get("listen"),
                executors: counted(&file, "executors", MAX_EXECUTORS),
                pin_executors: file.get("pin_executors"),
                queue: counted(&file, "queue", MAX_COUNT),
                max_body: file.get("max_body"),
                max_body_memory: file.get("max_body_memory"),
                max_answer_memory: file.get("max_answer_memory"),
                max_connections: counted(&file, "max_connections", MAX_COUNT),
                header_timeout: file.get("header_timeout"),
                idle_timeout: file.get("idle_timeout"),
                body_timeout: file.get("body_timeout"),
                min_body_rate: file.get("min_body_rate"),
                drain_delay: file.get("drain_delay"),
                drain_timeout: file.get("drain_timeout"),
                log: file.choice(
                    "log",
                    &[("text", Some(LogForm::Text)), ("json", Some(LogForm::Json))],
                    None,
                ),
            }
        };
        document.finish().map(|()| settings)
    }

    /// These settings where they say something, `file` elsewhere, defaults for the rest.
    ///
    /// # Errors
    /// One body could be longer than all together.
    pub fn resolve(self, file: Self) -> Result<(Options, LogForm), ConfigError> {
        let default = Options::default();
        macro_rules! first {
            ($($key:ident),*) => { Options {
                max_body: bytes(self.max_body.or(file.max_body), default.max_body),
                max_body_memory: bytes(
                    self.max_body_memory.or(file.max_body_memory),
                    default.max_body_memory,
                ),
                max_answer_memory: bytes(
                    self.max_answer_memory.or(file.max_answer_memory),
                    default.max_answer_memory,
                ),
                min_body_rate: bytes(self.min_body_rate.or(file.min_body_rate), default.min_body_rate),
                models_memory: self.models_memory.or(file.models_memory).map(|size| size.0),
                models_poll: self.models_poll.or(file.models_poll).map(|poll| poll.max(MIN_POLL)),
                load_memory: self.load_memory.or(file.load_memory).map_or(default.load_memory, |s| s.0),
                program: default.program,
                engines: default.engines,
                max_model: self.max_model.or(file.max_model).map_or(default.max_model, |s| s.0),
                $($key: self.$key.or(file.$key).unwrap_or(default.$key),)*
            } };
        }
        let options = first!(
            models,
            models_control,
            listen,
            executors,
            pin_executors,
            queue,
            load_timeout,
            ready_timeout,
            max_connections,
            header_timeout,
            idle_timeout,
            body_timeout,
            drain_delay,
            drain_timeout
        );
        if options.max_body_memory < options.max_body {
            let size = |bytes: usize| ByteSize(bytes as u64);
            let (max_body, found) = (size(options.max_body), size(options.max_body_memory));
            return Err(ConfigError::BodyMemory { max_body, found });
        }
        Ok((options, self.log.or(file.log).unwrap_or_default()))
    }
}

fn bytes(size: Option<ByteSize>, default: usize) -> usize {
    size.map_or(default, |size| usize::try_from(size.0).unwrap_or(usize::MAX))
}

fn counted(file: &Table<'_, '_>, key: &str, most: usize) -> Option<usize> {
    // The default is out of the range, so it stands for "not there" (or noted as wrong).
    Some(file.within(key, 1..=most, 0)).filter(|&count| count > 0)
}

/// A flag's value, read as the file's would be.
fn unit<T: FromToml>(text: &str) -> Result<T, String> {
    let value = DeValue::String(Cow::Borrowed(text));
    T::from_toml(&value).map_err(|_| format!("expected {}", T::EXPECTED))
}

fn count<const MAX: usize>(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|count| (1..=MAX).contains(count));
    count.ok_or_else(|| format!("expected 1 to {MAX}"))
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
    use clap::CommandFactory;

    #[test]
    fn a_flag_overrules_the_file_and_the_file_the_default() {
        let file = "queue = 7\nexecutors = 3\nmax_body = \"1MiB\"\nlog = \"json\"";
        let file = Settings::parse(file).unwrap();
        let flags = Settings { queue: Some(9), ..Settings::default() };
        let (options, log) = flags.resolve(file).unwrap();
        assert_eq!((options.queue, options.executors, options.max_body), (9, 3, 1 << 20));
        assert_eq!(options.drain_delay, Options::default().drain_delay);
        assert_eq!(log, LogForm::Json);
    }

    #[test]
    fn every_mistake_in_a_file_is_reported_at_once() {
        let file = "quue = 1\ndrain_delay = 5\nexecutors = 0\nlisten = \"here\"\nlog = \"xml\"\n\
                    max_body = \"-1\"\nmodels = 3\nidle_timeout = \"5\"";
        let found = Settings::parse(file).unwrap_err();
        let lines: Vec<_> = found.iter().map(|error| error.line).collect();
        assert_eq!(lines, [1, 2, 3, 4, 5, 6, 7, 8], "{found}");
        for part in
            ["did you mean \"queue\"?", "expected a duration", "expected 1 to 1024, found 0"]
        {
            assert!(found.to_string().contains(part), "expected {part}, found {found}");
        }
    }

    #[test]
    fn every_flag_is_a_key_of_the_file() {
        #[derive(Debug, clap::Parser)]
        struct Flags {
            #[command(flatten)]
            settings: Settings,
        }
        let flags = Flags::command();
        let flags = flags.get_arguments().map(|flag| flag.get_id().to_string());
        let text: Vec<_> = flags.map(|flag| format!("{flag} = []")).collect();
        let found = Settings::parse(&text.join("\n")).unwrap_err();
        assert_eq!(found.iter().len(), text.len());
        assert!(!found.to_string().contains("unknown key"), "{found}");
    }

    #[test]
    fn one_body_can_not_be_longer_than_all() {
        let flags = Settings { max_body: Some(ByteSize(1 << 40)), ..Settings::default() };
        let error = flags.resolve(Settings::default()).unwrap_err().to_string();
        assert!(error.contains("at least max_body, \"1024GiB\", found \"512MiB\""), "{error}");
    }
}
