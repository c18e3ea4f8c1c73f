//! Compiled plans, one for each set of input shapes, and not too many of them.
//!
//! A caller chooses the shapes, so a caller could make us compile and keep a plan for each request.
//! The cache keeps the plans that were used last; several requests that need the same new plan wait
//! for one compilation.
//!
//! The build of a model is chosen with the shapes of its warm-up. Another shape may be one that this
//! build can't be compiled for, or fails on, though the model itself is valid there: such a shape
//! runs in the plain build, and its requests are answered like any others.

use crate::alike::{self, Alike};
use crate::build::{Build, Plan, Shapes};
use crate::error::{panic_text, text};
use crate::lowering;
use crate::open::{Dims, Open};
use crate::sound;
use crate::template::Template;
use crate::weights::Weights;
use crate::{Fallback, RunError};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::transform::get_transform;

/// Plans kept of one model: they are looked through one by one.
const MAX_PLANS: usize = 64;
/// Bytes that all plans of a model may take beside the weights that they share, ...
const PLANS_BYTES: usize = 8 << 20;
/// ... or this share of the weights of its file, if that is more.
const PLANS_SHARE: usize = 8;

/// The model before compilation, and what was compiled of it.
pub(crate) struct Plans {
    template: Template,
    datum_types: Vec<DatumType>,
    build: Build,
    has_convolutions: bool,
    /// For shapes that no plan was compiled for.
    open: Option<Open>,
    /// Most recently used last.
    cache: Mutex<Vec<(Shapes, Arc<Slot>)>>,
    ledger: Ledger,
    /// The same in all builds.
    weights: Arc<Weights>,
}

/// The cost of compiling, and the runs that fell back to the plain build.
#[derive(Default)]
struct Ledger {
    compilations: AtomicU64,
    /// Runs of a plan for all sizes that were larger than those before.
    growths: AtomicU64,
    nanos: AtomicU64,
    fallbacks: AtomicU64,
    /// The first fallback, until it is taken to be told.
    first: Mutex<Option<Fallback>>,
}

/// The plans for one set of shapes.
#[derive(Default)]
struct Slot {
    /// In the model's build, or in the plain one if the model's has none for these shapes.
    own: OnceLock<Result<Chosen, RunError>>,
    /// In the plain build, compiled once a run of the other has failed.
    plain: OnceLock<Result<Plan, RunError>>,
    /// The plain build has run what the other failed on.
    falls_back: AtomicBool,
}

/// A plan, and the build that it is of.
#[derive(Clone)]
pub(crate) struct Chosen {
    pub(crate) plan: Plan,
    pub(crate) build: Build,
    /// Whether it runs other shapes as well.
    pub(crate) is_open: bool,
}

impl Plans {
    pub(crate) fn new(
        mut template: InferenceModel,
        datum_types: Vec<DatumType>,
    ) -> TractResult<Self> {
        let weights = Arc::new(Weights::default());
        weights.adopt(&mut template)?;
        let template = Template::new(template);
        let has_convolutions = template.has_convolutions();
        let build = Build::Plain;
        let (open, cache, ledger) = (None, Mutex::default(), Ledger::default());
        Ok(Self { template, datum_types, build, has_convolutions, open, cache, ledger, weights })
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
            open: None,
            cache: Mutex::default(),
            ledger: Ledger::default(),
            weights: Arc::clone(&self.weights),
        })
    }

    pub(crate) fn build(&self) -> Build {
        self.build
    }

    /// Drops what the kernels of the plans that are kept can give back to a later compilation.
    pub(crate) fn settle(&mut self) -> TractResult<()> {
        let cache = self.cache.get_mut().unwrap_or_else(PoisonError::into_inner);
        for (_, slot) in cache.iter() {
            if let Some(Ok(chosen)) = slot.own.get() {
                self.template.drop_known(&chosen.plan)?;
            }
        }
        Ok(())
    }

    /// The constants that all plans of the model share.
    pub(crate) fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Forgets plans that were not used for longest, though not the one that was used last, until the
    /// model holds at most so many bytes, runs not counted.
    pub(crate) fn shrink(&self, bytes: usize) {
        self.forget_while(|weights| weights.bytes(0) > bytes);
    }

    fn forget_while(&self, is_much: impl Fn(&Weights) -> bool) {
        loop {
            let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            if cache.len() <= 1 || !is_much(&self.weights) {
                return;
            }
            let oldest = cache.remove(0);
            // Freed where no lock is held.
            drop(cache);
            drop(oldest);
        }
    }

    /// Forgets the plans whose shapes are not wanted.
    pub(crate) fn keep(&self, wanted: impl Fn(&Shapes) -> bool) {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.retain(|(shapes, _)| wanted(shapes));
    }

    /// Compiles one plan for all shapes that go with these sizes, as the usual ones do; from then on it
    /// runs those that no plan of their own was compiled for.
    ///
    /// # Errors
    /// The graph can't be compiled before its sizes are known.
    pub(crate) fn open(&mut self, dims: Dims, usual: &Shapes) -> Result<(), RunError> {
        let facts = dims.facts(self.template.symbols());
        let mut build = self.build;
        let mut plan = self.compile(&facts, build);
        if plan.is_err() && build != Build::Plain {
            build = Build::Plain;
            plan = self.compile(&facts, build);
        }
        let plan = plan?;
        let alike = catch_unwind(AssertUnwindSafe(|| {
            let known = dims.values(usual, self.template.symbols());
            Ok(Alike::new(&self.typed_with(&facts)?, &known))
        }));
        let alike = alike.map_err(|payload| RunError::Shape(panic_text(&*payload)))?;
        let alike = alike.map_err(|error: TractError| RunError::Shape(text(&error)))?;
        self.open = Some(Open::new(plan, build, dims, alike));
        Ok(())
    }

    /// The plan for all shapes, if there is one.
    pub(crate) fn opened(&self) -> Option<&Open> {
        self.open.as_ref()
    }

    /// The same, if it runs these shapes.
    pub(crate) fn open_for(&self, shapes: &Shapes) -> Option<&Open> {
        self.open.as_ref().filter(|open| open.takes(shapes, self.template.symbols()))
    }

    /// Plans are compiled for each shape from now on.
    pub(crate) fn close(&mut self) {
        self.open = None;
    }

    /// The plan for these shapes: theirs if there is one, else the one for all, else compiled now.
    pub(crate) fn get(&self, shapes: &Shapes) -> Result<Chosen, RunError> {
        if let Some(open) = self.open_for(shapes) {
            let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            if !cache.iter().any(|(known, _)| known == shapes) {
                drop(cache);
                let (plan, build) = (Arc::clone(&open.plan), open.build);
                if open.grows(shapes) {
                    self.weights.grew(&plan, &open.dims.values(shapes, self.template.symbols()));
                    self.ledger.growths.fetch_add(1, Relaxed);
                }
                return Ok(Chosen { plan, build, is_open: true });
            }
        }
        self.closed(shapes)
    }

    /// The plan for these shapes alone, compiled now if need be.
    pub(crate) fn closed(&self, shapes: &Shapes) -> Result<Chosen, RunError> {
        let slot = self.slot(shapes);
        if slot.falls_back.load(Relaxed)
            && let Some(Ok(plan)) = slot.plain.get()
        {
            let plan = Arc::clone(plan);
            return Ok(Chosen { plan, build: Build::Plain, is_open: false });
        }
        slot.own.get_or_init(|| self.choose(shapes)).clone()
    }

    /// The plan in the plain build, after a run in another build has failed.
    pub(crate) fn plain(&self, shapes: &Shapes) -> Result<Plan, RunError> {
        let slot = self.slot(shapes);
        slot.plain.get_or_init(|| self.compile(&facts(shapes), Build::Plain)).clone()
    }

    /// These shapes run in the plain build from now on: it could do what the other failed on.
    pub(crate) fn fall_back(&self, shapes: &Shapes, why: &RunError) {
        if !self.slot(shapes).falls_back.swap(true, Relaxed) {
            self.note(shapes, why);
        }
    }

    /// Plans that were compiled, and the time that this took.
    pub(crate) fn compilations(&self) -> (u64, Duration) {
        let nanos = self.ledger.nanos.load(Relaxed);
        (self.ledger.compilations.load(Relaxed), Duration::from_nanos(nanos))
    }

    /// Number of times that the model's memory may have changed.
    pub(crate) fn changes(&self) -> u64 {
        self.ledger.compilations.load(Relaxed) + self.ledger.growths.load(Relaxed)
    }

    /// Number of shapes that run in the plain build.
    pub(crate) fn fallbacks(&self) -> u64 {
        self.ledger.fallbacks.load(Relaxed)
    }

    /// The first of them, once.
    pub(crate) fn take_fallback(&self) -> Option<Fallback> {
        if self.fallbacks() == 0 {
            return None;
        }
        self.ledger.first.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// In the model's build, or else in the plain one.
    fn choose(&self, shapes: &Shapes) -> Result<Chosen, RunError> {
        let build = self.build;
        let facts = facts(shapes);
        match self.compile(&facts, build) {
            Ok(plan) => Ok(Chosen { plan, build, is_open: false }),
            Err(error) if build == Build::Plain => Err(error),
            Err(error) => {
                // If that fails too, its words are about the model and not about a build of ours.
                let plan = self.compile(&facts, Build::Plain)?;
                self.note(shapes, &error);
                Ok(Chosen { plan, build: Build::Plain, is_open: false })
            }
        }
    }

    fn note(&self, shapes: &Shapes, why: &RunError) {
        if self.ledger.fallbacks.fetch_add(1, Relaxed) == 0 {
            let fallback = Fallback { shapes: shapes.clone(), why: why.to_string() };
            let mut first = self.ledger.first.lock().unwrap_or_else(PoisonError::into_inner);
            *first = Some(fallback);
        }
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

    /// Whether most of the work that our kernels would do for these shapes is such that they fill their
    /// vectors.
    pub(crate) fn fills_vectors(&self, shapes: &Shapes) -> TractResult<bool> {
        lowering::fills_vectors(&sound::declutter(self.typed(shapes)?)?)
    }

    /// The graph for these shapes before any rewrite.
    pub(crate) fn typed(&self, shapes: &Shapes) -> TractResult<TypedModel> {
        self.typed_with(&facts(shapes))
    }

    /// The graph as the file has it, with all that follows for its values from these shapes.
    pub(crate) fn analysed(&self, shapes: &Shapes) -> TractResult<InferenceModel> {
        let mut model = self.with_inputs(&facts(shapes))?;
        model.analyse(false)?;
        Ok(model)
    }

    fn typed_with(&self, facts: &[TVec<TDim>]) -> TractResult<TypedModel> {
        self.with_inputs(facts)?.into_typed()
    }

    fn with_inputs(&self, facts: &[TVec<TDim>]) -> TractResult<InferenceModel> {
        let mut model = self.template.whole()?;
        for (index, (shape, &datum_type)) in facts.iter().zip(&self.datum_types).enumerate() {
            let fact = InferenceFact::dt_shape(datum_type, shape.as_slice());
            model.set_input_fact(index, fact)?;
        }
        Ok(model)
    }

    /// A plan of that graph with no rewrite at all, or with each operator made fast by itself.
    pub(crate) fn reference(&self, shapes: &Shapes, is_lowered: bool) -> TractResult<Plan> {
        let mut model = self.typed(shapes)?;
        alike::check(&model)?;
        if is_lowered {
            return self.weights.plan(sound::lower(model)?);
        }
        sound::prepare(&mut model)?;
        sound::finish(&mut model)?;
        self.weights.plan(model)
    }

    fn compile(&self, facts: &[TVec<TDim>], build: Build) -> Result<Plan, RunError> {
        let started = Instant::now();
        let compiled = catch_unwind(AssertUnwindSafe(|| self.compiled(facts, build)));
        let nanos = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.ledger.compilations.fetch_add(1, Relaxed);
        self.ledger.nanos.fetch_add(nanos, Relaxed);
        let most = PLANS_BYTES.max(self.weights.adopted() / PLANS_SHARE);
        self.forget_while(|weights| weights.of_plans_alone() > most);
        match compiled {
            Ok(plan) => plan.map_err(|error| RunError::Shape(text(&error))),
            Err(payload) => Err(RunError::Shape(panic_text(&*payload))),
        }
    }

    fn compiled(&self, facts: &[TVec<TDim>], build: Build) -> TractResult<Plan> {
        let typed = self.typed_with(facts)?;
        alike::check(&typed)?;
        let mut model = sound::declutter(typed)?;
        if build == Build::Own {
            let rewritten = lowering::rewrite(&model)?;
            let model = rewritten.ok_or_else(|| TractError::msg("no place for a kernel"))?;
            // Not decluttered once more: that would move the axes about again.
            return self.weights.plan(sound::optimize(model)?);
        }
        if build == Build::ChannelsLast {
            let transform = get_transform("conv_nhwc")?;
            let transform = transform.ok_or_else(|| TractError::msg("no conv_nhwc"))?;
            transform.transform(&mut model)?;
            model = sound::declutter(model)?;
        }
        self.weights.plan(sound::optimize(sound::declutter(model)?)?)
    }
}

/// Shapes as a graph has them.
fn facts(shapes: &Shapes) -> Vec<TVec<TDim>> {
    shapes.iter().map(|shape| shape.iter().map(ToDim::to_dim).collect()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::model::Model;
    use crate::options::LoadOptions;
    use forebay_protocol::oip::{Data, Tensor};
    use std::path::Path;

    /// Inputs of the model `spread`: two numbers and three, of which all pairs are added.
    fn unequal() -> Vec<Tensor> {
        let of = |name: &str, shape: [usize; 3], value: f32| {
            let data = Data::Fp32(vec![value; shape.iter().product()].into());
            Tensor::new(name, shape.to_vec(), data).unwrap()
        };
        vec![of("a", [1, 2, 1], 1.5), of("b", [1, 1, 3], 2.0)]
    }

    #[test]
    fn a_shape_that_our_kernels_have_no_place_in_runs_without_them_and_is_told_once() {
        // Both inputs are warmed up with one element, where kernels of ours have a place.
        let models =
            Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("worker/tests/models");
        let onnx = std::fs::read(models.join("spread/1/model.onnx")).unwrap();
        let options =
            LoadOptions { build: Some(Build::Own), max_batch: 32, ..LoadOptions::default() };
        let mut model = Model::load(&onnx, &options).unwrap();
        model.plans.close();
        // Other shapes were tried when it was loaded.
        model.plans.keep(|_| false);
        drop(model.take_fallback());
        let before = model.fallbacks();
        assert_eq!(model.build(), Build::Own);
        let run = |inputs: &[Tensor]| model.run(&[inputs], 32, &|| false).unwrap().remove(0);
        let found = run(&unequal());
        assert_eq!(
            (&found[0].shape, &found[0].data),
            (&vec![1, 2, 3], &Data::Fp32(vec![3.5; 6].into()))
        );
        let fallback = model.take_fallback().unwrap();
        assert_eq!(fallback.shapes.len(), 2);
        assert!(fallback.why.contains("no place for a kernel"), "{fallback:?}");
        // Compiled once, told once, counted for each shape.
        let (compilations, took) = model.compilations();
        assert_eq!(run(&unequal()), found);
        assert_eq!(model.compilations(), (compilations, took));
        let mut wider = unequal();
        wider[1] = Tensor::new("b", vec![1, 1, 5], Data::Fp32(vec![2.0; 5].into())).unwrap();
        assert_eq!(run(&wider)[0].data, Data::Fp32(vec![3.5; 10].into()));
        assert_eq!((model.fallbacks(), model.take_fallback()), (before + 2, None));
        assert_eq!(model.build(), Build::Own, "of the other shapes");
    }
}
