//! A model that is loaded, and its runs.

use crate::{Curve, Profile, RunError, Watch};
use forebay_protocol::oip::{Tensor, TensorMetadata};
use std::fmt::Debug;
use std::time::Duration;

/// A loaded, compiled and warmed model. All threads share one.
pub trait Model: Debug + Send + Sync {
    /// Inputs in the model's order; -1 for a dimension that may vary.
    fn inputs(&self) -> &[TensorMetadata];

    /// Outputs in the model's order.
    fn outputs(&self) -> &[TensorMetadata];

    /// Most rows in one request, if the first dimension of all tensors is a batch of independent
    /// rows; `None` if the model knows no batch.
    fn max_batch(&self) -> Option<usize>;

    /// Why requests are not joined, of a model whose first dimensions are all open.
    fn unbatched(&self) -> Option<&str> {
        None
    }

    /// Differences between the file and the served model, in words.
    fn notes(&self) -> &[String] {
        &[]
    }

    /// Why each new shape costs a compilation, of a model that leaves sizes open.
    fn closed(&self) -> Option<&str> {
        None
    }

    /// Rows of a request, and what it can be joined with. Of a model without batches every request
    /// is one row, which can be joined with none.
    ///
    /// # Errors
    /// The inputs are not the model's.
    fn form(&self, inputs: &[Tensor]) -> Result<(usize, Form), RunError>;

    /// Runs requests on the calling thread, as one batch where the model has batches. `watch` is
    /// asked between steps. No more than `most` rows run at once.
    ///
    /// Inputs may come in any order and must be those of [`Model::inputs`]; requests must be of the
    /// same [`Form`]. Outputs come in the model's order, for each request its own.
    ///
    /// # Errors
    /// The inputs do not fit, the watch stopped the run, or the engine failed; a panic is contained.
    fn run(
        &self,
        requests: &[&[Tensor]],
        most: usize,
        watch: &dyn Watch,
    ) -> Result<Vec<Vec<Tensor>>, RunError>;

    /// The cost of batches of the usual shapes; of a model without batches, of one request.
    fn curve(&self) -> &Curve;

    /// Mean seconds that so many rows of this form are expected to take; 0 if nothing is known.
    fn expected(&self, _form: &Form, rows: usize) -> f64 {
        self.curve().expected(rows, self.curve().best())
    }

    /// Seconds within which nearly all runs of so many rows of this form end.
    fn careful(&self, _form: &Form, rows: usize) -> f64 {
        self.curve().careful(rows, self.curve().best())
    }

    /// Time that no run of a request of this form was ever below; zero if that is not known.
    fn least(&self, form: &Form) -> Duration {
        // The least of all runs of one row is known; more rows take no less.
        if form.is_usual() { self.curve().least() } else { Duration::ZERO }
    }

    /// Longest time between two questions to a [`Watch`], as it was measured with one row.
    fn grain(&self) -> Duration;

    /// Bytes of memory that it holds now, what its runs hold included.
    fn memory(&self) -> usize;

    /// Rises whenever [`Model::memory`] may have changed; 0 always if it never does.
    fn memory_changes(&self) -> u64 {
        0
    }

    /// Gives back memory that it can do without, until it holds so many bytes less or has no more to
    /// give: later requests may have to wait for what was in it.
    fn release(&self, _bytes: usize) {}

    /// The form that it was compiled to: one of [`crate::Engine::builds`].
    fn build(&self) -> &'static str;

    /// Least seconds of one row in each build that was compared; none where it was not measured.
    fn compared(&self) -> Vec<(&'static str, f64)> {
        Vec::new()
    }

    /// The parts of its load, in their order, and the time of each; none if it does not tell.
    fn phases(&self) -> Vec<(&'static str, Duration)> {
        Vec::new()
    }

    /// Plans that were compiled so far, and the time that this took.
    fn compilations(&self) -> (u64, Duration) {
        (0, Duration::ZERO)
    }

    /// Number of shapes that run in a simpler form than [`Model::build`].
    fn fallbacks(&self) -> u64 {
        0
    }

    /// The first of those fallbacks; `None` from then on.
    fn take_fallback(&self) -> Option<Fallback> {
        None
    }

    /// The profile to load the same model with the next time, so that nothing is measured again.
    fn profile(&self) -> Profile;
}

/// The properties that requests must have in common to share a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Form {
    shapes: Vec<Vec<usize>>,
    is_usual: bool,
}

impl Form {
    /// Shapes of the inputs in the model's order, without the batch; are they those that the model was
    /// warmed up and measured with?
    pub fn new(shapes: Vec<Vec<usize>>, is_usual: bool) -> Self {
        Self { shapes, is_usual }
    }

    /// Shapes of the inputs in the model's order, without the batch.
    pub fn shapes(&self) -> &[Vec<usize>] {
        &self.shapes
    }

    /// Whether they are the shapes that the model was warmed up and measured with.
    pub fn is_usual(&self) -> bool {
        self.is_usual
    }
}

/// Shapes that run in a simpler form because the model's own has no plan for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fallback {
    /// Of the inputs, in the model's order.
    pub shapes: Vec<Vec<usize>>,
    /// The error of the chosen form.
    pub why: String,
}
