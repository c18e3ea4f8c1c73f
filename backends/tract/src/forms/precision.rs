//! Numbers of types that the engine does not compute with, in types that it does.
//!
//! BFLOAT16 becomes FP32, and so do all halves of a graph with weights in halves: no processor here multiplies
//! them, and ONNX Runtime widens them as well. Integers of 4 bits become those of 8, and weights that are
//! quantised in blocks the numbers that they stand for.

use super::nodes::{MAX_SUBGRAPHS, find, integer, plain, with_integer};
use std::collections::{HashMap, HashSet};
use tract_onnx::pb;
use tract_onnx::pb::tensor_proto::DataType;

/// Makes the types fit.
pub(super) fn fit(graph: &mut pb::GraphProto) {
    let mut has_halves = false;
    tensors(graph, 0, &mut |tensor| match DataType::try_from(tensor.data_type) {
        Ok(DataType::Bfloat16) => widen(tensor, |bits| f32::from_bits(u32::from(bits) << 16)),
        Ok(DataType::Int4 | DataType::Uint4) => unpack(tensor),
        Ok(DataType::Float16) => has_halves = true,
        _ => {}
    });
    fold_blocks(graph);
    casts(graph, DataType::Bfloat16, 0);
    if has_halves {
        halves(graph);
    }
}

fn tensors(graph: &mut pb::GraphProto, depth: usize, take: &mut impl FnMut(&mut pb::TensorProto)) {
    if depth > MAX_SUBGRAPHS {
        return;
    }
    graph.initializer.iter_mut().for_each(&mut *take);
    for node in &mut graph.node {
        for attribute in &mut node.attribute {
            attribute.t.iter_mut().chain(&mut attribute.tensors).for_each(&mut *take);
            for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
                tensors(graph, depth + 1, take);
            }
        }
    }
}

/// Elements of 16 bits as FP32.
fn widen(tensor: &mut pb::TensorProto, value: impl Fn(u16) -> f32) {
    let bits: Vec<u16> = if tensor.raw_data.is_empty() {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "16 bits of it")]
        tensor.int32_data.iter().map(|&bits| bits as u16).collect()
    } else {
        let (chunks, _) = tensor.raw_data.as_chunks();
        chunks.iter().map(|bytes| u16::from_le_bytes(*bytes)).collect()
    };
    let wide = bits.into_iter().map(value);
    tensor.raw_data = wide.flat_map(f32::to_le_bytes).collect::<Vec<u8>>();
    tensor.int32_data.clear();
    tensor.data_type = DataType::Float.into();
}

/// Elements of 4 bits, two in a byte, as elements of 8.
fn unpack(tensor: &mut pb::TensorProto) {
    let is_signed = tensor.data_type == i32::from(DataType::Int4);
    let count = tensor
        .dims
        .iter()
        .fold(1_usize, |count, &dim| count.saturating_mul(usize::try_from(dim).unwrap_or(0)));
    let packed: Vec<u8> = if tensor.raw_data.is_empty() {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "8 bits of it")]
        tensor.int32_data.iter().map(|&byte| byte as u8).collect()
    } else {
        tensor.raw_data.clone()
    };
    let halves = packed.into_iter().flat_map(|byte| [byte & 15, byte >> 4]);
    let signed = |half: u8| if is_signed && half > 7 { half | 0xf0 } else { half };
    tensor.raw_data = halves.map(signed).take(count).collect::<Vec<u8>>();
    tensor.int32_data.clear();
    let to = if is_signed { DataType::Int8 } else { DataType::Uint8 };
    tensor.data_type = to.into();
}

fn numbers(tensor: &pb::TensorProto) -> Option<Vec<f32>> {
    let raw = &tensor.raw_data;
    Some(match DataType::try_from(tensor.data_type).ok()? {
        DataType::Float if raw.is_empty() => tensor.float_data.clone(),
        DataType::Float => raw.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        DataType::Int8 if !raw.is_empty() => {
            raw.iter().map(|&byte| f32::from(byte.cast_signed())).collect()
        }
        DataType::Uint8 if !raw.is_empty() => raw.iter().map(|&byte| f32::from(byte)).collect(),
        #[allow(clippy::cast_precision_loss, reason = "8 bits")]
        DataType::Int8 | DataType::Uint8 => {
            tensor.int32_data.iter().map(|&value| value as f32).collect()
        }
        _ => return None,
    })
}

/// Weights that are quantised in blocks along an axis.
fn fold_blocks(graph: &mut pb::GraphProto) {
    let known: HashMap<String, usize> =
        graph.initializer.iter().enumerate().map(|(i, w)| (w.name.clone(), i)).collect();
    let mut made = Vec::new();
    for node in &mut graph.node {
        let size = integer(node, "block_size").unwrap_or(0);
        if node.op_type != "DequantizeLinear" || size <= 0 {
            continue;
        }
        let tensor = |slot: usize| {
            node.input.get(slot).and_then(|name| known.get(name)).map(|&i| &graph.initializer[i])
        };
        let Some(wide) = tensor(0).zip(tensor(1)).and_then(|(x, scale)| {
            let zero = node.input.get(2).filter(|name| !name.is_empty());
            let zero = zero.map(|_| tensor(2).and_then(numbers));
            let zero = match zero {
                Some(None) => return None,
                Some(Some(zero)) => zero,
                None => Vec::new(),
            };
            dequantized(x, scale, &zero, integer(node, "axis").unwrap_or(1), size)
        }) else {
            continue;
        };
        let name = format!("{}.forebay-blocks", node.output.first().map_or("", |o| o));
        let kept = plain("Identity", &[&name], node.output.first().map_or("", String::as_str));
        made.push(pb::TensorProto { name, ..wide });
        *node = pb::NodeProto { name: node.name.clone(), ..kept };
    }
    graph.initializer.extend(made);
}

fn dequantized(
    x: &pb::TensorProto,
    scale: &pb::TensorProto,
    zero: &[f32],
    axis: i64,
    size: i64,
) -> Option<pb::TensorProto> {
    let size = usize::try_from(size).ok()?;
    let dims: Vec<usize> =
        x.dims.iter().map(|&dim| usize::try_from(dim)).collect::<Result<_, _>>().ok()?;
    let rank = i64::try_from(dims.len()).ok()?;
    let axis = usize::try_from(if axis < 0 { axis + rank } else { axis }).ok()?;
    let along = *dims.get(axis)?;
    let inner: usize = dims[axis + 1..].iter().product();
    let (values, scales) = (numbers(x)?, numbers(scale)?);
    let blocks = along.div_ceil(size);
    let outer: usize = dims[..axis].iter().product();
    if scales.len() != outer * blocks * inner || (!zero.is_empty() && zero.len() != scales.len()) {
        return None;
    }
    let wide = values.iter().enumerate().map(|(place, value)| {
        let (row, rest) = (place / (along * inner), place % (along * inner));
        let block = (row * blocks + rest / inner / size) * inner + rest % inner;
        (value - zero.get(block).copied().unwrap_or(0.0)) * scales[block]
    });
    Some(pb::TensorProto {
        dims: x.dims.clone(),
        data_type: DataType::Float.into(),
        raw_data: wide.flat_map(f32::to_le_bytes).collect::<Vec<u8>>(),
        ..pb::TensorProto::default()
    })
}

/// Casts and made values of a type become FP32.
fn casts(graph: &mut pb::GraphProto, from: DataType, depth: usize) {
    for node in &mut graph.node {
        for attribute in &mut node.attribute {
            let names_type = ["to", "dtype"].contains(&attribute.name.as_str());
            if names_type && attribute.i == i64::from(i32::from(from)) {
                attribute.i = i64::from(i32::from(DataType::Float));
            }
            for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
                if depth < MAX_SUBGRAPHS {
                    casts(graph, from, depth + 1);
                }
            }
        }
    }
}

/// The same graph in FP32, with halves at its inputs and outputs.
fn halves(graph: &mut pb::GraphProto) {
    tensors(graph, 0, &mut |tensor| {
        if tensor.data_type == i32::from(DataType::Float16) {
            widen(tensor, |bits| tract_onnx::prelude::f16::from_bits(bits).to_f32());
        }
    });
    casts(graph, DataType::Float16, 0);
    types_within(graph, 0);
    let weights: HashSet<String> = graph.initializer.iter().map(|w| w.name.clone()).collect();
    let is_half = |value: &&pb::ValueInfoProto| element(value) == Some(DataType::Float16);
    let inputs = graph.input.iter().filter(is_half).filter(|i| !weights.contains(&i.name));
    let inputs: Vec<String> = inputs.map(|input| input.name.clone()).collect();
    let outputs: Vec<String> =
        graph.output.iter().filter(is_half).map(|output| output.name.clone()).collect();
    let mut names: HashMap<String, String> = HashMap::new();
    let wide = |name: &String| (name.clone(), format!("{name}.forebay-wide"));
    names.extend(inputs.iter().map(wide));
    names.extend(outputs.iter().map(wide));
    rename_in(graph, &names, 0);
    let cast = |from: &str, to: &str, kind: DataType| {
        let mut node = plain("Cast", &[from], to);
        node.name = format!("{to}.forebay-cast");
        node.attribute.push(with_integer("to", i64::from(i32::from(kind))));
        node
    };
    let first: Vec<_> =
        inputs.iter().map(|name| cast(name, &names[name], DataType::Float)).collect();
    let last = outputs.iter().filter(|output| !inputs.contains(output));
    let last: Vec<_> = last.map(|name| cast(&names[name], name, DataType::Float16)).collect();
    let nodes = std::mem::take(&mut graph.node);
    graph.node = first.into_iter().chain(nodes).chain(last).collect();
}

fn element(value: &pb::ValueInfoProto) -> Option<DataType> {
    let pb::type_proto::Value::TensorType(tensor) = value.r#type.as_ref()?.value.as_ref()?;
    DataType::try_from(tensor.elem_type).ok()
}

/// Types that graphs within the graph state.
fn types_within(graph: &mut pb::GraphProto, depth: usize) {
    for graph in graph.node.iter_mut().flat_map(|node| &mut node.attribute) {
        for graph in graph.g.iter_mut().chain(&mut graph.graphs) {
            for value in graph.input.iter_mut().chain(&mut graph.output) {
                if element(value) == Some(DataType::Float16)
                    && let Some(kind) = value.r#type.as_mut().and_then(|kind| kind.value.as_mut())
                {
                    let pb::type_proto::Value::TensorType(tensor) = kind;
                    tensor.elem_type = DataType::Float.into();
                }
            }
            if depth < MAX_SUBGRAPHS {
                types_within(graph, depth + 1);
            }
        }
    }
}

fn rename_in(graph: &mut pb::GraphProto, names: &HashMap<String, String>, depth: usize) {
    for node in &mut graph.node {
        for name in node.input.iter_mut().chain(&mut node.output) {
            if let Some(known) = names.get(name) {
                name.clone_from(known);
            }
        }
        for attribute in &mut node.attribute {
            for inner in attribute.g.iter_mut().chain(&mut attribute.graphs) {
                for output in &mut inner.output {
                    if let Some(known) = names.get(&output.name) {
                        output.name.clone_from(known);
                    }
                }
                if depth < MAX_SUBGRAPHS {
                    rename_in(inner, names, depth + 1);
                }
            }
        }
    }
}

/// A tensor of zeros where a file gives no value: FP32, as the definition says.
pub(super) fn filled(node: &mut pb::NodeProto) {
    if find(node, "value").is_none() {
        let tensor = pb::TensorProto {
            dims: vec![1],
            data_type: DataType::Float.into(),
            float_data: vec![0.0],
            ..pb::TensorProto::default()
        };
        let mut value =
            super::nodes::attribute("value", pb::attribute_proto::AttributeType::Tensor);
        value.t = Some(tensor);
        node.attribute.push(value);
    }
}
