//! A model that is loaded, and its runs.

use crate::file;
use crate::open::Opened;
use crate::session::{Session, Slot};
use crate::stop::Stopper;
use forebay_engine::batch::{Input, Joined, check_rows, concatenate};
use forebay_engine::{Curve, Form, LoadError, LoadOptions, Profile, RunError, Trend, Watch};
use forebay_protocol::oip::{Tensor, TensorMetadata};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Inputs of fewer bytes leave no memory behind that is worth giving back.
const LARGE: usize = 1 << 20;

/// The findings of a model's first runs on this machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Findings {
    /// Why rows are not joined, where they might have been.
    pub(crate) unbatched: Option<String>,
    pub(crate) has_batches: bool,
    /// Seconds by bucket of rows.
    pub(crate) seconds: Vec<(usize, f64)>,
    pub(crate) grain: Duration,
    /// Bytes that the loaded model takes.
    pub(crate) memory: usize,
}

/// A loaded and warmed model. All threads share one.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) session: Session,
    pub(crate) inputs: Vec<TensorMetadata>,
    pub(crate) outputs: Vec<TensorMetadata>,
    /// Names of the sizes of each input; empty where the file gives none.
    pub(crate) names: Vec<Vec<String>>,
    pub(crate) max_batch: Option<usize>,
    /// Why there are no batches, where there might have been.
    pub(crate) unbatched: Option<String>,
    pub(crate) notes: Vec<String>,
    pub(crate) words: Vec<String>,
    pub(crate) curve: Curve,
    /// The cost of runs of other shapes than the usual, by the elements of their inputs.
    pub(crate) odd: Trend,
    /// Input shapes of the warm-up, without the batch.
    pub(crate) usual: Vec<Vec<usize>>,
    pub(crate) grain: Duration,
    /// Bytes that it takes without runs.
    pub(crate) held: usize,
    /// Bytes of the inputs and outputs of the largest run so far, how many runs there are, and were at most.
    largest: AtomicUsize,
    now: AtomicUsize,
    most: AtomicUsize,
    /// Bytes of the inputs that it was measured with, in the largest batch that pays.
    pub(crate) usually: AtomicUsize,
    version: &'static str,
    stopper: Arc<Stopper>,
}

impl Model {
    /// Opens a file; nothing has run yet.
    ///
    /// # Errors
    /// The library does not take it, or it has inputs or outputs that no request can hold.
    pub(crate) fn open(
        onnx: &[u8],
        options: &LoadOptions,
        stopper: &Arc<Stopper>,
        opened: &'static Opened,
    ) -> Result<Self, LoadError> {
        let servable = forebay_tract::facts::servable(onnx)?;
        let bytes = servable.changed.as_deref().unwrap_or(onnx);
        file::check_types(bytes).map_err(LoadError::Unsupported)?;
        let session = Session::new(bytes).map_err(LoadError::Unsupported)?;
        let metadata =
            |slots: &[Slot]| slots.iter().map(Slot::metadata).collect::<Result<Vec<_>, _>>();
        let inputs = metadata(session.inputs()).map_err(LoadError::Unsupported)?;
        let outputs = metadata(session.outputs()).map_err(LoadError::Unsupported)?;
        let names = session.inputs().iter().map(|slot| slot.names.clone()).collect();
        let mut model = Self {
            session,
            inputs,
            outputs,
            names,
            max_batch: None,
            unbatched: None,
            notes: servable.notes,
            words: servable.words,
            curve: Curve::default(),
            odd: Trend::default(),
            usual: Vec::new(),
            grain: Duration::ZERO,
            held: onnx.len(),
            largest: AtomicUsize::new(0),
            now: AtomicUsize::new(0),
            most: AtomicUsize::new(1),
            usually: AtomicUsize::new(usize::MAX),
            version: &opened.version,
            stopper: Arc::clone(stopper),
        };
        for (name, shape) in &options.shapes {
            model.narrow(name, shape).map_err(LoadError::Refused)?;
        }
        Ok(model)
    }

    /// Narrows the shape that the file gives.
    fn narrow(&mut self, name: &str, shape: &[i64]) -> Result<(), String> {
        let mut tensors = self.inputs.iter_mut().chain(&mut self.outputs);
        let tensor = tensors.find(|tensor| tensor.name == name);
        let tensor = tensor.ok_or_else(|| {
            format!("override of \"{name}\": expected an input or output, found none of the name")
        })?;
        let fits = |(&own, &given): (&i64, &i64)| own == -1 || own == given;
        // Nothing is known of the rank of a tensor without a shape.
        if tensor.shape.is_empty() {
            tensor.shape = shape.to_vec();
            return Ok(());
        }
        if tensor.shape.len() != shape.len() || !tensor.shape.iter().zip(shape).all(fits) {
            let own = &tensor.shape;
            return Err(format!(
                "override of \"{name}\": expected a shape within {own:?}, found {shape:?}"
            ));
        }
        tensor.shape = shape.to_vec();
        Ok(())
    }

    /// The inputs in the model's order.
    fn in_order<'a>(&self, inputs: &'a [Tensor]) -> Result<Vec<&'a Tensor>, RunError> {
        let find = |wanted: &TensorMetadata| {
            let found = inputs.iter().find(|input| input.name == wanted.name);
            let found = found.filter(|input| input.data.datatype() == wanted.datatype);
            found.ok_or_else(|| {
                let (name, datatype) = (&wanted.name, wanted.datatype);
                RunError::Input(format!("expected an input \"{name}\" of {datatype}, found none"))
            })
        };
        self.inputs.iter().map(find).collect()
    }

    fn run_joined(
        &self,
        requests: Vec<Vec<&Tensor>>,
        most: usize,
        watch: &dyn Watch,
    ) -> Result<Vec<Vec<Tensor>>, RunError> {
        let joined = Joined::new(requests)?;
        let (rows, most) = (joined.rows(), most.max(1));
        let mut parts = Vec::new();
        for first in (0..rows).step_by(most) {
            let range = first..rows.min(first + most);
            let input = |index| joined.input(index, range.clone(), range.len());
            let inputs = (0..self.inputs.len()).map(input).collect::<Result<Vec<_>, _>>()?;
            let (outputs, seconds) = self.run_once(&inputs, watch)?;
            check_rows(&outputs, range.len())?;
            let shapes = inputs.iter().map(|input| &input.shape[1..]);
            self.learn(shapes.eq(self.usual.iter().map(Vec::as_slice)), &inputs, seconds);
            parts.push(outputs);
        }
        joined.split(concatenate(parts)?)
    }

    /// A request as it is; outputs, and seconds in the library.
    pub(crate) fn run_whole(
        &self,
        inputs: &[&Tensor],
        watch: &dyn Watch,
    ) -> Result<(Vec<Tensor>, f64), RunError> {
        let whole = |tensor: &&'_ Tensor| tensor.data.len();
        let inputs: Vec<Input<'_>> = inputs
            .iter()
            .map(|tensor| Input {
                data: Cow::Borrowed(&tensor.data),
                elements: 0..whole(tensor),
                shape: tensor.shape.clone(),
            })
            .collect();
        let (outputs, seconds) = self.run_once(&inputs, watch)?;
        let shapes = inputs.iter().map(|input| input.shape.as_slice());
        let is_usual = self.max_batch.is_none() && shapes.eq(self.usual.iter().map(Vec::as_slice));
        if self.max_batch.is_none() {
            self.learn(is_usual, &inputs, seconds);
        }
        Ok((outputs, seconds))
    }

    #[allow(clippy::cast_precision_loss, reason = "sizes need no precision")]
    fn learn(&self, is_usual: bool, inputs: &[Input<'_>], seconds: f64) {
        if is_usual {
            let rows = inputs.first().and_then(|input| input.shape.first()).copied();
            let rows = rows.filter(|_| self.max_batch.is_some()).unwrap_or(1);
            self.curve.learn(rows, seconds);
        } else {
            let size: usize = inputs.iter().map(|input| input.elements.len()).sum();
            self.odd.learn(size as f64, seconds);
        }
    }

    fn run_once(
        &self,
        inputs: &[Input<'_>],
        watch: &dyn Watch,
    ) -> Result<(Vec<Tensor>, f64), RunError> {
        if watch.stop() {
            return Err(RunError::Cancelled);
        }
        let _running = self.enter();
        let started = Instant::now();
        let taken = inputs.iter().map(|input| input.data.binary_len()).sum::<usize>();
        let shrinks = taken > LARGE && taken > self.usually.load(Relaxed).saturating_mul(2);
        let stop = (&self.stopper, watch.remote());
        let run = || self.session.run(inputs, &self.outputs, stop, shrinks);
        let outputs = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
            Err(RunError::Panic("ONNX Runtime's binding panicked".to_owned()))
        })?;
        let seconds = started.elapsed().as_secs_f64();
        let given = outputs.iter().map(|output| output.data.binary_len()).sum::<usize>();
        self.largest.fetch_max(taken + given, Relaxed);
        Ok((outputs, seconds))
    }

    fn enter(&self) -> Running<'_> {
        let now = self.now.fetch_add(1, Relaxed) + 1;
        self.most.fetch_max(now, Relaxed);
        Running(self)
    }

    pub(crate) fn findings(&self) -> Findings {
        Findings {
            unbatched: self.unbatched.clone(),
            has_batches: self.max_batch.is_some(),
            seconds: self.curve.known().collect(),
            grain: self.grain,
            memory: self.held,
        }
    }

    #[allow(clippy::cast_precision_loss, reason = "rows are few")]
    fn scaled(
        &self,
        form: &Form,
        rows: usize,
        usual: fn(&Curve, usize, usize) -> f64,
        odd: fn(&Trend, f64) -> Option<f64>,
    ) -> f64 {
        let of_usual = usual(&self.curve, rows, self.curve.best());
        if form.is_usual() {
            return of_usual;
        }
        let size = elements(form.shapes());
        // As if it were so much larger, until any have run.
        let proportion = size / elements(&self.usual).max(1.0);
        odd(&self.odd, size * rows as f64).unwrap_or(of_usual * proportion)
    }
}

/// Elements of tensors of these shapes together.
#[allow(clippy::cast_precision_loss, reason = "sizes need no precision")]
fn elements(shapes: &[Vec<usize>]) -> f64 {
    shapes.iter().map(|shape| shape.iter().map(|&dim| dim as f64).product::<f64>()).sum()
}

struct Running<'a>(&'a Model);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Relaxed);
    }
}

impl forebay_engine::Model for Model {
    fn inputs(&self) -> &[TensorMetadata] {
        &self.inputs
    }

    fn outputs(&self) -> &[TensorMetadata] {
        &self.outputs
    }

    fn max_batch(&self) -> Option<usize> {
        self.max_batch
    }

    fn unbatched(&self) -> Option<&str> {
        self.unbatched.as_deref()
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    fn form(&self, inputs: &[Tensor]) -> Result<(usize, Form), RunError> {
        let inputs = self.in_order(inputs)?;
        let batched = self.max_batch.is_some();
        let rows = if batched { Joined::new(vec![inputs.clone()])?.rows() } else { 1 };
        let shape = |input: &&Tensor| input.shape[usize::from(batched)..].to_vec();
        let shapes: Vec<Vec<usize>> = inputs.iter().map(shape).collect();
        let is_usual = shapes == self.usual;
        Ok((rows, Form::new(shapes, is_usual)))
    }

    fn run(
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
        if self.max_batch.is_some() {
            return self.run_joined(requests, most, watch);
        }
        requests.iter().map(|inputs| Ok(self.run_whole(inputs, watch)?.0)).collect()
    }

    fn curve(&self) -> &Curve {
        &self.curve
    }

    fn expected(&self, form: &Form, rows: usize) -> f64 {
        self.scaled(form, rows, Curve::expected, Trend::expected)
    }

    fn careful(&self, form: &Form, rows: usize) -> f64 {
        self.scaled(form, rows, Curve::careful, Trend::careful)
    }

    fn grain(&self) -> Duration {
        self.grain
    }

    fn memory(&self) -> usize {
        let runs = self.largest.load(Relaxed).saturating_mul(self.most.load(Relaxed));
        self.held.saturating_add(runs)
    }

    fn memory_changes(&self) -> u64 {
        (self.largest.load(Relaxed) + self.most.load(Relaxed)) as u64
    }

    fn build(&self) -> &'static str {
        self.version
    }

    fn profile(&self) -> Profile {
        // Numbers and short texts: they always become text.
        Profile(serde_json::to_string(&self.findings()).unwrap_or_default())
    }
}
