//! The words on the wire.
//!
//! The proxy, the worker and the load generator are separate programs that meet only in HTTP. Names that two
//! of them share are defined here once: header names, metric names, the reasons for a refusal, the load
//! report and the Open Inference Protocol, over REST and gRPC. A name that is typed twice is a name that
//! will one day differ.
//!
//! This crate knows nothing of routing, sockets or inference engines.

pub mod browser;
mod content;
pub mod grpc;
pub mod names;
pub mod oip;
pub mod openai;
pub mod orca;
pub mod prometheus;

pub use content::{MalformedContent, ModelContent};
pub use names::{family, header, metric, priority, reason};
pub use orca::LoadReport;
pub use priority::Priority;
pub use reason::{Blame, Reason};
