//! `[server]`: what concerns the process as a whole.

use forebay_config::form::{address_or_off, any, bytes_within, each, within};
use forebay_config::{Form, Table};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// More threads than any machine has use for: the bound keeps a typing error from becoming an outage.
pub(super) const MAX_THREADS: usize = 1024;
/// The default window of an HTTP/2 connection: about the protocol's initial one.
const DEFAULT_HTTP2_WINDOW: u32 = 64 * 1024;
const MAX_HTTP2_WINDOW: u32 = 16 * 1024 * 1024;

forebay_config::section! {
    /// The process; changes need a restart.
    pub struct Server {
        /// I/O threads. Default: the number of cores.
        threads: usize = cores(), within(1..=MAX_THREADS), shown "2";
        /// Address of the admin listener (metrics, status, reload), or "off". Default: off. Anyone who
        /// reaches it can reload and drain: keep it on loopback or in a network of your own.
        admin: Option<SocketAddr> = None, address_or_off("127.0.0.1:9090"), shown "\"127.0.0.1:9090\"";
        /// Host names that the admin listener answers to, beside its address, loopback addresses and
        /// "localhost": names that scrapers use, such as "proxy-1.example", and translated addresses.
        /// Requests for another host are refused (421), since a page in an operator's browser could have
        /// made them (DNS rebinding), and so are requests of pages of other sites (403).
        admin_hosts: Vec<String> = Vec::new(), each("the name of a host", |name: &String| !name.is_empty());
        /// After SIGTERM: time for which the proxy is not ready but still listens, so that a load balancer
        /// in front turns away before a connection is refused. It must be longer than the balancer's probe
        /// interval.
        drain_delay: Duration = Duration::from_secs(1), any();
        /// Time for requests in flight to finish, after the listeners are closed.
        drain_timeout: Duration = Duration::from_secs(30), any();
        /// Maximum number of idle connections to endpoints that are kept open, over all pools. Opening a
        /// connection costs a round trip.
        idle_connections: usize = 1024, within(1..=1_000_000);
        /// Bytes of bodies that a client may send ahead on one HTTP/2 connection. A client sends this much
        /// in a round trip: 64 KiB are 1.3 MB/s at 50 ms, and on loopback a ninth of HTTP/1's rate (110 MB/s
        /// of 950 in uploads of 500 MB; answers don't depend on it). For long bodies over a long distance it
        /// should be the rate times the round trip: "1MiB" for 20 MB/s at 50 ms. It is memory in addition to
        /// `limits.memory`, on each connection whose client sends faster than its request is read. At most
        /// 16 MiB.
        http2_window: u32 = DEFAULT_HTTP2_WINDOW, bytes_within(DEFAULT_HTTP2_WINDOW..=MAX_HTTP2_WINDOW);
        /// The access log, one JSON line per request: "stdout", "off", or a file or FIFO (relative to this
        /// file's folder). A reload opens a file again, for log rotation. Lines that can't be written are
        /// dropped and counted, and no request waits for them.
        access_log: AccessLog = AccessLog::Stdout, LogTarget;
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The destination of access log lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessLog {
    /// Nowhere.
    Off,
    /// Standard output.
    Stdout,
    /// Appended to a file, which is reopened on reload (for log rotation).
    File(PathBuf),
}

/// Its form in the file: a word, or a path.
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
