//! The messages, as `generate/` makes them from `proto/`: do not edit them by hand.

#![allow(missing_docs, unreachable_pub, unused_qualifications, reason = "made by prost")]
#![allow(clippy::all, reason = "made by prost")]

mod inference;
pub use inference::*;

/// `grpc.health.v1`
#[path = "grpc.health.v1.rs"]
pub mod health;
/// `xds.service.orca.v3`
#[path = "xds.service.orca.v3.rs"]
pub mod orca;
