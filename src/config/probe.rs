//! `[pool.NAME.probe]`: how the health of an endpoint is found out.

use super::check::request_path;
use forebay_config::form::one_of;
use forebay_config::pool::ProbeSchedule;
use forebay_config::{Section, Table};

/// Active health checks.
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    /// The kind of probe.
    pub kind: ProbeKind,
    /// The schedule, the time limit, and the thresholds.
    pub schedule: ProbeSchedule,
}

/// The kind of a probe.
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
    /// Health checks of endpoints.
    pub(super) struct ProbeKeys {
        /// "http": a GET. "tcp": a connection, for endpoints that do not speak HTTP; an accepted connection
        /// is then the only evidence.
        kind: KindName = KindName::Http, one_of(&[("http", KindName::Http), ("tcp", KindName::Tcp)]);
        /// Path of the GET, on a connection of its own; 200 is ready, any other status is not.
        path: String = "/v2/health/ready".to_owned(), request_path();
    }
}

impl Default for Probe {
    fn default() -> Self {
        let ProbeKeys { path, .. } = ProbeKeys::default();
        Self { kind: ProbeKind::Http(path), schedule: ProbeSchedule::default() }
    }
}

/// Reads the table, and checks its keys together.
pub(super) fn read(table: &Table<'_, '_>) -> Probe {
    let keys = ProbeKeys::read(table);
    let schedule = ProbeSchedule::checked(table);
    let kind = match keys.kind {
        KindName::Http => ProbeKind::Http(keys.path),
        KindName::Tcp => {
            table.refuse("path", "kind = \"http\"");
            ProbeKind::Tcp
        }
    };
    Probe { kind, schedule }
}
