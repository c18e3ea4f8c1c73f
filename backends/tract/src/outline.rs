//! Describes a file in words, without compiling anything.

use crate::error::text;
use crate::{LoadError, forms, missing, operators};
use std::collections::BTreeMap;
use tract_onnx::prelude::*;

/// Operator sets, operators and how often each is used, and the program that wrote the file.
pub(crate) fn outline(onnx: &[u8]) -> Result<Vec<(&'static str, String)>, LoadError> {
    let framework = operators::framework();
    let mut model = framework
        .proto_model_for_read(&mut &*onnx)
        .map_err(|error| LoadError::NotOnnx(text(&error)))?;
    let producer = format!("{} {}", model.producer_name, model.producer_version);
    let sets = model.opset_import.iter().map(|set| {
        let domain = if set.domain.is_empty() { "ai.onnx" } else { &set.domain };
        format!("{domain} {}", set.version)
    });
    let sets = sets.collect::<Vec<_>>().join(", ");
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for node in model.graph.iter().flat_map(|graph| &graph.node) {
        *counts.entry(missing::full_name(node)).or_default() += 1;
    }
    let operators = counts.iter().map(|(name, count)| format!("{name} x{count}"));
    let mut facts = vec![
        ("producer", producer.trim().to_owned()),
        ("operator sets", sets),
        ("operators", operators.collect::<Vec<_>>().join(", ")),
    ];
    let notes = forms::simplify(&mut model)?;
    if !notes.is_empty() {
        facts.push(("notes", notes.join("; ")));
    }
    Ok(facts)
}
