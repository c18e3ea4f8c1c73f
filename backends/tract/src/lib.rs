//! The CPU engine: tract behind one small boundary.
//!
//! This is the only crate that knows tract. Its internals move between patch releases (hence the
//! exact version in the workspace), and it has traps that a caller would step into one by one. So
//! [`Tract`] is one [`forebay_engine::Engine`] among others, whose boundary speaks the protocol's
//! tensors and plain metadata, and the traps are closed in here:
//!
//! - A reused state carries recurrent memory from one request into the next, which is wrong and a
//!   leak between callers: [`Model::run`] starts from a fresh state each time.
//! - A symbolic batch costs up to 6x at batch 1: plans are compiled for concrete shapes, a batch is
//!   cut into powers of two, and the number of plans is bounded.
//! - A first dimension that may vary need not be a batch: [`Model::load`] joins rows only if it is
//!   proved from the graph that they do not see each other, and runs them together and apart too.
//! - Quantised graphs may be folded silently wrong: they are refused unless the operator insists.
//! - Declared shapes of intermediate values make valid models fail: they are ignored.
//! - A panic in the engine becomes an error of the one request.
//!
//! - A batch may cost more than its rows alone: it is measured when the model is loaded.
//! - tract's own loops take up to eleven times ONNX Runtime's time: kernels of ours stand in for them.
//!   Whether they agree for a model, and whether they are worth it, is found out at load too; a shape
//!   that they can't do runs without them.
//!
//! Modules: `engine` (the boundary), [`error`], `graph` (what the ONNX file says of itself), `options`, `load`, `missing` (operators that are not there), `model` (loaded, to be run), `warm_up`
//! (the first runs, and what they measure), `choice` (which build a model runs in), `pad` (those of near lengths), `rows` (the proof that they may be), `plan`
//! (compiled forms, bounded), `open` and `alike` (one plan for all sizes, and those that must be equal in it), `weights` (one copy of each for all of them), `template` (what
//! plans are compiled of), `tensor` (to tract and back), `own` (tract's graph with our kernels in
//! it), `forms` and `operators` (what stands for nodes that the engine would compute wrongly), `sound`
//! (which rewrites of tract's are right, and the rest kept out), `compare` (the build that is served
//! beside the graph as it is), [`program()`] (a model as a program for another device), [`facts`] (what another
//! engine is told of a file).

mod alike;
mod build;
mod choice;
mod compare;
mod engine;
pub mod error;
mod external;
pub mod facts;
mod forms;
mod graph;
mod load;
mod lowering;
mod missing;
mod model;
mod open;
mod operators;
mod options;
mod outline;
mod pad;
mod phases;
mod plan;
mod program;
mod rows;
mod sound;
mod template;
mod tensor;
mod warm_up;
mod weights;

pub use build::Build;
pub use engine::Tract;
pub use error::LoadError;
pub use forebay_engine::{Batching, Curve, Fallback, Form, RunError, Watch};
pub use forebay_kernels::Unit as VectorUnit;
pub use model::{Model, NodeTime};
pub use options::{LoadOptions, Profile};
pub use program::program;
