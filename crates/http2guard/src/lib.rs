//! Bounds what one HTTP/2 client can make a server do besides answering requests, and what a server can make
//! its client do besides taking answers.
//!
//! Most HTTP/2 frames cost their sender almost nothing and oblige the receiver to act: a PING and a
//! SETTINGS frame are acknowledged, a WINDOW_UPDATE walks the streams, a HEADERS frame that is
//! followed by RST_STREAM starts and cancels a request. The `h2` crate, which both Pingora and hyper
//! use, bounds some of these (CVE-2023-44487 and CVE-2024-27316 among them), but a flood of the others
//! occupies a core for as long as the connection lasts, and resets below its thresholds go on
//! forever.
//!
//! [`Guarded`] wraps a server's connection and follows the frame headers in both directions. A
//! [`Budget`] charges the client for each frame that asks for work of its own and credits it for
//! requests and data, so that a client which downloads at full speed, pings to measure its bandwidth
//! or cancels requests that take too long never runs out. When the budget is exhausted the client
//! gets GOAWAY with ENHANCE_YOUR_CALM, and the server sees the end of the connection.
//!
//! The same scan shows what the HTTP/2 library answers on its own, before the server's code sees a
//! request: an [`Event`] reports it, so that it can be counted and logged.
//!
//! A connection that does not begin with the HTTP/2 preface passes through unchanged.
//!
//! [`GuardedServer`] is the same in the other direction: a client's connection to a server that may be broken
//! or somebody else's. The library reads what a server sends for as long as it comes, whether a request
//! is under way or not, and queues interim answers without a bound.

/// The log message for a connection whose client has exhausted its budget.
pub const FLOODED: &str = "closed an HTTP/2 connection whose client exhausted its budget of frames";

/// The log message for a connection whose server has exhausted its budget.
pub const SERVER_FLOODED: &str =
    "closed an HTTP/2 connection whose server exhausted its budget of frames";

mod budget;
mod frame;
mod guarded;
mod server;

pub use budget::{Budget, Flood};
pub use frame::{Frame, Scanner};
pub use guarded::{Event, Guarded, Observer};
pub use server::{FloodObserver, Flooded, GuardedServer, ServerBudget};
