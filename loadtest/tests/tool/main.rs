//! The tool itself, put to the test.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails may say so bluntly")]

mod capacity;
mod clients;
mod compare;
mod faults;
mod files;
mod harness;
mod run;
mod sim;
mod wire;
