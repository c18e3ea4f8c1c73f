//! Load a model, run it.

use crate::error::{panic_text, text};
use crate::graph::{self, Interface};
use crate::plan::{Plan, Plans, Shapes};
use crate::tensor::{datum_type, from_tract, to_tract};
use crate::{LoadError, RunError};
use forebay_protocol::oip::{Data, Datatype, Tensor, TensorMetadata};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::plan::eval;

/// How far rows run together may differ from the same rows run alone: other kernels, other order
/// of sums. Rows that see each other differ by far more.
const ROW_TOLERANCE: f64 = 1e-3;

/// How a model is to be loaded.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LoadOptions {
    /// Most rows in one request, for a model whose rows are independent; 0 and 1: no batching.
    pub max_batch: usize,
    /// Shapes by tensor name that narrow what the file declares; -1 stays open.
    pub shapes: BTreeMap<String, Vec<i64>>,
    /// Input shapes by name to compile and warm up with; dimensions left open count as 1.
    pub warm_up: BTreeMap<String, Vec<usize>>,
    /// Load graphs with QuantizeLinear and DequantizeLinear nodes.
    pub allow_quantized: bool,
}

/// A loaded, compiled and warmed model. All threads may share one.
pub struct Model {
    interface: Interface,
    plans: Plans,
    max_batch: Option<usize>,
}

impl Model {
    /// Reads, compiles and warms up a model. Takes from milliseconds to seconds.
    ///
    /// # Errors
    /// The bytes are no model, the model is one that this engine can't run, or it would run wrongly.
    pub fn load(onnx: &[u8], options: &LoadOptions) -> Result<Self, LoadError> {
        let parsed = catch_unwind(AssertUnwindSafe(|| parse(onnx, options)));
        let (interface, template) =
            parsed.unwrap_or_else(|payload| Err(LoadError::Panic(panic_text(&*payload))))?;
        let datum_types = interface
            .inputs
            .iter()
            .map(|input| {
                let found = input.datatype.to_string();
                let name = input.name.clone();
                datum_type(input.datatype).ok_or(LoadError::Unsupported { name, found })
            })
            .collect::<Result<_, _>>()?;
        let mut model =
            Self { interface, plans: Plans::new(template, datum_types), max_batch: None };
        model.warm_up(options)?;
        Ok(model)
    }

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

    /// Runs one request on the calling thread. `cancelled` is asked between nodes of the graph.
    ///
    /// Inputs may come in any order and must be those of [`Model::inputs`]. Outputs come in the
    /// model's order.
    ///
    /// # Errors
    /// The inputs do not fit, the caller gave up, or the engine failed; a panic is contained.
    pub fn run(
        &self,
        inputs: &[Tensor],
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Vec<Tensor>, RunError> {
        let inputs = self.in_order(inputs)?;
        match self.max_batch {
            Some(_) => self.run_batch(&inputs, cancelled),
            None => self.run_rows(&inputs, None, cancelled),
        }
    }

    fn in_order<'a>(&self, inputs: &'a [Tensor]) -> Result<Vec<&'a Tensor>, RunError> {
        let find = |wanted: &TensorMetadata| {
            let found = inputs.iter().find(|input| input.name == wanted.name);
            let found = found.filter(|input| input.data.datatype() == wanted.datatype);
            let (name, datatype) = (&wanted.name, wanted.datatype);
            found.ok_or_else(|| RunError::Input(format!("expected a {datatype} input \"{name}\"")))
        };
        self.interface.inputs.iter().map(find).collect()
    }

    /// Cuts the batch into powers of two, so that a handful of plans serves every size.
    fn run_batch(
        &self,
        inputs: &[&Tensor],
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Vec<Tensor>, RunError> {
        let batch = inputs.first().and_then(|input| input.shape.first()).copied().unwrap_or(0);
        if batch == 0 || inputs.iter().any(|input| input.shape.first() != Some(&batch)) {
            let expected = "expected the same first dimension, of 1 or more, in all inputs";
            return Err(RunError::Input(expected.to_owned()));
        }
        let mut parts = Vec::new();
        let mut start = 0;
        while start < batch {
            let rows = largest_power_of_two(batch - start);
            parts.push(self.run_rows(inputs, Some((start, rows)), cancelled)?);
            start += rows;
        }
        concatenate(parts)
    }

    /// Runs the rows `(start, count)` of the inputs, or all of them as they are.
    fn run_rows(
        &self,
        inputs: &[&Tensor],
        rows: Option<(usize, usize)>,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Vec<Tensor>, RunError> {
        let mut shapes = Shapes::new();
        let mut values = TVec::new();
        for input in inputs {
            let (mut shape, mut range) = (input.shape.clone(), 0..input.data.len());
            if let Some((start, count)) = rows {
                let row = input.data.len() / shape[0];
                (shape[0], range) = (count, start * row..(start + count) * row);
            }
            let tensor = to_tract(&input.data, range, &shape).map_err(RunError::Input)?;
            values.push(tensor.into_tvalue());
            shapes.push(shape);
        }
        let plan = self.plans.get(&shapes)?;
        let outputs = catch_unwind(AssertUnwindSafe(|| execute(&plan, values, cancelled)))
            .unwrap_or_else(|payload| Err(RunError::Panic(panic_text(&*payload))))?;
        self.interface
            .outputs
            .iter()
            .zip(&outputs)
            .map(|(output, value)| from_tract(&output.name, output.datatype, value))
            .collect::<Result<_, _>>()
            .map_err(RunError::Engine)
    }

    /// Compiles the first plan, runs it, and finds out whether rows are independent.
    fn warm_up(&mut self, options: &LoadOptions) -> Result<(), LoadError> {
        for name in options.warm_up.keys() {
            if !self.interface.inputs.iter().any(|input| input.name == *name) {
                let (name, found) = (name.clone(), "no such input".to_owned());
                let expected = "the name of an input".to_owned();
                return Err(LoadError::Override { name, expected, found });
            }
        }
        let open = |tensor: &TensorMetadata| tensor.shape.first() == Some(&-1);
        let mut tensors = self.interface.inputs.iter().chain(&self.interface.outputs);
        if options.max_batch < 2 || self.interface.inputs.is_empty() || !tensors.all(open) {
            return self.warm_run(options, None, 0).map(drop);
        }
        let alone = self.warm_run(options, Some(1), 0)?;
        let other = self.warm_run(options, Some(1), 1);
        let pair = self.warm_run(options, Some(2), 0);
        if let (Ok(other), Ok(pair)) = (other, pair)
            && let Ok(apart) = concatenate(vec![alone, other])
            && rows_agree(&apart, &pair)
        {
            self.max_batch = Some(options.max_batch);
        }
        Ok(())
    }

    fn warm_run(
        &self,
        options: &LoadOptions,
        batch: Option<usize>,
        first_row: usize,
    ) -> Result<Vec<Tensor>, LoadError> {
        let failed = |error: RunError| LoadError::WarmUp(error.to_string());
        let inputs: Vec<_> = self
            .interface
            .inputs
            .iter()
            .map(|input| {
                let shape = warm_up_shape(input, options.warm_up.get(&input.name), batch)?;
                Ok(synthetic(input, shape, first_row))
            })
            .collect::<Result<_, LoadError>>()?;
        let inputs: Vec<_> = inputs.iter().collect();
        self.run_rows(&inputs, None, &|| false).map_err(failed)
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

fn parse(onnx: &[u8], options: &LoadOptions) -> Result<(Interface, InferenceModel), LoadError> {
    let framework = tract_onnx::onnx().with_ignore_value_info(true);
    let mut proto = framework
        .proto_model_for_read(&mut &*onnx)
        .map_err(|error| LoadError::NotOnnx(text(&error)))?;
    let interface = graph::inspect(&proto, options)?;
    proto.graph.iter_mut().for_each(graph::name_nodes);
    // Without a directory to resolve paths in: a model can't name files.
    let template =
        framework.model_for_proto_model(&proto).map_err(|e| LoadError::Compile(text(&e)))?;
    Ok((interface, template))
}

fn execute(
    plan: &Plan,
    inputs: TVec<TValue>,
    cancelled: &dyn Fn() -> bool,
) -> Result<TVec<TValue>, RunError> {
    let engine = |error: TractError| RunError::Engine(text(&error));
    let mut stopped = false;
    // A fresh state: memory of recurrent nodes must not outlive the request.
    let mut state = plan.spawn().map_err(engine)?;
    let result = state.run_plan_with_eval(inputs, |context, state, node, inputs| {
        if cancelled() {
            stopped = true;
            return Err(TractError::msg("cancelled"));
        }
        eval(context, state, node, inputs)
    });
    if stopped { Err(RunError::Cancelled) } else { result.map_err(engine) }
}

fn largest_power_of_two(n: usize) -> usize {
    1 << n.ilog2()
}

/// Joins the outputs of consecutive rows.
fn concatenate(parts: Vec<Vec<Tensor>>) -> Result<Vec<Tensor>, RunError> {
    let mut parts = parts.into_iter();
    let mut whole = parts.next().unwrap_or_default();
    for part in parts {
        for (whole, part) in whole.iter_mut().zip(part) {
            let fits = !whole.shape.is_empty() && whole.shape.get(1..) == part.shape.get(1..);
            if !fits || !whole.data.append(part.data) {
                let name = &whole.name;
                let text = format!("output \"{name}\" differs in shape between rows of a batch");
                return Err(RunError::Engine(text));
            }
            whole.shape[0] += part.shape[0];
        }
    }
    Ok(whole)
}

fn warm_up_shape(
    input: &TensorMetadata,
    given: Option<&Vec<usize>>,
    batch: Option<usize>,
) -> Result<Vec<usize>, LoadError> {
    let declared = input.shape.iter().map(|&dim| usize::try_from(dim).unwrap_or(1));
    let mut shape: Vec<usize> = match given {
        Some(given) => given.clone(),
        None => declared.collect(),
    };
    let fits = |(&dim, &declared): (&usize, &i64)| {
        dim > 0 && (declared == -1 || usize::try_from(declared) == Ok(dim))
    };
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
    Ok(shape)
}

/// Harmless values that differ between rows: zeros and ones where they may be indices, a wave else.
#[allow(clippy::cast_precision_loss, reason = "values of a wave need no precision")]
fn synthetic(input: &TensorMetadata, shape: Vec<usize>, first_row: usize) -> Tensor {
    let count: usize = shape.iter().product();
    let row = count / shape.first().copied().unwrap_or(1).max(1);
    let bit = |i: usize| (i / row.max(1) + first_row + i % row.max(1) * 7 / 3) % 2;
    let phase = |i: usize| (i + first_row * row) as f64;
    let wave = |i: usize| (phase(i) * 0.37).sin() * 0.5 + (phase(i) * 0.011).cos() * 0.5;
    let data = match input.datatype {
        Datatype::Fp32 =>
        {
            #[allow(clippy::cast_possible_truncation, reason = "values of a wave")]
            Data::Fp32((0..count).map(|i| wave(i) as f32).collect())
        }
        Datatype::Fp64 => Data::Fp64((0..count).map(wave).collect()),
        Datatype::Fp16 => {
            Data::Fp16((0..count).map(|i| f16::from_f64(wave(i)).to_bits()).collect())
        }
        datatype => {
            let bytes: Vec<u8> = (0..count)
                .flat_map(|i| {
                    let mut element = vec![0; datatype.size().unwrap_or(1)];
                    element[0] = u8::from(bit(i) == 1);
                    element
                })
                .collect();
            Data::from_binary(datatype, count, &bytes).unwrap_or(Data::Bool(Vec::new()))
        }
    };
    Tensor { name: input.name.clone(), shape, data }
}

fn rows_agree(apart: &[Tensor], together: &[Tensor]) -> bool {
    let agree = |(a, b): (&Tensor, &Tensor)| {
        a.shape == b.shape && a.data.max_difference(&b.data).is_some_and(|d| d <= ROW_TOLERANCE)
    };
    apart.len() == together.len() && apart.iter().zip(together).all(agree)
}
