//! Listeners: addresses, protocols and bounds.

use super::check::Names;
use super::tls::{self, Tls};
use forebay_config::form::{any, list, one_of, positive, required, section_name, within};
use forebay_config::{Section, Table};
use forebay_framing::proxy_protocol::Version as ProxyVersion;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

/// An address that clients connect to.
#[derive(Debug, Clone, PartialEq)]
pub struct Listener {
    /// Address and port; port 0 lets the OS choose.
    pub address: SocketAddr,
    /// The listener's protocol.
    pub protocol: Protocol,
    /// Whether every connection must begin with a PROXY header.
    pub proxy_protocol: bool,
    /// TLS settings; `None`: connections are not encrypted.
    pub tls: Option<Tls>,
    /// Connections that may be open at once; further ones are refused.
    pub max_connections: usize,
    /// The maximum for one client address.
    pub max_connections_per_client: usize,
}

/// The protocol of a listener.
#[derive(Debug, Clone, PartialEq)]
pub enum Protocol {
    /// Requests, each routed and balanced by itself.
    Http {
        /// Whether HTTP/2 is supported beside HTTP/1.1.
        h2: bool,
    },
    /// Bytes: a whole connection goes to one endpoint.
    Tcp(Tcp),
}

impl Protocol {
    /// The word in the configuration.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Http { .. } => "http",
            Self::Tcp(_) => "tcp",
        }
    }
}

/// The word for the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProtocolName {
    Http,
    Tcp,
}

/// The maximum of the key: more sockets than a process may have.
const MAX_CONNECTIONS: usize = 10_000_000;
/// Enough for a fleet's clients, and its memory fits a small machine.
const DEFAULT_CONNECTIONS: usize = 20_000;
/// Stands for an address that is missing until everything else is checked.
const NO_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Default share of all connections for one client: the rest is left to others.
const fn share_of_one_client(max_connections: usize) -> usize {
    let share = max_connections - max_connections / 4;
    if share == 0 { 1 } else { share }
}

forebay_config::section! {
    /// Addresses for clients; changes need a restart.
    pub(super) struct ListenerKeys {
        /// Required. Address and port; port 0 lets the operating system choose.
        address: SocketAddr = NO_ADDRESS, required(any()), shown "\"127.0.0.1:8080\"";
        /// "http": requests, each routed and balanced by itself. "tcp": whole connections, see below.
        protocol: ProtocolName = ProtocolName::Http,
            one_of(&[("http", ProtocolName::Http), ("tcp", ProtocolName::Tcp)]);
        /// "require": every connection begins with a PROXY header (v1 or v2) that names the client, as load
        /// balancers write it; any other connection is closed. "off": no header is read. There is no
        /// optional mode: with one, a client could choose its own address.
        proxy_protocol: bool = false, one_of(&[("off", false), ("require", true)]);
        /// Maximum number of open connections. A further one closes the connection that has waited longest
        /// for its client: silent ones, and those kept for a next request (closed in order, with GOAWAY over
        /// HTTP/2). If none waits, the new connection is refused at once (503, or a reset at Layer 4). It
        /// must fit the process's limit of open files: a connection takes one, or two at Layer 4. The soft
        /// limit is raised to the hard one at start, and `forebay check` warns of a sum that does not fit.
        /// Some descriptors are reserved for probes, the admin listener and connections to endpoints.
        max_connections: usize = DEFAULT_CONNECTIONS, within(1..=MAX_CONNECTIONS);
        /// The part of max_connections that one client may hold: an IPv4 address, or the /64 network of an
        /// IPv6 address. With proxy_protocol = "require" the address in the PROXY header counts; raise this
        /// where a load balancer without PROXY headers stands in front. Default: three quarters of
        /// max_connections.
        max_connections_per_client: usize = share_of_one_client(DEFAULT_CONNECTIONS), within(1..=MAX_CONNECTIONS);
    }
}

forebay_config::section! {
    /// A listener for requests.
    pub(super) struct HttpKeys {
        /// HTTP/1.1 is always included. "h2c" is HTTP/2 without TLS on the same port, detected by its first
        /// bytes. With TLS (see below) the word is "h2", and clients choose by ALPN. Default: both.
        protocols: Vec<String> = vec!["http/1.1".to_owned(), "h2c".to_owned()], list();
    }
}

forebay_config::section! {
    /// Layer 4: a whole connection goes to one endpoint, with any protocol. A connection counts there as one
    /// request in flight, until it ends.
    pub struct Tcp {
        /// Required at Layer 4, and only there: the pool for the connections.
        // Not an index: a reload may add pools, but listeners stay as they are.
        pool: String = String::new(), required(section_name("pool")), shown "\"plain\"";
        /// A connection is closed after this time without a byte in either direction.
        idle_timeout: Duration = Duration::from_secs(600), positive();
        /// Sends endpoints a PROXY header that names the client: "off", "v1" (text) or "v2" (binary). The
        /// endpoints must expect it.
        send_proxy_protocol: Option<ProxyVersion> = None, one_of(&[
            ("off", None),
            ("v1", Some(ProxyVersion::V1)),
            ("v2", Some(ProxyVersion::V2)),
        ]);
    }
}

/// Reads the table, and checks its keys together.
pub(super) fn read(table: &Table<'_, '_>, names: &mut Names) -> Listener {
    let keys = ListenerKeys::read(table);
    // Port 0 is another port every time.
    if keys.address.port() != 0
        && let Some(span) = table.place_of("address")
    {
        names.take(table, "address", &keys.address.to_string(), span);
    }
    let encrypted = table.table("tls");
    let protocol = match keys.protocol {
        ProtocolName::Http => {
            Tcp::refuse(table, "protocol = \"tcp\"");
            Protocol::Http { h2: speaks_h2(table, encrypted.is_some()) }
        }
        ProtocolName::Tcp => {
            HttpKeys::refuse(table, "protocol = \"http\"");
            Protocol::Tcp(Tcp::read(table))
        }
    };
    let alpn: &[&[u8]] = match protocol {
        Protocol::Http { h2: true } => &[b"h2", b"http/1.1"],
        Protocol::Http { h2: false } => &[b"http/1.1"],
        // The program behind the TLS connection knows its protocol.
        Protocol::Tcp(_) => &[],
    };
    let max_connections_per_client = if table.has("max_connections_per_client") {
        keys.max_connections_per_client
    } else {
        share_of_one_client(keys.max_connections)
    };
    Listener {
        address: keys.address,
        proxy_protocol: keys.proxy_protocol,
        max_connections: keys.max_connections,
        max_connections_per_client,
        // An error in it is noted, so the process does not run without the requested settings.
        tls: encrypted.and_then(|encrypted| tls::read(&encrypted, alpn)),
        protocol,
    }
}

/// Whether HTTP/2 is among the protocols. The word for it depends on whether the listener is encrypted.
fn speaks_h2(table: &Table<'_, '_>, encrypted: bool) -> bool {
    let word = if encrypted { "h2" } else { "h2c" };
    let both = vec!["http/1.1".to_owned(), word.to_owned()];
    let HttpKeys { protocols } = HttpKeys::read_over(table, HttpKeys { protocols: both });
    let known = |protocol: &String| protocol == "http/1.1" || protocol == word;
    if (!protocols.iter().all(known) || !protocols.iter().any(|protocol| protocol == "http/1.1"))
        && let Some(span) = table.place_of("protocols")
    {
        let expected = format!("expected [\"http/1.1\"] or [\"http/1.1\", {word:?}]");
        table.note(span, "protocols", format!("{expected}, found {protocols:?}"));
    }
    protocols.iter().any(|protocol| protocol == word)
}
