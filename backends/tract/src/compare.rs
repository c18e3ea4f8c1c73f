//! The build that is served, beside an evaluation that shares none of its rewrites.
//!
//! All builds of a model come from one rewritten graph, so comparing them with each other says
//! nothing of the rewrites. Here the graph as the file has it is run node by node, with inputs of
//! several sizes and signs and in several shapes, and the build must give the same. If it does not,
//! the model is refused, and the first node where the two part is named.
//!
//! Sums in another order differ. Whether a difference is no more than that is found out by changing
//! the inputs by as little as rounding does: what moves the outputs as far is no fault.

use crate::build::{Plan, Shapes};
use crate::error::{panic_text, text};
use crate::model::{Model, execute, values as borrowed};
use crate::tensor::from_tract;
use crate::{LoadError, RunError, Watch};
use forebay_engine::Random;
use forebay_protocol::oip::{Data, Datatype, Tensor, TensorMetadata};
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::Approximation;
use tract_onnx::tract_core::plan::eval;

/// Maximum error of a build, as a share of the largest value of the output.
const TOLERANCE: f64 = 1e-3;
/// Outputs that are all smaller than this count as this large: what is left where values of the size
/// of 1 cancel each other is rounding.
const FLOOR: f64 = 1e-3;
/// A change of the inputs as small as that of rounding.
const ROUNDING: f64 = 1e-6;
/// A difference is taken for rounding if such a change moves the outputs by this share of it.
const ROUNDED: f64 = 0.01;
/// The whole comparison ends after so long; what is large is compared with fewer inputs.
const TIME: Duration = Duration::from_millis(1500);
/// A graph whose nodes take longer than this one by one is compared with each made fast alone.
const MAX_COMPARE_TIME: Duration = Duration::from_secs(1);

/// The kind of values that generated inputs hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Usual,
    Small,
    Large,
    Negative,
    Zero,
}

const KINDS: [Kind; 5] = [Kind::Usual, Kind::Large, Kind::Negative, Kind::Small, Kind::Zero];

/// Gives the plan of a model for some shapes.
pub(crate) type Served<'a> = &'a dyn Fn(&Shapes) -> Result<Plan, RunError>;

/// The meaning of a run that fails where the graph as it is gives an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The plan differs from the graph.
    Differs,
    /// Requests of these shapes run in another plan, so that nothing is said of this one.
    FallsBack,
}

/// Compares plans of a model with its graph as it is, in these shapes; says how many runs were compared.
///
/// # Errors
/// They differ.
pub(crate) fn compare(
    model: &Model,
    (plan, failure): (Served<'_>, Failure),
    shapes: &[Shapes],
    seed: u64,
) -> Result<usize, LoadError> {
    let started = Instant::now();
    let (mut is_slow, mut compared) = (false, 0);
    for (round, shapes) in shapes.iter().enumerate() {
        let Some(mut reference) = reference(model, shapes, is_slow) else { continue };
        for (turn, kind) in KINDS.into_iter().enumerate() {
            if started.elapsed() > TIME && (round, turn) != (0, 0) {
                return Ok(compared);
            }
            let seed = seed ^ ((round * KINDS.len() + turn) as u64).wrapping_mul(0x9e37_79b9);
            let inputs = inputs(model, shapes, kind, seed);
            let limit = Limit { until: (!is_slow).then(|| Instant::now() + MAX_COMPARE_TIME) };
            let mut right = run(model, &reference, &inputs, &limit);
            if matches!(right, Err(RunError::Cancelled)) {
                is_slow = true;
                let Some(faster) = self::reference(model, shapes, true) else { break };
                reference = faster;
                right = run(model, &reference, &inputs, &|| false);
            }
            // Inputs that the graph itself does not take tell nothing.
            let Ok(right) = right else { continue };
            let found = plan(shapes).and_then(|plan| run(model, &plan, &inputs, &|| false));
            let off = match found {
                Ok(found) => difference(&found, &right),
                Err(_) if failure == Failure::FallsBack => continue,
                Err(error) => return Err(fails(shapes, kind, &error)),
            };
            compared += 1;
            if off <= TOLERANCE || is_rounding(model, &reference, &inputs, &right, off) {
                continue;
            }
            return Err(first_node((model, plan), shapes, &inputs, off, kind));
        }
    }
    Ok(compared)
}

struct Limit {
    until: Option<Instant>,
}

impl Watch for Limit {
    fn stop(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() > until)
    }
}

/// A plan of the graph as it is; `None` if it can't be built in these shapes.
fn reference(model: &Model, shapes: &Shapes, is_slow: bool) -> Option<Plan> {
    let plan = catch_unwind(AssertUnwindSafe(|| model.plans.reference(shapes, is_slow)));
    plan.ok()?.ok()
}

fn run(
    model: &Model,
    plan: &Plan,
    inputs: &[Tensor],
    watch: &dyn Watch,
) -> Result<Vec<Tensor>, RunError> {
    let inputs: Vec<&Tensor> = inputs.iter().collect();
    let values = borrowed(&inputs)?;
    let outputs = catch_unwind(AssertUnwindSafe(|| execute(plan, values, watch)))
        .unwrap_or_else(|payload| Err(RunError::Panic(panic_text(&*payload))))?;
    let outputs = model.interface.outputs.iter().zip(&outputs);
    outputs
        .map(|(output, value)| from_tract(&output.name, output.datatype, value))
        .collect::<Result<_, _>>()
        .map_err(RunError::Engine)
}

/// Whether rounding, of the inputs or of each node's outputs, moves the right outputs as far.
fn is_rounding(
    model: &Model,
    reference: &Plan,
    inputs: &[Tensor],
    right: &[Tensor],
    off: f64,
) -> bool {
    let is_enough = |moved: f64| moved >= ROUNDED * off && moved > 0.0;
    let of_inputs = run(model, reference, &nudged(inputs), &|| false);
    is_enough(of_inputs.map_or(0.0, |found| difference(&found, right)))
        || is_enough(noisy(model, reference, inputs).map_or(0.0, |found| difference(&found, right)))
}

/// The outputs where each node's are rounded, up and down in turn.
fn noisy(model: &Model, plan: &Plan, inputs: &[Tensor]) -> TractResult<Vec<Tensor>> {
    let inputs: Vec<&Tensor> = inputs.iter().collect();
    let values = borrowed(&inputs).map_err(|error| TractError::msg(text(&error)))?;
    let outputs = plan.spawn()?.run_plan_with_eval(values, |context, state, node, inputs| {
        let outputs: TVec<TValue> = eval(context, state, node, inputs)?;
        let noise = |value: TValue| -> TractResult<TValue> {
            if value.datum_type() != f32::datum_type() || node.inputs.is_empty() {
                return Ok(value);
            }
            let mut tensor = value.into_tensor();
            let mut plain = tensor.try_as_plain_ram_mut()?;
            for (place, x) in plain.as_slice_mut::<f32>()?.iter_mut().enumerate() {
                *x = rounded(f64::from(*x), place + node.id);
            }
            Ok(tensor.into_tvalue())
        };
        outputs.into_iter().map(noise).collect::<TractResult<TVec<TValue>>>()
    })?;
    let outputs = model.interface.outputs.iter().zip(&outputs);
    outputs
        .map(|(output, value)| from_tract(&output.name, output.datatype, value))
        .collect::<Result<_, _>>()
        .map_err(TractError::msg)
}

#[allow(clippy::cast_possible_truncation, reason = "to the precision of the value")]
fn rounded(x: f64, place: usize) -> f32 {
    (x * (1.0 + if place.is_multiple_of(2) { ROUNDING } else { -ROUNDING })) as f32
}

/// The error of a build that gives no answer where the graph has one.
fn fails(shapes: &Shapes, kind: Kind, error: &RunError) -> LoadError {
    LoadError::Fails {
        shapes: format!("{shapes:?}"),
        inputs: format!("{kind:?}"),
        why: error.to_string(),
    }
}

/// Inputs that are rounded.
fn nudged(inputs: &[Tensor]) -> Vec<Tensor> {
    inputs
        .iter()
        .enumerate()
        .map(|(place, input)| {
            let nudge =
                |i: usize| 1.0 + if (i + place).is_multiple_of(2) { ROUNDING } else { -ROUNDING };
            let data = match &input.data {
                Data::Fp32(data) => {
                    let each = data.iter().enumerate();
                    Data::Fp32(each.map(|(i, &x)| rounded(f64::from(x), i + place)).collect())
                }
                Data::Fp64(data) => {
                    Data::Fp64(data.iter().enumerate().map(|(i, &x)| x * nudge(i)).collect())
                }
                other => other.clone(),
            };
            Tensor { data, ..input.clone() }
        })
        .collect()
}

/// The largest difference, as a share of the largest value of its tensor.
fn difference(found: &[Tensor], right: &[Tensor]) -> f64 {
    if found.len() != right.len() {
        return f64::INFINITY;
    }
    found.iter().zip(right).map(|(found, right)| off(found, right)).fold(0.0, f64::max)
}

fn off(found: &Tensor, right: &Tensor) -> f64 {
    if found.shape != right.shape || found.data.datatype() != right.data.datatype() {
        return f64::INFINITY;
    }
    match (&found.data, &right.data) {
        (Data::Fp32(a), Data::Fp32(b)) => {
            let wide = |data: &[f32]| data.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
            relative(&wide(a), &wide(b))
        }
        (Data::Fp64(a), Data::Fp64(b)) => relative(a, b),
        (Data::Fp16(a), Data::Fp16(b)) => {
            let wide =
                |data: &[u16]| data.iter().map(|&x| f16::from_bits(x).to_f64()).collect::<Vec<_>>();
            // Three digits are all that a half has.
            relative(&wide(a), &wide(b)) / 20.0
        }
        (a, b) => {
            if a == b {
                0.0
            } else {
                f64::INFINITY
            }
        }
    }
}

fn relative(found: &[f64], right: &[f64]) -> f64 {
    let finite = |x: &&f64| x.is_finite();
    let most = right.iter().filter(finite).fold(FLOOR, |most, x| most.max(x.abs()));
    let each = found.iter().zip(right).map(|(&a, &b)| {
        let is_same = a == b || (a.is_nan() && b.is_nan());
        let off = if is_same { 0.0 } else { (a - b).abs() / most };
        if off.is_nan() { f64::INFINITY } else { off }
    });
    each.fold(0.0, f64::max)
}

/// The first node, in the order of the graph, whose output is not what it should be.
fn first_node(
    (model, plan): (&Model, Served<'_>),
    shapes: &Shapes,
    inputs: &[Tensor],
    off: f64,
    kind: Kind,
) -> LoadError {
    let parted = || -> TractResult<Option<(String, String)>> {
        let reference = model.plans.reference(shapes, true)?;
        let served = plan(shapes).map_err(|e| TractError::msg(e.to_string()))?;
        let right = nodes(&reference, inputs)?;
        let found: HashMap<_, _> =
            nodes(&served, inputs)?.into_iter().map(|(name, _, value)| (name, value)).collect();
        let differs = |(name, op, right): (String, String, TValue)| {
            let found = found.get(&name)?;
            let is_same = found.shape() == right.shape()
                && found.datum_type() == right.datum_type()
                && found.close_enough(&right, Approximation::VeryApproximate).is_ok();
            (found.shape() == right.shape() && !is_same).then_some((name, op))
        };
        Ok(right.into_iter().find_map(differs))
    };
    let parted = catch_unwind(AssertUnwindSafe(parted));
    let (node, operator) = match parted {
        Ok(Ok(Some(parted))) => parted,
        _ => ("the outputs".to_owned(), "unknown operator".to_owned()),
    };
    LoadError::Disagrees { node, operator, off: format!("{off:.1e}"), inputs: format!("{kind:?}") }
}

/// The output of each node of a plan.
fn nodes(plan: &Plan, inputs: &[Tensor]) -> TractResult<Vec<(String, String, TValue)>> {
    let inputs: Vec<&Tensor> = inputs.iter().collect();
    let values = borrowed(&inputs).map_err(|error| TractError::msg(text(&error)))?;
    let mut found = Vec::new();
    plan.spawn()?.run_plan_with_eval(values, |context, state, node, inputs| {
        let outputs: TVec<TValue> = eval(context, state, node, inputs)?;
        if let Some(first) = outputs.first() {
            found.push((node.name.clone(), node.op().name().to_string(), first.clone()));
        }
        TractResult::Ok(outputs)
    })?;
    Ok(found)
}

/// Inputs of these shapes, the same for the same seed.
pub(crate) fn inputs(model: &Model, shapes: &Shapes, kind: Kind, seed: u64) -> Vec<Tensor> {
    let made = |(place, (input, shape)): (usize, (&TensorMetadata, &Vec<usize>))| {
        let mut random = Random::new(seed.wrapping_add(place as u64) | 1);
        let count = shape.iter().product();
        let data = match input.datatype {
            Datatype::Bytes => texts(&model.interface.words, count, kind, &mut random),
            datatype => elements(datatype, count, kind, model.avoids_zero, &mut random),
        };
        Tensor { name: input.name.clone(), shape: shape.clone(), data }
    };
    model.interface.inputs.iter().zip(shapes).enumerate().map(made).collect()
}

/// Texts that the model knows, and others.
fn texts(words: &[String], count: usize, kind: Kind, random: &mut Random) -> Data {
    const OTHERS: [&str; 4] = ["", "a", "Two words", "3"];
    let mut word = || {
        let all = words.len() + OTHERS.len();
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "words are few")]
        #[allow(clippy::cast_precision_loss, reason = "words are few")]
        let place = ((random.number() * all as f64) as usize).min(all - 1);
        words.get(place).map_or_else(|| OTHERS[place - words.len()], String::as_str).to_owned()
    };
    let text = |_| match kind {
        Kind::Zero => String::new(),
        Kind::Large => format!("{} {} {}", word(), word(), word()),
        _ => word(),
    };
    Data::Bytes((0..count).map(text).collect())
}

#[allow(clippy::cast_possible_truncation, reason = "to the precision of the input")]
fn elements(
    datatype: Datatype,
    count: usize,
    kind: Kind,
    avoids_zero: bool,
    random: &mut Random,
) -> Data {
    let mut float = || {
        let value = random.number() * 2.0 - 1.0;
        match kind {
            Kind::Usual => value,
            Kind::Small => value * 1e-3,
            Kind::Large => value * 30.0,
            Kind::Negative => -value.abs() * 3.0,
            Kind::Zero => 0.0,
        }
    };
    match datatype {
        Datatype::Fp32 => Data::Fp32((0..count).map(|_| float() as f32).collect()),
        Datatype::Fp64 => Data::Fp64((0..count).map(|_| float()).collect()),
        Datatype::Fp16 => {
            Data::Fp16((0..count).map(|_| f16::from_f64(float()).to_bits()).collect())
        }
        datatype => {
            // Integers may be indices, so they stay small.
            let most = if kind == Kind::Large && datatype != Datatype::Bool { 5.0 } else { 2.0 };
            let size = datatype.size().unwrap_or(1);
            let mut bytes = vec![0; count * size];
            for element in bytes.chunks_exact_mut(size) {
                let value = if kind == Kind::Zero { 0.0 } else { random.number() * most };
                #[allow(clippy::cast_sign_loss, reason = "0 to 4")]
                let value = value as u8;
                let is_number = datatype != Datatype::Bool;
                element[0] = value.max(u8::from(avoids_zero && is_number));
            }
            Data::from_binary(datatype, count, &bytes).unwrap_or(Data::Bool(Vec::new()))
        }
    }
}

/// Inputs in the model's order, as the engine takes them.
pub(crate) fn values(inputs: &[Tensor]) -> Result<TVec<TValue>, RunError> {
    borrowed(&inputs.iter().collect::<Vec<_>>())
}

/// Whether outputs are the same, within a tolerance that is relative where numbers are larger than 1.
pub(crate) fn agree(found: &[Tensor], expected: &[Tensor], tolerance: f64) -> bool {
    let agree = |(a, b): (&Tensor, &Tensor)| {
        a.shape == b.shape && a.data.max_difference(&b.data).is_some_and(|d| d <= tolerance)
    };
    found.len() == expected.len() && found.iter().zip(expected).all(agree)
}

/// Whether a model takes inputs of such shapes at all. Shapes that its file rules out are not tried.
pub(crate) fn fits(input: &TensorMetadata, shape: &[usize]) -> bool {
    let fits =
        |(&dim, &declared): (&usize, &i64)| declared == -1 || usize::try_from(declared) == Ok(dim);
    input.shape.len() == shape.len() && shape.iter().zip(&input.shape).all(fits)
}
