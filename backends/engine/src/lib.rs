//! The boundary between a server of models and the engines that run them.
//!
//! An engine's own types spread: a queue that asks one library's model what a batch costs can't serve a
//! second library's. So a server speaks to each engine through two traits, and all else here is plain
//! data that every engine has in common: [`Engine`] reads files and gives a [`Model`]; a model says what
//! goes in and comes out, what can be joined, what that costs and what it holds, and runs.
//!
//! Nothing here knows an engine, a file format, a runtime or a socket. A further engine is one crate (or
//! one file) that implements the two traits, and one entry in the server's list of [`Engines`].
//!
//! Modules: `engine` (the engine and the list of them), `model` (loaded, to be run), `watch` (how a run
//! or a load is stopped), [`batch`] (requests joined and split), [`curve`] (what a batch costs), `trend` (what requests of other sizes
//! cost), `options` (how a model is loaded), `random` (numbers that are drawn), [`made`] (inputs that are made
//! up), `error`.

pub mod batch;
pub mod curve;
mod engine;
mod error;
pub mod made;
mod model;
mod options;
mod random;
mod trend;
mod watch;

pub use curve::Curve;
pub use engine::{Device, Engine, Engines, ModelFile};
pub use error::{LoadError, RunError};
pub use model::{Fallback, Form, Model};
pub use options::{Batching, LoadOptions, Profile};
pub use random::Random;
pub use trend::Trend;
pub use watch::{Remote, Watch};
