//! The graph that plans are compiled of, without the weights that kernels have already.
//!
//! The graph as the file has it is needed again for each new set of shapes, and all its weights with
//! it. Kept beside what is packed of them, they would be a second copy of the whole model that no run
//! reads. But packing only puts numbers into another order, so that the graph's own can be had back:
//! once a model is loaded they are dropped wherever a kernel holds the same, and rebuilt for as long
//! as a compilation takes.

use crate::lowering::{self, Source};
use std::collections::HashMap;
use std::sync::Arc;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::{TypedNode, TypedSimplePlan};
use tract_onnx::tract_core::ops::konst::Const;
use tract_onnx::tract_hir::internal::GenericFactoid;

/// Bytes below which a constant is kept as it is.
const SMALL: usize = 16 << 10;

/// A graph, some of whose constants are to be had from kernels.
#[derive(Clone)]
pub(crate) struct Template {
    graph: InferenceModel,
    dropped: Vec<Dropped>,
}

/// A constant that is not here.
#[derive(Clone)]
struct Dropped {
    node: usize,
    shape: TVec<usize>,
    /// The kernel that holds its values.
    source: Source,
    /// Whether its two axes are swapped there.
    is_turned: bool,
}

impl Template {
    /// All of its constants are here.
    pub(crate) fn new(graph: InferenceModel) -> Self {
        Self { graph, dropped: Vec::new() }
    }

    pub(crate) fn has_convolutions(&self) -> bool {
        self.graph.nodes().iter().any(|node| node.op().name().starts_with("Conv"))
    }

    /// Those of sizes that are open.
    pub(crate) fn symbols(&self) -> &SymbolScope {
        &self.graph.symbols
    }

    /// The whole graph.
    pub(crate) fn whole(&self) -> TractResult<InferenceModel> {
        let mut graph = self.graph.clone();
        for dropped in &self.dropped {
            put(&mut graph, dropped.node, Arc::new(dropped.restored()?))?;
        }
        Ok(graph)
    }

    /// Drops the constants of which kernels of this plan hold the values.
    pub(crate) fn drop_known(&mut self, plan: &TypedSimplePlan) -> TractResult<()> {
        let mut constants: HashMap<usize, Vec<usize>> = HashMap::new();
        for node in self.graph.nodes() {
            let known = node.op_as::<Const>().map(Const::val).filter(|known| is_large(known));
            if let Some(known) = known {
                constants.entry(known.len()).or_default().push(node.id);
            }
        }
        for source in
            plan.model().nodes().iter().filter_map(|node: &TypedNode| lowering::source(node))
        {
            let Some(alike) = constants.get_mut(&source.count()) else { continue };
            let values = source.unpack();
            let turned = source.sizes().map(|sizes| turned(&values, sizes));
            let mut index = 0;
            while let Some(&node) = alike.get(index) {
                match self.is_known(node, &source, &values, turned.as_deref()) {
                    Some(dropped) => {
                        let none = Tensor::from_shape(&[0], &[0_f32; 0])?;
                        put(&mut self.graph, node, Arc::new(none))?;
                        self.dropped.push(dropped);
                        alike.swap_remove(index);
                    }
                    None => index += 1,
                }
            }
        }
        Ok(())
    }

    fn is_known(
        &self,
        node: usize,
        source: &Source,
        values: &[f32],
        turned: Option<&[f32]>,
    ) -> Option<Dropped> {
        let constant = self.graph.nodes()[node].op_as::<Const>()?.val();
        let plain = constant.try_as_plain_ram().ok()?;
        let found = plain.as_slice::<f32>().ok()?;
        let is_same = is_same(found, values);
        let is_turned = !is_same && turned.is_some_and(|turned| self::is_same(found, turned));
        (is_same || is_turned).then(|| Dropped {
            node,
            shape: constant.shape().into(),
            source: source.clone(),
            is_turned,
        })
    }
}

impl Dropped {
    fn restored(&self) -> TractResult<Tensor> {
        let values = self.source.unpack();
        match self.source.sizes() {
            Some(sizes) if self.is_turned => {
                Tensor::from_shape(&self.shape, &turned(&values, sizes))
            }
            _ => Tensor::from_shape(&self.shape, &values),
        }
    }
}

fn is_large(constant: &Tensor) -> bool {
    constant.datum_type() == f32::datum_type()
        && constant.is_plain_ram()
        && constant.len() * size_of::<f32>() >= SMALL
}

/// Whether they are the same bit by bit.
fn is_same(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// A matrix with its axes the other way around.
fn turned(values: &[f32], [lines, channels]: [usize; 2]) -> Vec<f32> {
    let channel = |channel: usize| (0..lines).map(move |line| values[line * channels + channel]);
    (0..channels).flat_map(channel).collect()
}

/// Makes a node this constant.
pub(crate) fn put(
    graph: &mut InferenceModel,
    node: usize,
    constant: Arc<Tensor>,
) -> TractResult<()> {
    let node = &mut graph.nodes_mut()[node];
    for output in &mut node.outputs {
        if matches!(output.fact.value, GenericFactoid::Only(_)) {
            output.fact = InferenceFact::try_from(&constant)?;
        }
    }
    node.op = Box::new(Const::new(constant)?);
    Ok(())
}
