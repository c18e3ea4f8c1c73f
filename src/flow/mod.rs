//! The stages of a request, one file each, in the order in which it passes them.
//!
//! Two ways lead through them. A *unary* request has a body that is received first ([`receive`]), so
//! that no endpoint waits for its client, and is sent by our own attempt engine
//! ([`forward::unary`]): an inference that is held whole can be sent again to another endpoint whatever
//! happens to the first. *Streams* of gRPC and other protocols pass through Pingora's own pipe
//! ([`forward::stream`]). All stages but the last are the same functions on both ways.
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
pub mod pace;
pub mod proxy_protocol;
pub mod receive;
pub mod relay;
pub mod route;
pub mod tcp;
pub mod tls;
