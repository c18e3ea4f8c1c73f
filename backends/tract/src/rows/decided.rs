//! Whether a graph decides anything by the number of rows.
//!
//! A graph may ask whether there are five rows and compute otherwise then. Read with 17 rows and with 67 it
//! looks like any other. But such an answer has a node where a size is lost: its inputs differ between the
//! two numbers, and something in its output does not. Without such a node, each value that is the same
//! for both is so because no size went into it. Where there is one, the graph is read with each number of
//! rows that may be run.

use crate::operators;
use std::borrow::Cow;
use tract_onnx::prelude::*;
use tract_onnx::tract_hir::infer::Factoid;
use tract_onnx::tract_hir::internal::*;

/// Operators that only move elements of their first input about, or tell its sizes one by one, where
/// their other inputs do not depend on the rows.
const MOVES: [&str; 9] = [
    "Gather",
    "Shape",
    "Slice1",
    "Split",
    "Split13",
    "Squeeze",
    "Squeeze13",
    "StridedSlice",
    "RmDims",
];
/// Operators that give data a shape by their second input: shapes are compared by the walk.
const SHAPES: [&str; 3] = ["MultiBroadcastTo", "Reshape", "Tile"];

/// Whether a node of a graph may lose a number of rows; the graph was analysed for two of these.
pub(super) fn by_rows(few: &InferenceModel, many: &InferenceModel) -> bool {
    let pairs = few.nodes().iter().zip(many.nodes());
    let loses = |(a, b): (&InferenceNode, &InferenceNode)| {
        let (bodies, others) = (operators::bodies(a.op()), operators::bodies(b.op()));
        bodies.len() != others.len()
            || bodies.into_iter().zip(others).any(|(a, b)| by_rows(a, b))
            || node_loses(few, many, a, b)
    };
    few.nodes().len() != many.nodes().len() || pairs.into_iter().any(loses)
}

/// A value with both numbers of rows.
enum Value {
    /// The graph's inputs go into it.
    Data,
    /// Other shapes, or of the same shape: whether each element differs.
    Known(Option<Vec<bool>>),
}

impl Value {
    fn of(a: &InferenceFact, b: &InferenceFact) -> Self {
        let (Some(a), Some(b)) = (a.value.concretize(), b.value.concretize()) else {
            return Self::Data;
        };
        let same_shape = || {
            let (x, y) = (elements(&a)?, elements(&b)?);
            let is_same_shape = a.shape() == b.shape();
            is_same_shape.then(|| x.iter().zip(&y).map(|(x, y)| x != y).collect())
        };
        if Arc::ptr_eq(&a, &b) { Self::Known(Some(Vec::new())) } else { Self::Known(same_shape()) }
    }

    fn differs(&self) -> bool {
        match self {
            Self::Data => false,
            Self::Known(elements) => {
                elements.as_ref().is_none_or(|elements| elements.contains(&true))
            }
        }
    }
}

/// Bits of the elements; `None` if they are no numbers.
fn elements(value: &Tensor) -> Option<Vec<u64>> {
    let bits = |value: &Tensor| {
        let plain = value.try_as_plain_ram().ok()?;
        Some(plain.as_slice::<f64>().ok()?.iter().map(|x| x.to_bits()).collect())
    };
    let value = if value.datum_type() == TDim::datum_type() {
        value.cast_to::<i64>().ok()?
    } else {
        Cow::Borrowed(value)
    };
    bits(&*value.cast_to::<f64>().ok()?)
}

fn node_loses(
    few: &InferenceModel,
    many: &InferenceModel,
    a: &InferenceNode,
    b: &InferenceNode,
) -> bool {
    let value = |&outlet: &OutletId| {
        let (Ok(a), Ok(b)) = (few.outlet_fact(outlet), many.outlet_fact(outlet)) else {
            return Value::Data;
        };
        Value::of(a, b)
    };
    let inputs: Vec<Value> = a.inputs.iter().map(value).collect();
    if !inputs.iter().any(Value::differs) {
        return false;
    }
    let name = a.op.name();
    let is_first_alone = || !inputs[1..].iter().any(Value::differs);
    if MOVES.contains(&&*name) && is_first_alone() {
        return false;
    }
    if inputs.iter().any(|input| matches!(input, Value::Data)) {
        return !SHAPES.contains(&&*name);
    }
    let outputs = a.outputs.iter().zip(&b.outputs);
    outputs.into_iter().any(|(a, b)| match Value::of(&a.fact, &b.fact) {
        Value::Data => true,
        Value::Known(None) => false,
        Value::Known(Some(differs)) => {
            let one =
                |place: usize| inputs.iter().any(|input| may_differ(input, place, differs.len()));
            differs.iter().enumerate().any(|(place, &differs)| !differs && one(place))
        }
    })
}

/// Whether what an operator on single elements reads of an input for one of so many elements of its output
/// differs; that of another operator, whether anything does.
fn may_differ(input: &Value, place: usize, count: usize) -> bool {
    match input {
        Value::Known(Some(elements)) if elements.len() == count => elements[place],
        input => input.differs(),
    }
}
