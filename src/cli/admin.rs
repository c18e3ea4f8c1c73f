//! Commands to the admin listener of a running proxy.

use crate::side_request::{Connection, SideRequest};
use anyhow::{Context, Result, bail};
use http::Method;
use pingora::upstreams::peer::HttpPeer;
use serde_json::Value;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::timeout;

/// Time that the proxy gets to answer.
const MAX_ANSWER_TIME: Duration = Duration::from_secs(5);
/// Longest answer that is read, in bytes; it is a few lines.
const MAX_ANSWER: usize = 64 * 1024;

/// The proxy that is meant.
#[derive(clap::Args)]
pub(super) struct Admin {
    /// Admin listener of the proxy.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9090", env = "FOREBAY_ADMIN")]
    admin: SocketAddr,
}

impl Admin {
    /// One request to the admin listener, and its answer.
    ///
    /// # Errors
    /// The proxy does not answer, or answers that it can't do it.
    pub(super) async fn ask(&self, method: Method, path: &str) -> Result<Value> {
        self.ask_with(method, path, &[]).await
    }

    /// The same, with a body.
    ///
    /// # Errors
    /// The proxy does not answer, or answers that it can't do it.
    pub(super) async fn ask_with(&self, method: Method, path: &str, body: &[u8]) -> Result<Value> {
        let request = SideRequest {
            method,
            path,
            host: &self.admin.to_string(),
            body,
            max_body: MAX_ANSWER,
            connection: Connection::New,
        };
        let peer = HttpPeer::new(self.admin, false, String::new());
        let sent = match timeout(MAX_ANSWER_TIME, request.send(&peer)).await {
            Ok(sent) => sent.map_err(|error| error.root_cause().to_string().trim().to_owned()),
            Err(_) => Err(format!("none within {MAX_ANSWER_TIME:?}")),
        };
        let response = match sent {
            Ok(response) => response,
            Err(error) => bail!("no answer from the admin listener {}: {error}", self.admin),
        };
        let body = response.body.as_deref().context("the answer is too long")?;
        let said: Value = serde_json::from_slice(body).context("the answer is not JSON")?;
        if let Some(error) = said["error"].as_str() {
            bail!("{error}");
        }
        if !response.is_ok() {
            bail!("unexpected answer: {}", response.head.status);
        }
        Ok(said)
    }
}

/// Runs a command to its end.
///
/// # Errors
/// Those of the command.
pub(super) fn run<T>(command: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("can't start a runtime")?.block_on(command)
}
