//! Forebay: a load-balancing proxy that knows how deep every worker's queue is.
//!
//! # The way of a request
//! | stage | module | does |
//! |---|---|---|
//! | accept | [`flow::accept`] | TLS, which protocol a connection speaks, what holds for every request |
//! | identify | [`flow::identify`] | model, version, deadline and identities, from path and headers |
//! | route | [`flow::route`] | first matching route -> pool |
//! | admit | [`flow::admit`] | size, memory and deadline |
//! | receive | [`flow::receive`] | the body, as far as it is held in memory |
//! | balance | [`flow::balance`] | waits for an endpoint with room ([`pool::queue`]) -> in-flight guard |
//! | forward | [`flow::forward`] | attempts, retries, the answer |
//! | observe | [`flow::observe`] | metrics and the access log |
//!
//! [`proxy`] puts the stages on Pingora's phases, [`request`] carries what they found out, and
//! [`answer`] is what the proxy says itself.
//!
//! # What they work on
//! [`config`] is what the operator wrote, parsed once. [`pool`] is what is known of the endpoints:
//! one immutable snapshot, loaded once a request, replaced by one control task. The decisions
//! themselves are pure and live in `forebay-routing`; the words on the wire in `forebay-protocol`.
//!
//! # The process
//! [`doors`] are its listeners, [`listen`] accepts on them, [`connections`] bounds what they hold,
//! [`body_memory`] bounds what bodies and answers do, and [`exhausted`] is about what the
//! machine lacks.
//! [`server`] binds, serves and drains, and [`lifecycle`] is how far it is; [`reload`] reads the
//! configuration again; [`admin`] answers operators, [`status`] is what they
//! see; [`access_log`] writes
//! a line a request; [`cli`] is the command line, [`operator`] what it says to a running proxy, and [`demo`] what runs without arguments.

pub mod access_log;
pub mod admin;
pub mod admin_listener;
pub mod answer;
pub mod body_memory;
pub mod cli;
pub mod clock;
pub mod config;
pub mod connections;
#[cfg(feature = "demo")]
pub mod demo;
pub mod doors;
pub mod error;
pub mod exhausted;
pub mod flow;
pub mod lifecycle;
pub mod listen;
pub mod operator;
pub mod pool;
pub mod proxy;
pub mod reload;
pub mod request;
pub mod server;
pub mod status;
