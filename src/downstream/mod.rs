//! From the sockets of clients to requests.
//!
//! [`accept_loop`] takes connections from a socket, [`accept`] makes requests of one: after a PROXY header
//! ([`proxy_protocol`]) and a TLS handshake ([`tls`]), if there must be any, [`http1_reader`] reads what
//! comes: [`request_head`] says whether a request is by the letter, [`chunked`] where its body ends.
//! [`http2`] bounds what a client may do with a connection of many requests.

pub mod accept;
pub mod accept_loop;
pub mod chunked;
pub mod http1_reader;
pub mod http2;
mod io;
pub mod proxy_protocol;
pub mod request_head;
pub mod tls;
