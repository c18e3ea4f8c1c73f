//! `[pool.NAME.probe]`: how the health of an endpoint is found out.

use super::check::{request_path, timeout_within};
use forebay_config::form::{one_of, positive};
use forebay_config::pool::ProbeSchedule;
use forebay_config::{Section, Table};
use std::time::Duration;

/// Active health checks.
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    /// What is asked.
    pub kind: ProbeKind,
    /// Time that a probe may take.
    pub timeout: Duration,
    /// When it is asked, and what follows.
    pub schedule: ProbeSchedule,
}

/// What a probe asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeKind {
    /// GET of this path; 200 is ready.
    Http(String),
    /// A connection; one that is taken is ready.
    Tcp,
}

/// The word for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KindName {
    Http,
    Tcp,
}

forebay_config::section! {
    /// How the health of an endpoint is found out.
    pub(super) struct ProbeKeys {
        /// "http": a GET. "tcp": a connection, for endpoints that do not speak HTTP; that one is taken is all
        /// that is known then.
        kind: KindName = KindName::Http, one_of(&[("http", KindName::Http), ("tcp", KindName::Tcp)]);
        /// Asked with GET on a connection of its own; 200 is ready, anything else is not.
        path: String = "/v2/health/ready".to_owned(), request_path();
        /// Time that a probe may take. At most `interval`, which is the default if it is less than this. With the
        /// defaults an endpoint that went silent is out within three seconds.
        timeout: Duration = Duration::from_millis(800), positive();
    }
}

impl Default for Probe {
    fn default() -> Self {
        let ProbeKeys { path, timeout, .. } = ProbeKeys::default();
        Self { kind: ProbeKind::Http(path), timeout, schedule: ProbeSchedule::default() }
    }
}

/// Reads the table, and checks what its keys say together.
pub(super) fn read(table: &Table<'_, '_>) -> Probe {
    let keys = ProbeKeys::read(table);
    let schedule = ProbeSchedule::checked(table);
    let interval = schedule.interval;
    let kind = match keys.kind {
        KindName::Http => ProbeKind::Http(keys.path),
        KindName::Tcp => {
            table.refuse("path", "kind = \"http\"");
            ProbeKind::Tcp
        }
    };
    let timeout = timeout_within(table, keys.timeout, keys.timeout.min(interval), interval);
    Probe { kind, timeout, schedule }
}
