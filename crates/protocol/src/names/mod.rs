//! The names that several programs must spell alike.
//!
//! - [`family`]: what a metric is declared as.
//! - [`header`]: headers of requests and answers.
//! - [`metric`]: metrics and their labels.
//! - [`priority`]: how urgent a request is.
//! - [`reason`]: why a request was refused.

pub mod family;
pub mod header;
pub mod metric;
pub mod priority;
pub mod reason;
