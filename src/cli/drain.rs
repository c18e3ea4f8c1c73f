//! `forebay drain` and `forebay undrain`: commands to the admin listener of a running proxy.
//!
//! A command that is typed during an incident must need no documentation of paths, and a script must be
//! able to wait until an endpoint has no request left before it stops it.

use super::admin::{self, Admin};
use anyhow::{Result, bail};
use forebay_protocol::oip::encoded;
use http::Method;
use serde_json::Value;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// Time between two looks at what is still in flight.
const DRAIN_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// An endpoint of a proxy.
#[derive(clap::Args)]
pub(super) struct Endpoint {
    #[command(flatten)]
    admin: Admin,
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
    admin::run(async {
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
    admin::run(endpoint.ask("undrain")).map(|said| told(&said))
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
    async fn ask(&self, verb: &str) -> Result<Value> {
        let (pool, address) = (encoded(&self.pool), self.address.to_string());
        let path = format!("/pools/{pool}/endpoints/{}/{verb}", encoded(&address));
        self.admin.ask(Method::POST, &path).await
    }
}
