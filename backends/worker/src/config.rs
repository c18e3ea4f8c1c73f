//! What the operator wrote, on the command line or in a file, and what it means.
//!
//! One structure serves both, so that every key is a flag of the same name and a flag overrules the
//! file. Units stand in the value: a bare number where a unit is due is refused, because nobody
//! remembers whether `drain_delay = 5` was seconds.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// What a worker runs with.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// The model repository: `<model>/<version>/model.onnx`.
    pub models: PathBuf,
    /// Address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Threads that run models.
    pub executors: usize,
    /// Requests that may wait for each model, unless its `model.toml` says otherwise.
    pub queue: usize,
    /// Longest body, in bytes, inflated.
    pub max_body: usize,
    /// Bytes of bodies held at once, over all requests.
    pub max_body_memory: usize,
    /// Connections held at once.
    pub max_connections: usize,
    /// Until the first request's header must be there.
    pub header_timeout: Duration,
    /// Until the next request's header must be there, on a connection that served one.
    pub idle_timeout: Duration,
    /// Until a body must be there, from its first byte awaited to its last.
    pub body_timeout: Duration,
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
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8000)),
            executors: cores,
            queue: 128,
            max_body: 64 << 20,
            max_body_memory: 512 << 20,
            max_connections: 4096,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            body_timeout: Duration::from_secs(30),
            drain_delay: Duration::from_secs(1),
            drain_timeout: Duration::from_secs(30),
        }
    }
}

/// Keys of the file and flags of the command line.
#[derive(Debug, Default, clap::Args, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Model repository: DIR/<model>/<version>/model.onnx [default: models]
    #[arg(long, value_name = "DIR")]
    pub models: Option<PathBuf>,
    /// Address to listen on; port 0 takes a free one [default: 127.0.0.1:8000]
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// Threads that run models [default: number of cores]
    #[arg(long, value_name = "N")]
    pub executors: Option<usize>,
    /// Requests that may wait for each model [default: 128]
    #[arg(long, value_name = "N")]
    pub queue: Option<usize>,
    /// Longest request body, inflated [default: 64MiB]
    #[arg(long, value_name = "SIZE")]
    pub max_body: Option<Size>,
    /// Bytes of request bodies held at once [default: 512MiB]
    #[arg(long, value_name = "SIZE")]
    pub max_body_memory: Option<Size>,
    /// Connections held at once [default: 4096]
    #[arg(long, value_name = "N")]
    pub max_connections: Option<usize>,
    /// Time for the first request's header to arrive [default: 10s]
    #[arg(long, value_name = "TIME")]
    pub header_timeout: Option<Span>,
    /// Time that a connection may be idle between requests [default: 75s]
    #[arg(long, value_name = "TIME")]
    pub idle_timeout: Option<Span>,
    /// Time for a body to arrive [default: 30s]
    #[arg(long, value_name = "TIME")]
    pub body_timeout: Option<Span>,
    /// On SIGTERM: time between "not ready" and closing the listener [default: 1s]
    #[arg(long, value_name = "TIME")]
    pub drain_delay: Option<Span>,
    /// On SIGTERM: time for unfinished requests after that [default: 30s]
    #[arg(long, value_name = "TIME")]
    pub drain_timeout: Option<Span>,
    /// Form of the log on standard error [default: text]
    #[arg(long, value_name = "FORM")]
    pub log: Option<LogForm>,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
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
        error: std::io::Error,
    },
    /// The file is not TOML, or not of our keys.
    #[error("{path}: {error}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where, what was expected and what was found.
        error: Box<toml::de::Error>,
    },
    /// A value that makes no sense.
    #[error("{key}: expected {expected}, found {found}")]
    Value {
        /// Its key.
        key: &'static str,
        /// What it has to be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
}

impl Settings {
    /// Reads a file.
    ///
    /// # Errors
    /// The file can't be read or understood.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::Read { path: path.to_owned(), error })?;
        toml::from_str(&text)
            .map_err(|error| ConfigError::Parse { path: path.to_owned(), error: Box::new(error) })
    }

    /// These settings where they say something, `file` elsewhere, defaults for the rest.
    ///
    /// # Errors
    /// A value makes no sense.
    pub fn resolve(self, file: Self) -> Result<(Options, LogForm), ConfigError> {
        let default = Options::default();
        let span = |a: Option<Span>, b: Option<Span>, d| a.or(b).map_or(d, |span| span.0);
        let size = |a: Option<Size>, b: Option<Size>, d| a.or(b).map_or(d, |size| size.0);
        let options = Options {
            models: self.models.or(file.models).unwrap_or(default.models),
            listen: self.listen.or(file.listen).unwrap_or(default.listen),
            executors: self.executors.or(file.executors).unwrap_or(default.executors),
            queue: self.queue.or(file.queue).unwrap_or(default.queue),
            max_body: size(self.max_body, file.max_body, default.max_body),
            max_body_memory: size(
                self.max_body_memory,
                file.max_body_memory,
                default.max_body_memory,
            ),
            max_connections: self
                .max_connections
                .or(file.max_connections)
                .unwrap_or(default.max_connections),
            header_timeout: span(self.header_timeout, file.header_timeout, default.header_timeout),
            idle_timeout: span(self.idle_timeout, file.idle_timeout, default.idle_timeout),
            body_timeout: span(self.body_timeout, file.body_timeout, default.body_timeout),
            drain_delay: span(self.drain_delay, file.drain_delay, default.drain_delay),
            drain_timeout: span(self.drain_timeout, file.drain_timeout, default.drain_timeout),
        };
        check(&options)?;
        Ok((options, self.log.or(file.log).unwrap_or_default()))
    }
}

/// More threads than this is a slip of the pen, not a machine.
const MAX_EXECUTORS: usize = 1024;
/// Tokio's semaphores and the queue's memory end somewhere; both are far beyond use.
const MAX_COUNT: usize = 1 << 20;

fn check(options: &Options) -> Result<(), ConfigError> {
    let within = |key, value: usize, most: usize, expected| {
        let fits = (1..=most).contains(&value);
        let error = ConfigError::Value { key, expected, found: value.to_string() };
        if fits { Ok(()) } else { Err(error) }
    };
    within("executors", options.executors, MAX_EXECUTORS, "1 to 1024 threads")?;
    within("queue", options.queue, MAX_COUNT, "1 to 1048576 requests")?;
    within("max_connections", options.max_connections, MAX_COUNT, "1 to 1048576 connections")?;
    within("max_body", options.max_body, usize::MAX, "a size above 0")?;
    let expected = "at least max_body";
    if options.max_body_memory < options.max_body {
        let found = format!("{} bytes", options.max_body_memory);
        return Err(ConfigError::Value { key: "max_body_memory", expected, found });
    }
    Ok(())
}

/// A time with its unit: `250ms`, `5s`, `2m`, `1h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

/// A size with its unit: `512B`, `64KiB`, `64MiB`, `2GiB`, `1MB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub usize);

/// Longest time that is taken: a year; longer ones overflow timers.
const MAX_SPAN_MS: u64 = 365 * 24 * 3_600_000;

impl FromStr for Span {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];
        let expected = UnitError("a time such as \"250ms\", \"5s\", \"2m\" or \"1h\"");
        let ms = scaled(text, &units).filter(|&ms| ms <= MAX_SPAN_MS).ok_or(expected)?;
        Ok(Self(Duration::from_millis(ms)))
    }
}

impl FromStr for Size {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let units = [
            ("KiB", 1 << 10),
            ("MiB", 1 << 20),
            ("GiB", 1 << 30),
            ("KB", 1_000),
            ("MB", 1_000_000),
            ("GB", 1_000_000_000),
            ("B", 1),
        ];
        let bytes = scaled(text, &units).and_then(|bytes| usize::try_from(bytes).ok());
        bytes.map(Self).ok_or(UnitError("a size such as \"512B\", \"64KiB\" or \"2GiB\""))
    }
}

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let &(_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// What was expected of a value with a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected {0}")]
pub struct UnitError(&'static str);

macro_rules! from_text {
    ($($type:ty, $what:literal;)*) => {$(
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl serde::de::Visitor<'_> for Text {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($what)
                    }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(|error| E::custom(format!("{error}, found \"{text}\"")))
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }
    )*};
}

from_text! {
    Span, "a time with its unit, such as \"5s\"";
    Size, "a size with its unit, such as \"64MiB\"";
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn values_carry_their_units() {
        assert_eq!("250ms".parse(), Ok(Span(Duration::from_millis(250))));
        assert_eq!("2 m".parse(), Ok(Span(Duration::from_secs(120))));
        assert_eq!("64MiB".parse(), Ok(Size(64 << 20)));
        assert_eq!("512B".parse(), Ok(Size(512)));
        for text in ["5", "", "ms", "-5s", "1.5s", "5 parsecs", "99999999999999999999s", "99999h"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
        assert!("18446744073709551615GiB".parse::<Size>().is_err());
    }

    #[test]
    fn a_flag_overrules_the_file_and_the_file_the_default() {
        let file: Settings =
            toml::from_str("queue = 7\nexecutors = 3\nmax_body = \"1MiB\"").unwrap();
        let flags = Settings { queue: Some(9), ..Settings::default() };
        let (options, _) = flags.resolve(file).unwrap();
        assert_eq!((options.queue, options.executors, options.max_body), (9, 3, 1 << 20));
        assert_eq!(options.drain_delay, Options::default().drain_delay);
    }

    #[test]
    fn keys_and_values_that_make_no_sense_are_refused_with_what_was_expected() {
        for (text, part) in [
            ("quue = 1", "unknown field `quue`"),
            ("drain_delay = 5", "a time with its unit"),
            ("drain_delay = \"5\"", "expected a time such as"),
            ("log = \"xml\"", "unknown variant `xml`"),
        ] {
            let error = toml::from_str::<Settings>(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        let zero = Settings { executors: Some(0), ..Settings::default() };
        let error = zero.resolve(Settings::default()).unwrap_err().to_string();
        assert_eq!(error, "executors: expected 1 to 1024 threads, found 0");
    }
}
