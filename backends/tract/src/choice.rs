//! The choice of the build that a model runs in.
//!
//! Workers that load the same file must serve it in the same build: the last bits of answers differ between
//! builds. A measurement may come out otherwise on another machine, or at another time. So the choice follows
//! from the graph alone: our kernels where they have a place, fill their vectors and answer as tract's own
//! do, else the plain build. `build` in a model's `model.toml` overrules it. Both builds are still measured,
//! so that an operator sees what that would bring.
//!
//! Builds are measured in processor time of this thread, so that other work on the machine does not count,
//! in turns, and by the minimum of several runs. `compare` then checks in several shapes and batch sizes
//! that the chosen build answers as the file's graph does.

use crate::Watch;
use crate::build::{Build, Shapes};
use crate::compare::{agree, values};
use crate::model::Model;
use crate::plan::Plans;
use forebay_protocol::oip::Tensor;
use rustix::time::{ClockId, clock_gettime};
use std::time::{Duration, Instant};

/// Maximum difference between the outputs of builds: other kernels, other order of sums.
const TOLERANCE: f64 = 1e-3;
/// Rounds in which each build is timed, unless they take longer together than the time below: the
/// processor time of a long run hardly varies.
const ROUNDS: usize = 9;
/// Rounds in any case: a single run may be any multiple of the least.
const LEAST_ROUNDS: usize = 3;
const ROUNDS_TIME: Duration = Duration::from_millis(400);

/// Takes the build that the rule gives with these inputs; the model's plans are plain before.
pub(crate) fn choose(model: &mut Model, usual: &[Tensor]) {
    let Some(own) = model.plans.built(Build::Own) else { return };
    let Some([plain, ours]) = compare(model, &own, usual) else { return };
    model.compared = vec![(Build::Plain, plain), (Build::Own, ours)];
    // A graph that can't be read is no reason against kernels that answer rightly.
    if model.plans.fills_vectors(&shapes(usual)).unwrap_or(true) {
        model.plans = own;
    }
}

/// Least seconds of the plain build and of the other; `None` if the other has no plan of its own for
/// these inputs, or answers otherwise.
fn compare(model: &Model, other: &Plans, usual: &[Tensor]) -> Option<[f64; 2]> {
    let has_place = other.get(&shapes(usual)).ok()?.build == other.build();
    if !has_place || !agrees(model, other, usual) {
        return None;
    }
    let plans = [&model.plans, other];
    let mut least = [f64::INFINITY; 2];
    let started = Instant::now();
    for round in 0..ROUNDS {
        if round >= LEAST_ROUNDS && started.elapsed() > ROUNDS_TIME {
            break;
        }
        // In turns, so that neither build always runs in the caches that the other left.
        for turn in [round % 2, (round + 1) % 2] {
            let before = thread_seconds();
            run(model, plans[turn], usual)?;
            least[turn] = least[turn].min(thread_seconds() - before);
        }
    }
    Some(least)
}

fn agrees(model: &Model, other: &Plans, inputs: &[Tensor]) -> bool {
    let Some(expected) = run(model, &model.plans, inputs) else { return true };
    run(model, other, inputs).is_some_and(|found| agree(&found, &expected, TOLERANCE))
}

fn run(model: &Model, plans: &Plans, inputs: &[Tensor]) -> Option<Vec<Tensor>> {
    let never: &dyn Watch = &|| false;
    let ran = model.run_in(plans, &shapes(inputs), &|| values(inputs), never);
    ran.ok().map(|(outputs, _)| outputs)
}

fn shapes(inputs: &[Tensor]) -> Shapes {
    inputs.iter().map(|input| input.shape.clone()).collect()
}

/// Processor time of this thread.
#[allow(clippy::cast_precision_loss, reason = "times of threads are short")]
fn thread_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::options::LoadOptions;
    use crate::warm_up;
    use forebay_protocol::oip::Data;
    use std::path::Path;

    /// In the plain build, without a choice.
    fn plain() -> (Model, Vec<Tensor>) {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("models");
        let bytes = std::fs::read(models.join("ppocr-cls/1/model.onnx")).unwrap();
        let shapes = [("x".to_owned(), vec![-1, 3, 48, 192])].into();
        let build = Some(Build::Plain);
        let options = LoadOptions { max_batch: 1, shapes, build, ..LoadOptions::default() };
        let model = Model::load(&bytes, &options).unwrap();
        let usual = warm_up::inputs(&model, &options, Some(1), 0).unwrap();
        (model, usual)
    }

    #[test]
    fn our_kernels_are_taken_for_what_the_graph_is() {
        let (mut model, usual) = plain();
        choose(&mut model, &usual);
        assert_eq!(model.build(), Build::Own);
        let builds: Vec<Build> = model.compared().iter().map(|compared| compared.0).collect();
        assert_eq!(builds, [Build::Plain, Build::Own], "measured for the operator");
    }

    #[test]
    fn a_build_that_answers_otherwise_is_not_taken_however_fast_it_is() {
        let (model, usual) = plain();
        let inputs = &usual;
        let found = run(&model, &model.plans, inputs).unwrap();
        let mut other = found.clone();
        other[0].data = Data::Fp32(vec![9.0, 9.0].into());
        assert!(agree(&found, &found, TOLERANCE) && !agree(&found, &other, TOLERANCE));
        let own = model.plans.built(Build::Own).unwrap();
        assert!(agrees(&model, &own, inputs));
    }
}
