//! The answers of two engines to the same inputs.

use super::report::line;
use crate::config::model::ModelConfig;
use forebay_engine::{Engine, Model, ModelFile, Random, RunError, made};
use forebay_protocol::oip::{Tensor, TensorMetadata};
use std::collections::BTreeMap;

/// Draws of each number of rows.
const DRAWS: usize = 5;
/// Numbers of rows, where a model takes any.
const ROWS: [usize; 2] = [1, 3];
/// Sizes of open dimensions; the first that the model runs with is taken.
const OPEN: [usize; 7] = [1, 8, 16, 32, 64, 128, 224];
const SEED: u64 = 15;

/// Puts the answers of `other` beside those of a model: a line for each output with the largest difference,
/// relative where values are larger than 1, and whether all are within the model's tolerance.
pub(super) fn compare(
    model: &dyn Model,
    other: &dyn Engine,
    file: ModelFile<'_>,
    config: &ModelConfig,
) -> (String, bool) {
    let mut text = String::new();
    let loaded = match other.load(file, &config.load_options(None), &|| false) {
        Ok(loaded) => loaded,
        Err(error) => {
            line(&mut text, "against", &format!("{} refuses it: {error}", other.name()));
            return (text, false);
        }
    };
    let milliseconds = |model: &dyn Model| model.curve().seconds(1).unwrap_or(0.0) * 1e3;
    let (own, theirs) = (milliseconds(model), milliseconds(&*loaded));
    let name = other.name();
    line(&mut text, "against", &format!("{name}: {theirs:.3} ms a row, here {own:.3} ms"));
    match differences(model, &*loaded, config) {
        Ok(found) => {
            let agrees = found.values().all(|&off| off <= config.tolerance);
            for (output, off) in found {
                line(&mut text, "difference", &format!("{output}: {off:.3e} at most"));
            }
            (text, agrees)
        }
        Err(why) => {
            line(&mut text, "difference", &why);
            (text, false)
        }
    }
}

/// The largest difference of each output over all draws.
fn differences(
    model: &dyn Model,
    other: &dyn Model,
    config: &ModelConfig,
) -> Result<BTreeMap<String, f64>, String> {
    let rows = if model.max_batch().is_some() { &ROWS[..] } else { &ROWS[..1] };
    let mut random = Random::new(SEED);
    let open = OPEN.into_iter().find(|&open| {
        let inputs = inputs(model, config, (1, open), &mut random);
        run(model, &inputs).is_ok()
    });
    let open = open.ok_or("expected inputs that both run, found none: give warm_up shapes")?;
    let mut most: BTreeMap<String, f64> = BTreeMap::new();
    for &rows in rows {
        for _ in 0..DRAWS {
            let inputs = inputs(model, config, (rows, open), &mut random);
            let answers = run(model, &inputs).map_err(|error| format!("here: {error}"))?;
            let others = run(other, &inputs).map_err(|error| format!("there: {error}"))?;
            for (a, b) in answers.iter().zip(&others) {
                let off = a.data.max_difference(&b.data).filter(|_| a.shape == b.shape);
                let most = most.entry(a.name.clone()).or_default();
                *most = most.max(off.unwrap_or(f64::INFINITY));
            }
        }
    }
    Ok(most)
}

fn run(model: &dyn Model, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
    let outputs = model.run(&[inputs], usize::MAX, &|| false)?;
    Ok(outputs.into_iter().next().unwrap_or_default())
}

/// Drawn inputs with so many rows, and this size of other open dimensions.
fn inputs(
    model: &dyn Model,
    config: &ModelConfig,
    (rows, open): (usize, usize),
    random: &mut Random,
) -> Vec<Tensor> {
    let given = config.load_options(None).warm_up;
    let input = |input: &TensorMetadata| {
        let size = |(place, &dim): (usize, &i64)| {
            usize::try_from(dim).unwrap_or(if place == 0 { rows } else { open })
        };
        let mut shape: Vec<usize> = input.shape.iter().enumerate().map(size).collect();
        if let Some(given) = given.get(&input.name).filter(|given| given.len() == shape.len()) {
            shape.clone_from(given);
            if let Some(first) = shape.first_mut().filter(|_| input.shape[0] == -1) {
                *first = rows;
            }
        }
        made::drawn(input, shape, &[], random)
    };
    model.inputs().iter().map(input).collect()
}
