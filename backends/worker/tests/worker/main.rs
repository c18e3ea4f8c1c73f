//! The worker from outside: in this process on a port of the OS's choice, or as a real process
//! where signals and exit statuses matter.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod attempts;
mod bad_input;
mod batch;
mod bodies;
mod connections;
mod embeddings;
mod engines;
mod extensions;
mod grpc;
mod grpc_client;
mod harness;
mod hostile;
mod live;
mod load;
mod models;
mod onnxruntime;
mod process;
mod protocol;
mod repository;
mod survival;

mod traps;
