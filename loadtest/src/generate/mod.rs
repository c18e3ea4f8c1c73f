//! A run while its clock goes: threads, connections, and the search for the highest rate.

pub mod capacity;
mod connection_slot;
pub mod engine;
mod progress;
pub mod run;
