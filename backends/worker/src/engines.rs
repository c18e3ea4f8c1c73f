//! The engines of this worker. A further one is a line here, and nothing else in the worker.

use forebay_engine::{Engine, Engines};
use forebay_onnxruntime::{Library, OnnxRuntime};
use std::path::Path;
use std::sync::Arc;

/// All of them, the preferred first. `onnxruntime` is the key of that name: the library, `auto` or `off`.
///
/// # Errors
/// There is no such library.
pub(crate) fn with(onnxruntime: &Path) -> Result<Engines, String> {
    let library = Library::find(onnxruntime)?;
    let engines: [Arc<dyn Engine>; 2] =
        [Arc::new(forebay_tract::Tract), Arc::new(OnnxRuntime::new(library))];
    Ok(Engines::new(engines))
}

/// Those of a worker that is given nothing.
pub(crate) fn default() -> Engines {
    let engines: [Arc<dyn Engine>; 2] =
        [Arc::new(forebay_tract::Tract), Arc::new(OnnxRuntime::new(Library::Off))];
    Engines::new(engines)
}

/// Each that is there, with what there is to know of its machine, such as `tract (vector_unit avx2)`.
pub(crate) fn described(engines: &Engines) -> String {
    let each = engines.iter().filter(|engine| engine.missing().is_none()).map(|engine| {
        let facts = engine.facts();
        let facts: Vec<_> = facts.iter().map(|(name, value)| format!("{name} {value}")).collect();
        match facts.as_slice() {
            [] => engine.name().to_owned(),
            facts => format!("{} ({})", engine.name(), facts.join(", ")),
        }
    });
    each.collect::<Vec<_>>().join(", ")
}
