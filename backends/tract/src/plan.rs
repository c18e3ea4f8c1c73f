//! Compiled plans, one for each set of input shapes, and not too many of them.
//!
//! A caller chooses the shapes, so a caller could make us compile and keep a plan for each request.
//! The cache keeps the plans that were used last; several requests that need the same new plan wait
//! for one compilation.

use crate::RunError;
use crate::error::{panic_text, text};
use crate::own;
use crate::sound;
use serde::{Deserialize, Serialize};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::TypedSimplePlan;
use tract_onnx::tract_core::transform::get_transform;
use tract_onnx::tract_hir::internal::InferenceNode;

/// Plans kept of one model: the buckets of a batch up to 32, and six odd shapes.
const MAX_PLANS: usize = 12;

/// Shapes of all inputs, in the model's order.
pub(crate) type Shapes = Vec<Vec<usize>>;
pub(crate) type Plan = Arc<TypedSimplePlan>;

/// The model before compilation, and what was compiled of it.
pub(crate) struct Plans {
    template: InferenceModel,
    datum_types: Vec<DatumType>,
    build: Build,
    has_convolutions: bool,
    /// Most recently used last.
    cache: Mutex<Vec<(Shapes, Arc<Slot>)>>,
}

type Slot = OnceLock<Result<Plan, RunError>>;

/// What a model is compiled to. Each is faster for some models and slower for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Build {
    /// tract's kernels, images as ONNX has them: NCHW.
    Plain,
    /// tract's kernels, images transposed around each convolution: NHWC.
    ChannelsLast,
    /// Our kernels wherever they can stand in for tract's.
    Own,
}

impl Plans {
    pub(crate) fn new(template: InferenceModel, datum_types: Vec<DatumType>) -> Self {
        let is_convolution = |node: &InferenceNode| node.op().name().starts_with("Conv");
        let has_convolutions = template.nodes().iter().any(is_convolution);
        let build = Build::Plain;
        Self { template, datum_types, build, has_convolutions, cache: Mutex::default() }
    }

    /// The same model in another build, nothing compiled yet; `None` if that changes nothing.
    pub(crate) fn built(&self, build: Build) -> Option<Self> {
        let needs_convolutions = build == Build::ChannelsLast || self.build == Build::ChannelsLast;
        let differs = build != self.build && (self.has_convolutions || !needs_convolutions);
        differs.then(|| Self {
            template: self.template.clone(),
            datum_types: self.datum_types.clone(),
            build,
            has_convolutions: self.has_convolutions,
            cache: Mutex::default(),
        })
    }

    pub(crate) fn build(&self) -> Build {
        self.build
    }

    /// Forgets the plans whose shapes are not wanted.
    pub(crate) fn keep(&self, wanted: impl Fn(&Shapes) -> bool) {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.retain(|(shapes, _)| wanted(shapes));
    }

    /// The plan for these shapes, compiled now if need be.
    pub(crate) fn get(&self, shapes: &Shapes) -> Result<Plan, RunError> {
        self.slot(shapes).get_or_init(|| self.compile(shapes)).clone()
    }

    fn slot(&self, shapes: &Shapes) -> Arc<Slot> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = match cache.iter().position(|(key, _)| key == shapes) {
            Some(index) => cache.remove(index),
            None => (shapes.clone(), Arc::default()),
        };
        if cache.len() == MAX_PLANS {
            cache.remove(0);
        }
        let slot = Arc::clone(&entry.1);
        cache.push(entry);
        slot
    }

    /// The graph for these shapes before any rewrite.
    pub(crate) fn typed(&self, shapes: &Shapes) -> TractResult<TypedModel> {
        let mut model = self.template.clone();
        for (index, (shape, &datum_type)) in shapes.iter().zip(&self.datum_types).enumerate() {
            let fact = InferenceFact::dt_shape(datum_type, shape.as_slice());
            model.set_input_fact(index, fact)?;
        }
        model.into_typed()
    }

    /// A plan of that graph with no rewrite at all, or with each operator made fast by itself.
    pub(crate) fn reference(&self, shapes: &Shapes, is_lowered: bool) -> TractResult<Plan> {
        let mut model = self.typed(shapes)?;
        if is_lowered {
            return TypedSimplePlan::new(sound::lower(model)?);
        }
        sound::prepare(&mut model)?;
        sound::finish(&mut model)?;
        TypedSimplePlan::new(model)
    }

    fn compile(&self, shapes: &Shapes) -> Result<Plan, RunError> {
        let compiled = catch_unwind(AssertUnwindSafe(|| -> TractResult<Plan> {
            let mut model = sound::declutter(self.typed(shapes)?)?;
            if self.build == Build::Own {
                let rewritten = own::rewrite(&model)?;
                let model = rewritten.ok_or_else(|| TractError::msg("no place for a kernel"))?;
                // Not decluttered once more: that would move the axes about again.
                return TypedSimplePlan::new(sound::optimize(model)?);
            }
            if self.build == Build::ChannelsLast {
                let transform = get_transform("conv_nhwc")?;
                let transform = transform.ok_or_else(|| TractError::msg("no conv_nhwc"))?;
                transform.transform(&mut model)?;
                model = sound::declutter(model)?;
            }
            TypedSimplePlan::new(sound::optimize(sound::declutter(model)?)?)
        }));
        match compiled {
            Ok(plan) => plan.map_err(|error| RunError::Shape(text(&error))),
            Err(payload) => Err(RunError::Shape(panic_text(&*payload))),
        }
    }
}
