//! A proof that the rows of a batch do not see each other.
//!
//! Requests that share a batch must each get the answer that they would get alone. A probe can't
//! establish that: `x / max(1, max(x))` treats small values row by row and large ones together, and
//! two rows of a probe happen to be small. So the graph itself is read. A walk in the order of
//! execution tells for each tensor where the rows of the request are: along one axis, of which each
//! block belongs to one row and depends on nothing else; nowhere, as in a weight; or mixed. An
//! operator without a rule of its own mixes.
//!
//! The walk reads tract's typed graph before any rewrite, where shapes are concrete. It runs twice,
//! for two numbers of rows, and both must tell the same of every operator: a value that is computed
//! from the number of rows differs between them and ends the proof. A value that is the same for both, as the
//! answer to whether there are more than two, must be the same for one row, for two and for many; and for each
//! number of rows that may be run, if the graph decides anything by that number.
//!
//! Modules: `visit` (where rows are, and an operator with that of its inputs), `rules` (what each operator
//! does to rows), `shape` (the same for those that only move elements), `nested` (operators with graphs of
//! their own), `decided` (whether a graph decides anything by the number of rows).

mod decided;
mod nested;
mod rules;
mod shape;
#[cfg(test)]
mod tests;
mod visit;

pub(crate) use visit::Mixing;

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;
use visit::{Rows, Visit, digest};

/// Numbers of rows to read the graph with. Primes, so that a dimension that is a multiple of one by
/// accident is rare, and beyond the size below which tract folds a constant of one value a row.
pub(crate) const ROWS: [usize; 2] = [17, 67];
/// Numbers of rows with which values are looked at that are the same for both of those: what is decided by
/// whether there are more rows than so many, or whether they are even, is not the same for these.
const OTHER_ROWS: [usize; 3] = [1, 2, 512];
/// Largest tensor that is computed here where it depends on no input.
const MAX_ELEMENTS: usize = 1 << 22;
/// Constants up to this size are compared between the two walks. Larger ones are weights.
const MAX_COMPARED: usize = 1 << 16;

/// A graph for any number of rows.
pub(crate) trait Graphs {
    fn typed(&self, rows: usize) -> TractResult<TypedModel>;

    /// As the file has it, with all that is known of its values.
    fn analysed(&self, rows: usize) -> TractResult<InferenceModel>;
}

/// Proves that each row of the outputs depends on the same row of the inputs only, and that there
/// are as many, as long as no more than `most` rows are run at once.
///
/// # Errors
/// The obstacle.
pub(crate) fn prove(graphs: &impl Graphs, most: usize) -> Result<(), Mixing> {
    let mut known: Option<Known> = None;
    for rows in ROWS {
        let failed =
            |error: TractError| of_model(format!("can't be built for {rows} rows: {error:#}"));
        let graph = graphs.typed(rows).map_err(failed)?;
        let mut walk = Walk::new(rows);
        let outputs = walk.model(&graph).map_err(failed)?;
        check_outputs(&graph, outputs, rows)?;
        match &mut known {
            None => known = Some(Known::new(walk)),
            Some(known) => known.narrow(walk)?,
        }
    }
    let known = known.ok_or_else(|| of_model("was not read".to_owned()))?;
    let is_decided = match ROWS.map(|rows| graphs.analysed(rows)) {
        [Ok(few), Ok(many)] => decided::by_rows(&few, &many),
        _ => true,
    };
    let others: Vec<usize> = if is_decided { (1..=most).collect() } else { Vec::new() };
    let others =
        OTHER_ROWS.into_iter().chain(others.into_iter().filter(|n| !OTHER_ROWS.contains(n)));
    for rows in others {
        // Requests of so many rows are not run.
        let Ok(graph) = graphs.typed(rows) else { continue };
        known.check(&graph, rows)?;
    }
    Ok(())
}

fn of_model(why: String) -> Mixing {
    Mixing { node: String::new(), op: "the graph".to_owned(), why }
}

/// The outputs must have one row for each row.
fn check_outputs(graph: &TypedModel, outputs: Vec<Rows>, rows: usize) -> Result<(), Mixing> {
    let failed = |error: TractError| of_model(format!("can't be read: {error:#}"));
    for (outlet, state) in graph.output_outlets().map_err(failed)?.iter().zip(outputs) {
        let node = graph.node(outlet.node);
        let shape = &graph.outlet_fact(*outlet).map_err(failed)?.shape;
        let mixing = |why: &str| {
            let (node, op) = (node.name.clone(), node.op.name().to_string());
            Err(Mixing { node, op, why: why.to_owned() })
        };
        match state {
            Rows::Mixed(mixing) => return Err(Mixing::clone(&mixing)),
            Rows::Along { axis: 0, block: 1 } => (),
            Rows::Along { .. } => {
                return mixing("does not give one row of the output for each row");
            }
            // Any part of the rows cut from it is the same.
            Rows::Fixed(value) => {
                let is_same = shape.first() == Some(&rows.to_dim())
                    && value.is_some_and(|value| shape::block(&value, 0, 1, rows).is_some());
                if !is_same {
                    return mixing("gives an output that does not depend on the rows");
                }
            }
        }
    }
    Ok(())
}

/// The facts that are the same for two numbers of rows.
struct Known {
    told: Vec<(String, u64)>,
    values: HashMap<String, u64>,
    shapes: HashMap<String, Vec<Option<TVec<usize>>>>,
}

impl Known {
    fn new(walk: Walk) -> Self {
        let Walk { told, values, shapes, .. } = walk;
        Self { told, values: values.into_iter().collect(), shapes: shapes.into_iter().collect() }
    }

    /// Keeps what is the same for another number of rows.
    fn narrow(&mut self, walk: Walk) -> Result<(), Mixing> {
        self.compare(&walk.told)?;
        let found: HashMap<String, u64> = walk.values.into_iter().collect();
        self.values.retain(|name, value| found.get(name) == Some(value));
        Ok(())
    }

    /// Whether the same was told of the same operators.
    fn compare(&self, told: &[(String, u64)]) -> Result<(), Mixing> {
        if self.told.len() != told.len() {
            return Err(of_model("has other operators for other numbers of rows".to_owned()));
        }
        let mut pairs = self.told.iter().zip(told);
        pairs.find(|(a, b)| a != b).map_or(Ok(()), |(other, _)| Err(depends(&other.0)))
    }

    /// Whether the facts hold for another number of rows.
    fn check(&self, graph: &TypedModel, rows: usize) -> Result<(), Mixing> {
        let mut walk = Walk::new(rows);
        let outputs = walk.model(graph);
        let differs = |(name, value): &&(String, u64)| {
            self.values.get(name).is_some_and(|known| known != value)
        };
        if let Some((node, _)) = walk.values.iter().find(differs) {
            return Err(depends(node));
        }
        if rows == 1 {
            // One row may stand along any axis of one element, so only sizes can be compared.
            return self.compare_shapes(graph);
        }
        outputs.map_err(|error| of_model(format!("can't be read for {rows} rows: {error:#}")))?;
        self.compare(&walk.told)
    }

    /// Whether each operator gives one row of the size that it gives for each of many.
    fn compare_shapes(&self, graph: &TypedModel) -> Result<(), Mixing> {
        for node in graph.nodes() {
            let Some(shapes) = self.shapes.get(&node.name) else { continue };
            for (shape, output) in shapes.iter().zip(&node.outputs) {
                let found = output.fact.shape.as_concrete();
                if shape.as_ref().is_some_and(|shape| found != Some(shape)) {
                    return Err(depends(&node.name));
                }
            }
        }
        Ok(())
    }
}

fn depends(node: &str) -> Mixing {
    let why = "has a value that depends on the number of rows".to_owned();
    Mixing { node: node.to_owned(), op: "operator".to_owned(), why }
}

/// One walk along a graph.
struct Walk {
    rows: usize,
    /// Values that depend on no input: a digest by the node that reads them.
    values: Vec<(String, u64)>,
    /// The facts that must be the same for each number of rows: a digest by node.
    told: Vec<(String, u64)>,
    /// Shapes of the outputs of a node for one row, where they have rows.
    shapes: Vec<(String, Vec<Option<TVec<usize>>>)>,
    /// Of nested graphs.
    depth: usize,
}

impl Walk {
    fn new(rows: usize) -> Self {
        Self { rows, values: Vec::new(), told: Vec::new(), shapes: Vec::new(), depth: 0 }
    }

    /// Rows of the outputs of a whole model, each input of which has them along its first axis.
    fn model(&mut self, graph: &TypedModel) -> TractResult<Vec<Rows>> {
        let inputs = vec![Rows::Along { axis: 0, block: 1 }; graph.input_outlets()?.len()];
        self.graph(graph, inputs)
    }

    /// Rows of the outputs of a graph with such inputs.
    fn graph(&mut self, graph: &TypedModel, inputs: Vec<Rows>) -> TractResult<Vec<Rows>> {
        let mut known: HashMap<OutletId, Rows> =
            graph.input_outlets()?.iter().copied().zip(inputs).collect();
        for id in graph.eval_order()? {
            let node = graph.node(id);
            if known.contains_key(&OutletId::new(id, 0)) {
                continue;
            }
            let inputs = node.inputs.iter().map(|input| known.get(input).cloned());
            let inputs = inputs.collect::<Option<Vec<_>>>().context("expected inputs first")?;
            let outputs = self.node(graph, node, inputs)?;
            ensure!(outputs.len() == node.outputs.len(), "expected a state for each output");
            for (slot, rows) in outputs.into_iter().enumerate() {
                known.insert(OutletId::new(id, slot), rows);
            }
        }
        let outputs = graph.output_outlets()?.iter().map(|outlet| known.get(outlet).cloned());
        outputs.collect::<Option<Vec<_>>>().context("expected every output to be computed")
    }

    fn node(
        &mut self,
        graph: &TypedModel,
        node: &TypedNode,
        inputs: Vec<Rows>,
    ) -> TractResult<Vec<Rows>> {
        let (from, to) = graph.node_facts(node.id)?;
        let is_random = rules::is_random(node);
        // By the node that reads them: constants of one value are one node.
        for (slot, input) in inputs.iter().enumerate() {
            if let Rows::Fixed(Some(value)) = input
                && value.len() <= MAX_COMPARED
            {
                self.values.push((format!("{} (input {slot})", node.name), digest(value)));
            }
        }
        if let Some(mixed) = inputs.iter().find(|input| matches!(input, Rows::Mixed(_))) {
            return Ok(vec![mixed.clone(); node.outputs.len()]);
        }
        let shapes = |facts: &[&TypedFact]| -> Option<Vec<TVec<usize>>> {
            facts.iter().map(|fact| fact.shape.as_concrete().map(Into::into)).collect()
        };
        let (from, to) = (shapes(&from), shapes(&to));
        if !is_random && inputs.iter().all(|input| matches!(input, Rows::Fixed(_))) {
            let is_small = to
                .as_ref()
                .is_some_and(|to| to.iter().all(|to| to.iter().product::<usize>() <= MAX_ELEMENTS));
            return Ok(fixed(node, &inputs, is_small));
        }
        let (Some(from), Some(to)) = (from, to) else {
            return Ok(self.mixed(node, "gives tensors of a shape that depends on values"));
        };
        if is_random {
            return Ok(self.mixed(node, "gives random values"));
        }
        let (blocks, told) = (Vec::new(), Vec::new());
        let mut visit = Visit { node, inputs, from, to, rows: self.rows, blocks, told };
        let outputs = match self.nested(&mut visit)? {
            Some(outputs) => Ok(outputs),
            None => visit.rule(),
        };
        match outputs {
            Ok(outputs) => {
                self.tell(&visit, &outputs);
                Ok(outputs)
            }
            Err(why) => Ok(self.mixed(node, why)),
        }
    }

    #[allow(clippy::unused_self, reason = "beside the other ways to end a visit")]
    fn mixed(&self, node: &TypedNode, why: &str) -> Vec<Rows> {
        let (name, op) = (node.name.clone(), node.op.name().to_string());
        let mixing = Mixing { node: name, op, why: why.to_owned() };
        vec![Rows::Mixed(Arc::new(mixing)); node.outputs.len()]
    }

    /// Notes what must not depend on the number of rows.
    fn tell(&mut self, visit: &Visit<'_>, outputs: &[Rows]) {
        let mut hasher = DefaultHasher::new();
        visit.node.op.name().hash(&mut hasher);
        if !shape::has_sizes(visit.node, &visit.inputs) {
            format!("{:?}", visit.node.op).hash(&mut hasher);
        }
        visit.blocks.hash(&mut hasher);
        for (slot, (input, shape)) in visit.inputs.iter().zip(&visit.from).enumerate() {
            if let Rows::Fixed(value) = input
                && !visit.told.contains(&slot)
            {
                shape.hash(&mut hasher);
                let small = value.as_ref().filter(|value| value.len() <= MAX_COMPARED);
                small.map(|value| digest(value)).hash(&mut hasher);
            }
        }
        let inputs = visit.inputs.iter().zip(&visit.from);
        for (state, shape) in inputs.chain(outputs.iter().zip(&visit.to)) {
            if let Rows::Along { axis, block } = state {
                let mut shape = shape.clone();
                shape[*axis] = 0;
                (axis, block, shape).hash(&mut hasher);
            }
        }
        self.told.push((visit.node.name.clone(), hasher.finish()));
        let one = outputs.iter().zip(&visit.to).map(|(state, shape)| {
            let Rows::Along { axis, block } = state else { return None };
            let mut shape = shape.clone();
            shape[*axis] = *block;
            Some(shape)
        });
        // Those of nested graphs go by other names than the nodes of the whole.
        if self.depth == 0 {
            self.shapes.push((visit.node.name.clone(), one.collect()));
        }
    }
}

/// The output of a node for constants.
fn fixed(node: &TypedNode, inputs: &[Rows], is_small: bool) -> Vec<Rows> {
    let unknown = vec![Rows::Fixed(None); node.outputs.len()];
    let value = |input: &Rows| match input {
        Rows::Fixed(Some(value)) => Some(Arc::clone(value).into_tvalue()),
        _ => None,
    };
    let konst = |fact: &TypedFact| fact.konst.clone();
    if let [output] = node.outputs.as_slice()
        && let Some(konst) = konst(&output.fact)
    {
        return vec![Rows::Fixed(Some(konst))];
    }
    let Some(inputs) = inputs.iter().map(value).collect::<Option<TVec<_>>>() else {
        return unknown;
    };
    match is_small.then(|| node.op.eval_out_of_plan(inputs)) {
        Some(Ok(Some(outputs))) if outputs.len() == node.outputs.len() => {
            outputs.into_iter().map(|output| Rows::Fixed(Some(output.into_arc_tensor()))).collect()
        }
        _ => unknown,
    }
}
