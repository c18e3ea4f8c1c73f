//! The stages of a request, one file each.
//!
//! [`proxy`] puts them on Pingora's phases, and [`pipeline`] takes a request through them in this order:
//! [`identify`], [`route`], [`assign`], [`variant`], [`admit`], [`receive`], [`cache`], [`forward`] with [`balance`] and
//! [`fallback`], [`respond`], [`shadow`]. [`request`] carries their results, [`response`] the answer. [`attempts`] is
//! common to all ways of forwarding: it decides whether a request may be sent again, whether a variant may
//! stand in, and whose fault a failure was.
//!
//! There are two ways through them. A *buffered* request has a body that is received first ([`receive`]), so
//! that no endpoint waits for its client, and is sent by the proxy's own attempt engine
//! ([`forward::buffered`]): an inference that is held whole can be sent again to another endpoint after any
//! failure of the first. *Streams* of gRPC and other protocols pass through Pingora's own pipe
//! ([`forward::streamed`]) once they are admitted. All stages before that are the same on both ways.

pub mod admit;
pub mod assign;
pub mod attempts;
pub mod background;
pub mod balance;
pub mod cache;
pub mod decisions;
pub mod fallback;
pub mod forward;
pub mod get_infer;
pub mod grpc;
pub mod identify;
pub mod pace;
pub mod pipeline;
pub mod proxy;
pub mod receive;
pub mod repository;
pub mod request;
pub mod respond;
pub mod response;
pub mod route;
pub mod services;
pub mod shadow;
pub mod stage;
pub mod variant;
