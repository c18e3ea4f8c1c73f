//! `forebay drain` and `forebay undrain`: commands to the admin listener of a running proxy.
//!
//! A command that is typed during an incident must need no documentation of paths, and a script must be
//! able to wait until an endpoint has no request left before it stops it.

use crate::side_request::{Connection, SideRequest};
use anyhow::{Context, Result, bail};
use forebay_protocol::oip::encoded;
use http::Method;
use pingora::upstreams::peer::HttpPeer;
use serde_json::Value;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};

/// Time that the proxy gets to answer.
const MAX_ANSWER_TIME: Duration = Duration::from_secs(5);
/// Longest answer that is read, in bytes; it is a few lines.
const MAX_ANSWER: usize = 64 * 1024;
/// Time between two looks at what is still in flight.
const DRAIN_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// An endpoint of a proxy.
#[derive(clap::Args)]
pub(super) struct Endpoint {
    /// Admin listener of the proxy.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9090", env = "FOREBAY_ADMIN")]
    admin: SocketAddr,
    /// Name of the pool.
    pool: String,
    /// Address of the endpoint, as in the configuration.
    address: SocketAddr,
}

/// Drains an endpoint; with `wait`, until it has nothing in flight. Returns what to tell.
///
/// # Errors
/// The proxy does not answer or knows no such endpoint, or something is in flight after `wait`.
pub(super) fn drain(endpoint: &Endpoint, wait: Option<Duration>) -> Result<String> {
    let started = Instant::now();
    runtime()?.block_on(async {
        loop {
            let said = endpoint.ask("drain").await?;
            let left = said["in_flight"].as_u64().unwrap_or(0);
            let Some(wait) = wait.filter(|_| left > 0) else { return Ok(told(&said)) };
            if started.elapsed() >= wait {
                bail!("{} after {} s", told(&said), wait.as_secs());
            }
            sleep(DRAIN_CHECK_INTERVAL).await;
        }
    })
}

/// Puts an endpoint back into use. Returns the message to print.
///
/// # Errors
/// The proxy does not answer or knows no such endpoint.
pub(super) fn undrain(endpoint: &Endpoint) -> Result<String> {
    runtime()?.block_on(endpoint.ask("undrain")).map(|said| told(&said))
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("can't start a runtime")
}

fn told(said: &Value) -> String {
    let text = |key: &str| said[key].as_str().unwrap_or("?").to_owned();
    format!(
        "{} {}: {}, {} in flight",
        text("pool"),
        text("endpoint"),
        text("health"),
        said["in_flight"]
    )
}

impl Endpoint {
    /// One POST to the admin listener, and its answer.
    async fn ask(&self, verb: &str) -> Result<Value> {
        let (pool, address) = (encoded(&self.pool), self.address.to_string());
        let request = SideRequest {
            method: Method::POST,
            path: &format!("/pools/{pool}/endpoints/{}/{verb}", encoded(&address)),
            host: &self.admin.to_string(),
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
