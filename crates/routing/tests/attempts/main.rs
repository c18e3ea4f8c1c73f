//! The attempts of a request, as their drivers see them: events in, actions out.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]
#![allow(clippy::cast_precision_loss, reason = "small numbers")]

mod cause;
mod orders;
mod steps;
