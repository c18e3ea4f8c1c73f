//! The first runs of a model: they show that it works, whether its rows are independent, and its cost.

use crate::model::{Findings, Model};
use forebay_engine::batch::concatenate;
use forebay_engine::{Batching, LoadError, LoadOptions, RunError, Watch, curve, made};
use forebay_protocol::oip::{Data, Tensor, TensorMetadata, element_count};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// Maximum difference of rows run together from the same rows run alone: other kernels, other order of sums.
const ROW_TOLERANCE: f64 = 1e-3;
/// Runs that are timed of one size, unless they take longer together than the next constant.
const RUNS: usize = 7;
const RUNS_TIME: Duration = Duration::from_millis(100);
/// Time within which larger batches are timed.
const MEASURE_TIME: Duration = Duration::from_secs(2);
/// Elements of an input that is made here: beyond it a file's word for its shape is not believed.
const MAX_ELEMENTS: usize = 1 << 28;
/// Sizes of open dimensions that are tried where 1 does not fit.
const LARGER: [usize; 5] = [8, 32, 64, 128, 224];
/// Number of doublings in a row that may fail to pay before larger batches are given up.
const FAILURES: u32 = 2;

/// Inputs that fit a model, and their outputs.
struct First {
    open: usize,
    avoids_zero: bool,
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
}

/// Runs a model until all is known that a scheduler needs. `before`: bytes of this process before it was opened.
///
/// # Errors
/// It does not run with any inputs that can be made up, or the watch stopped it.
pub(crate) fn warm_up(
    mut model: Model,
    (onnx, before): (&[u8], usize),
    options: &LoadOptions,
    watch: &dyn Watch,
) -> Result<Model, LoadError> {
    let go_on = || if watch.stop() { Err(LoadError::Cancelled) } else { Ok(()) };
    let unknown = |name: &&String| !model.inputs.iter().any(|input| input.name == **name);
    if let Some(name) = options.warm_up.keys().find(unknown) {
        let text = format!("override of \"{name}\": expected the name of an input, found another");
        return Err(LoadError::Refused(text));
    }
    let may_batch = may_batch(&model, options);
    let known = options.profile.as_ref();
    let known: Option<Findings> = known.and_then(|known| serde_json::from_str(&known.0).ok());
    let first = first_run(&model, options, may_batch, &go_on)?;
    find_ranks(&mut model, &first.outputs);
    go_on()?;
    let options = &LoadOptions { open: first.open, ..options.clone() };
    let has_batches = match &known {
        Some(known) => {
            model.unbatched.clone_from(&known.unbatched);
            known.has_batches && may_batch
        }
        None => {
            if may_batch {
                model.unbatched = why_unbatched(&model, onnx, options, &first);
            }
            may_batch && model.unbatched.is_none()
        }
    };
    model.max_batch = has_batches.then_some(options.max_batch);
    let skip = usize::from(has_batches);
    model.usual = first.inputs.iter().map(|input| input.shape[skip..].to_vec()).collect();
    go_on()?;
    match known {
        Some(known) => {
            known.seconds.iter().for_each(|&(rows, seconds)| model.curve.learn(rows, seconds));
            model.grain = known.grain;
            model.held = known.memory;
            model.curve.settle();
        }
        None => {
            measure(&mut model, options, &first, watch);
            // Others may load at the same time: in the child that does this first, none do.
            model.held = model.held.max(resident().saturating_sub(before));
        }
    }
    let row: usize = first.inputs.iter().map(|input| input.data.binary_len()).sum();
    model.usually.store(row.saturating_mul(model.curve.best()), Relaxed);
    go_on()?;
    Ok(model)
}

/// Whether the first dimensions of all inputs and outputs may be rows.
fn may_batch(model: &Model, options: &LoadOptions) -> bool {
    let open = |tensor: &TensorMetadata| tensor.shape.first() == Some(&-1);
    let mut first = model.names.iter().filter_map(|names| names.first());
    let named = first.by_ref().find(|name| !name.is_empty());
    let is_one = first.all(|name| name.is_empty() || Some(name) == named);
    // Outputs of which nothing is known have as many rows as the inputs, or the first run shows otherwise.
    options.max_batch >= 2
        && is_one
        && !model.inputs.is_empty()
        && model.inputs.iter().chain(&model.outputs).all(open)
}

/// The first run that succeeds: open sizes of 1 may be too small for a model.
fn first_run(
    model: &Model,
    options: &LoadOptions,
    may_batch: bool,
    go_on: &dyn Fn() -> Result<(), LoadError>,
) -> Result<First, LoadError> {
    let larger = if options.open <= 1 && options.warm_up.is_empty() { &LARGER[..] } else { &[] };
    let mut why = None;
    for open in [options.open].into_iter().chain(larger.iter().copied()) {
        for avoids_zero in [false, true] {
            let options = LoadOptions { open, ..options.clone() };
            let inputs = inputs(model, &options, avoids_zero, may_batch.then_some(1), 0)?;
            match run(model, &inputs, &|| false) {
                Ok((outputs, _)) => return Ok(First { open, avoids_zero, inputs, outputs }),
                Err(error) => why = why.or(Some(error.to_string())),
            }
            go_on()?;
        }
    }
    let why = why.unwrap_or_default();
    let hint = "give inputs a warm_up shape if these do not fit";
    Err(LoadError::Unsupported(format!("warm-up failed ({hint}): {why}")))
}

/// Ranks of outputs of which neither file nor library give a shape, as the first run has them.
fn find_ranks(model: &mut Model, outputs: &[Tensor]) {
    let slots = model.session.outputs().iter().map(|slot| slot.has_shape);
    let without: Vec<bool> = slots.map(|has| !has).collect();
    for ((output, found), without) in model.outputs.iter_mut().zip(outputs).zip(without) {
        if without {
            output.shape = vec![-1; found.shape.len()];
        }
    }
}

/// Why rows of several requests must not run together; `None` if they may.
fn why_unbatched(
    model: &Model,
    onnx: &[u8],
    options: &LoadOptions,
    first: &First,
) -> Option<String> {
    match options.batching {
        Batching::Off => return Some("model.toml turns batching off".to_owned()),
        Batching::Trusted => (),
        Batching::Proved => {
            let parsed = LoadOptions { build: None, profile: None, ..options.clone() };
            let parsed = parsed.parse(|_| Err(()), |_| None).ok()?;
            if let Err(why) = forebay_tract::facts::rows_are_apart(onnx, &parsed) {
                return Some(why);
            }
        }
    }
    let row = |rows, from| {
        let inputs = inputs(model, options, first.avoids_zero, Some(rows), from).ok()?;
        run(model, &inputs, &|| false).ok().map(|(outputs, _)| outputs)
    };
    let is_right = || {
        let apart = concatenate(vec![first.outputs.clone(), row(1, 1)?]).ok()?;
        let together = row(2, 0)?;
        let agree = |(a, b): (&Tensor, &Tensor)| {
            a.shape == b.shape && differ(&a.data, &b.data) <= ROW_TOLERANCE
        };
        Some(apart.iter().zip(&together).all(agree))
    };
    let why = "rows that run together differ from the same rows run alone";
    (is_right() != Some(true)).then(|| why.to_owned())
}

fn differ(a: &Data, b: &Data) -> f64 {
    a.max_difference(b).unwrap_or(f64::INFINITY)
}

/// Times one row, then more, until that does not pay or takes too long.
fn measure(model: &mut Model, options: &LoadOptions, first: &First, watch: &dyn Watch) {
    let started = Instant::now();
    if let Some(seconds) = time(model, &first.inputs) {
        model.curve.learn(1, seconds);
        model.grain = Duration::try_from_secs_f64(seconds).unwrap_or_default();
    }
    let most = model.max_batch.unwrap_or(1);
    let (mut rows, mut best, mut failures) = (2, 1, 0);
    while rows <= most && rows < 1 << curve::BUCKETS && failures < FAILURES && !watch.stop() {
        let last = model.curve.seconds(rows / 2).unwrap_or(0.0);
        if started.elapsed() + Duration::from_secs_f64(4.0 * last) > MEASURE_TIME {
            break;
        }
        let made = inputs(model, options, first.avoids_zero, Some(rows), 0);
        let Some(seconds) = made.ok().and_then(|inputs| time(model, &inputs)) else { break };
        model.curve.learn(rows, seconds);
        if model.curve.pays(rows, best) {
            (best, failures) = (rows, 0);
        } else {
            failures += 1;
        }
        rows *= 2;
    }
    model.curve.settle();
}

/// Median seconds of some runs, after one that does not count.
fn time(model: &Model, inputs: &[Tensor]) -> Option<f64> {
    run(model, inputs, &|| false).ok()?;
    let started = Instant::now();
    let mut times = Vec::new();
    while times.len() < RUNS && (times.is_empty() || started.elapsed() < RUNS_TIME) {
        times.push(run(model, inputs, &|| false).ok()?.1);
    }
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied()
}

fn run(
    model: &Model,
    inputs: &[Tensor],
    watch: &dyn Watch,
) -> Result<(Vec<Tensor>, f64), RunError> {
    model.run_whole(&inputs.iter().collect::<Vec<_>>(), watch)
}

fn inputs(
    model: &Model,
    options: &LoadOptions,
    avoids_zero: bool,
    rows: Option<usize>,
    first_row: usize,
) -> Result<Vec<Tensor>, LoadError> {
    let input = |input: &TensorMetadata| {
        let shape = shape(input, options, rows).map_err(LoadError::Refused)?;
        let mut tensor = made::tensor(input, shape, first_row, &model.words);
        if avoids_zero {
            tensor.data = made::without_zeros(tensor.data);
        }
        Ok(tensor)
    };
    model.inputs.iter().map(input).collect()
}

/// The shape to warm an input up with.
fn shape(
    input: &TensorMetadata,
    options: &LoadOptions,
    rows: Option<usize>,
) -> Result<Vec<usize>, String> {
    let open = |index: usize| if index == 0 { 1 } else { options.open.max(1) };
    let dims = input.shape.iter().enumerate();
    let declared = dims.map(|(i, &dim)| usize::try_from(dim).unwrap_or_else(|_| open(i)));
    let given = options.warm_up.get(&input.name);
    let mut shape: Vec<usize> = given.cloned().unwrap_or_else(|| declared.collect());
    let name = input.name.escape_debug();
    let fits =
        |(&dim, &declared): (&usize, &i64)| declared == -1 || usize::try_from(declared) == Ok(dim);
    if shape.len() != input.shape.len() || !shape.iter().zip(&input.shape).all(fits) {
        let own = &input.shape;
        return Err(format!(
            "override of \"{name}\": expected a warm-up shape within {own:?}, found {shape:?}"
        ));
    }
    if let (Some(rows), Some(first)) = (rows, shape.first_mut()) {
        *first = rows;
    }
    if element_count(&shape).is_none_or(|count| count > MAX_ELEMENTS) {
        return Err(format!(
            "input \"{name}\": expected at most {MAX_ELEMENTS} elements, found the shape {shape:?}"
        ));
    }
    Ok(shape)
}

/// Bytes of this process in memory; 0 where that is not to be had.
pub(crate) fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|number| number.parse::<usize>().ok()).unwrap_or(0).saturating_mul(1024)
}
