//! Reloads: the configuration file is read again while the process runs.
//!
//! A file that can't be taken over changes nothing: the running configuration stays, and the log, a metric
//! and the answer to the one that asked say why. A reload that panics takes down neither the signal
//! handler nor the admin listener, each of which may ask for one.

use crate::config::Config;
use crate::pool::control::ControlHandle;
use crate::telemetry::access_log::AccessLogger;
use crate::telemetry::observe::Observer;
use forebay_process::supervise::fault_point;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::Mutex;

/// Reads the file again and runs what it says.
#[derive(Clone)]
pub struct Reloader {
    file: Option<PathBuf>,
    control: ControlHandle,
    observer: Arc<Observer>,
    /// One reload at a time.
    turn: Arc<Mutex<()>>,
}

impl Reloader {
    /// Reads from `file`; without one, reloads are refused.
    pub fn new(file: Option<PathBuf>, control: ControlHandle, observer: Arc<Observer>) -> Self {
        Self { file, control, observer, turn: Arc::default() }
    }

    /// The access log, which a reload opens again.
    pub fn access_log(&self) -> &AccessLogger {
        self.observer.log()
    }

    /// Reloads; answers the new generation.
    ///
    /// # Errors
    /// Why the running configuration stays, as a person reads it.
    pub async fn reload(&self) -> Result<u64, String> {
        // In a task of its own: the caller goes on even if it panics.
        let this = self.clone();
        let task = tokio::spawn(async move { this.try_reload().await });
        let result = task.await.unwrap_or_else(|error| Err(format!("the reload failed: {error}")));
        let outcome = if result.is_ok() { "ok" } else { "refused" };
        forebay_protocol::metric::proxy::RELOADS.with([outcome]).increment(1);
        match &result {
            Ok(generation) => tracing::info!(generation, "configuration reloaded"),
            Err(error) => {
                tracing::error!(error, "reload refused, keeping the running configuration");
            }
        }
        result
    }

    async fn try_reload(&self) -> Result<u64, String> {
        let _turn = self.turn.lock().await;
        fault_point("reload");
        let Some(file) = self.file.clone() else {
            return Err("this process runs without a configuration file".to_owned());
        };
        let config = tokio::task::spawn_blocking(move || Config::load(&file))
            .await
            .map_err(|error| error.to_string())?
            .map_err(|error| error.render())?;
        config.log_warnings();
        let generation = self.control.reload(config).await.map_err(|error| error.to_string())?;
        self.observer.log().reopen();
        Ok(generation)
    }
}
