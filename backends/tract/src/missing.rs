//! Operators of a file that the engine lacks, all of them named before anything is compiled.

use crate::LoadError;
use std::collections::HashSet;
use tract_onnx::Onnx;
use tract_onnx::pb;

/// Those that are named; the others are counted.
const NAMED: usize = 12;
/// Deepest nesting of graphs that is followed.
const MAX_SUBGRAPHS: usize = 16;
/// Domains whose operators have the names that the engine knows.
const DOMAINS: [&str; 6] =
    ["", "ai.onnx", "ai.onnx.ml", "com.microsoft", "ai.onnx.training", "ai.onnx.preview.training"];

/// Refuses a graph with operators that are not there.
///
/// # Errors
/// There are some.
pub(crate) fn check(graph: &pb::GraphProto, framework: &Onnx) -> Result<(), LoadError> {
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    walk(graph, framework, 0, &mut |node| {
        if seen.insert((node.domain.clone(), node.op_type.clone())) {
            found.push(format!("{} (node \"{}\")", full_name(node), name(node)));
        }
    });
    if found.is_empty() {
        return Ok(());
    }
    let count = found.len();
    let more = count.saturating_sub(NAMED);
    found.truncate(NAMED);
    let mut operators = found.join(", ");
    if more > 0 {
        operators.push_str(&format!(" and {more} more"));
    }
    Err(LoadError::Missing { count, operators })
}

/// Domain and type, such as `ai.onnx.Relu`.
pub(crate) fn full_name(node: &pb::NodeProto) -> String {
    let domain = if node.domain.is_empty() { "ai.onnx" } else { &node.domain };
    format!("{domain}.{}", node.op_type)
}

fn name(node: &pb::NodeProto) -> String {
    let output = node.output.iter().find(|output| !output.is_empty());
    let name = if node.name.is_empty() { output.map_or("", |o| o) } else { &node.name };
    name.escape_debug().to_string()
}

fn walk(
    graph: &pb::GraphProto,
    framework: &Onnx,
    depth: usize,
    take: &mut impl FnMut(&pb::NodeProto),
) {
    for node in &graph.node {
        let is_known = DOMAINS.contains(&node.domain.as_str())
            && framework.op_register.0.contains_key(&node.op_type);
        if !is_known {
            take(node);
        }
        let graphs = node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs));
        if depth < MAX_SUBGRAPHS {
            graphs.for_each(|graph| walk(graph, framework, depth + 1, take));
        }
    }
}
