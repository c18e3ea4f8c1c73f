//! Sizes of tensors that a graph computes with.
//!
//! Some exporters turn what `Shape` gives into 32-bit integers and back before they use it. The engine
//! can't carry an open size through that, and no plan for all sizes could be made. Casts between
//! integers change no size, so they go where nothing but such casts depends on them.

use std::collections::{HashMap, HashSet};
use tract_onnx::pb;
use tract_onnx::pb::tensor_proto::DataType;

/// Operators that pick or arrange sizes without computing with them.
const MOVES: [&str; 5] = ["Identity", "Slice", "Gather", "Squeeze", "Unsqueeze"];

/// Drops casts of sizes to integers.
pub(super) fn keep_sizes(graph: &mut pb::GraphProto) {
    let mut sizes: HashSet<String> = HashSet::new();
    for place in 0..graph.node.len() {
        let node = &graph.node[place];
        let takes_sizes = node.input.first().is_some_and(|input| sizes.contains(input));
        let is_size = match node.op_type.as_str() {
            "Shape" => true,
            "Cast" if takes_sizes => {
                let goes = is_cast(node, DataType::Int64)
                    || (is_cast(node, DataType::Int32) && comes_back(graph, &node.output));
                if goes {
                    let node = &mut graph.node[place];
                    node.op_type = "Identity".to_owned();
                    node.attribute.clear();
                }
                goes
            }
            moves => takes_sizes && MOVES.contains(&moves),
        };
        if is_size {
            sizes.extend(graph.node[place].output.iter().cloned());
        }
    }
}

fn is_cast(node: &pb::NodeProto, to: DataType) -> bool {
    let is_to = |attribute: &pb::AttributeProto| attribute.i == i64::from(i32::from(to));
    node.op_type == "Cast" && node.attribute.iter().any(|a| a.name == "to" && is_to(a))
}

/// Whether these values are only moved, and made 64-bit integers.
fn comes_back(graph: &pb::GraphProto, values: &[String]) -> bool {
    let mut readers: HashMap<&str, Vec<&pb::NodeProto>> = HashMap::new();
    for node in &graph.node {
        node.input.iter().for_each(|input| readers.entry(input).or_default().push(node));
    }
    let has_graphs = |node: &pb::NodeProto| {
        node.attribute.iter().any(|attribute| attribute.g.is_some() || !attribute.graphs.is_empty())
    };
    // A graph within a node may read any value.
    if graph.node.iter().any(has_graphs) {
        return false;
    }
    let mut open: Vec<&str> = values.iter().map(String::as_str).collect();
    while let Some(value) = open.pop() {
        if graph.output.iter().any(|output| output.name == value) {
            return false;
        }
        for node in readers.get(value).into_iter().flatten() {
            let is_first = node.input.iter().skip(1).all(|input| input != value);
            if is_cast(node, DataType::Int64) {
                continue;
            }
            if !is_first || !MOVES.contains(&node.op_type.as_str()) {
                return false;
            }
            open.extend(node.output.iter().map(String::as_str));
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(op: &str, input: &str, output: &str) -> pb::NodeProto {
        pb::NodeProto {
            op_type: op.to_owned(),
            input: vec![input.to_owned()],
            output: vec![output.to_owned()],
            ..pb::NodeProto::default()
        }
    }

    fn cast(to: DataType, input: &str, output: &str) -> pb::NodeProto {
        let mut cast = node("Cast", input, output);
        let to = i64::from(i32::from(to));
        cast.attribute.push(super::super::nodes::with_integer("to", to));
        cast
    }

    fn kinds(nodes: Vec<pb::NodeProto>) -> Vec<String> {
        let mut graph = pb::GraphProto { node: nodes, ..pb::GraphProto::default() };
        keep_sizes(&mut graph);
        graph.node.into_iter().map(|node| node.op_type).collect()
    }

    #[test]
    fn casts_of_sizes_go_if_they_come_back() {
        let there = |last: pb::NodeProto| {
            let first = [node("Shape", "x", "a"), cast(DataType::Int32, "a", "b")];
            kinds(first.into_iter().chain([node("Slice", "b", "c"), last]).collect())
        };
        let back = there(cast(DataType::Int64, "c", "d"));
        assert_eq!(back, ["Shape", "Identity", "Slice", "Identity"]);
        // Another type of number, and an operator that computes.
        assert_eq!(there(cast(DataType::Float, "c", "d")), ["Shape", "Cast", "Slice", "Cast"]);
        assert_eq!(there(node("Neg", "c", "d")), ["Shape", "Cast", "Slice", "Neg"]);
    }

    #[test]
    fn casts_of_values_stay() {
        let nodes = vec![cast(DataType::Int32, "x", "a"), cast(DataType::Int64, "a", "b")];
        assert_eq!(kinds(nodes), ["Cast", "Cast"]);
    }
}
