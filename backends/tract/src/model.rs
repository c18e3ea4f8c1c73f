//! A model that is loaded, and its runs.

use crate::build::{Build, Plan, Shapes};
use crate::error::{panic_text, text};
use crate::graph::Interface;
use crate::options::Profile;
use crate::pad::Padding;
use crate::phases::Phases;
use crate::plan::Plans;
use crate::sound::BadValue;
use crate::tensor::{from_tract, to_tract};
use crate::{Curve, Fallback, Form, RunError, Watch};
use forebay_engine::Trend;
use forebay_engine::batch::{Joined, check_rows, concatenate, cut};
use forebay_engine::curve::Piece;
use forebay_protocol::oip::{Tensor, TensorMetadata};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::plan::eval;

/// The time of one node of a compiled graph.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeTime {
    /// Its name, after the node of the file that it was made of.
    pub name: String,
    /// Kind of operation.
    pub op: String,
    /// Least seconds.
    pub seconds: f64,
}

/// Makes the inputs of a run, once for each build that it is tried in.
pub(crate) type Values<'a> = &'a dyn Fn() -> Result<TVec<TValue>, RunError>;

/// A loaded, compiled and warmed model. All threads may share one.
pub struct Model {
    pub(crate) interface: Interface,
    pub(crate) plans: Plans,
    pub(crate) max_batch: Option<usize>,
    /// Why there are no batches, where there might have been.
    pub(crate) unbatched: Option<String>,
    /// Why there is no plan for all sizes, where there might have been.
    pub(crate) closed: Option<String>,
    /// The way in which requests of similar lengths are joined.
    pub(crate) padding: Option<Padding>,
    pub(crate) curve: Curve,
    /// The cost of runs of other shapes than the usual, by the elements of their inputs.
    pub(crate) odd: Trend,
    /// Input shapes of the warm-up, without the batch.
    pub(crate) usual: Shapes,
    /// Longest time between two questions to a [`Watch`].
    pub(crate) grain: Duration,
    /// Least seconds of one row in each build that was compared.
    pub(crate) compared: Vec<(Build, f64)>,
    /// Whether integers that are made here must not be 0, as where the model divides by them.
    pub(crate) avoids_zero: bool,
    /// Of the file, for inputs that are made here.
    pub(crate) seed: u64,
    pub(crate) runs: Runs,
    /// Of the load.
    pub(crate) phases: Phases,
}

/// Runs that are under way.
#[derive(Default)]
pub(crate) struct Runs {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Runs {
    fn enter(&self) -> Running<'_> {
        let now = self.now.fetch_add(1, Relaxed) + 1;
        if now > self.most.load(Relaxed) {
            self.most.fetch_max(now, Relaxed);
        }
        Running(self)
    }

    /// The most that there were at once.
    fn most(&self) -> usize {
        self.most.load(Relaxed)
    }
}

struct Running<'a>(&'a Runs);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Relaxed);
    }
}

impl Model {
    /// Inputs in the model's order; -1 for a dimension that may vary.
    pub fn inputs(&self) -> &[TensorMetadata] {
        &self.interface.inputs
    }

    /// Outputs in the model's order.
    pub fn outputs(&self) -> &[TensorMetadata] {
        &self.interface.outputs
    }

    /// Most rows in one request, if the first dimension of all tensors is a batch of independent
    /// rows; `None` if the model knows no batch.
    pub fn max_batch(&self) -> Option<usize> {
        self.max_batch
    }

    /// Why requests are not joined, of a model whose first dimensions are all open.
    pub fn unbatched(&self) -> Option<&str> {
        self.unbatched.as_deref()
    }

    /// Why a plan is compiled for each new shape, of a model that leaves sizes open; `None` if one plan
    /// runs all of them.
    pub fn closed(&self) -> Option<&str> {
        self.closed.as_deref()
    }

    /// The cost of batches of the usual shapes; of a model without batches, of one request.
    pub fn curve(&self) -> &Curve {
        &self.curve
    }

    /// Longest time between two questions to a [`Watch`], as it was measured with one row.
    pub fn grain(&self) -> Duration {
        self.grain
    }

    /// The parts of the load, in their order, and the time of each.
    pub fn phases(&self) -> &[(&'static str, Duration)] {
        self.phases.ended()
    }

    /// The build that runs the model wherever its shapes allow it.
    pub fn build(&self) -> Build {
        self.plans.build()
    }

    /// Least seconds of one row in each build that was compared; none where it was not measured.
    pub fn compared(&self) -> &[(Build, f64)] {
        &self.compared
    }

    /// Bytes of memory that it holds now: each weight once, all plans that are kept or run, and what
    /// as many runs hold as have been under way at once.
    pub fn memory(&self) -> usize {
        self.plans.weights().bytes(self.runs.most().max(1))
    }

    /// Forgets plans, those first that were not used for longest, until it holds so many bytes less
    /// or has only one left: the next request of such shapes waits for another.
    pub fn release(&self, bytes: usize) {
        self.plans.shrink(self.plans.weights().bytes(0).saturating_sub(bytes));
    }

    /// Plans that were compiled so far, and the time that this took.
    pub fn compilations(&self) -> (u64, Duration) {
        self.plans.compilations()
    }

    /// Rises whenever [`Model::memory`] may have changed.
    pub fn memory_changes(&self) -> u64 {
        self.plans.changes()
    }

    /// Number of shapes that run in the plain build, because the model's own build has no plan for them or
    /// failed on them.
    pub fn fallbacks(&self) -> u64 {
        self.plans.fallbacks()
    }

    /// The first of those fallbacks; `None` from then on.
    pub fn take_fallback(&self) -> Option<Fallback> {
        self.plans.take_fallback()
    }

    /// The profile to load the same model with the next time.
    pub fn profile(&self) -> Profile {
        Profile {
            build: self.build(),
            compared: self.compared.clone(),
            has_batches: self.max_batch.is_some(),
            unbatched: self.unbatched.clone(),
            closed: self.closed.clone(),
            seconds: self.curve.known().collect(),
            grain: self.grain,
        }
    }

    /// Rows of a request, and what it can be joined with. Of a model without batches every request
    /// is one row, which can be joined with none.
    ///
    /// # Errors
    /// The inputs are not the model's.
    pub fn form(&self, inputs: &[Tensor]) -> Result<(usize, Form), RunError> {
        let inputs = self.in_order(inputs)?;
        let batched = self.max_batch.is_some();
        let rows = if batched { Joined::new(vec![inputs.clone()])?.rows() } else { 1 };
        let shape = |input: &&Tensor| input.shape[usize::from(batched)..].to_vec();
        let mut shapes: Shapes = inputs.iter().map(shape).collect();
        let is_usual = shapes == self.usual;
        if let Some(padding) = self.padding.as_ref().filter(|_| batched) {
            padding.round(&mut shapes, 1);
        }
        Ok((rows, Form::new(shapes, is_usual)))
    }

    /// Mean seconds that so many rows of this form are expected to take.
    pub fn expected(&self, form: &Form, rows: usize) -> f64 {
        self.scaled(form, rows, Curve::expected, Trend::expected)
    }

    /// Time that no run of a request of this form was ever below; zero if that is not known.
    pub fn least(&self, form: &Form) -> Duration {
        // The least of all runs of one row is known; more rows take no less.
        if form.is_usual() { self.curve.least() } else { Duration::ZERO }
    }

    /// Seconds within which nearly all runs of so many rows of this form end.
    pub fn careful(&self, form: &Form, rows: usize) -> f64 {
        self.scaled(form, rows, Curve::careful, Trend::careful)
    }

    #[allow(clippy::cast_precision_loss, reason = "rows are few")]
    fn scaled(
        &self,
        form: &Form,
        rows: usize,
        usual: fn(&Curve, usize, usize) -> f64,
        odd: fn(&Trend, f64) -> Option<f64>,
    ) -> f64 {
        let most = self.curve.best();
        if form.is_usual() {
            return usual(&self.curve, rows, most);
        }
        let size = elements(form.shapes());
        // As if it were so much larger, until any have run.
        let proportion = size / elements(&self.usual).max(1.0);
        let odd = odd(&self.odd, size * rows as f64);
        odd.unwrap_or_else(|| usual(&self.curve, rows, most) * proportion)
    }

    /// Runs requests on the calling thread, as one batch where the model has batches. `watch` is
    /// asked between nodes of the graph. No more than `most` rows run at once.
    ///
    /// Inputs may come in any order and must be those of [`Model::inputs`]; requests must be of the
    /// same [`Form`]. Outputs come in the model's order, for each request its own.
    ///
    /// # Errors
    /// The inputs do not fit, the watch stopped the run, or the engine failed; a panic is contained.
    pub fn run(
        &self,
        requests: &[&[Tensor]],
        most: usize,
        watch: &dyn Watch,
    ) -> Result<Vec<Vec<Tensor>>, RunError> {
        let requests = requests.iter().map(|inputs| self.in_order(inputs));
        let requests = requests.collect::<Result<Vec<_>, _>>()?;
        if requests.is_empty() {
            return Ok(Vec::new());
        }
        if self.max_batch.is_none() {
            return requests.iter().map(|inputs| self.run_whole(inputs, watch)).collect();
        }
        match &self.padding {
            Some(padding) => self.run_padded(padding, requests, most, watch),
            None => self.run_joined(requests, most, watch),
        }
    }

    /// Requests of near lengths, at the greatest of their lengths.
    fn run_padded(
        &self,
        padding: &Padding,
        requests: Vec<Vec<&Tensor>>,
        most: usize,
        watch: &dyn Watch,
    ) -> Result<Vec<Vec<Tensor>>, RunError> {
        let lengths: Vec<usize> = requests.iter().map(|inputs| padding.length(inputs)).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        if lengths.iter().all(|&length| length == longest) {
            return self.run_joined(requests, most, watch);
        }
        let filled = requests.iter().map(|inputs| padding.fill(inputs, longest));
        let filled = filled.collect::<Result<Vec<_>, _>>()?;
        let filled = filled.iter().map(|inputs| inputs.iter().collect()).collect();
        let outputs = self.run_joined(filled, most, watch)?;
        outputs
            .into_iter()
            .zip(lengths)
            .map(|(outputs, length)| padding.cut(outputs, length))
            .collect()
    }

    pub(crate) fn run_joined(
        &self,
        requests: Vec<Vec<&Tensor>>,
        most: usize,
        watch: &dyn Watch,
    ) -> Result<Vec<Vec<Tensor>>, RunError> {
        let joined = Joined::new(requests)?;
        let mut parts = Vec::new();
        let mut start = 0;
        for piece in self.pieces(&joined, most) {
            let range = start..start + piece.rows;
            let shapes: Shapes =
                (0..self.interface.inputs.len()).map(|i| joined.shape(i, piece.bucket)).collect();
            let values = || {
                let input = |index| -> Result<TValue, RunError> {
                    let input = joined.input(index, range.clone(), piece.bucket)?;
                    let made = to_tract(&input.data, input.elements, &input.shape);
                    Ok(made.map_err(RunError::Input)?.into_tvalue())
                };
                (0..shapes.len()).map(input).collect()
            };
            let (outputs, seconds) = self.run_plan(&shapes, &values, watch)?;
            check_rows(&outputs, piece.bucket)?;
            if shapes.iter().map(|shape| &shape[1..]).eq(self.usual.iter().map(Vec::as_slice)) {
                self.curve.learn(piece.bucket, seconds);
            } else {
                self.odd.learn(elements(&shapes), seconds);
            }
            parts.push(match piece.rows {
                rows if rows < piece.bucket => {
                    outputs.iter().map(|output| cut(output, 0..rows)).collect::<Result<_, _>>()?
                }
                _ => outputs,
            });
            start = range.end;
        }
        joined.split(concatenate(parts)?)
    }

    /// Cuts a batch; where one plan runs all sizes, nothing is gained by padding to another size.
    fn pieces(&self, joined: &Joined<'_>, most: usize) -> Vec<Piece> {
        let (rows, most) = (joined.rows(), most.max(1));
        let shapes: Shapes = (0..self.interface.inputs.len()).map(|i| joined.shape(i, 1)).collect();
        let is_usual =
            shapes.iter().map(|shape| &shape[1..]).eq(self.usual.iter().map(Vec::as_slice));
        if is_usual || self.plans.open_for(&shapes).is_none() {
            return self.curve.cover(rows, most);
        }
        let piece =
            |first: usize| Piece { rows: most.min(rows - first), bucket: most.min(rows - first) };
        (0..rows).step_by(most).map(piece).collect()
    }

    fn run_whole(&self, inputs: &[&Tensor], watch: &dyn Watch) -> Result<Vec<Tensor>, RunError> {
        let shapes: Shapes = inputs.iter().map(|input| input.shape.clone()).collect();
        let (outputs, seconds) = self.run_plan(&shapes, &|| values(inputs), watch)?;
        if shapes == self.usual {
            self.curve.learn(1, seconds);
        } else {
            self.odd.learn(elements(&shapes), seconds);
        }
        Ok(outputs)
    }

    /// Outputs, and seconds in the engine.
    pub(crate) fn run_plan(
        &self,
        shapes: &Shapes,
        values: Values<'_>,
        watch: &dyn Watch,
    ) -> Result<(Vec<Tensor>, f64), RunError> {
        self.run_in(&self.plans, shapes, values, watch)
    }

    /// The same with plans that need not be the model's own. A run that fails in another build than the
    /// plain one is repeated in the plain one.
    pub(crate) fn run_in(
        &self,
        plans: &Plans,
        shapes: &Shapes,
        values: Values<'_>,
        watch: &dyn Watch,
    ) -> Result<(Vec<Tensor>, f64), RunError> {
        let chosen = plans.get(shapes)?;
        match self.run_once(&chosen.plan, values()?, watch) {
            Err(RunError::Engine(_) | RunError::Panic(_)) if chosen.is_open => {
                // A plan for these shapes alone may do what one for all shapes can't.
                let chosen = plans.closed(shapes)?;
                let ran = self.run_once(&chosen.plan, values()?, watch);
                self.or_plain(plans, (shapes, chosen.build), ran, values, watch)
            }
            ran => self.or_plain(plans, (shapes, chosen.build), ran, values, watch),
        }
    }

    fn or_plain(
        &self,
        plans: &Plans,
        (shapes, build): (&Shapes, Build),
        ran: Result<(Vec<Tensor>, f64), RunError>,
        values: Values<'_>,
        watch: &dyn Watch,
    ) -> Result<(Vec<Tensor>, f64), RunError> {
        match ran {
            Err(error @ (RunError::Engine(_) | RunError::Panic(_))) if build != Build::Plain => {
                let ran = self.run_once(&plans.plain(shapes)?, values()?, watch)?;
                // Where the plain build fails as well, the input is what is wrong.
                plans.fall_back(shapes, &error);
                Ok(ran)
            }
            ran => ran,
        }
    }

    fn run_once(
        &self,
        plan: &Plan,
        values: TVec<TValue>,
        watch: &dyn Watch,
    ) -> Result<(Vec<Tensor>, f64), RunError> {
        let _running = self.runs.enter();
        let (started, before) = (Instant::now(), watch.elsewhere());
        let outputs = catch_unwind(AssertUnwindSafe(|| execute(plan, values, watch)))
            .unwrap_or_else(|payload| Err(RunError::Panic(panic_text(&*payload))))?;
        let elsewhere = watch.elsewhere().saturating_sub(before);
        let took = started.elapsed().saturating_sub(elsewhere);
        let outputs = self
            .interface
            .outputs
            .iter()
            .zip(&outputs)
            .map(|(output, value)| from_tract(&output.name, output.datatype, value))
            .collect::<Result<_, _>>()
            .map_err(RunError::Engine)?;
        Ok((outputs, took.as_secs_f64()))
    }

    /// Least time of each node of the graph in some runs of these inputs, in the order of execution.
    ///
    /// # Errors
    /// As [`Model::run`].
    pub fn nodes(&self, inputs: &[Tensor], runs: usize) -> Result<Vec<NodeTime>, RunError> {
        let inputs = self.in_order(inputs)?;
        let shapes: Shapes = inputs.iter().map(|input| input.shape.clone()).collect();
        let plan = self.plans.get(&shapes)?.plan;
        let mut least: Vec<NodeTime> = Vec::new();
        for _ in 0..runs.max(1) {
            let values = values(&inputs)?;
            let nodes = catch_unwind(AssertUnwindSafe(|| time_nodes(&plan, values)))
                .unwrap_or_else(|payload| Err(RunError::Panic(panic_text(&*payload))))?;
            least.iter_mut().zip(&nodes).for_each(|(least, node)| {
                least.seconds = least.seconds.min(node.seconds);
            });
            if least.is_empty() {
                least = nodes;
            }
        }
        Ok(least)
    }

    fn in_order<'a>(&self, inputs: &'a [Tensor]) -> Result<Vec<&'a Tensor>, RunError> {
        let find = |wanted: &TensorMetadata| {
            let found = inputs.iter().find(|input| input.name == wanted.name);
            let found = found.filter(|input| input.data.datatype() == wanted.datatype);
            let found = found.filter(|input| input.shape.len() == wanted.shape.len());
            let (name, datatype, shape) = (&wanted.name, wanted.datatype, &wanted.shape);
            found.ok_or_else(|| {
                RunError::Input(format!(
                    "expected a {datatype} input \"{name}\" of shape {shape:?}"
                ))
            })
        };
        self.interface.inputs.iter().map(find).collect()
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model")
            .field("inputs", &self.interface.inputs)
            .field("outputs", &self.interface.outputs)
            .field("max_batch", &self.max_batch)
            .finish_non_exhaustive()
    }
}

/// Elements of all inputs together.
#[allow(clippy::cast_precision_loss, reason = "a proportion needs no precision")]
fn elements(shapes: &[Vec<usize>]) -> f64 {
    shapes.iter().map(|shape| shape.iter().map(|&dim| dim as f64).product::<f64>()).sum()
}

pub(crate) fn values(inputs: &[&Tensor]) -> Result<TVec<TValue>, RunError> {
    let value = |input: &&Tensor| {
        let tensor = to_tract(&input.data, 0..input.data.len(), &input.shape);
        Ok(tensor.map_err(RunError::Input)?.into_tvalue())
    };
    inputs.iter().map(value).collect()
}

fn time_nodes(plan: &Plan, inputs: TVec<TValue>) -> Result<Vec<NodeTime>, RunError> {
    let engine = |error: TractError| RunError::Engine(text(&error));
    let mut nodes = Vec::new();
    let mut state = plan.spawn().map_err(engine)?;
    let result = state.run_plan_with_eval(inputs, |context, state, node, inputs| {
        let started = Instant::now();
        let outputs = eval(context, state, node, inputs);
        let (name, op) = (node.name.clone(), node.op().name().to_string());
        nodes.push(NodeTime { name, op, seconds: started.elapsed().as_secs_f64() });
        outputs
    });
    result.map_err(engine)?;
    Ok(nodes)
}

pub(crate) fn execute(
    plan: &Plan,
    inputs: TVec<TValue>,
    watch: &dyn Watch,
) -> Result<TVec<TValue>, RunError> {
    let engine = |error: TractError| match error.downcast_ref::<BadValue>() {
        Some(bad) => RunError::Input(bad.to_string()),
        None => RunError::Engine(text(&error)),
    };
    let mut stopped = false;
    // A fresh state: memory of recurrent nodes must not outlive the request.
    let mut state = plan.spawn().map_err(engine)?;
    let result = state.run_plan_with_eval(inputs, |context, state, node, inputs| {
        if watch.stop() {
            stopped = true;
            return Err(TractError::msg("cancelled"));
        }
        eval(context, state, node, inputs)
    });
    if stopped { Err(RunError::Cancelled) } else { result.map_err(engine) }
}
