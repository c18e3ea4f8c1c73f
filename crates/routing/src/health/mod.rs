//! Whether an endpoint gets requests, and how many.
//!
//! - [`check`]: rise and fall of one endpoint from the outcomes of its probes.
//! - [`outlier`]: which endpoint is taken out for what its answers were like, and for how long.
//! - [`rotation`]: which endpoints of a pool are used.
//! - [`slow_start`]: the share of an endpoint that has just come into rotation.

pub mod check;
pub mod outlier;
pub mod rotation;
pub mod slow_start;
