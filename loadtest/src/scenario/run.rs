//! The settings of a whole run, and of the connections to its target.

use super::{Fault, Objective, Process};
use forebay_config::form::{any, called, list, one_of, optional, positive, within};
use std::path::PathBuf;
use std::time::Duration;

/// Maximum number of connections of a run: file descriptors and ports of one machine end not far above.
const MAX_CONNECTIONS: usize = 20_000;
/// Maximum number of requests at a time on one HTTP/2 connection.
const MAX_STREAMS: usize = 1000;
/// Maximum number of clients: as many as a proxy can be expected to tell apart.
const MAX_CLIENTS: u32 = 1_000_000;
/// Maximum number of generating threads.
pub const MAX_THREADS: usize = 64;

forebay_config::section! {
    /// The seed decides everything random in a run, so that it can be repeated.
    pub struct General {
        /// The name of the run in reports. Default: that of the file.
        name: Option<String> = None, optional(any()), shown "\"mixed\"";
        /// Everything random follows from it.
        seed: u64 = 1, called("N", any());
        /// Time before anything is measured, in addition to the load's own length.
        warm_up: Duration = Duration::from_secs(1), any();
        /// A request is given up this long after its intended start. Default: 30s, in a search for the
        /// capacity 5s.
        timeout: Option<Duration> = None, optional(positive()), shown "\"30s\"";
        /// Number of clients that requests name, chosen at random. Default: requests name none.
        clients: Option<u32> = None, optional(within(1..=MAX_CLIENTS)), shown "1000";
        /// The header that names the client. Default: x-client.
        client_header: Option<String> = None, optional(any()), shown "\"x-client\"";
        /// Objectives that the run must reach: p50 to p99.999, mean, max, errors or rate with a bound.
        objectives: Vec<Objective> = Vec::new(), list(), shown "[\"p99<250ms\", \"errors<1%\"]";
    }
}

forebay_config::section! {
    /// The target of a live run, and the connections to it.
    pub struct Live {
        /// Target of the requests: http[s]://HOST:PORT[/BASE]. The flag overrides the file.
        target: Option<String> = None, called("URL", optional(any())), shown "\"http://127.0.0.1:8080\"";
        /// Protocol: "http/1.1" with keep-alive, one request at a time on a connection; "h2", many at a
        /// time, in clear text with prior knowledge; "grpc", inferences only, whose tensors are always
        /// binary.
        protocol: Protocol = Protocol::Http1, called("PROTOCOL", one_of(Protocol::NAMES));
        /// Open loop: maximum number of connections. Closed loop: connections, each of which sends its next
        /// request as soon as it has the answer to the last one. Default: 1000, with HTTP/2 10.
        connections: Option<usize> = None, optional(within(1..=MAX_CONNECTIONS)), shown "1000";
        /// Requests at a time on one HTTP/2 connection; by default servers' usual limit.
        streams: usize = 100, within(1..=MAX_STREAMS);
        /// Threads that generate load; one is enough for tens of thousands of requests a second.
        threads: usize = 1, within(1..=MAX_THREADS);
    }
    beside {
        /// Trusted certificates, where the target says https.
        tls: Trust = Trust::default();
        /// Programs that the run starts.
        processes: Vec<Process> = Vec::new();
        /// Faults of these programs.
        faults: Vec<Fault> = Vec::new();
    }
}

forebay_config::section! {
    /// Trusted certificates, where the target says https.
    pub struct Trust {
        /// Trust any certificate.
        insecure: bool = false, any();
        /// Trust certificates of the authorities in this PEM file. Default: those that the system trusts.
        ca: Option<PathBuf> = None, called("FILE", optional(any())), shown "\"ca.pem\"";
    }
}

/// The protocol of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// HTTP/1.1 with keep-alive, one request at a time on a connection.
    #[default]
    Http1,
    /// HTTP/2, many requests at a time on a connection; in clear text with prior knowledge.
    Http2,
    /// Inferences over gRPC, whose tensors are always binary; many at a time on a connection.
    Grpc,
}

impl Protocol {
    const NAMES: &'static [(&'static str, Self)] = &[
        ("http/1.1", Self::Http1),
        ("h1", Self::Http1),
        ("h2", Self::Http2),
        ("h2c", Self::Http2),
        ("grpc", Self::Grpc),
    ];
}
