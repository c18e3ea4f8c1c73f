//! The load generator.
//!
//! Claims about latency are worth what the load generator is worth. A closed loop that waits for a
//! stalled target before it sends the next request measures one slow answer where a thousand callers
//! would have waited ("coordinated omission"); a generator that is late itself blames the target.
//! This one sends when the plan says so, measures from that moment, and states its own lag.
//!
//! The modules in the order in which a run goes through them:
//!
//! | module | does |
//! |---|---|
//! | [`cli`], [`args`] | the command line; flags become a [`scenario`] |
//! | [`scenario`] | what an operator writes: TOML or flags |
//! | [`plan`] | what runs: parsed and checked once; [`arrivals`], [`replay`], [`objective`], [`target`] |
//! | [`mix`] | which request comes when |
//! | [`request`] | all bodies, made before the clock starts; [`infer`] from a model's metadata, [`tensor`] |
//! | [`run`] | threads, progress line, Ctrl-C |
//! | [`engine`] | lanes and the clock that feeds them; `lane` carries one request at a time, [`pace`] wakes it, [`link`] is a connection, [`tls`] keeps it secret |
//! | [`fault`] | programs that the run starts, and what befalls them on schedule |
//! | [`check`] | is the answer right? |
//! | [`record`] | counts and histograms; [`stage`] the same before, during and after faults |
//! | [`report`], [`buckets`], [`summary`], [`table`], [`progress`], [`html`], [`hdr`] | what comes out |
//! | [`capacity`] | many runs: how much can it take? |
//! | [`compare`] | is one run worse than another? |
//! | [`sim`] | the same on a virtual clock, with the proxy's routing core |
//! | [`synthetic`] | a backend with known service times, to measure against |
//!
//! It needs Linux: its clock is a timerfd.

pub mod args;
pub mod arrivals;
pub mod buckets;
pub mod capacity;
pub mod check;
pub mod cli;
pub mod compare;
pub mod engine;
pub mod fault;
pub mod hdr;
pub mod html;
pub mod infer;
mod lane;
pub mod link;
pub mod mix;
pub mod objective;
pub mod plan;
pub mod progress;
pub mod record;
pub mod replay;
pub mod report;
pub mod request;
pub mod run;
pub mod scenario;
pub mod sim;
pub mod stage;
pub mod summary;
pub mod table;
pub mod target;
pub mod tensor;
pub mod tls;
mod wire;

pub use forebay_config::units;
pub use forebay_synthetic as synthetic;
pub use forebay_synthetic::{distribution, pace};
