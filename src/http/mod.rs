//! The stages of a request, one file each, in the order in which it passes them.
//!
//! [`proxy`] puts them on Pingora's phases: [`identify`], [`route`], [`admit`], [`receive`], [`balance`],
//! [`forward`], [`respond`]. [`request`] carries what they found out.
//!
//! Two ways lead through them. A *buffered* request has a body that is received first ([`receive`]), so
//! that no endpoint waits for its client, and is sent by our own attempt engine
//! ([`forward::buffered`]): an inference that is held whole can be sent again to another endpoint whatever
//! happens to the first. *Streams* of gRPC and other protocols pass through Pingora's own pipe
//! ([`forward::streamed`]). All stages but the last are the same functions on both ways.

pub mod admit;
pub mod balance;
pub mod fallback;
pub mod forward;
pub mod grpc;
pub mod identify;
pub mod pace;
pub mod proxy;
pub mod receive;
pub mod request;
pub mod respond;
pub mod route;
pub mod variant;
