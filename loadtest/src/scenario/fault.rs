//! The programs that a scenario starts, and their faults.

use super::table::{kind_of, required};
use crate::units::TimeSpan;
use forebay_config::Table;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Maximum number of faults of a run.
pub const MAX_FAULTS: usize = 16;
/// Maximum number of programs of a run.
pub const MAX_PROCESSES: usize = 64;
/// How long a fault counts as going on where nothing is said.
const DEFAULT_LENGTH: TimeSpan = TimeSpan(Duration::from_secs(5));
/// How long a new program may take before the old one is drained where nothing is said.
const DEFAULT_OVERLAP: TimeSpan = TimeSpan(Duration::from_secs(1));

/// A program that the run starts, and ends with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its name, which faults refer to.
    pub name: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Addresses at which the generator listens for it, and all that come after it in its place; they
    /// are passed as systemd does it.
    pub sockets: Vec<SocketAddr>,
    /// A URL that answers with a status below 500 as soon as it is there.
    pub ready: Option<String>,
    /// A URL that takes a factor by `POST` and makes the program so many times as slow, as a synthetic
    /// worker does. Without it the program is stopped and continued in turn.
    pub slow: Option<String>,
    /// File that gets what it prints.
    pub log: Option<PathBuf>,
}

/// A fault of a program.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    /// When it begins, counted from the end of the warm-up.
    pub at: TimeSpan,
    /// How long it lasts, or counts as lasting.
    pub length: TimeSpan,
    /// The name of the program.
    pub process: String,
    /// The kind of fault.
    pub kind: FaultKind,
}

/// A kind of fault.
#[derive(Debug, Clone, PartialEq)]
pub enum FaultKind {
    /// SIGKILL; at the end it is started again.
    Kill,
    /// SIGSTOP; at the end SIGCONT.
    Stop,
    /// Slowed down by this factor.
    Slow(f64),
    /// SIGTERM; at the end it is started again.
    Drain,
    /// SIGHUP.
    Reload,
    /// Another program takes over: it is started, and after `overlap` the old one gets SIGTERM.
    Upgrade {
        /// The command to start; the same as before if empty.
        command: Vec<String>,
        /// How long both run at least.
        overlap: TimeSpan,
        /// A URL of the new one's own, that answers with a status below 500 when it is ready.
        ready: Option<String>,
    },
}

impl FaultKind {
    /// Its name in a scenario.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Stop => "stop",
            Self::Slow(_) => "slow",
            Self::Drain => "drain",
            Self::Reload => "reload",
            Self::Upgrade { .. } => "upgrade",
        }
    }
}

/// `kill a`, `slow b x 3`.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.name(), self.process)?;
        match self.kind {
            FaultKind::Slow(factor) => write!(f, " x {factor}"),
            _ => Ok(()),
        }
    }
}

pub(super) fn process(table: &Table<'_, '_>) -> Process {
    Process {
        name: required(table, "name", String::new()),
        command: required(table, "command", Vec::new()),
        sockets: sockets(table),
        ready: table.get("ready"),
        slow: table.get("slow"),
        log: table.get("log"),
    }
}

fn sockets(table: &Table<'_, '_>) -> Vec<SocketAddr> {
    let (found, _) = table.items::<SocketAddr>("sockets").unwrap_or_default();
    found.into_iter().flatten().map(|(address, _)| address).collect()
}

pub(super) fn fault(table: &Table<'_, '_>) -> Fault {
    let kind = match kind_of(table, &["kill", "stop", "slow", "drain", "reload", "upgrade"]) {
        "stop" => FaultKind::Stop,
        "slow" => FaultKind::Slow(table.within("factor", 1.0..=1e3, 2.0)),
        "drain" => FaultKind::Drain,
        "reload" => FaultKind::Reload,
        "upgrade" => FaultKind::Upgrade {
            command: table.get("command").unwrap_or_default(),
            overlap: table.or("overlap", DEFAULT_OVERLAP),
            ready: table.get("ready"),
        },
        _ => FaultKind::Kill,
    };
    Fault {
        at: required(table, "at", DEFAULT_LENGTH),
        length: table.or("for", DEFAULT_LENGTH),
        process: required(table, "process", String::new()),
        kind,
    }
}
