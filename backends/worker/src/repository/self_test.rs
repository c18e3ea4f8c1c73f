//! Recorded answers beside a model, compared when it is loaded.
//!
//! An engine may compile a graph without complaint and compute something else: a quantised softmax has done
//! so. The person who exported the model knows its answers; two files beside it, `examples/NAME.json` (a
//! request) and `examples/NAME.expected.json` (the answer to it), are enough to refuse a model that answers
//! otherwise here.

use crate::repository::model_files::Example;
use forebay_engine::Model;
use forebay_protocol::oip::{InferRequest, InferResponse, Tensor};

/// Runs each example alone.
///
/// # Errors
/// In words: an example can't be read or run, or an output differs by more than `tolerance`
/// (relative where numbers are larger than 1).
pub(crate) fn run(loaded: &dyn Model, examples: &[Example], tolerance: f64) -> Result<(), String> {
    examples.iter().try_for_each(|example| {
        check_one(loaded, example, tolerance)
            .map_err(|problem| format!("example \"{}\": {problem}", example.name))
    })
}

fn check_one(loaded: &dyn Model, example: &Example, tolerance: f64) -> Result<(), String> {
    let request = InferRequest::parse(&example.request, None).map_err(|e| e.to_string())?;
    let expected = InferResponse::parse(&example.expected, None).map_err(|e| e.to_string())?;
    let most = loaded.curve().best();
    let outputs = loaded.run(&[&request.inputs], most, &|| false).map_err(|e| e.to_string())?;
    let outputs = outputs.into_iter().next().unwrap_or_default();
    expected.outputs.iter().try_for_each(|expected| compare(&outputs, expected, tolerance))
}

fn compare(found: &[Tensor], expected: &Tensor, tolerance: f64) -> Result<(), String> {
    let name = &expected.name;
    let found = found.iter().find(|output| output.name == *name);
    let found =
        found.ok_or_else(|| format!("expected output \"{name}\", found none of the name"))?;
    let difference = expected.data.max_difference(&found.data);
    match difference.filter(|_| found.shape == expected.shape) {
        Some(difference) if difference <= tolerance => Ok(()),
        Some(difference) => Err(format!(
            "output \"{name}\": expected the recorded values within {tolerance}, found a \
             difference of {difference:.3e}"
        )),
        None => Err(format!(
            "output \"{name}\": expected {} {:?}, found {} {:?}",
            expected.data.datatype(),
            expected.shape,
            found.data.datatype(),
            found.shape
        )),
    }
}
