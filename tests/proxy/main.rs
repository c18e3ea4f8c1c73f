//! The proxy as its users meet it: real processes, real sockets, real workers.
//!
//! Ports come from the OS, nothing sleeps for luck: what takes time is waited for, with a bound.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first surprise")]
#![allow(unreachable_pub, missing_docs, reason = "only this binary uses them")]

mod activation;
mod admin;
mod bodies;
mod cache;
mod client;
mod command_line;
mod connections;
mod drain;
mod edge;
mod ejection;
mod endpoint;
mod endpoint_deadlines;
mod exhaustion;
mod fallback;
mod faults;
mod grpc;
#[path = "../../backends/worker/tests/worker/grpc_client.rs"]
mod grpc_client;
mod harness;
mod hedge;
mod hostile_config;
mod http2;
mod layer4;
mod liveness;
mod load_reports;
mod observability;
mod operations;
mod path_endpoint;
mod proxy_protocol;
mod queue;
mod readiness;
mod reference;
mod repository;
mod rollouts;
mod scripted;
mod shadows;
mod slow_clients;
mod splits;
mod standard_streams;
mod sticky;
mod supervision;
mod test_ca;
mod tls;
mod unsolicited;
mod upgrade;
mod variants;
