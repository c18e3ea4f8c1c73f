//! Sizes that operators take to be equal.
//!
//! A file may give two inputs sizes of different names and then add or multiply them. A graph that is
//! compiled before these sizes are known takes them to be equal, and does not look when it runs: a
//! product would read beyond the end of the shorter one. So what has to be equal is collected when such
//! a graph is compiled, and looked at for each request. A graph of known sizes is refused where they
//! contradict each other, before a run finds out.

use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_core::ops::logic::Iff;
use tract_onnx::tract_core::ops::scan::Scan;

/// Two sizes of one axis of an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pair {
    a: TDim,
    b: TDim,
    /// Whether the axis is summed over. Then 1 is not the same as any size.
    is_summed: bool,
}

impl Pair {
    /// A size that is known at a run only is not looked at.
    fn holds(&self, sizes: &SymbolValues) -> bool {
        match (self.a.eval_to_i64(sizes), self.b.eval_to_i64(sizes)) {
            (Ok(a), Ok(b)) => a == b || !self.is_summed && (a == 1 || b == 1),
            _ => true,
        }
    }
}

/// Sizes that have to be equal, or one of them 1.
#[derive(Debug, Default)]
pub(crate) struct Alike(Vec<Pair>);

impl Alike {
    /// The equalities of a graph with symbols for its open sizes. Those that do not hold in sizes that are
    /// known to run are left out.
    pub(crate) fn new(graph: &TypedModel, known: &SymbolValues) -> Self {
        let mut pairs = Vec::new();
        visit(graph, &mut |_, pair| {
            let is_open = pair.a.as_i64().is_none() || pair.b.as_i64().is_none();
            if is_open && pair.holds(known) && !pairs.contains(&pair) {
                pairs.push(pair);
            }
        });
        Self(pairs)
    }

    /// Whether they are equal with these sizes.
    pub(crate) fn hold(&self, sizes: impl FnOnce() -> SymbolValues) -> bool {
        if self.0.is_empty() {
            return true;
        }
        let sizes = sizes();
        self.0.iter().all(|pair| pair.holds(&sizes))
    }
}

/// Refuses a graph whose sizes contradict each other.
///
/// # Errors
/// An operator adds, picks or multiplies what does not fit together.
pub(crate) fn check(graph: &TypedModel) -> TractResult<()> {
    let mut found = None;
    visit(graph, &mut |node, Pair { a, b, .. }| {
        let is_known = node.op_is::<TypedBinOp>() || node.op_is::<Iff>() || node.op_is::<EinSum>();
        // Sums of one and more are what an Einsum may mean.
        let pair = Pair { a, b, is_summed: false };
        if is_known && found.is_none() && !pair.holds(&SymbolValues::default()) {
            found = Some((node.name.clone(), pair));
        }
    });
    let Some((node, Pair { a, b, .. })) = found else { return Ok(()) };
    bail!("expected sizes that agree in \"{node}\", found {a} and {b}")
}

/// Gives the pairs of all nodes.
fn visit(graph: &TypedModel, take: &mut impl FnMut(&TypedNode, Pair)) {
    for node in graph.nodes() {
        if let Some(scan) = node.op_as::<Scan>() {
            visit(&scan.body, take);
        }
        let facts = (graph.node_input_facts(node.id), graph.node_output_facts(node.id));
        let (Ok(inputs), Ok(outputs)) = facts else { continue };
        if inputs.len() < 2 {
            continue;
        }
        let Ok(mapping) = node.op.axes_mapping(&inputs, &outputs) else { continue };
        for axis in mapping.iter_all_axes() {
            let is_summed = node.op_is::<EinSum>() && axis.outputs.iter().all(|o| o.is_empty());
            let sizes = axis.inputs.iter().zip(&inputs).flat_map(|(places, fact)| {
                places.iter().filter_map(|&place| fact.shape.get(place))
            });
            let mut sizes = sizes.filter(|size| is_summed || !size.is_one());
            let Some(first) = sizes.next() else { continue };
            for other in sizes.filter(|&other| other != first) {
                take(node, Pair { a: first.clone(), b: other.clone(), is_summed });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// A product of [3, a] and [b, c].
    fn product(a: TDim, b: TDim, c: TDim) -> TypedModel {
        let mut graph = TypedModel::default();
        let x = graph.add_source("x", f32::fact([3.to_dim(), a])).unwrap();
        let y = graph.add_source("y", f32::fact([b, c])).unwrap();
        let op = EinSum::new("mk,kn->mn".parse().unwrap(), f32::datum_type());
        let made = graph.wire_node("product", op, &[x, y]).unwrap();
        graph.select_output_outlets(&made).unwrap();
        graph
    }

    #[test]
    fn sizes_that_meet_in_an_operator_have_to_be_equal() {
        let scope = SymbolScope::default();
        let symbols = ["a", "b", "c"].map(|name| scope.sym(name));
        let [a, b, c] = symbols.clone().map(TDim::from);
        let graph = product(a.clone(), b.clone(), c);
        let with = |values: [i64; 3]| {
            let pairs = symbols.iter().zip(values);
            pairs.fold(SymbolValues::default(), |all, (symbol, value)| all.with(symbol, value))
        };
        let alike = Alike::new(&graph, &with([4, 4, 7]));
        assert_eq!(alike.0, [Pair { a, b, is_summed: true }]);
        assert!(alike.hold(|| with([5, 5, 9])));
        assert!(!alike.hold(|| with([6, 4, 9])) && !alike.hold(|| with([1, 4, 9])));
        let known = Alike::new(&graph, &with([4, 5, 7]));
        assert!(known.0.is_empty(), "what is known to run otherwise");
        assert!(check(&graph).is_ok(), "nothing is known of its sizes");
    }

    #[test]
    fn a_graph_of_sizes_that_contradict_each_other_is_refused() {
        let mut graph = TypedModel::default();
        let x = graph.add_source("x", f32::fact([2, 5])).unwrap();
        let [y, z] = [1, 6].map(|size| graph.add_source("y", f32::fact([1, size])).unwrap());
        let sum = |graph: &mut TypedModel, name: &str, other| {
            graph.wire_node(name, tract_onnx::tract_core::ops::math::add(), &[x, other]).unwrap()
        };
        sum(&mut graph, "one", y);
        assert!(check(&graph).is_ok());
        sum(&mut graph, "sum", z);
        let error = check(&graph).unwrap_err().to_string();
        assert_eq!(error, "expected sizes that agree in \"sum\", found 5 and 6");
    }
}
