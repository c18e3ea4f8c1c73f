//! Nodes that the engine would compute wrongly, put into a form that it computes rightly, or refused.
//!
//! This is done to the file's own graph, before the engine reads it: a formula that overflows becomes one
//! that does not, a net that runs backwards becomes one that runs forwards over its reversed input. A node
//! without such a form is refused with its operator, name and attribute.

mod file;
mod fused;
mod nodes;
mod precision;
mod sizes;
mod unroll;

pub(crate) use file::{drop_maps, simplify};

use crate::LoadError;
use nodes::{
    Forms, MAX_SUBGRAPHS, Nodes, attribute, clip, constant, constant_integers, find, integer, ints,
    plain, refused, text, with_integer,
};
use std::collections::{HashMap, HashSet};
use tract_onnx::pb;
use tract_onnx::pb::attribute_proto::AttributeType;

/// Puts all nodes of a model into forms that are computed rightly.
///
/// # Errors
/// A node has none.
pub(crate) fn stabilise(model: &mut pb::ModelProto) -> Result<(), LoadError> {
    let opset = model.opset_import.iter().find(|set| ["", "ai.onnx"].contains(&&*set.domain));
    let opset = opset.map_or(0, |set| set.version);
    let Some(graph) = model.graph.as_mut() else { return Ok(()) };
    precision::fit(graph);
    let mut taken = HashSet::new();
    names(graph, &mut taken, 0);
    let (mut scalars, doubles) = (HashMap::new(), doubles(graph));
    unroll::scalars(graph, &mut scalars);
    Forms { opset, taken, scalars, doubles }.graph(graph, 0)
}

/// Names of all values, which new ones must not have.
fn names(graph: &pb::GraphProto, taken: &mut HashSet<String>, depth: usize) {
    taken.extend(graph.input.iter().map(|input| input.name.clone()));
    taken.extend(graph.initializer.iter().map(|weight| weight.name.clone()));
    for node in &graph.node {
        taken.extend(node.output.iter().cloned());
        let graphs = node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs));
        if depth < MAX_SUBGRAPHS {
            graphs.for_each(|graph| names(graph, taken, depth + 1));
        }
    }
}

/// Inputs and weights of double precision.
fn doubles(graph: &pb::GraphProto) -> HashSet<String> {
    let double = i32::from(pb::tensor_proto::DataType::Double);
    let is_double = |value: &&pb::ValueInfoProto| {
        let kind = value.r#type.as_ref().and_then(|kind| kind.value.as_ref());
        let pb::type_proto::Value::TensorType(tensor) = kind?;
        (tensor.elem_type == double).then_some(())
    };
    let inputs = graph.input.iter().filter(|value| is_double(value).is_some());
    let weights = graph.initializer.iter().filter(|weight| weight.data_type == double);
    inputs.map(|i| i.name.clone()).chain(weights.map(|weight| weight.name.clone())).collect()
}

impl Forms {
    fn graph(&mut self, graph: &mut pb::GraphProto, depth: usize) -> Result<(), LoadError> {
        if depth > MAX_SUBGRAPHS {
            return Err(LoadError::Compile(format!("more than {MAX_SUBGRAPHS} nested subgraphs")));
        }
        sizes::keep_sizes(graph);
        let mut nodes = Vec::with_capacity(graph.node.len());
        for mut node in std::mem::take(&mut graph.node) {
            for attribute in &mut node.attribute {
                for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
                    self.graph(graph, depth + 1)?;
                }
            }
            let unrolled = if node.op_type == "Loop" { self.unrolled(&node)? } else { vec![node] };
            for node in unrolled {
                nodes.extend(self.node(node)?);
            }
        }
        graph.node = nodes;
        Ok(())
    }

    fn node(&mut self, mut node: pb::NodeProto) -> Result<Nodes, LoadError> {
        let is_usual = ["", "ai.onnx"].contains(&node.domain.as_str());
        if node.domain == "com.microsoft"
            && let Some(nodes) = self.fused(&node)?
        {
            return Ok(nodes);
        }
        match node.op_type.as_str() {
            "Attention" if is_usual => {
                crate::operators::ATTENTION.clone_into(&mut node.op_type);
                Ok(vec![node])
            }
            "ConstantOfShape" => {
                precision::filled(&mut node);
                Ok(vec![node])
            }
            "Gemm" if node.input.iter().any(|input| self.doubles.contains(input)) => {
                Ok(self.double_product(&node))
            }
            "LSTM" | "GRU" | "RNN" => self.recurrent(node),
            "ReduceLogSumExp" => Ok(self.log_sum_exp(&node)),
            "SpaceToDepth" | "DepthToSpace" => {
                let mode = text(&node, "mode").unwrap_or_default();
                match (node.op_type.as_str(), mode.as_str()) {
                    ("DepthToSpace", _) | (_, "" | "DCR") => Ok(vec![node]),
                    _ => Err(refused(&node, "mode", &mode)),
                }
            }
            "ConvTranspose" => {
                let is_padded = text(&node, "auto_pad").is_some_and(|pad| pad.starts_with("SAME"));
                let has_output_padding = ints(&node, "output_padding")
                    .is_some_and(|padding| padding.iter().any(|&padding| padding != 0));
                match ints(&node, "output_shape") {
                    Some(shape) => Err(refused(&node, "output_shape", &format!("{shape:?}"))),
                    None if is_padded && has_output_padding => {
                        Err(refused(&node, "output_padding", "beside auto_pad = SAME"))
                    }
                    None => Ok(vec![node]),
                }
            }
            "MaxPool" | "AveragePool" | "LpPool" => Ok(vec![without_padding(node)]),
            "TopK" if self.opset < 10 => Ok(self.top(node)),
            "Slice" if self.opset < 10 => Ok(self.slice(node)),
            "MeanVarianceNormalization" => Ok(self.normalised(&node)),
            "Swish" => match find(&node, "alpha").map_or(1.0, |alpha| alpha.f) {
                1.0 => Ok(vec![node]),
                other => Err(refused(&node, "alpha", &other.to_string())),
            },
            "GlobalLpPool" => {
                let p = integer(&node, "p").unwrap_or(2);
                Err(refused(&node, "p", &p.to_string()))
            }
            _ => Ok(vec![node]),
        }
    }

    /// m + ln(sum(e^(x - m))) with the greatest value m, bounded, so that infinities come out.
    fn log_sum_exp(&mut self, node: &pb::NodeProto) -> Nodes {
        let [greatest, bounded, least, most, off, exp, sum, log, kept, shift] =
            ["greatest", "bounded", "least", "most", "off", "exp", "sum", "log", "kept", "shift"]
                .map(|what| self.fresh(node, what));
        let x = node.input.first().cloned().unwrap_or_default();
        // The axes are an attribute or an input, in the same version of the set for all of these.
        let reduce = |op: &str, x: &str, y: &str, keep: Option<i64>| {
            let mut made =
                pb::NodeProto { op_type: op.to_owned(), name: y.to_owned(), ..node.clone() };
            if let Some(first) = made.input.first_mut() {
                x.clone_into(first);
            }
            made.output = vec![y.to_owned()];
            if let Some(keep) = keep {
                made.attribute.retain(|attribute| attribute.name != "keepdims");
                made.attribute.push(with_integer("keepdims", keep));
            }
            made
        };
        let y = node.output.first().cloned().unwrap_or_default();
        vec![
            constant(&least, f32::MIN),
            constant(&most, f32::MAX),
            reduce("ReduceMax", &x, &greatest, Some(1)),
            clip(&greatest, &least, &most, &bounded, self.opset),
            plain("Sub", &[&x, &bounded], &off),
            plain("Exp", &[&off], &exp),
            // Of values that are not negative, the sum of their sizes.
            reduce("ReduceL1", &exp, &sum, None),
            plain("Log", &[&sum], &log),
            reduce("ReduceMax", &x, &kept, None),
            clip(&kept, &least, &most, &shift, self.opset),
            plain("Add", &[&log, &shift], &y),
        ]
    }

    /// As the next version of the operator set has it, with the number of values as an input.
    fn top(&mut self, mut node: pb::NodeProto) -> Nodes {
        let name = self.fresh(&node, "count");
        let count = constant_integers(&name, &[integer(&node, "k").unwrap_or(1)]);
        node.input.truncate(1);
        node.input.push(name);
        vec![count, node]
    }

    /// With its places as inputs, like that of later versions: tract's of the earlier ones fails where it
    /// begins behind the end of an axis, or ends before it.
    fn slice(&mut self, mut node: pb::NodeProto) -> Nodes {
        let of = |name: &str| ints(&node, name).map(<[i64]>::to_vec);
        let (starts, ends) = (of("starts").unwrap_or_default(), of("ends").unwrap_or_default());
        let axes = of("axes").unwrap_or_else(|| (0_i64..).take(starts.len()).collect());
        let mut nodes = Vec::new();
        for (what, values) in [("starts", starts), ("ends", ends), ("axes", axes)] {
            let name = self.fresh(&node, what);
            nodes.push(constant_integers(&name, &values));
            node.input.push(name);
        }
        crate::operators::SLICE.clone_into(&mut node.op_type);
        node.attribute.clear();
        nodes.push(node);
        nodes
    }

    /// (x - m) / (s + 1e-9) with the mean m and the deviation s of x - m: of squares of x itself nothing is
    /// left where the mean is large.
    fn normalised(&mut self, node: &pb::NodeProto) -> Nodes {
        let [mean, off, square, variance, deviation, least, divisor] =
            ["mean", "off", "square", "variance", "deviation", "least", "divisor"]
                .map(|what| self.fresh(node, what));
        let x = node.input.first().cloned().unwrap_or_default();
        let y = node.output.first().cloned().unwrap_or_default();
        let axes = ints(node, "axes").map_or_else(|| vec![0, 2, 3], <[i64]>::to_vec);
        let given = self.fresh(node, "axes");
        let mut nodes = Vec::new();
        if self.opset >= 18 {
            nodes.push(constant_integers(&given, &axes));
        }
        let reduce = |from: &str, to: &str| {
            let mut made = plain("ReduceMean", &[from], to);
            if self.opset >= 18 {
                made.input.push(given.clone());
            } else {
                let mut attribute = attribute("axes", AttributeType::Ints);
                attribute.ints.clone_from(&axes);
                made.attribute.push(attribute);
            }
            made
        };
        nodes.extend([
            reduce(&x, &mean),
            plain("Sub", &[&x, &mean], &off),
            plain("Mul", &[&off, &off], &square),
            reduce(&square, &variance),
            plain("Sqrt", &[&variance], &deviation),
            constant(&least, 1e-9),
            plain("Add", &[&deviation, &least], &divisor),
            plain("Div", &[&off, &divisor], &y),
        ]);
        nodes
    }

    /// Recurrent nets: tract runs the usual ones forwards, and nothing else.
    fn recurrent(&mut self, mut node: pb::NodeProto) -> Result<Nodes, LoadError> {
        // A net with unusual attributes is built step by step from the definition, in either direction.
        if crate::operators::is_unusual(&node, self.opset) {
            return Ok(vec![node]);
        }
        let mut nodes = self.apart(&mut node);
        let direction = text(&node, "direction").unwrap_or_else(|| "forward".to_owned());
        if direction != "reverse" {
            nodes.push(node);
            return Ok(nodes);
        }
        node.attribute.retain(|attribute| attribute.name != "direction");
        let time = i64::from(integer(&node, "layout") == Some(1));
        let x = node.input.first().cloned().unwrap_or_default();
        let turned = self.fresh(&node, "turned");
        nodes.extend(self.turn(&node, &x, &turned, time));
        node.input[0] = turned;
        let y = node.output.first().cloned().unwrap_or_default();
        if y.is_empty() {
            nodes.push(node);
            return Ok(nodes);
        }
        let forwards = self.fresh(&node, "forwards");
        let back = self.turn(&node, &forwards, &y, time);
        node.output[0] = forwards;
        nodes.push(node);
        nodes.extend(back);
        Ok(nodes)
    }

    /// Keeps the first cell from being the first state: tract gives up a net where one value is both.
    fn apart(&mut self, node: &mut pb::NodeProto) -> Nodes {
        let has = |slot: usize| node.input.get(slot).is_some_and(|name| !name.is_empty());
        if node.op_type != "LSTM" || !has(5) || !has(6) {
            return Vec::new();
        }
        let kept = self.fresh(node, "cell");
        let first = std::mem::replace(&mut node.input[6], kept.clone());
        vec![plain(crate::operators::KEPT, &[&first], &kept)]
    }

    /// Turns an axis round.
    fn turn(&mut self, node: &pb::NodeProto, from: &str, to: &str, axis: i64) -> Nodes {
        let values = [("start", -1), ("end", i64::MIN + 1), ("axis", axis), ("step", -1)];
        let mut inputs = vec![from.to_owned()];
        let mut nodes = Vec::new();
        for (what, value) in values {
            let name = self.fresh(node, what);
            nodes.push(constant_integers(&name, &[value]));
            inputs.push(name);
        }
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        nodes.push(plain("Slice", &inputs, to));
        nodes
    }
}

/// `VALID` is no padding at all; where it says so, tract forgets that the last window may be cut off.
fn without_padding(mut node: pb::NodeProto) -> pb::NodeProto {
    if text(&node, "auto_pad").is_some_and(|pad| pad == "VALID") {
        node.attribute.retain(|attribute| !["auto_pad", "pads"].contains(&attribute.name.as_str()));
    }
    node
}
