//! The response cache, as far as it knows nothing of connections.
//!
//! An inference is a function of its tensors: the same question to the same content of a model has the same
//! answer. Other caches look at bytes, so that the JSON and the binary form of one tensor are two entries, or
//! at too little of the question, so that two questions are one. Here a [question](question) is everything
//! that the answer depends on, in one canonical form, and an [answer](answer) is kept in one form, from
//! which each client gets its own.
//!
//! [`store`] keeps answers, bounded in bytes; [`flight`] lets equal questions that are asked at once be
//! answered together; [`rows`] takes batches apart, and [`embeddings`] lists of texts; [`contents`] knows which content of a model is served now, and [`absent`] which models
//! are not there; [`control`] reads what a client says about caching. [`memo`] knows requests whose
//! very bytes came before. [`shared`] is a store beyond this process, for which
//! entries become [records](record) that are [`sealed`], and [`snapshot`] is a file of them, a [`new_file`].

pub mod absent;
pub mod answer;
pub mod contents;
pub mod control;
pub mod embeddings;
pub mod flight;
pub mod memo;
pub mod new_file;
pub mod question;
pub mod record;
pub mod rows;
pub mod sealed;
pub mod shared;
pub mod snapshot;
pub mod store;

pub use absent::Absences;
pub use answer::{Answer, Form};
pub use contents::{Content, Contents, Fact};
pub use control::CacheControl;
pub use question::{Asked, Hasher, Question, Unkeyed};
pub use store::{Entry, Store};
