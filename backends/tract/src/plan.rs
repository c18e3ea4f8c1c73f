//! Compiled plans, one for each set of input shapes, and not too many of them.
//!
//! A caller chooses the shapes, so a caller could make us compile and keep a plan for each request.
//! The cache keeps the plans that were used last; several requests that need the same new plan wait
//! for one compilation.

use crate::RunError;
use crate::error::{panic_text, text};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::TypedSimplePlan;

/// Plans kept of one model: the buckets of a batch up to 32, and two odd shapes.
const MAX_PLANS: usize = 8;

/// Shapes of all inputs, in the model's order.
pub(crate) type Shapes = Vec<Vec<usize>>;
pub(crate) type Plan = Arc<TypedSimplePlan>;

/// The model before compilation, and what was compiled of it.
pub(crate) struct Plans {
    template: InferenceModel,
    datum_types: Vec<DatumType>,
    /// Most recently used last.
    cache: Mutex<Vec<(Shapes, Arc<Slot>)>>,
}

type Slot = OnceLock<Result<Plan, RunError>>;

impl Plans {
    pub(crate) fn new(template: InferenceModel, datum_types: Vec<DatumType>) -> Self {
        Self { template, datum_types, cache: Mutex::default() }
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

    fn compile(&self, shapes: &Shapes) -> Result<Plan, RunError> {
        let compiled = catch_unwind(AssertUnwindSafe(|| -> TractResult<Plan> {
            let mut model = self.template.clone();
            for (index, (shape, &datum_type)) in shapes.iter().zip(&self.datum_types).enumerate() {
                let fact = InferenceFact::dt_shape(datum_type, shape.as_slice());
                model.set_input_fact(index, fact)?;
            }
            TypedSimplePlan::new(model.into_optimized()?)
        }));
        match compiled {
            Ok(plan) => plan.map_err(|error| RunError::Shape(text(&error))),
            Err(payload) => Err(RunError::Shape(panic_text(&*payload))),
        }
    }
}
