//! Where clients come in: addresses, what is spoken there, and how much of it.

use super::check::{Names, known_pool, positive, secs};
use super::tls::{self, Tls};
use forebay_config::Table;
use forebay_framing::proxy_protocol::Version as ProxyVersion;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

/// One address where clients come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Address and port; port 0 lets the OS choose.
    pub address: SocketAddr,
    /// What is spoken there.
    pub protocol: Protocol,
    /// Whether every connection must begin with a PROXY header.
    pub proxy_protocol: bool,
    /// How TLS ends here; `None`: what comes is not encrypted.
    pub tls: Option<Tls>,
    /// Connections that may be open at once; further ones are refused.
    pub max_connections: usize,
    /// Of these, those that one client address may have.
    pub max_connections_per_client: usize,
}

/// What is spoken at a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Protocol {
    /// Requests, each routed and balanced by itself.
    Http {
        /// Whether HTTP/2 is spoken beside HTTP/1.1.
        h2: bool,
    },
    /// Bytes: a whole connection goes to one endpoint.
    Tcp(Tcp),
}

/// A listener at Layer 4.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tcp {
    /// Name of the pool. Not an index: a reload may add pools, but listeners stay as they are.
    pub pool: String,
    /// Time without a byte in either direction after which a connection is closed.
    pub idle_timeout: Duration,
    /// Whether an endpoint is told whose connection it gets, and how.
    pub send_proxy_protocol: Option<ProxyVersion>,
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

/// Most that can be asked for: more sockets than a process may have.
const MAX_CONNECTIONS: usize = 10_000_000;
/// Enough for a fleet's clients, and what they hold fits a small machine.
const DEFAULT_CONNECTIONS: usize = 20_000;

pub(super) fn read(
    table: &Table<'_, '_>,
    base: &Path,
    pools: &[String],
    names: &mut Names,
) -> Option<Listener> {
    let address = table.required_spanned::<SocketAddr>("address").map(|(address, span)| {
        // Port 0 is another port every time.
        if address.port() != 0 {
            names.take(table, "address", &address.to_string(), span);
        }
        address
    });
    let is_tcp = table.choice("protocol", &[("http", false), ("tcp", true)], false);
    let proxy_protocol = [("off", false), ("require", true)];
    let encrypted = table.table("tls");
    let protocol =
        if is_tcp { Protocol::Tcp(tcp(table, pools)) } else { http(table, encrypted.is_some()) };
    let alpn: &[&[u8]] = match protocol {
        Protocol::Http { h2: true } => &[b"h2", b"http/1.1"],
        Protocol::Http { h2: false } => &[b"http/1.1"],
        // Whoever ends it inside knows what is spoken.
        Protocol::Tcp(_) => &[],
    };
    let max_connections = table.within("max_connections", 1..=MAX_CONNECTIONS, DEFAULT_CONNECTIONS);
    // The rest is left to others.
    let one_client = (max_connections - max_connections / 4).max(1);
    let listener = Listener {
        address: SocketAddr::from(([0, 0, 0, 0], 0)),
        proxy_protocol: table.choice("proxy_protocol", &proxy_protocol, false),
        max_connections,
        max_connections_per_client: table.within(
            "max_connections_per_client",
            1..=MAX_CONNECTIONS,
            one_client,
        ),
        // What is wrong with it is noted, so that nothing runs without what was asked for.
        tls: encrypted.and_then(|encrypted| tls::read(&encrypted, base, alpn)),
        protocol,
    };
    Some(Listener { address: address?, ..listener })
}

fn http(table: &Table<'_, '_>, encrypted: bool) -> Protocol {
    const TCP_ONLY: &str = "expected protocol = \"tcp\" beside it";
    for (key, span) in [
        ("pool", table.spanned::<String>("pool").map(|(_, span)| span)),
        ("idle_timeout", table.spanned::<Duration>("idle_timeout").map(|(_, span)| span)),
        (
            "send_proxy_protocol",
            table.spanned::<String>("send_proxy_protocol").map(|(_, span)| span),
        ),
    ] {
        if let Some(span) = span {
            table.note(span, key, TCP_ONLY);
        }
    }
    let word = if encrypted { "h2" } else { "h2c" };
    let mut h2 = true;
    if let Some((protocols, span)) = table.spanned::<Vec<String>>("protocols") {
        h2 = protocols.iter().any(|p| p == word);
        let known = |p: &String| p == "http/1.1" || p == word;
        if protocols.iter().any(|p| !known(p)) || !protocols.iter().any(|p| p == "http/1.1") {
            let expected = format!("expected [\"http/1.1\"] or [\"http/1.1\", {word:?}]");
            table.note(span, "protocols", format!("{expected}, found {protocols:?}"));
        }
    }
    Protocol::Http { h2 }
}

fn tcp(table: &Table<'_, '_>, pools: &[String]) -> Tcp {
    if let Some((_, span)) = table.spanned::<Vec<String>>("protocols") {
        table.note(span, "protocols", "expected protocol = \"http\" beside it");
    }
    let send = [("off", None), ("v1", Some(ProxyVersion::V1)), ("v2", Some(ProxyVersion::V2))];
    let pool = table.required_spanned::<String>("pool").map(|(name, span)| {
        known_pool(table, pools, &name, span);
        name
    });
    Tcp {
        pool: pool.unwrap_or_default(),
        idle_timeout: positive(table, "idle_timeout", secs(600)),
        send_proxy_protocol: table.choice("send_proxy_protocol", &send, None),
    }
}
