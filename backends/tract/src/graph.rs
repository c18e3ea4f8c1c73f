//! The facts that an ONNX file states, read before tract compiles anything.

use crate::LoadError;
use crate::options::LoadOptions;
use forebay_protocol::oip::{Datatype, TensorMetadata};
use std::collections::HashSet;
use tract_onnx::pb;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::tensor_shape_proto::dimension::Value as Dim;

/// Deepest nesting of subgraphs (If, Loop, Scan) that is followed.
const MAX_SUBGRAPHS: usize = 16;

/// Inputs and outputs in the model's order, with the operator's overrides applied.
pub(crate) struct Interface {
    pub(crate) inputs: Vec<TensorMetadata>,
    pub(crate) outputs: Vec<TensorMetadata>,
    /// Places of outputs of which the file gives no shape.
    pub(crate) shapeless: Vec<usize>,
    /// Names of the sizes of each input; empty where the file gives none.
    pub(crate) names: Vec<Vec<String>>,
    /// The same of each output.
    pub(crate) output_names: Vec<Vec<String>>,
    /// Whether the inputs' first dimensions have one name, as far as they have names.
    pub(crate) is_one_batch: bool,
    /// Texts that the graph knows, for inputs that are made up.
    pub(crate) words: Vec<String>,
    /// Deviations from the file in what is served.
    pub(crate) notes: Vec<String>,
}

/// Reads the interface and refuses what is known to go wrong later.
pub(crate) fn inspect(
    proto: &pb::ModelProto,
    options: &LoadOptions,
) -> Result<Interface, LoadError> {
    let graph = proto.graph.as_ref();
    let graph = graph.ok_or_else(|| LoadError::NotOnnx("it holds no graph".to_owned()))?;
    check_nodes(graph, options, 0)?;
    let weights: HashSet<_> = graph.initializer.iter().map(|weight| weight.name.as_str()).collect();
    let inputs = graph.input.iter().filter(|input| !weights.contains(input.name.as_str()));
    let inputs: Vec<_> = inputs.collect();
    let names: Vec<_> = inputs.iter().map(|input| names(input)).collect();
    let rows = names.iter().filter_map(|names| names.first()).filter(|name| !name.is_empty());
    let rows: HashSet<_> = rows.collect();
    let outputs = graph.output.iter().map(|output| metadata(output, true));
    let shapeless = |(_, output): &(usize, &pb::ValueInfoProto)| dims(output).is_none();
    let mut interface = Interface {
        inputs: inputs.iter().map(|input| metadata(input, false)).collect::<Result<_, _>>()?,
        outputs: outputs.collect::<Result<_, _>>()?,
        shapeless: graph.output.iter().enumerate().filter(shapeless).map(|(i, _)| i).collect(),
        is_one_batch: rows.len() <= 1,
        output_names: graph.output.iter().map(self::names).collect(),
        names,
        words: words(graph),
        notes: Vec::new(),
    };
    for (name, shape) in &options.shapes {
        apply(&mut interface, name, shape)?;
    }
    Ok(interface)
}

/// Gives each node a name of its own, which tract insists on and ONNX does not: also those of graphs within
/// the graph. Edges go by the names of values, so nothing else changes.
pub(crate) fn name_nodes(graph: &mut pb::GraphProto) {
    let values = graph.input.iter().map(|input| &input.name);
    let weights = graph.initializer.iter().map(|weight| &weight.name);
    let mut seen: HashSet<String> = values.chain(weights).cloned().collect();
    name_in(graph, &mut seen, 0);
}

fn name_in(graph: &mut pb::GraphProto, seen: &mut HashSet<String>, depth: usize) {
    for (index, node) in graph.node.iter_mut().enumerate() {
        let graphs = node.attribute.iter_mut().flat_map(|a| a.g.iter_mut().chain(&mut a.graphs));
        let graphs: Vec<_> = graphs.collect();
        for graph in graphs {
            if depth < MAX_SUBGRAPHS {
                name_in(graph, seen, depth + 1);
            }
        }
        while !node.name.is_empty() && !seen.insert(node.name.clone()) {
            node.name = format!("{}#{index}", node.name);
        }
    }
}

fn check_nodes(
    graph: &pb::GraphProto,
    options: &LoadOptions,
    depth: usize,
) -> Result<(), LoadError> {
    if depth > MAX_SUBGRAPHS {
        return Err(LoadError::Compile(format!("more than {MAX_SUBGRAPHS} nested subgraphs")));
    }
    graph.initializer.iter().try_for_each(check_weight)?;
    for node in &graph.node {
        if !options.allow_quantized && node.op_type.ends_with("QuantizeLinear") {
            return Err(LoadError::Quantized(node.op_type.clone()));
        }
        for attribute in &node.attribute {
            attribute.t.iter().chain(&attribute.tensors).try_for_each(check_weight)?;
            for subgraph in attribute.g.iter().chain(&attribute.graphs) {
                check_nodes(subgraph, options, depth + 1)?;
            }
        }
    }
    Ok(())
}

fn check_weight(weight: &pb::TensorProto) -> Result<(), LoadError> {
    let external = pb::tensor_proto::DataLocation::External as i32;
    if weight.data_location == Some(external) || !weight.external_data.is_empty() {
        return Err(LoadError::ExternalData(weight.name.clone()));
    }
    Ok(())
}

/// Texts in the attributes of nodes, some of each.
pub(crate) fn words(graph: &pb::GraphProto) -> Vec<String> {
    const SOME: usize = 8;
    let of_classes = |name: &str| name.starts_with("class") || name.starts_with("values");
    let lists = graph.node.iter().flat_map(|node| &node.attribute);
    let lists = lists.filter(|list| list.name != "nodes_modes" && !of_classes(&list.name));
    let words = lists.flat_map(|list| list.strings.iter().take(SOME));
    words.filter_map(|word| String::from_utf8(word.clone()).ok()).collect()
}

fn dims(value: &pb::ValueInfoProto) -> Option<&[pb::tensor_shape_proto::Dimension]> {
    let kind = value.r#type.as_ref().and_then(|kind| kind.value.as_ref())?;
    let pb::type_proto::Value::TensorType(tensor) = kind;
    tensor.shape.as_ref().map(|shape| shape.dim.as_slice())
}

/// The names of the dimensions.
fn names(value: &pb::ValueInfoProto) -> Vec<String> {
    let name = |dim: &pb::tensor_shape_proto::Dimension| match &dim.value {
        Some(Dim::DimParam(name)) => name.clone(),
        _ => String::new(),
    };
    dims(value).unwrap_or_default().iter().map(name).collect()
}

fn metadata(value: &pb::ValueInfoProto, may_lack: bool) -> Result<TensorMetadata, LoadError> {
    let unsupported = |found: String| LoadError::Unsupported { name: value.name.clone(), found };
    let kind = value.r#type.as_ref().and_then(|kind| kind.value.as_ref());
    let Some(pb::type_proto::Value::TensorType(tensor)) = kind else {
        return Err(unsupported("no tensor type".to_owned()));
    };
    let datatype =
        datatype(tensor.elem_type).ok_or_else(|| unsupported(element(tensor.elem_type)))?;
    let shape = match dims(value) {
        Some(dims) => dims,
        // The engine's inferred shapes are stored here later.
        None if may_lack => &[],
        None => return Err(unsupported("no shape".to_owned())),
    };
    let dimension = |dim: &pb::tensor_shape_proto::Dimension| match dim.value {
        // Exporters write 0 and -1 for "any".
        Some(Dim::DimValue(size)) if size > 0 => size,
        _ => -1,
    };
    let shape = shape.iter().map(dimension).collect();
    Ok(TensorMetadata { name: value.name.clone(), datatype, shape })
}

/// The name of a type of elements.
fn element(number: i32) -> String {
    match DataType::try_from(number) {
        Ok(known) => format!("elements of ONNX's type {}", known.as_str_name()),
        Err(_) => format!("elements of a type that ONNX has no name for, {number}"),
    }
}

fn datatype(element: i32) -> Option<Datatype> {
    Some(match DataType::try_from(element).ok()? {
        DataType::Bool => Datatype::Bool,
        DataType::Uint8 => Datatype::Uint8,
        DataType::Uint16 => Datatype::Uint16,
        DataType::Uint32 => Datatype::Uint32,
        DataType::Uint64 => Datatype::Uint64,
        DataType::Int8 => Datatype::Int8,
        DataType::Int16 => Datatype::Int16,
        DataType::Int32 => Datatype::Int32,
        DataType::Int64 => Datatype::Int64,
        DataType::Float16 => Datatype::Fp16,
        DataType::Float => Datatype::Fp32,
        DataType::Double => Datatype::Fp64,
        DataType::String => Datatype::Bytes,
        _ => return None,
    })
}

/// Narrows the shape of one tensor: a file often leaves open what the model does not.
fn apply(interface: &mut Interface, name: &str, shape: &[i64]) -> Result<(), LoadError> {
    let wrong = |expected: String| LoadError::Override {
        name: name.to_owned(),
        expected,
        found: format!("{shape:?}"),
    };
    let mut tensors = interface.inputs.iter_mut().chain(&mut interface.outputs);
    let Some(tensor) = tensors.find(|tensor| tensor.name == name) else {
        return Err(wrong("the name of an input or output".to_owned()));
    };
    let fits = |(&file, &given): (&i64, &i64)| given == file || (file == -1 && given > 0);
    if tensor.shape.len() != shape.len() || !tensor.shape.iter().zip(shape).all(fits) {
        return Err(wrong(format!("a shape within {:?}", tensor.shape)));
    }
    tensor.shape = shape.to_vec();
    Ok(())
}
