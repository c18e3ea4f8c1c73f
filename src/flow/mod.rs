//! The stages of a request, one file each, in the order in which it passes them.
//!
//! Two ways lead through them. A *unary* inference, whose body is short enough to hold, runs the
//! whole line in one piece and is sent by our own attempt engine ([`forward::unary`]), so that it
//! can be sent again to another endpoint whatever happens to the first. Everything else is
//! *streamed* through Pingora's own pipe ([`forward::stream`]). All stages but the last are the
//! same functions on both ways.
//!
//! Before the stages, [`caller`] reads requests from a connection: [`head`] says whether one is by the
//! letter, [`chunks`] where its body ends.
//!
//! A connection at Layer 4 has no requests: it is balanced as a whole ([`tcp`]) and then relayed
//! ([`relay`]). Where a load balancer stands in front, [`proxy_protocol`] says who the caller is. At
//! both layers [`tls`] may come first.

pub mod accept;
pub mod admit;
pub mod balance;
pub mod caller;
pub mod chunks;
pub mod fallback;
pub mod forward;
pub mod grpc;
pub mod head;
pub mod http2;
pub mod identify;
mod io;
pub mod observe;
pub mod proxy_protocol;
pub mod relay;
pub mod route;
pub mod tcp;
pub mod tls;
