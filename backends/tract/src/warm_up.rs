//! The first runs of a model: they show that it works, whether its rows are independent, and its cost.
//!
//! Otherwise the first clients would pay for this. All of it is bounded in time; a batch size that there was
//! no time to measure counts as not worth joining.

use crate::build::{Build, Shapes};
use crate::choice;
use crate::compare::{self, Failure, agree, values};
use crate::error::panic_text;
use crate::model::Model;
use crate::open::{Dims, Named};
use crate::options::{LoadOptions, Profile};
use crate::pad::Padding;
use crate::rows::{self, Mixing};
use crate::{Batching, LoadError, RunError, Watch};
use forebay_engine::batch::concatenate;
use forebay_engine::curve;
use forebay_engine::made;
use forebay_protocol::oip::{Tensor, TensorMetadata, element_count};
use std::borrow::Cow;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tract_onnx::prelude::*;

/// Maximum difference of rows run together from the same rows run alone: other kernels, other order of sums.
/// Rows that see each other differ by far more.
const ROW_TOLERANCE: f64 = 1e-3;
/// Runs that are timed of one plan, unless they take longer together than the next constant.
const RUNS: usize = 7;
const RUNS_TIME: Duration = Duration::from_millis(100);
/// Time within which larger batches are compiled and timed.
const MEASURE_TIME: Duration = Duration::from_secs(2);
/// Elements of an input that is made here: beyond it a file's word for its shape is not believed.
const MAX_ELEMENTS: usize = 1 << 28;
/// Sizes in which plans are compared where each size has a plan of its own.
const CLOSED_SIZES: usize = 3;
/// Sizes of open dimensions that are tried where 1 does not fit.
const LARGER: [usize; 5] = [8, 32, 64, 128, 224];
/// Number of doublings in a row that may fail to pay before larger batches are given up.
const FAILURES: u32 = 2;

/// Compiles the first plan, runs it, and finds out the rest.
pub(crate) fn warm_up(
    model: &mut Model,
    options: &LoadOptions,
    watch: &dyn Watch,
) -> Result<(), LoadError> {
    let go_on = || if watch.stop() { Err(LoadError::Cancelled) } else { Ok(()) };
    for name in options.warm_up.keys() {
        if !model.interface.inputs.iter().any(|input| input.name == *name) {
            let (name, found) = (name.clone(), "no such input".to_owned());
            let expected = "the name of an input".to_owned();
            return Err(LoadError::Override { name, expected, found });
        }
    }
    let open = |tensor: &TensorMetadata| tensor.shape.first() == Some(&-1);
    let mut tensors = model.interface.inputs.iter().chain(&model.interface.outputs);
    let may_batch = options.max_batch >= 2
        && !model.interface.inputs.is_empty()
        && model.interface.is_one_batch
        && tensors.all(open);
    let known = options.profile.as_ref();
    let given = options.build.or(known.map(|known| known.build));
    if let Some(plans) = given.and_then(|build| model.plans.built(build)) {
        model.plans = plans;
    }
    go_on()?;
    let (options, inputs, alone) = first_run(model, options, may_batch, &go_on)?;
    let options = &*options;
    model.phases.end("first run");
    go_on()?;
    let has_batches = match known {
        Some(known) => {
            model.unbatched.clone_from(&known.unbatched);
            known.has_batches && may_batch
        }
        None => {
            if given.is_none() {
                choice::choose(model, &inputs);
                model.phases.end("choose a build");
            }
            go_on()?;
            compare_builds(model, options, may_batch)?;
            model.phases.end("compare");
            go_on()?;
            if may_batch {
                model.unbatched = why_unbatched(model, options, alone);
                model.phases.end("prove rows");
            }
            may_batch && model.unbatched.is_none()
        }
    };
    model.max_batch = has_batches.then_some(options.max_batch);
    let skip = usize::from(has_batches);
    model.usual = inputs.iter().map(|input| input.shape[skip..].to_vec()).collect();
    go_on()?;
    let usual = inputs.iter().map(|input| input.shape.clone()).collect();
    // Before batches are measured: it runs them as well, so that none is compiled for each of their sizes.
    open_sizes(model, known, &usual)?;
    model.phases.end("plan for all sizes");
    go_on()?;
    match known {
        Some(known) => recall(model, options, known),
        None => measure(model, options, &inputs),
    }
    model.phases.end("measure");
    go_on()?;
    pad(model, options, known.is_some(), &usual)
}

/// Options, inputs and outputs.
type FirstRun<'a> = (Cow<'a, LoadOptions>, Vec<Tensor>, Vec<Tensor>);

/// The first run that succeeds: open sizes of 1 may be too small for a model.
fn first_run<'a>(
    model: &mut Model,
    options: &'a LoadOptions,
    may_batch: bool,
    go_on: &dyn Fn() -> Result<(), LoadError>,
) -> Result<FirstRun<'a>, LoadError> {
    let mut tried = |options: &LoadOptions| -> Result<_, LoadError> {
        let mut first = None;
        for avoids_zero in [false, true] {
            // The model may divide by an input.
            model.avoids_zero = avoids_zero;
            let inputs = inputs(model, options, may_batch.then_some(1), 0)?;
            match run(model, &inputs, &|| false) {
                Ok((outputs, _)) => return Ok(Ok((inputs, outputs))),
                Err(error) => first = first.or(Some(error)),
            }
            go_on()?;
        }
        Ok(Err(first.map_or_else(String::new, |error| error.to_string())))
    };
    let why = match tried(options)? {
        Ok((inputs, outputs)) => return Ok((Cow::Borrowed(options), inputs, outputs)),
        Err(why) => why,
    };
    if options.open <= 1 && options.warm_up.is_empty() {
        for open in LARGER {
            let larger = LoadOptions { open, ..options.clone() };
            if let Ok((inputs, outputs)) = tried(&larger)? {
                return Ok((Cow::Owned(larger), inputs, outputs));
            }
        }
    }
    Err(LoadError::WarmUp(why))
}

/// Finds out whether requests that are filled up are answered as without.
fn pad(
    model: &mut Model,
    options: &LoadOptions,
    is_known: bool,
    usual: &Shapes,
) -> Result<(), LoadError> {
    let name = || options.pad.keys().next().cloned().unwrap_or_default();
    let wrong = |expected: String, found: &str| LoadError::Override {
        name: name(),
        expected,
        found: found.to_owned(),
    };
    let padding = Padding::new(&model.interface, &options.pad);
    let Some(padding) = padding.map_err(|expected| wrong(expected, "pad"))? else { return Ok(()) };
    let dims = Dims::new(&model.interface.inputs, &model.interface.names);
    if model.max_batch.is_some()
        && !is_known
        && let Some(dims) = dims
    {
        let mut sizes = dims.sizes(usual);
        for (length, longer) in [(2, 3), (5, 9), (16, 17)] {
            let sized = sizes.iter_mut().filter(|named| named.name == padding.name);
            sized.for_each(|named| named.size = length);
            let shapes = dims.shapes(&sizes);
            let mut made = compare::inputs(model, &shapes, compare::Kind::Usual, model.seed);
            // A mask of nothing but zeros may be answered with NaN.
            made.iter_mut().for_each(|input| input.data = made::without_zeros(input.data.clone()));
            let made: Vec<&Tensor> = made.iter().collect();
            let never = || false;
            let Ok(alone) = model.run_joined(vec![made.clone()], 1, &never) else { continue };
            let filled = padding.fill(&made, longer);
            let filled = filled.and_then(|filled| {
                let outputs = model.run_joined(vec![filled.iter().collect()], 1, &never)?;
                outputs.into_iter().map(|outputs| padding.cut(outputs, length)).collect()
            });
            let is_same = filled.is_ok_and(|filled: Vec<Vec<Tensor>>| {
                filled.iter().zip(&alone).all(|(a, b)| agree(a, b, ROW_TOLERANCE))
            });
            if !is_same {
                let expected = "inputs that can be filled up without changing answers".to_owned();
                return Err(wrong(expected, &format!("others of {length} filled up to {longer}")));
            }
        }
    }
    model.padding = Some(padding);
    Ok(())
}

/// Takes over what was measured before, and compiles the batch that will be used most.
fn recall(model: &mut Model, options: &LoadOptions, known: &Profile) {
    known.seconds.iter().for_each(|&(rows, seconds)| model.curve.learn(rows, seconds));
    model.curve.settle();
    model.grain = known.grain;
    model.compared.clone_from(&known.compared);
    let best = model.curve.best();
    if best > 1
        && let Ok(inputs) = inputs(model, options, Some(best), 0)
    {
        // If it fails now, it fails for those who are joined, and they are tried alone.
        drop(run(model, &inputs, &|| false));
    }
}

/// Compares the build with the graph as it is, in several shapes. If it was chosen for its speed, the
/// plain one may still be right.
fn compare_builds(
    model: &mut Model,
    options: &LoadOptions,
    may_batch: bool,
) -> Result<(), LoadError> {
    let mut all: Vec<Shapes> = Vec::new();
    for (rows, open) in [(1, options.open), (3, options.open)] {
        let shape = |input: &TensorMetadata| {
            let given = options.warm_up.get(&input.name).filter(|_| open == options.open);
            let rows = may_batch.then_some(rows);
            warm_up_shape(input, given, open, rows)
        };
        let shapes = model.interface.inputs.iter().map(shape).collect::<Result<Shapes, _>>()?;
        let fits =
            model.interface.inputs.iter().zip(&shapes).all(|(i, shape)| compare::fits(i, shape));
        if fits && !all.contains(&shapes) {
            all.push(shapes);
        }
    }
    let found = compare_closed(model, &all);
    if found.is_err()
        && options.build.is_none()
        && let Some(plain) = model.plans.built(Build::Plain)
    {
        model.plans = plain;
        return compare_closed(model, &all);
    }
    found
}

/// Compares the plans that are made for each of these shapes.
fn compare_closed(model: &Model, shapes: &[Shapes]) -> Result<(), LoadError> {
    let plan = |shapes: &Shapes| model.plans.closed(shapes).map(|chosen| chosen.plan);
    compare::compare(model, (&plan, Failure::Differs), shapes, model.seed).map(drop)
}

/// Compiles one plan for all sizes, and compares it with the graph as it is in several of them. Where
/// there is no such plan, plans for some sizes are compared instead, as they will be served.
fn open_sizes(model: &mut Model, known: Option<&Profile>, usual: &Shapes) -> Result<(), LoadError> {
    let dims = Dims::new(&model.interface.inputs, &model.interface.names);
    let Some(dims) = dims.filter(|dims| model.max_batch.is_none() || !dims.is_batch_only()) else {
        return Ok(());
    };
    if let Some(known) = known {
        model.closed.clone_from(&known.closed);
        if known.closed.is_none() {
            model.closed = model.plans.open(dims, usual).err().map(|error| error.to_string());
        }
        return Ok(());
    }
    let shapes = other_sizes(&dims, usual);
    let found = match model.plans.open(dims, usual) {
        Ok(()) => {
            let open = model.plans.opened();
            let plan = |_: &Shapes| {
                let open = open.ok_or_else(|| RunError::Shape("no plan".to_owned()))?;
                Ok(Arc::clone(&open.plan))
            };
            match compare::compare(model, (&plan, Failure::FallsBack), &shapes, model.seed) {
                Ok(0) => Err("it could not be compared with the file's graph".to_owned()),
                Ok(_) => Ok(()),
                Err(error) => Err(error.to_string()),
            }
        }
        Err(error) => Err(error.to_string()),
    };
    if let Err(why) = found {
        model.closed = Some(why);
        model.plans.close();
        compare_closed(model, &shapes[..shapes.len().min(CLOSED_SIZES)])?;
        model.plans.keep(|shapes| shapes == usual);
    }
    Ok(())
}

/// Shapes to compare one plan for all sizes in: the usual ones, larger and smaller ones. Sizes of
/// different names differ.
fn other_sizes(dims: &Dims, usual: &Shapes) -> Vec<Shapes> {
    let size = |round: usize, place: usize, named: &Named| match (round, named.is_first) {
        (0, _) => named.size,
        (_, true) => 1 + round % 3,
        (1, _) => named.size + 1 + place,
        (2, _) => 2 * named.size + 3 + 2 * place,
        (3, _) => 1,
        _ => named.size.max(7) + 5 * place,
    };
    let known = dims.sizes(usual);
    let round = |round: usize| {
        let sized = known.iter().enumerate().map(|(place, named)| {
            let size = size(round, place, named);
            Named { size, ..named.clone() }
        });
        dims.shapes(&sized.collect::<Vec<_>>())
    };
    // Not the usual ones first: there may be time for one only.
    let mut shapes: Vec<Shapes> = [1, 0, 2, 3, 4].map(round).into();
    let is_small = |shapes: &Shapes| {
        let count = |shape: &Vec<usize>| element_count(shape).is_some_and(|n| n <= MAX_ELEMENTS);
        shapes.iter().all(count)
    };
    shapes.retain(is_small);
    shapes.dedup();
    shapes
}

/// Why rows of several requests must not run together; `None` if they may.
fn why_unbatched(model: &Model, options: &LoadOptions, alone: Vec<Tensor>) -> Option<String> {
    match options.batching {
        Batching::Off => return Some("model.toml turns batching off".to_owned()),
        Batching::Trusted => (),
        Batching::Proved => {
            if let Err(mixing) = prove(model, options) {
                return Some(mixing.to_string());
            }
        }
    }
    let is_right = rows_are_independent(model, options, alone);
    (!is_right).then(|| "rows that run together differ from the same rows run alone".to_owned())
}

/// Proves that rows are independent.
pub(crate) fn prove(model: &Model, options: &LoadOptions) -> Result<(), Mixing> {
    let graphs = OfRows { model, options };
    catch_unwind(AssertUnwindSafe(|| rows::prove(&graphs, options.max_batch))).unwrap_or_else(
        |payload| {
            let why = format!("can't be read: {}", panic_text(&*payload));
            Err(Mixing { node: String::new(), op: "the graph".to_owned(), why })
        },
    )
}

/// A model's graph for any number of rows, in the shapes of its warm-up.
struct OfRows<'a> {
    model: &'a Model,
    options: &'a LoadOptions,
}

impl OfRows<'_> {
    fn shapes(&self, rows: usize) -> TractResult<Shapes> {
        let Self { model, options } = self;
        let shape = |input: &TensorMetadata| {
            warm_up_shape(input, options.warm_up.get(&input.name), options.open, Some(rows))
                .map_err(|error| TractError::msg(error.to_string()))
        };
        model.interface.inputs.iter().map(shape).collect()
    }
}

impl rows::Graphs for OfRows<'_> {
    fn typed(&self, rows: usize) -> TractResult<TypedModel> {
        self.model.plans.typed(&self.shapes(rows)?)
    }

    fn analysed(&self, rows: usize) -> TractResult<InferenceModel> {
        self.model.plans.analysed(&self.shapes(rows)?)
    }
}

fn rows_are_independent(model: &Model, options: &LoadOptions, alone: Vec<Tensor>) -> bool {
    let row = |rows, first| {
        let inputs = inputs(model, options, Some(rows), first).ok()?;
        run(model, &inputs, &|| false).ok().map(|(outputs, _)| outputs)
    };
    let (Some(other), Some(pair)) = (row(1, 1), row(2, 0)) else { return false };
    concatenate(vec![alone, other]).is_ok_and(|apart| agree(&apart, &pair, ROW_TOLERANCE))
}

/// Times one row, then more, until that does not pay or takes too long.
fn measure(model: &mut Model, options: &LoadOptions, one: &[Tensor]) {
    let started = Instant::now();
    let grain = Grain::default();
    if let Some(seconds) = time(model, one, &grain) {
        model.curve.learn(1, seconds);
    }
    model.grain = grain.longest.get();
    let most = model.max_batch.unwrap_or(1);
    let (mut rows, mut best, mut failures) = (2, 1, 0);
    while rows <= most && rows < 1 << curve::BUCKETS && failures < FAILURES {
        let last = model.curve.seconds(rows / 2).unwrap_or(0.0);
        // Two layouts of time for compiling and for running: a guess, which only has to be bounded.
        if started.elapsed() + Duration::from_secs_f64(4.0 * last) > MEASURE_TIME {
            break;
        }
        let Ok(inputs) = inputs(model, options, Some(rows), 0) else { break };
        if model.plans.opened().is_some_and(|open| open.build == Build::Plain) {
            // One of its own is faster there.
            drop(model.plans.closed(&inputs.iter().map(|input| input.shape.clone()).collect()));
        }
        let Some(seconds) = time(model, &inputs, &|| false) else { break };
        model.curve.learn(rows, seconds);
        if model.curve.pays(rows, best) {
            (best, failures) = (rows, 0);
        } else {
            failures += 1;
        }
        rows *= 2;
    }
    model.curve.settle();
    let best = model.curve.best();
    if model.max_batch.is_some() {
        let is_open = model.plans.opened().is_some_and(|open| open.build != Build::Plain);
        let most = if is_open { 1 } else { best };
        model.plans.keep(|shapes| shapes.iter().all(|shape| shape[0] <= most));
    }
}

/// Median seconds of some runs, after one that does not count.
fn time(model: &Model, inputs: &[Tensor], watch: &dyn Watch) -> Option<f64> {
    run(model, inputs, &|| false).ok()?;
    let started = Instant::now();
    let mut times = Vec::new();
    while times.len() < RUNS && (times.is_empty() || started.elapsed() < RUNS_TIME) {
        times.push(run(model, inputs, watch).ok()?.1);
        // There is no check after the last node, which may be the longest.
        watch.stop();
    }
    Some(median(times))
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::INFINITY)
}

/// Runs inputs as they are, in the model's order.
fn run(
    model: &Model,
    inputs: &[Tensor],
    watch: &dyn Watch,
) -> Result<(Vec<Tensor>, f64), RunError> {
    let shapes: Shapes = inputs.iter().map(|input| input.shape.clone()).collect();
    model.run_plan(&shapes, &|| values(inputs), watch)
}

/// Finds the longest time between two questions.
#[derive(Default)]
struct Grain {
    asked: Cell<Option<Instant>>,
    longest: Cell<Duration>,
}

impl Watch for Grain {
    fn stop(&self) -> bool {
        let now = Instant::now();
        if let Some(asked) = self.asked.replace(Some(now)) {
            self.longest.set(self.longest.get().max(now - asked));
        }
        false
    }
}

pub(crate) fn inputs(
    model: &Model,
    options: &LoadOptions,
    batch: Option<usize>,
    first_row: usize,
) -> Result<Vec<Tensor>, LoadError> {
    let input = |input: &TensorMetadata| {
        let shape = warm_up_shape(input, options.warm_up.get(&input.name), options.open, batch)?;
        let mut tensor = made::tensor(input, shape, first_row, &model.interface.words);
        if model.avoids_zero {
            tensor.data = made::without_zeros(tensor.data);
        }
        Ok(tensor)
    };
    model.interface.inputs.iter().map(input).collect()
}

fn warm_up_shape(
    input: &TensorMetadata,
    given: Option<&Vec<usize>>,
    open: usize,
    batch: Option<usize>,
) -> Result<Vec<usize>, LoadError> {
    let open = |index: usize| if index == 0 { 1 } else { open.max(1) };
    let dims = input.shape.iter().enumerate();
    let declared = dims.map(|(i, &dim)| usize::try_from(dim).unwrap_or_else(|_| open(i)));
    let mut shape: Vec<usize> = match given {
        Some(given) => given.clone(),
        None => declared.collect(),
    };
    let fits =
        |(&dim, &declared): (&usize, &i64)| declared == -1 || usize::try_from(declared) == Ok(dim);
    if shape.len() != input.shape.len() || !shape.iter().zip(&input.shape).all(fits) {
        return Err(LoadError::Override {
            name: input.name.clone(),
            expected: format!("a warm-up shape within {:?}", input.shape),
            found: format!("{shape:?}"),
        });
    }
    if let (Some(batch), Some(first)) = (batch, shape.first_mut()) {
        *first = batch;
    }
    if element_count(&shape).is_none_or(|count| count > MAX_ELEMENTS) {
        let name = input.name.escape_debug();
        return Err(LoadError::WarmUp(format!(
            "input \"{name}\": expected at most {MAX_ELEMENTS} elements, found the shape {shape:?}"
        )));
    }
    Ok(shape)
}

#[cfg(test)]
mod tests;
