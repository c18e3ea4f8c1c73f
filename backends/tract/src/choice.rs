//! The choice of the build that a model runs in.
//!
//! Workers that load the same file must serve it in the same build, and a timer that ticks a
//! microsecond late on one of them must not decide otherwise. So the choice is a rule with a fixed
//! preference: our kernels where they have a place and answer as tract's own do, else the plain
//! build. A measurement overrules the preference only where the difference is clear, far beyond what
//! load on the machine can make of it, and is found twice; `build` in a model's `model.toml` overrules both.
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
/// A build of tract's is clearly faster than the other if it needs at most this share of its time ...
const CLEAR: f64 = 0.8;
/// ... and faster than ours at this share: only a model that our kernels are wrong for is so.
const CLEAR_OF_OURS: f64 = 0.5;
/// Either must save more seconds a row than this: no client sees a difference below.
const NOTICEABLE: f64 = 20e-6;
/// Rounds in which each build is timed, unless they take longer together than the time below: the
/// processor time of a long run hardly varies.
const ROUNDS: usize = 9;
/// Rounds in any case: a single run may be any multiple of the least.
const LEAST_ROUNDS: usize = 3;
const ROUNDS_TIME: Duration = Duration::from_millis(400);

/// The time that stands for a run in comparisons, from its measured time in seconds.
pub(crate) type Judge<'a> = &'a dyn Fn(Build, f64) -> f64;

/// Takes the build that the rule gives with these inputs; the model's plans are plain before.
pub(crate) fn choose(model: &mut Model, usual: &[Tensor], judge: Judge<'_>) {
    for build in [Build::Own, Build::ChannelsLast] {
        let Some(other) = model.plans.built(build) else { continue };
        let Some(mut seconds) = compare(model, &other, usual, judge) else { continue };
        if is_overruled(build, seconds) {
            // A second comparison has to agree, so that a busy moment of the machine does not decide.
            let Some(again) = compare(model, &other, usual, judge) else { continue };
            seconds = if is_overruled(build, again) { least(seconds, again) } else { again };
        }
        let [plain, others] = seconds;
        model.compared.retain(|(known, _)| *known != Build::Plain);
        model.compared.extend([(Build::Plain, plain), (build, others)]);
        if (build == Build::Own) != is_overruled(build, seconds) {
            model.plans = other;
            // A build that is slower than ours in one layout has never been seen to be faster in the other.
            return;
        }
    }
}

/// Are these seconds, of the plain build and of this one, against the preference: ours before the plain
/// one, and that before the other layout?
fn is_overruled(build: Build, [plain, others]: [f64; 2]) -> bool {
    let is_less = |seconds: f64, other: f64, clear: f64| {
        seconds <= clear * other && other - seconds > NOTICEABLE
    };
    match build {
        Build::Own => is_less(plain, others, CLEAR_OF_OURS),
        _ => is_less(others, plain, CLEAR),
    }
}

fn least(a: [f64; 2], b: [f64; 2]) -> [f64; 2] {
    [a[0].min(b[0]), a[1].min(b[1])]
}

/// Least seconds of the plain build and of the other; `None` if the other has no plan of its own for
/// these inputs, or answers otherwise.
fn compare(model: &Model, other: &Plans, usual: &[Tensor], judge: Judge<'_>) -> Option<[f64; 2]> {
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
            let seconds = judge(plans[turn].build(), thread_seconds() - before);
            least[turn] = least[turn].min(seconds);
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

    const ALL: [Build; 3] = [Build::Plain, Build::Own, Build::ChannelsLast];

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

    fn chosen(seconds: [f64; 3]) -> (Build, Vec<Build>) {
        let (mut model, usual) = plain();
        let of = |build| seconds[ALL.iter().position(|&b| b == build).unwrap()];
        choose(&mut model, &usual, &|build, _| of(build));
        for &(build, found) in model.compared() {
            assert_eq!(found, of(build), "{build:?}");
        }
        (model.build(), model.compared().iter().map(|c| c.0).collect())
    }

    #[test]
    fn our_kernels_are_taken_unless_the_plain_build_is_clearly_faster() {
        let two = vec![Build::Plain, Build::Own];
        let three = vec![Build::Own, Build::Plain, Build::ChannelsLast];
        assert_eq!(chosen([1.0, 0.5, 0.4]), (Build::Own, two.clone()));
        // A difference that noise alone can cause decides nothing.
        assert_eq!(chosen([1.0, 0.96, 0.1]), (Build::Own, two.clone()));
        assert_eq!(chosen([1.0, 1.2, 0.1]), (Build::Own, two.clone()));
        assert_eq!(chosen([1.0, 2.0, 3.0]), (Build::Plain, three.clone()));
        assert_eq!(chosen([1.0, 2.0, 0.9]), (Build::Plain, three.clone()));
        assert_eq!(chosen([1.0, 2.0, 0.7]), (Build::ChannelsLast, three));
        // A multiple, but of microseconds.
        assert_eq!(chosen([2e-6, 9e-6, 1e-6]), (Build::Own, two));
    }

    #[test]
    fn a_build_that_answers_otherwise_is_not_taken_however_fast_it_is() {
        let (model, usual) = plain();
        let inputs = &usual;
        let found = run(&model, &model.plans, inputs).unwrap();
        let mut other = found.clone();
        other[0].data = Data::Fp32(vec![9.0, 9.0]);
        assert!(agree(&found, &found, TOLERANCE) && !agree(&found, &other, TOLERANCE));
        let own = model.plans.built(Build::Own).unwrap();
        assert!(agrees(&model, &own, inputs));
    }
}
