//! The programs that a scenario starts, and their faults.

use super::load::SECOND;
use forebay_config::Kinds as _;
use forebay_config::form::{any, list, optional, positive, required, within};
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Maximum number of faults of a run.
pub const MAX_FAULTS: usize = 16;
/// Maximum number of programs of a run.
pub const MAX_PROCESSES: usize = 64;

forebay_config::section! {
    /// A program that the run starts, and ends with.
    pub struct Process {
        /// Its name, which faults refer to.
        name: String = String::new(), required(any()), shown "\"a\"";
        /// Program and arguments.
        command: Vec<String> = Vec::new(), required(list()), shown "[\"forebay-worker\", \"--synthetic\"]";
        /// Addresses on which the generator listens for the program, and for every program that replaces it;
        /// the sockets are passed as systemd does it.
        sockets: Vec<SocketAddr> = Vec::new(), list();
        /// A URL that answers with a status below 500 once the program is ready. Default: the run does not
        /// wait for it.
        ready: Option<String> = None, optional(any()), shown "\"http://127.0.0.1:8181/v2/health/ready\"";
        /// A URL that takes a slow-down factor by POST, as a synthetic worker does. Default: the program is
        /// stopped and continued in turn.
        slow: Option<String> = None, optional(any()), shown "\"http://127.0.0.1:8181/slow\"";
        /// File for its output. Default: none.
        log: Option<PathBuf> = None, optional(any()), shown "\"a.log\"";
    }
}

forebay_config::section! {
    /// A fault of a program.
    pub struct Fault {
        /// Begin, counted from the end of the warm-up.
        at: Duration = SECOND, required(any()), shown "\"10s\"";
        /// Duration of the fault, or of the window that counts as the fault.
        length as "for": Duration = Duration::from_secs(5), positive();
        /// The name of the program.
        process: String = String::new(), required(any()), shown "\"a\"";
    }
    beside {
        /// The kind of fault.
        kind: FaultKind = FaultKind::Kill;
    }
}

forebay_config::kinds! {
    /// A kind of fault.
    pub enum FaultKind {
        /// SIGKILL; at the end it is started again.
        "kill" => Kill,
        /// SIGSTOP; at the end SIGCONT.
        "stop" => Stop,
        "slow" => Slow(Slow),
        /// SIGTERM; at the end it is started again.
        "drain" => Drain,
        /// SIGHUP.
        "reload" => Reload,
        "upgrade" => Upgrade(Upgrade),
    }
}

forebay_config::section! {
    /// Slowed down.
    pub struct Slow {
        /// Factor of the slow-down.
        factor: f64 = 2.0, within(1.0..=1e3);
    }
}

forebay_config::section! {
    /// Another program takes over: it is started, and after `overlap` the old one gets SIGTERM.
    pub struct Upgrade {
        /// The command to start. None: the same as before.
        command: Vec<String> = Vec::new(), list();
        /// Minimum time for which both run.
        overlap: Duration = Duration::from_secs(1), any();
        /// A URL of the new program's own that answers with a status below 500 when it is ready. Default:
        /// that of the program.
        ready: Option<String> = None, optional(any()), shown "\"http://127.0.0.1:8182/v2/health/ready\"";
    }
}

/// `kill a`, `slow b x 3`.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.name(), self.process)?;
        match &self.kind {
            FaultKind::Slow(Slow { factor }) => write!(f, " x {factor}"),
            _ => Ok(()),
        }
    }
}
