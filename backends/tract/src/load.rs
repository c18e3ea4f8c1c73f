//! From the bytes of a file to a model that has run.

use crate::build::Shapes;
use crate::error::{panic_text, text};
use crate::graph::{self, Interface};
use crate::model::{Model, Runs};
use crate::options::LoadOptions;
use crate::phases::Phases;
use crate::plan::Plans;
use crate::tensor::datum_type;
use crate::warm_up;
use crate::{Curve, LoadError, Watch, forms, missing, operators};
use forebay_engine::Trend;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;
use tract_onnx::prelude::*;
use tract_onnx::tract_hir::infer::Factoid;

impl Model {
    /// Reads, compiles, warms up and measures a model. Takes from milliseconds to seconds.
    ///
    /// # Errors
    /// The bytes are no model, the model is one that this engine can't run, or it would run wrongly.
    pub fn load(onnx: &[u8], options: &LoadOptions) -> Result<Self, LoadError> {
        Self::load_watched(onnx, options, &|| false)
    }

    /// The same, until `watch` reports that the model is no longer wanted: it is asked between the parts of
    /// the work.
    ///
    /// # Errors
    /// As of [`Model::load`], or the watch stopped it.
    pub fn load_watched(
        onnx: &[u8],
        options: &LoadOptions,
        watch: &dyn Watch,
    ) -> Result<Self, LoadError> {
        let mut phases = Phases::start();
        let (interface, plans) = parsed(onnx, options)?;
        phases.end("read");
        // Inputs that are made up here need not be ones that a model takes.
        let _trial = operators::Trial::begin();
        let unready = Self::unready(interface, plans);
        let mut model = Self { seed: seed(onnx), phases, ..unready };
        warm_up::warm_up(&mut model, options, watch)?;
        model.plans.settle().map_err(|error| LoadError::Compile(text(&error)))?;
        model.phases.end("drop copies");
        Ok(model)
    }
}

impl Model {
    /// A model that has not run yet.
    pub(crate) fn unready(interface: Interface, plans: Plans) -> Self {
        Self {
            interface,
            plans,
            max_batch: None,
            unbatched: None,
            closed: None,
            padding: None,
            curve: Curve::default(),
            odd: Trend::default(),
            usual: Shapes::new(),
            grain: Duration::ZERO,
            compared: Vec::new(),
            avoids_zero: false,
            seed: 0,
            runs: Runs::default(),
            phases: Phases::start(),
        }
    }
}

/// The facts that a file states, and its graph, of which nothing is compiled yet.
pub(crate) fn parsed(onnx: &[u8], options: &LoadOptions) -> Result<(Interface, Plans), LoadError> {
    let parsed = catch_unwind(AssertUnwindSafe(|| parse(onnx, options)));
    let (interface, template) =
        parsed.unwrap_or_else(|payload| Err(LoadError::Panic(panic_text(&*payload))))?;
    let datum_types = interface.inputs.iter().map(|input| datum_type(input.datatype)).collect();
    let plans = Plans::new(template, datum_types);
    Ok((interface, plans.map_err(|error| LoadError::Compile(text(&error)))?))
}

/// The same for the same file.
fn seed(onnx: &[u8]) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    std::hash::Hasher::write(&mut hasher, onnx);
    std::hash::Hasher::finish(&hasher)
}

fn parse(onnx: &[u8], options: &LoadOptions) -> Result<(Interface, InferenceModel), LoadError> {
    let framework = operators::framework();
    let mut proto = framework
        .proto_model_for_read(&mut &*onnx)
        .map_err(|error| LoadError::NotOnnx(text(&error)))?;
    let notes = forms::simplify(&mut proto)?;
    let mut interface = graph::inspect(&proto, options)?;
    interface.notes = notes;
    forms::stabilise(&mut proto)?;
    if let Some(graph) = &proto.graph {
        missing::check(graph, &framework)?;
    }
    proto.graph.iter_mut().for_each(graph::name_nodes);
    // Without a directory to resolve paths in: a model can't name files.
    let template =
        framework.model_for_proto_model(&proto).map_err(|e| LoadError::Compile(text(&e)))?;
    let interface = find_shapes(interface, &template)?;
    Ok((interface, template))
}

/// Shapes of the outputs of which the file gives none.
fn find_shapes(
    mut interface: Interface,
    template: &InferenceModel,
) -> Result<Interface, LoadError> {
    if interface.shapeless.is_empty() {
        return Ok(interface);
    }
    let compile = |error: TractError| LoadError::Compile(text(&error));
    let template = analysed(&interface, template).map_err(compile)?;
    for place in std::mem::take(&mut interface.shapeless) {
        let fact = template.output_fact(place).map_err(compile)?;
        let output = &mut interface.outputs[place];
        let name = output.name.clone();
        let Some(rank) = fact.shape.rank().concretize() else {
            let found = "no shape, in the file or by inference".to_owned();
            return Err(LoadError::Unsupported { name, found });
        };
        let dim = |place: usize| {
            let dim = fact.shape.dim(place).and_then(|dim| dim.concretize());
            dim.and_then(|dim| dim.to_i64().ok()).unwrap_or(-1)
        };
        output.shape = (0..usize::try_from(rank).unwrap_or(0)).map(dim).collect();
    }
    Ok(interface)
}

/// The graph with what can be told of all shapes, where a name stands for each open size.
fn analysed(interface: &Interface, template: &InferenceModel) -> TractResult<InferenceModel> {
    let mut named = template.clone();
    for (place, input) in interface.inputs.iter().enumerate() {
        let size = |&size: &i64| match usize::try_from(size) {
            Ok(size) => size.to_dim(),
            Err(_) => named.symbols.new_with_prefix("open").to_dim(),
        };
        let shape: TVec<TDim> = input.shape.iter().map(size).collect();
        let datum_type = datum_type(input.datatype);
        named.set_input_fact(place, InferenceFact::dt_shape(datum_type, shape))?;
    }
    if named.analyse(true).is_ok() {
        return Ok(named);
    }
    // Sizes of which it is not known that they agree.
    let mut open = template.clone();
    open.analyse(true)?;
    Ok(open)
}
