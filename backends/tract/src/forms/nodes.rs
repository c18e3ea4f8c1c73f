//! Nodes, their attributes and constants: read, and made.

use crate::LoadError;
use std::collections::{HashMap, HashSet};
use tract_onnx::pb;
use tract_onnx::pb::attribute_proto::AttributeType;

/// Deepest nesting of subgraphs that is followed.
pub(super) const MAX_SUBGRAPHS: usize = 16;

/// A graph on its way into forms that are computed rightly.
pub(super) struct Forms {
    pub(super) opset: i64,
    pub(super) taken: HashSet<String>,
    /// Numbers that the file states.
    pub(super) scalars: HashMap<String, i64>,
    pub(super) doubles: HashSet<String>,
}

/// The nodes that one node becomes.
pub(super) type Nodes = Vec<pb::NodeProto>;

impl Forms {
    /// A name that no value has.
    pub(super) fn fresh(&mut self, node: &pb::NodeProto, what: &str) -> String {
        let output = node.output.iter().find(|output| !output.is_empty());
        let mut name = format!("{}.forebay-{what}", output.map_or("", String::as_str));
        while !self.taken.insert(name.clone()) {
            name.push('\'');
        }
        name
    }
}

pub(super) fn refused(node: &pb::NodeProto, attribute: &str, value: &str) -> LoadError {
    LoadError::Operator {
        operator: node.op_type.clone(),
        node: node.name.clone(),
        attribute: attribute.to_owned(),
        value: value.to_owned(),
    }
}

pub(super) fn clip(x: &str, low: &str, high: &str, y: &str, opset: i64) -> pb::NodeProto {
    if opset >= 11 {
        return plain("Clip", &[x, low, high], y);
    }
    // Bounded by the whole range of 32-bit numbers unless it says otherwise.
    plain("Clip", &[x], y)
}

pub(super) fn plain(op: &str, inputs: &[&str], output: &str) -> pb::NodeProto {
    pb::NodeProto {
        op_type: op.to_owned(),
        // The engine wants a name for each node that no other has: those of values are such.
        name: output.to_owned(),
        input: inputs.iter().map(|&input| input.to_owned()).collect(),
        output: vec![output.to_owned()],
        ..pb::NodeProto::default()
    }
}

pub(super) fn constant(output: &str, value: f32) -> pb::NodeProto {
    let tensor = pb::TensorProto {
        data_type: pb::tensor_proto::DataType::Float as i32,
        float_data: vec![value],
        ..pb::TensorProto::default()
    };
    with_tensor(output, tensor)
}

pub(super) fn constant_integers(output: &str, values: &[i64]) -> pb::NodeProto {
    let tensor = pb::TensorProto {
        data_type: pb::tensor_proto::DataType::Int64 as i32,
        dims: vec![i64::try_from(values.len()).unwrap_or(0)],
        int64_data: values.to_vec(),
        ..pb::TensorProto::default()
    };
    with_tensor(output, tensor)
}

pub(super) fn with_tensor(output: &str, tensor: pb::TensorProto) -> pb::NodeProto {
    let mut node = plain("Constant", &[], output);
    let mut attribute = attribute("value", AttributeType::Tensor);
    attribute.t = Some(tensor);
    node.attribute.push(attribute);
    node
}

pub(super) fn attribute(name: &str, kind: AttributeType) -> pb::AttributeProto {
    pb::AttributeProto {
        name: name.to_owned(),
        r#type: kind as i32,
        ..pb::AttributeProto::default()
    }
}

pub(super) fn with_integer(name: &str, value: i64) -> pb::AttributeProto {
    pb::AttributeProto { i: value, ..attribute(name, AttributeType::Int) }
}

pub(super) fn find<'a>(node: &'a pb::NodeProto, name: &str) -> Option<&'a pb::AttributeProto> {
    node.attribute.iter().find(|attribute| attribute.name == name)
}

pub(super) fn integer(node: &pb::NodeProto, name: &str) -> Option<i64> {
    find(node, name).map(|attribute| attribute.i)
}

pub(super) fn ints<'a>(node: &'a pb::NodeProto, name: &str) -> Option<&'a [i64]> {
    find(node, name).map(|attribute| attribute.ints.as_slice())
}

pub(super) fn text(node: &pb::NodeProto, name: &str) -> Option<String> {
    find(node, name).map(|attribute| String::from_utf8_lossy(&attribute.s).into_owned())
}
