//! The engines of this worker. A further one is a line here, and nothing else in the worker.

use forebay_engine::{Engine, Engines};
use std::sync::Arc;

/// All of them, the preferred first.
pub(crate) fn all() -> Engines {
    let engines: [Arc<dyn Engine>; 1] = [Arc::new(forebay_tract::Tract)];
    Engines::new(engines)
}

/// Each with what there is to know of its machine, such as `tract (vector_unit avx2)`.
pub(crate) fn described(engines: &Engines) -> String {
    let each = engines.iter().map(|engine| {
        let facts = engine.facts();
        let facts: Vec<_> = facts.iter().map(|(name, value)| format!("{name} {value}")).collect();
        match facts.as_slice() {
            [] => engine.name().to_owned(),
            facts => format!("{} ({})", engine.name(), facts.join(", ")),
        }
    });
    each.collect::<Vec<_>>().join(", ")
}
