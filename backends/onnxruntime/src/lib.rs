//! ONNX Runtime as an engine, where its shared library is there.
//!
//! It runs models that tract lacks operators for, and it is what other engines are compared with. Its library
//! is the operator's: nothing of it is linked or downloaded, and a worker without it is none the worse. So it
//! is opened when the first model needs it, which the worker does in a child first: a library that crashes or
//! hangs as it is opened takes that child with it, and not the worker.
//!
//! - A run can't be asked between nodes whether it is still wanted: [`stop`] asks for it on a thread of its own.
//! - Rows are joined as with any engine: if the graph proves that they do not see each other.
//! - Sessions run on the calling thread alone, so that executors remain what the machine's cores are shared by.
//! - Weights in other files are never read by the library: a path in a model could lead anywhere.
//!
//! Modules: `library` (which file is opened, and when), `open` (it is opened), `engine` (the boundary), `session` and `value` (all
//! calls of the library), `file` (what it must not see), `model` (loaded, to be run), `warm_up` (its first
//! runs), `stop`, `text` (words of errors).

mod engine;
mod file;
mod library;
mod model;
mod open;
mod session;
mod stop;
mod text;
mod value;
mod warm_up;

pub use engine::OnnxRuntime;
pub use library::Library;
