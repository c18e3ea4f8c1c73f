//! `[server]`: what concerns the process as a whole.

use forebay_config::form::{address_or_off, any, bytes_within, each, within};
use forebay_config::{Form, Table};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// More threads than any machine has use for: it keeps a typing error from becoming an outage.
pub(super) const MAX_THREADS: usize = 1024;
/// Of a connection of HTTP/2, where nothing is said: about what the protocol begins with.
const DEFAULT_HTTP2_WINDOW: u32 = 64 * 1024;
const MAX_HTTP2_WINDOW: u32 = 16 * 1024 * 1024;

forebay_config::section! {
    /// The process; changes need a restart.
    pub struct Server {
        /// I/O threads. Default: the number of cores.
        threads: usize = cores(), within(1..=MAX_THREADS), shown "2";
        /// Where metrics, status and reload are answered, or "off". Default: off. Whoever reaches it may
        /// reload: keep it on loopback or in a network of your own.
        admin: Option<SocketAddr> = None, address_or_off("127.0.0.1:9090"), shown "\"127.0.0.1:9090\"";
        /// Hosts by which it may be asked for beside its address, loopback addresses and "localhost": names such as
        /// "proxy-1.example" that scrapers use, addresses that are translated. Requests for another host are
        /// refused (421), since a page in an operator's browser could make them (DNS rebinding), and so are those
        /// that a page of another site sends (403).
        admin_hosts: Vec<String> = Vec::new(), each("the name of a host", |name: &String| !name.is_empty());
        /// After SIGTERM: how long the proxy is not ready but still listens, so that whoever balances over
        /// several proxies turns away before a connection is refused. Longer than their probe interval.
        drain_delay: Duration = Duration::from_secs(1), any();
        /// Then the listeners are closed, and requests in flight get this long to finish.
        drain_timeout: Duration = Duration::from_secs(30), any();
        /// Idle connections to endpoints that are kept open, over all pools. Opening one costs a
        /// round trip.
        idle_connections: usize = 1024, within(1..=1_000_000);
        /// Bytes of bodies that a client may send on one HTTP/2 connection before the proxy has taken them. A client sends
        /// so much in a round trip, and no more: 64 KiB are 1.3 MB/s at 50 ms, and on loopback a ninth of what HTTP/1 does
        /// (110 MB/s of 950 in uploads of 500 MB; answers don't depend on it). For long bodies over a long way it should be
        /// the rate times the round trip: "1MiB" for 20 MB/s at 50 ms. They are memory beside `limits.memory`, on each
        /// connection whose client sends faster than its request is taken. At most 16 MiB.
        http2_window: u32 = DEFAULT_HTTP2_WINDOW, bytes_within(DEFAULT_HTTP2_WINDOW..=MAX_HTTP2_WINDOW);
        /// One JSON line a request: "stdout", "off", or a file (relative to this file's folder), which a
        /// reload opens anew, for log rotation, or a FIFO. Lines are dropped and counted, never waited for,
        /// if they can't be written.
        access_log: AccessLog = AccessLog::Stdout, LogTarget;
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Where access log lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessLog {
    /// Nowhere.
    Off,
    /// Standard output.
    Stdout,
    /// Appended to a file, which is reopened on reload (for log rotation).
    File(PathBuf),
}

/// How it is written: a word, or a path.
struct LogTarget;

impl Form<AccessLog> for LogTarget {
    fn read(&self, table: &Table<'_, '_>, key: &str, default: AccessLog) -> AccessLog {
        match table.get::<String>(key).as_deref() {
            None => default,
            Some("stdout") => AccessLog::Stdout,
            Some("off") => AccessLog::Off,
            Some(file) => AccessLog::File(table.document().folder().join(file)),
        }
    }

    fn show(&self, value: &AccessLog) -> Option<String> {
        Some(match value {
            AccessLog::Stdout => "\"stdout\"".to_owned(),
            AccessLog::Off => "\"off\"".to_owned(),
            AccessLog::File(file) => format!("{:?}", file.display().to_string()),
        })
    }

    fn expected(&self) -> String {
        "\"stdout\", \"off\", or a path".to_owned()
    }

    fn kind(&self) -> &'static str {
        "PATH"
    }
}
