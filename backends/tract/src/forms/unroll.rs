//! Loops of a number of steps that the file states, step by step.

use super::nodes::{Forms, Nodes, constant_integers, plain, refused, with_tensor};
use crate::LoadError;
use std::collections::HashMap;
use tract_onnx::pb;
use tract_onnx::pb::tensor_proto::DataType;

/// Nodes that a loop may become.
const MAX_NODES: usize = 20_000;

/// A number or truth that a tensor of one element holds.
pub(super) fn scalar(tensor: &pb::TensorProto) -> Option<i64> {
    if tensor.dims.iter().any(|&dim| dim != 1) {
        return None;
    }
    let raw = tensor.raw_data.as_slice();
    match DataType::try_from(tensor.data_type).ok()? {
        DataType::Int64 => match tensor.int64_data.first() {
            Some(&value) => Some(value),
            None => Some(i64::from_le_bytes(raw.try_into().ok()?)),
        },
        DataType::Int32 => match tensor.int32_data.first() {
            Some(&value) => Some(i64::from(value)),
            None => Some(i64::from(i32::from_le_bytes(raw.try_into().ok()?))),
        },
        DataType::Bool => match tensor.int32_data.first() {
            Some(&value) => Some(i64::from(value != 0)),
            None => raw.first().map(|&byte| i64::from(byte != 0)),
        },
        _ => None,
    }
}

/// Numbers that initializers and constants of a graph hold.
pub(super) fn scalars(graph: &pb::GraphProto, known: &mut HashMap<String, i64>) {
    for weight in &graph.initializer {
        if let Some(value) = scalar(weight) {
            known.insert(weight.name.clone(), value);
        }
    }
    for node in graph.node.iter().filter(|node| node.op_type == "Constant") {
        let value = node.attribute.iter().find(|a| a.name == "value").and_then(|a| a.t.as_ref());
        if let (Some(value), Some(output)) = (value.and_then(scalar), node.output.first()) {
            known.insert(output.clone(), value);
        }
    }
}

impl Forms {
    /// The steps of a loop, one behind the other.
    pub(super) fn unrolled(&mut self, node: &pb::NodeProto) -> Result<Nodes, LoadError> {
        let no = |what: &str| Err(refused(node, "body", what));
        let body = node.attribute.iter().find(|a| a.name == "body").and_then(|a| a.g.as_ref());
        let Some(body) = body else { return no("none") };
        let input = |slot: usize| node.input.get(slot).map_or("", String::as_str);
        let Some(&steps) = self.scalars.get(input(0)) else {
            return no("a number of steps that is not a constant of the file");
        };
        let is_true =
            |name: &str| name.is_empty() || self.scalars.get(name).is_some_and(|&v| v != 0);
        let steps = usize::try_from(steps).unwrap_or(0);
        let carried = node.input.len().saturating_sub(2);
        let fits = body.input.len() == carried + 2 && body.output.len() > carried;
        if !is_true(input(1)) || !fits {
            return no("a condition to begin that is not a constant of the file");
        }
        let mut own = self.scalars.clone();
        scalars(body, &mut own);
        let goes_on = goes_on(body, &own);
        if !goes_on {
            return no("a condition to go on that depends on values");
        }
        if steps.saturating_mul(body.node.len() + body.initializer.len() + 2) > MAX_NODES {
            return no("more steps than can be put one behind the other");
        }
        let mut state: Vec<String> = node.input.iter().skip(2).cloned().collect();
        let scans = body.output.len() - 1 - carried;
        let mut scanned: Vec<Vec<String>> = vec![Vec::new(); scans];
        let mut nodes = Vec::new();
        for step in 0..steps {
            let made = self.step(node, body, step, &state, &mut nodes);
            state = made[..carried].to_vec();
            made[carried..].iter().zip(&mut scanned).for_each(|(v, all)| all.push(v.clone()));
        }
        for (output, value) in node.output.iter().zip(&state).filter(|(o, _)| !o.is_empty()) {
            nodes.push(plain("Identity", &[value], output));
        }
        for (place, values) in scanned.iter().enumerate() {
            let Some(output) = node.output.get(carried + place).filter(|o| !o.is_empty()) else {
                continue;
            };
            if values.is_empty() {
                return no("no step, of which values are gathered");
            }
            self.stack(node, values, output, &mut nodes);
        }
        Ok(nodes)
    }

    /// The nodes of a step; gives the names of its values.
    fn step(
        &mut self,
        node: &pb::NodeProto,
        body: &pb::GraphProto,
        step: usize,
        state: &[String],
        nodes: &mut Nodes,
    ) -> Vec<String> {
        let (count, go) =
            (self.fresh(node, &format!("step{step}")), self.fresh(node, &format!("go{step}")));
        let number = pb::TensorProto {
            data_type: DataType::Int64 as i32,
            int64_data: vec![i64::try_from(step).unwrap_or(i64::MAX)],
            ..pb::TensorProto::default()
        };
        nodes.push(with_tensor(&count, number));
        let truth = pb::TensorProto {
            data_type: DataType::Bool as i32,
            int32_data: vec![1],
            ..pb::TensorProto::default()
        };
        nodes.push(with_tensor(&go, truth));
        let given = [count, go].into_iter().chain(state.iter().cloned());
        let mut names: HashMap<String, String> =
            body.input.iter().map(|input| input.name.clone()).zip(given).collect();
        for weight in &body.initializer {
            let name = self.fresh(node, &format!("{}.{step}", weight.name));
            nodes.push(with_tensor(&name, weight.clone()));
            names.insert(weight.name.clone(), name);
        }
        for inner in &body.node {
            for output in inner.output.iter().filter(|output| !output.is_empty()) {
                let name = self.fresh(node, &format!("{output}.{step}"));
                names.insert(output.clone(), name);
            }
            let mut made = inner.clone();
            made.name.clear();
            renamed(&mut made, &names);
            nodes.push(made);
        }
        let value = |output: &pb::ValueInfoProto| {
            names.get(&output.name).cloned().unwrap_or_else(|| output.name.clone())
        };
        body.output.iter().skip(1).map(value).collect()
    }

    /// Values of all steps along a new first axis.
    fn stack(&mut self, node: &pb::NodeProto, values: &[String], output: &str, nodes: &mut Nodes) {
        let axes = self.fresh(node, "axes");
        nodes.push(constant_integers(&axes, &[0]));
        let mut parts = Vec::new();
        for value in values {
            let part = self.fresh(node, "part");
            let mut wider = plain("Unsqueeze", &[value, &axes], &part);
            if self.opset < 13 {
                wider.input.truncate(1);
                let mut attribute =
                    super::nodes::attribute("axes", pb::attribute_proto::AttributeType::Ints);
                attribute.ints = vec![0];
                wider.attribute.push(attribute);
            }
            nodes.push(wider);
            parts.push(part);
        }
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let mut concat = plain("Concat", &parts, output);
        concat.attribute.push(super::nodes::with_integer("axis", 0));
        nodes.push(concat);
    }
}

/// Whether the body says to go on at each step.
fn goes_on(body: &pb::GraphProto, known: &HashMap<String, i64>) -> bool {
    let Some(output) = body.output.first() else { return false };
    let given = body.input.get(1).map(|input| input.name.as_str());
    let mut name = output.name.as_str();
    for _ in 0..=body.node.len() {
        if Some(name) == given || known.get(name).is_some_and(|&value| value != 0) {
            return true;
        }
        let maker = body.node.iter().find(|node| node.output.iter().any(|o| o == name));
        match maker {
            Some(node) if ["Identity", "Cast"].contains(&node.op_type.as_str()) => {
                name = node.input.first().map_or("", String::as_str);
            }
            _ => return false,
        }
    }
    false
}

/// Gives values their names in a step, also where graphs within read them.
fn renamed(node: &mut pb::NodeProto, names: &HashMap<String, String>) {
    for name in node.input.iter_mut().chain(&mut node.output) {
        if let Some(known) = names.get(name) {
            name.clone_from(known);
        }
    }
    for attribute in &mut node.attribute {
        for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
            graph.node.iter_mut().for_each(|node| renamed(node, names));
            for output in &mut graph.output {
                if let Some(known) = names.get(&output.name) {
                    output.name.clone_from(known);
                }
            }
        }
    }
}
