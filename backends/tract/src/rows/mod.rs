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
//! from the number of rows differs between them and ends the proof. A value that is the same for both, as the answer
//! to whether there are more than two, must be the same for one row, for two and for many.
//!
//! Modules: `visit` (where rows are, and an operator with that of its inputs), `rules` (what each operator
//! does to rows), `shape` (the same for those that only move elements), `nested` (operators with graphs of
//! their own).

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

/// Proves that each row of the outputs depends on the same row of the inputs only, and that there
/// are as many. `graph` gives the typed graph for a number of rows.
///
/// # Errors
/// The obstacle.
pub(crate) fn prove(graph: impl Fn(usize) -> TractResult<TypedModel>) -> Result<(), Mixing> {
    let of_model = |why: String| Mixing { node: String::new(), op: "the graph".to_owned(), why };
    let mut told: Option<Vec<(String, u64)>> = None;
    let mut values: HashMap<String, u64> = HashMap::new();
    for rows in ROWS {
        let failed =
            |error: TractError| of_model(format!("can't be built for {rows} rows: {error:#}"));
        let graph = graph(rows).map_err(failed)?;
        let mut walk = Walk::new(rows);
        let outputs = walk.model(&graph).map_err(failed)?;
        for (outlet, state) in graph.output_outlets().map_err(failed)?.iter().zip(outputs) {
            let node = graph.node(outlet.node);
            let shape = &graph.outlet_fact(*outlet).map_err(failed)?.shape;
            let mixing = |why: String| Mixing {
                node: node.name.clone(),
                op: node.op.name().to_string(),
                why,
            };
            match state {
                Rows::Mixed(mixing) => return Err(Mixing::clone(&mixing)),
                Rows::Along { axis: 0, block: 1 } => (),
                Rows::Along { .. } => {
                    return Err(mixing("does not give one row of the output for each row".into()));
                }
                // Any part of the rows cut from it is the same.
                Rows::Fixed(value) => {
                    let is_same = shape.first() == Some(&rows.to_dim())
                        && value.is_some_and(|value| shape::block(&value, 0, 1, rows).is_some());
                    if !is_same {
                        let why = "gives an output that does not depend on the rows";
                        return Err(mixing(why.to_owned()));
                    }
                }
            }
        }
        match &told {
            None => values.extend(walk.values.drain(..)),
            Some(_) => {
                let found: HashMap<String, u64> = walk.values.drain(..).collect();
                values.retain(|name, value| found.get(name) == Some(value));
            }
        }
        match &told {
            None => told = Some(walk.told),
            Some(first) if first.len() != walk.told.len() => {
                return Err(of_model("has other operators for other numbers of rows".to_owned()));
            }
            Some(first) => {
                if let Some((other, _)) = first.iter().zip(&walk.told).find(|(a, b)| a != b) {
                    let why = "has a value that depends on the number of rows".to_owned();
                    return Err(Mixing { node: other.0.clone(), op: "operator".to_owned(), why });
                }
            }
        }
    }
    same_for_others(&graph, &values)
}

/// Looks at values that are the same for two numbers of rows with others. Numbers that the graph can't be
/// built for tell nothing: requests of so many rows are not run.
fn same_for_others(
    graph: &impl Fn(usize) -> TractResult<TypedModel>,
    values: &HashMap<String, u64>,
) -> Result<(), Mixing> {
    for rows in OTHER_ROWS {
        let Ok(graph) = graph(rows) else { continue };
        let mut walk = Walk::new(rows);
        // Whether rows mix is known; one row alone may stand along any axis.
        drop(walk.model(&graph));
        let differs =
            |(name, value): &(String, u64)| values.get(name).is_some_and(|known| known != value);
        if let Some((node, _)) = walk.values.into_iter().find(differs) {
            let why = "has a value that depends on the number of rows".to_owned();
            return Err(Mixing { node, op: "operator".to_owned(), why });
        }
    }
    Ok(())
}

/// One walk along a graph.
struct Walk {
    rows: usize,
    /// Values that depend on no input: a digest by the node that reads them.
    values: Vec<(String, u64)>,
    /// The facts that must be the same for each number of rows: a digest by node.
    told: Vec<(String, u64)>,
    /// Of nested graphs.
    depth: usize,
}

impl Walk {
    fn new(rows: usize) -> Self {
        Self { rows, values: Vec::new(), told: Vec::new(), depth: 0 }
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
