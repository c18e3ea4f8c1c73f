//! `forebay drain` and `forebay undrain`: commands to the admin listener of a running proxy.
//!
//! A command that is typed during an incident must need no documentation of paths, and a script must be
//! able to wait until an endpoint has no request left before it stops it.

use anyhow::{Context, Result, bail};
use forebay_protocol::oip::encoded;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Time that the proxy gets to answer.
const MAX_ANSWER_TIME: Duration = Duration::from_secs(5);
/// Longest answer that is read; it is a few lines.
const MAX_ANSWER: u64 = 64 * 1024;
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
    loop {
        let said = endpoint.ask("drain")?;
        let left = said["in_flight"].as_u64().unwrap_or(0);
        let Some(wait) = wait.filter(|_| left > 0) else { return Ok(told(&said)) };
        if started.elapsed() >= wait {
            bail!("{} after {} s", told(&said), wait.as_secs());
        }
        std::thread::sleep(DRAIN_CHECK_INTERVAL);
    }
}

/// Puts an endpoint back into use. Returns the message to print.
///
/// # Errors
/// The proxy does not answer or knows no such endpoint.
pub(super) fn undrain(endpoint: &Endpoint) -> Result<String> {
    endpoint.ask("undrain").map(|said| told(&said))
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
    fn ask(&self, verb: &str) -> Result<Value> {
        let admin = self.admin;
        let connect = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect_timeout(&admin, MAX_ANSWER_TIME)?;
            stream.set_read_timeout(Some(MAX_ANSWER_TIME))?;
            stream.set_write_timeout(Some(MAX_ANSWER_TIME))?;
            let address = self.address.to_string();
            let path =
                format!("/pools/{}/endpoints/{}/{verb}", encoded(&self.pool), encoded(&address));
            let head = format!(
                "POST {path} HTTP/1.1\r\nhost: {admin}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            );
            stream.write_all(head.as_bytes())?;
            let mut answer = String::new();
            stream.take(MAX_ANSWER).read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer =
            connect().with_context(|| format!("no answer from the admin listener {admin}"))?;
        let (head, body) = answer.split_once("\r\n\r\n").context("the answer is not HTTP")?;
        let said: Value = serde_json::from_str(body).context("the answer is not JSON")?;
        if let Some(error) = said["error"].as_str() {
            bail!("{error}");
        }
        if head.split(' ').nth(1) != Some("200") {
            bail!("unexpected answer: {}", head.lines().next().unwrap_or_default());
        }
        Ok(said)
    }
}
