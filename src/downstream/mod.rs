//! From the sockets of clients to requests.
//!
//! [`accept_loop`] takes connections from a socket, [`accept`] makes requests of one: after a PROXY header
//! and a TLS handshake ([`tls`]), if there must be any, [`http1_reader`] reads what comes. The crate
//! `forebay-framing` says where a PROXY header, a request's head and a chunked body end.
//! [`http2`] bounds what a client may do with a connection of many requests.

pub mod accept;
pub mod accept_loop;
pub mod http1_reader;
pub mod http2;
pub mod tls;
