//! From a file to what runs: reading it, what is wrong with it, and what will not go well.

use super::check::secs;
use super::{Config, read};
use forebay_config::Diagnostics;
use forebay_config::file::{self, LoadError};
use forebay_process::resources::Descriptors;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {error}")]
pub struct ConfigError {
    /// The file.
    path: String,
    /// The system's error, or all errors of the file.
    error: LoadError,
}

/// Time that reading the configuration and the files that it names may take.
const MAX_READING_TIME: Duration = secs(30);

impl Config {
    /// Reads a file. Paths in it that are relative start at the file's own folder. Everything that a
    /// file can do to its reader stays in a thread of its own.
    ///
    /// # Errors
    /// The file can't be read, or everything that is wrong with it.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let base = path.parent().unwrap_or(Path::new("")).to_owned();
        file::load(path, MAX_READING_TIME, move |source| Self::parse(source, &base))
            .map_err(|error| ConfigError { path: path.display().to_string(), error })
    }

    /// Reads `source`; relative paths in it start at `base`.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(source: &str, base: &Path) -> Result<Self, Diagnostics> {
        read::config(source, base)
    }

    /// Problems that are not errors: certificates that clients do not trust at `now`, keys that every user
    /// can read, and more connections than there are descriptors.
    pub fn warnings(&self, now: SystemTime) -> Vec<String> {
        let certificates = self.listeners.iter().filter_map(|listener| listener.tls.as_ref());
        let certificates = certificates.flat_map(|tls| &tls.certificates);
        let warnings = certificates.flat_map(|certificate| certificate.warnings(now));
        warnings.chain(self.warning_about_descriptors()).chain(self.warning_about_admin()).collect()
    }

    /// Whether others than this machine's users can reload and drain.
    fn warning_about_admin(&self) -> Option<String> {
        let admin = self.server.admin.filter(|admin| !admin.ip().to_canonical().is_loopback())?;
        Some(format!(
            "the admin listener {admin} is not on loopback: every client that reaches it can reload and drain"
        ))
    }

    /// Whether the listeners can hold more connections than the system allows this process.
    fn warning_about_descriptors(&self) -> Option<String> {
        let wanted: usize = self.listeners.iter().map(|listener| listener.max_connections).sum();
        let Descriptors { limit, for_clients, .. } = Descriptors::of_this_process();
        (wanted as u64 > for_clients).then(|| {
            format!(
                "the listeners may hold {wanted} connections (max_connections), but of the {limit} \
                 file descriptors that this process may open (RLIMIT_NOFILE), {for_clients} are for \
                 clients"
            )
        })
    }

    /// Logs its warnings.
    pub fn log_warnings(&self) {
        for warning in self.warnings(SystemTime::now()) {
            tracing::warn!("{warning}");
        }
    }

    /// Keys that can be written, but that `source` has nowhere: what keeps the reference complete.
    pub fn keys_missing_from(source: &str) -> Vec<String> {
        read::keys_missing_from(source)
    }
}

impl ConfigError {
    /// The whole report, as a person reads it on a terminal.
    pub fn render(&self) -> String {
        self.error.render(&self.path)
    }
}
