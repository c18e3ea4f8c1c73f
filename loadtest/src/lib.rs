//! The load generator.
//!
//! Claims about latency are worth what the load generator is worth. A closed loop that waits for a
//! stalled target before it sends the next request measures one slow answer where a thousand clients
//! would have waited ("coordinated omission"); a generator that is late itself blames the target.
//! This one sends when the plan says so, measures from that moment, and states its own lag.
//!
//! The folders, each of which imports only from those above it:
//!
//! | folder | does |
//! |---|---|
//! | [`scenario`] | what an operator writes: TOML or flags |
//! | [`plan`] | what runs, parsed and checked once: arrivals, the mix of requests, the target, replayed logs |
//! | [`report`] | counts and histograms of what was measured, and all that is made of them: JSON, table, page, HdrHistogram files, verdicts, the comparison of two runs |
//! | [`connection`] | a connection to the target, and the TCP or TLS under it |
//! | [`corpus`] | all bodies, made before the clock starts from a model's metadata, and the check of their answers |
//! | [`fault`] | programs that the run starts, and their faults on schedule |
//! | [`generate`] | the run: threads, connection slots, the clock that feeds them; the search for the capacity |
//! | [`sim`] | the same on a virtual clock, with the proxy's routing core |
//! | [`cli`] | the command line |
//!
//! [`synthetic`] is a backend with known service times, to measure against; [`timer`] is its clock, which
//! the generator shares. It needs Linux: the clock is a timerfd.

pub mod cli;
pub mod connection;
pub mod corpus;
pub mod fault;
pub mod generate;
pub mod plan;
pub mod report;
pub mod scenario;
pub mod sim;

pub use forebay_config::units;
pub use forebay_synthetic as synthetic;
pub use forebay_synthetic::{distribution, timer};
