//! Forebay: a load-balancing proxy that knows how deep every worker's queue is.
//!
//! # The way of a request
//! | stage | file | does |
//! |---|---|---|
//! | accept | [`downstream/accept_loop.rs`](downstream::accept_loop) | takes connections from a listener's socket |
//! | | [`downstream/accept.rs`](downstream::accept) | PROXY header, TLS, which protocol a connection speaks |
//! | | [`downstream/http1_reader.rs`](downstream::http1_reader) | one request after the other, by the letter and in time |
//! | identify | [`http/identify.rs`](http::identify) | model, version, deadline and identities, from path and headers |
//! | route | [`http/route.rs`](http::route) | first matching route |
//! | assign | [`http/assign.rs`](http::assign) | the wish for a variant: by header, by the client's key, or none |
//! | variant | [`http/variant.rs`](http::variant) | drawn by weight -> pool, and the model that is asked for |
//! | admit | [`http/admit.rs`](http::admit) | size, memory and deadline |
//! | receive | [`http/receive.rs`](http::receive) | the body, as far as it is held in memory |
//! | balance | [`http/balance.rs`](http::balance) | waits for an endpoint with room ([`pool/queue.rs`](pool::queue)) -> in-flight guard |
//! | forward | [`http/forward/`](http::forward) | attempts, retries, the endpoint's answer |
//! | respond | [`http/respond/`](http::respond) | the answer to the client, the proxy's own refusals and health |
//! | observe | [`telemetry/observe.rs`](telemetry::observe) | metrics and the access log |
//!
//! [`http/pipeline.rs`](http::pipeline) takes a request through the stages, [`http/proxy.rs`](http::proxy)
//! puts that on Pingora's phases, [`http/request.rs`](http::request) carries what the stages found out, and
//! [`refusal.rs`](refusal) is how one says no. A new stage is a file, and a line in the pipeline. A connection at Layer 4 has
//! no requests: [`tcp/`](tcp) balances it as a whole and then relays it.
//!
//! # What they work on
//! [`config/`](config) is what the operator wrote, parsed once. [`pool/`](pool) is what is known of the
//! endpoints: one immutable snapshot, loaded once a request, replaced by one control task. [`split.rs`](split) has
//! the weights of routes that are split, which change without a reload, and [`rollout/`](rollout) moves them while it
//! judges a canary. The decisions
//! themselves are pure and live in `forebay-routing`; the words on the wire in `forebay-protocol`.
//!
//! # The process
//! [`cli/`](cli) is the command line and what it says to a running proxy, and `demo.rs` what runs without
//! arguments. [`server.rs`](server) binds, serves and drains; [`lifecycle.rs`](lifecycle) is how far it
//! is, [`reload.rs`](reload) reads the configuration again. [`listeners.rs`](listeners) are its sockets,
//! [`connections.rs`](connections) bounds what they hold, [`body_memory.rs`](body_memory) bounds what
//! bodies and answers do, and [`exhausted.rs`](exhausted) is about what the machine lacks.
//! `io.rs` has the traits that Pingora requires of a connection.
//! [`side_request.rs`](side_request) is the HTTP client for the proxy's own requests, such as probes.
//! [`admin/`](admin) answers operators; [`telemetry/`](telemetry) has the metrics and the access log.

pub mod admin;
pub mod body_memory;
pub mod cli;
pub mod clock;
pub mod config;
pub mod connections;
#[cfg(feature = "demo")]
pub mod demo;
pub mod downstream;
pub mod exhausted;
pub mod http;
mod io;
pub mod lifecycle;
pub mod listeners;
pub mod pool;
pub mod refusal;
pub mod reload;
pub mod rollout;
pub mod server;
pub mod side_request;
pub mod split;
pub mod tcp;
pub mod telemetry;
