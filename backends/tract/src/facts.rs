//! Facts of ONNX files that another engine asks for: it runs files, but can't read graphs.
//!
//! They hold for any engine that keeps to the standard: rows that a graph keeps apart are kept
//! apart by whatever runs it.

use crate::error::text;
use crate::load::parsed;
use crate::model::Model;
use crate::{LoadError, LoadOptions, forms, operators, outline, warm_up};
use forebay_engine::LoadError as EngineError;
use prost::Message;
use tract_onnx::pb;

/// A file to be served, and what is served of it otherwise than it says.
#[derive(Debug)]
pub struct Servable {
    /// The file without a `ZipMap` at its end; none if it has none.
    pub changed: Option<Vec<u8>>,
    /// Differences between the file and what is served, in words.
    pub notes: Vec<String>,
    /// Texts that the graph knows, for inputs that are made up.
    pub words: Vec<String>,
}

/// Puts weights that a file leaves to others beside it into it: see [`forebay_engine::Engine::whole`].
///
/// # Errors
/// A file is missing, or is not what the model says.
pub fn whole(
    bytes: Vec<u8>,
    beside: &dyn Fn(&str) -> Result<Vec<u8>, EngineError>,
) -> Result<Vec<u8>, EngineError> {
    crate::external::whole(bytes, beside)
}

/// Describes a file in words: see [`forebay_engine::Engine::outline`].
///
/// # Errors
/// The bytes are no ONNX file.
pub fn outline(onnx: &[u8]) -> Result<Vec<(&'static str, String)>, LoadError> {
    outline::outline(onnx)
}

/// Lets out the tensor that a `ZipMap` at the end is given, since no protocol has lists of dictionaries.
///
/// # Errors
/// The bytes are no ONNX file.
pub fn servable(onnx: &[u8]) -> Result<Servable, LoadError> {
    let mut model =
        pb::ModelProto::decode(onnx).map_err(|error| LoadError::NotOnnx(text(&error)))?;
    let mut notes = Vec::new();
    let words = model.graph.as_ref().map(crate::graph::words).unwrap_or_default();
    if let Some(graph) = model.graph.as_mut() {
        forms::drop_maps(graph, &mut notes);
    }
    let changed = (!notes.is_empty()).then(|| model.encode_to_vec());
    Ok(Servable { changed, notes, words })
}

/// Proves from the graph that rows do not see each other, in the shapes of a warm-up with these options.
///
/// # Errors
/// Why not, or why it can't be read.
pub fn rows_are_apart(onnx: &[u8], options: &LoadOptions) -> Result<(), String> {
    let options = LoadOptions { allow_quantized: true, ..options.clone() };
    let (interface, plans) = parsed(onnx, &options).map_err(|error| error.to_string())?;
    let _trial = operators::Trial::begin();
    let model = Model::unready(interface, plans);
    warm_up::prove(&model, &options).map_err(|mixing| mixing.to_string())
}
