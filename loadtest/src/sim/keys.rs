//! Names of things that come and go by the million.
//!
//! An event may speak of a request that has long been answered, and its slot may have been given to
//! another. A key carries a generation, so that a request that is gone is not found.
#![allow(unsafe_code, reason = "the macro implements slotmap's marker trait for its own types")]

slotmap::new_key_type! {
    /// One request, from its arrival to its answer.
    pub struct RequestKey;
    /// One attempt, from its sending to its answer.
    pub struct AttemptKey;
    /// A load report on its way to a proxy.
    pub struct ReportKey;
    /// An answer to a balancer's probe on its way back.
    pub struct ProbeKey;
}
